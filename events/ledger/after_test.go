package ledger_test

import (
	"errors"
	"testing"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// A page of a node that ended is stored behind its last one or not at all, and
// what the node sent before its end cannot come after it.
func TestAppendPageAfter(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	body := func(id string) [][]byte {
		e := used("key_1")
		e.ID = id
		b, err := events.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		return [][]byte{b}
	}
	keyspace := used("key_1").Keyspace
	head := func() uint64 {
		n, err := l.PageHead(t.Context(), keyspace, "gone")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := head(); n != 0 {
		t.Fatalf("head %d", n)
	}
	first, err := l.AppendPageAfter(t.Context(), keyspace, "gone", 0, body("evt_1"))
	if err != nil || head() != first {
		t.Fatal(first, head(), err)
	}
	if _, err := l.AppendPageAfter(t.Context(), keyspace, "gone", 0, body("evt_2")); !errors.Is(err, ledger.ErrConflict) {
		t.Errorf("behind what is not the last one: %v", err)
	}
	if _, err := l.AppendPageAfter(t.Context(), keyspace, "gone", first, body("evt_3")); err != nil {
		t.Error(err)
	}
	var ids []string
	for r, err := range l.PagesOf(t.Context(), "gone", 0) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Event.ID)
	}
	if len(ids) != 2 || ids[0] != "evt_1" || ids[1] != "evt_3" {
		t.Errorf("%v", ids)
	}
}
