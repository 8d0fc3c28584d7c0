package ledger_test

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

func BenchmarkAppend(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("sync=%v/clients=%d", sync, clients), func(b *testing.B) {
				var opts []testenv.Option
				if sync {
					opts = append(opts, testenv.Synced())
				}
				l := open(b, testenv.Conn(b, testenv.NATS(b, opts...)), ledger.Options{})
				var n atomic.Int64
				b.SetParallelism((clients + 1) / 2)
				b.ResetTimer()
				if clients == 1 {
					for i := range b.N {
						if _, err := l.Append(b.Context(), 0, created("org_1", fmt.Sprintf("key_%d", i), 1)); err != nil {
							b.Fatal(err)
						}
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if _, err := l.Append(b.Context(), 0, created("org_1", fmt.Sprintf("key_%d", n.Add(1)), 1)); err != nil {
								b.Fatal(err)
							}
						}
					})
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
			})
		}
	}
}

// fill puts n facts about n keys into LEDGER without waiting for each.
func fill(b testing.TB, nc *nats.Conn, n int) {
	b.Helper()
	for done := 0; done < n; {
		end := min(done+2000, n)
		for ; done < end; done++ {
			e := created(fmt.Sprintf("org_%d", done%1000), events.NewID("key", time.Now()), 1)
			body, err := events.Encode(e)
			if err != nil {
				b.Fatal(err)
			}
			m := &nats.Msg{Subject: events.Subject(e.Keyspace, e.Owner, e.Key), Data: body, Header: nats.Header{"Ledger-Type": {e.Type}}}
			if done == end-1 {
				if _, err := nc.RequestMsg(m, 10*time.Second); err != nil {
					b.Fatal(err)
				}
			} else if err := nc.PublishMsg(m); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// One operation reads 300,000 facts of LEDGER.
func BenchmarkFollow(b *testing.B) {
	const n = 300_000
	nc := testenv.Conn(b, testenv.NATS(b))
	l := open(b, nc, ledger.Options{})
	fill(b, nc, n)
	b.ResetTimer()
	for range b.N {
		got := 0
		for batch, err := range l.FollowBatches(b.Context(), events.Ledger, 0, 5000, 50*time.Millisecond) {
			if err != nil {
				b.Fatal(err)
			}
			if got += len(batch); got == n {
				break
			}
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkFollowPages(b *testing.B) {
	const n = 300_000
	nc := testenv.Conn(b, testenv.NATS(b))
	l := open(b, nc, ledger.Options{})
	p := ledger.NewPages(l, "n", ledger.PagesOptions{Memory: 1 << 30})
	for range n {
		if !p.Record(used("key_019ab3d2-0000-7000-8000-000000000000")) {
			b.Fatal("dropped")
		}
	}
	if err := p.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		got := 0
		for batch, err := range l.FollowBatches(b.Context(), events.Usage, 0, 5000, 50*time.Millisecond) {
			if err != nil {
				b.Fatal(err)
			}
			if got += len(batch); got == n {
				break
			}
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkPages(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("record/sync=%v", sync), func(b *testing.B) {
			p := pages(b, sync)
			e := used("key_1")
			b.ReportAllocs()
			b.ResetTimer()
			dropped := 0
			for i := range b.N {
				e.ID = strconv.Itoa(i)
				for !p.Record(e) {
					dropped++
					p.Flush(b.Context())
				}
			}
			b.StopTimer()
			p.Flush(b.Context())
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "uses/s")
		})
		b.Run(fmt.Sprintf("durable/clients=64/sync=%v", sync), func(b *testing.B) {
			p := pages(b, sync)
			e := used("key_1")
			var n atomic.Int64
			b.SetParallelism(32)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				e := e
				for pb.Next() {
					e.ID = strconv.FormatInt(n.Add(1), 10)
					if err := p.RecordDurable(b.Context(), e); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

func pages(b *testing.B, sync bool) *ledger.Pages {
	var opts []testenv.Option
	if sync {
		opts = append(opts, testenv.Synced())
	}
	l := open(b, testenv.Conn(b, testenv.NATS(b, opts...)), ledger.Options{})
	p := ledger.NewPages(l, "n", ledger.PagesOptions{})
	b.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return p
}
