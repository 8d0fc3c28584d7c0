package queries

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// HistoryEntry is one line of a key's history: a fact; uses or refusals of one kind,
// added up between two others; what only time did; or a declared gap.
type HistoryEntry struct {
	Kind  string      `json:"kind"` // fact, act, uses, refused, time, gap
	What  string      `json:"what"` // created, rotated, …, a code, expired, grace over
	From  events.Time `json:"from"`
	Until events.Time `json:"until"` // the same as from, but for sums
	Count int64       `json:"count"` // of a sum, of what is missing in a gap (0: nobody knows), or of events that were read

	Act       *Act            `json:"act,omitempty"`       // of a fact or an act
	Reason    string          `json:"reason,omitempty"`    // that was given for it
	Asked     string          `json:"asked,omitempty"`     // what of the log somebody read: events, export, bundle, …
	Current   int64           `json:"current,omitempty"`   // uses of the current secret of their time
	Previous  int64           `json:"previous,omitempty"`  // uses of a previous one
	Endpoints []EndpointCount `json:"endpoints,omitempty"` // the most frequent of a sum
}

// EndpointCount is how often an endpoint was asked for.
type EndpointCount struct {
	Method   string `json:"method"` // empty: not recorded
	Endpoint string `json:"endpoint"`
	Count    int64  `json:"count"`
}

const (
	// mostEndpoints are shown of a sum, of at most so many that are told apart.
	mostEndpoints     = 10
	distinctEndpoints = 1000
)

// sum adds up what is alike between two facts.
type eventSum struct {
	HistoryEntry
	endpoints map[EndpointCount]int64 // counts by endpoint, whose own count is 0
}

func (s *eventSum) add(first, last events.Time, n int64, method, endpoint string) {
	s.From, s.Until = min(s.From, first), max(s.Until, last)
	s.Count += n
	at := EndpointCount{Method: method, Endpoint: endpoint}
	if _, ok := s.endpoints[at]; !ok && len(s.endpoints) >= distinctEndpoints {
		at = EndpointCount{Endpoint: "…"}
	}
	s.endpoints[at] += n
}

func (s *eventSum) entry() HistoryEntry {
	s.Endpoints = topEndpoints(s.endpoints)
	return s.HistoryEntry
}

func topEndpoints(counts map[EndpointCount]int64) []EndpointCount {
	list := make([]EndpointCount, 0, len(counts))
	for e, n := range counts {
		e.Count = n
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b EndpointCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Method, b.Method))
	})
	return list[:min(len(list), mostEndpoints)]
}

// History tells everything that the streams hold about a key, oldest first, and
// the key as its facts leave it. With uses it reads USAGE too, and adds it up;
// gaps are those of the key's keyspace, whose uses nobody can tell apart any more.
// A key that is not there is nil.
func (a *Audit) History(ctx context.Context, keyspace, owner, key string, uses bool, now time.Time) ([]HistoryEntry, *domain.Key, error) {
	h := &history{}
	f := AuditFilter{Keyspace: keyspace, Owner: owner, Key: key}
	if !uses {
		for t := range events.Types() {
			if streamOf(t) != events.Usage {
				f.Types = append(f.Types, t)
			}
		}
	}
	for e, err := range a.All(ctx, f, nil) {
		if err != nil {
			return nil, nil, err
		}
		h.add(&e.Record)
	}
	h.pass(events.At(now))
	entries := h.entries()
	if uses && h.state.Key != nil {
		for e, err := range a.All(ctx, AuditFilter{Keyspace: keyspace, Types: []string{"usage.gap"}}, nil) {
			if err != nil {
				return nil, nil, err
			}
			if d, ok := e.Event.Data.(events.UsageGap); ok && d.To >= h.state.Key.CreatedAt && (e.Event.Owner == "" || e.Event.Owner == owner) {
				// It stands where it began; what is there keeps its order, whatever clocks say.
				gap := HistoryEntry{Kind: "gap", What: "uses not recorded", From: d.From, Until: d.To, Count: d.Count, Reason: d.Reason}
				at := slices.IndexFunc(entries, func(e HistoryEntry) bool { return e.From > gap.From })
				if at < 0 {
					at = len(entries)
				}
				entries = slices.Insert(entries, at, gap)
			}
		}
	}
	return entries, h.state.Key, nil
}

type history struct {
	state  domain.State
	at     events.Time // up to here time was looked at
	closed []chapter
	open   map[string]*eventSum // sums since the last chapter, by kind and what
}

// chapter is what ends with a fact, an act or something that time did.
type chapter struct {
	sums map[string]*eventSum
	end  HistoryEntry
}

