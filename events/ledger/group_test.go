package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// Appends that wait for the disk together meet their fate alone: of those that
// state a wrong sequence, or want the same place, each gets its own conflict, and
// no other fact falls with it.
func TestAppendsTogether(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t, testenv.Synced())), ledger.Options{})
	const keys = 200
	type answer struct {
		id       string
		sequence uint64
		err      error
	}
	answers := make([]answer, 3*keys)
	var clients sync.WaitGroup
	for i := range answers {
		key := fmt.Sprintf("key_%d", i%keys) // each is wanted by three
		clients.Go(func() {
			e := created("org_1", key, 1)
			answers[i].id = e.ID
			switch {
			case i%7 == 0: // nothing stands at this sequence
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				answers[i].sequence, answers[i].err = l.Append(ctx, 1<<40, e)
			case i%5 == 0:
				admitted := events.New(events.OwnerKeyAdmitted{Key: key}, e.Time.Time())
				admitted.Keyspace, admitted.Owner = e.Keyspace, "owner_"+key
				answers[i].sequence, answers[i].err = l.AppendBatch(t.Context(), []ledger.Expect{{Event: e}, {Event: admitted}})
			default:
				answers[i].sequence, answers[i].err = l.Append(t.Context(), 0, e)
			}
		})
	}
	clients.Wait()
	won := map[int]int{}
	for i, a := range answers {
		switch {
		case errors.Is(a.err, ledger.ErrConflict), i%7 == 0 && errors.Is(a.err, ledger.ErrUnknownOutcome):
			continue
		case a.err != nil:
			t.Fatalf("append %d: %v", i, a.err)
		case i%7 == 0:
			t.Errorf("append %d held at a sequence that does not exist", i)
		}
		won[i%keys]++
		records, err := l.At(t.Context(), events.Ledger, a.sequence)
		if err != nil || records[0].Event.ID != a.id {
			t.Errorf("append %d was told sequence %d, where another fact stands (%v)", i, a.sequence, err)
		}
	}
	for key := range keys {
		wrong := 0
		for i := key; i < len(answers); i += keys {
			if i%7 == 0 {
				wrong++
			}
		}
		if want := min(1, 3-wrong); won[key] != want {
			t.Errorf("key %d was created %d times, want %d", key, won[key], want)
		}
	}
}

// A reader gives the facts of a batch on when the server says that the batch is
// whole, and so on disk: the server shows them sooner.
func TestBatchIsOnDiskFirst(t *testing.T) {
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	if _, err := l.Append(t.Context(), 0, created("org_1", "key_0", 1)); err != nil {
		t.Fatal(err)
	}
	questions, err := nc.SubscribeSync("$JS.API.STREAM.MSG.GET.LEDGER")
	if err != nil {
		t.Fatal(err)
	}
	asked := func(sequence uint64) {
		t.Helper()
		for {
			m, err := questions.NextMsg(10 * time.Second)
			if err != nil {
				t.Fatalf("the server was not asked for message %d: %v", sequence, err)
			}
			if string(m.Data) == fmt.Sprintf(`{"seq":%d}`, sequence) {
				return
			}
		}
	}
	for r, err := range l.Follow(t.Context(), events.Ledger, 0) {
		if err != nil {
			t.Fatal(err)
		}
		switch r.Sequence {
		case 1:
			asked(1) // what was there before
			if _, err := l.AppendBatch(t.Context(), []ledger.Expect{{0, created("org_1", "key_1", 1)}, {0, created("org_1", "key_2", 1)}}); err != nil {
				t.Fatal(err)
			}
		case 3:
			asked(3)
			return
		}
	}
}
