package merkle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

const (
	// scrubPlace is where the bucket holds what scrubs have found, and who scrubs.
	scrubPlace = "scrub"
	// askedPlace is where the bucket holds when somebody last asked for a scrub at once.
	askedPlace = "scrub_now"

	// DefaultScrubRate is how many bytes of messages a second are read, of all streams
	// together.
	DefaultScrubRate = 16 << 20

	scrubEvery = 30 * time.Second // between the beginnings of two passes over a stream
	scrubRenew = 5 * time.Second  // how often who scrubs says so
	scrubStale = 4                // times scrubRenew without that, and another process takes over
	scrubLook  = time.Second      // how often the others look
)

// What a scrub can find, [Finding.What].
const (
	FoundAltered    = "altered"    // an event is not the one that was signed
	FoundMissing    = "missing"    // a message is not there, or the server cannot read it
	FoundUnreadable = "unreadable" // a message is no event
	FoundShort      = "short"      // a stream ends before what was signed
	FoundTree       = "tree"       // rows of the tree in PostgreSQL were changed
	FoundCheckpoint = "checkpoint" // what the bucket remembers was not signed
)

// Finding is one thing that is not as it was signed.
type Finding struct {
	Stream   string      `json:"stream" example:"USAGE"`
	Server   string      `json:"server,omitempty" doc:"Whose copy it is; absent where it is not one of several servers alone." example:"nats-2"`
	What     string      `json:"what" enum:"altered,missing,unreadable,short,tree,checkpoint"`
	Sequence uint64      `json:"sequence" doc:"The first; 0: it is not known." example:"4711"`
	Line     int         `json:"line" doc:"In a page of uses, from 0."`
	Problem  string      `json:"problem" doc:"What was found."`
	Fix      string      `json:"fix" doc:"What to do."`
	Runbook  string      `json:"runbook" doc:"Page of docs/runbooks." example:"scrub-altered.md"`
	Found    events.Time `json:"found"`
}

func (f *Finding) String() string {
	return fmt.Sprintf("%s: %s. What to do: %s (docs/runbooks/%s)", f.Stream, f.Problem, f.Fix, f.Runbook)
}

// DamageError is what scrubs have found and not yet seen repaired.
type DamageError struct{ Findings []Finding }

func (e *DamageError) Error() string {
	var b strings.Builder
	b.WriteString("the log is not as it was signed")
	for i := range e.Findings {
		b.WriteString("; " + e.Findings[i].String())
	}
	return b.String()
}

// Pass is one whole reading of a stream.
type Pass struct {
	Began  events.Time `json:"began"`
	Ended  events.Time `json:"ended"`
	Events int64       `json:"events" doc:"That were signed."`
	Bytes  int64       `json:"bytes" doc:"Of events, on all servers together."`
}

// ScrubServer is what is known of one server's copy.
type ScrubServer struct {
	Server  string      `json:"server" doc:"Empty where there is one alone." example:"nats-2"`
	Checked events.Time `json:"checked" doc:"When it was last read to its end, or to what was found; null: not yet."`
	Skipped string      `json:"skipped" doc:"Why it was not read in the last pass; empty: it was."`
}

// ScrubStream is the scrub of one stream.
type ScrubStream struct {
	Stream   string        `json:"stream"`
	Server   string        `json:"server" doc:"Whose copy is being read."`
	Position uint64        `json:"position" doc:"Sequence up to which that copy has been read."`
	Of       uint64        `json:"of" doc:"Last sequence that is read: what was signed goes so far."`
	Began    events.Time   `json:"began" doc:"Of the pass on its way; null: none is."`
	Last     *Pass         `json:"last,omitempty" doc:"The last whole pass; absent: there was none."`
	Servers  []ScrubServer `json:"servers" nullable:"false"`
	Findings []Finding     `json:"findings" nullable:"false" doc:"What is not as it was signed, and was not seen repaired yet. While there is any, of any stream, commands are refused and nothing is signed."`
	Error    string        `json:"error" doc:"Why the last pass was not whole; it is tried again. Empty: it was."`
}

// ScrubState is how the scrub is doing, whichever process does it.
type ScrubState struct {
	Node    string        `json:"node" doc:"The process that scrubs; empty: none does now."`
	Rate    int64         `json:"rate" doc:"Bytes a second that it reads at most."`
	Streams []ScrubStream `json:"streams" nullable:"false"`
}

