package webhooks

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// Registration says what to send where.
type Registration struct {
	URL         string
	Keyspace    string
	Owner       string
	Types       []string
	Keys        []string
	Description string
	After       *uint64 // sequence of FEED after which it begins; nil: its end
}

// Result is what an act has led to.
type Result struct {
	Webhook  Webhook
	Secret   string // whsec_…; only here, only once
	Replayed bool   // an earlier command with this idempotency key did it
	Changed  bool   // an act was recorded
	Sequence uint64 // in OPS, of the act
}

const (
	// MaxWebhooks is how many endpoints a keyspace and owner may have, and how many
	// those who name none.
	MaxWebhooks    = 100
	maxDescription = 500
	maxListed      = 100 // types, or keys
	secretBytes    = 32
)

// GraceDefault and GraceMax are for how long two secrets sign.
const (
	GraceDefault = 24 * time.Hour
	GraceMax     = 7 * 24 * time.Hour
)

// SecretPrefix begins a secret as Standard Webhooks writes it.
const SecretPrefix = "whsec_"

func newSecret() []byte {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails on a supported system
	return b
}

func written(secret []byte) string {
	return SecretPrefix + base64.StdEncoding.EncodeToString(secret)
}

// Check says everything that is wrong with a registration.
func (r *Registry) Check(x Registration) (wrong []domain.Problem) {
	if p := r.Policy.Check(x.URL); p != nil {
		wrong = append(wrong, *p)
	}
	if x.Owner != "" && x.Keyspace == "" {
		wrong = append(wrong, domain.Problem{Path: "keyspace", Message: "is missing, although an owner is named", Fix: "name the keyspace that the owner is in"})
	}
	if len(x.Types) > maxListed {
		wrong = append(wrong, domain.Problem{Path: "types", Message: "are too many", Fix: fmt.Sprintf("at most %d; a family such as key.* is one", maxListed)})
	}
	for i, t := range x.Types {
		if !slices.ContainsFunc(Types(), func(known string) bool { return means(t, known) }) {
			wrong = append(wrong, domain.Problem{Path: fmt.Sprintf("types.%d", i), Message: fmt.Sprintf("%q is no type that is sent", t),
				Fix: "one of " + strings.Join(Types(), ", ") + ", or a family such as key.*"})
		}
	}
	if len(x.Keys) > maxListed {
		wrong = append(wrong, domain.Problem{Path: "keys", Message: "are too many", Fix: fmt.Sprintf("at most %d; none: all of the owner or keyspace", maxListed)})
	}
	if !utf8.ValidString(x.Description) || utf8.RuneCountInString(x.Description) > maxDescription {
		wrong = append(wrong, domain.Problem{Path: "description", Message: "is too long", Fix: fmt.Sprintf("at most %d characters", maxDescription)})
	}
	return wrong
}

// Register makes an endpoint, with a secret that is answered this once.
func (r *Registry) Register(ctx context.Context, q commands.Request, x Registration) (Result, error) {
	if wrong := r.Check(x); len(wrong) > 0 {
		return Result{}, &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.", Problems: wrong}
	}
	secret := newSecret()
	out, err := r.act(ctx, q, func(f *fold) (*Webhook, events.Payload, error) {
		n := 0
		for _, w := range f.Hooks {
			if w.Keyspace == x.Keyspace && w.Owner == x.Owner {
				n++
			}
		}
		if n >= MaxWebhooks {
			return nil, nil, &domain.Refusal{Kind: domain.Conflict, Code: "WEBHOOK_LIMIT_REACHED", Detail: fmt.Sprintf("There are %d webhooks of this keyspace and owner, as many as there may be: remove one.", n)}
		}
		head, err := r.Ledger.Head(ctx, events.Feed)
		if err != nil {
			return nil, nil, err
		}
		after := head
		if x.After != nil {
			if after = *x.After; after > head {
				return nil, nil, &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.", Problems: []domain.Problem{
					{Path: "from", Message: fmt.Sprintf("is behind the end of FEED, which is at %d", head), Fix: "a sequence of FEED, or none to begin at its end"}}}
			}
		}
		w := &Webhook{ID: events.NewID("whk", r.now()), URL: x.URL, Keyspace: x.Keyspace, Owner: x.Owner, Types: cloned(x.Types), Keys: cloned(x.Keys)}
		return w, events.WebhookRegistered{Webhook: w.ID, URL: w.URL, Types: w.Types, Keys: w.Keys, Description: x.Description,
			Secret: r.Master.Wrap(secret, w.sealedFor()), After: after}, nil
	})
	if err == nil && out.Changed {
		out.Secret = written(secret)
	}
	return out, err
}

// Remove ends an endpoint.
func (r *Registry) Remove(ctx context.Context, q commands.Request, id string) (Result, error) {
	return r.act(ctx, q, func(f *fold) (*Webhook, events.Payload, error) {
		w, err := f.get(q.Authority, id)
		return &w, events.WebhookRemoved{Webhook: id}, err
	})
}

