package queries

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
)

// pasts is a ledger with everything that follows it, and all that was appended.
type pasts struct {
	*Past
	*log
	ring    *keyring.Ring
	runner  *projections.Runner
	history []events.Record
	worlds  []world // after each fact
}

// world is the plainest fold that there can be.
type world struct {
	keys      map[string]*domain.Key
	owners    map[[2]string]*domain.Owner
	keyspaces map[string]*domain.Keyspace
}

func (w world) with(r events.Record) world {
	n := world{map[string]*domain.Key{}, map[[2]string]*domain.Owner{}, map[string]*domain.Keyspace{}}
	for k, v := range w.keys {
		n.keys[k] = v
	}
	for k, v := range w.owners {
		n.owners[k] = v
	}
	for k, v := range w.keyspaces {
		n.keyspaces[k] = v
	}
	e := r.Event
	o := [2]string{e.Keyspace, e.Owner}
	s := domain.Evolve(domain.State{Keyspace: n.keyspaces[e.Keyspace], Owner: n.owners[o], Key: n.keys[e.Key]}, r)
	if e.Key != "" {
		n.keys[e.Key] = s.Key
	}
	if e.Owner != "" {
		n.owners[o] = s.Owner
	}
	n.keyspaces[e.Keyspace] = s.Keyspace
	return n
}

func newPasts(t testing.TB) *pasts {
	t.Helper()
	l := newLog(t)
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	p := &pasts{log: l, ring: keyring.New(), runner: projections.New(l.l, pool, slog.New(slog.DiscardHandler))}
	p.Past = NewPast(l.l, p.ring, New(pool))
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.ring.Run(ctx, l.l) })
	running.Go(func() { p.runner.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return p
}

// append appends an event, void or not, to the subject that it belongs on.
func (p *pasts) append(t interface{ Fatal(...any) }, e events.Envelope) {
	subject := events.Subject(e.Keyspace, e.Owner, e.Key)
	seq, err := p.l.Append(p.t.Context(), p.expected[subject], e)
	if err != nil {
		t.Fatal(err)
	}
	p.expected[subject] = seq
	r := events.Record{Stream: events.Ledger, Sequence: seq, Subject: subject, Event: e}
	before := world{}
	if len(p.worlds) > 0 {
		before = p.worlds[len(p.worlds)-1]
	}
	p.history, p.worlds = append(p.history, r), append(p.worlds, before.with(r))
	if seq != uint64(len(p.history)) {
		t.Fatal("the stream is not ours alone")
	}
}

func (p *pasts) settle(t interface{ Fatal(...any) }) {
	n := uint64(len(p.history))
	if err := p.ring.Wait(p.t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := p.runner.Wait(p.t.Context(), projections.LedgerCopy{}.Name(), n); err != nil {
		t.Fatal(err)
	}
}

var facts = rapid.Custom(func(t *rapid.T) events.Payload {
	text := rapid.SampledFrom([]string{"", "CI", "Build", "ci"})
	secret := events.Secret{SHA256: strings.Repeat(rapid.SampledFrom([]string{"ab", "cd", "ef"}).Draw(t, "hash"), 32), First: "pb_", Last: text.Draw(t, "last")}
	at := events.At(start) + events.Time(rapid.IntRange(-5000, 60_000).Draw(t, "at"))
	switch rapid.IntRange(0, 12).Draw(t, "what") {
	case 0, 1, 2:
		return events.KeyCreated{Name: text.Draw(t, "name"), Environment: "live", Scopes: []string{"a"}, ExpiresAt: rapid.SampledFrom([]events.Time{0, at}).Draw(t, "expires"), Secret: secret, Meta: map[string]string{"m": "1"}}
	case 3:
		return events.KeyUpdated{Name: new(text.Draw(t, "name")), Scopes: &[]string{"b"}}
	case 4:
		return events.KeyUpdated{ExpiresAt: &events.Expiry{At: at}, Limits: &events.Limits{"minute": 5}}
	case 5, 6:
		return events.KeyRotated{Secret: secret, GraceUntil: at, EndGrace: rapid.Bool().Draw(t, "end")}
	case 7:
		return events.KeyGraceEnded{}
	case 8:
		return events.KeyRevoked{Reason: "r"}
	case 9:
		return events.KeyDeleted{}
	case 10:
		return events.OwnerRegistered{Name: text.Draw(t, "name"), Plan: "p"}
	case 11:
		return events.OwnerPlanChanged{Plan: text.Draw(t, "plan")}
	}
	doc := rapid.IntRange(1, 9).Draw(t, "document")
	return events.KeyspaceConfigured{DocumentVersion: doc, Document: json.RawMessage(fmt.Sprintf(`{"keyspace":"pb","about":"%d"}`, doc))}
})

var pastKeys = []string{"key_1", "key_2", "key_3", "key_4"}

// random appends one event at a random time about somebody, mostly the next one
// that there can be, sometimes a void one.
func (p *pasts) random(t *rapid.T) {
	e := events.New(facts.Draw(t, "fact"), start.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "time"))*time.Millisecond))
	e.Keyspace, e.Owner = "pb", rapid.SampledFrom([]string{"o1", "o2"}).Draw(t, "owner")
	var now world
	if len(p.worlds) > 0 {
		now = p.worlds[len(p.worlds)-1]
	}
	switch e.Data.(type) {
	case events.OwnerRegistered, events.OwnerPlanChanged:
		if o := now.owners[[2]string{"pb", e.Owner}]; o != nil {
			e.KeyVersion = uint64(o.Version)
		}
	case events.KeyspaceConfigured:
		e.Owner = ""
		if k := now.keyspaces["pb"]; k != nil {
			e.KeyVersion = uint64(k.Version)
		}
	default:
		e.Key = rapid.SampledFrom(pastKeys).Draw(t, "key")
		if e.Key == "key_4" {
			e.Keyspace, e.Owner = events.RootKeyspace, ""
		}
		if k := now.keys[e.Key]; k != nil {
			e.KeyVersion = uint64(k.Version)
			if rapid.IntRange(0, 9).Draw(t, "right owner") > 0 {
				e.Owner = k.Owner
			}
		}
	}
	e.KeyVersion++
	if rapid.IntRange(0, 9).Draw(t, "void") == 0 {
		e.KeyVersion = uint64(rapid.IntRange(1, 5).Draw(t, "version"))
	}
	p.append(t, e)
}

