package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

// listTime is how long a list waits for PostgreSQL.
const listTime = 10 * time.Second

// readModel runs a query. Where PostgreSQL is away the answer says so and when
// to ask again.
func (a *API) readModel(ctx context.Context, projection string, read func(context.Context, *queries.Queries) error) error {
	if a.Queries == nil || a.Runner == nil {
		return unavailable("READ_MODELS_UNAVAILABLE", "This program has no PostgreSQL, which lists and figures come from.", 30)
	}
	if err := a.await(ctx, func(ctx context.Context, n uint64) error { return a.Runner.Wait(ctx, projection, n) }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	err := read(ctx, a.Queries)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*domain.Refusal](err); ok {
		return err
	}
	if _, ok := errors.AsType[*Problem](err); ok {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && !away[pg.Code[:2]] {
		return err // it answered, and something of ours is wrong
	}
	return &readError{unavailable("READ_MODELS_UNAVAILABLE", "PostgreSQL, which lists and figures come from, cannot be reached. Single keys, verification and commands go on without it.", 2), err}
}

// away are the classes of errors in which PostgreSQL cannot do its work at the
// moment (PostgreSQL documentation, appendix A): connection, resources,
// operator intervention, system.
var away = map[string]bool{"08": true, "53": true, "57": true, "58": true}

// readError keeps the cause for the log.
type readError struct {
	*Problem
	cause error
}

func (e *readError) Error() string { return e.cause.Error() }
func (e *readError) Unwrap() error { return e.Problem }

// within narrows a filter to what the caller may see. A keyspace, owner or key
// that is not theirs to see is the same 404 as one that is absent.
func (a *API) within(ctx context.Context, keyspace, owner, key *string, root bool) error {
	authority := callOf(ctx).authority
	if reach := authority.Reach; reach != nil {
		if *keyspace != "" && *keyspace != reach.Keyspace {
			return domain.KeyspaceNotFound()
		}
		if *owner != "" && *owner != reach.Owner {
			return domain.OwnerNotFound()
		}
		*keyspace, *owner = reach.Keyspace, reach.Owner
	}
	switch {
	case *keyspace == events.RootKeyspace && root:
	case *keyspace == "":
	default:
		if _, err := a.keyspace(ctx, *keyspace); err != nil {
			return err
		}
		if *owner != "" && a.Ring.Owner(*keyspace, *owner) == nil {
			return domain.OwnerNotFound()
		}
	}
	if *owner != "" && !domain.ValidEntityID(*owner) {
		return domain.OwnerNotFound()
	}
	if key == nil || *key == "" {
		return nil
	}
	k := a.Ring.Key(*key)
	if k == nil || !authority.Reaches(k.Keyspace, k.Owner) && !(root && k.Keyspace == events.RootKeyspace) {
		return domain.KeyNotFound()
	}
	// Three given ids make the audit log's cheapest question.
	*keyspace, *owner = k.Keyspace, k.Owner
	return nil
}

func (a *API) keyList() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "list-keys", Method: http.MethodGet, Path: "/v1/keys", Tags: []string{"Keys"},
			Summary:     "List keys",
			Description: "Keys, newest first or as sort says, from the read models: own writes are there when Min-Sequence asks for them. Root keys are listed where keyspace is keyledger, to operators; deleted keys never are. With as_of: the keys as they were, newest first, by the same filters except unused_since and the status rate_limited, their uses not told.",
		},
		action: domain.KeysRead, read: true,
	}, a.listKeys)
}

type keyListInput struct {
	Keyspace      string    `query:"keyspace" doc:"Of this keyspace." example:"parcelbird"`
	Owner         string    `query:"owner" doc:"Of this owner."`
	Status        string    `query:"status" doc:"active, expired, revoked, or rate_limited, which is active with a limit that is used up on this node." enum:"active,expired,revoked,rate_limited"`
	Scope         string    `query:"scope" doc:"That have this scope."`
	Resource      string    `query:"resource" doc:"That are bound to this resource."`
	Environment   string    `query:"environment" doc:"Of this environment."`
	Q             string    `query:"q" doc:"In the name, at the start of the id, or at either end of the shown characters."`
	UnusedSince   time.Time `query:"unused_since" doc:"Not used since this time, and older than it."`
	ExpiresBefore time.Time `query:"expires_before" doc:"That expire before this time."`
	AsOf          string    `query:"as_of" doc:"A time, a sequence of LEDGER, or now: the keys as they were then. Further pages are of the same moment." example:"2026-01-18T12:00:00.000Z"`
	Sort          string    `query:"sort" default:"-created_at" doc:"The order; a minus turns it round. Names are compared without regard to capitals; a key without a value (never used, never expires) comes last in either direction. With as_of newest first only." enum:"-created_at,created_at,name,-name,expires_at,-expires_at,last_used_at,-last_used_at,use_count,-use_count" example:"-last_used_at"`
	Limit         int       `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many in a page."`
	Cursor        string    `query:"cursor" doc:"The next_cursor of the page before, with the same filters and sort."`
}

