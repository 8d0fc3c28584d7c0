package wal

import (
	"errors"
	"os"
)

// zeros takes the blocks of a file by writing them.
func zeros(f *os.File, size int64) error {
	b := make([]byte, min(size, 1<<20))
	for at := int64(0); at < size; at += int64(len(b)) {
		if _, err := f.WriteAt(b[:min(int64(len(b)), size-at)], at); err != nil {
			return err
		}
	}
	return errors.Join(f.Truncate(size), f.Sync())
}
