package queries

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
)

// Audit reads the audit log: the streams LEDGER, USAGE and OPS themselves, as
// one list. Each stream keeps its order; between them, records are merged by
// the time in their envelope.
type Audit struct {
	ledger *ledger.Ledger
	index  *projections.Index // nil: none

	// reading is [ledger.Ledger.Read].
	reading func(ctx context.Context, stream string, from, to uint64, subjects ...string) iter.Seq2[events.Record, error]
}

// NewAudit reads from an open ledger.
func NewAudit(l *ledger.Ledger) *Audit { return &Audit{ledger: l, reading: l.Read} }

// Indexed asks an index where in USAGE to look, and reads from the stream what the
// index does not know yet, or all of it where it cannot be asked. What is answered
// is the same without it.
func (a *Audit) Indexed(x *projections.Index) *Audit { return &Audit{a.ledger, x, a.reading} }

// Opener opens sealed personal data; [seal.Keys] is one.
type Opener interface {
	Open(context.Context, *events.Sealed) (string, error)
}

// AuditFilter says which records; empty fields do not filter. A page costs
// least where Keyspace, Owner and Key are all given: LEDGER then has one subject
// for it. Uses of a key, an owner, an endpoint or an address are found by the index.
type AuditFilter struct {
	Keyspace string
	Owner    string
	Key      string
	Endpoint string // as a fact of USAGE names it; of the other streams then nothing
	IP       string // source address, or network, likewise; whoever asks MUST be allowed to see addresses
	Types    []string
	Except   []string    // types that are left out
	Streams  []string    // LEDGER, USAGE or OPS; none: all
	Code     string      // of a decision, VALID where it was admitted; of the other streams then nothing
	Actor    string      // its id, or type:id
	From     events.Time // of the fact, inclusive
	To       events.Time // exclusive; what was recorded more than an hour after it happened may be missed
	After    string      // cursor of the record before the first
	Limit    int         // of a page; 0: DefaultLimit
}

const (
	// lateness is how long after its time a fact is looked for when an end is
	// given, and how far clocks of two machines may be apart.
	lateness  = time.Hour
	clockSkew = 5 * time.Minute

	// scanned bounds the work of one page, in records read.
	scanned = 500_000
)

// AuditEvent is a record as it is shown.
type AuditEvent struct {
	events.Record
	Cursor    string // as After, goes on behind this record
	SourceIP  string // opened; empty: none, not opened or erased
	UserAgent string

	public  bool
	instead [2]string // of what is sealed, in JSON: the address and the user agent
}

// MarshalJSON is the envelope, with stream, sequence and line.
//
// Whoever may open sealed data sees the stored bytes, an opened datum in its
// clear form and an erased one as {"erased": true}. Others see the public form:
// no hashes of secrets, and {"sealed": true} for personal data.
func (e AuditEvent) MarshalJSON() ([]byte, error) {
	body := e.Body
	if e.public {
		var err error
		if body, err = events.Encode(events.Public(e.Event)); err != nil {
			return nil, err
		}
	}
	ip, agent := sealedOf(e.Event.Data)
	for i, sealed := range []*events.Sealed{ip, agent} {
		if sealed == nil {
			continue
		}
		box, err := json.Marshal(sealed)
		if err != nil {
			return nil, err
		}
		name := [...]string{`"source_ip":`, `"user_agent":`}[i]
		body = bytes.Replace(body, append([]byte(name), box...), []byte(name+e.instead[i]), 1)
	}
	place := fmt.Sprintf(`,"stream":%q,"sequence":%d,"line":%d}`, e.Stream, e.Sequence, e.Line)
	return append(bytes.TrimSuffix(slices.Clone(body), []byte("}")), place...), nil
}

// AuditPage is one page of the log.
type AuditPage struct {
	Events     []AuditEvent `json:"events"`
	NextCursor string       `json:"next_cursor"` // empty: this was the end
	End        string       `json:"-"`           // cursor behind everything that was looked at, also at the end
}

// auditStreams in the order in which a cursor holds their places.
var auditStreams = [...]string{events.Ledger, events.Usage, events.Ops}

// spot is a place behind which reading goes on: everything up to the line of
// the message was read.
type spot struct {
	sequence uint64
	line     int
}

type spots [len(auditStreams)]spot

// whole is the line of a message that was read to its end.
const whole = 1 << 30

