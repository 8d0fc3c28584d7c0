package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/endings"
	"github.com/keyledger/keyledger/queries"
)

// Revocations are who no longer verifies, as far as was asked for.
type Revocations struct {
	Revocations []Revocation `json:"revocations" nullable:"false" doc:"In force, oldest word first."`
	Announced   []Revocation `json:"announced" nullable:"false" doc:"Not in force: an expiry or the end of a grace that lies ahead, or an expiry that holds no more."`

	Sequence       uint64 `json:"sequence" doc:"All up to this sequence of FEED is told: send it as after." example:"42"`
	LedgerSequence uint64 `json:"ledger_sequence" doc:"The same place in LEDGER." example:"45"`
	More           bool   `json:"more" doc:"true: the page is full, ask again at once."`
}

// Revocation says that a key, or one secret of it, does not verify since a moment. It
// takes the place of what was said before of the same key, secret and why; one of the
// whole key that is revoked or deleted takes the place of all.
type Revocation struct {
	Key      string      `json:"key"`
	Keyspace string      `json:"keyspace"`
	Owner    string      `json:"owner"`
	Why      string      `json:"why" enum:"revoked,deleted,superseded,expired"`
	Code     domain.Code `json:"code" doc:"Of a decision about it: REVOKED, SUPERSEDED or EXPIRED." example:"REVOKED"`
	Secret   *int        `json:"secret" doc:"Which secret of the key was rotated away, from 1 in the order of their making; null: the key itself."`
	Since    events.Time `json:"since" doc:"It verifies until then. null: it does not expire any more."`
	Reason   string      `json:"reason" doc:"As it was given."`

	Sequence       uint64 `json:"sequence" doc:"Of the fact in FEED." example:"42"`
	LedgerSequence uint64 `json:"ledger_sequence" doc:"Of the fact in LEDGER." example:"45"`
}

func revocationOf(e *endings.Ending) Revocation {
	r := Revocation{Key: e.Key, Keyspace: e.Keyspace, Owner: e.Owner, Why: e.Why, Code: domain.CodeRevoked,
		Since: e.Since, Reason: e.Reason, Sequence: e.Sequence, LedgerSequence: e.Ledger}
	switch e.Why {
	case endings.Superseded:
		r.Code = domain.CodeSuperseded
	case endings.Expired:
		r.Code = domain.CodeExpired
	}
	if e.Secret != 0 {
		r.Secret = &e.Secret
	}
	return r
}

func (a *API) revocations() {
	ok := a.answer("A page; or all of it and what follows, as Server-Sent Events.", a.schema(Revocations{}))
	ok.Content["text/event-stream"] = &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "revocations", Method: http.MethodGet, Path: "/v1/feeds/revocations", Tags: []string{"Feeds"},
			Summary:     "Who no longer verifies",
			Description: "Without after: the state as it is now, of every key that was revoked or deleted, has expired, or had a secret rotated away. With after: what came since. A sequence is FEED's, the same on every node, so that a subscriber goes on anywhere. Accept: text/event-stream answers the same and then what follows, until either side ends it: the id of an event is its sequence, and previous is the id before it on this connection, so that whoever misses one sees it; those without an event field are in force, `event: announced` are not, and `event: reached` says that the state was told. docs/subscribe.md has examples.",
			Parameters: []*huma.Param{
				queryParam("after", "What came after this sequence of FEED; absent or 0: the state.", &huma.Schema{Type: "integer", Format: "int64", Minimum: new(0.0)}),
				queryParam("keyspace", "Of this keyspace.", &huma.Schema{Type: "string"}),
				queryParam("owner", "Of this owner.", &huma.Schema{Type: "string"}),
				queryParam("limit", "At most about so many in a page: what one fact ended stands together.", &huma.Schema{Type: "integer", Minimum: new(1.0), Maximum: new(float64(queries.MaxLimit)), Default: queries.DefaultLimit}),
				headerParam("Last-Event-ID", "Instead of after.", &huma.Schema{Type: "string"}),
			},
			Responses: map[string]*huma.Response{"200": ok},
		},
		action: domain.KeysRead, read: true,
	}, a.getRevocations)
}

