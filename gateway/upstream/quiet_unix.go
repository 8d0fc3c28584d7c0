//go:build unix

package upstream

import "syscall"

// nothingToRead says whether a socket that never blocks is open with nothing in
// it. Whatever there was is lost, and with it the connection.
func nothingToRead(fd uintptr) bool {
	var one [1]byte
	n, err := syscall.Read(int(fd), one[:])
	return n < 1 && (err == syscall.EAGAIN || err == syscall.EINTR)
}