func (s spots) cursor() string {
	var b []byte
	for _, p := range s {
		b = binary.AppendUvarint(b, p.sequence)
		b = binary.AppendUvarint(b, uint64(p.line))
	}
	return cursor("audit", b)
}

func openSpots(c string) (s spots, err error) {
	if c == "" {
		return s, nil
	}
	b, err := openCursor("after", "audit", c)
	if err != nil {
		return s, err
	}
	for i := range s {
		for _, n := range []func(uint64){
			func(v uint64) { s[i].sequence = v },
			func(v uint64) { s[i].line = int(min(v, whole)) },
		} {
			v, size := binary.Uvarint(b)
			if size <= 0 {
				return s, invalid("after", "is not a cursor of the audit log", "leave it out")
			}
			n(v)
			b = b[size:]
		}
	}
	return s, nil
}

// source is one stream being read.
type source struct {
	index   int
	at      spot // behind everything handed on or passed over
	pending events.Record
	found   bool // pending is one to hand on
	time    events.Time
	pull    func() (step, error, bool)
	stop    func()
	end     uint64 // last sequence that is looked at
}

// query is one reading of the log.
type query struct {
	*Audit
	f     AuditFilter
	open  Opener
	types map[string]bool
	left  int // records that may still be read; negative: any number
	page  int // matches after which it ends; 0: it does not

	forms  []string // of f.IP
	erased sync.Map // ids of data keys that are gone -> time.Time when that was seen
}

