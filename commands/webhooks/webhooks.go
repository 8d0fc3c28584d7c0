// Package webhooks knows the endpoints that facts are sent to, and is where they are
// registered, removed, enabled, and given another secret. What is sent is the business
// of reactors/webhooks.
//
// The endpoints are a fold of OPS: each act is appended behind exactly what it was
// decided with, so that of two that race the second is decided again. The secret that
// what is sent is signed with is in those acts, sealed by the master key together with
// the endpoint's address and what is sent there: whoever may write to OPS and does not
// have that key can neither read a secret nor make an endpoint, or move one.
//
// How it can disappoint. Who may write to OPS can remove an endpoint. The address is
// in OPS as it was given, for operators, auditors and the managers of its owner: a
// token in its path or query is one that they can read. Whoever loses the master key
// has lost every secret: register the endpoints again.
package webhooks

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
)

// Webhook is an endpoint.
type Webhook struct {
	ID          string       `json:"id"` // whk_…
	URL         string       `json:"url"`
	Keyspace    string       `json:"keyspace"` // empty: all
	Owner       string       `json:"owner"`    // empty: all
	Types       []string     `json:"types"`    // empty: all
	Keys        []string     `json:"keys"`     // empty: all
	Description string       `json:"description"`
	CreatedAt   events.Time  `json:"created_at"`
	CreatedBy   events.Actor `json:"created_by"`
	After       uint64       `json:"after"`    // of FEED, where it began
	Sequence    uint64       `json:"sequence"` // in OPS, of its registration

	Disabled   string      `json:"disabled"` // why nothing is sent; empty: it is
	DisabledAt events.Time `json:"disabled_at"`
	Enabled    uint64      `json:"enabled"` // sequence in OPS, when it was last
	RotatedAt  events.Time `json:"rotated_at"`
	GraceUntil events.Time `json:"grace_until"` // of the secret before

	Secret   []byte `json:"secret"`   // sealed
	Previous []byte `json:"previous"` // sealed; empty: none
}

// sealedFor is what a secret is sealed with, so that it opens for this endpoint alone.
func (w *Webhook) sealedFor() string {
	b, err := json.Marshal([]any{"webhook", w.ID, w.URL, w.Keyspace, w.Owner, append([]string{}, w.Types...), append([]string{}, w.Keys...)})
	if err != nil {
		panic(err) // strings can be written
	}
	return string(b)
}

// Secrets are those that what is sent at a moment is signed with, the current one first.
func (w *Webhook) Secrets(master seal.Master, now time.Time) (all [][]byte, err error) {
	boxes := [][]byte{w.Secret}
	if len(w.Previous) > 0 && events.At(now) < w.GraceUntil {
		boxes = append(boxes, w.Previous)
	}
	for _, box := range boxes {
		secret, err := master.Unwrap(box, w.sealedFor())
		if err != nil {
			return nil, fmt.Errorf("the secret of webhook %s does not open: it was not registered by a service with this master key, or was changed since; remove it and register it again", w.ID)
		}
		all = append(all, secret)
	}
	return all, nil
}

// Wants says whether a fact is sent to the endpoint.
func (w *Webhook) Wants(kind, keyspace, owner, key string) bool {
	return (w.Keyspace == "" || w.Keyspace == keyspace) && (w.Owner == "" || w.Owner == owner) &&
		(len(w.Keys) == 0 || slices.Contains(w.Keys, key)) &&
		(len(w.Types) == 0 || slices.ContainsFunc(w.Types, func(t string) bool { return means(t, kind) }))
}

// means says whether a type is meant by one that was given, which may be a family.
func means(given, kind string) bool {
	family, all := strings.CutSuffix(given, "*")
	return given == kind || all && strings.HasSuffix(family, ".") && strings.HasPrefix(kind, family)
}

// Types are those that can be sent, sorted.
func Types() []string {
	return slices.Sorted(slices.Values(append(events.FedTypes(), "alert.raised", "alert.resolved")))
}

