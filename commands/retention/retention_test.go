package retention

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/queries"
)

// place is where several processes work: a server and a database.
type place struct {
	t    testing.TB
	nats string
	post string
}

func newPlace(t testing.TB) *place {
	t.Helper()
	n := testenv.NATS(t, testenv.Listening())
	return &place{t, n.ClientURL(), testenv.Postgres(t)}
}

// desk is one process at it.
type desk struct {
	*Retention
	t    testing.TB
	pool *pgxpool.Pool
}

var by = By{Actor: events.Actor{Type: "root_key", ID: "key_root"}, Via: "cli"}

func (p *place) open() *desk {
	p.t.Helper()
	d, err := openDesk(p.t.Context(), p.nats, p.post)
	if err != nil {
		p.t.Fatal(err)
	}
	d.t = p.t
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { d.Models.Run(ctx) })
	p.t.Cleanup(func() {
		cancel()
		running.Wait()
		d.Seal.Close()
		_ = d.Ledger.Close()
		d.pool.Close()
	})
	return d
}

func openDesk(ctx context.Context, natsURL, postgresURL string) (*desk, error) {
	nc, err := nats.Connect(natsURL)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.New(context.WithoutCancel(ctx), postgresURL)
	if err != nil {
		return nil, err
	}
	if _, err := migrations.Up(ctx, pool); err != nil {
		return nil, err
	}
	l, err := ledger.Open(ctx, nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	keys, err := seal.Open(ctx, js, seal.Master{7}, 1)
	if err != nil {
		return nil, err
	}
	return &desk{Retention: &Retention{Ledger: l, Seal: keys, Models: projections.New(l, pool, nil, projections.Addresses{Keys: keys}), Now: later}, pool: pool}, nil
}

// later is a clock so far ahead that what was just written may be pruned.
func later() time.Time { return time.Now().Add(Least + time.Second) }

// page records uses of an owner's key at the moments, on a server whose clock says
// now.
func (d *desk) page(owner string, moments ...time.Time) uint64 {
	d.t.Helper()
	var page []events.Envelope
	for _, at := range moments {
		e := events.New(events.KeyUsed{}, at)
		e.Keyspace, e.Owner, e.Key = "parcelbird", owner, "key_"+owner
		e.Data = seal.Use{KeyUsed: events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/parcels", Status: new(200), Secret: "current"}, ClearIP: "203.0.113.7", ClearUserAgent: "curl/8"}
		page = append(page, e)
	}
	if err := d.Seal.Prepare(d.t.Context(), page); err != nil {
		d.t.Fatal(err)
	}
	var bodies [][]byte
	for _, e := range page {
		b, err := events.Encode(e)
		if err != nil {
			d.t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	sequence, err := d.Ledger.AppendPage(d.t.Context(), "parcelbird", "n1", bodies)
	if err != nil {
		d.t.Fatal(err)
	}
	return sequence
}

func (d *desk) read(sequence uint64) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	for _, name := range d.Models.Names() {
		if !slices.Contains([]string{"usage_v2", "uses_v1", "gaps_v1", "addresses_v1", "tree_usage_v1", "parts_usage_v1"}, name) {
			continue
		}
		if err := d.Models.Wait(ctx, name, sequence); err != nil {
			d.t.Fatal(err)
		}
	}
}

// shown are the audit log's answers for an owner: how often an address is in clear,
// erased, and something else.
func (d *desk) shown(owner string) (clear, erased, other int) {
	d.t.Helper()
	for e, err := range queries.NewAudit(d.Ledger).All(d.t.Context(), queries.AuditFilter{Keyspace: "parcelbird", Owner: owner, Types: []string{"key.used"}}, d.Seal) {
		if err != nil {
			d.t.Fatal(err)
		}
		b, _ := json.Marshal(e)
		switch {
		case strings.Contains(string(b), `"source_ip":"203.0.113.7","user_agent":"curl/8"`):
			clear++
		case strings.Contains(string(b), `"source_ip":{"erased":true},"user_agent":{"erased":true}`):
			erased++
		default:
			other++
			d.t.Logf("shown: %s", b)
		}
	}
	return clear, erased, other
}

// bodies are the stored bytes of USAGE.
func (d *desk) bodies() (all []string) {
	d.t.Helper()
	for r, err := range d.Ledger.Read(d.t.Context(), events.Usage, 1, 0) {
		if err != nil {
			d.t.Fatal(err)
		}
		all = append(all, string(r.Body))
	}
	return all
}

func (d *desk) rebuilt(name string) {
	d.t.Helper()
	result, err := d.Models.Rebuild(d.t.Context(), name, nil)
	if err != nil || result.Differences != 0 {
		d.t.Errorf("rebuild of %s: %+v, %v", name, result, err)
	}
}

// recordedActs are the acts of a type in OPS, and everything in it must decode.
func (d *desk) recordedActs(kind string) (all []events.Envelope) {
	d.t.Helper()
	for r, err := range d.Ledger.Read(d.t.Context(), events.Ops, 1, 0) {
		if err != nil {
			d.t.Fatal(err)
		}
		if r.Event.Type == kind {
			all = append(all, r.Event)
		}
	}
	return all
}

func refused(t testing.TB, err error, code string, says ...string) {
	t.Helper()
	r, ok := errors.AsType[*domain.Refusal](err)
	if !ok || r.Code != code {
		t.Errorf("%v, want a refusal with %s", err, code)
		return
	}
	for _, s := range says {
		if !strings.Contains(r.Error(), s) {
			t.Errorf("%q does not say %q", r.Error(), s)
		}
	}
}

// What is erased is erased in every answer of every process, at once or in a moment,
// and after rebuilds; nothing else is touched, and not one stored byte. Again it
// finds nothing to do.
func TestErase(t *testing.T) {
	p := newPlace(t)
	a, b := p.open(), p.open()
	now := time.Now()
	a.page("org_1", now, now.AddDate(0, -3, 0))
	head := a.page("org_2", now)
	a.read(head)
	before := a.bodies()
	for _, d := range []*desk{a, b} { // both have the data keys in memory
		if clear, erased, _ := d.shown("org_1"); clear != 2 || erased != 0 {
			t.Fatalf("%d in clear, %d erased", clear, erased)
		}
	}
	dry, err := a.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: "org_1", DryRun: true}, nil)
	if err != nil || len(dry.DataKeys) != 2 || len(dry.Acts) != 0 || len(a.recordedActs("privacy.erased")) != 0 {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	out, err := a.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: "org_1", Reason: "request 17"}, nil)
	if err != nil || !slices.Equal(out.DataKeys, dry.DataKeys) || !slices.Equal(out.Months, dry.Months) || len(out.Months) != 2 || len(out.Acts) != 1 {
		t.Fatalf("%+v, %v, want what the dry run said: %+v", out, err, dry)
	}
	act := a.recordedActs("privacy.erased")[0]
	if data := act.Data.(events.PrivacyErased); act.Keyspace != "parcelbird" || act.Owner != "org_1" || act.Actor != by.Actor || data.Reason != "request 17" || len(data.DataKeys) < 2 {
		t.Errorf("recorded: %+v", act)
	}
	if clear, erased, other := a.shown("org_1"); clear+other != 0 || erased != 2 {
		t.Errorf("where it was done: %d in clear, %d erased, %d other", clear, erased, other)
	}
	for end := time.Now().Add(10 * time.Second); ; { // the other process hears of it from NATS
		if clear, erased, other := b.shown("org_1"); clear+other == 0 && erased == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("another process still opens what was erased")
		}
	}
	// What waited to be written is sealed away; what comes later is not.
	head = b.page("org_1", now, later())
	a.read(head)
	if out.Rows == 0 {
		t.Error("no row was made of the addresses that were erased")
	}
	a.rebuilt("usage_v2")
	a.rebuilt("addresses_v1")
	for _, d := range []*desk{a, b, p.open()} {
		if clear, erased, other := d.shown("org_1"); clear != 1 || erased != 3 || other != 0 {
			t.Errorf("after a rebuild, a late use and a new one: %d in clear, %d erased, %d other", clear, erased, other)
		}
		if clear, erased, other := d.shown("org_2"); clear != 1 || erased+other != 0 {
			t.Errorf("of another owner: %d in clear, %d erased, %d other", clear, erased, other)
		}
	}
	if after := a.bodies(); !slices.Equal(after[:len(before)], before) {
		t.Error("stored bytes have changed")
	}
	again, err := b.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: "org_1", Through: now.UTC().AddDate(0, -1, -now.Day()).Format("2006-01")}, nil)
	if err != nil || len(again.DataKeys)+len(again.Closed)+len(again.Acts) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// A period is erased of everybody, with what is of no owner; other months stay.
