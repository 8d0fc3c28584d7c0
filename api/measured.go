package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/queries"
)

// MeasuredRevocation is how long each verifier still accepted what a fact ended.
type MeasuredRevocation struct {
	Sequence  uint64      `json:"sequence" doc:"Of the fact in LEDGER." example:"45"`
	Fact      string      `json:"fact" enum:"key.revoked,key.rotated,key.grace_ended,key.updated"`
	Keyspace  string      `json:"keyspace"`
	Owner     string      `json:"owner"`
	Key       string      `json:"key"`
	DecidedAt events.Time `json:"decided_at"`

	Everywhere bool     `json:"everywhere" doc:"Every verifier that was running has confirmed that it refuses."`
	SlowestMS  *float64 `json:"slowest_ms" doc:"The delay of the last one that confirmed; null: none has yet." example:"1.84"`
	Basis      string   `json:"basis" enum:"acknowledged,clocks" doc:"acknowledged: delays count from the moment the server acknowledged the fact to the arrival of the verifier's word, by one clock: upper bounds. clocks: from decided_at, another machine's clock."`
	AppendMS   *float64 `json:"append_ms" doc:"How long the append itself had taken before; null: not known."`
	By         string   `json:"by" doc:"The node that measured."`
	Recorded   bool     `json:"recorded" doc:"It stands on OPS as revocation.measured. What a verifier says after that is shown for ten minutes, and recorded nowhere."`

	Verifiers []VerifierDelay `json:"verifiers" nullable:"false"`
}

// VerifierDelay is one verifier's part.
type VerifierDelay struct {
	Node    string   `json:"node"`
	State   string   `json:"state" enum:"stopped,unconfirmed,stale" doc:"stopped: it has confirmed. unconfirmed: nothing was heard. stale: likewise, and if it runs on it answers STATE_TOO_STALE by now."`
	DelayMS *float64 `json:"delay_ms" doc:"It had stopped accepting by then; null: not confirmed." example:"1.84"`
	ClockMS *float64 `json:"clock_ms" doc:"By its own clock, against that of whoever decided: machines' clocks differ, and it may be negative; null: not told."`
	StaleMS *int64   `json:"stale_ms,omitempty" doc:"Of one that did not confirm: from this long after the basis on it answers STATE_TOO_STALE, if it runs on."`
}

func millis(us int64) *float64 { return new(float64(us) / 1000) }

func measuredRevocation(keyspace, owner, key string, m *events.RevocationMeasured, age time.Duration) MeasuredRevocation {
	r := MeasuredRevocation{Sequence: m.Sequence, Fact: m.Fact, Keyspace: keyspace, Owner: owner, Key: key, DecidedAt: m.Decided,
		Basis: m.Basis, By: m.Node, Verifiers: []VerifierDelay{}}
	if m.AppendUS > 0 {
		r.AppendMS = millis(m.AppendUS)
	}
	slowest := int64(-1)
	for _, s := range m.Stopped {
		slowest = max(slowest, s.DelayUS)
		v := VerifierDelay{Node: s.Node, State: "stopped", DelayMS: millis(s.DelayUS)}
		if s.ClockUS != nil {
			v.ClockMS = millis(*s.ClockUS)
		}
		r.Verifiers = append(r.Verifiers, v)
	}
	if slowest >= 0 {
		r.SlowestMS = millis(slowest)
	}
	for _, u := range m.Unconfirmed {
		v := VerifierDelay{Node: u.Node, State: "unconfirmed", StaleMS: &u.StaleMS}
		if u.StaleMS > 0 && age > time.Duration(u.StaleMS)*time.Millisecond {
			v.State = "stale"
		}
		r.Verifiers = append(r.Verifiers, v)
	}
	return r
}

