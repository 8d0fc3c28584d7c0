package projections

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// BenchmarkLive writes uses at a steady pace while every projection follows in the same
// process, NATS too, and PostgreSQL beside: how far each is behind, from the moment when
// a page should have been written until its rows are committed, and what a use costs in
// processor time. "alone" is the same without followers: what writing costs. Profiles are
// labelled with the projections' names:
//
//	KEYLEDGER_LIVE=10s go test -run '^$' -bench Live -benchtime 1x -cpuprofile cpu.out ./projections
//	go tool pprof -tags cpu.out
//
// KEYLEDGER_RATE is uses a second, 40,000; KEYLEDGER_KEYS how many keys they are of.
// With KEYLEDGER_OUTCOMES the status is not known with the use but reported later, as
// where nobody but the caller knows it.
func BenchmarkLive(b *testing.B) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	lasts, err := time.ParseDuration(os.Getenv("KEYLEDGER_LIVE"))
	if err != nil {
		lasts = 3 * time.Second
	}
	if testing.Short() {
		lasts = time.Second / 2
	}
	rate, keys := number("KEYLEDGER_RATE", 40_000), number("KEYLEDGER_KEYS", 1000)
	const size = 200 // of a page: what comes in 5 ms
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	l, sealing := openKeys(b)
	for _, name := range []string{"alone", "all"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				pool := database(b)
				pages := livePages(b, sealing, int(lasts.Seconds()*float64(rate))/size, size, rate, keys, os.Getenv("KEYLEDGER_OUTCOMES") != "")
				var followers []Projection
				if name == "all" {
					followers = append(All(), Addresses{sealing})
				}
				b.StartTimer()
				live(b, &liveRun{pool: pool, pages: pages, every: time.Second * size / time.Duration(rate), size: size}, followers, func(page [][]byte) (uint64, error) {
					return l.AppendPage(b.Context(), "parcelbird", "n1", page)
				}, func() *Runner { return newRunner(l, pool, slog.New(slog.DiscardHandler), followers) }, func() (uint64, error) { return l.Head(b.Context(), events.Usage) })
			}
		})
	}
}

type liveRun struct {
	pool  *pgxpool.Pool
	pages [][][]byte
	every time.Duration
	size  int
}

func live(b *testing.B, x *liveRun, followers []Projection, write func([][]byte) (uint64, error), runner func() *Runner, head func() (uint64, error)) {
	r := runner()
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	defer running.Wait()
	defer cancel()
	at, err := head()
	if err != nil {
		b.Fatal(err)
	}
	var followed []string
	for _, p := range followers {
		if p.Stream() != events.Usage {
			continue
		}
		followed = append(followed, p.Name())
		if err := r.Wait(ctx, p.Name(), at); err != nil {
			b.Fatal(err)
		}
	}
	type written struct {
		sequence uint64
		due      time.Time
	}
	lags := make([][]time.Duration, len(followed))
	var watchers sync.WaitGroup
	var tell []chan written
	for i, name := range followed {
		f, err := r.follower(name)
		if err != nil {
			b.Fatal(err)
		}
		c := make(chan written, len(x.pages))
		tell = append(tell, c)
		watchers.Go(func() { // not Runner.Wait, which makes a projection hurry
			for w := range c {
				for {
					f.mu.Lock()
					at, moved := f.at, f.moved
					f.mu.Unlock()
					if at >= w.sequence {
						break
					}
					select {
					case <-moved:
					case <-ctx.Done():
						return
					}
				}
				lags[i] = append(lags[i], time.Since(w.due))
			}
		})
	}
	runtime.GC()
	before, backends := processorTime(), backendTime(b, x.pool, followed)
	begin := time.Now()
	for i, page := range x.pages {
		due := begin.Add(time.Duration(i) * x.every)
		time.Sleep(time.Until(due))
		sequence, err := write(page)
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range tell {
			c <- written{sequence, due}
		}
	}
	took := time.Since(begin)
	for _, c := range tell {
		close(c)
	}
	watchers.Wait()
	uses := float64(len(x.pages) * x.size)
	b.ReportMetric(uses/took.Seconds(), "uses/s")
	b.ReportMetric(float64((processorTime()-before).Microseconds())/uses, "own-µs/use")
	all := time.Duration(0)
	for i, t := range backendTime(b, x.pool, followed) {
		all += t - backends[i]
		b.ReportMetric(float64((t-backends[i]).Microseconds())/uses, followed[i]+"-postgres-µs/use")
	}
	if len(followed) > 0 {
		b.ReportMetric(float64(all.Microseconds())/uses, "postgres-µs/use")
	}
	for i, list := range lags {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, followed[i]+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, followed[i]+"-p99-ms")
		b.ReportMetric(float64(list[len(list)-1].Microseconds())/1000, followed[i]+"-most-ms")
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// backendTime is the processor time of each projection's connection at the server, as
// Linux counts it, in hundredths of a second; 0 elsewhere.
func backendTime(b *testing.B, pool *pgxpool.Pool, names []string) (times []time.Duration) {
	for _, name := range names {
		pid := scan[int](b, pool, `select coalesce(min(pid), 0) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
			and classid::bigint = hashtext('keyledger.projection')::bigint & 4294967295 and objid::bigint = hashtext($1)::bigint & 4294967295`, name)
		times = append(times, backendUse(pid))
	}
	return times
}

// backendUse is the processor time of a process; 0 where it cannot be told.
func backendUse(pid int) time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	ticks := 0
	if len(fields) > 12 {
		for _, f := range fields[11:13] {
			n, _ := strconv.Atoi(f)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// livePages makes pages of uses of random keys at a pace, with their addresses sealed.
// Where outcomes are reported, a page ends with those of its uses: half are uses.
func livePages(b *testing.B, sealing *seal.Keys, n, size, rate, keys int, outcomes bool) (pages [][][]byte) {
	used := 0
	for range n {
		var list []events.Envelope
		var reports []events.Envelope
		for len(list)+len(reports) < size {
			at := start.Add(time.Duration(used) * time.Second / time.Duration(rate))
			key := rand.IntN(keys)
			u := events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: fmt.Sprint("/v1/parcels/", used%3),
				CostMicros: 7, Environment: "live", Secret: "current", Node: "n1", LedgerSequence: 7, DocumentVersion: 1}
			status := 200
			if used%50 == 0 {
				status = 404
			}
			if !outcomes {
				u.Status, u.LatencyMS = &status, new(rand.Int64N(300))
			}
			about := func(e events.Envelope) events.Envelope {
				e.Keyspace, e.Owner, e.Key, e.Actor = "parcelbird", fmt.Sprint("o", key/10), fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", key), events.Actor{Type: "key", ID: "key"}
				return e
			}
			list = append(list, about(events.New(seal.Use{KeyUsed: u, ClearIP: fmt.Sprintf("192.0.%d.%d", key/250%250, key%250)}, at)))
			if outcomes {
				reports = append(reports, about(events.New(events.KeyUseReported{Decision: u.Decision, Status: status, LatencyMS: rand.Int64N(300)}, at)))
			}
			used++
		}
		if err := sealing.Prepare(b.Context(), list); err != nil {
			b.Fatal(err)
		}
		bodies := make([][]byte, 0, size)
		for _, e := range append(list, reports...) {
			body, err := events.Encode(e)
			if err != nil {
				b.Fatal(err)
			}
			bodies = append(bodies, body)
		}
		pages = append(pages, bodies)
	}
	return pages
}