func shape(k *domain.Key, at Moment) string {
	if k == nil {
		return "none"
	}
	b, _ := json.Marshal(ViewAt(k, at))
	var earlier []domain.Earlier
	if k.More != nil {
		earlier = k.Earlier
	}
	return fmt.Sprintf("%s %x at %d, earlier %x, deleted %v", b, k.Hash, k.Sequence, earlier, k.Deleted())
}

// For random histories, with void facts and clocks that do not agree: the state
// as of every sequence is the fold of all facts up to it, and a time is the place
// of the last fact that is not later.
func TestPastIsTheFoldOfThePrefix(t *testing.T) {
	p := newPasts(t)
	if _, err := p.At(t.Context(), "as_of", "2026-01-18T12:00:00Z", start.Add(time.Hour)); !refusedAs(err, "BEFORE_LEDGER") {
		t.Errorf("of an empty ledger: %v", err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		from := len(p.history)
		for range rapid.IntRange(1, 12).Draw(rt, "facts") {
			p.random(rt)
		}
		p.settle(rt)
		// What has been checked before is looked at again where it is cheap.
		sequences := []int{rapid.IntRange(0, len(p.history)-1).Draw(rt, "earlier")}
		for i := from; i < len(p.history); i++ {
			sequences = append(sequences, i)
		}
		for _, i := range sequences {
			w := p.worlds[i]
			at, err := p.At(t.Context(), "as_of", fmt.Sprint(i+1), start)
			if err != nil || at.Sequence != uint64(i+1) || at.Time != p.history[i].Event.Time {
				rt.Fatalf("as of sequence %d is %v, %v", i+1, at, err)
			}
			for _, id := range pastKeys {
				k, err := p.Key(t.Context(), id, at)
				if err != nil {
					rt.Fatal(err)
				}
				if d := gocmp.Diff(shape(w.keys[id], at), shape(k, at)); d != "" {
					rt.Fatalf("%s as of %d (-fold +past):\n%s", id, at.Sequence, d)
				}
			}
			active := map[string]int{}
			for _, k := range w.keys {
				if k != nil && k.Active(at.Time) {
					active[k.Owner]++
				}
			}
			for _, id := range []string{"o1", "o2"} {
				o, err := p.Owner(t.Context(), "pb", id, at)
				if err != nil {
					rt.Fatal(err)
				}
				if d := gocmp.Diff(w.owners[[2]string{"pb", id}], o); d != "" {
					rt.Fatalf("owner %s as of %d (-fold +past):\n%s", id, at.Sequence, d)
				}
				if n, err := p.ActiveKeys(t.Context(), "pb", id, at); err != nil || n != active[id] {
					rt.Fatalf("active keys of %s as of %d: %d, %v, want %d", id, at.Sequence, n, err, active[id])
				}
			}
			ks, err := p.Keyspace(t.Context(), "pb", at)
			if err != nil {
				rt.Fatal(err)
			}
			if want := w.keyspaces["pb"]; (ks == nil) != (want == nil) || ks != nil && (ks.DocumentVersion != want.DocumentVersion || ks.About != want.About || ks.Sequence != want.Sequence) {
				rt.Fatalf("keyspace as of %d: %v, want %v", at.Sequence, ks, want)
			}
			for _, f := range []KeyFilter{{}, {Keyspace: "pb", Owner: "o1", Status: "active"}, {Q: "ci"}, {Keyspace: events.RootKeyspace}, {Status: "expired", Scope: "b"}} {
				f.Limit = 2
				if d := gocmp.Diff(w.list(f, at), p.pages(rt, f, at)); d != "" {
					rt.Fatalf("%v as of %d (-fold +past):\n%s", f, at.Sequence, d)
				}
			}
		}
		lo := rapid.IntRange(0, len(p.history)-1).Draw(rt, "lo")
		p.checkDiff(rt, lo, rapid.IntRange(lo, len(p.history)-1).Draw(rt, "hi"))
		when := events.At(start) + events.Time(rapid.IntRange(-10, 31_000).Draw(rt, "when"))
		last := 0
		for i, r := range p.history {
			if r.Event.Time <= when {
				last = i + 1
			}
		}
		at, err := p.At(t.Context(), "as_of", when.String(), start.Add(time.Hour))
		if last == 0 && !refusedAs(err, "BEFORE_LEDGER") || last > 0 && (err != nil || at != Moment{uint64(last), when}) {
			rt.Fatalf("as of %s is %v, %v, want sequence %d", when, at, err, last)
		}
	})
}

