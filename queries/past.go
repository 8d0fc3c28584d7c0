package queries

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
)

// Past answers what was: the state at a [Moment] is the fold of domain.Evolve
// over LEDGER up to a sequence, as the keyring's is over all of it.
//
// A key that has not changed since then is taken from the keyring, which is the
// same fold; any other is folded anew, a single one from the stream, many from
// the bodies that PostgreSQL holds byte for byte. What it hands out MUST NOT be
// changed.
type Past struct {
	ring   *keyring.Ring
	ledger *ledger.Ledger
	q      *Queries // nil: lists and differences cannot be had
	index  *projections.Index
}

// NewPast reads the past of what ring holds. q may be nil.
func NewPast(l *ledger.Ledger, ring *keyring.Ring, q *Queries) *Past { return &Past{ring, l, q, nil} }

// Indexed is for uses what [Audit.Indexed] is.
func (p *Past) Indexed(x *projections.Index) *Past { return &Past{p.ring, p.ledger, p.q, x} }

func (p *Past) audit() *Audit { return NewAudit(p.ledger).Indexed(p.index) }

// Moment is a place in LEDGER, everything up to which has happened, and the time
// by which keys expire and graces end there.
type Moment struct {
	Sequence uint64      `json:"sequence"`
	Time     events.Time `json:"time"`
}

// catchUp is how long the keyring may take to the end of LEDGER.
const catchUp = 5 * time.Second

// At reads a moment: the sequence of a fact, at whose time it then is, or a time
// in RFC 3339, at which everything up to the last fact with that time or an
// earlier one has happened. Clocks of nodes differ, so that a fact of a later
// time may stand before it: the order is that of the stream alone, but no fact of
// an earlier time is ever missing. The word now is the present end of LEDGER.
//
// It refuses what is no moment, the future, and what was before the first fact.
func (p *Past) At(ctx context.Context, path, text string, now time.Time) (Moment, error) {
	head, err := p.ledger.Head(ctx, events.Ledger)
	if err != nil {
		return Moment{}, err
	}
	if text == "now" && head > 0 {
		return p.Now(ctx, now)
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return p.atSequence(ctx, path, n, head)
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if u, wrong := events.ParseID("evt", text); wrong == nil {
		t, err = time.UnixMilli(int64(binary.BigEndian.Uint64(u[:8])>>16)), nil
		if n, found, err := p.sequenceOf(ctx, text, t); err != nil {
			return Moment{}, err
		} else if found {
			return p.atSequence(ctx, path, n, head)
		}
	}
	if err != nil {
		fix := "RFC 3339, such as 2026-01-18T12:00:00.000Z, a sequence of LEDGER, the id of an event, or now"
		if strings.Contains(text, " ") {
			fix += "; write the + of a zone as %2B"
		}
		return Moment{}, invalid(path, "is neither a time nor a sequence of LEDGER", fix)
	}
	if err := p.await(ctx, head); err != nil {
		return Moment{}, err
	}
	at := events.Time(t.UnixMilli())
	if t.After(now) && at > p.ring.LatestTo(head) {
		return Moment{}, invalid(path, "is in the future", "a time up to "+events.At(now).String())
	}
	first, last, ok := p.ring.BlockAt(at)
	if !ok {
		return Moment{}, beforeLedger()
	}
	m := Moment{Time: at}
	for r, err := range p.ledger.Read(ctx, events.Ledger, first, last) {
		if err != nil {
			return Moment{}, err
		}
		if r.Event.Time <= at {
			m.Sequence = r.Sequence
		}
	}
	if m.Sequence == 0 {
		return Moment{}, fmt.Errorf("no fact of LEDGER from %d to %d is as old as the keyring knows one to be", first, last)
	}
	return m, nil
}

// sequenceOf finds a fact by its id and the time in it.
func (p *Past) sequenceOf(ctx context.Context, id string, t time.Time) (n uint64, found bool, err error) {
	if p.q == nil {
		return 0, false, nil
	}
	var sequence int64
	// The time of a fact is that of its id, but for what a batch rounds.
	err = p.q.pool.QueryRow(ctx, `select sequence from keyledger.ledger_v1 where time between $2 and $3 and event_id = $1`, id, t.Add(-time.Second), t.Add(time.Second)).Scan(&sequence)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("find an event by its id: %w", err)
	}
	return uint64(sequence), true, nil
}