func TestErasePeriod(t *testing.T) {
	d := newPlace(t).open()
	march, april := time.Date(2026, 3, 31, 23, 59, 0, 0, time.UTC), time.Date(2026, 4, 1, 0, 1, 0, 0, time.UTC)
	for _, owner := range []string{"org_1", "org_2", ""} {
		d.page(owner, march, april)
	}
	out, err := d.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", From: "2026-03", Through: "2026-03"}, nil)
	if want := []string{"parcelbird._.2026-03", "parcelbird.org_1.2026-03", "parcelbird.org_2.2026-03"}; err != nil || !slices.Equal(out.DataKeys, want) {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, owner := range []string{"org_1", "org_2"} {
		if clear, erased, other := d.shown(owner); clear != 1 || erased != 1 || other != 0 {
			t.Errorf("%s: %d in clear, %d erased, %d other", owner, clear, erased, other)
		}
	}
	for name, x := range map[string]Erasure{
		"nothing named": {Keyspace: "parcelbird"}, "no keyspace": {Owner: "org_1"}, "no month": {Through: "March"},
	} {
		_, err := d.Erase(t.Context(), by, x, nil)
		t.Run(name, func(t *testing.T) { refused(t, err, "INVALID") })
	}
}

// A hold stops erasing what it covers, by its name, until it is lifted; with leave,
// the rest is erased around it.
func TestHold(t *testing.T) {
	p := newPlace(t)
	a, b := p.open(), p.open()
	march := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	a.page("org_1", march)
	a.page("org_2", march)
	scope := Scope{Keyspace: "parcelbird", Owner: "org_1", Key: "key_org_1"}
	for i, want := range []bool{true, false} {
		if h, changed, err := a.Hold(t.Context(), by, scope, "case 4711"); err != nil || changed != want || h.Reason != "case 4711" || h.Sequence != 1 {
			t.Errorf("%d: %+v, %v, %v", i, h, changed, err)
		}
	}
	for _, x := range []Erasure{
		{Keyspace: "parcelbird", Owner: "org_1"}, {Keyspace: "parcelbird", Through: "2026-03"}, {From: "2026-01"}, {Keyspace: "parcelbird", Owner: "org_1", DryRun: true},
	} {
		_, err := b.Erase(t.Context(), by, x, nil)
		refused(t, err, "LEGAL_HOLD", "parcelbird/org_1/key_org_1", "case 4711", "OPS 1")
	}
	if n := len(a.recordedActs("privacy.erased")); n != 0 {
		t.Fatalf("%d erasures are recorded", n)
	}
	out, err := b.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Through: "2026-03", SkipHeld: true}, nil)
	if err != nil || !slices.Equal(out.DataKeys, []string{"parcelbird.org_2.2026-03"}) || !slices.Equal(out.Held, []string{"parcelbird.org_1.2026-03"}) {
		t.Errorf("around the hold: %+v, %v", out, err)
	}
	if clear, erased, _ := a.shown("org_1"); clear != 1 || erased != 0 {
		t.Errorf("held: %d in clear, %d erased", clear, erased)
	}
	if holds, err := b.Holds(t.Context()); err != nil || len(holds) != 1 || holds[0].Scope != scope {
		t.Errorf("%+v, %v", holds, err)
	}
	for i, want := range []bool{true, false} {
		if _, changed, err := b.Lift(t.Context(), by, scope, "settled"); err != nil || changed != want {
			t.Errorf("%d: %v, %v", i, changed, err)
		}
	}
	if out, err := a.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: "org_1"}, nil); err != nil || len(out.DataKeys) != 1 {
		t.Errorf("after it was lifted: %+v, %v", out, err)
	}
	_, _, err = a.Hold(t.Context(), by, Scope{Keyspace: "parcelbird", Key: "key_1"}, "x")
	refused(t, err, "INVALID")
	_, _, err = a.Hold(t.Context(), by, scope, "")
	refused(t, err, "INVALID")
}

