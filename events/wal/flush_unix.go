//go:build unix && !linux

package wal

import (
	"os"
	"syscall"
	"unsafe"
)

// flush hands the mapping to the file system, and the file to the disk (on macOS
// os.File.Sync asks the drive as well).
func flush(f *os.File, m []byte) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), syscall.MS_SYNC); errno != 0 {
		return errno
	}
	return f.Sync()
}