// Now is the present end of LEDGER.
func (p *Past) Now(ctx context.Context, now time.Time) (Moment, error) {
	head, err := p.ledger.Head(ctx, events.Ledger)
	if err != nil {
		return Moment{}, err
	}
	return Moment{head, events.At(now)}, p.await(ctx, head)
}

func (p *Past) atSequence(ctx context.Context, path string, n, head uint64) (Moment, error) {
	switch {
	case n == 0:
		return Moment{}, invalid(path, "is before the first fact", "a sequence from 1 on")
	case n > head && head == 0:
		return Moment{}, beforeLedger()
	case n > head:
		return Moment{}, invalid(path, "is in the future: LEDGER is not that long", fmt.Sprintf("a sequence up to %d", head))
	}
	if err := p.await(ctx, n); err != nil {
		return Moment{}, err
	}
	records, err := p.ledger.At(ctx, events.Ledger, n)
	if err != nil {
		return Moment{}, err
	}
	return Moment{n, records[0].Event.Time}, nil
}

func (p *Past) await(ctx context.Context, sequence uint64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	return p.ring.Wait(ctx, sequence)
}

const tooOld = "BEFORE_LEDGER"

func beforeLedger() *domain.Refusal {
	return &domain.Refusal{Kind: domain.NotFound, Code: tooOld, Detail: "LEDGER holds no fact that old: nothing was known at that time."}
}

// Key is a key as it was, a deleted one too; nil where there was none.
func (p *Past) Key(ctx context.Context, id string, at Moment) (*domain.Key, error) {
	k := p.ring.Key(id)
	if k == nil || k.Sequence <= at.Sequence {
		return k, nil
	}
	s, err := p.fold(ctx, events.Subject(k.Keyspace, k.Owner, k.ID), at, func(e *events.Envelope) bool { return e.Key == id })
	return s.Key, err
}

// Owner likewise.
func (p *Past) Owner(ctx context.Context, keyspace, id string, at Moment) (*domain.Owner, error) {
	o := p.ring.Owner(keyspace, id)
	if o == nil || o.Sequence <= at.Sequence {
		return o, nil
	}
	s, err := p.fold(ctx, events.Subject(keyspace, id, ""), at, func(*events.Envelope) bool { return true })
	return s.Owner, err
}

// Keyspace likewise. The built-in one was always as it is.
func (p *Past) Keyspace(ctx context.Context, id string, at Moment) (*domain.Keyspace, error) {
	k := p.ring.Keyspace(id)
	if k == nil || k.Sequence <= at.Sequence {
		return k, nil
	}
	s, err := p.fold(ctx, events.Subject(id, "", ""), at, func(*events.Envelope) bool { return true })
	return s.Keyspace, err
}

// fold reads one subject of LEDGER up to a moment.
func (p *Past) fold(ctx context.Context, subject string, at Moment, of func(*events.Envelope) bool) (s domain.State, err error) {
	for r, err := range p.ledger.Read(ctx, events.Ledger, 1, at.Sequence, subject) {
		if err != nil {
			return s, err
		}
		if of(&r.Event) {
			s = domain.Evolve(s, r)
		}
	}
	return s, nil
}

// ViewAt is a key as it was at a moment. Of its uses LEDGER tells nothing.
func ViewAt(k *domain.Key, at Moment) KeyView {
	v := ViewOf(k, at.Time.Time())
	v.UseCount = nil
	return v
}

// candidate is a key of the present that may have been there.
type candidate struct {
	created events.Time
	key     *domain.Key
}

// candidates is a heap, the newest on top.
type candidates []candidate

func (c candidates) Len() int { return len(c) }
func (c candidates) Less(i, j int) bool {
	return c[i].created > c[j].created || c[i].created == c[j].created && c[i].key.ID > c[j].key.ID
}
func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c *candidates) Push(x any)   { *c = append(*c, x.(candidate)) }
func (c *candidates) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}

// place is a place in a list of keys, newest first; the zero value is before all.
type keyPlace struct {
	created events.Time
	id      string
}