// scrub is a log's part in it. The state is one value in the bucket, which the process
// that scrubs replaces by compare-and-swap and the others read: a finding stops all
// of them, and outlives them.
type scrub struct {
	saving sync.Mutex // held while the value in the bucket is replaced

	mu       sync.Mutex // guards what follows
	state    ScrubState
	revision uint64 // of the value in the bucket that state is, or was made from
	leads    bool
	unsaved  bool // since the bucket had it

	asked   uint64                   // revision of askedPlace
	wake    map[string]chan struct{} // by stream
	changed chan struct{}            // closed and replaced when state changes
	pace    pacer
}

func newScrub(rate int64) *scrub {
	s := &scrub{wake: map[string]chan struct{}{}, changed: make(chan struct{})}
	s.pace.rate = float64(rate)
	s.state.Rate = rate
	for _, stream := range audit.Streams {
		s.wake[stream] = make(chan struct{}, 1)
	}
	s.state.complete()
	return s
}

// complete gives the state a place for every stream, in order.
func (s *ScrubState) complete() {
	old := s.Streams
	s.Streams = nil
	for _, stream := range audit.Streams {
		i := slices.IndexFunc(old, func(x ScrubStream) bool { return x.Stream == stream })
		x := ScrubStream{Stream: stream}
		if i >= 0 {
			x = old[i]
		}
		if x.Servers == nil {
			x.Servers = []ScrubServer{}
		}
		if x.Findings == nil {
			x.Findings = []Finding{}
		}
		s.Streams = append(s.Streams, x)
	}
}

func (s ScrubState) clone() ScrubState {
	s.Streams = slices.Clone(s.Streams)
	for i := range s.Streams {
		x := &s.Streams[i]
		x.Servers, x.Findings = slices.Clone(x.Servers), slices.Clone(x.Findings)
		if x.Last != nil {
			x.Last = new(*x.Last)
		}
	}
	return s
}

// ScrubState tells how the scrub is doing.
func (l *Log) ScrubState() ScrubState {
	l.scrub.mu.Lock()
	defer l.scrub.mu.Unlock()
	return l.scrub.state.clone()
}

// Damage is the [*DamageError] of what scrubs have found, or nil.
func (l *Log) Damage() error {
	l.scrub.mu.Lock()
	defer l.scrub.mu.Unlock()
	var all []Finding
	for i := range l.scrub.state.Streams {
		all = append(all, l.scrub.state.Streams[i].Findings...)
	}
	if all == nil {
		return nil
	}
	return &DamageError{all}
}

// ScrubNow has whichever process scrubs begin a pass over every stream at once.
func (l *Log) ScrubNow(ctx context.Context) error {
	_, err := l.kv.Put(ctx, askedPlace, []byte(events.At(time.Now()).String()))
	if err != nil {
		return fmt.Errorf("ask for a scrub in the bucket %s: %w", Bucket, err)
	}
	return nil
}

// update changes the state of a stream.
func (s *scrub) update(stream string, change func(*ScrubStream)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state.Streams[slices.Index(audit.Streams, stream)])
	s.unsaved = true
	close(s.changed)
	s.changed = make(chan struct{})
}

// readScrub reads what the bucket knows, unless it is this process that writes it.
func (l *Log) readScrub(ctx context.Context) error {
	l.scrub.mu.Lock()
	leads := l.scrub.leads
	l.scrub.mu.Unlock()
	if leads {
		return nil
	}
	value, revision, err := l.get(ctx, scrubPlace)
	if err != nil {
		return err
	}
	var read ScrubState
	if value != nil {
		if err := json.Unmarshal(value, &read); err != nil {
			// Whoever may write there may have had a reason to make it unreadable.
			read.complete()
			read.Streams[0].Findings = []Finding{{Stream: audit.Streams[0], What: FoundCheckpoint, Problem: "what the bucket " + Bucket + " remembers of scrubs is not as it was written: " + err.Error(),
				Fix: "wait for a whole pass over all streams, which writes it anew", Runbook: "scrub-checkpoint.md", Found: events.At(time.Now())}}
		}
	}
	read.complete()
	l.scrub.mu.Lock()
	defer l.scrub.mu.Unlock()
	if l.scrub.leads || revision < l.scrub.revision {
		return nil
	}
	if read.Rate == 0 {
		read.Rate = l.scrub.state.Rate
	}
	if revision != l.scrub.revision || l.scrub.revision == 0 {
		l.scrub.state, l.scrub.revision = read, revision
		close(l.scrub.changed)
		l.scrub.changed = make(chan struct{})
	}
	return nil
}

