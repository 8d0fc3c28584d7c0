package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// GrantRequest are the fields that a new key and an imported one share.
type GrantRequest struct {
	Keyspace       string            `json:"keyspace" example:"parcelbird"`
	Owner          string            `json:"owner" doc:"A registered owner." example:"org_1"`
	Name           string            `json:"name" doc:"What people call the key; not for personal data." example:"CI"`
	Environment    string            `json:"environment,omitempty" doc:"One of the keyspace's; absent: its default." example:"live"`
	Plan           string            `json:"plan,omitempty" doc:"A plan of the key's own; absent: the owner's counts."`
	Scopes         *[]string         `json:"scopes,omitempty" doc:"Absent: none, or the keyspace's fixed ones."`
	Resources      []string          `json:"resources,omitempty" doc:"What the key is bound to; absent: nothing."`
	ExpiresAt      moment            `json:"expires_at,omitzero" doc:"Any future time; null: never; absent: the keyspace's default."`
	ExpiresIn      string            `json:"expires_in,omitempty" doc:"Instead of expires_at: a time from now, such as 30d or 24h." example:"30d"`
	Limits         map[string]*int64 `json:"limits,omitempty" doc:"Requests per minute, hour and day, where the keyspace takes limits from the key. null: unlimited; a window not named takes the keyspace's default."`
	AllowedOrigins []string          `json:"allowed_origins,omitempty" doc:"Absent or empty: all."`
	AllowedIPs     []string          `json:"allowed_ips,omitempty" doc:"Addresses and networks; absent or empty: all."`
	Meta           map[string]string `json:"meta,omitempty" doc:"Business data; not for personal data."`
}

func (g *GrantRequest) command() (domain.CreateKey, error) {
	cmd := domain.CreateKey{
		Name: g.Name, Environment: g.Environment, Plan: g.Plan, Scopes: g.Scopes, Resources: g.Resources, Limits: g.Limits,
		AllowedOrigins: g.AllowedOrigins, AllowedIPs: g.AllowedIPs, ExpiresAt: g.ExpiresAt.pointer(), Meta: g.Meta,
	}
	if g.ExpiresIn != "" {
		d, err := duration("expires_in", g.ExpiresIn)
		if err != nil {
			return cmd, err
		}
		cmd.ExpiresIn = &d
	}
	return cmd, nil
}

// KeyRequest asks for a new key.
type KeyRequest struct {
	GrantRequest
	Claim *ClaimRequest `json:"claim,omitempty" doc:"The secret is not answered: it waits for whoever opens the link that is."`
}

// KeyPatch changes the fields that are there.
type KeyPatch struct {
	Name           *string            `json:"name,omitempty"`
	Plan           text               `json:"plan,omitzero" doc:"null: the owner's plan counts again."`
	Scopes         *[]string          `json:"scopes,omitempty"`
	Resources      *[]string          `json:"resources,omitempty"`
	Limits         *map[string]*int64 `json:"limits,omitempty" doc:"A window not named stays as it is; null: unlimited."`
	AllowedOrigins *[]string          `json:"allowed_origins,omitempty"`
	AllowedIPs     *[]string          `json:"allowed_ips,omitempty"`
	ExpiresAt      moment             `json:"expires_at,omitzero" doc:"A future time; null: never."`
	Meta           *map[string]string `json:"meta,omitempty" doc:"Replaces all of it."`
}

// RotateRequest asks for a new secret.
type RotateRequest struct {
	Grace    grace  `json:"grace,omitzero" doc:"How long the previous secret still works: 24h; 0 ends it at once; absent: the keyspace's default."`
	EndGrace bool   `json:"end_grace,omitempty" doc:"Also end the grace of the secrets before the current one."`
	Reason   string `json:"reason,omitempty" example:"quarterly rotation"`

	Claim *ClaimRequest `json:"claim,omitempty" doc:"The new secret is not answered: it waits for whoever opens the link that is."`
}

// ReasonRequest gives the reason for a change.
type ReasonRequest struct {
	Reason string `json:"reason,omitempty" example:"leaked in a build log"`
}