func (p keyPlace) passed(k *domain.Key) bool {
	return p.id != "" && (k.CreatedAt > p.created || k.CreatedAt == p.created && k.ID >= p.id)
}

// The first reading of bodies is about as long as a page, the others are long,
// for whoever reads everything.
const leastBatch, mostBatch = 256, 8192

// each hands on the keys of a keyspace and owner as they were, newest first,
// deleted ones too, until yield says no. Both may be empty, as in [KeyFilter].
func (p *Past) each(ctx context.Context, at Moment, keyspace, owner string, after keyPlace, yield func(*domain.Key) bool) error {
	// No fact up to there has a later time, least of all the creation of a key.
	latest := p.ring.LatestTo(at.Sequence)
	var c candidates
	for k := range p.ring.All(keyspace, owner) {
		if k.CreatedAt <= latest && !after.passed(k) {
			c = append(c, candidate{k.CreatedAt, k})
		}
	}
	heap.Init(&c)
	for size := leastBatch; len(c) > 0; size = min(4*size, mostBatch) {
		batch := make([]*domain.Key, 0, min(size, len(c)))
		var changed []string
		for len(c) > 0 && len(batch) < size {
			k := heap.Pop(&c).(candidate).key
			if batch = append(batch, k); k.Sequence > at.Sequence {
				changed = append(changed, k.ID)
			}
		}
		then, err := p.states(ctx, changed, at)
		if err != nil {
			return err
		}
		for _, k := range batch {
			if k.Sequence > at.Sequence {
				k = then[k.ID]
			}
			if k != nil && !yield(k) {
				return nil
			}
		}
	}
	return nil
}

// states folds many keys up to a moment, from the copy of LEDGER in PostgreSQL.
func (p *Past) states(ctx context.Context, ids []string, at Moment) (map[string]*domain.Key, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	states := make(map[string]*domain.Key, len(ids))
	err := p.facts(ctx, ids, at, func(r events.Record) {
		states[r.Event.Key] = domain.Evolve(domain.State{Key: states[r.Event.Key]}, r).Key
	})
	return states, err
}

