package queries

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// DiffFilter says whose changes; empty fields do not filter.
type DiffFilter struct {
	Keyspace string
	Owner    string
	Key      string
	From, To string // as they were asked for; an empty To is now
	Limit    int    // of a page; 0: DefaultLimit
	Cursor   string
}

// Difference is a key, an owner or a keyspace that facts between two moments
// changed.
type Difference struct {
	Kind     string   `json:"kind"` // key, owner, keyspace
	Keyspace string   `json:"keyspace"`
	Owner    string   `json:"owner"`
	Key      string   `json:"key"`
	What     []string `json:"what"`    // created, rotated, … in the order in which it happened, each once
	Changes  []Change `json:"changes"` // from the one moment to the other
	Events   []Act    `json:"events"`  // that did it
}

func (f *DiffFilter) String() string {
	return fmt.Sprintf("diff %q %q %q %q %q", f.From, f.To, f.Keyspace, f.Owner, f.Key)
}

// open reads the cursor, which holds the moments of the first page.
func (f *DiffFilter) open() (from, to Moment, after uint64, err error) {
	b, err := openCursor("cursor", f.String(), f.Cursor)
	if err != nil {
		return from, to, 0, err
	}
	var times [2]int64
	for _, n := range []*uint64{&from.Sequence, &to.Sequence, &after} {
		v, size := binary.Uvarint(b)
		*n, b = v, b[max(size, 0):]
	}
	for i := range times {
		v, size := binary.Varint(b)
		times[i], b = v, b[max(size, 0):]
	}
	from.Time, to.Time = events.Time(times[0]), events.Time(times[1])
	return from, to, after, nil
}

// Between are the two moments of a list of differences.
func (p *Past) Between(ctx context.Context, f DiffFilter, now time.Time) (from, to Moment, err error) {
	if f.Cursor != "" {
		if from, to, _, err = f.open(); err == nil {
			err = p.await(ctx, to.Sequence)
		}
		return from, to, err
	}
	from, err = p.At(ctx, "from", f.From, now)
	if r, ok := errors.AsType[*domain.Refusal](err); ok && r.Code == tooOld {
		from, err = Moment{}, nil // nothing was there: everything is new
	}
	if err != nil {
		return from, to, err
	}
	if f.To == "" {
		to, err = p.Now(ctx, now)
	} else {
		to, err = p.At(ctx, "to", f.To, now)
	}
	return from, to, err
}

// whats are the words for what a fact did.
var whats = map[string]string{
	"key.created": "created", "key.updated": "changed", "key.rotated": "rotated", "key.grace_ended": "grace ended",
	"key.revoked": "revoked", "key.deleted": "deleted",
	"owner.registered": "registered", "owner.plan_changed": "plan changed", "keyspace.configured": "configured",
}

// Diff answers what facts changed behind one moment and up to another, in the
// order in which each was first changed. What only time changed has no fact: a
// key that expired in between is there when something else happened to it. The
// copy of LEDGER in PostgreSQL, which MUST have reached the later moment, says who
// was changed; with the same facts it folds both states.
func (p *Past) Diff(ctx context.Context, f DiffFilter, from, to Moment) (list []Difference, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	if from.Sequence > to.Sequence {
		return nil, "", invalid("to", fmt.Sprintf("is before from: sequence %d of LEDGER, and from is %d", to.Sequence, from.Sequence), "send the later moment as to")
	}
	after := from.Sequence
	if f.Cursor != "" {
		if _, _, after, err = f.open(); err != nil {
			return nil, "", err
		}
	}
	var c conditions
	c.sql = append(c.sql, "not void", "type <> 'owner.key_admitted'")
	c.add("sequence > ?", int64(from.Sequence))
	c.add("sequence <= ?", int64(to.Sequence))
	if f.Keyspace != "" {
		c.add("keyspace = ?", f.Keyspace)
	}
	if f.Owner != "" {
		c.add("owner = ?", f.Owner)
	}
	if f.Key != "" {
		c.add("key = ?", f.Key)
	}
	c.args = append(c.args, int64(after), limit+1)
	rows, err := p.q.pool.Query(ctx, `select keyspace, owner, key, min(sequence) from keyledger.ledger_v1 where `+c.where()+
		fmt.Sprintf(` group by keyspace, owner, key having min(sequence) > $%d order by 4 limit $%d`, len(c.args)-1, len(c.args)), c.args...)
	if err != nil {
		return nil, "", fmt.Errorf("find what has changed: %w", err)
	}
	var firsts []uint64
	list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Difference, err error) {
		var first int64
		err = row.Scan(&e.Keyspace, &e.Owner, &e.Key, &first)
		firsts = append(firsts, uint64(first))
		return e, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("find what has changed: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		b := binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(nil, from.Sequence), to.Sequence), firsts[limit-1])
		next = cursor(f.String(), binary.AppendVarint(binary.AppendVarint(b, int64(from.Time)), int64(to.Time)))
	}
	diffs := make([]*diff, len(list))
	byKey := map[string]*diff{}
	var ids []string
	for i := range list {
		diffs[i] = &diff{Difference: &list[i], from: from, to: to}
		if id := list[i].Key; id != "" {
			byKey[id] = diffs[i]
			ids = append(ids, id)
		}
	}
	if err := p.facts(ctx, ids, to, func(r events.Record) { byKey[r.Event.Key].add(r) }); err != nil {
		return nil, "", err
	}
	for _, d := range diffs {
		if d.Key == "" {
			for r, err := range p.ledger.Read(ctx, events.Ledger, 1, to.Sequence, events.Subject(d.Keyspace, d.Owner, "")) {
				if err != nil {
					return nil, "", err
				}
				d.add(r)
			}
		}
		d.finish()
	}
	if list == nil {
		list = []Difference{}
	}
	return list, next, nil
}

// diff folds one of those that were changed.
type diff struct {
	*Difference
	from, to Moment
	before   domain.State // at from
	now      domain.State
}

func (d *diff) add(r events.Record) {
	was := d.now
	d.now = domain.Evolve(was, r)
	if r.Sequence <= d.from.Sequence {
		d.before = d.now
		return
	}
	what := whats[r.Event.Type]
	if what == "" || !domain.Holds(was, r.Event) {
		return
	}
	a := actOf(&r)
	a.Changes = changes(was, d.now, a.Time, a.Time)
	d.Events = append(d.Events, a)
	for _, known := range d.What {
		if known == what {
			return
		}
	}
	d.What = append(d.What, what)
}

func (d *diff) finish() {
	d.Kind = "keyspace"
	switch {
	case d.Key != "":
		d.Kind = "key"
	case d.Owner != "":
		d.Kind = "owner"
	}
	d.Changes = changes(d.before, d.now, d.from.Time, d.to.Time)
}

// changes of the one thing that a subject is about.
func changes(before, after domain.State, from, to events.Time) []Change {
	switch {
	case after.Key != nil:
		return differences(keyDocument(before.Key, from), keyDocument(after.Key, to))
	case after.Owner != nil:
		return differences(ownerDocument(before.Owner), ownerDocument(after.Owner))
	}
	isNew := before.Keyspace == nil
	return differences(keyspaceDocument(before.Keyspace, isNew), keyspaceDocument(after.Keyspace, isNew))
}