// Of holds and erasures that race, the one that is first in OPS counts: whatever was
// erased under a hold's scope was recorded before it.
func TestHoldsAndErasuresRace(t *testing.T) {
	p := newPlace(t)
	desks := []*desk{p.open(), p.open(), p.open()}
	march := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	for i := range 30 {
		owner := fmt.Sprint("org_", i)
		desks[0].page(owner, march)
		var both sync.WaitGroup
		both.Go(func() {
			if _, _, err := desks[1].Hold(t.Context(), by, Scope{Keyspace: "parcelbird", Owner: owner}, "case"); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			_, err := desks[2].Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: owner}, nil)
			if err != nil {
				refused(t, err, "LEGAL_HOLD", owner)
			}
		})
		both.Wait()
	}
	type first struct{ hold, erased int }
	order := map[string]first{}
	n := 0
	for r, err := range desks[0].Ledger.Read(t.Context(), events.Ops, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		f := order[r.Event.Owner]
		switch r.Event.Data.(type) {
		case events.HoldSet:
			f.hold = n
		case events.PrivacyErased:
			f.erased = n
		}
		order[r.Event.Owner] = f
	}
	for owner, f := range order {
		clear, erased, _ := desks[0].shown(owner)
		if f.hold == 0 || f.erased > f.hold || (f.erased > 0) != (erased == 1) || (f.erased == 0) != (clear == 1) {
			t.Errorf("%s: held as act %d, erased as act %d, %d in clear, %d erased", owner, f.hold, f.erased, clear, erased)
		}
	}
}