func (a *API) measured() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-revocation", Method: http.MethodGet, Path: "/v1/revocations/{sequence}", Tags: []string{"Feeds"},
			Summary:     "When each verifier stopped accepting",
			Description: "Of the fact at a sequence of LEDGER, as the command that revoked, rotated without grace, ended a grace or deleted has answered it. With wait it answers when every running verifier has confirmed, or after that time.",
		},
		action: domain.KeysRead, read: true, absent: true,
	}, a.getRevocation)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-revocations", Method: http.MethodGet, Path: "/v1/revocations", Tags: []string{"Feeds"},
			Summary:     "What was measured of revocations",
			Description: "As it was recorded, each once: facts that ended a key, or a secret of it, at once, with when each verifier stopped accepting.",
		},
		action: domain.KeysRead, read: true, absent: true,
	}, a.listRevocations)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "report-revocations", Method: http.MethodGet, Path: "/v1/reports/revocations", Tags: []string{"Feeds"},
			Summary:     "How fast revocation was, over a period",
			Description: "p50, p99 and the longest time until every verifier refused, how many were refused everywhere within a target, and by verifier; of those that were measured, with how many were not, and how many some verifier did not confirm.",
		},
		action: domain.KeysRead, read: true, absent: true,
	}, a.reportRevocations)
}

type revocationInput struct {
	Sequence uint64 `path:"sequence" doc:"Of the fact in LEDGER: Ledger-Sequence of the command's answer."`
	Wait     string `query:"wait" doc:"How long to wait at most until every verifier has confirmed, up to 60s." example:"5s"`
}

type revocationOutput struct{ Body MeasuredRevocation }

const mostWait = time.Minute

func (a *API) getRevocation(ctx context.Context, in *revocationInput) (*revocationOutput, error) {
	var wait time.Duration
	if in.Wait != "" {
		var err error
		if wait, err = time.ParseDuration(in.Wait); err != nil || wait < 0 || wait > mostWait {
			return nil, unprocessable(Detail{Path: "wait", Message: "is not a time to wait", Fix: "0s to 60s"})
		}
	}
	e, sequence, err := a.ending(ctx, in.Sequence)
	if err != nil {
		return nil, err
	}
	if a.Verifiers != nil {
		waits, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if r, ok := a.Verifiers.Wait(waits, sequence); ok {
			body := measuredRevocation(e.Keyspace, e.Owner, e.Key, &r.RevocationMeasured, a.Now().Sub(r.Since))
			body.Everywhere, body.Recorded = r.Settled && len(r.Unconfirmed) == 0, r.Recorded
			return &revocationOutput{body}, nil
		}
	}
	return a.recordedRevocation(ctx, e, sequence)
}

var errNoRevocation = problem(http.StatusNotFound, "REVOCATION_NOT_FOUND", "There is no fact at this sequence of LEDGER that ended a key or a secret at once.")

// ending is the fact at a sequence of LEDGER that ended something of a key that the
// caller may see. A deletion is asked about in the name of the revocation before it.
func (a *API) ending(ctx context.Context, sequence uint64) (e events.Envelope, at uint64, err error) {
	c := callOf(ctx)
	for at = sequence; at > 0 && at+1 >= sequence; at-- {
		list, err := a.Ledger.At(ctx, events.Ledger, at)
		if errors.Is(err, ledger.ErrNotFound) {
			break
		}
		if err != nil {
			return e, 0, unread(err)
		}
		void, err := a.heldAt(ctx, at)
		if err != nil {
			return e, 0, err
		}
		fact := &list[0].Event
		if void || !c.authority.Reaches(fact.Keyspace, fact.Owner) || at < sequence && fact.Key != e.Key {
			break
		}
		if e = *fact; keyring.Stops(&e) {
			return e, at, nil
		}
		if _, ok := e.Data.(events.KeyDeleted); !ok {
			break
		}
	}
	return e, 0, errNoRevocation
}

// heldAt waits until this node knows the fact at a sequence, and says whether it is
// void.
func (a *API) heldAt(ctx context.Context, sequence uint64) (void bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if void, err = a.Ring.Void(ctx, sequence); err != nil {
		return false, &readError{unavailable("NOT_CAUGHT_UP", fmt.Sprintf("This node has not applied LEDGER up to %d yet: ask again.", sequence), 2), err}
	}
	return void, nil
}

