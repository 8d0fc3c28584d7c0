package ledger_test

import (
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// Single messages are read on connections that nothing waits behind. They are opened
// when they are first needed, and closed with the ledger.
func TestLanes(t *testing.T) {
	n := testenv.NATS(t)
	l, err := ledger.Open(t.Context(), testenv.Conn(t, n), ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	clients := func(at func(int) bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !at(n.Server().NumClients()); {
			if time.Now().After(deadline) {
				t.Fatalf("the server has %d clients", n.Server().NumClients())
			}
			time.Sleep(time.Millisecond)
		}
	}
	body, err := events.Encode(used("key_a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.AppendPage(t.Context(), "ks", "n", [][]byte{body}); err != nil {
		t.Fatal(err)
	}
	if c := n.Server().NumClients(); c != 1 {
		t.Fatalf("%d clients before anything was read", c)
	}
	for range 3 {
		if records, err := l.At(t.Context(), events.Usage, 1); err != nil || len(records) != 1 {
			t.Fatal(records, err)
		}
		clients(func(c int) bool { return c > 1 })
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	clients(func(c int) bool { return c == 1 })
	if _, err := l.At(t.Context(), events.Usage, 1); err != nil {
		t.Errorf("after Close a message is not read: %v", err)
	}
}