func (a *Audit) query(f AuditFilter, o Opener, budget int) (*query, error) {
	q := &query{Audit: a, f: f, open: o, left: budget}
	known := events.Types()
	for _, t := range f.Types {
		if known[t] == 0 {
			return nil, invalid("type", fmt.Sprintf("%q is not a type of event", t), "one of "+strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if q.types == nil {
			q.types = map[string]bool{}
		}
		q.types[t] = true
	}
	for _, t := range f.Except {
		if known[t] == 0 {
			return nil, invalid("except", fmt.Sprintf("%q is not a type of event", t), "one of "+strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	for _, s := range f.Streams {
		if !slices.Contains(auditStreams[:], s) {
			return nil, invalid("stream", fmt.Sprintf("%q is not a stream of the log", s), "LEDGER, USAGE or OPS")
		}
	}
	// They become tokens of subjects.
	if f.Keyspace != "" && !domain.ValidKeyspaceID(f.Keyspace) {
		return nil, invalid("keyspace", "is not an id of a keyspace", "send the id")
	}
	for path, id := range map[string]string{"owner": f.Owner, "key": f.Key} {
		if id != "" && !domain.ValidEntityID(id) {
			return nil, invalid(path, "is not an id", "send the id")
		}
	}
	if f.IP != "" {
		if o == nil {
			return nil, invalid("ip", "is personal data, which nobody opens here", "leave it out")
		}
		if _, err := netip.ParsePrefix(f.IP); err != nil {
			if _, err := netip.ParseAddr(f.IP); err != nil {
				return nil, invalid("ip", "is not an address", "send one, such as 203.0.113.7 or 2001:db8::1")
			}
		}
		q.forms = projections.Forms(f.IP)
	}
	if f.From != 0 && f.To != 0 && f.From >= f.To {
		return nil, invalid("to", "is not after from", "send a later one")
	}
	return q, nil
}

// streamOf is where facts of a type stand.
func streamOf(eventType string) string {
	switch eventType {
	case "key.used", "key.use_reported", "key.rate_limited", "key.denied", "credential.rejected", "limit.taken", "usage.gap":
		return events.Usage
	}
	if strings.HasPrefix(eventType, "key.") || strings.HasPrefix(eventType, "owner.") || strings.HasPrefix(eventType, "keyspace.") {
		return events.Ledger
	}
	return events.Ops
}

// reads says whether a stream can hold anything that is asked for.
func (q *query) reads(stream string) bool {
	if stream != events.Usage && (q.f.IP != "" || q.f.Endpoint != "" || q.f.Code != "") {
		return false
	}
	if len(q.f.Streams) > 0 && !slices.Contains(q.f.Streams, stream) {
		return false
	}
	if len(q.types) == 0 {
		return true
	}
	for t := range q.types {
		if streamOf(t) == stream {
			return true
		}
	}
	return false
}

// keyless acts are about no key, as their subjects say. Most of OPS is about keys.
var keyless = map[string]bool{"usage.pruned": true, "privacy.erased": true}

// subjects are those that can hold anything that is asked for; none: all.
func (q *query) subjects(stream string) []string {
	keyspace, owner, key := cmpOr(q.f.Keyspace, "*"), cmpOr(q.f.Owner, "*"), cmpOr(q.f.Key, "*")
	if stream == events.Ops && key == "*" && len(q.types) > 0 {
		key = events.None
		for t := range q.types {
			if !keyless[t] {
				key = "*"
			}
		}
	}
	if keyspace+owner+key == "***" || stream == events.Usage && keyspace == "*" {
		return nil
	}
	switch stream {
	case events.Usage:
		return []string{"usage." + keyspace + ".*"}
	case events.Ops:
		return []string{"ops." + keyspace + "." + owner + "." + key}
	}
	root := events.Subject(events.RootKeyspace, "", "")
	switch {
	case keyspace == events.RootKeyspace:
		return []string{root}
	case keyspace == "*" && key != "*" && owner == "*": // it may be a root key
		return []string{"ledger.*.*." + key, root}
	}
	return []string{"ledger." + keyspace + "." + owner + "." + key}
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (q *query) matches(ctx context.Context, e *events.Envelope) (bool, error) {
	f := &q.f
	if !((f.Keyspace == "" || e.Keyspace == f.Keyspace) && (f.Owner == "" || e.Owner == f.Owner) && (f.Key == "" || e.Key == f.Key) &&
		(q.types == nil || q.types[e.Type]) && !slices.Contains(f.Except, e.Type) && (f.Code == "" || codeOf(e.Data) == f.Code) &&
		(f.Actor == "" || e.Actor.ID == f.Actor || e.Actor.Type+":"+e.Actor.ID == f.Actor) &&
		(f.From == 0 || e.Time >= f.From) && (f.To == 0 || e.Time < f.To) &&
		(f.Endpoint == "" || projections.EndpointOf(e.Data) == f.Endpoint)) {
		return false, nil
	}
	if f.IP == "" {
		return true, nil
	}
	return q.from(ctx, projections.AddressOf(e.Data))
}

// codeOf is how a request was decided; empty: this is no decision.
func codeOf(data events.Payload) string {
	switch d := data.(type) {
	case events.KeyUsed:
		return string(domain.CodeValid)
	case events.KeyDenied:
		return d.Code
	case events.KeyRateLimited:
		return string(domain.CodeRateLimited)
	case events.CredentialRejected:
		return d.Code
	}
	return ""
}

// source begins to read a stream behind a place; nil: there is nothing, and the
// place is behind what was there.
func (q *query) source(ctx context.Context, index int, place *spot) (*source, error) {
	stream, after := auditStreams[index], *place
	s := &source{index: index, at: after}
	if !q.reads(stream) {
		return nil, nil
	}
	head, err := q.ledger.Head(ctx, stream)
	if err != nil {
		return nil, err
	}
	s.end = head
	if q.f.To != 0 {
		end, err := q.ledger.SequenceAt(ctx, stream, q.f.To.Time().Add(lateness))
		if err != nil {
			return nil, err
		}
		s.end = min(head, max(end, 1)-1)
	}
	from := after.sequence // its later lines may be left
	if after.line == whole {
		from++
	}
	if q.f.From != 0 {
		first, err := q.ledger.SequenceAt(ctx, stream, q.f.From.Time().Add(-clockSkew))
		if err != nil {
			return nil, err
		}
		from = max(from, first)
	}
	if from = max(from, 1); from > s.end {
		if s.end > after.sequence {
			*place = spot{s.end, whole}
		}
		return nil, nil
	}
	steps := q.read(ctx, stream, from, s.end)
	if w := q.wanted(); stream == events.Usage && q.index != nil && w.Helps() {
		steps = q.located(ctx, w, from, s.end)
	}
	s.pull, s.stop = iter.Pull2(steps)
	return s, nil
}

// step is what reading a stream came to: a record, or a place behind which to go on.
type step struct {
	record events.Record
	passed spot // where there is no record: everything up to here holds nothing more
	work   int  // records that were read for it
}

// read takes a stream as it is.
func (q *query) read(ctx context.Context, stream string, from, to uint64) iter.Seq2[step, error] {
	return func(yield func(step, error) bool) {
		for r, err := range q.reading(ctx, stream, from, to, q.subjects(stream)...) {
			if !yield(step{record: r, work: 1}, err) {
				return
			}
		}
	}
}

// advance moves a source to its next match. It is false when the records that may
// still be read, left, ran out first.
func (q *query) advance(ctx context.Context, s *source, left *int) (bool, error) {
	s.found = false
	for {
		if *left == 0 {
			return false, nil
		}
		next, err, ok := s.pull()
		if err != nil {
			return false, err
		}
		if !ok {
			s.at = spot{max(s.end, s.at.sequence), whole}
			return true, nil
		}
		if *left > 0 {
			*left = max(*left-next.work, 0)
		}
		r := next.record
		if r.Sequence == 0 {
			s.at = next.passed
			continue
		}
		if r.Sequence == s.at.sequence && r.Line <= s.at.line && s.at.sequence > 0 {
			continue
		}
		matches, err := q.matches(ctx, &r.Event)
		if err != nil {
			return false, err
		}
		if !matches {
			s.at = spotOf(r)
			continue
		}
		s.pending, s.found = r, true
		// A stream keeps its order even where clocks did not.
		s.time = max(s.time, r.Event.Time)
		return true, nil
	}
}

// spotOf is behind a record. Of a page it is not known whether this was the
// last line; its other lines are passed over when it is read again.
func spotOf(r events.Record) spot {
	if r.Stream != events.Usage {
		return spot{r.Sequence, whole}
	}
	return spot{r.Sequence, r.Line}
}

// run hands on matches in order until there are no more, the budget is used up,
// or emit says no. It returns the places that were reached, and whether
// everything was looked at.
func (q *query) run(ctx context.Context, emit func(AuditEvent) bool) (at spots, done bool, err error) {
	at, err = openSpots(q.f.After)
	if err != nil {
		return at, false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Each begins by asking the server several things, so they begin together.
	begun := [len(auditStreams)]struct {
		*source
		ok   bool
		left int
		err  error
	}{}
	var beginning sync.WaitGroup
	for i := range auditStreams {
		beginning.Go(func() {
			b := &begun[i]
			b.left = q.left
			if b.source, b.err = q.source(ctx, i, &at[i]); b.source != nil {
				b.ok, b.err = q.advance(ctx, b.source, &b.left)
			}
		})
	}
	beginning.Wait()
	var sources []*source
	left, ok := q.left, true
	for _, b := range begun {
		err = cmp.Or(err, b.err)
		if b.source != nil {
			defer b.stop()
			sources = append(sources, b.source)
			left -= q.left - b.left
			ok = ok && b.ok
		}
	}
	if q.left > 0 {
		q.left = max(left, 0)
	}
	places := func() spots {
		for _, s := range sources {
			at[s.index] = s.at
		}
		return at
	}
	if !ok || err != nil {
		return places(), false, err
	}
	for {
		var first *source
		for _, s := range sources {
			if s.found && (first == nil || s.time < first.time) {
				first = s
			}
		}
		if first == nil {
			return places(), true, nil
		}
		first.at = spotOf(first.pending)
		e, err := q.show(ctx, first.pending, places())
		if err != nil {
			return places(), false, err
		}
		if !emit(e) {
			return places(), false, nil
		}
		if ok, err := q.advance(ctx, first, &q.left); !ok {
			return places(), false, err
		}
	}
}

// Events answers a page, oldest first. Without After or From it begins at the
// beginning. It refuses what makes no sense with a [*domain.Refusal]. A nil
// Opener shows the public form.
func (a *Audit) Events(ctx context.Context, f AuditFilter, o Opener) (AuditPage, error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return AuditPage{}, err
	}
	q, err := a.query(f, o, scanned)
	if err != nil {
		return AuditPage{}, err
	}
	q.page = limit + 1
	page := AuditPage{Events: []AuditEvent{}}
	at, done, err := q.run(ctx, func(e AuditEvent) bool {
		// One more than asked for tells whether there is a next page.
		if len(page.Events) == limit {
			page.NextCursor = page.Events[limit-1].Cursor
			return false
		}
		page.Events = append(page.Events, e)
		return true
	})
	if err != nil {
		return AuditPage{}, fmt.Errorf("read the audit log: %w", err)
	}
	page.End = at.cursor()
	switch {
	case page.NextCursor != "":
		page.End = page.NextCursor
	case !done: // the work of one page was used up
		page.NextCursor = page.End
	}
	return page, nil
}

// All yields everything that matches up to the present end, oldest first, in
// bounded memory. Limit does not count.
func (a *Audit) All(ctx context.Context, f AuditFilter, o Opener) iter.Seq2[AuditEvent, error] {
	return func(yield func(AuditEvent, error) bool) {
		a.all(ctx, f, o, yield)
	}
}

func (a *Audit) all(ctx context.Context, f AuditFilter, o Opener, yield func(AuditEvent, error) bool) (at spots, more bool) {
	q, err := a.query(f, o, -1)
	if err == nil {
		more = true
		at, _, err = q.run(ctx, func(e AuditEvent) bool {
			more = yield(e, nil)
			return more
		})
	}
	if err != nil {
		yield(AuditEvent{}, err)
		more = false
	}
	return at, more
}

// Tail yields what matches behind After (empty: from now on), then waits for
// more, until ctx ends. A record's Cursor is where a later Tail goes on. To is
// not heeded.
func (a *Audit) Tail(ctx context.Context, f AuditFilter, o Opener) iter.Seq2[AuditEvent, error] {
	return func(yield func(AuditEvent, error) bool) {
		f.To = 0
		q, err := a.query(f, o, -1)
		if err != nil {
			yield(AuditEvent{}, err)
			return
		}
		if f.After == "" {
			if f.After, err = a.Now(ctx); err != nil {
				yield(AuditEvent{}, err)
				return
			}
		}
		at, more := a.all(ctx, f, o, yield)
		if !more {
			return
		}
		q.follow(ctx, at, yield)
	}
}

// follow hands records on as they arrive.
func (q *query) follow(ctx context.Context, at spots, yield func(AuditEvent, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	type arrival struct {
		index int
		r     events.Record
		err   error
	}
	arrived := make(chan arrival)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	for i, stream := range auditStreams {
		if !q.reads(stream) {
			continue
		}
		after := at[i]
		from := after.sequence
		if after.line != whole && from > 0 {
			from--
		}
		readers.Go(func() {
			for r, err := range q.ledger.Follow(ctx, stream, from) {
				if err == nil {
					if r.Sequence == after.sequence && r.Line <= after.line {
						continue
					}
					var matches bool
					if matches, err = q.matches(ctx, &r.Event); err == nil && !matches {
						continue
					}
				}
				select {
				case arrived <- arrival{i, r, err}:
				case <-ctx.Done():
				}
				if err != nil || ctx.Err() != nil {
					return
				}
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			yield(AuditEvent{}, ctx.Err())
			return
		case n := <-arrived:
			var e AuditEvent
			err := n.err
			if err == nil {
				at[n.index] = spotOf(n.r)
				e, err = q.show(ctx, n.r, at)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// show makes a record ready to be answered.
func (q *query) show(ctx context.Context, r events.Record, at spots) (AuditEvent, error) {
	e := AuditEvent{Record: r, Cursor: at.cursor(), public: q.open == nil}
	ip, agent := sealedOf(r.Event.Data)
	for i, sealed := range []*events.Sealed{ip, agent} {
		if sealed == nil {
			continue
		}
		e.instead[i] = `{"sealed":true}`
		if q.open == nil {
			continue
		}
		plain, err := q.open.Open(ctx, sealed)
		switch {
		case errors.Is(err, seal.ErrErased):
			e.instead[i] = `{"erased":true}`
		case errors.Is(err, seal.ErrTampered):
			e.instead[i] = `{"damaged":true}`
		case err != nil:
			return e, fmt.Errorf("open the personal data of event %s: %w", r.Event.ID, err)
		default:
			*[]*string{&e.SourceIP, &e.UserAgent}[i] = plain
			clear, err := json.Marshal(plain)
			if err != nil {
				return e, err
			}
			e.instead[i] = string(clear)
		}
	}
	return e, nil
}

func sealedOf(data events.Payload) (ip, agent *events.Sealed) {
	switch d := data.(type) {
	case events.KeyUsed:
		return d.SourceIP, d.UserAgent
	case events.CredentialRejected:
		return d.SourceIP, nil
	case events.SigninFailed:
		return d.SourceIP, nil
	case events.ClaimOpened:
		return d.SourceIP, nil
	}
	return nil, nil
}
