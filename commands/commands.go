// Package commands is the write side: it turns what somebody asks into facts
// of the ledger.
//
// Every command goes the same way, through [Commands.execute]: take the state
// from the keyring, ask the rules, append with the sequence that the state was
// read at, and, when somebody else was faster, do it all again. It answers when
// the facts are on disk and this node's keyring has applied them, so that the
// next request here already sees them. A [*domain.Refusal] means that nothing
// was recorded. Any other error means that it is not known to have been: ask
// again with the same idempotency key.
package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections/keyring"
)

// patience bounds one command: conflicts and lost answers are resolved within it.
const patience = 15 * time.Second

// Commands carries out commands. The zero value of its fields Now and Random
// means the clock and crypto/rand.
type Commands struct {
	Ledger *ledger.Ledger
	Ring   *keyring.Ring
	Now    func() time.Time
	Random io.Reader

	// Appended, where it is set, is called with every batch that was stored: the
	// sequence of its first fact, when it was given to the server and when that had
	// acknowledged it. It MUST NOT block.
	Appended func(first uint64, batch []ledger.Expect, began, acknowledged time.Time)
}

// Request says who asks, how, and under which idempotency key.
type Request struct {
	Authority      domain.Authority
	Via            string // api, cli, console, dev
	RequestID      string // req_…
	IdempotencyKey string // empty: none
	Body           []byte // with an idempotency key: what the command is, whole
	IfMatch        *uint64
}

// Result is what a command has led to.
type Result struct {
	Key      *domain.Key
	Secret   string // the plaintext; only here, only once
	Replayed bool   // an earlier command with this idempotency key did it
	Sequence uint64 // of LEDGER, that a reader must have reached to see it
	At       time.Time
	Facts    []events.Envelope // what was recorded; empty when all was so already
}

// subject is what a command is about.
type subject struct{ keyspace, owner, key string }

// plan makes the command from the state it is decided in. It may be called
// several times and MUST NOT have other effects.
type plan func(s domain.State, now time.Time) (domain.Command, error)

func (c *Commands) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Commands) random() io.Reader {
	if c.Random != nil {
		return c.Random
	}
	return rand.Reader
}

// execute is the one way from a command to facts.
func (c *Commands) execute(ctx context.Context, q Request, action domain.Action, about subject, p plan) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command := events.NewID("cmd", c.now())
	if q.IdempotencyKey != "" {
		command = domain.CommandID(q.Authority.Actor, q.IdempotencyKey, q.Body)
	}
	// The sequences that a conflict showed: those of a subject with nothing
	// but void facts on it are known to no fold.
	floor := map[string]uint64{}
	for {
		now := c.now()
		if done, err := c.replay(ctx, command, now); done != nil || err != nil {
			return *or(done, &Result{}), err
		}
		if err := q.Authority.Require(action); err != nil {
			return Result{}, err
		}
		state, expect := c.Ring.State(about.keyspace, about.owner, about.key, now)
		if q.IfMatch != nil && state.Key != nil && *q.IfMatch != uint64(state.Key.Version) {
			return Result{}, &domain.Refusal{Kind: domain.Stale, Code: "VERSION_MISMATCH",
				Detail: fmt.Sprintf("The key is at version %d, not %d: read it again and decide anew.", state.Key.Version, *q.IfMatch)}
		}
		if q.IfMatch != nil && action == domain.Configure {
			version := 0
			if state.Keyspace != nil {
				version = state.Keyspace.DocumentVersion
			}
			if *q.IfMatch != uint64(version) {
				return Result{}, &domain.Refusal{Kind: domain.Stale, Code: "VERSION_MISMATCH",
					Detail: fmt.Sprintf("The document is at version %d, not %d: read it again and decide anew.", version, *q.IfMatch)}
			}
		}
		cmd, err := p(state, now)
		if err != nil {
			return Result{}, err
		}
		facts, err := domain.Decide(state, cmd, now)
		if err != nil {
			return Result{}, err
		}
		if err := q.Authority.Covers(state.Key, facts); err != nil {
			return Result{}, err
		}
		if len(facts) == 0 {
			return Result{Key: state.Key, Sequence: c.Ring.Sequence(), At: now}, nil
		}
		batch := envelopes(q, about, command, state, expect, floor, facts, now)
		began := time.Now()
		first, err := c.Ledger.AppendBatch(ctx, batch)
		if err == nil && c.Appended != nil {
			c.Appended(first, batch, began, time.Now())
		}
		if errors.Is(err, ledger.ErrConflict) {
			if err := c.catchUp(ctx, batch, floor); err != nil {
				return Result{}, err
			}
			continue
		}
		if err != nil {
			return Result{}, err
		}
		last := first + uint64(len(batch)) - 1
		if err := c.Ring.Wait(ctx, last); err != nil {
			return Result{}, err
		}
		r := Result{Key: c.Ring.Key(about.key), Sequence: last, At: now}
		for _, x := range batch {
			r.Facts = append(r.Facts, x.Event)
		}
		return r, nil
	}
}

