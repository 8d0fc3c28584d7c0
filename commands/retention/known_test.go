package retention

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// A start reads what has come since the fold of OPS was last kept, and knows what
// reading all of it gives. A fold of another past, and one that somebody else wrote,
// is not used.
func TestKnownActs(t *testing.T) {
	p := newPlace(t)
	d := p.open()
	if _, _, err := d.Hold(t.Context(), by, Scope{Keyspace: "parcelbird", Owner: "org_1"}, "a lawsuit"); err != nil {
		t.Fatal(err)
	}
	for range keepEvery {
		if _, err := d.Ledger.AppendOps(t.Context(), events.New(events.AuditRead{What: "events", Filter: map[string]string{}}, time.Now())); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(who *desk) []Hold {
		t.Helper()
		a, err := who.Retention.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return a.holds
	}
	want := holds(d)
	next := p.open()
	next.recall(t.Context())
	if next.acts.at <= keepEvery || !slices.Equal(next.acts.holds, want) || len(want) != 1 {
		t.Fatalf("what is known is %+v, and %v was to be in force", next.acts, want)
	}
	if _, _, err := d.Hold(t.Context(), by, Scope{Keyspace: "parcelbird", Owner: "org_2"}, "another"); err != nil {
		t.Fatal(err)
	}
	if got := holds(next); len(got) != 2 {
		t.Errorf("%v is in force after a second hold", got)
	}

	nc, err := nats.Connect(p.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := js.KeyValue(t.Context(), seal.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(){
		"of another past": func() {
			d.acts.id = "evt_other"
			d.keep(t.Context())
		},
		"of what is yet to come": func() {
			d.acts.at += 1000
			d.keep(t.Context())
		},
		"of another master key": func() {
			if _, err := bucket.Put(t.Context(), "note.acts-1", seal.Master{8}.Wrap([]byte(`{"at":1}`), "note.acts-1")); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Seal.Remembered(t.Context(), knownName); !errors.Is(err, seal.ErrTampered) {
				t.Errorf("what somebody else wrote: %v", err)
			}
		},
	} {
		change()
		again := p.open()
		again.recall(t.Context())
		if again.acts.at != 0 {
			t.Errorf("a fold %s is used", name)
		}
		if got := holds(again); len(got) != 2 {
			t.Errorf("beside a fold %s, %v is in force", name, got)
		}
	}
}