// Registry knows the endpoints. Ledger, Master and Seal are needed; it is safe for
// concurrent use, and several processes may have one each.
type Registry struct {
	Ledger *ledger.Ledger
	Master seal.Master
	Seal   *seal.Keys // where the fold is kept
	Policy Policy
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: slog.Default()

	mu      sync.Mutex // guards what follows
	fold    fold
	kept    uint64        // how far the fold goes that was last kept, or found
	changed chan struct{} // closed when the endpoints change, and replaced when asked for
}

// fold is the state of OPS up to a sequence.
type fold struct {
	At    uint64              `json:"at"`
	ID    string              `json:"id"` // of the event there
	Hooks map[string]*Webhook `json:"hooks"`
	Done  map[string]done     `json:"done"` // commands of the last day, by who and which
}

type done struct {
	What    string      `json:"what"`
	Webhook Webhook     `json:"webhook"` // as it was then
	At      events.Time `json:"at"`
}

// replayable is how long a command is known by its idempotency key.
const replayable = 24 * time.Hour

func (f *fold) apply(r *events.Record) (changed bool) {
	if r.Sequence <= f.At {
		return false
	}
	f.At, f.ID = r.Sequence, r.Event.ID
	var id string
	switch d := r.Event.Data.(type) {
	case events.WebhookRegistered:
		id = d.Webhook
		if f.Hooks[id] != nil {
			return false
		}
		f.Hooks[id] = &Webhook{
			ID: strings.Clone(d.Webhook), URL: strings.Clone(d.URL), Keyspace: strings.Clone(r.Event.Keyspace), Owner: strings.Clone(r.Event.Owner),
			Types: cloned(d.Types), Keys: cloned(d.Keys), Description: strings.Clone(d.Description),
			CreatedAt: r.Event.Time, CreatedBy: events.Actor{Type: strings.Clone(r.Event.Actor.Type), ID: strings.Clone(r.Event.Actor.ID)},
			After: d.After, Sequence: r.Sequence, Secret: slices.Clone(d.Secret),
		}
	case events.WebhookSecretRotated:
		if w := f.Hooks[d.Webhook]; w != nil {
			id = d.Webhook
			w.Secret, w.Previous, w.GraceUntil, w.RotatedAt = slices.Clone(d.Secret), w.Secret, d.GraceUntil, r.Event.Time
			if d.GraceUntil == 0 {
				w.Previous = nil
			}
		}
	case events.WebhookDisabled:
		if w := f.Hooks[d.Webhook]; w != nil {
			id = d.Webhook
			w.Disabled, w.DisabledAt = strings.Clone(d.Reason), r.Event.Time
		}
	case events.WebhookEnabled:
		if w := f.Hooks[d.Webhook]; w != nil {
			id = d.Webhook
			w.Disabled, w.DisabledAt, w.Enabled = "", 0, r.Sequence
		}
	case events.WebhookRemoved:
		if f.Hooks[d.Webhook] != nil {
			id = d.Webhook
		}
	default:
		return false
	}
	if id == "" {
		return false
	}
	if which, what, ok := domain.SplitCommandID(r.Event.Command); ok {
		f.Done[strings.Clone(which)] = done{strings.Clone(what), *f.Hooks[id], r.Event.Time}
	}
	if _, removed := r.Event.Data.(events.WebhookRemoved); removed {
		delete(f.Hooks, id)
	}
	for which, d := range f.Done {
		if r.Event.Time-d.At > events.Time(replayable.Milliseconds()) {
			delete(f.Done, which)
		}
	}
	return true
}

// cloned takes strings out of the body that they are parts of.
func cloned(list []string) []string {
	all := make([]string, len(list))
	for i, s := range list {
		all[i] = strings.Clone(s)
	}
	return all
}

func (r *Registry) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Registry) log() *slog.Logger {
	if r.Log != nil {
		return r.Log
	}
	return slog.Default()
}

