package wal

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
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

// flush is an fdatasync of the part of the file that the mapping is of.
func flush(_ *os.File, m []byte) error {
	return again(func() error {
		if _, _, errno := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), syscall.MS_SYNC); errno != 0 {
			return errno
		}
		return nil
	})
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

// bootTime is when the machine was started, to the second, or the zero time.
func bootTime() time.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil {
				return time.Unix(n+1, 0)
			}
		}
	}
	return time.Time{}
}

// needsFile says whether flush needs the file, beside its mapping.
const needsFile = false
