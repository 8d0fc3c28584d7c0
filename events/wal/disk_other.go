//go:build !linux

package wal

import (
	"os"
	"time"
)

func allocate(f *os.File, size int64) error { return zeros(f, size) }

// bootID is not known here: every end that was not clean counts as that of the
// machine.
func bootID() string { return "" }

func bootTime() time.Time { return time.Time{} }

// needsFile says whether flush needs the file, beside its mapping.
const needsFile = true
