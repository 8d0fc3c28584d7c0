package queries

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
)

// Streams are read from their ends in parts, each read forward as the server gives it
// and handed on backward: a small one first, for a page wants little, and larger ones
// where it holds nothing that is asked for.
const (
	firstPart     = 128 // messages of facts or acts
	firstUsePart  = 2   // messages of uses, which are pages of many
	mostPart      = 1 << 20
	mostUsePart   = 1 << 10
	growth        = 4
	readCost      = 10     // of a record that is read without the index: a page reads scanned/readCost at most
	partCost      = 10_000 // of having the server begin to deliver
	firstPicked   = 8
	mostPicked    = 64
	assumedOfPage = 64 // lines of a page of uses, until one was seen
)

// backward is one stream being read from its end.
type backward struct {
	index  int
	low    uint64 // first sequence that is looked at
	before spot   // everything from here on was handed on or passed over
	next   spot   // of before, once found is used up
	found  []events.Record
	time   events.Time
	size   uint64 // of the next part, in messages
	ranged uint64 // messages that were looked at in parts
	lines  uint64 // that came of them

	subjects []string
	wanted   *projections.Wanted // nil: the index does not help
	plain    uint64              // down to here it is read without the index
	asked    bool                // the index, down to reached
	reached  uint64
	picks    []uint64 // messages that it named, newest first
	pick     int      // how many of them next
}

func (s *backward) over() bool {
	return len(s.found) == 0 && (s.before.sequence < s.low || s.before.sequence == s.low && s.before.line == 0)
}

// high is the last message that is not looked through to its beginning.
func (s *backward) high() uint64 {
	if s.before.line > 0 {
		return s.before.sequence
	}
	return s.before.sequence - 1
}

// newestPlaces are where reading from the end stands: behind which sequences it
// began, and before which places it goes on.
type newestPlaces struct {
	heads [len(auditStreams)]uint64
	at    spots
}

func (p *newestPlaces) cursor() string {
	var b []byte
	for i, head := range p.heads {
		b = binary.AppendUvarint(b, head)
		b = binary.AppendUvarint(b, p.at[i].sequence)
		b = binary.AppendUvarint(b, uint64(p.at[i].line))
	}
	return cursor("newest", b)
}

func (p *newestPlaces) open(c string) error {
	b, err := openCursor("after", "newest", c)
	if err != nil {
		return err
	}
	for i := range p.heads {
		var line uint64
		for _, n := range []*uint64{&p.heads[i], &p.at[i].sequence, &line} {
			v, size := binary.Uvarint(b)
			if size <= 0 {
				return invalid("after", "is not a cursor of the audit log, newest first", "leave it out")
			}
			*n, b = v, b[size:]
		}
		p.at[i].line = int(min(line, whole))
		p.at[i].sequence = min(p.at[i].sequence, p.heads[i]+1)
	}
	return nil
}

// end is the cursor of [Audit.Events] and [Audit.Tail] behind everything that was
// there when the first page was asked for.
func (p *newestPlaces) end() string {
	var at spots
	for i, head := range p.heads {
		at[i] = spot{head, whole}
	}
	return at.cursor()
}

// Newest answers a page of what the log held when its first page was asked for,
// newest first: each stream backward, and between them by the time in the envelope.
// Its cursors are its own; but End is one for [Audit.Events] and [Audit.Tail], of what
// came after the first page. Otherwise it is [Audit.Events], and does less for a page:
// one that is filtered by what no index knows ends sooner.
func (a *Audit) Newest(ctx context.Context, f AuditFilter, o Opener) (AuditPage, error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return AuditPage{}, err
	}
	q, err := a.query(f, o, scanned)
	if err != nil {
		return AuditPage{}, err
	}
	q.page = limit + 1
	page, err := q.newest(ctx, limit)
	if err != nil {
		return page, fmt.Errorf("read the audit log from its end: %w", err)
	}
	return page, nil
}

