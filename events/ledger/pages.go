package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
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

// heldBytes is about what one fact takes in memory until it is written.
const heldBytes = 768

// lineBytes is about what a fact is on the wire; encoding tells exactly.
const lineBytes = 640

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

	// Uses is called with the uses of each page, as [Pages.RecordUse] was given
	// them, in the same way and for the same. Its answer is called with each of
	// them in turn, and appends the fact that it stands for to dst. Neither may keep
	// a use. It MUST be there for RecordUse.
	Uses func(ctx context.Context, keyspace string, uses iter.Seq[[]byte]) (line func(dst, use []byte) ([]byte, error), err error)

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
// What one goroutine records stands in the order in which it did.
//
// The hot path makes no fact: a use is some bytes of the caller's
// ([Pages.RecordUse]), the same in the page and in the write-ahead log, and
// becomes a fact when its page is written.
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

	held    atomic.Int64 // about how many bytes of memory are in use
	buffers sync.Pool    // of *wal.Buffer
	chunks  sync.Pool    // of *[chunkSize]byte

	books atomic.Pointer[map[string]*book] // by keyspace; a map is not changed, but replaced

	mu     sync.Mutex // guards closed, and replacing books
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
	writing int   // facts of the page that is being written
	lost    int   // facts of pages that will not be written

	// Of an urgent page, see share.
	enough  int           // so many facts are its share
	patient time.Duration // or so long after the last page was written, or it has begun, it goes without
	freed   time.Time     // when the last page was written
}

// chunkSize is how much memory is taken for uses at a time.
const chunkSize = 16 << 10

type page struct {
	uses  int
	full  [][]byte // uses, each behind its length
	chunk []byte   // likewise, with room for more

	facts []events.Envelope
	after []int // for each fact, how many uses come before it

	held   int64  // what of Pages.held is of this page
	kept   []kept // where all that is in the write-ahead log
	bytes  int    // about
	first  time.Time
	urgent bool // somebody waits
	done   chan struct{}
	err    error // after done is closed

	written bool // and kept does not change any more
}

// kept counts facts in one part of the write-ahead log.
type kept struct {
	ref wal.Ref
	n   int
}

// count is how many facts the page will have.
func (pg *page) count() int { return pg.uses + len(pg.facts) }

// add copies a use.
func (pg *page) add(p *Pages, use []byte) {
	n := 4 + len(use)
	if cap(pg.chunk)-len(pg.chunk) < n {
		if len(pg.chunk) > 0 {
			pg.full = append(pg.full, pg.chunk)
		}
		if n <= chunkSize {
			pg.chunk = p.chunks.Get().(*[chunkSize]byte)[:0]
		} else {
			pg.chunk = make([]byte, 0, n)
		}
		pg.held += int64(cap(pg.chunk))
		p.held.Add(int64(cap(pg.chunk)))
	}
	pg.chunk = append(binary.LittleEndian.AppendUint32(pg.chunk, uint32(len(use))), use...)
	pg.uses++
}

