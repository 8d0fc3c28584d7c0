package verify_test

import (
	"context"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// sharing is a world whose owl may be used so often in an hour, and as many
// verifiers of it, each with a recorder and a connection of its own.
func sharing(t *testing.T, hour string, nodes ...string) (*verifytest.World, []*verify.Verifier) {
	w := verifytest.New(t, verify.Options{})
	w.Configure(strings.Replace(owls, `{"minute": 3, "day": 100}`, `{"hour": `+hour+`}`, 1))
	w.Key("owls", "org_1", secret, events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}})
	var all []*verify.Verifier
	for _, name := range nodes {
		all = append(all, joins(t, w, name))
	}
	return w, all
}

func joins(t *testing.T, w *verifytest.World, name string) *verify.Verifier {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	r := verify.NewRecorder(w.Ledger, w.Keys, name, verify.RecorderOptions{})
	t.Cleanup(func() { _ = r.Close(context.WithoutCancel(t.Context())) })
	v := verify.New(w.Ring, r, verify.Options{})
	t.Cleanup(v.Close)
	if err := v.Share(t.Context(), testenv.Conn(t, w.NATS), name, log); err != nil {
		t.Fatal(err)
	}
	if err := v.Recount(t.Context(), w.Ledger, time.Minute, log); err != nil {
		t.Fatal(err)
	}
	return v
}

// use asks once, and records what was admitted.
func use(v *verify.Verifier) bool {
	req := owl(secret)
	d := v.Verify(req)
	return d.Valid && v.Record(&d, &req, verify.Use{Via: "api"})
}

// Three verifiers on a real server share an owner's pool: asked five times as much
// as the limit, as fast as news travel a few dozen times, they admit at most a
// tenth more together, and none of them more than the limit. Those that do not
// share admit three times as much.
func TestShared(t *testing.T) {
	const limit = 300
	attack := func(all []*verify.Verifier) (total int, each []int) {
		each = make([]int, len(all))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range 5 * limit { // 200 news' journeys long
			<-tick.C
			if use(all[i%len(all)]) {
				each[i%len(all)]++
				total++
			}
		}
		return total, each
	}
	w, all := sharing(t, "300", "a", "b", "c")
	total, each := attack(all)
	for i, n := range each {
		if n > limit {
			t.Errorf("node %d admitted %d of %d", i, n, limit)
		}
	}
	if most := int(math.Ceil(1.1 * limit)); total < limit || total > most {
		t.Errorf("%d are admitted, want %d to %d", total, limit, most)
	}

	// One that joins late refuses at once: it reads the log and hears the others.
	for _, v := range all {
		if use(v) {
			t.Error("admitted after the limit")
		}
	}
	if err := w.Recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := joins(t, w, "d")
	if key := keyOf(w); !late.Limited(key) { // what is not in the log yet is told
		await(t, func() bool { return late.Limited(key) })
	}

	var alone []*verify.Verifier
	for range 3 {
		v := verify.New(w.Ring, nil, verify.Options{})
		t.Cleanup(v.Close)
		alone = append(alone, v)
	}
	if total, _ := attack(alone); total != 3*limit {
		t.Errorf("%d are admitted by three that do not share, want %d", total, 3*limit)
	}
}

func keyOf(w *verifytest.World) *domain.Key {
	return w.Ring.BySecret("owls", domain.HashSecret(secret))
}

// await waits for what nothing signals.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// A verifier that ends and comes back, under its name or another, knows what it
// and the others admitted, once.
func TestSharedRestart(t *testing.T) {
	w, all := sharing(t, "200", "a", "b")
	for range 50 {
		use(all[0])
		use(all[1])
	}
	left := func(v *verify.Verifier) int64 {
		d, err := v.Take("owls", "org_1", 1<<40)
		if err != nil || len(d.Limits()) != 1 {
			t.Fatal(d.Code, err)
		}
		return d.Limits()[0].Remaining
	}
	for _, v := range all {
		await(t, func() bool { return left(v) == 100 })
	}
	all[1].Close()
	want := int64(100)
	for _, name := range []string{"b", "c"} {
		v := joins(t, w, name)
		await(t, func() bool { return left(v) == want })
		use(all[0])
		use(v)
		want -= 2
		// What was told twice, and stands in the log as well, is still counted once.
		await(t, func() bool { return left(v) == want && left(all[0]) == want })
		v.Close()
	}
}