// treeOf is the tree over records, the slow way.
func treeOf(t testing.TB, l *ledger.Ledger, through uint64) (size int64, root tlog.Hash) {
	t.Helper()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (list []tlog.Hash, err error) {
		for _, i := range indexes {
			list = append(list, stored[i])
		}
		return list, nil
	})
	for r, err := range l.Read(t.Context(), events.Usage, 1, through) {
		if err != nil {
			t.Fatal(err)
		}
		leaf := audit.LeafOf(&r)
		hashes, err := tlog.StoredHashesForRecordHash(size, leaf.Hash(), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		size++
	}
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		t.Fatal(err)
	}
	return size, root
}

// Pruning takes the front of USAGE, twice; before that it records a tree over it that
// is the one of the whole stream, and keeps what rebuilds need. Nothing of it is a
// doubt at the next start.
func TestPrune(t *testing.T) {
	p := newPlace(t)
	d := p.open()
	now := time.Now()
	var cuts []time.Time
	var ends []uint64
	var head uint64
	for range 3 {
		for n := range 5 {
			head = d.page("org_1", slices.Repeat([]time.Time{now}, n+1)...)
		}
		ends, cuts = append(ends, head), append(cuts, time.Now())
	}
	d.read(head)
	type want struct {
		size int64
		root tlog.Hash
	}
	var trees []want
	for _, end := range ends {
		size, root := treeOf(t, d.Ledger, end)
		trees = append(trees, want{size, root})
	}
	signed := trees[0]
	d.Tree = func(_ context.Context, _, size uint64) (tlog.Hash, error) {
		if size != uint64(signed.size) {
			return tlog.Hash{}, errors.New("not signed yet")
		}
		return signed.root, nil
	}
	if out, err := d.Prune(t.Context(), by, Pruning{Before: cuts[0], DryRun: true}, nil); err != nil || out.Through != ends[0] || out.Messages != 5 || out.Events != 15 || out.RootHash != trees[0].root.String() {
		t.Fatalf("dry run: %+v, %v", out, err)
	}
	signed.root[3] ^= 1
	if _, err := d.Prune(t.Context(), by, Pruning{Before: cuts[0]}, nil); err == nil || !strings.Contains(err.Error(), "nothing is pruned") {
		t.Errorf("against a tree that is another one: %v", err)
	}
	if n := len(d.recordedActs("usage.pruned")); n != 0 {
		t.Fatalf("%d prunings are recorded", n)
	}
	for i := range 2 {
		signed = trees[i]
		out, err := d.Prune(t.Context(), by, Pruning{Before: cuts[i], Reason: "retention"}, nil)
		if err != nil || out.Through != ends[i] || out.Messages != 5 || out.TreeSize != uint64(trees[i].size) {
			t.Fatalf("%+v, %v", out, err)
		}
		act := d.recordedActs("usage.pruned")[i].Data.(events.UsagePruned)
		if act.Through != ends[i] || act.RootHash != trees[i].root.String() || act.Reason != "retention" {
			t.Errorf("recorded: %+v", act)
		}
		if first, err := d.Ledger.First(t.Context(), events.Usage); err != nil || first != ends[i]+1 {
			t.Errorf("USAGE begins at %d, %v", first, err)
		}
		for _, name := range []string{"usage_v2", "uses_v1", "gaps_v1", "addresses_v1", "tree_usage_v1", "parts_usage_v1"} {
			d.rebuilt(name)
		}
		if again, err := d.Prune(t.Context(), by, Pruning{Before: cuts[i]}, nil); err != nil || again.Messages != 0 || again.Act != 0 {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	_, err := d.Prune(t.Context(), by, Pruning{Before: later().Add(-time.Hour)}, nil)
	refused(t, err, "INVALID", "72 hours")
	p.open() // with no doubt
	if err := d.Ledger.Err(events.Usage); err != nil {
		t.Error(err)
	}
}

// USAGE is pruned up to the first event that a hold covers, where that was asked for;
// else the refusal says how far it may be.
func TestPruneUpToHold(t *testing.T) {
	d := newPlace(t).open()
	now := time.Now()
	d.page("org_1", now)
	d.page("org_2", now)
	head := d.page("org_1", now)
	d.read(head)
	if _, _, err := d.Hold(t.Context(), by, Scope{Keyspace: "parcelbird", Owner: "org_2"}, "case 4711"); err != nil {
		t.Fatal(err)
	}
	_, err := d.Prune(t.Context(), by, Pruning{Before: time.Now()}, nil)
	refused(t, err, "LEGAL_HOLD", "through sequence 1", "parcelbird/org_2", "case 4711")
	if out, err := d.Prune(t.Context(), by, Pruning{Before: time.Now(), UpToHolds: true}, nil); err != nil || out.Through != 1 || len(out.HeldBy) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err := d.Prune(t.Context(), by, Pruning{Before: time.Now(), UpToHolds: true}, nil); err != nil || out.Act != 0 || len(out.HeldBy) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, _, err := d.Lift(t.Context(), by, Scope{Keyspace: "parcelbird", Owner: "org_2"}, ""); err != nil {
		t.Fatal(err)
	}
	if out, err := d.Prune(t.Context(), by, Pruning{Before: time.Now()}, nil); err != nil || out.Through != head {
		t.Fatalf("%+v, %v", out, err)
	}
	d.rebuilt("usage_v2")
}

// A process that is killed with -9 between the record and what it announces is
// finished by the next one, once, and what it leaves is no doubt about the stream.
func TestKilledAfterRecording(t *testing.T) {
	if os.Getenv("RETENTION_KILLED") != "" {
		killed(t)
		return
	}
	p := newPlace(t)
	d := p.open()
	now := time.Now()
	d.page("org_1", now)
	head := d.page("org_2", now)
	d.read(head)
	for _, what := range []string{"erase", "prune"} {
		c := exec.Command(os.Args[0], "-test.run=^TestKilledAfterRecording$")
		c.Env = append(os.Environ(), "RETENTION_KILLED="+what, "RETENTION_NATS="+p.nats, "RETENTION_POSTGRES="+p.post)
		out, err := c.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: it ended with %v:\n%s", what, err, out)
		}
	}
	if clear, _, _ := d.shown("org_1"); clear != 1 {
		t.Fatal("it was erased before it was killed: nothing is tested")
	}
	if first, err := d.Ledger.First(t.Context(), events.Usage); err != nil || first != 1 {
		t.Fatalf("it was pruned before it was killed: nothing is tested (%d, %v)", first, err)
	}
	next := p.open()
	if err := next.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if first, err := d.Ledger.First(t.Context(), events.Usage); err != nil || first != head+1 {
		t.Errorf("USAGE begins at %d, %v", first, err)
	}
	for _, id := range []string{seal.KeyID("parcelbird", "org_1", now)} {
		if gone, err := next.Seal.IsDestroyed(t.Context(), id, now); err != nil || !gone {
			t.Errorf("the data key is destroyed: %v, %v", gone, err)
		}
	}
	for _, kind := range []string{"privacy.erased", "usage.pruned"} {
		if n := len(next.recordedActs(kind)); n != 1 {
			t.Errorf("%d acts %s", n, kind)
		}
	}
	if err := next.Finish(t.Context()); err != nil {
		t.Error(err)
	}
	next.rebuilt("usage_v2")
	p.open()
}

// killed is the process that is killed.
func killed(t *testing.T) {
	d, err := openDesk(t.Context(), os.Getenv("RETENTION_NATS"), os.Getenv("RETENTION_POSTGRES"))
	if err != nil {
		t.Fatal(err)
	}
	d.recorded = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	switch os.Getenv("RETENTION_KILLED") {
	case "erase":
		_, err = d.Erase(t.Context(), by, Erasure{Keyspace: "parcelbird", Owner: "org_1"}, nil)
	case "prune":
		// Finish would erase first; a process that only prunes.
		d.Retention.acts.at, err = d.Ledger.Head(t.Context(), events.Ops)
		if err == nil {
			_, err = d.Prune(t.Context(), by, Pruning{Before: time.Now()}, nil)
		}
	}
	t.Fatalf("still alive: %v", err)
}
