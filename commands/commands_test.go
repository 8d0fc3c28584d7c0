package commands_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
	"github.com/keyledger/keyledger/projections/keyring"
)

// stack is what one process has: its own connection, fold and commands.
func stack(t testing.TB, nc *nats.Conn, replicas int) *commands.Commands {
	t.Helper()
	l, err := ledger.Open(t.Context(), nc, ledger.Options{Replicas: replicas, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	ring := keyring.New()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the keyring ended with %v", err)
		}
		l.Close()
	})
	<-ring.Ready()
	return &commands.Commands{Ledger: l, Ring: ring}
}

var by = domain.System("test")

func request(idempotencyKey string) commands.Request {
	return commands.Request{Authority: by, Via: "test", IdempotencyKey: idempotencyKey, Body: []byte("body")}
}

func prepare(t testing.TB, c *commands.Commands) {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("..", "domain", "testdata", "commands.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := domain.ParseDocument(source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ConfigureKeyspace(t.Context(), request(""), doc, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetOwner(t.Context(), request(""), "parcelbird", "acme", domain.SetOwner{Name: new("Acme")}); err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, c *commands.Commands, idempotencyKey string) (commands.Result, error) {
	t.Helper()
	return c.CreateKey(t.Context(), request(idempotencyKey), "parcelbird", "acme", domain.CreateKey{Name: "CI"})
}

func TestTheLifeOfAKey(t *testing.T) {
	conn := testenv.Conn(t, testenv.NATS(t))
	c := stack(t, conn, 1)
	prepare(t, c)
	made, err := create(t, c, "")
	if err != nil {
		t.Fatal(err)
	}
	if made.Secret == "" || c.Ring.BySecret("parcelbird", domain.HashSecret(made.Secret)) == nil {
		t.Fatal("The secret that was answered does not find its key.")
	}
	hour := domain.Duration(time.Hour)
	rotated, err := c.RotateKey(t.Context(), request(""), made.Key.ID, domain.RotateKey{Grace: &hour})
	if err != nil {
		t.Fatal(err)
	}
	if rotated.Key.ID != made.Key.ID || rotated.Secret == made.Secret {
		t.Error("Rotation keeps the id and changes the secret.")
	}
	if k := c.Ring.BySecret("parcelbird", domain.HashSecret(made.Secret)); k == nil || k.ID != made.Key.ID {
		t.Error("During the grace the old secret does not find its key.")
	}
	if r, err := c.DeleteKey(t.Context(), request(""), made.Key.ID); err != nil || len(r.Facts) != 2 {
		t.Fatalf("Deleting a live key: %d facts, %v; want revoked and deleted", len(r.Facts), err)
	}
	if _, err := c.RevokeKey(t.Context(), request(""), made.Key.ID, domain.RevokeKey{}); refusal(err) != "KEY_DELETED" {
		t.Errorf("Revoking a deleted key: %v", err)
	}
	if _, err := c.RevokeKey(t.Context(), request(""), "key_0190c5f0-0000-7000-8000-000000000000", domain.RevokeKey{}); refusal(err) != "KEY_NOT_FOUND" {
		t.Errorf("Revoking a key that never was: %v", err)
	}
	check.Ledger(t, check.Subject{Conn: conn, Secrets: []string{made.Secret, rotated.Secret}})
}

func refusal(err error) string {
	if r, ok := errors.AsType[*domain.Refusal](err); ok {
		return r.Code
	}
	return ""
}

func TestIdempotency(t *testing.T) {
	c := stack(t, testenv.Conn(t, testenv.NATS(t)), 1)
	prepare(t, c)
	first, err := create(t, c, "order-17")
	if err != nil {
		t.Fatal(err)
	}
	again, err := create(t, c, "order-17")
	if err != nil || !again.Replayed || again.Secret != "" || again.Key.ID != first.Key.ID {
		t.Errorf("The same command again: %+v, %v; want the same key, no secret", again, err)
	}
	other := request("order-17")
	other.Body = []byte("another body")
	if _, err := c.CreateKey(t.Context(), other, "parcelbird", "acme", domain.CreateKey{Name: "CI"}); refusal(err) != "IDEMPOTENCY_KEY_REUSED" {
		t.Errorf("The same key with another body: %v", err)
	}
	// A day later the idempotency key is free, and the key it once made stays.
	c.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	later, err := create(t, c, "order-17")
	if err != nil || later.Key.ID == first.Key.ID || later.Secret == "" {
		t.Errorf("A day later: %+v, %v; want a new key", later.Key, err)
	}
}

// A process that has applied the first fact of a create, which takes the place under the
// cap, is asked for that create again before it has applied the second.
func TestReplayAmidTheFacts(t *testing.T) {
	n := testenv.NATS(t)
	first := stack(t, testenv.Conn(t, n), 1)
	prepare(t, first)
	made, err := create(t, first, "the-one")
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Facts) != 2 {
		t.Fatalf("The create made %d facts, want two: the plan has no cap.", len(made.Facts))
	}
	slow := &commands.Commands{Ledger: first.Ledger, Ring: keyring.New()}
	var rest []events.Record
	for rec, err := range first.Ledger.Read(t.Context(), events.Ledger, 1, made.Sequence) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Sequence < made.Sequence {
			slow.Ring.Apply(rec)
		} else {
			rest = append(rest, rec)
		}
	}
	early, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r, err := slow.CreateKey(early, request("the-one"), "parcelbird", "acme", domain.CreateKey{Name: "CI"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Amid its facts the repeated create answered %+v and %v, want no answer yet.", r, err)
	}
	for _, rec := range rest {
		slow.Ring.Apply(rec)
	}
	r, err := create(t, slow, "the-one")
	if err != nil {
		t.Fatal(err)
	}
	if r.Key == nil || r.Key.ID != made.Key.ID || !r.Replayed || r.Secret != "" {
		t.Errorf("The repeated create answered %+v, want the key %s without its secret.", r, made.Key.ID)
	}
}