// each yields the uses.
func (pg *page) each(yield func([]byte) bool) {
	for i := range len(pg.full) + 1 {
		b := pg.chunk
		if i < len(pg.full) {
			b = pg.full[i]
		}
		for len(b) > 0 {
			n := 4 + int(binary.LittleEndian.Uint32(b))
			if !yield(b[4:n:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// free gives the page's memory back when it is written.
func (pg *page) free(p *Pages) {
	for _, b := range append(pg.full, pg.chunk) {
		if cap(b) == chunkSize {
			p.chunks.Put((*[chunkSize]byte)(b[:chunkSize]))
		}
	}
	pg.full, pg.chunk, pg.facts, pg.after = nil, nil, nil, nil
	p.held.Add(-pg.held)
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
	p := &Pages{l: l, node: node, o: o, ctx: ctx, stop: stop}
	p.buffers.New = func() any { return &wal.Buffer{Plain: make([]byte, 0, 512)} }
	p.chunks.New = func() any { return new([chunkSize]byte) }
	p.books.Store(&map[string]*book{})
	return p
}

// Buffer is room for one use, empty: append it to Plain, then hand it to
// [Pages.RecordUse] or [Pages.RecordUseDurable].
func (p *Pages) Buffer() *wal.Buffer {
	b := p.buffers.Get().(*wal.Buffer)
	b.Plain = b.Plain[:0]
	return b
}

// RecordUse is [Pages.Record] for a use, as the write-ahead log has it and
// [PagesOptions] Uses reads it. It takes the buffer back.
func (p *Pages) RecordUse(keyspace string, use *wal.Buffer) bool {
	defer p.buffers.Put(use)
	b := p.book(keyspace)
	if b == nil {
		return false
	}
	_, err := p.addUse(b, use, false)
	return err == nil
}

// RecordUseDurable is [Pages.RecordDurable] for a use. It takes the buffer back.
//
// Nobody is answered before the use is on the server's disk, so that the
// write-ahead log has it only where somebody is answered otherwise.
func (p *Pages) RecordUseDurable(ctx context.Context, keyspace string, use *wal.Buffer) error {
	defer p.buffers.Put(use)
	b := p.book(keyspace)
	if b == nil {
		return ErrClosed
	}
	pg, err := p.addUse(b, use, true)
	if err != nil {
		return err
	}
	if err = pg.wait(ctx); err == nil || p.o.WAL == nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if pg.written {
		return nil
	}
	pg.keep(p.o.WAL.Write(use))
	return err
}

func (p *Pages) addUse(b *book, use *wal.Buffer, urgent bool) (*page, error) {
	full := p.held.Load() >= int64(p.o.Memory)
	var in wal.Ref
	if !full && !urgent && p.o.WAL != nil {
		in = p.o.WAL.Write(use)
	}
	b.mu.Lock()
	pg, err := p.open(b, full, urgent)
	if err != nil {
		b.mu.Unlock()
		return nil, err
	}
	pg.add(p, use.Plain)
	wake := pg.grow(p, in, urgent, b.enough)
	b.mu.Unlock()
	if wake {
		b.poke()
	}
	return pg, nil
}

// open is the page to add to. b.mu is held.
func (p *Pages) open(b *book, full, urgent bool) (*page, error) {
	if b.closed {
		return nil, ErrClosed
	}
	if full {
		if !urgent { // the caller of a durable one is told, and refuses the request
			p.drop(b, time.Now())
		}
		return nil, ErrFull
	}
	if b.open == nil {
		b.open = &page{first: time.Now(), done: make(chan struct{})}
	}
	return b.open, nil
}

// grow notes what was added, and says whether the writer has to know. The book's
// mu is held.
func (pg *page) grow(p *Pages, in wal.Ref, urgent bool, enough int) (wake bool) {
	pg.keep(in)
	before := pg.bytes
	pg.bytes += lineBytes
	wake = before == 0 || urgent && (!pg.urgent || pg.count() == enough) || before < p.o.MaxBytes && pg.bytes >= p.o.MaxBytes
	pg.urgent = pg.urgent || urgent
	return wake
}

// wait returns when the page is on the server's disk.
func (pg *page) wait(ctx context.Context) error {
	select {
	case <-pg.done:
		return pg.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
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
	return pg.wait(ctx)
}

func (p *Pages) add(e events.Envelope, in wal.Ref, urgent bool) (*page, error) {
	b := p.book(e.Keyspace)
	if b == nil {
		return nil, ErrClosed
	}
	full := p.held.Load()+heldBytes > int64(p.o.Memory)
	if !full && p.o.WAL != nil && !in.Kept() {
		buffer := p.o.WAL.Buffer()
		buffer.Plain = p.o.Keep(buffer.Plain, e)
		in = p.o.WAL.Append(buffer)
	}
	b.mu.Lock()
	pg, err := p.open(b, full, urgent)
	if err != nil {
		b.mu.Unlock()
		return nil, err
	}
	pg.facts, pg.after = append(pg.facts, e), append(pg.after, pg.uses)
	pg.held += heldBytes
	p.held.Add(heldBytes)
	wake := pg.grow(p, in, urgent, b.enough)
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
	if b := (*p.books.Load())[keyspace]; b != nil {
		return b
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	books := *p.books.Load()
	if b := books[keyspace]; b != nil {
		return b
	}
	b := &book{keyspace: keyspace, subject: pageSubject(keyspace, p.node), wake: make(chan struct{}, 1)}
	books = maps.Clone(books)
	books[keyspace] = b
	p.books.Store(&books)
	p.finished.Go(func() { p.write(b) })
	return b
}

func (p *Pages) all() iter.Seq[*book] { return maps.Values(*p.books.Load()) }

// Held is about how many facts wait in memory.
func (p *Pages) Held() (n int) {
	for b := range p.all() {
		b.mu.Lock()
		n += b.writing + b.lost
		if b.open != nil {
			n += b.open.count()
		}
		b.mu.Unlock()
	}
	return n
}

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
	lost := int64(p.Held())
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
			if pg.urgent {
				left = 0
				if pg.count() < b.enough {
					left = b.patient - min(time.Since(pg.first), time.Since(b.freed))
				}
			}
			ready = b.closed || pg.bytes >= p.o.MaxBytes || left <= 0
		}
		var declared gap
		if ready {
			b.open, b.flushed, b.writing = nil, pg, pg.count()
			declared, b.dropped = b.dropped, gap{}
		}
		b.mu.Unlock()

		switch {
		case ready:
			began := time.Now()
			if !p.writePage(b, pg, declared) {
				b.fail(pg, declared)
				return
			}
			b.mu.Lock()
			b.writing, pg.written = 0, true
			b.share(pg, began)
			b.mu.Unlock()
			p.release(pg, declared)
			pg.free(p)
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

// share says what the next urgent page waits for, now that one is written. Those who
// are answered by it come again soon: if the next page went out with the few who came
// meanwhile, all others would wait for that one, and large and small pages would take
// turns, with nothing to do during the small ones. So it waits until it has two thirds of
// both; alone, it does not wait. The book's mu is held.
func (b *book) share(written *page, began time.Time) {
	b.freed = time.Now()
	b.patient = min(b.freed.Sub(began), maxPatience)
	b.enough = written.count()
	if b.open != nil {
		b.enough += b.open.count()
	}
	b.enough = b.enough * 2 / 3
}

// maxPatience is how long an urgent page waits for its share at most.
const maxPatience = time.Millisecond

// fail answers those who wait for pages that will not be written any more.
func (b *book) fail(pg *page, declared gap) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.dropped.count += declared.count
	b.writing = 0
	for _, pg := range []*page{pg, b.open} {
		if pg != nil && pg.err == nil {
			pg.err = ErrClosed
			b.lost += pg.count()
			close(pg.done)
		}
	}
	b.open = nil
}

// writePage returns when the facts are on disk, in as many messages as they
// need, or false when the writers were stopped.
func (p *Pages) writePage(b *book, pg *page, declared gap) bool {
	var use func(dst, use []byte) ([]byte, error)
	if !p.persist("prepare", func() (err error) {
		if p.o.Prepare != nil && len(pg.facts) > 0 {
			if err := p.o.Prepare(p.ctx, pg.facts); err != nil {
				return err
			}
		}
		if pg.uses > 0 {
			use, err = p.o.Uses(p.ctx, b.keyspace, pg.each)
		}
		return err
	}) {
		return false
	}

	lines, last := 0, 0 // of b.page, and where the last one begins
	flush := func() bool {
		if lines == 0 {
			return true
		}
		var sequence uint64
		newest := eventID(b.page[last:])
		oldest := newest
		if lines > 1 {
			oldest = eventID(b.page[:bytes.IndexByte(b.page, '\n')])
		}
		if !p.persist("append", func() (err error) {
			sequence, err = p.l.appendPage(p.ctx, b.subject, b.page, oldest, newest)
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
	// line makes room for one more line at the end of b.page; added is called with
	// what came of that.
	line := func() (end int) {
		end = len(b.page)
		if lines > 0 {
			b.page = append(b.page, '\n')
		}
		return end
	}
	var unwritable gap
	added := func(end int, err error, at time.Time) (ok bool) {
		begin := end
		if lines > 0 {
			begin++
		}
		if err == nil && int64(len(b.page)-begin)+4096 > p.l.nc.MaxPayload() {
			err = ErrTooLarge
		}
		if err != nil {
			// It can never be written; that it was is still recorded.
			b.page = b.page[:end]
			p.o.Log.Error("a use cannot be written", "keyspace", b.keyspace, "error", err)
			if unwritable.count == 0 {
				unwritable = gap{from: at, reason: "an event could not be encoded"}
			}
			unwritable.count++
			unwritable.to = at
			return true
		}
		if lines > 0 && len(b.page) > most {
			line := bytes.Clone(b.page[begin:])
			b.page = b.page[:end]
			if !flush() {
				return false
			}
			b.page, begin = append(b.page, line...), 0
		}
		last = begin
		lines++
		return true
	}
	add := func(e events.Envelope) (ok bool) {
		end := line()
		var err error
		b.page, err = events.AppendEncode(b.page, e)
		return added(end, err, e.Time.Time())
	}

	b.page = b.page[:0]
	if declared.count > 0 && !add(p.gap(b, declared)) {
		return false
	}
	facts, after, n := pg.facts, pg.after, 0
	for u := range pg.each {
		for len(after) > 0 && after[0] <= n {
			if !add(facts[0]) {
				return false
			}
			facts, after = facts[1:], after[1:]
		}
		n++
		end := line()
		var err error
		b.page, err = use(b.page, u)
		if !added(end, err, pg.first) {
			return false
		}
	}
	for _, e := range facts {
		if !add(e) {
			return false
		}
	}
	if unwritable.count > 0 && !add(p.gap(b, unwritable)) {
		return false
	}
	return flush()
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
			p.o.Log.Warn("uses are kept in memory: a page could not be written", "step", what, "node", p.node, "held", p.Held(), "error", err)
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