// Scrub reads the streams again and again and compares them with what was signed,
// until ctx ends. Of all processes that run it one does it, the others wait.
func (l *Log) Scrub(ctx context.Context) error {
	tick := time.NewTicker(scrubLook)
	defer tick.Stop()
	var seen uint64
	since := time.Now()
	for {
		if err := l.readScrub(ctx); err == nil {
			l.scrub.mu.Lock()
			revision, by := l.scrub.revision, l.scrub.state.Node
			l.scrub.mu.Unlock()
			if revision != seen {
				seen, since = revision, time.Now()
			}
			if by == "" || by == l.o.Node || time.Since(since) > scrubStale*scrubRenew {
				if l.takeScrub(ctx) {
					l.scrubs(ctx)
					since = time.Now()
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// takeScrub is whether this process scrubs from now on.
func (l *Log) takeScrub(ctx context.Context) bool {
	s := l.scrub
	s.mu.Lock()
	s.leads = true
	s.state.Node, s.state.Rate = l.o.Node, int64(s.pace.rate)
	for i := range s.state.Streams {
		x := &s.state.Streams[i]
		x.Server, x.Position, x.Of, x.Began, x.Error = "", 0, 0, 0, ""
	}
	s.mu.Unlock()
	return l.saveScrub(ctx)
}

// saveScrub writes the state down, and is false where another process has taken over.
func (l *Log) saveScrub(ctx context.Context) bool {
	s := l.scrub
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	value, err := json.Marshal(s.state)
	revision := s.revision
	s.unsaved = false
	s.mu.Unlock()
	if err != nil {
		panic(err) // numbers, strings and times
	}
	revision, err = l.kv.Update(ctx, scrubPlace, value, revision)
	s.mu.Lock()
	defer s.mu.Unlock()
	if cluster.Conflict(err) {
		s.leads = false
		return false
	}
	if err != nil {
		s.unsaved = true // what it is, this process knows
		return true
	}
	s.revision = revision
	return true
}

// scrubs does it, until ctx ends or another process has taken over.
func (l *Log) scrubs(ctx context.Context) {
	inner, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	for _, stream := range audit.Streams {
		done.Go(func() { l.scrubStream(inner, stream) })
	}
	defer func() {
		stop()
		done.Wait()
		s := l.scrub
		s.mu.Lock()
		leads := s.leads
		if s.state.Node = ""; !leads {
			s.revision = 0 // what the bucket has counts
		}
		s.mu.Unlock()
		if leads { // the next one need not wait
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			l.saveScrub(last)
			cancel()
		}
		s.mu.Lock()
		s.leads = false
		s.mu.Unlock()
	}()
	look := time.NewTicker(scrubLook)
	defer look.Stop()
	saved := time.Now()
	known := ""
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		l.scrubAsked(ctx)
		// What was found is known to the others at once, how far it is now and then.
		now := fmt.Sprint(l.Damage())
		if now == known && time.Since(saved) < scrubRenew {
			continue
		}
		if !l.saveScrub(ctx) {
			l.o.Log.Info("another process scrubs the log now")
			return
		}
		saved, known = time.Now(), now
	}
}

// scrubAsked wakes the scrub where somebody has asked for it.
func (l *Log) scrubAsked(ctx context.Context) {
	_, revision, err := l.get(ctx, askedPlace)
	if err != nil {
		return
	}
	l.scrub.mu.Lock()
	before := l.scrub.asked
	l.scrub.asked = revision
	l.scrub.mu.Unlock()
	if revision <= before {
		return
	}
	for _, stream := range audit.Streams {
		select {
		case l.scrub.wake[stream] <- struct{}{}:
		default:
		}
	}
}

// scrubStream makes one pass after the other over a stream.
func (l *Log) scrubStream(ctx context.Context, stream string) {
	for {
		began := time.Now()
		err := l.scrubPass(ctx, stream, began)
		if ctx.Err() != nil {
			return
		}
		l.scrub.update(stream, func(x *ScrubStream) {
			x.Server, x.Position, x.Of, x.Began, x.Error = "", 0, 0, 0, ""
			if err != nil {
				x.Error = err.Error()
			}
		})
		rest := max(l.o.ScrubEvery-time.Since(began), l.o.ScrubEvery/6)
		select {
		case <-time.After(rest):
		case <-l.scrub.wake[stream]:
		case <-ctx.Done():
			return
		}
	}
}

// scrubPass reads every server's copy of a stream once.
func (l *Log) scrubPass(ctx context.Context, stream string, began time.Time) error {
	last, _, err := l.bucket(ctx, stream)
	if doubt, ok := errors.AsType[*Doubt](err); ok {
		l.found(stream, FoundCheckpoint, "", []Finding{{What: FoundCheckpoint, Problem: doubt.Problem, Fix: doubt.Fix, Runbook: "scrub-checkpoint.md"}})
		return nil
	}
	if err != nil {
		return err
	}
	l.found(stream, FoundCheckpoint, "", nil)
	pass := Pass{Began: events.At(began)}
	l.scrub.update(stream, func(x *ScrubStream) { x.Began, x.Error = pass.Began, "" })
	replicas, err := l.o.Ledger.Replicas(ctx, stream)
	if err != nil {
		return err
	}
	var servers []ScrubServer
	for _, r := range replicas {
		server := ScrubServer{Server: r.Server}
		l.scrub.update(stream, func(x *ScrubStream) {
			for _, old := range x.Servers {
				if old.Server == server.Server {
					server.Checked = old.Checked
				}
			}
		})
		if r.Offline {
			server.Skipped = "it is offline"
		} else if last == nil || last.Size == 0 { // there is nothing to compare with
			l.found(stream, FoundAltered, r.Server, nil)
		} else {
			p := &scrubbing{l: l, stream: stream, server: r.Server, several: len(replicas) > 1, last: last}
			err := p.run(ctx)
			pass.Bytes += p.bytes
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if p.skipped(err) {
				server.Skipped = err.Error()
			} else if err != nil {
				return err
			}
		}
		if server.Skipped == "" {
			server.Checked = events.At(time.Now())
		}
		servers = append(servers, server)
	}
	pass.Ended = events.At(time.Now())
	if last != nil {
		pass.Events = last.Size
	}
	l.scrub.update(stream, func(x *ScrubStream) {
		x.Last, x.Servers = &pass, servers
		x.Findings = slices.DeleteFunc(x.Findings, func(f Finding) bool { // of a server that has no copy any more
			return f.Server != "" && !slices.ContainsFunc(servers, func(s ScrubServer) bool { return s.Server == f.Server })
		})
	})
	return nil
}

// found replaces what was found of one kind: of a server's copy, or of the tree or the
// checkpoint. What was found before keeps its time.
func (l *Log) found(stream, kind, server string, list []Finding) {
	same := func(f *Finding) bool {
		if f.What == FoundTree || f.What == FoundCheckpoint || kind == FoundTree || kind == FoundCheckpoint {
			return f.What == kind
		}
		return f.Server == server
	}
	var logged []Finding
	repaired := false
	l.scrub.mu.Lock()
	x := &l.scrub.state.Streams[slices.Index(audit.Streams, stream)]
	before := x.Findings
	x.Findings = []Finding{}
	for _, f := range before {
		if !same(&f) {
			x.Findings = append(x.Findings, f)
		}
	}
	for _, f := range list {
		f.Stream, f.Found = stream, events.At(time.Now())
		i := slices.IndexFunc(before, func(o Finding) bool {
			return o.What == f.What && o.Server == f.Server && o.Sequence == f.Sequence && o.Line == f.Line
		})
		if i >= 0 {
			f.Found = before[i].Found
		} else {
			logged = append(logged, f)
		}
		x.Findings = append(x.Findings, f)
	}
	repaired = len(before) > 0 && len(x.Findings) == 0
	if len(before) > 0 || len(x.Findings) > 0 {
		l.scrub.unsaved = true
		close(l.scrub.changed)
		l.scrub.changed = make(chan struct{})
	}
	l.scrub.mu.Unlock()
	for i := range logged {
		f := &logged[i]
		l.o.Log.LogAttrs(context.Background(), slog.LevelError, "the log is not as it was signed: commands are refused and nothing is signed until it is repaired",
			slog.String("stream", stream), slog.String("server", f.Server), slog.Uint64("sequence", f.Sequence), slog.Int("line", f.Line), slog.String("what", f.What),
			slog.String("problem", f.Problem), slog.String("fix", f.Fix), slog.String("runbook", "docs/runbooks/"+f.Runbook))
	}
	if repaired {
		l.o.Log.LogAttrs(context.Background(), slog.LevelInfo, "what a scrub had found is repaired", slog.String("stream", stream))
	}
}

// pacer keeps all that is read within a rate.
type pacer struct {
	mu   sync.Mutex // guards next
	next time.Time  // when the rate allows more
	rate float64    // bytes a second
}

func (p *pacer) wait(ctx context.Context, bytes int) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(bytes) / p.rate * float64(time.Second)))
	d := p.next.Sub(now)
	p.mu.Unlock()
	if d < time.Millisecond {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *Options) scrubDefaults() {
	o.ScrubRate = cmp.Or(o.ScrubRate, DefaultScrubRate)
	o.ScrubEvery = cmp.Or(o.ScrubEvery, scrubEvery)
}