// LookupRequest says what is known of a secret.
type LookupRequest struct {
	Keyspace string `json:"keyspace" example:"parcelbird"`
	First    string `json:"first,omitempty" doc:"The first characters of the whole secret." example:"pb_live_3fA9"`
	Last     string `json:"last,omitempty" doc:"The last characters of the whole secret." example:"k2Qz"`
	Secret   string `json:"secret,omitempty" doc:"A whole secret that has leaked. It is hashed, compared and forgotten." writeOnly:"true"`
}

// KeySecret is a key with its secret, which is answered this once.
type KeySecret struct {
	Key      Key     `json:"key"`
	Secret   *string `json:"secret" doc:"The whole secret. It is kept nowhere and never answered again; null when the command was replayed, and with claim." example:"pb_live_3fA9c1b2d4e5f6a7b8c9d0e1f2a3b4c5d6k2Qz"`
	Replayed bool    `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`

	Claim *ClaimLink `json:"claim,omitempty" doc:"Where one was asked for; like a secret it is answered this once."`
}

// KeyChanged is a key after a command.
type KeyChanged struct {
	Key      Key  `json:"key"`
	Replayed bool `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`
}

// GraceEnded is a key after the end of its grace.
type GraceEnded struct {
	Key                      Key         `json:"key"`
	PreviousSecretLastUsedAt events.Time `json:"previous_secret_last_used_at" doc:"The last use of a previous secret; null: none is known."`
	Replayed                 bool        `json:"replayed,omitempty" doc:"true: this Idempotency-Key had taken effect before."`
}

// Keys are some keys.
type Keys struct {
	Keys []Key `json:"keys" nullable:"false"`
}

