package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/verify/replay"
)

const (
	// simulationTime is how long recorded traffic is replayed for one call.
	simulationTime = 60 * time.Second

	// simulationRange is the longest time that is asked for at once.
	simulationRange = 92 * 24 * time.Hour

	defaultTop, mostTop = 100, 1000
)

// SimulationRequest says which limits, and over which traffic.
type SimulationRequest struct {
	Keyspace string           `json:"keyspace,omitempty" doc:"Whose recorded traffic is replayed. Known by itself where key is named, and to a manager." example:"parcelbird"`
	Owner    string           `json:"owner,omitempty" doc:"Of this owner alone."`
	Key      string           `json:"key,omitempty" doc:"Of this key alone; what else draws from its pool is replayed with it."`
	Plan     string           `json:"plan,omitempty" doc:"Of those alone whose plan in force is this one." example:"basic"`
	Limits   map[string]int64 `json:"limits,omitempty" doc:"Requests per window: minute, hour, day. A window that is not named is unlimited. Without limits and without document: those in force now." example:"{\"minute\":20,\"day\":1000}"`
	Document string           `json:"document,omitempty" doc:"A keyspace document, YAML or JSON, whose plans and limits count instead of those in force; nothing is configured."`
	From     time.Time        `json:"from,omitzero" doc:"Absent: 24 hours before to."`
	To       time.Time        `json:"to,omitzero" doc:"Absent: now. At most 92 days after from."`
	Top      int              `json:"top,omitempty" minimum:"1" maximum:"1000" doc:"So many keys and owners at most in the answer; 100 where absent."`
}

// Simulation says who would have been refused.
type Simulation struct {
	Keyspace   string               `json:"keyspace"`
	From       events.Time          `json:"from"`
	To         events.Time          `json:"to"`
	Bucket     string               `json:"bucket" doc:"Of the timeline: minute, hour or day."`
	Total      SimulatedFigures     `json:"total"`
	Seen       int                  `json:"seen" doc:"Keys that made a request."`
	KeysHit    int                  `json:"keys_hit" doc:"Keys of which anything was refused, then or in the simulation."`
	OwnersHit  int                  `json:"owners_hit"`
	Keys       []SimulatedWho       `json:"keys" nullable:"false" doc:"Of these, first those that would be newly refused the most."`
	Owners     []SimulatedWho       `json:"owners" nullable:"false" doc:"Likewise."`
	Timeline   []SimulatedTimeSlice `json:"timeline" nullable:"false" doc:"Without buckets in which nothing happened."`
	Folded     int64                `json:"folded" doc:"Requests that were refused then, whose time is known to the second alone."`
	Unknown    int64                `json:"unknown" doc:"Requests with keys that are not known any more; left out."`
	Late       int64                `json:"late" doc:"Requests that were recorded too late to be replayed in their turn."`
	Unrecorded int64                `json:"unrecorded" doc:"Uses that verifiers declared they could not record in this time."`
}

// SimulatedFigures compare what was refused with what would be.
type SimulatedFigures struct {
	Requests        int64 `json:"requests" doc:"Admitted, or refused by a limit."`
	RefusedThen     int64 `json:"refused_then" doc:"By a limit, as recorded."`
	Refused         int64 `json:"refused" doc:"In the simulation."`
	NewlyRefused    int64 `json:"newly_refused" doc:"In the simulation, though admitted then."`
	NoLongerRefused int64 `json:"no_longer_refused" doc:"Then, though admitted in the simulation."`
}

// SimulatedWho are the figures of a key or an owner.
type SimulatedWho struct {
	Key   string `json:"key,omitempty"`
	Name  string `json:"name,omitempty"`
	Owner string `json:"owner"`
	SimulatedFigures
	First       events.Time      `json:"first" doc:"First refusal of the simulation; null: none."`
	Last        events.Time      `json:"last"`
	WorstMinute events.Time      `json:"worst_minute" doc:"The minute with the most of them."`
	WorstCount  int64            `json:"worst_count" doc:"Refusals in that minute."`
	Windows     map[string]int64 `json:"windows" doc:"Refusals by the window whose limit was hit."`
	Share       float64          `json:"share" doc:"Of its requests that would be refused, 0 to 1."`
}

// SimulatedTimeSlice is a part of the timeline.
type SimulatedTimeSlice struct {
	Time events.Time `json:"time"`
	SimulatedFigures
}

// SimulationLine is one line of the answer in application/x-ndjson.
type SimulationLine struct {
	Done   *uint64     `json:"done,omitempty" doc:"Messages of USAGE that were read."`
	Total  *uint64     `json:"total,omitempty"`
	Result *Simulation `json:"result,omitempty"`
	Error  *Problem    `json:"error,omitempty"`
}

