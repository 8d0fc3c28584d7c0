// Package peers tells the other verifiers of a deployment what this one admitted,
// and counts what they tell, so that a limit is one for all of them.
//
// What it promises. What is told are counts that only grow, by node, pool and
// bucket (package limit): a message that comes twice, late or in any order changes
// nothing, one that is lost is made good by the next, and whoever missed more
// than that notices by the message's number and asks for everything again. A
// process that begins asks as well. A node says at most one thing every [Every], of
// at most [MaxMessage] bytes, however many pools are busy. What is malformed, of
// another version or of a pool that is not known here is ignored and counted.
// Deciding a request never waits for any of this: a node that is cut off limits by
// what it knows.
//
// How it can disappoint. Between nodes a limit holds as well as news travels: what
// others admit in the [Every] or so until they are heard is admitted on top. A
// burst of more than a limit that reaches all nodes within that time is limited by
// each of them alone. When very many pools are busy at once, each is told of less
// often. A node is believed: who may publish on the subjects may use up anybody's
// limit, so only verifiers may (deploy/nats).
package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/verify/limit"
)

const (
	Every      = 20 * time.Millisecond // between two messages of a node at least
	MaxMessage = 32 << 10              // bytes of one, about

	beatEvery = time.Second            // a node with nothing to tell says so, so that a gap is seen
	askEvery  = time.Second            // between two questions at least
	tellEvery = 250 * time.Millisecond // between two times that everything is told

	version = 1
	maxName = 128
)

// Subjects, which belong to no stream. The last token is the node that says it.
const (
	countsSubject = "limits.counts."
	askSubject    = "limits.ask."
)

// Options of [Peers].
type Options struct {
	Node  string    // of this process, a subject token that no other running one has
	Start time.Time // of this process: later than that of any earlier one of this name

	// Quota is what counts for a pool here, and the pool as it is known here; nil
	// where there is no such pool.
	Quota func(domain.Pool) (*domain.Quota, domain.Pool)

	Log *slog.Logger // nil: slog.Default()
}

// Peers is this node among the others.
type Peers struct {
	o       Options
	self    limit.Node
	limiter *limit.Limiter
	wake    chan struct{} // has room for one

	ignored atomic.Uint64 // messages and pools
	asked   atomic.Bool   // somebody wants everything
	want    atomic.Bool   // something was missed

	// Of whoever calls Message and Asks.
	number  uint64 // of the last message
	next    limit.Share
	pending bool // next did not fit
	wholeAt time.Time
	beatAt  time.Time
	askAt   time.Time

	mu         sync.Mutex // guards what follows
	nodes      map[string]*node
	complained time.Time
}

// node is another one, as far as it was heard.
type node struct {
	start int64
	last  uint64 // number of its last message
	heard time.Time
}

// message is what a node says: its number, its clock, and pools.
type message struct {
	Version int    `json:"v"`
	Node    string `json:"node"`
	Start   int64  `json:"start"` // of its process, nanoseconds since 1970
	Number  uint64 `json:"number"`
	Sent    int64  `json:"sent"` // nanoseconds since 1970
	Pools   []pool `json:"pools,omitempty"`
}

type pool struct {
	Pool   [3]string  `json:"pool"`   // keyspace, owner, key
	Counts [3][]int64 `json:"counts"` // of minute, hour and day: number of the second, minute or hour, then how much
}

// New makes the limiter share. It MUST be called before the limiter is asked.
func New(l *limit.Limiter, o Options) *Peers {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	p := &Peers{
		o: o, self: limit.Node{Name: o.Node, Start: o.Start.UnixNano()}, limiter: l,
		wake: make(chan struct{}, 1), nodes: make(map[string]*node),
	}
	p.want.Store(true)
	l.ShareWith(p.poke)
	return p
}

func (p *Peers) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Ignored is how many messages, or pools in them, were of no use.
func (p *Peers) Ignored() uint64 { return p.ignored.Load() }

// Node is another one by its name, with the start that it told; 0 where it was
// not heard.
func (p *Peers) Node(name string) limit.Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := limit.Node{Name: name}
	if other := p.nodes[name]; other != nil {
		n.Start = other.start
	}
	return n
}

// Heard is how many other nodes said something within a time.
func (p *Peers) Heard(within time.Duration, now time.Time) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.nodes {
		if now.Sub(other.heard) <= within {
			n++
		}
	}
	return n
}