// facts reads the facts of many keys up to a moment, those of each key in
// stream order.
func (p *Past) facts(ctx context.Context, ids []string, at Moment, emit func(events.Record)) error {
	rows, err := p.q.pool.Query(ctx, `select l.sequence, l.body from unnest($1::text[]) w(id) cross join lateral (
			select sequence, body from keyledger.ledger_v1 where key = w.id and key <> '' and sequence <= $2 order by sequence) l`,
		ids, int64(at.Sequence))
	if err != nil {
		return fmt.Errorf("read the facts of keys: %w", err)
	}
	var sequence int64
	var body pgtype.DriverBytes // decoding makes a copy of its own
	_, err = pgx.ForEachRow(rows, []any{&sequence, &body}, func() error {
		e, err := events.Decode(body)
		if err != nil {
			return fmt.Errorf("LEDGER at sequence %d, as PostgreSQL holds it: %w", sequence, err)
		}
		emit(events.Record{Stream: events.Ledger, Sequence: uint64(sequence), Event: e})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the facts of keys: %w", err)
	}
	return nil
}

// ListKeys is [Queries.ListKeys] at a moment: the same filters but for what only
// uses tell. PostgreSQL MUST have copied LEDGER up to there.
func (p *Past) ListKeys(ctx context.Context, f KeyFilter, at Moment) (keys []KeyView, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	if err := f.ofThePast(); err != nil {
		return nil, "", err
	}
	filter := f.pastString()
	var after keyPlace
	if f.Cursor != "" {
		if _, after, err = openPastCursor(filter, f.Cursor); err != nil {
			return nil, "", err
		}
	}
	keys = []KeyView{}
	err = p.each(ctx, at, f.Keyspace, f.Owner, after, func(k *domain.Key) bool {
		if k.Deleted() || !f.matches(k, at.Time) {
			return true
		}
		if len(keys) == limit {
			last := keys[limit-1]
			next = pastCursor(filter, at, keyPlace{last.CreatedAt, last.ID})
			return false
		}
		keys = append(keys, ViewAt(k, at))
		return true
	})
	if err != nil {
		return nil, "", err
	}
	return keys, next, nil
}

// AtOf is the moment of a list: that of its first page, which the cursor holds,
// since a fact that is still on its way may move the place of a time.
func (p *Past) AtOf(ctx context.Context, f KeyFilter, now time.Time) (Moment, error) {
	if err := f.ofThePast(); err != nil {
		return Moment{}, err
	}
	if f.Cursor == "" {
		return p.At(ctx, "as_of", f.AsOf, now)
	}
	at, _, err := openPastCursor(f.pastString(), f.Cursor)
	if err != nil {
		return at, err
	}
	return at, p.await(ctx, at.Sequence)
}

func (f *KeyFilter) pastString() string { return fmt.Sprintf("as of %q %s", f.AsOf, f) }

func pastCursor(filter string, at Moment, place keyPlace) string {
	b := binary.AppendUvarint(nil, at.Sequence)
	b = binary.AppendVarint(b, int64(at.Time))
	b = binary.AppendVarint(b, int64(place.created))
	return cursor(filter, append(b, place.id...))
}

func openPastCursor(filter, s string) (at Moment, place keyPlace, err error) {
	b, err := openCursor("cursor", filter, s)
	if err != nil {
		return at, place, err
	}
	sequence, n := binary.Uvarint(b)
	b = b[max(n, 0):]
	moment, m := binary.Varint(b)
	b = b[max(m, 0):]
	created, o := binary.Varint(b)
	b = b[max(o, 0):]
	if n <= 0 || m <= 0 || o <= 0 || len(b) == 0 {
		return at, place, invalid("cursor", "is not a cursor of this list", "leave it out")
	}
	return Moment{sequence, events.Time(moment)}, keyPlace{events.Time(created), string(b)}, nil
}

// ofThePast refuses what a past moment cannot be asked.
func (f *KeyFilter) ofThePast() error {
	switch f.Status {
	case "", "active", "expired", "revoked":
	case "rate_limited":
		return invalid("status", "rate_limited is not known of the past", "one of active, expired, revoked")
	default:
		return invalid("status", fmt.Sprintf("%q is not a status that can be asked for", f.Status), "one of active, expired, revoked")
	}
	if !f.newestFirst() {
		return invalid("sort", "is not to be had of the past, which is listed newest first", "leave it out, or leave as_of out")
	}
	if f.UnusedSince != 0 {
		return invalid("unused_since", "is not known of the past: LEDGER holds no uses", "leave it out, or leave as_of out")
	}
	return nil
}

// matches says of a key what the conditions of [Queries.ListKeys] say of its row, but for
// its uses, and whether it is one of Limited.
func (f *KeyFilter) matches(k *domain.Key, at events.Time) bool {
	return (f.Status == "" || k.Status(at) == f.Status || f.Status == "rate_limited" && k.Status(at) == "active") &&
		(f.Scope == "" || slices.Contains(k.Scopes, f.Scope)) &&
		(f.Resource == "" || slices.Contains(k.Resources, f.Resource)) &&
		(f.Environment == "" || k.Environment == f.Environment) &&
		(f.ExpiresBefore == 0 || k.ExpiresAt != 0 && k.ExpiresAt < f.ExpiresBefore) &&
		(f.Q == "" || strings.Contains(strings.ToLower(k.Name), strings.ToLower(f.Q)) || strings.HasPrefix(k.ID, f.Q) ||
			strings.HasPrefix(k.First, f.Q) || strings.HasSuffix(k.Last, f.Q))
}

// ActiveKeys counts an owner's keys that were neither revoked, deleted nor
// expired.
func (p *Past) ActiveKeys(ctx context.Context, keyspace, owner string, at Moment) (n int, err error) {
	states := map[string]domain.State{}
	for r, err := range p.ledger.Read(ctx, events.Ledger, 1, at.Sequence, events.Subject(keyspace, owner, "*")) {
		if err != nil {
			return 0, err
		}
		// A fact about another owner's key is void here, too.
		id := r.Event.Key
		if k := p.ring.Key(id); k != nil && k.Keyspace == keyspace && k.Owner == owner {
			states[id] = domain.Evolve(states[id], r)
		}
	}
	for _, s := range states {
		if s.Key != nil && s.Key.Active(at.Time) {
			n++
		}
	}
	return n, nil
}
