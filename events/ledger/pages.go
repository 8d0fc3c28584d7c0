package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/wal"
)

// Defaults of [PagesOptions].
const (
	DefaultPageBytes  = 256 << 10
	DefaultPageWithin = 5 * time.Millisecond
	DefaultPageMemory = 64 << 20
)

// heldBytes is about what one use takes in memory until it is written.
const heldBytes = 768

// PagesOptions change how [Pages] writes; the zero value is what the contract says.
type PagesOptions struct {
	Within   time.Duration // a page is written at the latest so long after its first use; 0: 5 ms
	MaxBytes int           // or when it has about so many bytes; 0: 256 KiB
	Memory   int           // about so many bytes wait in memory at most; 0: 64 MiB

	// Prepare is called with the facts of each page just before they are
	// encoded, away from the hot path, and may change them: this is where
	// personal data is sealed. While it fails the page waits and is tried again,
	// each time with what the last call left.
	Prepare func(context.Context, []events.Envelope) error

	// Written is told of every page that is on the server's disk.
	Written func(keyspace string, sequence uint64, facts int)

	// WAL is where facts are until they are on the server's disk, so that the end
	// of the process does not lose them; nil: nowhere. Keep appends one to dst as
	// the next start will read it; gaps are kept as JSON. The log is the caller's
	// to close, after the pages.
	WAL  *wal.Log
	Keep func(dst []byte, e events.Envelope) []byte

	Log *slog.Logger // nil: slog.Default()
}

// Pages writes uses to USAGE, many in one message: at most one page of a
// keyspace is on its way, and what is recorded meanwhile makes up the next one.
//
// A use that was recorded is written, however long the server is away, or
// counted: when memory is full it is dropped, and the next page begins with a
// usage.gap that says how many, when and why. The end of the process loses what is
// in memory, unless there is a write-ahead log: then a fact is there, and a dropped
// one counted there, before Record returns. [Pages.RecordDurable] waits for the
// server's disk.
type Pages struct {
	l    *Ledger
	node string
	o    PagesOptions

	held atomic.Int64 // facts in memory

	books sync.Map // keyspace -> *book

	mu     sync.Mutex // guards closed, and adding to books
	closed bool

	ctx      context.Context // of the writers
	stop     context.CancelCauseFunc
	finished sync.WaitGroup
}

// book is one keyspace's pages.
type book struct {
	keyspace string
	subject  string
	wake     chan struct{} // has room for one

	page []byte // the writer's: reused from page to page

	mu      sync.Mutex // guards what follows
	open    *page      // being filled
	dropped gap
	closed  bool
	flushed *page // the newest page handed to the writer
	spare   []events.Envelope
}

type page struct {
	facts  []events.Envelope
	kept   []kept // where the facts are in the write-ahead log
	bytes  int    // about
	first  time.Time
	urgent bool // somebody waits
	done   chan struct{}
	err    error // after done is closed
}

// kept counts facts in one part of the write-ahead log.
type kept struct {
	ref wal.Ref
	n   int
}

func (pg *page) keep(r wal.Ref) {
	if !r.Kept() {
		return
	}
	if n := len(pg.kept); n > 0 && pg.kept[n-1].ref == r {
		pg.kept[n-1].n++
		return
	}
	pg.kept = append(pg.kept, kept{r, 1})
}

type gap struct {
	id       string
	count    int64
	from, to time.Time
	reason   string
	tally    *wal.Tally // the same numbers in the write-ahead log, or nil
}

// drop counts a fact that memory has no room for. The book's mu is held.
func (p *Pages) drop(b *book, now time.Time) {
	g := &b.dropped
	if g.count == 0 {
		*g = gap{id: events.NewID("evt", now), from: now, reason: "the event store was away and memory was full"}
		if p.o.WAL != nil {
			buffer := p.o.WAL.Buffer()
			buffer.Plain = p.o.Keep(buffer.Plain, p.gap(b, *g))
			g.tally = p.o.WAL.Tally(buffer)
		}
	}
	g.count++
	g.to = now
	g.tally.Set(g.count, int64(events.At(g.from)), int64(events.At(g.to)), 0)
}

// release says that a page's facts, and the gap in it, need the write-ahead log no
// more.
func (p *Pages) release(pg *page, declared gap) {
	if p.o.WAL == nil {
		return
	}
	for _, k := range pg.kept {
		p.o.WAL.Done(k.ref, k.n)
	}
	p.o.WAL.Done(declared.tally.Ref(), 1)
}