// What a fold does not know, because nothing on the subject ever held, must
// not stop commands for ever.
func TestAVoidFactOnAFreshSubject(t *testing.T) {
	c := stack(t, testenv.Conn(t, testenv.NATS(t)), 1)
	prepare(t, c)
	e := events.New(events.OwnerPlanChanged{Plan: "basic"}, time.Now())
	e.Keyspace, e.Owner, e.KeyVersion = "parcelbird", "ghost", 7
	if _, err := c.Ledger.Append(t.Context(), 0, e); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetOwner(t.Context(), request(""), "parcelbird", "ghost", domain.SetOwner{}); err != nil {
		t.Errorf("Registering the owner: %v", err)
	}
}

// Eight processes work on the same keys at once, each with a fold of its own.
// Exactly what the rules permit may come of it.
func TestEightProcesses(t *testing.T) {
	t.Run("one node", func(t *testing.T) {
		n := testenv.NATS(t)
		eight(t, 1, func(int) *nats.Conn { return testenv.Conn(t, n) })
	})
	t.Run("three nodes", func(t *testing.T) {
		cluster := testenv.Cluster(t, 3)
		eight(t, 3, func(i int) *nats.Conn { return cluster.Conn(i % 3) })
	})
}

func eight(t *testing.T, replicas int, conn func(i int) *nats.Conn) {
	const processes = 8
	all := make([]*commands.Commands, processes)
	for i := range all {
		all[i] = stack(t, conn(i), replicas)
		if i == 0 {
			prepare(t, all[0])
		}
	}
	prepare(t, all[0])
	together := func(f func(i int, c *commands.Commands) error) (failed []error) {
		errs := make([]error, processes)
		var wg sync.WaitGroup
		for i, c := range all {
			wg.Go(func() { errs[i] = f(i, c) })
		}
		wg.Wait()
		return errs
	}

	// One create, repeated with one idempotency key, makes one key.
	var mu sync.Mutex
	ids, secrets := map[string]int{}, 0
	for _, err := range together(func(i int, c *commands.Commands) error {
		r, err := create(t, c, "the-one")
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			ids[r.Key.ID]++
			if r.Secret != "" {
				secrets++
			}
		}
		return err
	}) {
		if err != nil {
			t.Errorf("A repeated create: %v", err)
		}
	}
	if len(ids) != 1 || secrets != 1 {
		t.Errorf("Repeating one create made %d keys and answered %d secrets, want one of each.", len(ids), secrets)
	}

	// The plan allows five keys; one is there.
	made := 0
	for range 3 {
		for _, err := range together(func(i int, c *commands.Commands) error { _, err := create(t, c, ""); return err }) {
			switch {
			case err == nil:
				made++
			case refusal(err) != "KEY_LIMIT_REACHED":
				t.Errorf("Creating past the cap: %v", err)
			}
		}
	}
	if made != 4 {
		t.Errorf("%d keys were made, want 4 to fill the cap of five.", made)
	}

	// One key is rotated and revoked at once. Every rotation that was
	// answered came before the revocation; nothing comes after it.
	var id string
	for id = range ids {
	}
	rotations := 0
	for _, err := range together(func(i int, c *commands.Commands) error {
		if i%2 == 0 {
			for range 3 {
				_, err := c.RotateKey(t.Context(), request(""), id, domain.RotateKey{})
				switch {
				case err == nil:
					mu.Lock()
					rotations++
					mu.Unlock()
				case refusal(err) == "KEY_REVOKED":
					return nil
				default:
					return err
				}
			}
			return nil
		}
		_, err := c.RevokeKey(t.Context(), request(""), id, domain.RevokeKey{Reason: fmt.Sprint(i)})
		return err
	}) {
		if err != nil {
			t.Errorf("Rotating and revoking at once: %v", err)
		}
	}
	var rotated, revoked int
	after := false
	head, err := all[0].Ledger.Head(t.Context(), events.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	for rec, err := range all[0].Ledger.Read(t.Context(), events.Ledger, 1, head) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Event.Key != id {
			continue
		}
		if after {
			t.Errorf("%s at %d follows the revocation", rec.Event.Type, rec.Sequence)
		}
		switch rec.Event.Data.(type) {
		case events.KeyRotated:
			rotated++
		case events.KeyRevoked:
			revoked++
			after = true
		}
	}
	if revoked != 1 || rotated != rotations {
		t.Errorf("LEDGER holds %d revocations and %d rotations; 1 and %d were answered.", revoked, rotated, rotations)
	}
	for i, c := range all {
		if err := c.Ring.Wait(t.Context(), head); err != nil {
			t.Fatal(err)
		}
		if k := c.Ring.Key(id); !k.Revoked() || int(k.Version) != rotations+2 {
			t.Errorf("Process %d holds version %d of the key.", i, k.Version)
		}
		if n := c.Ring.ActiveKeys("parcelbird", "acme", time.Now()); n != 4 {
			t.Errorf("Process %d counts %d active keys, want 4.", i, n)
		}
	}
	check.Ledger(t, check.Subject{Conn: conn(0), Replicas: replicas})
}