func (a *API) simulations() {
	schema := a.schema(SimulationRequest{})
	answer := a.answer("What would have been refused.", a.schema(Simulation{}))
	answer.Content["application/x-ndjson"] = &huma.MediaType{Schema: a.schema(SimulationLine{})}
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "simulate-limits", Method: http.MethodPost, Path: "/v1/limits/simulate", Tags: []string{"Usage"},
			Summary: "What other limits would have refused",
			Description: "Replays recorded traffic against other limits, with the limiter that verifiers use, and tells who would have been refused when. Nothing is recorded or changed. " +
				"Keys and owners count with the plan and limits they have now. At most 60 seconds: of more traffic ask for a shorter time, an owner or a key. With Accept: application/x-ndjson lines tell how far it is.",
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}},
			Responses:   map[string]*huma.Response{"200": answer},
		},
		action: domain.UsageRead, absent: true, body: 2 * domain.MaxDocument,
	}, a.simulate(a.decode(schema)))
}

func (a *API) simulate(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		var in SimulationRequest
		if err := decode(c.body, &in); err != nil {
			return err
		}
		s, err := a.simulation(r.Context(), &in)
		if err != nil {
			return err
		}
		if !a.simulating.TryLock() {
			return unavailable("SIMULATION_RUNNING", "This node replays traffic for somebody else at the moment: ask again.", 5)
		}
		defer a.simulating.Unlock()
		ctx, cancel := context.WithTimeout(r.Context(), simulationTime)
		defer cancel()
		if exportType(r.Header.Get("Accept")) != "application/x-ndjson" {
			out, err := s.run(ctx, nil)
			if err != nil {
				return err
			}
			writeJSON(w, http.StatusOK, "application/json", out)
			return nil
		}
		return a.work(w, r, func(_ context.Context, progress func(done, total uint64)) (any, error) {
			out, err := s.run(ctx, progress) // nothing is left half-done when whoever asked hangs up
			return SimulationLine{Result: out}, err
		})
	}
}

// simulation is a request that was found to make sense.
type simulation struct {
	*API
	SimulationRequest
	from, to events.Time
	bucket   string
	width    time.Duration
	keyspace *domain.Keyspace // with the limits of the simulation
	quota    *domain.Quota    // instead of what keyspace says; nil: as it says
}

func (a *API) simulation(ctx context.Context, in *SimulationRequest) (*simulation, error) {
	if in.Keyspace == "" && in.Key == "" && callOf(ctx).authority.Reach == nil {
		return nil, unprocessable(Detail{Path: "keyspace", Message: "is missing", Fix: "send the id of a keyspace"})
	}
	if err := a.within(ctx, &in.Keyspace, &in.Owner, &in.Key, false); err != nil {
		return nil, err
	}
	s := &simulation{API: a, SimulationRequest: *in}
	var err error
	if s.keyspace, err = a.keyspace(ctx, in.Keyspace); err != nil {
		return nil, err
	}
	if in.Document != "" {
		doc, err := domain.ParseDocument([]byte(in.Document))
		if err != nil {
			return nil, err
		}
		if doc.Keyspace != in.Keyspace {
			return nil, unprocessable(Detail{Path: "document", Message: "is of another keyspace", Fix: "send the document of the keyspace whose traffic is replayed"})
		}
		s.keyspace = domain.Compile(doc, s.keyspace.DocumentVersion+1)
	}
	if in.Limits != nil {
		s.quota = new(domain.QuotaOf(in.Limits))
		for window, n := range in.Limits {
			if window != "minute" && window != "hour" && window != "day" {
				return nil, unprocessable(Detail{Path: "limits." + shown(window), Message: "is no window", Fix: "one of minute, hour, day"})
			}
			if n < 1 {
				return nil, unprocessable(Detail{Path: "limits." + window, Message: "is not above 0", Fix: "send a whole number above 0, or leave the window out: it is unlimited then"})
			}
		}
	}
	if _, ok := s.keyspace.Plans[in.Plan]; in.Plan != "" && !ok {
		return nil, unprocessable(Detail{Path: "plan", Message: "is no plan of the keyspace", Fix: "send the name of one of its plans"})
	}
	if in.To.IsZero() { // what was recorded in this millisecond too
		in.To = a.Now().Truncate(time.Millisecond).Add(time.Millisecond)
	}
	if in.From.IsZero() {
		in.From = in.To.Add(-24 * time.Hour)
	}
	s.from, s.to = events.At(in.From), events.At(in.To)
	switch length := in.To.Sub(in.From); {
	case length <= 0:
		return nil, unprocessable(Detail{Path: "to", Message: "is not after from", Fix: "send a later one"})
	case length > simulationRange:
		return nil, unprocessable(Detail{Path: "from", Message: "is more than 92 days before to", Fix: "ask for a shorter time"})
	case length <= 6*time.Hour:
		s.bucket, s.width = "minute", time.Minute
	case length <= 15*24*time.Hour:
		s.bucket, s.width = "hour", time.Hour
	default:
		s.bucket, s.width = "day", 24*time.Hour
	}
	if s.Top == 0 {
		s.Top = defaultTop
	}
	s.Top = min(s.Top, mostTop)
	return s, nil
}

