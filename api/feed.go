package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/recent"
	"github.com/keyledger/keyledger/queries"
)

// Facts are a page of FEED.
type Facts struct {
	Events []Fact `json:"events" nullable:"false" doc:"Oldest first."`

	Sequence       uint64 `json:"sequence" doc:"All up to this sequence of FEED is told: send it as after." example:"42"`
	LedgerSequence uint64 `json:"ledger_sequence" doc:"The same place in LEDGER, as far as it is known." example:"45"`
	More           bool   `json:"more" doc:"true: the page is full, ask again at once."`
}

// Fact is an event as FEED has it.
type Fact struct {
	Sequence       uint64 `json:"sequence" doc:"Of the fact in FEED." example:"42"`
	LedgerSequence uint64 `json:"ledger_sequence" doc:"Of the fact in LEDGER." example:"45"`
	Event          Event  `json:"event" doc:"The envelope, byte for byte as in FEED: without hashes of secrets."`
}

func (a *API) feed() {
	ok := a.answer("A page; or all of it and what follows, as Server-Sent Events.", a.schema(Facts{}))
	ok.Content["text/event-stream"] = &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "feed-events", Method: http.MethodGet, Path: "/v1/feeds/events", Tags: []string{"Feeds"},
			Summary:     "What happened to keys, owners and keyspaces",
			Description: "The facts of FEED, for who cannot reach NATS. A sequence is FEED's, the same on every node, so that a subscriber goes on anywhere; 0 is before the first. Accept: text/event-stream answers the same and then what follows, until either side ends it: the id of an event is its sequence, its data {sequence, ledger_sequence, previous, event}; previous is the id before it on this connection, so that whoever misses one sees it; `event: reached` says that what there was is told. docs/subscribe.md has examples.",
			Parameters: []*huma.Param{
				queryParam("after", "What came after this sequence of FEED; absent or 0: from the beginning.", &huma.Schema{Type: "integer", Format: "int64", Minimum: new(0.0)}),
				queryParam("type", "Of this type, or of a family such as key.*; several with commas.", &huma.Schema{Type: "string", Examples: []any{"key.revoked"}}),
				queryParam("keyspace", "Of this keyspace.", &huma.Schema{Type: "string"}),
				queryParam("owner", "Of this owner.", &huma.Schema{Type: "string"}),
				queryParam("limit", "At most this many in a page.", &huma.Schema{Type: "integer", Minimum: new(1.0), Maximum: new(float64(queries.MaxLimit)), Default: queries.DefaultLimit}),
				headerParam("Last-Event-ID", "Instead of after.", &huma.Schema{Type: "string"}),
			},
			Responses: map[string]*huma.Response{"200": ok},
		},
		action: domain.KeysRead, read: true,
	}, a.getFeed)
}

// feedAsked is the query of a feed.
type feedAsked struct {
	after, limit    int64
	path            string // of after
	keyspace, owner string
}

// askedOfFeed reads what the feeds have in common.
func (a *API) askedOfFeed(r *http.Request, c *call, wrong ...Detail) (q feedAsked, err error) {
	given := r.URL.Query()
	q = feedAsked{limit: queries.DefaultLimit, path: "after", keyspace: given.Get("keyspace"), owner: given.Get("owner")}
	if err := a.within(r.Context(), &q.keyspace, &q.owner, nil, c.authority.Role == domain.Operator); err != nil {
		return q, err
	}
	from := given.Get("after")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		from, q.path = id, "header.Last-Event-ID"
	}
	if from != "" {
		if q.after, err = strconv.ParseInt(from, 10, 64); err != nil || q.after < 0 {
			wrong = append(wrong, Detail{Path: q.path, Message: "is not a sequence of FEED", Fix: "the sequence as it was answered, or 0"})
		}
	}
	if s := given.Get("limit"); s != "" {
		if q.limit, err = strconv.ParseInt(s, 10, 64); err != nil || q.limit < 1 || q.limit > queries.MaxLimit {
			wrong = append(wrong, Detail{Path: "limit", Message: "is not a page size", Fix: fmt.Sprintf("1 to %d", queries.MaxLimit)})
		}
	}
	if len(wrong) > 0 {
		return q, unprocessable(wrong...)
	}
	return q, nil
}

