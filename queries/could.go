package queries

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// CouldFilter asks which keys could make a request.
type CouldFilter struct {
	Keyspace string
	Owner    string         // empty: of any
	Key      string         // of this one alone, deleted or not
	Request  domain.Request // what of it is empty may be anything
	Could    string         // yes: those that could; no: the others; empty: both
	Count    bool           // count all of them, whatever the page holds
	AsOf     string         // as it was asked for
	Limit    int            // of a page; 0: DefaultLimit
	Cursor   string
}

// Possible is whether a key could make a request.
type Possible struct {
	Key        KeyView            `json:"key"` // as it was
	Could      bool               `json:"could"`
	Code       domain.Code        `json:"code"`       // that it would have been answered with; VALID: it could
	Why        string             `json:"why"`        // the check that fails, or what admits it
	Plan       string             `json:"plan"`       // in force for it
	Conditions []domain.Condition `json:"conditions"` // that the request must meet besides
}

// CouldCount counts all keys of a question.
type CouldCount struct {
	Could int                 `json:"could"`
	Not   int                 `json:"not"`
	Codes map[domain.Code]int `json:"codes"` // of those that could not, by the first reason
}

// CouldPage is a page of the answer.
type CouldPage struct {
	Keys  []Possible
	Count *CouldCount // nil: not asked for
	Next  string      // cursor; empty: this is the last page
}

func (f *CouldFilter) String() string {
	r := &f.Request
	text := func(s *string) string {
		if s == nil {
			return "any"
		}
		return fmt.Sprintf("%q", *s)
	}
	return fmt.Sprintf("could %q %q %q %q %q %q %q %q %s %s %q %q", f.AsOf, f.Keyspace, f.Owner, f.Key, f.Could, r.Method, r.Path, r.Scopes, text(r.Resource), text(r.Origin), r.IP, r.Environments)
}

// AtOfCould is the moment of the question, as [Past.AtOf] is that of a list.
func (p *Past) AtOfCould(ctx context.Context, f CouldFilter, now time.Time) (Moment, error) {
	if f.Cursor == "" {
		return p.At(ctx, "as_of", f.AsOf, now)
	}
	at, _, err := openPastCursor(f.String(), f.Cursor)
	if err != nil {
		return at, err
	}
	return at, p.await(ctx, at.Sequence)
}

// judgedAtOnce is how many keys are judged before the owners of the next are read.
const judgedAtOnce = 256

// WhoCould answers which keys could make a request at a moment, newest first, judged
// as verifiers judge, with the keys, owners and document (ks) of that moment. Deleted
// keys are only told of where one is named. PostgreSQL MUST have copied LEDGER up to
// there. It reads as many keys as it takes to fill the page, or all of them.
func (p *Past) WhoCould(ctx context.Context, f CouldFilter, ks *domain.Keyspace, at Moment) (out CouldPage, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return out, err
	}
	var after keyPlace
	if f.Cursor != "" {
		if _, after, err = openPastCursor(f.String(), f.Cursor); err != nil {
			return out, err
		}
	}
	q := &couldBe{Past: p, f: &f, ks: ks, at: at, limit: limit, owners: map[string]*domain.Owner{}}
	q.out.Keys = []Possible{}
	if f.Count {
		q.out.Count = &CouldCount{Codes: map[domain.Code]int{}}
	}
	if f.Key != "" {
		k, err := p.Key(ctx, f.Key, at)
		if err != nil || k == nil {
			return q.out, err
		}
		q.waiting = append(q.waiting, k)
		return q.out, q.judge(ctx)
	}
	err = p.each(ctx, at, f.Keyspace, f.Owner, after, func(k *domain.Key) bool {
		if k.Deleted() {
			return true
		}
		if q.waiting = append(q.waiting, k); len(q.waiting) == judgedAtOnce {
			q.err = q.judge(ctx)
		}
		return q.err == nil && !q.full
	})
	if err == nil && q.err == nil {
		err = q.judge(ctx)
	}
	if err == nil {
		err = q.err
	}
	return q.out, err
}

// couldBe is one question on its way.
type couldBe struct {
	*Past
	f       *CouldFilter
	ks      *domain.Keyspace
	at      Moment
	limit   int
	owners  map[string]*domain.Owner // as they were; nil: there was none
	waiting []*domain.Key            // to be judged
	out     CouldPage
	full    bool // nothing more is to be found out
	err     error
}

// judge judges those that wait.
func (q *couldBe) judge(ctx context.Context) error {
	if err := q.readOwners(ctx); err != nil {
		return err
	}
	for _, k := range q.waiting {
		if q.full {
			break
		}
		owner := q.owners[k.Owner]
		code := q.ks.Could(&q.f.Request, k, owner, q.at.Time)
		could := code == domain.CodeValid
		if c := q.out.Count; c != nil {
			if could {
				c.Could++
			} else {
				c.Not++
				c.Codes[code]++
			}
		}
		switch {
		case q.f.Could == "yes" && !could || q.f.Could == "no" && could:
		case len(q.out.Keys) < q.limit:
			v := Possible{Key: ViewAt(k, q.at), Could: could, Code: code}
			v.Why, v.Conditions = q.ks.WhyCould(&q.f.Request, k, owner, q.at.Time)
			if v.Conditions == nil {
				v.Conditions = []domain.Condition{}
			}
			v.Plan, _, _ = q.ks.PlanInForce(k, owner)
			q.out.Keys = append(q.out.Keys, v)
		default:
			if q.out.Next == "" {
				last := q.out.Keys[q.limit-1].Key
				q.out.Next = pastCursor(q.f.String(), q.at, keyPlace{last.CreatedAt, last.ID})
			}
			q.full = q.out.Count == nil
		}
	}
	q.waiting = q.waiting[:0]
	return nil
}

// readOwners finds those of the keys that wait, as they were: in memory, or folded
// from the copy of LEDGER where they have changed since.
func (q *couldBe) readOwners(ctx context.Context) error {
	if len(q.ks.Plans) == 0 {
		return nil // nothing depends on them
	}
	var changed []string
	for _, k := range q.waiting {
		if _, known := q.owners[k.Owner]; known {
			continue
		}
		o := q.ring.Owner(k.Keyspace, k.Owner)
		if o != nil && o.Sequence > q.at.Sequence {
			changed = append(changed, k.Owner)
			o = nil
		}
		q.owners[k.Owner] = o
	}
	if len(changed) == 0 {
		return nil
	}
	rows, err := q.q.pool.Query(ctx, `select l.sequence, l.body from unnest($1::text[]) w(id) cross join lateral (
			select sequence, body from keyledger.ledger_v1 where keyspace = $2 and owner = w.id and key = '' and sequence <= $3 order by sequence) l`,
		changed, q.f.Keyspace, int64(q.at.Sequence))
	if err != nil {
		return fmt.Errorf("read the facts of owners: %w", err)
	}
	var sequence int64
	var body pgtype.DriverBytes // decoding makes a copy of its own
	_, err = pgx.ForEachRow(rows, []any{&sequence, &body}, func() error {
		e, err := events.Decode(body)
		if err != nil {
			return fmt.Errorf("LEDGER at sequence %d, as PostgreSQL holds it: %w", sequence, err)
		}
		q.owners[e.Owner] = domain.Evolve(domain.State{Owner: q.owners[e.Owner]}, events.Record{Stream: events.Ledger, Sequence: uint64(sequence), Event: e}).Owner
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the facts of owners: %w", err)
	}
	return nil
}