// rule says how a key is limited in the simulation.
func (s *simulation) rule(key, owner string) replay.Rule {
	o := s.Ring.Owner(s.Keyspace, owner)
	var k *domain.Key
	if key != "" {
		if k = s.Ring.Key(key); k == nil || k.Keyspace != s.Keyspace {
			return replay.Rule{}
		}
	}
	quota, pool := s.keyspace.QuotaFor(k, o)
	plan, _, _ := s.keyspace.PlanInForce(k, o)
	r := replay.Rule{Pool: pool, Quota: *quota, Known: true}
	meant := (s.Owner == "" || s.Owner == owner) && (s.Plan == "" || s.Plan == plan)
	// An owner's pool has one limit, whichever key draws from it.
	if s.quota != nil && meant && (s.Key == "" || s.Key == key || pool.Key == "") {
		r.Quota = *s.quota
	}
	r.Count = meant && (s.Key == "" || s.Key == key)
	return r
}

// windows are those that count for anybody in the simulation.
func (s *simulation) windows() (q domain.Quota) {
	add := func(other domain.Quota) {
		for i, n := range other {
			q[i] = max(q[i], n)
		}
	}
	if s.keyspace.Limits.From == "key" {
		add(domain.Quota{1, 1, 1})
	}
	for _, p := range s.keyspace.Plans {
		add(domain.QuotaOf(p.Limits))
	}
	if s.quota != nil {
		add(*s.quota)
	}
	return q
}

func (s *simulation) run(ctx context.Context, progress func(done, total uint64)) (*Simulation, error) {
	r := replay.New(replay.Options{From: s.from, To: s.to, Bucket: s.width, Rule: s.rule})
	f := queries.AuditFilter{
		Keyspace: s.Keyspace, Owner: s.Owner, Types: []string{"key.used", "key.rate_limited", "limit.taken"},
		From: replay.Before(s.from, s.windows()),
		To:   s.to + events.Time((10 * time.Second).Milliseconds()), // refusals are written when their second is over
	}
	if s.Key != "" && s.rule(s.Key, s.Owner).Pool.Key != "" {
		f.Key = s.Key
	}
	var done, total uint64
	for e, err := range s.streams().Traffic(ctx, f, func(d, t uint64) {
		if done, total = d, t; progress != nil {
			progress(d, t)
		}
	}) {
		if err == nil {
			err = r.Add(e)
		}
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return nil, tooMuch(fmt.Sprintf("more was recorded than can be replayed in %s: %d of %d messages were read", simulationTime, done, total))
		case errors.Is(err, replay.ErrTooMuch):
			return nil, tooMuch(fmt.Sprintf("more than %d keys, or too many requests within seconds, were recorded", replay.MaxKeys))
		case err != nil:
			return nil, unread(err)
		}
	}
	out := s.answer(r.End())
	gaps := queries.AuditFilter{Keyspace: s.Keyspace, Types: []string{"usage.gap"}, From: s.from, To: s.to}
	for e, err := range s.streams().Traffic(ctx, gaps, nil) {
		if err != nil {
			return nil, unread(err)
		}
		if d, ok := e.Data.(events.UsageGap); ok {
			out.Unrecorded += d.Count
		}
	}
	return out, nil
}

func tooMuch(message string) error {
	return unprocessable(Detail{Path: "from", Message: message, Fix: "ask for a shorter time, or for an owner or a key"})
}

func (s *simulation) answer(r replay.Result) *Simulation {
	out := &Simulation{
		Keyspace: s.Keyspace, From: s.from, To: s.to, Bucket: s.bucket, Total: SimulatedFigures(r.Total), Seen: r.Seen,
		KeysHit: len(r.Keys), OwnersHit: len(r.Owners), Folded: r.Folded, Unknown: r.Unknown, Late: r.Late,
		Keys: s.who(r.Keys), Owners: s.who(r.Owners), Timeline: make([]SimulatedTimeSlice, len(r.Timeline)),
	}
	for i, b := range r.Timeline {
		out.Timeline[i] = SimulatedTimeSlice{b.Time, SimulatedFigures(b.Figures)}
	}
	return out
}

func (s *simulation) who(list []replay.Who) []SimulatedWho {
	out := make([]SimulatedWho, 0, min(len(list), s.Top))
	for _, x := range list[:min(len(list), s.Top)] {
		w := SimulatedWho{Key: x.Key, Owner: x.Owner, SimulatedFigures: SimulatedFigures(x.Figures), First: x.First, Last: x.Last,
			WorstMinute: x.WorstMinute, WorstCount: x.WorstCount, Windows: x.Windows, Share: float64(x.Refused) / float64(x.Requests)}
		if w.Windows == nil {
			w.Windows = map[string]int64{}
		}
		if k := s.Ring.Key(x.Key); k != nil {
			w.Name = k.Name
		} else if o := s.Ring.Owner(s.Keyspace, x.Owner); x.Key == "" && o != nil {
			w.Name = o.Name
		}
		out = append(out, w)
	}
	return out
}