func or[T any](v, otherwise *T) *T {
	if v != nil {
		return v
	}
	return otherwise
}

// replay answers a command whose idempotency key took effect before.
func (c *Commands) replay(ctx context.Context, command string, now time.Time) (*Result, error) {
	which, what, ok := domain.SplitCommandID(command)
	if !ok {
		return nil, nil
	}
	done, ok := c.Ring.Done(which, now)
	if !ok {
		return nil, nil
	}
	if done.What != what {
		return nil, &domain.Refusal{Kind: domain.Conflict, Code: "IDEMPOTENCY_KEY_REUSED",
			Detail: "This Idempotency-Key was used for another command in the last 24 hours: take a new one."}
	}
	// The keyring may be in the midst of the command's facts. They were stored together,
	// so that all of them lie at or before the head.
	head, err := c.Ledger.Head(ctx, events.Ledger)
	if err != nil {
		return nil, err
	}
	if err := c.Ring.Wait(ctx, head); err != nil {
		return nil, err
	}
	if last, ok := c.Ring.Done(which, now); ok {
		done = last
	}
	return &Result{Key: c.Ring.Key(done.Key), Replayed: true, Sequence: done.Sequence, At: now}, nil
}

// catchUp brings the keyring to where the ledger is on the subjects of a batch
// that met a conflict.
func (c *Commands) catchUp(ctx context.Context, batch []ledger.Expect, floor map[string]uint64) error {
	for _, x := range batch {
		s := events.Subject(x.Event.Keyspace, x.Event.Owner, x.Event.Key)
		last, ok, err := c.Ledger.Last(ctx, s)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		floor[s] = last.Sequence
		if err := c.Ring.Wait(ctx, last.Sequence); err != nil {
			return err
		}
	}
	return nil
}

func envelopes(q Request, about subject, command string, s domain.State, expect keyring.Expect, floor map[string]uint64, facts []events.Payload, now time.Time) []ledger.Expect {
	var keyspace, owner, key uint64
	if s.Keyspace != nil {
		keyspace = uint64(s.Keyspace.Version)
	}
	if s.Owner != nil {
		owner = uint64(s.Owner.Version)
	}
	if s.Key != nil {
		key = uint64(s.Key.Version)
	}
	batch := make([]ledger.Expect, len(facts))
	for i, f := range facts {
		e := events.New(f, now)
		e.Keyspace, e.Actor, e.Via, e.RequestID, e.Command = about.keyspace, q.Authority.Actor, q.Via, q.RequestID, command
		var expected uint64
		switch f.(type) {
		case events.KeyspaceConfigured:
			keyspace++
			e.KeyVersion, expected = keyspace, expect.Keyspace
		case events.OwnerRegistered, events.OwnerPlanChanged, events.OwnerKeyAdmitted:
			owner++
			e.Owner, e.KeyVersion, expected = about.owner, owner, expect.Owner
		default:
			key++
			e.Owner, e.Key, e.KeyVersion, expected = about.owner, about.key, key, expect.Key
		}
		batch[i] = ledger.Expect{
			Expected: max(expected, floor[events.Subject(e.Keyspace, e.Owner, e.Key)]),
			Event:    e,
		}
	}
	return batch
}

// ConfigureKeyspace gives a keyspace the document, or says with Facts empty
// that it has it already. With dry the facts are only shown.
func (c *Commands) ConfigureKeyspace(ctx context.Context, q Request, doc *domain.Document, dry bool) (Result, error) {
	about := subject{keyspace: doc.Keyspace}
	p := func(s domain.State, now time.Time) (domain.Command, error) {
		return domain.ConfigureKeyspace{Document: doc, Users: c.Ring.Users(doc.Keyspace)}, nil
	}
	if !dry {
		return c.execute(ctx, q, domain.Configure, about, p)
	}
	if err := q.Authority.Require(domain.Configure); err != nil {
		return Result{}, err
	}
	now := c.now()
	state, expect := c.Ring.State(about.keyspace, "", "", now)
	cmd, _ := p(state, now)
	facts, err := domain.Decide(state, cmd, now)
	if err != nil {
		return Result{}, err
	}
	r := Result{Sequence: c.Ring.Sequence(), At: now}
	for _, x := range envelopes(q, about, "", state, expect, nil, facts, now) {
		r.Facts = append(r.Facts, x.Event)
	}
	return r, nil
}

