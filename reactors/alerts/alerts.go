// Package alerts tells when a rule about a key, or about the pool of limits of an owner,
// begins and ceases to hold: as alert.raised and alert.resolved on OPS, from where they go
// to webhooks and sinks like any other fact. Rules are those of the keyspace documents,
// those that were set (alert_rules.set on OPS) and those that are built in; docs/alerts.md
// says what each one watches.
//
// What it promises. An alert is raised once and resolved once, in turn, whatever is
// killed and however many do this at once: whether one is raised is what OPS says, and a
// fact is appended behind the last one that its decision knew on the same subject. It does
// not flap: between two changes of a rule and subject there are at least [Options.Hold];
// only an alert whose key or rule has ended is resolved at once. A restart neither forgets
// nor counts twice what was used: windows are made of the read model of uses as of its
// position in USAGE, and the stream is followed from there.
//
// How it can disappoint. Windows have twenty parts, of which the oldest leaves early; after
// a restart they are as fine as the read model, a minute. An outcome counts when it is
// reported. What came and went while no process did this is not told, but for what passing
// time or a new address makes true. It needs PostgreSQL to begin, and while that is
// away nobody hears of unused keys. Windows are kept of so many keys as [Options.Keys] says,
// those that were idle longest are forgotten first.
package alerts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
)

// Options of an [Engine]. Ledger, Ring, Pool and Runner are needed.
type Options struct {
	Ledger *ledger.Ledger
	Ring   *keyring.Ring
	Pool   *pgxpool.Pool
	Runner *projections.Runner // of this process

	Seal *seal.Keys         // opens addresses; nil: new ones are not told
	Keep jetstream.KeyValue // holds up to where uses were looked at for new addresses; nil: from a start on

	Node string // who writes the facts

	Hold  time.Duration // see the package; zero: 5 minutes
	Every time.Duration // between two looks at what was used; zero: a second
	Sweep time.Duration // between two looks at all keys; zero: a minute
	Keys  int           // whose windows are kept; zero: a million

	// May is asked before each fact: an error ends [Engine.Run]. nil: always.
	May func(context.Context) error

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: slog.Default()
}

// defaultHold is long enough for a person to look, and short enough to be told again.
const defaultHold = 5 * time.Minute

// unusedEvery is how many sweeps pass between two questions for unused keys.
const unusedEvery = 10

// Engine follows uses and keys. It is made by [New], and run by [Engine.Run].
type Engine struct {
	Options
	hold int64 // milliseconds

	mu       sync.Mutex // guards what follows
	spaces   map[string]*space
	keys     map[string]*tracked
	pools    map[poolID]*pool
	dirty    []*tracked
	dirtyTo  []*pool
	at       uint64            // USAGE was read up to here
	loaded   uint64            // what is before was counted at the start
	skip     map[string]uint64 // by keyspace: counted up to here already
	book     *book
	queue    []*task
	pending  map[subject]bool
	sweeps   int
	forgot   int64
	previous map[string]int64 // last use of a previous secret, by key

	sightings []sighting
	fresh     map[string]*newcomer // by key

	settled, keptAt uint64 // up to where nothing is left to tell of new addresses; as it was kept

	index *projections.Index

	work chan struct{} // has room for one: there is something in queue
	seen chan struct{} // likewise, in sightings
	room chan struct{} // likewise: there is room for more
}

// tracked is a key that was used within its windows.
type tracked struct {
	id, keyspace, owner string
	rules               *ruleset
	series              []series
	pool                *pool // that it draws from; nil: no rule is about it
	last                int64 // when it was used last
	dirty               bool
}

type poolID struct{ keyspace, owner, key string } // key is empty for an owner's

// pool is what draws from the same limits.
type pool struct {
	poolID
	counts, refusals [3]series
	dirty            bool
	last             int64
}