func (h *history) end(e HistoryEntry) {
	h.closed = append(h.closed, chapter{h.open, e})
	h.open = nil
}

// before are the sums of what was judged with LEDGER up to a sequence. Streams are
// merged by time, of which a millisecond is the least: a use may come behind the
// fact that it was judged before.
func (h *history) before(sequence uint64) *map[string]*eventSum {
	sums := &h.open
	for i := range slices.Backward(h.closed) {
		if act := h.closed[i].end.Act; act == nil || act.Stream != events.Ledger {
			continue
		} else if act.Sequence <= sequence {
			break
		}
		sums = &h.closed[i].sums
	}
	return sums
}

// folded are the sums of refusals that ended at a time. Their facts are written
// when their second is over, and may come behind what happened in between.
func (h *history) folded(last events.Time) *map[string]*eventSum {
	sums := &h.open
	for i := range slices.Backward(h.closed) {
		if h.closed[i].end.Kind != "fact" {
			continue
		} else if h.closed[i].end.From <= last {
			break
		}
		sums = &h.closed[i].sums
	}
	return sums
}

func (h *history) entries() []HistoryEntry {
	list := []HistoryEntry{}
	add := func(sums map[string]*eventSum) {
		from := len(list)
		for _, s := range sums {
			list = append(list, s.entry())
		}
		slices.SortFunc(list[from:], func(a, b HistoryEntry) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.What, b.What)) })
	}
	for _, c := range h.closed {
		add(c.sums)
		list = append(list, c.end)
	}
	add(h.open)
	return list
}

func (h *history) add(r *events.Record) {
	e := &r.Event
	h.pass(e.Time)
	switch d := e.Data.(type) {
	case events.KeyUsed:
		s := sumOf(h.before(d.LedgerSequence), "uses", string(domain.CodeValid), e.Time)
		s.add(e.Time, e.Time, 1, d.Method, d.Endpoint)
		if d.Secret == "previous" {
			s.Previous++
		} else {
			s.Current++
		}
	case events.KeyUseReported: // the outcome of a use that is counted
	case events.KeyDenied:
		sumOf(h.folded(d.Last), "refused", d.Code, d.First).add(d.First, d.Last, d.Count, "", d.Endpoint)
	case events.KeyRateLimited:
		sumOf(h.folded(d.Last), "refused", string(domain.CodeRateLimited), d.First).add(d.First, d.Last, d.Count, "", "")
	default:
		act := actOf(r)
		x := HistoryEntry{Kind: "act", What: e.Type, From: e.Time, Until: e.Time, Act: &act}
		if read, ok := e.Data.(events.AuditRead); ok {
			x.Asked, x.Count = read.What, read.Count
		}
		if r.Stream == events.Ledger {
			was := h.state
			h.state = domain.Evolve(was, *r)
			x.Kind, x.What, x.Reason = "fact", cmp.Or(whats[e.Type], e.Type), reasonOf(e.Data)
			if act.Void = !domain.Holds(was, *e); !act.Void {
				act.Changes = changes(was, h.state, e.Time, e.Time)
			}
		}
		h.end(x)
	}
}

func reasonOf(data events.Payload) string {
	switch d := data.(type) {
	case events.KeyRotated:
		return d.Reason
	case events.KeyGraceEnded:
		return d.Reason
	case events.KeyRevoked:
		return d.Reason
	}
	return ""
}

func sumOf(sums *map[string]*eventSum, kind, what string, at events.Time) *eventSum {
	if *sums == nil {
		*sums = map[string]*eventSum{}
	}
	s := (*sums)[kind+" "+what]
	if s == nil {
		s = &eventSum{HistoryEntry{Kind: kind, What: what, From: at, Until: at}, map[EndpointCount]int64{}}
		(*sums)[kind+" "+what] = s
	}
	return s
}

// pass tells what time did to the key up to a moment.
func (h *history) pass(to events.Time) {
	from := h.at
	if to <= from {
		return
	}
	h.at = to
	k := h.state.Key
	if k == nil || k.Revoked() {
		return
	}
	var list []HistoryEntry
	over := func(at events.Time, what string) {
		if at > from && at <= to {
			list = append(list, HistoryEntry{Kind: "time", What: what, From: at, Until: at})
		}
	}
	over(k.ExpiresAt, "expired")
	if k.More != nil {
		for _, e := range k.Earlier {
			over(e.Until, "grace over") // what a fact ended, ended at that fact
		}
	}
	slices.SortFunc(list, func(a, b HistoryEntry) int { return cmp.Compare(a.From, b.From) })
	for _, e := range list {
		h.end(e)
	}
}
