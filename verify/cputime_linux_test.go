package verify_test

import (
	"syscall"
	"time"
)

// threadTime is the processor time of the calling thread, processTime that of all.
func threadTime() time.Duration  { return spent(1) } // RUSAGE_THREAD
func processTime() time.Duration { return spent(syscall.RUSAGE_SELF) }

func spent(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
