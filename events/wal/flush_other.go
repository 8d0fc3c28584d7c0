//go:build !unix

package wal

import "os"

func flush(f *os.File, _ []byte) error { return f.Sync() }
