package main

import (
	"os"
	"runtime"
	"sync"
)

// makeRoom fits the Go runtime to a process that verifies, unless the
// environment says how it is to be.
//
// On one core, whoever waits for the disk would keep everybody from running until
// the scheduler takes its place away, up to 10 ms later: a second place costs
// nothing. And a heap of a few megabytes would be collected a dozen times a
// second at full load: beside 64 MB that are reserved, never touched, and so take
// no memory, it is collected once it has grown by as much.
var makeRoom = sync.OnceFunc(func() {
	if runtime.GOMAXPROCS(0) == 1 && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		reserved = make([]byte, 64<<20)
	}
})

//lint:ignore U1000 it is there to be reserved: nobody reads it
var reserved []byte