func (q *query) newest(ctx context.Context, limit int) (AuditPage, error) {
	page := AuditPage{Events: []AuditEvent{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	places, sources, left, err := q.beginNewest(ctx)
	if err != nil {
		return page, err
	}
	here := func() string {
		for _, s := range sources {
			places.at[s.index] = s.before
		}
		return places.cursor()
	}
	page.End = places.end()
	for {
		var first *backward
		for _, s := range sources {
			if len(s.found) == 0 && !s.over() {
				// The work of one page is used up, or it is full of what this one may come before.
				page.NextCursor = here()
				return page, nil
			}
			if len(s.found) > 0 && (first == nil || min(s.time, s.found[0].Event.Time) > min(first.time, first.found[0].Event.Time)) {
				first = s
			}
		}
		if first == nil {
			return page, nil
		}
		if len(page.Events) == limit {
			page.NextCursor = here()
			return page, nil
		}
		r := first.found[0]
		first.found = first.found[1:]
		first.time = min(first.time, r.Event.Time) // a stream keeps its order even where clocks did not
		first.before = spot{r.Sequence, r.Line}
		if len(first.found) == 0 {
			first.before = first.next
		}
		e, err := q.show(ctx, r, spots{})
		if err != nil {
			return page, err
		}
		e.Cursor = here()
		page.Events = append(page.Events, e)
		if err := q.fill(ctx, first, &left); err != nil {
			return page, err
		}
	}
}

// beginNewest reads the first part of each stream.
func (q *query) beginNewest(ctx context.Context) (*newestPlaces, []*backward, int, error) {
	places := &newestPlaces{}
	if q.f.After != "" {
		if err := places.open(q.f.After); err != nil {
			return nil, nil, 0, err
		}
	}
	// Each begins by asking the server several things, so they begin together.
	var begun [len(auditStreams)]struct {
		*backward
		left int
		err  error
	}
	var beginning sync.WaitGroup
	for i := range auditStreams {
		beginning.Go(func() {
			b := &begun[i]
			b.left = q.left
			if b.backward, b.err = q.backward(ctx, i, places); b.err == nil && b.backward != nil {
				b.err = q.fill(ctx, b.backward, &b.left)
			}
		})
	}
	beginning.Wait()
	var sources []*backward
	left := q.left
	for _, b := range begun {
		if b.err != nil {
			return nil, nil, 0, b.err
		}
		if b.backward != nil {
			sources = append(sources, b.backward)
			left -= q.left - b.left
		}
	}
	return places, sources, max(left, 0), nil
}

// backward begins to read a stream from its end, or from where the page before
// ended; nil: it holds nothing that is asked for.
func (q *query) backward(ctx context.Context, index int, places *newestPlaces) (*backward, error) {
	stream := auditStreams[index]
	head, err := q.ledger.Head(ctx, stream)
	if err != nil {
		return nil, err
	}
	if q.f.After == "" {
		places.heads[index] = head
		places.at[index] = spot{head + 1, 0}
	}
	if !q.reads(stream) {
		return nil, nil
	}
	s := &backward{index: index, before: places.at[index], low: 1, time: 1<<63 - 1, size: firstPart, pick: firstPicked, subjects: q.subjects(stream)}
	s.before.sequence = min(s.before.sequence, head+1)
	if q.f.To != 0 {
		end, err := q.ledger.SequenceAt(ctx, stream, q.f.To.Time().Add(lateness))
		if err != nil {
			return nil, err
		}
		if end < s.before.sequence {
			s.before = spot{end, 0}
		}
	}
	if q.f.From != 0 {
		if s.low, err = q.ledger.SequenceAt(ctx, stream, q.f.From.Time().Add(-clockSkew)); err != nil {
			return nil, err
		}
	}
	first, err := q.ledger.First(ctx, stream)
	if err != nil {
		return nil, err
	}
	s.low = max(s.low, first)
	if stream == events.Usage {
		s.size = firstUsePart
		if w := q.wanted(); q.index != nil && w.Helps() {
			s.wanted = &w
		}
	}
	if stream == events.Ledger && q.f.Keyspace != "" && q.f.Owner != "" && q.f.Key != "" {
		s.size = head + 1 // one subject, on which a key's facts are few
	}
	s.next = s.before
	return s, nil
}

// fill reads on until something is found, the stream is read to its beginning, or the
// work that is left is used up.
func (q *query) fill(ctx context.Context, s *backward, left *int) error {
	for len(s.found) == 0 && !s.over() && *left > 0 {
		if err := q.part(ctx, s, left); err != nil {
			return err
		}
		if len(s.found) == 0 {
			s.before = s.next
		}
	}
	return nil
}

func (q *query) part(ctx context.Context, s *backward, left *int) error {
	if s.wanted != nil && !s.asked {
		s.ask(ctx, q.index)
	}
	if high := s.high(); s.wanted == nil || high > s.plain {
		low := s.low
		if s.wanted != nil {
			low = max(low, s.plain+1)
		}
		return q.plainPart(ctx, s, low, high, left)
	}
	if len(s.picks) == 0 {
		s.next, s.asked = spot{s.reached, 0}, false
		*left--
		return nil
	}
	return q.pickedPart(ctx, s, left)
}

// ask asks the index for messages before the place.
func (s *backward) ask(ctx context.Context, index *projections.Index) {
	ctx, cancel := context.WithTimeout(ctx, indexTime)
	defer cancel()
	found, err := index.LocateBefore(ctx, *s.wanted, s.high())
	if err != nil {
		s.wanted = nil // PostgreSQL is away: the log needs none
		return
	}
	s.asked, s.plain, s.picks = true, found.Through, found.Sequences
	s.reached = max(s.low, found.From)
	if found.Last {
		s.reached = s.low
	}
	for i, n := range s.picks {
		if n < s.low {
			s.picks = s.picks[:i]
			break
		}
	}
}

// take keeps the newest matches of a part that is read forward: a page needs no more.
type take struct {
	list []events.Record
	most int
	cut  bool // some were let go
}

func (t *take) add(r events.Record) {
	t.list = append(t.list, r)
	if len(t.list) >= 2*t.most {
		t.list, t.cut = slices.Clone(t.list[len(t.list)-t.most:]), true
	}
}

// hand gives them to a source, newest first, for which reading goes on at a place.
func (t *take) hand(s *backward, on spot) {
	slices.Reverse(t.list)
	s.found, s.next = t.list, on
	if t.cut {
		last := t.list[len(t.list)-1]
		s.next = spot{last.Sequence, last.Line}
	}
}

// plainPart reads the last messages of a range.
func (q *query) plainPart(ctx context.Context, s *backward, low, high uint64, left *int) error {
	stream := auditStreams[s.index]
	size := s.size
	can := uint64(*left / readCost) // records that may still be read
	switch {
	case s.lines > 0:
		size = min(size, max(can*s.ranged/s.lines, 1))
	case s.ranged == 0 && len(s.subjects) == 0 && stream == events.Usage:
		size = min(size, max(can/assumedOfPage, 1))
	case s.ranged == 0 && len(s.subjects) == 0:
		size = min(size, max(can, 1))
	}
	from := low
	if high > size && high-size+1 > low {
		from = high - size + 1
	}
	t := take{most: q.page}
	lines := 0
	for r, err := range q.reading(ctx, stream, from, high, s.subjects...) {
		if err != nil {
			return err
		}
		lines++
		if r.Sequence == s.before.sequence && r.Line >= s.before.line {
			continue
		}
		matches, err := q.matches(ctx, &r.Event)
		if err != nil {
			return err
		}
		if matches {
			t.add(r)
		}
	}
	s.lines += uint64(lines)
	s.ranged += high - from + 1
	*left = max(*left-readCost*lines-partCost, 0)
	if most := uint64(mostPart); stream == events.Usage {
		s.size = min(growth*s.size, mostUsePart)
	} else if s.size < most {
		s.size = min(growth*s.size, most)
	}
	t.hand(s, spot{from, 0})
	return nil
}

// pickedPart reads some of the messages that the index named.
func (q *query) pickedPart(ctx context.Context, s *backward, left *int) error {
	needle, choose := q.chooser(ctx)
	n := min(s.pick, len(s.picks))
	var part iter.Seq2[uint64, error] = func(yield func(uint64, error) bool) {
		for _, sequence := range s.picks[:n] {
			if !yield(sequence, nil) {
				return
			}
		}
	}
	s.pick = min(2*s.pick, mostPicked)
	bytes, messages, before := 0, 0, s.before.sequence
	var list []events.Record
	done := uint64(0) // the last one that was read, counting down
	for p, err := range q.ledger.Pick(ctx, events.Usage, part, needle, ledger.Chooser(choose), nil) {
		if err != nil {
			return err
		}
		for _, r := range slices.Backward(p.Records) {
			if r.Sequence == s.before.sequence && r.Line >= s.before.line {
				continue
			}
			matches, err := q.matches(ctx, &r.Event)
			if err != nil {
				return err
			}
			if matches {
				list = append(list, r)
			}
		}
		messages++
		bytes += p.Bytes
		reach := min(aloneBytes, int(min(before-min(p.Sequence, before), aloneBytes))*bytes/messages)
		before, done = p.Sequence, p.Sequence
		*left = max(*left-max(p.Lines, reach*scanned/pageBytes)-1, 0)
		if len(list) >= q.page || *left == 0 {
			break
		}
	}
	if done == 0 { // all of them were pruned
		done = s.picks[n-1]
	}
	for len(s.picks) > 0 && s.picks[0] >= done {
		s.picks = s.picks[1:]
	}
	s.found, s.next = list, spot{done, 0}
	return nil
}
