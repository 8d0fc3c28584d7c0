package queries

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections"
)

// BenchmarkFindUses prints how long a first page of 100 takes, in milliseconds, for
// what is frequent and what is rare, anywhere in time; and what the index weighs and
// how fast it is made. NATS is in this process, or with KEYLEDGER_NATS=apart one of its
// own, as in production; processor time is of both.
//
//	KEYLEDGER_USES=10000000 KEYLEDGER_KEYS=1000000 KEYLEDGER_PAGES=200 KEYLEDGER_NATS=apart \
//		go test -run '^$' -bench FindUses -benchtime 1x -timeout 60m ./queries
func BenchmarkFindUses(b *testing.B) {
	number := func(name string, otherwise int) int {
		n, err := strconv.Atoi(os.Getenv(name))
		if err != nil {
			return otherwise
		}
		return n
	}
	uses, keys := number("KEYLEDGER_USES", 20_000), number("KEYLEDGER_KEYS", 1000)
	processor := func() time.Duration { return processorTime(b) }
	conn := func() *nats.Conn { return testenv.Conn(b, testenv.NATS(b)) }
	if os.Getenv("KEYLEDGER_NATS") == "apart" {
		conn = func() *nats.Conn {
			nc, server := natsApart(b)
			processor = func() time.Duration { return processorTime(b) + processorTimeOf(b, server.PID()) }
			return nc
		}
	}
	x := newIndexedOn(b, conn())
	from, to := x.uses(uses, keys)
	head, err := x.l.Head(b.Context(), events.Usage)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("index", func(b *testing.B) {
		for b.Loop() {
			if _, err := x.conn.Exec(b.Context(), `set synchronous_commit = off`); err != nil {
				b.Fatal(err)
			}
		}
		for _, p := range x.projections() {
			begin := time.Now()
			x.follow(p, head, func() int { return 80 }) // messages of 256: a batch of the runner
			b.ReportMetric(float64(uses)/time.Since(begin).Seconds(), p.Name()+"-uses/s")
			var bytes int64
			for _, t := range p.Tables() {
				var n int64
				if err := x.pool.QueryRow(b.Context(), `select pg_total_relation_size(('keyledger.' || $1)::regclass)`, t.Name).Scan(&n); err != nil {
					b.Fatal(err)
				}
				bytes += n
			}
			b.ReportMetric(float64(bytes)/float64(uses), p.Name()+"-B/use")
		}
	})
	through := x.Indexed(projections.NewIndex(x.pool, x.keys))
	any := func() string { return fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", rand.IntN(keys)) }
	moment := func() events.Time { return from + events.Time(rand.Int64N(int64(to-from))) }
	for _, c := range []struct {
		name string
		f    func() AuditFilter
	}{
		{"busy key", func() AuditFilter { return AuditFilter{Key: busyKey} }},
		{"rare key", func() AuditFilter { return AuditFilter{Key: rareKey(rand.IntN(rares))} }},
		{"any key", func() AuditFilter { return AuditFilter{Key: any()} }},
		{"no such key", func() AuditFilter { return AuditFilter{Key: "key_none"} }},
		{"any owner", func() AuditFilter { return AuditFilter{Owner: fmt.Sprint("o", rand.IntN(max(keys/10, 1)))} }},
		{"any address", func() AuditFilter { return AuditFilter{IP: address(rand.IntN(2 * keys))} }},
		{"busy endpoint", func() AuditFilter { return AuditFilter{Endpoint: "/v1/parcels/1"} }},
		{"rare endpoint", func() AuditFilter { return AuditFilter{Endpoint: rareEndpoint(rand.IntN(rares))} }},
		{"busy key at any time", func() AuditFilter { return AuditFilter{Key: busyKey, From: moment()} }},
		{"any key at any time", func() AuditFilter { return AuditFilter{Key: any(), From: moment()} }},
		{"any key within a second", func() AuditFilter { at := moment(); return AuditFilter{Key: any(), From: at, To: at + 1000} }},
		{"any owner at any time", func() AuditFilter {
			return AuditFilter{Owner: fmt.Sprint("o", rand.IntN(max(keys/10, 1))), From: moment()}
		}},
		{"any address at any time", func() AuditFilter { return AuditFilter{IP: address(rand.IntN(2 * keys)), From: moment()} }},
		{"rare endpoint at any time", func() AuditFilter { return AuditFilter{Endpoint: rareEndpoint(rand.IntN(rares)), From: moment()} }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var times []time.Duration
			before := processor()
			found := 0
			for b.Loop() {
				for range number("KEYLEDGER_PAGES", 3) {
					f := c.f()
					f.Keyspace = "parcelbird"
					begin := time.Now()
					page, err := through.Events(b.Context(), f, x.keys)
					if err != nil {
						b.Fatal(err)
					}
					times = append(times, time.Since(begin))
					found += len(page.Events)
				}
			}
			b.ReportMetric(float64((processor()-before).Microseconds())/1000/float64(len(times)), "cpu-ms/page")
			slices.Sort(times)
			ms := func(i int) float64 { return float64(times[i].Microseconds()) / 1000 }
			b.ReportMetric(ms(len(times)/2), "p50-ms")
			b.ReportMetric(ms(len(times)*99/100), "p99-ms")
			b.ReportMetric(float64(found)/float64(len(times)), "events/page")
		})
	}
}

