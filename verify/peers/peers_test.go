package peers_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/verify/limit"
	"github.com/keyledger/keyledger/verify/peers"
)

var (
	start = time.Date(2026, 1, 18, 22, 30, 0, 0, time.UTC)
	pool  = domain.Pool{Keyspace: "owls", Owner: "org_1"}
)

// network is nodes and what is on its way between them, on a virtual clock.
type network struct {
	now   time.Time
	quota domain.Quota
	nodes []*node
	sent  int
	air   []packet

	delay func() time.Duration
	lose  func(from, to *node) bool
}

type packet struct {
	at   time.Time
	to   *node
	data []byte // nil: a question
}

type node struct {
	name    string
	skew    time.Duration // of its clock
	limiter *limit.Limiter
	peers   *peers.Peers
	told    time.Time
	uses    []time.Time // by the true clock
}

func newNetwork(quota domain.Quota, nodes int) *network {
	w := &network{now: start, quota: quota, delay: func() time.Duration { return time.Millisecond }, lose: func(_, _ *node) bool { return false }}
	for i := range nodes {
		w.join(fmt.Sprintf("node-%d", i), 0)
	}
	return w
}

func (w *network) join(name string, skew time.Duration) *node {
	began := w.now.Add(skew)
	n := &node{name: name, skew: skew, limiter: limit.New(began)}
	n.peers = peers.New(n.limiter, peers.Options{
		Node: name, Start: began, Log: slog.New(slog.DiscardHandler),
		Quota: func(p domain.Pool) (*domain.Quota, domain.Pool) {
			if p.Owner != pool.Owner {
				return nil, p
			}
			return &w.quota, p
		},
	})
	w.nodes = append(w.nodes, n)
	return n
}

func (w *network) leave(n *node) {
	w.nodes = slices.DeleteFunc(w.nodes, func(o *node) bool { return o == n })
	w.air = slices.DeleteFunc(w.air, func(p packet) bool { return p.to == n })
}

// forward lets time pass, in which nodes say and hear what they would.
func (w *network) forward(d time.Duration) {
	const step = 5 * time.Millisecond
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(step, end.Sub(w.now)))
		for _, n := range w.nodes {
			now := w.now.Add(n.skew)
			if n.peers.Asks(now) {
				w.send(n, nil)
			}
			if w.now.Sub(n.told) >= peers.Every {
				if m := n.peers.Message(now); m != nil {
					n.told = w.now
					w.send(n, m)
				}
			}
		}
		var later []packet
		due := w.air
		w.air = nil
		for _, p := range due {
			switch {
			case p.at.After(w.now):
				later = append(later, p)
			case p.data == nil:
				p.to.peers.Asked()
			default:
				p.to.peers.Hear(p.data, w.now.Add(p.to.skew))
			}
		}
		w.air = append(w.air, later...)
	}
}

func (w *network) send(from *node, data []byte) {
	w.sent++
	for _, to := range w.nodes {
		if to != from && !w.lose(from, to) {
			w.air = append(w.air, packet{w.now.Add(w.delay()), to, data})
		}
	}
}

// take asks a node to admit a request.
func (w *network) take(n *node) limit.Taken {
	var t limit.Taken
	n.limiter.Take(&pool, &w.quota, 1, w.now.Add(n.skew), &t)
	if t.OK {
		n.uses = append(n.uses, w.now)
	}
	return t
}