func TestTheLastOperatorSurvivesARace(t *testing.T) {
	n := testenv.NATS(t)
	a, b := stack(t, testenv.Conn(t, n), 1), stack(t, testenv.Conn(t, n), 1)
	var ids []string
	for range 2 {
		r, err := a.CreateRootKey(t.Context(), request(""), domain.CreateKey{Name: "root", Role: domain.Operator})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Key.ID)
	}
	if err := b.Ring.Wait(t.Context(), a.Ring.Sequence()); err != nil {
		t.Fatal(err)
	}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, c := range []*commands.Commands{a, b} {
		wg.Go(func() { _, errs[i] = c.RevokeKey(t.Context(), request(""), ids[i], domain.RevokeKey{}) })
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) || refusal(errors.Join(errs...)) != "LAST_OPERATOR" {
		t.Errorf("Revoking both operators at once: %v and %v; want one refused with LAST_OPERATOR", errs[0], errs[1])
	}
}

func TestResetReplacesLostOperators(t *testing.T) {
	c := stack(t, testenv.Conn(t, testenv.NATS(t)), 1)
	old, err := c.CreateRootKey(t.Context(), request(""), domain.CreateKey{Name: "lost", Role: domain.Operator})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.ResetRoot(t.Context(), request(""), "found")
	if err != nil || r.Secret == "" {
		t.Fatalf("reset: %v", err)
	}
	if !c.Ring.Key(old.Key.ID).Revoked() || c.Ring.Key(r.Key.ID).Revoked() {
		t.Error("After a reset the lost key is revoked and the new one is not.")
	}
}

// BenchmarkCommands measures lifecycle commands as a caller sees them, with
// every fact on disk before the answer.
func BenchmarkCommands(b *testing.B) {
	c := stack(b, testenv.Conn(b, testenv.NATS(b, testenv.Synced())), 1)
	prepare(b, c)
	if _, err := c.SetOwner(b.Context(), request(""), "parcelbird", "acme", domain.SetOwner{Plan: new("large")}); err != nil {
		b.Fatal(err)
	}
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			if _, err := create(b, c, ""); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 clients", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := create(b, c, ""); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
	})
}