// SetOwner registers or changes an owner.
func (c *Commands) SetOwner(ctx context.Context, q Request, keyspace, owner string, cmd domain.SetOwner) (Result, error) {
	if err := c.reach(q, keyspace, owner); err != nil {
		return Result{}, err
	}
	if !domain.ValidEntityID(owner) {
		return Result{}, &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.",
			Problems: []domain.Problem{{Path: "owner", Message: "is not an id", Fix: "letters, digits, - and _, at most 64, not starting with - or _"}}}
	}
	return c.execute(ctx, q, domain.OwnersWrite, subject{keyspace: keyspace, owner: owner},
		func(domain.State, time.Time) (domain.Command, error) { return cmd, nil })
}

// reach hides keyspaces and owners that are not the caller's to see.
func (c *Commands) reach(q Request, keyspace, owner string) error {
	if keyspace == events.RootKeyspace || q.Authority.Reach != nil && q.Authority.Reach.Keyspace != keyspace || c.Ring.Keyspace(keyspace) == nil {
		return domain.KeyspaceNotFound()
	}
	if q.Authority.Reach != nil && q.Authority.Reach.Owner != owner {
		return domain.OwnerNotFound()
	}
	return nil
}

// CreateKey makes a key and its secret.
func (c *Commands) CreateKey(ctx context.Context, q Request, keyspace, owner string, cmd domain.CreateKey) (Result, error) {
	if err := q.Authority.Require(domain.KeysCreate); err != nil {
		return Result{}, err
	}
	if err := c.reach(q, keyspace, owner); err != nil {
		return Result{}, err
	}
	return c.create(ctx, q, domain.KeysCreate, keyspace, owner, cmd)
}

func (c *Commands) create(ctx context.Context, q Request, action domain.Action, keyspace, owner string, cmd domain.CreateKey) (Result, error) {
	var err error
	var plain string
	cmd.ID = c.newKeyID(q)
	r, err := c.execute(ctx, q, action, subject{keyspace, owner, cmd.ID}, func(s domain.State, now time.Time) (domain.Command, error) {
		if plain == "" && s.Keyspace != nil {
			if plain, cmd.Secret, err = c.draw(s.Keyspace, cmd.Environment); err != nil {
				return nil, err
			}
		}
		return cmd, nil
	})
	if err == nil && !r.Replayed {
		r.Secret = plain
	}
	return r, err
}

// draw makes a secret. For an environment that does not exist it draws one for
// the default environment, which Decide then refuses with everything else that
// is wrong.
func (c *Commands) draw(ks *domain.Keyspace, environment string) (string, events.Secret, error) {
	if _, ok := ks.Format.Prefixes[environment]; !ok {
		environment = ks.Format.DefaultEnvironment
	}
	return ks.NewSecret(c.random(), environment)
}

// newKeyID is random, or derived from the idempotency key, so that two
// processes that get the same command meet on one subject. An idempotency key
// that comes back after it was forgotten names the next key.
func (c *Commands) newKeyID(q Request) string {
	if q.IdempotencyKey == "" {
		return events.NewID("key", c.now())
	}
	forgotten := events.At(c.now().Add(-keyring.Remembered))
	for n := 0; ; n++ {
		id := domain.DerivedKeyID("create", q.Authority.Actor.Type, q.Authority.Actor.ID, q.IdempotencyKey, strconv.Itoa(n))
		if k := c.Ring.Key(id); k == nil || k.CreatedAt >= forgotten {
			return id
		}
	}
}

// ImportKey makes a key from the hash of a secret that its customer already
// has. The id is derived from the hash, so that no race imports it twice.
func (c *Commands) ImportKey(ctx context.Context, q Request, keyspace, owner string, cmd domain.CreateKey) (Result, error) {
	if err := q.Authority.Require(domain.KeysCreate); err != nil {
		return Result{}, err
	}
	if err := c.reach(q, keyspace, owner); err != nil {
		return Result{}, err
	}
	cmd.Imported = true
	cmd.ID = domain.DerivedKeyID("import", keyspace, cmd.Secret.SHA256)
	return c.execute(ctx, q, domain.KeysCreate, subject{keyspace, owner, cmd.ID}, func(s domain.State, _ time.Time) (domain.Command, error) {
		if err := c.known(s.Keyspace, cmd.Secret); err != nil {
			return nil, err
		}
		return cmd, nil
	})
}