// Rotate gives an endpoint another secret, which is answered this once; the one before
// signs as well for the time of the grace.
func (r *Registry) Rotate(ctx context.Context, q commands.Request, id string, grace time.Duration) (Result, error) {
	if grace < 0 || grace > GraceMax {
		return Result{}, &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.", Problems: []domain.Problem{
			{Path: "grace", Message: "is too long, or below 0", Fix: "0s to 7d"}}}
	}
	secret := newSecret()
	out, err := r.act(ctx, q, func(f *fold) (*Webhook, events.Payload, error) {
		w, err := f.get(q.Authority, id)
		if err != nil {
			return nil, nil, err
		}
		// Who cannot open the one before would bless an endpoint that nobody registered.
		if _, err := w.Secrets(r.Master, r.now()); err != nil {
			return nil, nil, &domain.Refusal{Kind: domain.Conflict, Code: "WEBHOOK_DAMAGED", Detail: err.Error() + "."}
		}
		d := events.WebhookSecretRotated{Webhook: id, Secret: r.Master.Wrap(secret, w.sealedFor())}
		if grace > 0 {
			d.GraceUntil = events.At(r.now().Add(grace))
		}
		return &w, d, nil
	})
	if err == nil && out.Changed {
		out.Secret = written(secret)
	}
	return out, err
}

// Enable has what an endpoint has missed sent to it, and what follows. One that is
// enabled is left as it is.
func (r *Registry) Enable(ctx context.Context, q commands.Request, id string) (Result, error) {
	return r.act(ctx, q, func(f *fold) (*Webhook, events.Payload, error) {
		w, err := f.get(q.Authority, id)
		if err != nil || w.Disabled == "" {
			return &w, nil, err
		}
		return &w, events.WebhookEnabled{Webhook: id}, nil
	})
}

// Disable has nothing sent to an endpoint until it is enabled. One that is disabled, or
// gone, is left as it is.
func (r *Registry) Disable(ctx context.Context, q commands.Request, id, reason string) error {
	_, err := r.act(ctx, q, func(f *fold) (*Webhook, events.Payload, error) {
		w := f.Hooks[id]
		if w == nil || w.Disabled != "" {
			return &Webhook{ID: id}, nil, nil
		}
		return w, events.WebhookDisabled{Webhook: id, Reason: reason}, nil
	})
	return err
}

// patience bounds one act.
const patience = 15 * time.Second

// act appends what decide makes of the endpoints, as the next thing in OPS; whatever
// else came first is decided with. A payload of nil: there is nothing to record.
func (r *Registry) act(ctx context.Context, q commands.Request, decide func(*fold) (*Webhook, events.Payload, error)) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command := events.NewID("cmd", r.now())
	if q.IdempotencyKey != "" {
		command = domain.CommandID(q.Authority.Actor, q.IdempotencyKey, q.Body)
	}
	for {
		at, e, out, err := r.decided(ctx, q, command, decide)
		if err != nil || e == nil {
			return out, err
		}
		out.Sequence, err = r.Ledger.AppendOpsAfter(ctx, at, *e)
		if errors.Is(err, ledger.ErrConflict) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return Result{}, err
		}
		out.Changed = true
		if err := r.read(ctx); err != nil {
			return Result{}, err
		}
		if w := r.fold.Hooks[out.Webhook.ID]; w != nil {
			out.Webhook = *w
		}
		r.mu.Unlock()
		return out, nil
	}
}

// decided is an act that may be appended behind at; nil: there is nothing to record.
func (r *Registry) decided(ctx context.Context, q commands.Request, command string, decide func(*fold) (*Webhook, events.Payload, error)) (at uint64, e *events.Envelope, out Result, err error) {
	if err := r.read(ctx); err != nil {
		return 0, nil, out, err
	}
	defer r.mu.Unlock()
	if which, what, ok := domain.SplitCommandID(command); ok {
		if d, known := r.fold.Done[which]; known && events.At(r.now())-d.At <= events.Time(replayable.Milliseconds()) {
			if d.What != what {
				return 0, nil, out, &domain.Refusal{Kind: domain.Conflict, Code: "IDEMPOTENCY_KEY_REUSED",
					Detail: "This Idempotency-Key was used for another command in the last 24 hours: take a new one."}
			}
			return 0, nil, Result{Webhook: d.Webhook, Replayed: true}, nil
		}
	}
	w, data, err := decide(&r.fold)
	if err != nil {
		return 0, nil, out, err
	}
	out.Webhook = *w
	if data == nil {
		return 0, nil, out, nil
	}
	fact := events.New(data, r.now())
	fact.Actor, fact.Via, fact.RequestID, fact.Command = q.Authority.Actor, q.Via, q.RequestID, command
	fact.Keyspace, fact.Owner = w.Keyspace, w.Owner
	return r.fold.At, &fact, out, nil
}
