package verify_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// threadTime is the processor time that this thread took so far.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	if err := syscall.Getrusage(thread, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What a flood costs the known keys. Beside it stands the same flood against
// another verifier, with which they share the machine and nothing else: what is
// left between the two is what the folds, the recorder and the ring cost them.
// cpu-ns/op is the processor time of the known keys' thread, which a busy machine
// disturbs less.
func BenchmarkFlood(b *testing.B) {
	attack := func(b *testing.B, v *verify.Verifier) (stop func()) {
		b.Helper()
		var wg sync.WaitGroup
		var over atomic.Bool
		requests := make([]domain.Request, 1<<14) // writing them is the attacker's work
		for i := range requests {
			requests[i] = flood(int64(i))
		}
		wg.Go(func() {
			for n := 0; !over.Load(); n++ {
				v.Verify(requests[n%len(requests)])
			}
		})
		return func() { over.Store(true); wg.Wait() }
	}
	for _, c := range []struct {
		name   string
		attack func(b *testing.B, here, elsewhere *verify.Verifier) (stop func())
	}{
		{"alone", func(*testing.B, *verify.Verifier, *verify.Verifier) func() { return func() {} }},
		{"flood elsewhere", func(b *testing.B, _, elsewhere *verify.Verifier) func() { return attack(b, elsewhere) }},
		{"flood", func(b *testing.B, here, _ *verify.Verifier) func() { return attack(b, here) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			w, _ := birds(b)
			other := verifytest.New(b, verify.Options{})
			other.Configure(verifytest.Birds)
			req := request(secret)
			defer c.attack(b, w.Verifier, other.Verifier)()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			from := threadTime(b)
			for b.Loop() {
				if d := w.Verifier.Verify(req); !d.Valid {
					b.Fatal(d.Code)
				}
			}
			b.ReportMetric(float64(threadTime(b)-from)/float64(b.N), "cpu-ns/op")
		})
	}
}
