package projections

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// Acts and gaps are listed in words, whatever their type, and the same again when
// they are built anew.
func TestActsAndGaps(t *testing.T) {
	l, pool := openLedger(t), database(t)
	var last uint64
	for _, d := range []events.Payload{
		events.AuditRead{What: "events", Filter: map[string]string{"type": "key.revoked"}, Count: 7},
		events.HoldSet{Active: true, Reason: "a\x00case"},
		events.PrivacyErased{DataKeys: []string{"pb.o1.2026-01", "pb.o1.2026-02"}, Reason: "asked"},
		events.ServiceStarted{Program: "serve", Build: "1.2", Node: "n1", Head: 4},
		events.LogKeyRotated{Previous: "a", Key: "b"},
	} {
		e := events.New(d, start)
		e.Keyspace, e.Owner, e.Actor = "pb", "o1", events.Actor{Type: "root_key", ID: "key_root"}
		n, err := l.AppendOps(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		last = n
	}
	e := events.New(events.UsageGap{Node: "n1", Count: 3, Reason: "NATS was away", To: events.At(start)}, start.Add(time.Second))
	e.Keyspace = "pb"
	body, err := events.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	page, err := l.AppendPage(t.Context(), "pb", "n1", [][]byte{body})
	if err != nil {
		t.Fatal(err)
	}
	r, stop := running(t, l, pool, Acts{}, Gaps{})
	if err := r.Wait(t.Context(), "acts_v1", last); err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(t.Context(), "gaps_v1", page); err != nil {
		t.Fatal(err)
	}
	stop()
	rows, err := pool.Query(t.Context(), `select type || '|' || detail || '|' || reason || '|' || count from analytics.acts order by sequence`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	want := []string{"audit.read|events||7", "hold.set|held|a\uFFFDcase|0", "privacy.erased||asked|2", "service.started|serve 1.2 on n1||0", "log.key_rotated|||0"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("acts %q, %v", got, err)
	}
	if s := scan[string](t, pool, `select keyspace || node || count || reason || (began is null) || (ended is not null) from analytics.usage_gaps`); s != "pbn13NATS was awaytruetrue" {
		t.Errorf("gaps %q", s)
	}
	for _, name := range []string{"acts_v1", "gaps_v1"} {
		if result, err := New(l, pool, nil).Rebuild(t.Context(), name, nil); err != nil || result.Differences != 0 || result.Rows == 0 {
			t.Errorf("rebuilt %s: %+v, %v", name, result, err)
		}
	}
}