// poolSpecs are the windows of limits, in the order of [domain.Windows]: as the verifiers
// count, though not as finely.
var poolSpecs = [3]spec{{used, 5_000, 12}, {used, 300_000, 12}, {used, 86_400_000, 1}}

// subject is who an alert is about, and by which rule.
type subject struct{ keyspace, owner, key, rule string }

// New makes an engine that does nothing yet.
func New(o Options) *Engine {
	o.Hold, o.Every, o.Sweep = cmp.Or(o.Hold, defaultHold), cmp.Or(o.Every, time.Second), cmp.Or(o.Sweep, time.Minute)
	o.Keys, o.Log = cmp.Or(o.Keys, 1_000_000), cmp.Or(o.Log, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Engine{Options: o, hold: o.Hold.Milliseconds(), index: projections.NewIndex(o.Pool, o.Seal)}
}

func (e *Engine) now() int64 { return e.Now().UnixMilli() }

// Run raises and resolves until ctx ends, from what the streams and PostgreSQL hold.
// What is away is waited for. It may be run again.
func (e *Engine) Run(ctx context.Context) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		began := time.Now()
		err := e.run(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, unknown := errors.AsType[*events.UnknownError](err); unknown {
			return fmt.Errorf("alerts: %w", err)
		}
		if _, refused := errors.AsType[*ledger.RefusalError](err); refused {
			return fmt.Errorf("alerts: %w", err)
		}
		if time.Since(began) > time.Minute {
			pause = 50 * time.Millisecond
		}
		e.Log.Warn("alerts wait", "error", err, "again_in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (e *Engine) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel(nil) // before the wait
	e.mu.Lock()
	e.spaces, e.keys, e.pools, e.skip = map[string]*space{}, map[string]*tracked{}, map[poolID]*pool{}, map[string]uint64{}
	e.dirty, e.dirtyTo, e.queue, e.pending = nil, nil, nil, map[subject]bool{}
	e.previous, e.sweeps, e.work = map[string]int64{}, 0, make(chan struct{}, 1)
	e.sightings, e.fresh, e.seen, e.room = nil, map[string]*newcomer{}, make(chan struct{}, 1), make(chan struct{}, 1)
	e.mu.Unlock()
	if err := e.loadBook(ctx); err != nil {
		return err
	}
	at, err := e.loadAll(ctx)
	if err != nil {
		return err
	}
	start := func(run func(context.Context) error) {
		all.Go(func() {
			if err := run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	start(e.followOps)
	start(e.write)
	back := e.back(ctx, at)
	e.mu.Lock()
	e.at, e.settled, e.keptAt = back, back, back
	e.mu.Unlock()
	if e.Seal != nil {
		start(e.followSources)
	}
	start(func(ctx context.Context) error { return e.followUsage(ctx, back) })
	tick, sweep := time.NewTicker(e.Every), time.NewTicker(e.Sweep)
	defer tick.Stop()
	defer sweep.Stop()
	e.sweep(ctx)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if err := e.refresh(ctx); err != nil {
				return err
			}
			e.look()
		case <-sweep.C:
			e.sweep(ctx)
		}
	}
}

func (e *Engine) followUsage(ctx context.Context, at uint64) error {
	for batch, err := range e.Runner.Records(ctx, events.Usage, at) {
		if err != nil {
			return err
		}
		for e.apply(batch) > mostSightings {
			select {
			case <-e.room:
			case <-ctx.Done():
				return ctx.Err()
			}
			batch = nil
		}
	}
	return ctx.Err()
}

// apply counts a batch of USAGE, and says how many sightings wait.
func (e *Engine) apply(batch []events.Record) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range batch {
		r := &batch[i]
		if r.Sequence > e.skip[r.Event.Keyspace] && r.Sequence > e.loaded {
			e.count(&r.Event)
		}
		e.sight(r)
		e.at = r.Sequence
	}
	if len(e.sightings) > 0 {
		select {
		case e.seen <- struct{}{}:
		default:
		}
	}
	return len(e.sightings)
}

func (e *Engine) count(ev *events.Envelope) {
	at := int64(ev.Time)
	switch d := ev.Data.(type) {
	case events.KeyUsed:
		t := e.track(ev)
		if t == nil {
			return
		}
		t.add(used, at, 1)
		if d.Status != nil {
			t.add(known, at, 1)
			if *d.Status >= 400 {
				t.add(failed, at, 1)
			}
		}
		if d.CostMicros != 0 {
			t.add(cost, at, d.CostMicros)
		}
		if d.Secret == "previous" && t.rules.grace && e.previous[t.id] < at {
			e.previous[t.id] = at
		}
		e.draw(t, at, 1)
		e.touch(t, at)
	case events.KeyUseReported:
		t := e.track(ev)
		if t == nil {
			return
		}
		t.add(known, at, 1)
		if d.Status >= 400 {
			t.add(failed, at, 1)
		}
		if d.CostMicros != nil {
			t.add(cost, at, *d.CostMicros)
		}
		e.touch(t, at)
	case events.KeyDenied:
		if t := e.track(ev); t != nil {
			t.add(denied, at, d.Count)
			e.touch(t, at)
		}
	case events.KeyRateLimited:
		t := e.track(ev)
		if t == nil {
			return
		}
		if p := t.pool; p != nil {
			if i := slices.Index(domain.Windows, d.Window); i >= 0 {
				p.refusals[i].add(poolSpecs[i], at, d.Count)
				e.touchPool(p, at)
			}
		}
	case events.LimitTaken:
		s := e.spaces[ev.Keyspace]
		if s != nil && ev.Owner != "" && len(s.of(ev.Owner, nil).limits) > 0 {
			p := e.pool(poolID{ev.Keyspace, ev.Owner, ""})
			p.add(at, d.Count)
			e.touchPool(p, at)
		}
	}
}

// add counts in all series of a kind.
func (t *tracked) add(k kind, at, n int64) {
	for _, i := range t.rules.byKind[k] {
		t.series[i].add(t.rules.specs[i], at, n)
	}
}

func (p *pool) add(at, n int64) {
	for i := range p.counts {
		p.counts[i].add(poolSpecs[i], at, n)
	}
}

// track is the key of a fact; nil where there is none that has rules.
func (e *Engine) track(ev *events.Envelope) *tracked {
	if t := e.keys[ev.Key]; t != nil {
		return t
	}
	if ev.Key == "" {
		return nil
	}
	return e.begin(ev.Keyspace, ev.Owner, ev.Key)
}

func (e *Engine) begin(keyspace, owner, key string) *tracked {
	s := e.spaces[keyspace]
	if s == nil {
		return nil
	}
	k := e.Ring.Key(key)
	if k == nil || k.Keyspace != keyspace || k.Owner != owner {
		return nil
	}
	if len(e.keys) >= e.Keys {
		e.forget()
	}
	t := &tracked{id: k.ID, keyspace: k.Keyspace, owner: k.Owner, rules: s.of(owner, k)}
	t.series = make([]series, len(t.rules.specs))
	t.pool = e.poolOf(k, t.rules)
	e.keys[strings.Clone(k.ID)] = t
	return t
}

// forget makes room for a key by dropping the one of a few that was idle longest.
func (e *Engine) forget() {
	var oldest *tracked
	n := 0
	for _, t := range e.keys { // in no order
		if oldest == nil || t.last < oldest.last {
			oldest = t
		}
		if n++; n == 16 {
			break
		}
	}
	delete(e.keys, oldest.id)
	e.forgot++
}

func (e *Engine) touch(t *tracked, at int64) {
	t.last = max(t.last, at)
	if !t.dirty {
		t.dirty = true
		e.dirty = append(e.dirty, t)
	}
}

func (e *Engine) touchPool(p *pool, at int64) {
	p.last = max(p.last, at)
	if !p.dirty {
		p.dirty = true
		e.dirtyTo = append(e.dirtyTo, p)
	}
}

// draw counts a use in its pool, where somebody wants to hear of that.
func (e *Engine) draw(t *tracked, at, n int64) {
	if t.pool != nil {
		t.pool.add(at, n)
		e.touchPool(t.pool, at)
	}
}

// poolOf is the pool of a key; nil where no rule is about it.
func (e *Engine) poolOf(k *domain.Key, rules *ruleset) *pool {
	s := e.spaces[k.Keyspace]
	id := poolID{k.Keyspace, k.Owner, k.ID}
	if s.keyspace.OwnersPool(k) {
		id.key, rules = "", s.of(k.Owner, nil)
	}
	if len(rules.limits) == 0 {
		return nil
	}
	return e.pool(id)
}

func (e *Engine) pool(id poolID) *pool {
	p := e.pools[id]
	if p == nil {
		p = &pool{poolID: poolID{strings.Clone(id.keyspace), strings.Clone(id.owner), strings.Clone(id.key)}}
		e.pools[p.poolID] = p
	}
	return p
}

// look judges what was used since the last look, and what is raised.
func (e *Engine) look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for _, t := range e.dirty {
		t.dirty = false
		e.judge(t, now)
	}
	for _, p := range e.dirtyTo {
		p.dirty = false
		e.judgePool(p, now)
	}
	e.lookAtNewcomers(now)
	clear(e.dirty)
	clear(e.dirtyTo)
	e.dirty, e.dirtyTo = e.dirty[:0], e.dirtyTo[:0]
	for _, s := range slices.Collect(maps.Keys(e.book.open)) {
		e.lookAgain(s, now)
	}
}

// judge asks all rules about a key's requests.
func (e *Engine) judge(t *tracked, now int64) {
	k := e.Ring.Key(t.id)
	if k == nil || k.Revoked() {
		return
	}
	for i := range t.rules.byUse {
		r := &t.rules.byUse[i]
		if c := t.condition(r, k, now); c.holds { // what is raised is looked at anyway
			e.found(subject{t.keyspace, t.owner, t.id, r.name}, r, c, now)
		}
	}
	if t.rules.grace && e.previous[t.id] != 0 {
		for i := range t.rules.byTime {
			if r := &t.rules.byTime[i]; r.When == "previous_secret" {
				e.found(subject{t.keyspace, t.owner, t.id, r.name}, r, timed(k, e.spaces[t.keyspace].keyspace, r, 0, e.previous[t.id], now), now)
			}
		}
	}
}

// condition judges one rule about a key's requests.
func (t *tracked) condition(r *rule, k *domain.Key, now int64) condition {
	sum := func(i int) int64 { return t.series[r.series[i]].sum(t.rules.specs[r.series[i]], now) }
	switch r.When {
	case "error_rate":
		return errorRate(sum(0), sum(1), r)
	case "denied":
		return deniedCount(sum(0), r)
	case "cost":
		return costOver(sum(0), r)
	case "unusual_volume":
		s, width := t.series[r.series[0]], t.rules.specs[r.series[0]].width
		index := now / width
		least := r.MinRequests
		if least == 0 {
			least = leastVolume
		}
		if s.of(index) < least && s.of(index-1) < least { // as of most keys
			return condition{threshold: *r.Above}
		}
		var room [volumePast]int64
		past := room[:0]
		for i := index - 2; i >= index-1-volumePast && i*width >= int64(k.CreatedAt); i-- {
			past = append(past, s.of(i))
		}
		return unusualVolume(s.of(index), s.of(index-1), past, r)
	}
	return condition{}
}

// rulesOf are the rules for a pool, and how much may be drawn from it.
func (e *Engine) rulesOf(p *pool) (rules []rule, quota domain.Quota, ended bool) {
	s := e.spaces[p.keyspace]
	if s == nil {
		return nil, quota, true
	}
	var k *domain.Key
	if p.key != "" {
		if k = e.Ring.Key(p.key); k == nil || k.Revoked() {
			return nil, quota, true
		}
	}
	if k == nil && s.keyspace.Limits.From == "key" {
		return nil, quota, false // nobody shares
	}
	return s.of(p.owner, k).limits, *s.keyspace.Quota(k, e.Ring.Owner(p.keyspace, p.owner)), false
}

func (e *Engine) judgePool(p *pool, now int64) {
	rules, quota, _ := e.rulesOf(p)
	for i := range rules {
		if c := p.condition(&rules[i], quota, now); c.holds {
			e.found(subject{p.keyspace, p.owner, p.key, rules[i].name}, &rules[i], c, now)
		}
	}
}

func (p *pool) condition(r *rule, quota domain.Quota, now int64) condition {
	var counts, refusals [3]int64
	for i := range counts {
		counts[i], refusals[i] = p.counts[i].sum(poolSpecs[i], now), p.refusals[i].sum(poolSpecs[i], now)
	}
	return limitUsed(counts, refusals, quota, r)
}

// lookAgain judges what is raised: it may hold no more.
func (e *Engine) lookAgain(s subject, now int64) {
	when, _, _ := strings.Cut(s.rule, " ")
	if byTime(when) && when != "previous_secret" {
		return // see sweep
	}
	if when == "limit_used" {
		p := e.pools[poolID{s.keyspace, s.owner, s.key}]
		if p == nil {
			p = &pool{poolID: poolID{s.keyspace, s.owner, s.key}}
		}
		rules, quota, ended := e.rulesOf(p)
		i := slices.IndexFunc(rules, func(r rule) bool { return r.name == s.rule })
		switch {
		case ended:
			e.end(s, "key_ended")
		case i < 0:
			e.end(s, "rule_gone")
		default:
			e.found(s, &rules[i], p.condition(&rules[i], quota, now), now)
		}
		return
	}
	k, r := e.still(s)
	if r == nil {
		return
	}
	var c condition
	switch t := e.keys[s.key]; {
	case when == "previous_secret":
		c = timed(k, e.spaces[s.keyspace].keyspace, r, 0, e.previous[s.key], now)
	case t != nil:
		c = t.condition(r, k, now)
	}
	e.found(s, r, c, now)
}

// still is the key of a raised alert and its rule. Where one of them is gone, it ends the
// alert and the rule is nil.
func (e *Engine) still(s subject) (*domain.Key, *rule) {
	space, k := e.spaces[s.keyspace], e.Ring.Key(s.key)
	if space == nil || k == nil || k.Revoked() {
		e.end(s, "key_ended")
		return nil, nil
	}
	r := space.of(s.owner, k).has(s.rule)
	if r == nil {
		e.end(s, "rule_gone")
	}
	return k, r
}

// found has written what follows from a condition.
func (e *Engine) found(s subject, r *rule, c condition, now int64) {
	ep := e.book.episode(s)
	if ep == nil && !c.holds || e.pending[s] {
		return
	}
	if ep == nil {
		ep = &episode{}
	}
	quiet := e.hold
	if r.When == "new_source_ip" {
		quiet = max(quiet, sourceQuiet.Milliseconds())
	}
	switch ep.step(c, now, e.hold, quiet) {
	case raises:
		e.ask(&task{subject: s, raise: true, when: r.When, from: r.From, condition: c})
	case resolves:
		reason := "quiet"
		if byTime(r.When) || r.When == "new_source_ip" {
			reason = "over"
		}
		e.ask(&task{subject: s, when: r.When, condition: c, reason: reason})
	}
}

// sourceQuiet is how long no new address must have come before new_source_ip is resolved.
const sourceQuiet = time.Hour

// end has an alert resolved at once.
func (e *Engine) end(s subject, reason string) {
	if e.pending[s] {
		return
	}
	when, _, _ := strings.Cut(s.rule, " ")
	e.ask(&task{subject: s, when: when, reason: reason})
}