// reaches refuses a place behind the end of FEED.
func (q *feedAsked) reaches(head uint64) error {
	if uint64(q.after) <= head {
		return nil
	}
	return unprocessable(Detail{Path: q.path, Message: fmt.Sprintf("is behind the end of FEED, which is at %d", head),
		Fix: "it is of another FEED, perhaps of one before a restore: begin again with 0"})
}

// feedTypes are the types that a filter names, as tokens of subjects; none: all.
func feedTypes(asked string) (types []string, wrong []Detail) {
	if asked == "" {
		return nil, nil
	}
	fed := events.FedTypes()
	for _, kind := range strings.Split(asked, ",") {
		family, all := strings.CutSuffix(kind, ".*")
		if !slices.ContainsFunc(fed, func(known string) bool { return known == kind || all && strings.HasPrefix(known, family+".") }) {
			return nil, []Detail{{Path: "type", Message: fmt.Sprintf("%q is no type of FEED", kind), Fix: "one of " + strings.Join(fed, ", ") + ", or all of a family such as key.*"}}
		}
		// Subjects of one consumer may not overlap.
		if !slices.Contains(types, kind) && (all || !slices.Contains(types, strings.SplitN(kind, ".", 2)[0]+".*")) {
			if all {
				types = slices.DeleteFunc(types, func(t string) bool { return strings.HasPrefix(t, family+".") })
			}
			types = append(types, kind)
		}
	}
	return types, nil
}

// feedFilter says which facts somebody asked for and may see.
type feedFilter struct {
	feedAsked
	types     []string
	authority domain.Authority
}

func (f *feedFilter) match(e *events.Envelope) bool {
	return (f.keyspace == "" || e.Keyspace == f.keyspace) && (f.owner == "" || e.Owner == f.owner) && f.authority.Reaches(e.Keyspace, e.Owner) &&
		(len(f.types) == 0 || slices.ContainsFunc(f.types, func(t string) bool {
			family, all := strings.CutSuffix(t, "*")
			return t == e.Type || all && strings.HasPrefix(e.Type, family)
		}))
}

// subjects are where the facts stand that match.
func (f *feedFilter) subjects() (list []string) {
	any := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	if len(f.types) == 0 && f.keyspace == "" && f.owner == "" {
		return nil
	}
	types := f.types
	if len(types) == 0 {
		types = []string{"*.*"}
	}
	for _, t := range types {
		list = append(list, "feed."+t+"."+any(f.keyspace)+"."+any(f.owner)+".*")
	}
	return list
}

func (a *API) getFeed(w http.ResponseWriter, r *http.Request, c *call) error {
	types, wrong := feedTypes(r.URL.Query().Get("type"))
	q, err := a.askedOfFeed(r, c, wrong...)
	if err != nil {
		return err
	}
	if a.Recent == nil {
		return unavailable("FEED_UNAVAILABLE", "This program does not follow FEED: ask one that runs `keyledger serve`.", 30)
	}
	head, err := a.feedEnd(r.Context())
	if err != nil {
		return err
	}
	if err := q.reaches(head.Feed); err != nil {
		return err
	}
	f := &feedFilter{q, types, c.authority}
	if wantsEvents(r.Header.Values("Accept")) {
		a.sendFeed(w, r, c, f, head)
		return nil
	}
	var b bytes.Buffer
	at, more, n := head, false, int64(0)
	for rec, err := range a.fedBetween(r.Context(), f, uint64(q.after), head.Feed) {
		if err != nil {
			return unread(err)
		}
		if n == q.limit {
			more = true
			break
		}
		if n++; n > 1 {
			b.WriteByte(',')
		} else {
			b.WriteString(`{"events":[`)
		}
		fmt.Fprintf(&b, `{"sequence":%d,"ledger_sequence":%d,"event":%s}`, rec.Sequence, rec.Ledger, rec.Body)
		if n == q.limit {
			at = recent.Place{Feed: rec.Sequence, Ledger: rec.Ledger}
		}
	}
	if n == 0 {
		b.WriteString(`{"events":[`)
	}
	if !more {
		at = head
	}
	fmt.Fprintf(&b, `],"sequence":%d,"ledger_sequence":%d,"more":%t}`, at.Feed, at.Ledger, more)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(b.Bytes(), '\n'))
	return nil
}

