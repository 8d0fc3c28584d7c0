package webhooks

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

var master = seal.Master{7}

func open(t testing.TB, server *embedded.NATS, key seal.Master) *Registry {
	t.Helper()
	nc := testenv.Conn(t, server)
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), js, master, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return &Registry{Ledger: l, Master: key, Seal: keys, Log: slog.New(slog.DiscardHandler)}
}

var operator = commands.Request{Authority: domain.System("test"), Via: "api"}

func refusedWith(t *testing.T, err error, code string) {
	t.Helper()
	if r, ok := errors.AsType[*domain.Refusal](err); !ok || r.Code != code {
		t.Errorf("%v instead of %s", err, code)
	}
}

const hook = "https://example.com/hooks/1"

// An endpoint is known to every process as it was registered; its secret is in no
// stream and in no bucket in clear.
func TestRegister(t *testing.T) {
	server := testenv.NATS(t)
	one, two := open(t, server, master), open(t, server, master)
	x := Registration{URL: hook, Keyspace: "parcelbird", Owner: "org_1", Types: []string{"key.revoked", "alert.*"}, Keys: []string{"key_1"}, Description: "the console"}
	out, err := one.Register(t.Context(), operator, x)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.Secret, SecretPrefix) || !strings.HasPrefix(out.Webhook.ID, "whk_") {
		t.Fatalf("%+v", out)
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(out.Secret, SecretPrefix))
	if err != nil || len(secret) != 32 {
		t.Fatalf("a secret of %d bytes: %v", len(secret), err)
	}
	got, err := two.Get(t.Context(), operator.Authority, out.Webhook.ID)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(out.Webhook) {
		t.Errorf("%+v\n%+v", got, out.Webhook)
	}
	if s, err := got.Secrets(master, time.Now()); err != nil || len(s) != 1 || !bytes.Equal(s[0], secret) {
		t.Errorf("%x, %v", s, err)
	}
	for rec, err := range one.Ledger.Read(t.Context(), events.Ops, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(rec.Body, secret) || strings.Contains(string(rec.Body), strings.TrimPrefix(out.Secret, SecretPrefix)) {
			t.Errorf("the secret is in %s", rec.Body)
		}
	}
	one.mu.Lock()
	one.keep(t.Context())
	one.mu.Unlock()
	again := open(t, server, master)
	if all, err := again.All(t.Context()); err != nil || len(all) != 1 || again.kept == 0 {
		t.Errorf("%+v, %v, kept %d", all, err, again.kept)
	}

	for kind, want := range map[string]bool{"key.revoked": true, "alert.raised": true, "key.created": false} {
		if got.Wants(kind, "parcelbird", "org_1", "key_1") != want {
			t.Errorf("%s is wanted: %v", kind, !want)
		}
	}
	if got.Wants("key.revoked", "parcelbird", "org_1", "key_2") || got.Wants("key.revoked", "parcelbird", "org_2", "key_1") || got.Wants("key.revoked", "other", "org_1", "key_1") {
		t.Error("what is somebody else's is wanted")
	}

	for _, bad := range []Registration{
		{}, {URL: "http://example.com"}, {URL: hook, Owner: "org_1"}, {URL: hook, Types: []string{"key.nothing"}}, {URL: hook, Types: []string{"*"}}, {URL: hook, Types: []string{"audit.read"}},
		{URL: hook, Description: strings.Repeat("x", 501)}, {URL: hook, After: new(uint64(99))},
	} {
		_, err := one.Register(t.Context(), operator, bad)
		refusedWith(t, err, "INVALID")
	}
}

// Whoever is not reached, and whoever is not there, look alike.
func TestReach(t *testing.T) {
	r := open(t, testenv.NATS(t), master)
	out, err := r.Register(t.Context(), operator, Registration{URL: hook, Keyspace: "parcelbird", Owner: "org_1"})
	if err != nil {
		t.Fatal(err)
	}
	stranger := commands.Request{Authority: domain.Authority{Role: domain.Manager, Reach: &events.Reach{Keyspace: "parcelbird", Owner: "org_2"}}}
	for _, id := range []string{out.Webhook.ID, "whk_nobody"} {
		_, err := r.Get(t.Context(), stranger.Authority, id)
		refusedWith(t, err, "WEBHOOK_NOT_FOUND")
		_, err = r.Remove(t.Context(), stranger, id)
		refusedWith(t, err, "WEBHOOK_NOT_FOUND")
		_, err = r.Rotate(t.Context(), stranger, id, 0)
		refusedWith(t, err, "WEBHOOK_NOT_FOUND")
		_, err = r.Enable(t.Context(), stranger, id)
		refusedWith(t, err, "WEBHOOK_NOT_FOUND")
	}
}

