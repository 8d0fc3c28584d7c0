//go:build !unix

package upstream

// nothingToRead cannot be said here, so that no connection is used twice.
func nothingToRead(uintptr) bool { return false }