// feedEnd is FEED's end, when all up to there is known, and what Min-Sequence asks for.
func (a *API) feedEnd(ctx context.Context) (at recent.Place, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := a.await(ctx, func(ctx context.Context, sequence uint64) error {
		return a.fedBy(ctx, sequence, func(ctx context.Context, sequence uint64) error {
			_, err := a.Recent.Reach(ctx, func(p recent.Place) bool { return p.Ledger >= sequence })
			return err
		})
	}); err != nil {
		return at, err
	}
	head, err := a.Ledger.Head(ctx, events.Feed)
	if err == nil {
		at, err = a.Recent.Reach(ctx, func(p recent.Place) bool { return p.Feed >= head })
	}
	if err != nil {
		return at, &readError{unavailable("FEED_UNAVAILABLE", "FEED cannot be reached, or is not followed to its end: ask again.", 2), err}
	}
	return at, nil
}

// fedBetween yields the facts that match behind one sequence of FEED and up to another,
// from memory where they are there.
func (a *API) fedBetween(ctx context.Context, f *feedFilter, after, to uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		list, before, kept := a.Recent.After(after)
		for ; !kept && after < to; list, before, kept = a.Recent.After(after) {
			last := min(to, before.Feed)
			for rec, err := range a.Ledger.Read(ctx, events.Feed, after+1, last, f.subjects()...) {
				if err == nil && !f.match(&rec.Event) {
					continue
				}
				if !yield(rec, err) || err != nil {
					return
				}
			}
			after = last
		}
		for _, rec := range list {
			if rec.Sequence > to {
				return
			}
			if f.match(&rec.Event) && !yield(rec, nil) {
				return
			}
		}
	}
}

// sendFeed answers what there is up to head, and then what follows.
func (a *API) sendFeed(w http.ResponseWriter, r *http.Request, c *call, f *feedFilter, head recent.Place) {
	ctx, send, end := a.sendEvents(w, r)
	defer end()
	at, previous, told := uint64(f.after), uint64(f.after), false
	var b bytes.Buffer
	// Nobody follows longer than the credential lasts: that it was revoked comes by here.
	may := func(ledger uint64) bool {
		if a.Ring.Wait(ctx, ledger) != nil {
			return false
		}
		authority, err := a.authenticate(r)
		return err == nil && authority.May(domain.KeysRead)
	}
	for to := head; ; {
		if !may(to.Ledger) {
			return
		}
		n := 0
		for rec, err := range a.fedBetween(ctx, f, at, to.Feed) {
			if err != nil {
				if ctx.Err() == nil {
					a.Log.LogAttrs(ctx, slog.LevelError, "tail ended", slog.String("request_id", c.requestID), slog.Any("error", err))
				}
				return
			}
			if n++; n%sentTogether == 0 {
				send("%s", b.Bytes())
				b.Reset()
				if ctx.Err() != nil || !may(rec.Ledger) {
					return
				}
			}
			fmt.Fprintf(&b, "id: %d\ndata: {\"sequence\":%d,\"ledger_sequence\":%d,\"previous\":%d,\"event\":%s}\n\n", rec.Sequence, rec.Sequence, rec.Ledger, previous, rec.Body)
			previous = rec.Sequence
		}
		at = to.Feed
		if !told {
			told = true
			data, _ := json.Marshal(reached{at, to.Ledger, previous})
			fmt.Fprintf(&b, "event: reached\nid: %d\ndata: %s\n\n", at, data)
			previous = at
		}
		if b.Len() > 0 {
			send("%s", b.Bytes())
			b.Reset()
		}
		var err error
		if to, err = a.Recent.Reach(ctx, func(p recent.Place) bool { return p.Feed > at }); err != nil {
			if ctx.Err() == nil {
				a.Log.LogAttrs(ctx, slog.LevelError, "tail ended", slog.String("request_id", c.requestID), slog.Any("error", err))
			}
			return
		}
	}
}

// reached is the data of the event that says that what there was is told.
type reached struct {
	Sequence       uint64 `json:"sequence"`
	LedgerSequence uint64 `json:"ledger_sequence"`
	Previous       uint64 `json:"previous"`
}
