package verify_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
)

// What one decision with three windows costs whoever asks for it, of keys drawn
// at random, all of them in use: beside the least that such a decision can be (a
// map, a SHA-256, three counters, the time), bare, with the use recorded in pages on
// a real NATS server, and with a write-ahead log before that. cpu-ns/op is the processor time of the goroutines that ask,
// which neighbours on the machine do not change as they change the clock's; pages
// are written by others, whose time total-cpu-ns/op includes.
func BenchmarkInProcess(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		if testing.Short() && n > 1000 {
			continue
		}
		ring, secrets := manyKeys(b, n)
		keys := fmt.Sprintf("keys=%d/", n)
		run := func(name string, decide func(req *domain.Request)) {
			b.Run(keys+name, func(b *testing.B) { parallel(b, secrets, decide) })
		}
		run("floor", newFloor(secrets).decide)
		v := verify.New(ring, nil, verify.Options{})
		run("decided", func(req *domain.Request) {
			if d := v.Verify(*req); !d.Valid {
				b.Error(d.Code)
			}
		})
		v.Close()
		for _, name := range []string{"recorded", "logged"} {
			dir := ""
			if name == "logged" {
				dir = b.TempDir()
			}
			recorder := recorderFor(b, dir)
			v := verify.New(ring, recorder, verify.Options{})
			var asked atomic.Int64
			run(name, func(req *domain.Request) {
				d := v.Verify(*req)
				v.Record(&d, req, verify.Use{Via: "api", RequestID: "req_1", UserAgent: "curl/8", Status: 200, Latency: time.Millisecond})
				if asked.Add(1)%16384 == 0 { // faster than any disk writes
					_ = recorder.Flush(b.Context())
				}
			})
			v.Close()
		}
	}
}

// recorderFor records into a ledger of its own on a server that syncs every page,
// with a write-ahead log in dir where that is not empty.
func recorderFor(b *testing.B, dir string) *verify.Recorder {
	conn := testenv.Conn(b, testenv.NATS(b, testenv.Synced()))
	l, err := ledger.Open(b.Context(), conn, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	js, err := jetstream.New(conn)
	if err != nil {
		b.Fatal(err)
	}
	keys, err := seal.Open(b.Context(), js, seal.Master{1}, 1)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(keys.Close)
	var r *verify.Recorder
	if dir == "" {
		r = verify.NewRecorder(l, keys, "bench", verify.RecorderOptions{})
	} else if r, err = verify.OpenRecorder(b.Context(), l, keys, "bench", verify.RecorderOptions{Dir: dir, Master: seal.Master{1}}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := r.Close(context.WithoutCancel(b.Context())); err != nil {
			b.Error(err)
		}
	})
	return r
}

func parallel(b *testing.B, secrets []string, decide func(*domain.Request)) {
	warm := request("")
	for _, warm.Key = range secrets {
		decide(&warm)
	}
	var spent atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	before := everyTime()
	b.RunParallel(func(p *testing.PB) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r, req, began := rand.New(rand.NewPCG(rand.Uint64(), 1)), request(""), callerTime()
		for p.Next() {
			req.Key = secrets[r.IntN(len(secrets))]
			decide(&req)
		}
		spent.Add(int64(callerTime() - began))
	})
	b.ReportMetric(float64(spent.Load())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(everyTime()-before)/float64(b.N), "total-cpu-ns/op")
}

// floor is what nobody can do without.
type floor struct {
	shards [64]struct {
		sync.Mutex
		keys map[[32]byte]*floorKey
	}
}

type floorKey struct {
	windows [3]struct{ began, n int64 }
}

func newFloor(secrets []string) *floor {
	f := &floor{}
	for _, secret := range secrets {
		hash := sha256.Sum256([]byte(secret))
		s := &f.shards[hash[0]%64]
		if s.keys == nil {
			s.keys = make(map[[32]byte]*floorKey)
		}
		s.keys[hash] = &floorKey{}
	}
	return f
}

func (f *floor) decide(req *domain.Request) {
	hash, now := domain.HashSecret(req.Key), time.Now().UnixNano()
	s := &f.shards[hash[0]%64]
	s.Lock()
	defer s.Unlock()
	k := s.keys[hash]
	for i, span := range [...]int64{60e9, 3600e9, 86400e9} {
		w := &k.windows[i]
		if began := now - now%span; w.began != began {
			w.began, w.n = began, 0
		}
		w.n++
	}
}