func (c *Commands) known(ks *domain.Keyspace, secret events.Secret) error {
	if ks == nil {
		return nil
	}
	hash, ok := domain.ParseHash(secret.SHA256)
	switch {
	case ok && c.Ring.BySecret(ks.Document.Keyspace, hash) != nil:
		return &domain.Refusal{Kind: domain.Conflict, Code: "KEY_EXISTS", Detail: "A key with this secret is already known."}
	case len(secret.First) > ks.Display.First || len(secret.Last) > ks.Display.Last:
		return &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.",
			Problems: []domain.Problem{{Path: "first", Message: "shows more of the secret than the keyspace's document allows",
				Fix: fmt.Sprintf("at most the first %d and the last %d characters", ks.Display.First, ks.Display.Last)}}}
	}
	return nil
}

// key runs a command on an existing key.
func (c *Commands) key(ctx context.Context, q Request, action domain.Action, id string, p plan) (Result, error) {
	k := c.Ring.Key(id)
	if k == nil || !q.Authority.Reaches(k.Keyspace, k.Owner) {
		return Result{}, domain.KeyNotFound()
	}
	return c.execute(ctx, q, action, subject{k.Keyspace, k.Owner, k.ID}, p)
}

func fixed(cmd domain.Command) plan {
	return func(domain.State, time.Time) (domain.Command, error) { return cmd, nil }
}

// UpdateKey changes what a key may do.
func (c *Commands) UpdateKey(ctx context.Context, q Request, id string, cmd domain.UpdateKey) (Result, error) {
	return c.key(ctx, q, domain.KeysUpdate, id, fixed(cmd))
}

// RotateKey gives a key a new secret.
func (c *Commands) RotateKey(ctx context.Context, q Request, id string, cmd domain.RotateKey) (Result, error) {
	var plain string
	r, err := c.key(ctx, q, domain.KeysRotate, id, func(s domain.State, now time.Time) (_ domain.Command, err error) {
		if plain == "" && s.Key != nil {
			if plain, cmd.Secret, err = c.draw(s.Keyspace, s.Key.Environment); err != nil {
				return nil, err
			}
		}
		return cmd, nil
	})
	if err == nil && !r.Replayed {
		r.Secret = plain
	}
	return r, err
}

// EndGrace ends every running grace of a key.
func (c *Commands) EndGrace(ctx context.Context, q Request, id string, cmd domain.EndGrace) (Result, error) {
	return c.key(ctx, q, domain.KeysRotate, id, fixed(cmd))
}

// RevokeKey refuses a key for ever.
func (c *Commands) RevokeKey(ctx context.Context, q Request, id string, cmd domain.RevokeKey) (Result, error) {
	return c.key(ctx, q, domain.KeysRevoke, id, fixed(cmd))
}

// DeleteKey takes a key off every list.
func (c *Commands) DeleteKey(ctx context.Context, q Request, id string) (Result, error) {
	return c.key(ctx, q, domain.KeysDelete, id, fixed(domain.DeleteKey{}))
}

// CreateRootKey makes a key for keyledger itself.
func (c *Commands) CreateRootKey(ctx context.Context, q Request, cmd domain.CreateKey) (Result, error) {
	if cmd.For != nil {
		if c.Ring.Keyspace(cmd.For.Keyspace) == nil {
			return Result{}, domain.KeyspaceNotFound()
		}
		if c.Ring.Owner(cmd.For.Keyspace, cmd.For.Owner) == nil {
			return Result{}, domain.OwnerNotFound()
		}
	}
	return c.create(ctx, q, domain.RootKeys, events.RootKeyspace, "", cmd)
}

// ResetRoot replaces lost operator keys: it makes a new one and revokes all
// the others. Only whoever owns the machine can ask for it; it is recorded.
func (c *Commands) ResetRoot(ctx context.Context, q Request, name string) (Result, error) {
	r, err := c.CreateRootKey(ctx, q, domain.CreateKey{Name: name, Role: domain.Operator})
	if err != nil {
		return Result{}, err
	}
	act := events.RootKeyReset{Key: r.Key.ID, Revoked: []string{}}
	for k := range c.Ring.Keys(events.RootKeyspace, "") {
		if k.Role == domain.Operator && k.ID != r.Key.ID && k.Active(events.At(c.now())) {
			if _, err := c.RevokeKey(ctx, q, k.ID, domain.RevokeKey{Reason: "root key reset"}); err != nil {
				return r, err
			}
			act.Revoked = append(act.Revoked, k.ID)
		}
	}
	e := events.New(act, c.now())
	e.Keyspace, e.Key, e.Actor, e.Via, e.RequestID = events.RootKeyspace, r.Key.ID, q.Authority.Actor, q.Via, q.RequestID
	_, err = c.Ledger.AppendOps(ctx, e)
	return r, err
}