// checkDiff compares what changed between two facts with the folds up to each.
func (p *pasts) checkDiff(t *rapid.T, lo, hi int) {
	from, to := Moment{uint64(lo + 1), p.history[lo].Event.Time}, Moment{uint64(hi + 1), p.history[hi].Event.Time}
	before, after := p.worlds[lo], p.worlds[hi]
	want := map[string]string{}
	add := func(id string, changed bool, b, a map[string]any) {
		if changed {
			j, _ := json.Marshal(differences(b, a))
			want[id] = string(j)
		}
	}
	for id, k := range after.keys {
		if old := before.keys[id]; k != nil {
			add(id, old == nil || old.Version != k.Version, keyDocument(old, from.Time), keyDocument(k, to.Time))
		}
	}
	for id, o := range after.owners {
		if old := before.owners[id]; o != nil {
			add(id[1], old == nil || old.Version != o.Version, ownerDocument(old), ownerDocument(o))
		}
	}
	if k, old := after.keyspaces["pb"], before.keyspaces["pb"]; k != nil {
		add("pb", old == nil || old.Version != k.Version, keyspaceDocument(old, old == nil), keyspaceDocument(k, old == nil))
	}
	got := map[string]string{}
	for f := (DiffFilter{Limit: 2}); ; {
		list, next, err := p.Diff(p.t.Context(), f, from, to)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			j, _ := json.Marshal(d.Changes)
			got[cmp.Or(d.Key, d.Owner, d.Keyspace)] = string(j)
		}
		if f.Cursor = next; next == "" {
			break
		}
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Fatalf("from %d to %d (-fold +diff):\n%s", from.Sequence, to.Sequence, d)
	}
}

func refusedAs(err error, code string) bool {
	r, ok := errors.AsType[*domain.Refusal](err)
	return ok && r.Code == code
}

// list is what a list must be, by the conditions of the API alone.
func (w world) list(f KeyFilter, at Moment) []string {
	var keys []*domain.Key
	for _, k := range w.keys {
		if k == nil || k.Deleted() || (k.Keyspace == events.RootKeyspace) != (f.Keyspace == events.RootKeyspace) ||
			f.Owner != "" && k.Owner != f.Owner || f.Status != "" && k.Status(at.Time) != f.Status || f.Scope != "" && !slices.Contains(k.Scopes, f.Scope) ||
			f.Q != "" && strings.ToLower(k.Name) != f.Q && k.Last != f.Q {
			continue
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *domain.Key) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	list := []string{}
	for _, k := range keys {
		b, _ := json.Marshal(ViewAt(k, at))
		list = append(list, string(b))
	}
	return list
}

func (p *pasts) pages(t *rapid.T, f KeyFilter, at Moment) []string {
	list := []string{}
	for {
		keys, next, err := p.ListKeys(p.t.Context(), f, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			b, _ := json.Marshal(k)
			list = append(list, string(b))
		}
		if f.Cursor = next; next == "" {
			return list
		}
		if of, err := p.AtOf(p.t.Context(), f, start); err != nil || of != at {
			t.Fatalf("the next page is as of %v, %v, want %v", of, err, at)
		}
	}
}