// recordedRevocation answers what was recorded of a fact that this node has not in
// memory any more.
func (a *API) recordedRevocation(ctx context.Context, e events.Envelope, sequence uint64) (*revocationOutput, error) {
	var out *revocationOutput
	err := a.readModel(ctx, projections.Revocations{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		m, err := q.Revocation(ctx, sequence)
		if err != nil {
			return err
		}
		if m == nil {
			return problem(http.StatusNotFound, "REVOCATION_NOT_MEASURED", "How long verifiers still accepted what this fact ended was not measured, or is not recorded yet.")
		}
		out = &revocationOutput{recordedMeasurement(m, a.Now())}
		return nil
	})
	return out, err
}

func recordedMeasurement(m *queries.Measured, now time.Time) MeasuredRevocation {
	r := measuredRevocation(m.Keyspace, m.Owner, m.Key, &m.RevocationMeasured, now.Sub(m.Decided.Time()))
	r.Everywhere, r.Recorded = len(m.Unconfirmed) == 0, true
	return r
}

type revocationListInput struct {
	Keyspace string    `query:"keyspace" doc:"Of this keyspace."`
	Owner    string    `query:"owner" doc:"Of this owner."`
	From     time.Time `query:"from" doc:"Decided at this time or later. Absent: from the first one on."`
	To       time.Time `query:"to" doc:"Decided before this time."`
	Limit    int       `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor   string    `query:"cursor" doc:"The next_cursor of the page before, with the same filters."`
}

// RevocationPage is a page of measurements.
type RevocationPage struct {
	Revocations []MeasuredRevocation `json:"revocations" nullable:"false" doc:"In LEDGER's order."`
	NextCursor  *string              `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
}

type revocationPage struct{ Body RevocationPage }

// since is where a report begins that does not say.
func (a *API) since(from, to time.Time) events.Time {
	if !from.IsZero() {
		return events.At(from)
	}
	if to.IsZero() {
		to = a.Now()
	}
	return events.At(to.Add(-30 * 24 * time.Hour))
}