// KeyPage is a page of keys.
type KeyPage struct {
	Keys       []Key   `json:"keys" nullable:"false"`
	NextCursor *string `json:"next_cursor" doc:"Where the next page begins; null: this is the last."`
}

type keyPage struct {
	LedgerSequence string `header:"Ledger-Sequence" doc:"Only with as_of: the place in LEDGER that the moment is."`
	Body           KeyPage
}

func (a *API) listKeys(ctx context.Context, in *keyListInput) (*keyPage, error) {
	root := callOf(ctx).authority.Role == domain.Operator
	if err := a.within(ctx, &in.Keyspace, &in.Owner, nil, root); err != nil {
		return nil, err
	}
	var limited []string
	if in.Status == "rate_limited" && a.Verifier != nil {
		limited = a.Verifier.LimitedKeys(in.Keyspace, in.Owner)
	}
	if in.AsOf != "" {
		return a.keysAsOf(ctx, in)
	}
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	out := &keyPage{Body: KeyPage{Keys: []Key{}}}
	err := a.readModel(ctx, projections.Keys{}.Name(), func(ctx context.Context, q *queries.Queries) error {
		keys, next, err := q.FindKeys(ctx, a.Ring, queries.KeyFilter{
			Keyspace: in.Keyspace, Owner: in.Owner, Status: in.Status, Limited: limited, Scope: in.Scope, Resource: in.Resource,
			Environment: in.Environment, Q: in.Q, UnusedSince: events.At(in.UnusedSince), ExpiresBefore: events.At(in.ExpiresBefore),
			Sort: in.Sort, Limit: in.Limit, Cursor: in.Cursor,
		}, a.Now())
		for _, k := range keys {
			a.showLimited(&k, a.Ring.Key(k.ID))
			out.Body.Keys = append(out.Body.Keys, Key(k))
		}
		out.Body.NextCursor = more(next)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// more is a cursor on the wire: null where there is nothing more.
func more(next string) *string {
	if next == "" {
		return nil
	}
	return &next
}

func (a *API) usage() {
	figures := a.answer("Figures, as JSON or CSV.", a.schema(UsageList{}))
	figures.Content["text/csv"] = &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "usage", Method: http.MethodGet, Path: "/v1/analytics/usage", Tags: []string{"Usage"},
			Summary:     "Usage in figures",
			Description: "Requests, outcomes, latency and cost, per bucket of time and by whatever is named in by. Without from it begins 24 hours ago. Accept: text/csv answers a table with a header; its cells never begin a formula.",
			Responses:   map[string]*huma.Response{"200": figures},
		},
		action: domain.UsageRead, read: true, absent: true,
	}, a.getUsage)
}

type usageInput struct {
	Keyspace string    `query:"keyspace" doc:"Of this keyspace."`
	Owner    string    `query:"owner" doc:"Of this owner."`
	Key      string    `query:"key" doc:"Of this key."`
	Keys     string    `query:"keys" doc:"Of any of these keys, at most 1000, separated by commas; not with by=ip. With by=key and a bucket: each one's figures over time, in one answer." maxLength:"64000"`
	From     time.Time `query:"from" doc:"From this time on, cut to the minute."`
	To       time.Time `query:"to" doc:"Before this time."`
	Bucket   string    `query:"bucket" enum:"minute,hour,day" doc:"Absent: the whole time as one."`
	Accept   string    `header:"Accept" hidden:"true"`
	By       string    `query:"by" doc:"Any of keyspace, owner, key, endpoint, status, code and ip, separated by commas. ip reads the stream itself, is for operators and auditors, and is recorded." example:"endpoint,status"`
}

// UsageList are figures of usage.
type UsageList struct {
	Usage []Usage    `json:"usage" nullable:"false"`
	Kept  *UsageKept `json:"kept,omitempty" doc:"Absent where the stream itself was read, as by ip."`
}

// UsageKept says from when on figures are kept.
type UsageKept struct {
	Minute *time.Time `json:"minute" doc:"Older minutes were removed, as the settings say; buckets of them are absent, and a time that begins among them begins with the whole hour. Null: none were."`
	Hour   *time.Time `json:"hour" doc:"Likewise of hours, with the whole day."`
	Day    *time.Time `json:"day" doc:"Likewise of days."`
}