// ErrFull says that memory is full of uses that could not be written yet.
var ErrFull = errors.New("the uses cannot be recorded: the event store has been away for too long")

// NewPages starts a writer for a node. The name is a subject token, and of no
// other running process. Close MUST be called.
func NewPages(l *Ledger, node string, o PagesOptions) *Pages {
	if o.Within == 0 {
		o.Within = DefaultPageWithin
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultPageBytes
	}
	if o.Memory == 0 {
		o.Memory = DefaultPageMemory
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Pages{l: l, node: node, o: o, ctx: ctx, stop: stop}
}

// Record adds a fact to its keyspace's next page and returns at once. False says
// that it was dropped and will be declared.
func (p *Pages) Record(e events.Envelope) bool {
	_, err := p.add(e, wal.Ref{}, false)
	return err == nil
}

// RecordKept is Record for a fact that the write-ahead log has already. It fails
// with [ErrFull], and with [ErrClosed]: then the log keeps it for the next start.
func (p *Pages) RecordKept(e events.Envelope, in wal.Ref) error {
	_, err := p.add(e, in, false)
	return err
}

// RecordDurable adds a fact and returns nil when the page with it is on the
// server's disk. With any error the use MUST NOT be answered as recorded: it may
// be written yet, or not.
func (p *Pages) RecordDurable(ctx context.Context, e events.Envelope) error {
	pg, err := p.add(e, wal.Ref{}, true)
	if err != nil {
		return err
	}
	select {
	case <-pg.done:
		return pg.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

func (p *Pages) add(e events.Envelope, in wal.Ref, urgent bool) (*page, error) {
	b := p.book(e.Keyspace)
	if b == nil {
		return nil, ErrClosed
	}
	full := int(p.held.Add(1))*heldBytes > p.o.Memory
	if !full && p.o.WAL != nil && !in.Kept() {
		buffer := p.o.WAL.Buffer()
		buffer.Plain = p.o.Keep(buffer.Plain, e)
		in = p.o.WAL.Append(buffer)
	}
	b.mu.Lock()
	if full || b.closed {
		p.held.Add(-1)
		if b.closed {
			b.mu.Unlock()
			return nil, ErrClosed
		}
		if !urgent { // the caller of a durable one is told, and refuses the request
			p.drop(b, time.Now())
		}
		b.mu.Unlock()
		return nil, ErrFull
	}
	pg := b.open
	begun := pg == nil
	if begun {
		pg = &page{first: time.Now(), done: make(chan struct{}), facts: b.spare}
		b.open, b.spare = pg, nil
	}
	pg.facts = append(pg.facts, e)
	pg.keep(in)
	before := pg.bytes
	pg.bytes += 640 // about what a use is on the wire; encoding tells exactly
	wake := begun || urgent && !pg.urgent || before < p.o.MaxBytes && pg.bytes >= p.o.MaxBytes
	pg.urgent = pg.urgent || urgent
	b.mu.Unlock()
	if wake {
		b.poke()
	}
	return pg, nil
}

func (b *book) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// book is nil after Close.
func (p *Pages) book(keyspace string) *book {
	if b, ok := p.books.Load(keyspace); ok {
		return b.(*book)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	b := &book{keyspace: keyspace, subject: pageSubject(keyspace, p.node), wake: make(chan struct{}, 1)}
	if first, ok := p.books.LoadOrStore(keyspace, b); ok {
		return first.(*book)
	}
	p.finished.Go(func() { p.write(b) })
	return b
}

func (p *Pages) all() iter.Seq[*book] {
	return func(yield func(*book) bool) {
		p.books.Range(func(_, b any) bool { return yield(b.(*book)) })
	}
}

// Held is about how many facts wait in memory.
func (p *Pages) Held() int { return int(p.held.Load()) }

// Flush returns when everything recorded before the call is on the server's
// disk, or with the error of ctx.
func (p *Pages) Flush(ctx context.Context) error {
	var wait []*page
	for b := range p.all() {
		b.mu.Lock()
		pg := b.open
		switch {
		case pg != nil:
			pg.urgent = true
		case b.dropped.count > 0: // an empty page carries the gap
			pg = &page{first: time.Now(), urgent: true, done: make(chan struct{})}
			b.open = pg
		default:
			pg = b.flushed
		}
		b.mu.Unlock()
		b.poke()
		if pg != nil {
			wait = append(wait, pg)
		}
	}
	for _, pg := range wait {
		select {
		case <-pg.done:
			if pg.err != nil {
				return pg.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Close writes what is left, gaps included, and stops. When ctx ends first it
// says how many facts were lost, or are left to the write-ahead log.
func (p *Pages) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for b := range p.all() {
		b.mu.Lock()
		b.closed = true
		if b.open != nil {
			b.open.urgent = true
		}
		b.mu.Unlock()
		b.poke()
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.finished.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		p.stop(ctx.Err())
		<-done
	}
	p.stop(nil)
	lost := p.held.Load()
	for b := range p.all() {
		lost += b.dropped.count
	}
	if lost > 0 && p.o.WAL != nil {
		return fmt.Errorf("%d uses have not reached the event store: they are in the write-ahead log %s, for the next start: %w", lost, p.o.WAL.Dir(), ctx.Err())
	}
	if lost > 0 {
		return fmt.Errorf("%d uses were neither recorded nor declared before the end: %w", lost, ctx.Err())
	}
	return nil
}

// write is a book's writer.
func (p *Pages) write(b *book) {
	timer := time.NewTimer(p.o.Within)
	defer timer.Stop()
	for {
		b.mu.Lock()
		pg := b.open
		if pg == nil && b.closed {
			if b.dropped.count == 0 {
				b.mu.Unlock()
				return
			}
			pg = &page{urgent: true, done: make(chan struct{})}
			b.open = pg
		}
		var left time.Duration
		ready := false
		if pg != nil {
			left = p.o.Within - time.Since(pg.first)
			ready = pg.urgent || b.closed || pg.bytes >= p.o.MaxBytes || left <= 0
		}
		var declared gap
		if ready {
			b.open, b.flushed = nil, pg
			declared, b.dropped = b.dropped, gap{}
		}
		b.mu.Unlock()

		switch {
		case ready:
			if !p.writePage(b, pg, declared) {
				b.fail(pg, declared)
				return
			}
			p.release(pg, declared)
			if cap(pg.facts) <= 1<<13 { // more is from an outage
				clear(pg.facts)
				b.mu.Lock()
				b.spare = pg.facts[:0]
				b.mu.Unlock()
			}
			close(pg.done)
		case pg != nil:
			timer.Reset(left)
			select {
			case <-b.wake:
			case <-timer.C:
			case <-p.ctx.Done():
				b.fail(pg, gap{})
				return
			}
		default:
			select {
			case <-b.wake:
			case <-p.ctx.Done():
				return
			}
		}
	}
}

// fail answers those who wait for pages that will not be written any more.
func (b *book) fail(pg *page, declared gap) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.dropped.count += declared.count
	for _, pg := range []*page{pg, b.open} {
		if pg != nil && pg.err == nil {
			pg.err = ErrClosed
			close(pg.done)
		}
	}
	b.open = nil
}

// writePage returns when the facts are on disk, in as many messages as they
// need, or false when the writers were stopped.
func (p *Pages) writePage(b *book, pg *page, declared gap) bool {
	if !p.persist("prepare", func() error {
		if p.o.Prepare == nil || len(pg.facts) == 0 {
			return nil
		}
		return p.o.Prepare(p.ctx, pg.facts)
	}) {
		return false
	}

	var first, last string // ids of the page in b.page
	lines := 0
	flush := func() bool {
		if lines == 0 {
			return true
		}
		var sequence uint64
		if !p.persist("append", func() (err error) {
			sequence, err = p.l.appendPage(p.ctx, b.subject, b.page, first, last)
			return err
		}) {
			return false
		}
		if p.o.WAL != nil {
			p.o.WAL.Stored(sequence)
		}
		if p.o.Written != nil {
			p.o.Written(b.keyspace, sequence, lines)
		}
		b.page, lines = b.page[:0], 0
		return true
	}
	most := min(p.o.MaxBytes, int(p.l.nc.MaxPayload())-4096)
	add := func(e events.Envelope) (ok bool, err error) {
		end := len(b.page)
		if lines > 0 {
			b.page = append(b.page, '\n')
		}
		begin := len(b.page)
		if b.page, err = events.AppendEncode(b.page, e); err == nil && int64(len(b.page)-begin)+4096 > p.l.nc.MaxPayload() {
			err = ErrTooLarge
		}
		if err != nil {
			b.page = b.page[:end]
			return true, err
		}
		if lines > 0 && len(b.page) > most {
			line := bytes.Clone(b.page[begin:])
			b.page = b.page[:end]
			if !flush() {
				return false, nil
			}
			b.page = append(b.page, line...)
		}
		if lines == 0 {
			first = e.ID
		}
		last = e.ID
		lines++
		return true, nil
	}

	b.page = b.page[:0]
	if declared.count > 0 {
		if ok, err := add(p.gap(b, declared)); !ok || err != nil {
			return false
		}
	}
	var unwritable gap
	for _, e := range pg.facts {
		ok, err := add(e)
		if !ok {
			return false
		}
		if err != nil {
			// It can never be written; that it was is still recorded.
			p.o.Log.Error("a use cannot be written", "event", e.ID, "type", e.Type, "error", err)
			if unwritable.count == 0 {
				unwritable = gap{from: e.Time.Time(), reason: "an event could not be encoded"}
			}
			unwritable.count++
			unwritable.to = e.Time.Time()
		}
	}
	if unwritable.count > 0 {
		if ok, err := add(p.gap(b, unwritable)); !ok || err != nil {
			return false
		}
	}
	if !flush() {
		return false
	}
	p.held.Add(-int64(len(pg.facts)))
	return true
}

func (p *Pages) gap(b *book, g gap) events.Envelope {
	e := events.New(events.UsageGap{Count: g.count, Reason: g.reason, From: events.At(g.from), To: events.At(g.to), Node: p.node}, time.Now())
	e.Keyspace, e.Actor, e.Via = b.keyspace, events.Actor{Type: "system", ID: p.node}, "verifier"
	if g.id != "" {
		e.ID = g.id
	}
	return e
}

// persist repeats f until it succeeds; false when the writers were stopped.
func (p *Pages) persist(what string, f func() error) bool {
	pause := 10 * time.Millisecond
	var told time.Time
	for {
		err := f()
		if err == nil {
			return true
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			p.o.Log.Warn("uses are kept in memory: a page could not be written", "step", what, "node", p.node, "held", p.held.Load(), "error", err)
		}
		if !wait(p.ctx, pause) {
			return false
		}
		pause = min(2*pause, time.Second)
	}
}

// PageHead is the sequence of a node's last page of a keyspace, 0 where there is
// none, as of every acknowledged write.
func (l *Ledger) PageHead(ctx context.Context, keyspace, node string) (uint64, error) {
	m, err := l.get(ctx, events.Usage, getRequest{LastFor: pageSubject(keyspace, node)})
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the last page of %s: %w", pageSubject(keyspace, node), err)
	}
	return m.sequence, nil
}

// PagesOf yields what a node recorded behind a place in USAGE, up to its head as
// it is now.
func (l *Ledger) PagesOf(ctx context.Context, node string, after uint64) iter.Seq2[events.Record, error] {
	return l.Read(ctx, events.Usage, after+1, 0, pageSubject("*", node))
}

// AppendPageAfter stores a page of a node whose process has ended, behind the page
// that is its last one. It fails with [ErrConflict] where another page, such as
// one that the process sent before its end, has come first; with the expectation
// of the page that this one stores, that one can come no more.
func (l *Ledger) AppendPageAfter(ctx context.Context, keyspace, node string, last uint64, bodies [][]byte) (uint64, error) {
	m := &nats.Msg{Subject: pageSubject(keyspace, node), Header: nats.Header{}, Data: events.Page(bodies)}
	if err := l.fits(m); err != nil {
		return 0, err
	}
	m.Header[expectSubject] = []string{strconv.FormatUint(last, 10)}
	return l.append(ctx, attempt{
		stream: events.Usage, id: eventID(bodies[len(bodies)-1]),
		publish: func(ctx context.Context) (uint64, error) {
			ack, err := l.publish(ctx, m)
			return ack.Sequence, err
		},
		stored: func(ctx context.Context) (*message, error) {
			return l.get(ctx, events.Usage, getRequest{Seq: last + 1, NextFor: m.Subject})
		},
	})
}