// Run listens, asks and tells until ctx ends. What is said while the connection
// is down is not kept: it is told when it is back. ready is called once this node
// listens and has asked.
func (p *Peers) Run(ctx context.Context, conn *nats.Conn, ready func()) error {
	hear, err := conn.Subscribe(countsSubject+"*", func(m *nats.Msg) { p.Hear(m.Data, time.Now()) })
	if err != nil {
		return fmt.Errorf("share the limits: %w", err)
	}
	defer hear.Unsubscribe()
	asked, err := conn.Subscribe(askSubject+"*", func(m *nats.Msg) {
		if m.Subject != askSubject+p.o.Node {
			p.Asked()
		}
	})
	if err != nil {
		return fmt.Errorf("share the limits: %w", err)
	}
	defer asked.Unsubscribe()
	if p.Asks(time.Now()) {
		_ = conn.Publish(askSubject+p.o.Node, nil)
	}
	// Without an answer it listens as soon as the connection is back.
	_ = conn.FlushTimeout(beatEvery)
	ready()
	pause := time.NewTimer(Every)
	defer pause.Stop()
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		if conn.IsConnected() {
			now := time.Now()
			if p.Asks(now) {
				_ = conn.Publish(askSubject+p.o.Node, nil)
			}
			if m := p.Message(now); m != nil {
				_ = conn.Publish(countsSubject+p.o.Node, m)
			}
		}
		pause.Reset(Every)
		select { // at most one message in that time
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.limiter.Untold() > 0 && conn.IsConnected() {
			continue
		}
		select {
		case <-p.wake:
		case <-beat.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Asked says that another node wants to know everything.
func (p *Peers) Asked() {
	p.asked.Store(true)
	p.poke()
}

// Asks says whether it is time to ask the others for everything.
func (p *Peers) Asks(now time.Time) bool {
	if !p.want.Load() || !p.askAt.IsZero() && now.Sub(p.askAt) < askEvery {
		return false
	}
	p.want.Store(false)
	p.askAt = now
	return true
}

// Message is what is to be said now, or nil. It MUST NOT be called by two at once.
func (p *Peers) Message(now time.Time) []byte {
	if p.asked.Load() && now.Sub(p.wholeAt) >= tellEvery {
		p.asked.Store(false)
		p.wholeAt = now
		p.beatAt = time.Time{} // an answer, even where there is nothing to tell
		p.limiter.TellAll()
	}
	m := message{Version: version, Node: p.self.Name, Start: p.self.Start, Number: p.number + 1, Sent: now.UnixNano()}
	size := 128 + len(m.Node)
	for size < MaxMessage {
		if !p.pending && !p.limiter.Next(now, &p.next) {
			break
		}
		entry := encode(&p.next)
		n := entry.size()
		if p.pending = size+n > MaxMessage; p.pending {
			break
		}
		size += n
		m.Pools = append(m.Pools, entry)
	}
	if len(m.Pools) == 0 && now.Sub(p.beatAt) < beatEvery {
		return nil
	}
	p.number++
	p.beatAt = now
	b, err := json.Marshal(m)
	if err != nil { // numbers and strings: it cannot be
		return nil
	}
	return b
}

func encode(sh *limit.Share) pool {
	e := pool{Pool: [3]string{sh.Pool.Keyspace, sh.Pool.Owner, sh.Pool.Key}}
	for i, buckets := range sh.Buckets {
		e.Counts[i] = make([]int64, 0, 2*len(buckets))
		for _, b := range buckets {
			e.Counts[i] = append(e.Counts[i], b.At, b.N)
		}
	}
	return e
}

// size is about how many bytes of a message a pool takes, rather more.
func (e *pool) size() int {
	n := 48
	for _, s := range e.Pool {
		n += len(s) + 3
	}
	for _, c := range e.Counts {
		n += 14 * len(c)
	}
	return n
}

// Hear counts what a message says. It never fails: what cannot be used is
// ignored.
func (p *Peers) Hear(data []byte, now time.Time) {
	var m message
	if len(data) > 2*MaxMessage || json.Unmarshal(data, &m) != nil || m.Version != version ||
		m.Node == "" || len(m.Node) > maxName || m.Start <= 0 || m.Sent <= 0 {
		p.ignore(now, "it cannot be read, or is of another version")
		return
	}
	from := limit.Node{Name: m.Node, Start: m.Start}
	if from == p.self || !p.follows(from, m.Number, now) {
		return
	}
	var sh limit.Share
	for i := range m.Pools {
		sh.Pool = domain.Pool{Keyspace: m.Pools[i].Pool[0], Owner: m.Pools[i].Pool[1], Key: m.Pools[i].Pool[2]}
		var quota *domain.Quota
		if quota, sh.Pool = p.o.Quota(sh.Pool); quota == nil || !decode(&m.Pools[i], &sh) {
			p.ignore(now, "a pool in it is not known here, or its counts are none")
			continue
		}
		p.limiter.Hear(from, &sh, quota, time.Unix(0, m.Sent), now)
	}
}

const (
	maxMoment = 1 << 33 // seconds since 1970: far in the future
	maxCount  = 1 << 53
)

func decode(e *pool, sh *limit.Share) bool {
	for i, c := range e.Counts {
		if len(c)%2 != 0 || len(c) > 2*limit.MaxBuckets[i] {
			return false
		}
		sh.Buckets[i] = sh.Buckets[i][:0]
		for j := 0; j < len(c); j += 2 {
			if c[j] < 0 || c[j] > maxMoment/limit.BucketSeconds[i] || c[j+1] < 0 || c[j+1] > maxCount {
				return false
			}
			sh.Buckets[i] = append(sh.Buckets[i], limit.Bucket{At: c[j], N: c[j+1]})
		}
	}
	return true
}

// maxNodes is how many others are told apart. More are counted, but not missed.
const maxNodes = 1024

// follows notes a message and asks for everything where some were missed. It is
// false for one of a process that another has followed.
func (p *Peers) follows(from limit.Node, number uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[from.Name]
	switch {
	case n == nil:
		if len(p.nodes) >= maxNodes {
			for name, other := range p.nodes {
				if now.Sub(other.heard) > time.Minute {
					delete(p.nodes, name)
				}
			}
		}
		if len(p.nodes) < maxNodes {
			p.nodes[from.Name] = &node{from.Start, number, now}
		}
		if number > 1 {
			p.want.Store(true)
		}
		return true
	case from.Start < n.start:
		return false
	case from.Start > n.start:
		*n = node{start: from.Start}
	case number > n.last+1:
		p.want.Store(true)
		p.poke()
	}
	n.last, n.heard = max(n.last, number), now
	return true
}

// ignore counts, and says so now and then.
func (p *Peers) ignore(now time.Time, why string) {
	p.ignored.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.complained) > time.Minute {
		p.complained = now
		p.o.Log.Warn("what another node says of limits is ignored", "because", why, "so far", p.ignored.Load())
	}
}