func (a *API) listRevocations(ctx context.Context, in *revocationListInput) (*revocationPage, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	out := &revocationPage{RevocationPage{Revocations: []MeasuredRevocation{}}}
	err := a.readModel(ctx, projections.Revocations{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		list, next, err := q.Revocations(ctx, queries.RevocationFilter{Keyspace: in.Keyspace, Owner: in.Owner, From: events.At(in.From), To: events.At(in.To)}, in.Limit, in.Cursor)
		for i := range list {
			out.Body.Revocations = append(out.Body.Revocations, recordedMeasurement(&list[i], a.Now()))
		}
		out.Body.NextCursor = more(next)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

type revocationReportInput struct {
	Keyspace string    `query:"keyspace" doc:"Of this keyspace."`
	Owner    string    `query:"owner" doc:"Of this owner."`
	From     time.Time `query:"from" doc:"Decided at this time or later. Absent: 30 days before to."`
	To       time.Time `query:"to" doc:"Decided before this time. Absent: now."`
	By       string    `query:"by" doc:"Any of keyspace, owner and day, separated by commas: figures of each group beside those of all." example:"owner"`
	Target   string    `query:"target" doc:"How many were refused everywhere within this time." example:"5m" default:"5m"`
}

// RevocationFigures say how long verifiers still accepted what was ended. Delays are
// those until the slowest verifier refused, upper bounds by one clock, of what every
// verifier confirmed.
type RevocationFigures struct {
	Measured    int64    `json:"measured" doc:"Facts that ended a key, or a secret of it, at once."`
	Everywhere  int64    `json:"everywhere" doc:"Of them, those that every verifier confirmed, by one clock: what the delays are made of."`
	Unconfirmed int64    `json:"unconfirmed" doc:"Those that some verifier did not confirm within a minute."`
	ByClocks    int64    `json:"by_clocks" doc:"Those measured with the clocks of two machines, because the node that appended them had ended: not among the delays."`
	P50MS       *float64 `json:"p50_ms" doc:"null: there is nothing to make it of."`
	P99MS       *float64 `json:"p99_ms"`
	MaxMS       *float64 `json:"max_ms"`
	Met         int64    `json:"met" doc:"Those that were refused everywhere within the target: every verifier confirmed by then, or answered STATE_TOO_STALE by then, if it ran."`
	Missed      int64    `json:"missed" doc:"The other ones."`
}

// RevocationGroup are the figures of one group.
type RevocationGroup struct {
	Day      events.Time `json:"day,omitzero" doc:"Its begin, UTC."`
	Keyspace *string     `json:"keyspace,omitempty"`
	Owner    *string     `json:"owner,omitempty"`
	RevocationFigures
}

// RevocationNode are those of one verifier.
type RevocationNode struct {
	Node        string   `json:"node"`
	Confirmed   int64    `json:"confirmed"`
	Unconfirmed int64    `json:"unconfirmed"`
	P50MS       *float64 `json:"p50_ms"`
	P99MS       *float64 `json:"p99_ms"`
	MaxMS       *float64 `json:"max_ms"`
}

// RevocationClass is a class of delays.
type RevocationClass struct {
	UpToMS *float64 `json:"up_to_ms" doc:"Its upper bound; null: what is above all others."`
	Count  int64    `json:"count"`
}

// RevocationReport is about a period.
type RevocationReport struct {
	From       events.Time `json:"from"`
	To         events.Time `json:"to"`
	TargetMS   int64       `json:"target_ms"`
	Unmeasured int64       `json:"unmeasured" doc:"Revocations (key.revoked) of which nothing was recorded, those of the last two minutes left out."`
	RevocationFigures
	Classes []RevocationClass `json:"classes" nullable:"false" doc:"Of the delays."`
	Nodes   []RevocationNode  `json:"nodes" nullable:"false"`
	Groups  []RevocationGroup `json:"groups" nullable:"false" doc:"Empty without by."`
}

type revocationReport struct{ Body RevocationReport }

func maybeMillis(us *int64) *float64 {
	if us == nil {
		return nil
	}
	return millis(*us)
}

func revocationFigures(f *queries.RevocationFigures) RevocationFigures {
	return RevocationFigures{f.Measured, f.Everywhere, f.Unconfirmed, f.ByClocks, maybeMillis(f.P50US), maybeMillis(f.P99US), maybeMillis(f.MaxUS), f.Met, f.Missed}
}

func (a *API) reportRevocations(ctx context.Context, in *revocationReportInput) (*revocationReport, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, false); err != nil {
		return nil, err
	}
	target, err := domain.ParseDuration(in.Target)
	if err != nil || target == 0 {
		return nil, unprocessable(Detail{Path: "target", Message: "is not a length of time", Fix: "5m, 90s or 10ms"})
	}
	if in.To.IsZero() {
		in.To = a.Now()
	}
	f := queries.RevocationFilter{Keyspace: in.Keyspace, Owner: in.Owner, From: a.since(in.From, in.To), To: events.At(in.To)}
	var by []string
	if in.By != "" {
		by = strings.Split(in.By, ",")
	}
	out := &revocationReport{RevocationReport{From: f.From, To: f.To, TargetMS: time.Duration(target).Milliseconds(),
		Classes: []RevocationClass{}, Nodes: []RevocationNode{}, Groups: []RevocationGroup{}}}
	err = a.readModel(ctx, projections.Revocations{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		r, err := q.RevocationReport(ctx, f, by, time.Duration(target), a.Now())
		if err != nil {
			return err
		}
		b := &out.Body
		b.RevocationFigures, b.Unmeasured = revocationFigures(&r.Total), r.Unmeasured
		for i, n := range r.Classes {
			c := RevocationClass{Count: n}
			if i < len(queries.RevocationBounds) {
				c.UpToMS = millis(queries.RevocationBounds[i])
			}
			b.Classes = append(b.Classes, c)
		}
		for _, n := range r.Nodes {
			b.Nodes = append(b.Nodes, RevocationNode{n.Node, n.Confirmed, n.Unconfirmed, maybeMillis(n.P50US), maybeMillis(n.P99US), maybeMillis(n.MaxUS)})
		}
		for _, g := range r.Groups {
			one := RevocationGroup{Keyspace: g.Keyspace, Owner: g.Owner, RevocationFigures: revocationFigures(&g.RevocationFigures)}
			if g.Day != nil {
				one.Day = events.At(*g.Day)
			}
			b.Groups = append(b.Groups, one)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
