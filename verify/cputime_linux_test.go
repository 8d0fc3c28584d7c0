package verify_test

import (
	"syscall"
	"time"
)

// callerTime is the processor time of the calling thread, everyTime that of all.
func callerTime() time.Duration { return spent(1) } // RUSAGE_THREAD
func everyTime() time.Duration  { return spent(syscall.RUSAGE_SELF) }

func spent(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