// During the grace both secrets sign, afterwards the new one alone.
func TestRotate(t *testing.T) {
	r := open(t, testenv.NATS(t), master)
	out, err := r.Register(t.Context(), operator, Registration{URL: hook})
	if err != nil {
		t.Fatal(err)
	}
	id := out.Webhook.ID
	secrets := func(w Webhook, at time.Time) (all []string) {
		t.Helper()
		list, err := w.Secrets(master, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			all = append(all, written(s))
		}
		return all
	}
	next, err := r.Rotate(t.Context(), operator, id, time.Hour)
	if err != nil || next.Secret == "" || next.Secret == out.Secret {
		t.Fatalf("%+v, %v", next, err)
	}
	if got := secrets(next.Webhook, time.Now()); fmt.Sprint(got) != fmt.Sprint([]string{next.Secret, out.Secret}) {
		t.Errorf("%v sign", got)
	}
	if got := secrets(next.Webhook, time.Now().Add(2*time.Hour)); fmt.Sprint(got) != fmt.Sprint([]string{next.Secret}) {
		t.Errorf("%v sign after the grace", got)
	}
	last, err := r.Rotate(t.Context(), operator, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := secrets(last.Webhook, time.Now()); fmt.Sprint(got) != fmt.Sprint([]string{last.Secret}) {
		t.Errorf("%v sign without a grace", got)
	}
	_, err = r.Rotate(t.Context(), operator, id, 8*24*time.Hour)
	refusedWith(t, err, "INVALID")
}

// Somebody who can write to OPS and does not have the master key cannot make an
// endpoint, nor move one.
func TestForged(t *testing.T) {
	server := testenv.NATS(t)
	r := open(t, server, master)
	out, err := r.Register(t.Context(), operator, Registration{URL: hook})
	if err != nil {
		t.Fatal(err)
	}
	forge := func(d events.Payload) {
		t.Helper()
		if _, err := r.Ledger.AppendOps(t.Context(), events.New(d, time.Now())); err != nil {
			t.Fatal(err)
		}
	}
	forge(events.WebhookRegistered{Webhook: "whk_other_key", URL: hook, Secret: seal.Master{9}.Wrap([]byte("x"), "")})
	forge(events.WebhookRegistered{Webhook: "whk_moved", URL: "https://evil.example", Secret: out.Webhook.Secret})
	for _, id := range []string{"whk_other_key", "whk_moved"} {
		w, err := r.Get(t.Context(), operator.Authority, id)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := w.Secrets(master, time.Now()); err == nil {
			t.Errorf("%s has the secret %x", id, s)
		}
		_, err = r.Rotate(t.Context(), operator, id, 0)
		refusedWith(t, err, "WEBHOOK_DAMAGED")
	}
	if _, err := open(t, server, seal.Master{8}).Rotate(t.Context(), operator, out.Webhook.ID, 0); err == nil {
		t.Error("a service with another master key rotates")
	}
}

// A command with an idempotency key has one effect, whoever takes it how often.
func TestIdempotent(t *testing.T) {
	server := testenv.NATS(t)
	q := operator
	q.IdempotencyKey, q.Body = "one", []byte("register")
	var mu sync.Mutex
	var secrets, ids []string
	var all sync.WaitGroup
	for range 3 {
		r := open(t, server, master)
		all.Go(func() {
			for range 3 {
				out, err := r.Register(t.Context(), q, Registration{URL: hook})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ids = append(ids, out.Webhook.ID)
				if out.Secret != "" {
					secrets = append(secrets, out.Secret)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("ids %v", ids)
		}
	}
	if len(secrets) != 1 || len(ids) != 9 {
		t.Errorf("%d secrets of %d answers", len(secrets), len(ids))
	}
	r := open(t, server, master)
	other := q
	other.Body = []byte("another")
	_, err := r.Register(t.Context(), other, Registration{URL: hook})
	refusedWith(t, err, "IDEMPOTENCY_KEY_REUSED")
	gone := operator
	gone.IdempotencyKey, gone.Body = "two", []byte("remove")
	for _, replayed := range []bool{false, true} {
		out, err := r.Remove(t.Context(), gone, ids[0])
		if err != nil || out.Replayed != replayed || out.Webhook.ID != ids[0] {
			t.Errorf("%+v, %v", out, err)
		}
	}
	_, err = r.Remove(t.Context(), operator, ids[0])
	refusedWith(t, err, "WEBHOOK_NOT_FOUND")
}

// One that is disabled is so once, and enabled again as often as asked.
func TestDisabled(t *testing.T) {
	r := open(t, testenv.NATS(t), master)
	out, err := r.Register(t.Context(), operator, Registration{URL: hook})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Disable(t.Context(), operator, out.Webhook.ID, "410 Gone"); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := r.Get(t.Context(), operator.Authority, out.Webhook.ID); err != nil || w.Disabled != "410 Gone" || w.DisabledAt == 0 {
		t.Errorf("%+v, %v", w, err)
	}
	for _, changed := range []bool{true, false} {
		if got, err := r.Enable(t.Context(), operator, out.Webhook.ID); err != nil || got.Changed != changed || got.Webhook.Disabled != "" {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if head, err := r.Ledger.Head(t.Context(), events.Ops); err != nil || head != 3 {
		t.Errorf("%d acts, %v", head, err)
	}
	if err := r.Disable(t.Context(), operator, "whk_nobody", "x"); err != nil {
		t.Error(err)
	}
}