// Usage are the figures of one bucket and group.
type Usage struct {
	Time     events.Time `json:"time" doc:"Start of the bucket; null: the whole time."`
	Keyspace *string     `json:"keyspace,omitempty"`
	Owner    *string     `json:"owner,omitempty"`
	Key      *string     `json:"key,omitempty"`
	Endpoint *string     `json:"endpoint,omitempty" doc:"Path without its query."`
	Method   *string     `json:"method,omitempty" doc:"Comes with endpoint."`
	Status   *int        `json:"status,omitempty" doc:"0: not known, or refused."`
	Code     *string     `json:"code,omitempty" doc:"The decision."`
	IP       *string     `json:"ip,omitempty" doc:"Of the caller; empty: not known, not told apart, or erased."`

	Requests    int64    `json:"requests" doc:"Refused ones included."`
	Successes   int64    `json:"successes" doc:"Admitted and answered below 400."`
	Errors      int64    `json:"errors" doc:"Admitted and answered with 400 or above."`
	Unknown     int64    `json:"unknown" doc:"Admitted; the outcome was not reported, or not yet."`
	Denied      int64    `json:"denied" doc:"Refused for another reason than a limit."`
	RateLimited int64    `json:"rate_limited" doc:"Refused by a limit."`
	AverageMS   *float64 `json:"average_ms" doc:"Latency; null: none was measured."`
	P50MS       *float64 `json:"p50_ms" doc:"Estimated from classes of latency."`
	P95MS       *float64 `json:"p95_ms"`
	P99MS       *float64 `json:"p99_ms"`
	CostMicros  int64    `json:"cost_micros"`
}

func (a *API) getUsage(ctx context.Context, in *usageInput) (*huma.StreamResponse, error) {
	if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, false); err != nil {
		return nil, err
	}
	f := queries.UsageFilter{Keyspace: in.Keyspace, Owner: in.Owner, Key: in.Key, From: events.At(in.From), To: events.At(in.To)}
	if f.From == 0 {
		end := a.Now()
		if f.To != 0 {
			end = f.To.Time()
		}
		f.From = events.At(end.Add(-24 * time.Hour))
	}
	var by []string
	if in.By != "" {
		by = strings.Split(in.By, ",")
	}
	if in.Keys != "" {
		if f.Keys = strings.Split(in.Keys, ","); len(f.Keys) > maxFound || slices.Contains(by, queries.ByIP) {
			return nil, unprocessable(Detail{Path: "keys", Message: "are too many, or asked for by address", Fix: fmt.Sprintf("at most %d, and without ip in by; use key", maxFound)})
		}
		for _, id := range f.Keys {
			if k := a.Ring.Key(id); k == nil || !callOf(ctx).authority.Reaches(k.Keyspace, k.Owner) || k.Keyspace == events.RootKeyspace {
				return nil, domain.KeyNotFound()
			}
		}
	}
	var rows []queries.UsageRow
	var kept *UsageKept
	var err error
	if slices.Contains(by, queries.ByIP) {
		rows, err = a.usageByIP(ctx, in, f, by)
	} else {
		err = a.readModel(ctx, projections.Usage{}.Name(), func(ctx context.Context, q *queries.Queries) error {
			found, k, err := q.UsageKept(ctx, f, in.Bucket, by)
			rows, kept = found, new(UsageKept(k))
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	table := exportType(in.Accept) == "text/csv"
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humachi.Unwrap(hc)
		if table {
			w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
			_ = queries.WriteUsageCSV(w, rows, by) // the client is gone; there is nobody to tell
			return
		}
		out := UsageList{Usage: make([]Usage, 0, len(rows)), Kept: kept}
		for _, r := range rows {
			out.Usage = append(out.Usage, Usage(r))
		}
		writeJSON(w, http.StatusOK, "application/json", out)
	}}, nil
}

// usageByIP reads addresses, which no read model holds. Like every reading of
// the log it leaves a trace.
func (a *API) usageByIP(ctx context.Context, in *usageInput, f queries.UsageFilter, by []string) ([]queries.UsageRow, error) {
	open := a.opener(callOf(ctx))
	if open == nil {
		return nil, problem(http.StatusForbidden, "FORBIDDEN", "Addresses are personal data: only operators and auditors see them.")
	}
	rows, err := a.streams().Usage(ctx, f, in.Bucket, by, open)
	if err != nil {
		return nil, unread(err)
	}
	asked := map[string]string{"by": in.By}
	for name, value := range map[string]string{"keyspace": in.Keyspace, "owner": in.Owner, "key": in.Key, "bucket": in.Bucket} {
		if value != "" {
			asked[name] = value
		}
	}
	return rows, a.read(ctx, "usage", asked, len(rows))
}