func (a *API) getRevocations(w http.ResponseWriter, r *http.Request, c *call) error {
	q, err := a.askedOfFeed(r, c)
	if err != nil {
		return err
	}
	after := uint64(q.after)
	if a.Endings == nil {
		return unavailable("FEED_UNAVAILABLE", "This program does not follow FEED: ask one that runs `keyledger serve`.", 30)
	}
	head, err := a.feedNow(r.Context())
	if err != nil {
		return err
	}
	if err := q.reaches(head); err != nil {
		return err
	}
	match := func(e *endings.Ending) bool {
		return (q.keyspace == "" || e.Keyspace == q.keyspace) && (q.owner == "" || e.Owner == q.owner) && c.authority.Reaches(e.Keyspace, e.Owner)
	}
	if wantsEvents(r.Header.Values("Accept")) {
		a.sendRevocations(w, r, c, after, match)
		return nil
	}
	list, to, whole := a.Endings.After(after, int(q.limit), match)
	page := Revocations{Revocations: []Revocation{}, Announced: []Revocation{}, Sequence: to.Feed, LedgerSequence: to.Ledger, More: !whole}
	for now := events.At(a.Now()); len(list) > 0; list = list[1:] {
		if list[0].In(now) {
			page.Revocations = append(page.Revocations, revocationOf(list[0]))
		} else {
			page.Announced = append(page.Announced, revocationOf(list[0]))
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, "application/json", page)
	return nil
}

// feedNow waits until all that FEED holds now is known, and what Min-Sequence asks
// for, and answers FEED's end.
func (a *API) feedNow(ctx context.Context) (head uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := a.await(ctx, a.fed); err != nil {
		return 0, err
	}
	if head, err = a.Ledger.Head(ctx, events.Feed); err == nil {
		_, err = a.Endings.Reach(ctx, func(p endings.Place) bool { return p.Feed >= head })
	}
	if err != nil {
		return 0, &readError{unavailable("FEED_UNAVAILABLE", "FEED cannot be reached, or was not read to its end yet: ask again.", 2), err}
	}
	return head, nil
}

// fed waits until what holds of LEDGER up to a sequence has passed through FEED.
func (a *API) fed(ctx context.Context, sequence uint64) error {
	return a.fedBy(ctx, sequence, func(ctx context.Context, sequence uint64) error {
		_, err := a.Endings.Reach(ctx, func(p endings.Place) bool { return p.Ledger >= sequence })
		return err
	})
}

// fedBy waits with reach for the last fact up to a sequence that held: a void one never
// comes to FEED.
func (a *API) fedBy(ctx context.Context, sequence uint64, reach func(context.Context, uint64) error) error {
	for ; sequence > 0; sequence-- {
		if void, err := a.Ring.Void(ctx, sequence); err != nil || !void {
			if err == nil {
				err = reach(ctx, sequence)
			}
			return err
		}
	}
	return nil
}

func wantsEvents(accept []string) bool {
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(kind), "text/event-stream") {
			return true
		}
	}
	return false
}

// sentTogether is how many endings are made ready at once.
const sentTogether = 256

func (a *API) sendRevocations(w http.ResponseWriter, r *http.Request, c *call, after uint64, match func(*endings.Ending) bool) {
	ctx, send, end := a.sendEvents(w, r)
	defer end()
	previous, told := after, false
	var b bytes.Buffer
	one := func(name string, id uint64, data any) {
		encoded, err := json.Marshal(data)
		if err != nil {
			panic(err) // numbers, strings and times
		}
		if name != "" {
			fmt.Fprintf(&b, "event: %s\n", name)
		}
		if id != 0 {
			fmt.Fprintf(&b, "id: %d\n", id)
		}
		fmt.Fprintf(&b, "data: %s\n\n", encoded)
	}
	for at := after; ctx.Err() == nil; {
		list, to, whole := a.Endings.After(at, sentTogether, match)
		// Nobody follows longer than the credential lasts: that it was revoked comes by here.
		if a.Ring.Wait(ctx, to.Ledger) != nil {
			return
		}
		if authority, err := a.authenticate(r); err != nil || !authority.May(domain.KeysRead) {
			return
		}
		b.Reset()
		now := events.At(a.Now())
		for i, e := range list {
			name, id := "", e.Sequence
			if !e.In(now) {
				name = "announced"
			}
			// Whoever goes on behind an id has all that one fact ended.
			if i+1 < len(list) && list[i+1].Sequence == e.Sequence {
				id = 0
			}
			one(name, id, struct {
				Revocation
				Previous uint64 `json:"previous"`
			}{revocationOf(e), previous})
			if id != 0 {
				previous = id
			}
		}
		at = to.Feed
		if whole && !told {
			told = true
			one("reached", at, reached{at, to.Ledger, previous})
			previous = at
		}
		if b.Len() > 0 {
			send("%s", b.Bytes())
		}
		if !whole {
			continue
		}
		if _, err := a.Endings.Reach(ctx, func(p endings.Place) bool { return p.Feed > at }); err != nil {
			if ctx.Err() == nil {
				a.Log.LogAttrs(ctx, slog.LevelError, "tail ended", slog.String("request_id", c.requestID), slog.Any("error", err))
			}
			return
		}
	}
}
