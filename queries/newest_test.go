package queries

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

func (l *log) newest(f AuditFilter) (places string, tail string) {
	l.t.Helper()
	var out []string
	for {
		page, err := l.Newest(l.t.Context(), f, l.keys)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, e := range page.Events {
			out = append(out, fmt.Sprintf("%s:%d.%d", e.Stream[:1], e.Sequence, e.Line))
		}
		if tail == "" {
			tail = page.End
		} else if tail != page.End {
			l.t.Errorf("%+v: the end of a later page is another one", f)
		}
		if page.NextCursor == "" {
			return strings.Join(out, " "), tail
		}
		f.After = page.NextCursor
	}
}

func reversed(list string) string {
	words := strings.Fields(list)
	slices.Reverse(words)
	return strings.Join(words, " ")
}

// The log from its end is the log backward, with every filter and pages of any size,
// and its end is where a reading forward goes on.
func TestNewest(t *testing.T) {
	l := life(t)
	first, err := l.l.At(t.Context(), events.Ledger, 1)
	if err != nil {
		t.Fatal(err)
	}
	zero := first[0].Event.Time - 1000
	for _, f := range []AuditFilter{
		{}, {Keyspace: "parcelbird"}, {Keyspace: "wind"}, {Owner: "o1"}, {Key: "key_a"}, {Keyspace: "parcelbird", Owner: "o1", Key: "key_a"},
		{Key: "key_root"}, {Keyspace: "keyledger"}, {Types: []string{"key.used"}}, {Types: []string{"key.revoked", "service.started"}}, {Actor: "key_root"},
		{From: zero + 6000, To: zero + 11000}, {From: zero + 12000}, {To: zero + 3000}, {Except: []string{"key.used"}}, {Streams: []string{"OPS", "LEDGER"}}, {Code: "VALID"},
		{From: events.At(time.Now().Add(24 * time.Hour))}, {To: events.At(time.Now().Add(-240 * time.Hour))},
	} {
		for _, limit := range []int{0, 1, 2, 3, 5} {
			f.Limit = limit
			want := reversed(l.list(f))
			if got, _ := l.newest(f); got != want {
				t.Errorf("%+v:\n got %s\nwant %s", f, got, want)
			}
		}
	}
	page, err := l.Newest(t.Context(), AuditFilter{Limit: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.page("parcelbird", "o1", "key_a", after(30), after(31))
	l.fact(after(32), "parcelbird", "o1", "key_a", events.KeyDeleted{})
	if got := l.list(AuditFilter{After: page.End}); got != "U:4.0 U:4.1 L:5.0" {
		t.Errorf("behind the end is %s", got)
	}
	rest := AuditFilter{After: page.NextCursor}
	if got, _ := l.newest(rest); got != "U:2.1 L:3.0 U:2.0 U:1.2 O:1.0 U:1.1 U:1.0 L:2.0 L:1.0" {
		t.Errorf("what came meanwhile is among what was there: %s", got)
	}
	for _, f := range []AuditFilter{{After: "x"}, {After: page.End}, {After: page.NextCursor[1:]}, {Except: []string{"key.exploded"}}, {Streams: []string{"FEED"}}, {Limit: 5000}} {
		if _, err := l.Newest(t.Context(), f, nil); !refused(err, "INVALID") {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// However far the index is, the log from its end is through it what it is by reading,
// and holds what the log from its beginning holds, each once.
func TestNewestLocated(t *testing.T) {
	x := newIndexed(t)
	const pages = 1400
	x.traffic(pages, rand.New(rand.NewPCG(1, 2)))
	x.fact(time.Now().Add(-20*time.Minute), "parcelbird", "o1", "key_o1_1", events.KeyCreated{Name: "n"})
	random := rand.New(rand.NewPCG(3, 4))
	x.remember()
	through := x.Indexed(projections.NewIndex(x.pool, x.keys))
	for _, to := range []uint64{0, 40, 1024, pages - 3} {
		if to > 0 {
			x.move(to, func() int { return 1 + random.IntN(200)*random.IntN(2) })
		}
		rapid.Check(t, func(rt *rapid.T) {
			f := AuditFilter{Limit: rapid.SampledFrom([]int{3, 100, 1000}).Draw(rt, "limit")}
			maybe := func(name string, of ...string) string {
				return rapid.SampledFrom(append([]string{"", ""}, of...)).Draw(rt, name)
			}
			f.Keyspace = maybe("keyspace", "parcelbird", "wind")
			switch rapid.IntRange(0, 4).Draw(rt, "by") {
			case 0:
				f.Key = fmt.Sprintf("key_o%d_%d", rapid.IntRange(0, 5).Draw(rt, "o"), rapid.IntRange(0, 12).Draw(rt, "k"))
			case 1:
				f.Owner = fmt.Sprint("o", rapid.IntRange(0, 39).Draw(rt, "o"))
				f.Endpoint = maybe("endpoint", "/v1/parcels")
			case 2:
				f.IP = rapid.SampledFrom([]string{"203.0.113.0", "203.0.113.150", "2001:db8::1", "198.51.100.1"}).Draw(rt, "ip")
			default:
				f.Endpoint = rapid.SampledFrom([]string{"/v1/parcels", "/health", "/nowhere"}).Draw(rt, "endpoint")
			}
			f.Code = maybe("code", "VALID", "EXPIRED")
			if rapid.Bool().Draw(rt, "from") {
				f.From = events.At(time.Now().Add(-time.Duration(rapid.IntRange(0, 60*60).Draw(rt, "ago")) * time.Second))
			}
			all := func(newest bool, a *Audit) (list []string) {
				for f := f; ; {
					read := a.Events
					if newest {
						read = a.Newest
					}
					page, err := read(rt.Context(), f, x.keys)
					if err != nil {
						rt.Fatal(err)
					}
					list = append(list, places(page)...)
					if f.After = page.NextCursor; f.After == "" {
						return list
					}
					if len(list) > 20_000 {
						rt.Fatal("there is no end to it")
					}
				}
			}
			got, want := all(true, through), all(true, x.Audit)
			if !slices.Equal(got, want) {
				rt.Fatalf("index at %d, %+v:\n got %v\nwant %v", to, f, got, want)
			}
			slices.Sort(got)
			if want = all(false, x.Audit); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				rt.Fatalf("index at %d, %+v: %d events from the end, %d from the beginning", to, f, len(got), len(want))
			}
		})
	}
}