// KeyPath names a key.
type KeyPath struct {
	ID string `path:"id" doc:"The key's id." example:"key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
}

// Changed are the headers of a key after a command.
type Changed struct {
	LedgerSequence uint64 `header:"Ledger-Sequence" doc:"What a reader must have reached to see this."`
	ETag           string `header:"ETag" doc:"The key's version, for If-Match." example:"\"1\""`
	CacheControl   string `header:"Cache-Control" doc:"no-store"`
}

type keyCreated struct {
	Location string `header:"Location" doc:"Where the key is read." example:"/v1/keys/key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d"`
	Changed
	Body KeySecret
}

type keySecret struct {
	Changed
	Body KeySecret
}

type keyChanged struct {
	Changed
	Body KeyChanged
}

func (a *API) keys() {
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "create-key", Method: http.MethodPost, Path: "/v1/keys", Tags: []string{"Keys"},
			Summary:     "Create a key",
			Description: "Makes a key and its secret, which is answered this once. At the cap of the plan in force it is refused with KEY_LIMIT_REACHED, count and limit; under a plan without access with PLAN_DENIED.",
		},
		action: domain.KeysCreate, command: true, status: http.StatusCreated,
	}, a.createKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "get-key", Method: http.MethodGet, Path: "/v1/keys/{id}", Tags: []string{"Keys"},
			Summary:     "Show a key",
			Description: "One key from this node's memory, which always has this node's own writes; last use and use count are those of the read models, as far as they can be reached. With as_of: the key as it was, its uses not told, and Ledger-Sequence the place in LEDGER that the moment is.",
		},
		action: domain.KeysRead, read: true,
	}, a.getKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "update-key", Method: http.MethodPatch, Path: "/v1/keys/{id}", Tags: []string{"Keys"},
			Summary: "Change a key", Description: "Changes the fields that are sent and no other.",
		},
		action: domain.KeysUpdate, command: true,
	}, a.updateKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "rotate-key", Method: http.MethodPost, Path: "/v1/keys/{id}/rotate", Tags: []string{"Keys"},
			Summary:     "Rotate a key",
			Description: "Gives the key a new secret; its id, scopes, limits, usage and history stay. The previous secret works until grace_until.",
		},
		action: domain.KeysRotate, command: true, bodyOptional: true,
	}, a.rotateKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "end-grace", Method: http.MethodPost, Path: "/v1/keys/{id}/end-grace", Tags: []string{"Keys"},
			Summary:     "End the grace of a key",
			Description: "Ends every running grace now, and answers when a previous secret was last used. Without a grace nothing is recorded.",
		},
		action: domain.KeysRotate, command: true, bodyOptional: true,
	}, a.endGrace)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "revoke-key", Method: http.MethodPost, Path: "/v1/keys/{id}/revoke", Tags: []string{"Keys"},
			Summary: "Revoke a key", Description: "Refuses the key for ever. Revoking a revoked key changes and records nothing.",
		},
		action: domain.KeysRevoke, command: true, bodyOptional: true,
	}, a.revokeKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "delete-key", Method: http.MethodDelete, Path: "/v1/keys/{id}", Tags: []string{"Keys"},
			Summary: "Delete a key", Description: "Takes the key off every list, revoking it first where it is not. Its history stays.",
		},
		action: domain.KeysDelete, command: true,
	}, a.deleteKey)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "lookup-keys", Method: http.MethodPost, Path: "/v1/keys/lookup", Tags: []string{"Keys"},
			Summary:     "Find keys by what is known of a secret",
			Description: "By the first or last characters of the whole secret, as many as were kept, or by a leaked secret, also a rotated-away one. Deleted keys are not found. At most 1,000 are answered.",
		},
		action: domain.KeysRead, read: true,
	}, a.lookupKeys)
}

// extrasTime is how long an answer about one key waits for what only the read
// models know: it goes out without that when they are away.
const extrasTime = 500 * time.Millisecond

// view is a key with what only the read models know.
func (a *API) view(ctx context.Context, k *domain.Key) Key {
	v := queries.ViewOf(k, a.Now())
	x := a.extra(ctx, k.ID)
	v.LastUsedAt, v.UseCount = x.LastUsedAt, &x.UseCount
	a.showLimited(&v, k)
	return Key(v)
}

// showLimited says of an active key that a limit of it is used up on this node.
// k may be nil.
func (a *API) showLimited(v *queries.KeyView, k *domain.Key) {
	if v.Status == "active" && k != nil && a.Verifier != nil && a.Verifier.Limited(k) {
		v.Status = "rate_limited"
	}
}

func (a *API) extra(ctx context.Context, id string) queries.Extra {
	if a.Queries == nil {
		return queries.Extra{}
	}
	ctx, cancel := context.WithTimeout(ctx, extrasTime)
	defer cancel()
	found, err := a.Queries.Extras(ctx, id)
	if err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "a key is answered without its uses", slog.String("request_id", callOf(ctx).requestID), slog.Any("error", err))
	}
	return found[id]
}

func (a *API) changed(r commands.Result) Changed {
	return Changed{LedgerSequence: r.Sequence, ETag: etag(r.Key), CacheControl: "no-store"}
}

func etag(k *domain.Key) string { return fmt.Sprintf("%q", fmt.Sprint(k.Version)) }

func (a *API) secretAnswer(ctx context.Context, r commands.Result) *keySecret {
	out := &keySecret{Changed: a.changed(r), Body: KeySecret{Key: a.view(ctx, r.Key), Replayed: r.Replayed}}
	if r.Secret != "" {
		out.Body.Secret = &r.Secret
	}
	return out
}

func (a *API) createdAnswer(ctx context.Context, r commands.Result) *keyCreated {
	s := a.secretAnswer(ctx, r)
	return &keyCreated{"/v1/keys/" + r.Key.ID, s.Changed, s.Body}
}

func (a *API) changedAnswer(ctx context.Context, r commands.Result, err error) (*keyChanged, error) {
	if err != nil {
		return nil, err
	}
	return &keyChanged{a.changed(r), KeyChanged{a.view(ctx, r.Key), r.Replayed}}, nil
}

type createInput struct{ Body KeyRequest }

func (a *API) createKey(ctx context.Context, in *createInput) (*keyCreated, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	cmd, err := in.Body.command()
	if err != nil {
		return nil, err
	}
	lasts, err := a.claimFor(in.Body.Claim)
	if err != nil {
		return nil, err
	}
	r, err := a.Commands.CreateKey(ctx, q, in.Body.Keyspace, in.Body.Owner, cmd)
	if err != nil {
		return nil, err
	}
	out := a.createdAnswer(ctx, r)
	return out, a.claim(ctx, r, lasts, &out.Body)
}

// key is one that the caller may see, and that is not deleted.
func (a *API) key(ctx context.Context, id string) (*domain.Key, error) {
	k := a.Ring.Key(id)
	switch {
	case k == nil || !callOf(ctx).authority.Reaches(k.Keyspace, k.Owner):
		return nil, domain.KeyNotFound()
	case k.Deleted():
		return nil, &domain.Refusal{Kind: domain.Gone, Code: "KEY_DELETED", Detail: "This key was deleted."}
	}
	return k, nil
}

type keyOutput struct {
	ETag           string `header:"ETag" doc:"The key's version, for If-Match." example:"\"1\""`
	LedgerSequence uint64 `header:"Ledger-Sequence" doc:"How far this node's memory was."`
	Body           Key
}

type getKeyInput struct {
	KeyPath
	AsOf string `query:"as_of" doc:"A time, a sequence of LEDGER, or now: the key as it was then." example:"2026-01-18T12:00:00.000Z"`
}

func (a *API) getKey(ctx context.Context, in *getKeyInput) (*keyOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	if in.AsOf != "" {
		return a.keyAsOf(ctx, in.ID, in.AsOf)
	}
	sequence := a.Ring.Sequence()
	k, err := a.key(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &keyOutput{etag(k), sequence, a.view(ctx, k)}, nil
}

type patchInput struct {
	KeyPath
	Body KeyPatch
}

func (a *API) updateKey(ctx context.Context, in *patchInput) (*keyChanged, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	if err := nulls(callOf(ctx).body, "plan", "expires_at"); err != nil {
		return nil, err
	}
	p := in.Body
	r, err := a.Commands.UpdateKey(ctx, q, in.ID, domain.UpdateKey{
		Name: p.Name, Plan: p.Plan.pointer(), Scopes: p.Scopes, Resources: p.Resources, Limits: p.Limits,
		AllowedOrigins: p.AllowedOrigins, AllowedIPs: p.AllowedIPs, ExpiresAt: p.ExpiresAt.pointer(), Meta: p.Meta,
	})
	return a.changedAnswer(ctx, r, err)
}

// nulls refuses null where it would be read as "leave it as it is".
func nulls(body []byte, may ...string) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		return nil
	}
	var wrong []Detail
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if string(fields[name]) == "null" && !slices.Contains(may, name) {
			wrong = append(wrong, Detail{Path: name, Message: "is null", Fix: "leave it out to keep it, or send an empty value"})
		}
	}
	if len(wrong) > 0 {
		return unprocessable(wrong...)
	}
	return nil
}

type rotateInput struct {
	KeyPath
	Body *RotateRequest
}

func (a *API) rotateKey(ctx context.Context, in *rotateInput) (*keySecret, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	cmd := domain.RotateKey{}
	var lasts time.Duration
	if b := in.Body; b != nil {
		if lasts, err = a.claimFor(b.Claim); err != nil {
			return nil, err
		}
		cmd.EndGrace, cmd.Reason = b.EndGrace, b.Reason
		if b.Grace != "" {
			d, err := duration("grace", string(b.Grace))
			if err != nil {
				return nil, err
			}
			cmd.Grace = &d
		}
	}
	r, err := a.Commands.RotateKey(ctx, q, in.ID, cmd)
	if err != nil {
		return nil, err
	}
	out := a.secretAnswer(ctx, r)
	return out, a.claim(ctx, r, lasts, &out.Body)
}

type reasonInput struct {
	KeyPath
	Body *ReasonRequest
}

func (in *reasonInput) reason() string {
	if in.Body == nil {
		return ""
	}
	return in.Body.Reason
}

type graceEnded struct {
	Changed
	Body GraceEnded
}

func (a *API) endGrace(ctx context.Context, in *reasonInput) (*graceEnded, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	r, err := a.Commands.EndGrace(ctx, q, in.ID, domain.EndGrace{Reason: in.reason()})
	if err != nil {
		return nil, err
	}
	used := a.extra(ctx, in.ID).PreviousUsedAt
	return &graceEnded{a.changed(r), GraceEnded{a.view(ctx, r.Key), used, r.Replayed}}, nil
}

func (a *API) revokeKey(ctx context.Context, in *reasonInput) (*keyChanged, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	r, err := a.Commands.RevokeKey(ctx, q, in.ID, domain.RevokeKey{Reason: in.reason()})
	return a.changedAnswer(ctx, r, err)
}

func (a *API) deleteKey(ctx context.Context, in *KeyPath) (*keyChanged, error) {
	q, err := a.request(ctx)
	if err != nil {
		return nil, err
	}
	r, err := a.Commands.DeleteKey(ctx, q, in.ID)
	return a.changedAnswer(ctx, r, err)
}

// maxFound is how many keys a lookup answers.
const maxFound = 1000

type lookupInput struct{ Body LookupRequest }

type keysOutput struct{ Body Keys }

func (a *API) lookupKeys(ctx context.Context, in *lookupInput) (*keysOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	q, authority := in.Body, callOf(ctx).authority
	if q.Secret == "" && q.First == "" && q.Last == "" {
		return nil, unprocessable(Detail{Path: "first", Message: "nothing is said about the secret", Fix: "send first, last or secret"})
	}
	if q.Keyspace != events.RootKeyspace || authority.Role != domain.Operator {
		if _, err := a.keyspace(ctx, q.Keyspace); err != nil {
			return nil, err
		}
	}
	out := &keysOutput{Keys{Keys: []Key{}}}
	now := events.At(time.Now())
	for k := range a.candidates(q, authority) {
		if k.Deleted() || !authority.Reaches(k.Keyspace, k.Owner) || !matches(k, q, now) {
			continue
		}
		if out.Body.Keys = append(out.Body.Keys, a.view(ctx, k)); len(out.Body.Keys) == maxFound {
			break
		}
	}
	return out, nil
}

func (a *API) candidates(q LookupRequest, authority domain.Authority) func(func(*domain.Key) bool) {
	return func(yield func(*domain.Key) bool) {
		if q.Secret != "" {
			if k := a.Ring.BySecret(q.Keyspace, domain.HashSecret(q.Secret)); k != nil {
				yield(k)
			}
			return
		}
		owners := []string{""} // of root keys
		if q.Keyspace != events.RootKeyspace {
			owners = nil
			for _, o := range a.Ring.Owners(q.Keyspace) {
				if authority.Reaches(q.Keyspace, o.ID) {
					owners = append(owners, o.ID)
				}
			}
			slices.Sort(owners)
		}
		for _, o := range owners {
			for k := range a.Ring.Keys(q.Keyspace, o) {
				if !yield(k) {
					return
				}
			}
		}
	}
}

// matches compares what is asked with what was kept of a key's secrets that work;
// where nothing was kept nothing can be compared.
func matches(k *domain.Key, q LookupRequest, now events.Time) bool {
	if q.Secret != "" || shows(q, k.First, k.Last) {
		return true
	}
	return k.More != nil && slices.ContainsFunc(k.Earlier, func(e domain.Earlier) bool { return now < e.Until && shows(q, e.First, e.Last) })
}

func shows(q LookupRequest, first, last string) bool {
	compared := false
	if q.First != "" && first != "" {
		if !strings.HasPrefix(q.First, first) && !strings.HasPrefix(first, q.First) {
			return false
		}
		compared = true
	}
	if q.Last != "" && last != "" {
		if !strings.HasSuffix(q.Last, last) && !strings.HasSuffix(last, q.Last) {
			return false
		}
		compared = true
	}
	return compared
}