// read folds OPS to its end. It returns with r.mu held where there is no error.
func (r *Registry) read(ctx context.Context) error {
	r.mu.Lock()
	if r.fold.At == 0 {
		r.recall(ctx)
	}
	for rec, err := range r.Ledger.Read(ctx, events.Ops, r.fold.At+1, 0) {
		if err != nil {
			r.mu.Unlock()
			return fmt.Errorf("read the webhooks in %s: %w", events.Ops, err)
		}
		r.apply(&rec)
	}
	if r.fold.At >= r.kept+keepEvery {
		r.keep(ctx)
	}
	return nil
}

// apply is called with r.mu held.
func (r *Registry) apply(rec *events.Record) {
	if r.fold.apply(rec) && r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Follow keeps the endpoints up to date until ctx ends, whose error it then returns;
// [Registry.Now] shows them. It fails as [ledger.Ledger.Follow] does.
func (r *Registry) Follow(ctx context.Context) error {
	if err := r.read(ctx); err != nil {
		return err
	}
	at := r.fold.At
	r.mu.Unlock()
	for records, err := range r.Ledger.FollowBatches(ctx, events.Ops, at, 256, 0) {
		if err != nil {
			return err
		}
		r.mu.Lock()
		for i := range records {
			r.apply(&records[i])
		}
		if r.fold.At >= r.kept+keepEvery {
			r.keep(ctx)
		}
		r.mu.Unlock()
	}
	return ctx.Err()
}

// Known are the endpoints as far as this process knows, and what is closed when they
// change.
func (r *Registry) Known() ([]Webhook, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.fold.all(), r.changed
}

func (f *fold) all() []Webhook {
	all := []Webhook{}
	for _, id := range slices.Sorted(maps.Keys(f.Hooks)) {
		all = append(all, *f.Hooks[id])
	}
	return all
}

// All are the endpoints, oldest first.
func (r *Registry) All(ctx context.Context) ([]Webhook, error) {
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	return r.fold.all(), nil
}

// Get is one endpoint; it refuses with [domain.NotFound] one that is not there, and one
// that an authority does not reach, alike.
func (r *Registry) Get(ctx context.Context, authority domain.Authority, id string) (Webhook, error) {
	if err := r.read(ctx); err != nil {
		return Webhook{}, err
	}
	defer r.mu.Unlock()
	return r.fold.get(authority, id)
}

func (f *fold) get(authority domain.Authority, id string) (Webhook, error) {
	w := f.Hooks[id]
	if w == nil || !authority.Reaches(w.Keyspace, w.Owner) {
		return Webhook{}, &domain.Refusal{Kind: domain.NotFound, Code: "WEBHOOK_NOT_FOUND", Detail: "There is no webhook with this id."}
	}
	return *w, nil
}

// OPS grows with every question to the audit log, and the fold of it is small. So it is
// kept, sealed under the master key, beside the data keys: a start reads what has come
// since. An older one, or none, costs reading more.

// keepEvery is after how many acts the fold is kept again.
const keepEvery = 1000

// keptName changes with what apply does.
const keptName = "webhooks 1"

// recall begins with the fold that was kept, where OPS still is what it was made of.
// r.mu is held.
func (r *Registry) recall(ctx context.Context) {
	r.fold = fold{Hooks: map[string]*Webhook{}, Done: map[string]done{}}
	b, err := r.Seal.Remembered(ctx, keptName)
	f := fold{}
	if err == nil && b != nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		r.log().Warn("what was kept of the webhooks cannot be used, all acts are read", "error", err)
		return
	}
	if f.At == 0 || f.Hooks == nil || f.Done == nil {
		return
	}
	// After a restore there may be nothing there yet, or something else.
	if at, err := r.Ledger.At(ctx, events.Ops, f.At); err != nil || at[0].Event.ID != f.ID {
		r.log().Info("what was kept of the webhooks is of another past, all acts are read", "sequence", f.At)
		return
	}
	r.fold, r.kept = f, f.At
}

// keep keeps the fold. r.mu is held.
func (r *Registry) keep(ctx context.Context) {
	b, err := json.Marshal(r.fold)
	if err == nil {
		err = r.Seal.Remember(ctx, keptName, b)
	}
	r.kept = r.fold.At // tried again after as many acts
	if err != nil {
		r.log().Warn("the webhooks could not be kept, the next start reads more", "error", err)
	}
}