// most is the largest number of admissions of these nodes in any rolling minute
// that begins after a moment.
func most(after time.Time, nodes ...*node) (n int) {
	var all []time.Time
	for _, node := range nodes {
		for _, at := range node.uses {
			if at.After(after) {
				all = append(all, at)
			}
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	for first, last := 0, 0; last < len(all); last++ {
		for all[last].Sub(all[first]) >= time.Minute {
			first++
		}
		n = max(n, last-first+1)
	}
	return n
}

// Three nodes at five times the limit, on a network that delays, repeats, loses and
// overtakes, with clocks that differ: no node ever admits more than the
// limit in a rolling minute, all together at most a tenth more.
func TestThreeAtFiveTimesTheLimit(t *testing.T) {
	schedules(t, 150)
	rapid.Check(t, func(t *rapid.T) {
		quota := int64(rapid.IntRange(40, 200).Draw(t, "limit"))
		w := newNetwork(domain.Quota{quota}, 0)
		for i := range 3 {
			w.join(fmt.Sprintf("node-%d", i), rapid.SampledFrom([]time.Duration{0, 0, time.Second, -7 * time.Second, time.Hour}).Draw(t, "skew"))
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		slowest := rapid.IntRange(1, 30).Draw(t, "slowest, ms")
		w.delay = func() time.Duration { return time.Duration(1+r.IntN(slowest)) * time.Millisecond }
		lost := rapid.SampledFrom([]int{0, 20, 8}).Draw(t, "one of so many is lost")
		w.lose = func(_, _ *node) bool { return lost > 0 && r.IntN(lost) == 0 }
		uneven := rapid.Bool().Draw(t, "uneven") // one node gets most of it
		overload(w, r, 12*quota, uneven, func(int) {})
		for _, n := range w.nodes {
			if got := most(time.Time{}, n); got > int(quota) {
				t.Fatalf("%s admitted %d of %d in a minute", n.name, got, quota)
			}
		}
		if got := most(time.Time{}, w.nodes...); got > int(math.Ceil(1.1*float64(quota))) {
			t.Fatalf("%d of %d were admitted in a minute", got, quota)
		}
		if got := most(time.Time{}, w.nodes...); got < int(quota)*9/10 {
			t.Fatalf("only %d of %d were admitted in a minute of so many", got, quota)
		}
	})
}

// The same without sharing admits three times as much: so the test above can fail.
func TestThreeThatDoNotShare(t *testing.T) {
	w := newNetwork(domain.Quota{60}, 3)
	w.lose = func(_, _ *node) bool { return true }
	overload(w, rand.New(rand.NewPCG(1, 1)), 600, false, func(int) {})
	if got := most(time.Time{}, w.nodes...); got != 180 {
		t.Errorf("%d are admitted in a minute by nodes that hear nothing, want 180", got)
	}
}

// overload asks n times, at five times the limit of the minute.
func overload(w *network, r *rand.Rand, n int64, uneven bool, each func(i int)) {
	between := time.Minute / time.Duration(5*w.quota[0])
	for i := range int(n) {
		each(i)
		to := r.IntN(len(w.nodes))
		if uneven && r.IntN(4) > 0 {
			to = 0
		}
		w.take(w.nodes[to])
		w.forward(time.Duration(r.Int64N(int64(2 * between))))
	}
}

// A node that is cut off limits by its own counts. When it is back, it and the
// others know within two seconds what each admitted meanwhile.
func TestCutOff(t *testing.T) {
	schedules(t, 50)
	rapid.Check(t, func(t *rapid.T) {
		w := newNetwork(domain.Quota{60, 0, 200}, 3)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		from := rapid.IntRange(0, 300).Draw(t, "from")
		to := from + rapid.IntRange(1, 300).Draw(t, "for")
		cut, inward, outward := false, rapid.Bool().Draw(t, "it hears"), rapid.Bool().Draw(t, "it is heard")
		away := w.nodes[2]
		w.lose = func(from, to *node) bool { return cut && (from == away && !outward || to == away && !inward) }
		var healed time.Time
		overload(w, r, 700, false, func(i int) {
			cut = i >= from && i < to
			if i == to {
				healed = w.now
			}
		})
		for _, n := range w.nodes {
			if got := most(time.Time{}, n); got > 60 {
				t.Fatalf("%s admitted %d of 60 in a minute", n.name, got)
			}
		}
		if got := most(time.Time{}, w.nodes...); got > 132 {
			t.Fatalf("%d are admitted in a minute by two and one, with a limit of 60", got)
		}
		if got := most(healed.Add(2*time.Second), w.nodes...); !healed.IsZero() && got > 66 {
			t.Fatalf("%d are admitted in a minute after all is well", got)
		}
		w.forward(3 * time.Second)
		total := int64(len(w.nodes[0].uses) + len(w.nodes[1].uses) + len(w.nodes[2].uses))
		for _, n := range w.nodes { // of the day, every node knows everything
			left := max(200-total, 0)
			if got := remaining(w, n)[1]; got != left {
				t.Fatalf("%s has %d of the day left, want %d: %d were admitted", n.name, got, left, total)
			}
		}
	})
}

// remaining is what a node has left of each window.
func remaining(w *network, n *node) (left []int64) {
	var t limit.Taken
	n.limiter.Take(&pool, &w.quota, 1<<40, w.now.Add(n.skew), &t) // is refused, and consumes nothing
	for _, l := range t.Limits[:t.N] {
		left = append(left, l.Remaining)
	}
	return left
}

// A node that joins, or comes back under its name or another, hears from the
// others what they admitted and reads it in the log, in any order and in parts:
// what stands in both is counted once, and what stands in one is counted.
func TestLateComer(t *testing.T) {
	schedules(t, 200)
	rapid.Check(t, func(t *rapid.T) {
		quota := domain.Quota{100, 300, 400}
		w := newNetwork(quota, 3)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var log []use                                      // what is recorded
		before := rapid.IntRange(40, 60).Draw(t, "before") // so many that somebody tells of it
		for range before {
			n := w.nodes[r.IntN(3)]
			w.take(n)
			log = append(log, use{n.name, w.now})
			w.forward(time.Duration(r.IntN(300)) * time.Millisecond)
		}
		// One ends; its last uses are in the log, and perhaps nobody was told.
		gone := w.nodes[2]
		w.leave(gone)
		name := gone.name
		if rapid.Bool().Draw(t, "another name") {
			name = "node-9"
		}
		w.forward(time.Second + time.Duration(r.IntN(1500))*time.Millisecond)
		late := w.join(name, 0)
		behind := min(rapid.IntRange(0, 3).Draw(t, "the log is behind"), len(log))
		// What others told is a lower bound of what they admitted, and so is the log.
		// What is not in it yet was told.
		var unwritten []use
		for i := len(log) - 1; i >= 0 && len(unwritten) < behind; i-- {
			if log[i].node != gone.name {
				unwritten = append(unwritten, log[i])
				log = slices.Delete(log, i, i+1)
			}
		}
		r.Shuffle(len(log), func(i, j int) { log[i], log[j] = log[j], log[i] })
		for _, u := range log {
			late.limiter.Recall(late.peers.Node(u.node), &pool, &w.quota, 1, u.at, w.now)
			if r.IntN(20) == 0 {
				w.take(w.nodes[r.IntN(2)])
				w.forward(time.Duration(r.IntN(30)) * time.Millisecond)
			}
		}
		for range rapid.IntRange(0, 20).Draw(t, "after") {
			w.take(w.nodes[r.IntN(3)])
			w.forward(time.Duration(r.IntN(100)) * time.Millisecond)
		}
		w.forward(3 * time.Second)
		total := int64(len(gone.uses))
		for _, n := range w.nodes {
			total += int64(len(n.uses))
		}
		for i, limit := range quota {
			if got := limit - remaining(w, late)[i]; got != total {
				t.Fatalf("%d are counted in window %d, of %d, %d of them not in the log", got, i, total, len(unwritten))
			}
		}
	})
}

type use struct {
	node string
	at   time.Time
}

// However many pools are busy, a node says at most one thing in a while, of bounded
// size, and tells all of them in the end.
func TestBounded(t *testing.T) {
	l := limit.New(start)
	quota := domain.Quota{8, 8, 8}
	known := func(p domain.Pool) (*domain.Quota, domain.Pool) { return &quota, p }
	p := peers.New(l, peers.Options{Node: "a", Start: start, Quota: known})
	const pools = 5000
	var taken limit.Taken
	for i := range pools {
		l.Take(&domain.Pool{Keyspace: strings.Repeat("k", 63), Owner: strings.Repeat("o", 64), Key: fmt.Sprint("key_", i)}, &quota, 1, start, &taken)
	}
	other := limit.New(start)
	q := peers.New(other, peers.Options{Node: "b", Start: start, Quota: known})
	messages := 0
	for now := start; l.Untold() > 0; now = now.Add(peers.Every) {
		m := p.Message(now)
		if len(m) > peers.MaxMessage {
			t.Fatalf("a message of %d bytes", len(m))
		}
		q.Hear(m, now)
		messages++
	}
	q.Hear(p.Message(start.Add(time.Minute)), start.Add(time.Minute)) // the last one may have waited
	if n := len(other.Pools()); n != pools || messages > pools/50 {
		t.Errorf("%d pools are heard of in %d messages, want %d", n, messages, pools)
	}
}

// What is malformed, of another version, of an unknown pool or of oneself is
// ignored and, but for the last, counted.
func TestIgnored(t *testing.T) {
	w := newNetwork(domain.Quota{10}, 2)
	for range 5 {
		w.take(w.nodes[0])
	}
	good := string(w.nodes[0].peers.Message(w.now))
	change := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s has no %s", good, old)
		}
		return strings.Replace(good, old, new, 1)
	}
	n := w.nodes[1]
	for i, bad := range []string{
		"", "null", "[]", "{", "{}", "\x00", good[:len(good)-1], good + "x", strings.Repeat("9", 1<<20), strings.Repeat("[", 10000),
		change(`"v":1`, `"v":2`), change(`"v":1`, `"v":"1"`), change(`"node":"node-0"`, `"node":""`), change(`"start":`, `"start":-`),
		change(`"org_1"`, `"org_2"`), change(`["owls"`, `[["owls"`), change(`,5]`, `]`), change(`,5]`, `,-5]`),
		change(`,5]`, `,5,`+strings.Repeat("1,1,", 70)+`1,1]`), change(`,5]`, `,9999999999999999999]`), change(`,5]`, `,5,9000000000000,1]`),
	} {
		n.peers.Hear([]byte(bad), w.now)
		if got := n.peers.Ignored(); got != uint64(i+1) {
			t.Fatalf("%.80q: %d are ignored, want %d", bad, got, i+1)
		}
		if got := remaining(w, n)[0]; got != 10 {
			t.Fatalf("%.80q: %d are left", bad, got)
		}
	}
	w.nodes[0].peers.Hear([]byte(good), w.now)
	for range 2 { // twice is once
		n.peers.Hear([]byte(good), w.now)
	}
	if a, b := remaining(w, w.nodes[0])[0], remaining(w, n)[0]; a != 5 || b != 5 {
		t.Errorf("%d and %d are left, want 5", a, b)
	}
}

func FuzzHear(f *testing.F) {
	w := newNetwork(domain.Quota{10, 20, 30}, 1)
	for range 5 {
		w.take(w.nodes[0])
	}
	f.Add(w.nodes[0].peers.Message(w.now))
	f.Add([]byte(`{"v":1,"node":"x","start":1,"sent":1,"pools":[{"pool":["owls","org_1",""],"counts":[[1,2],[],[0,9007199254740992]]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := newNetwork(domain.Quota{10, 20, 30}, 1)
		w.nodes[0].peers.Hear(data, w.now)
		for _, left := range remaining(w, w.nodes[0]) {
			if left < 0 {
				t.Errorf("%d left", left)
			}
		}
		if m := w.nodes[0].peers.Message(w.now); m != nil && !json.Valid(m) {
			t.Errorf("%q", m)
		}
	})
}
