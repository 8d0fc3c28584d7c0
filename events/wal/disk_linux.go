package wal

import (
	"errors"
	"os"
	"strings"
	"syscall"
)

// allocate takes the blocks of a file, so that a write into its mapping needs no
// room later.
func allocate(f *os.File, size int64) error {
	err := again(func() error { return syscall.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return zeros(f, size)
	}
	return err
}

// flush brings what was written through the mapping to the disk: the pages of
// the file are the same.
func flush(f *os.File, _ []byte) error {
	return again(func() error { return syscall.Fdatasync(int(f.Fd())) })
}

func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// bootID is another one after the machine was started again. It is the same for
// all containers of a machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