// processorTime is what this process, with NATS in it, has had so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processorTimeOf is what another process has had so far, in hundredths of a second.
func processorTimeOf(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	var user, system int64
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * (time.Second / 100)
}

func natsApart(b *testing.B) (*nats.Conn, *testenv.Process) {
	port := testenv.FreePort(b)
	p := testenv.Start(b, []string{"GOMEMLIMIT=1GiB"}, testenv.BuildNATS(b), "-a", "127.0.0.1", "-p", fmt.Sprint(port), "-js", "-sd", b.TempDir())
	p.WaitOutput("Server is ready", time.Minute)
	nc, err := nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", port))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return nc, p
}

const (
	busyKey = "key_busy"
	rares   = 100 // so that pages do not meet the messages of those before
)

func rareKey(n int) string      { return fmt.Sprintf("key_rare%02d", n) }
func rareEndpoint(n int) string { return fmt.Sprintf("/v1/parcels/rare%02d", n) }

func address(n int) string { return fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255) }

// uses appends pages of 256 uses: one in fifty of the busy key, twenty of each rare
// one, and the rest evenly of so many keys, with ten keys to an owner and two
// addresses to a key.
func (x *indexed) uses(n, keys int) (from, to events.Time) {
	x.t.Helper()
	from = events.At(time.Now())
	rare := max(n/20/rares, 1)
	for i := 0; i < n; {
		var bodies [][]byte
		for range min(256, n-i) {
			at := time.Now()
			k := rand.IntN(keys)
			e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: fmt.Sprint("/v1/parcels/", k%50), Status: new(200),
				LatencyMS: new(int64(i % 300)), Environment: "live", Secret: "current", Node: "n1", LedgerSequence: 7, DocumentVersion: 1}, at)
			e.Keyspace, e.Owner, e.Key = "parcelbird", fmt.Sprint("o", k/10), fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", k)
			d := e.Data.(events.KeyUsed)
			switch {
			case i%rare == rare/2:
				which := i / rare % rares
				e.Owner, e.Key, d.Endpoint = "orare", rareKey(which), rareEndpoint(which)
			case i%50 == 0:
				e.Owner, e.Key = "obusy", busyKey
			}
			var err error
			if d.SourceIP, err = x.keys.Seal(x.t.Context(), e.Keyspace, "all", at, address(2*k+rand.IntN(2))); err != nil {
				x.t.Fatal(err)
			}
			e.Data = d
			body, err := events.Encode(e)
			if err != nil {
				x.t.Fatal(err)
			}
			bodies = append(bodies, body)
			i++
		}
		if _, err := x.l.AppendPage(x.t.Context(), "parcelbird", "n1", bodies); err != nil {
			x.t.Fatal(err)
		}
	}
	return from, events.At(time.Now())
}
