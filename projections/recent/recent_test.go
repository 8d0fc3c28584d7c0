package recent

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/keyledger/keyledger/events"
)

// What is kept is whole and in order; what is older is said to be; who waits is woken.
func TestFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Place{10, 20})
		facts := make(chan events.Record)
		broken := errors.New("broken")
		go func() {
			_ = f.Run(t.Context(), func(yield func(events.Record, error) bool) {
				for r := range facts {
					if !yield(r, nil) {
						return
					}
				}
				yield(events.Record{}, broken)
			})
		}()
		if list, to, kept := f.After(10); len(list) != 0 || to != (Place{10, 20}) || !kept {
			t.Errorf("at the beginning %d facts to %v, kept %v", len(list), to, kept)
		}
		if _, to, kept := f.After(9); to.Feed != 10 || kept {
			t.Errorf("before the beginning to %v, kept %v", to, kept)
		}
		woken := make(chan Place, 1)
		go func() {
			at, _ := f.Reach(t.Context(), func(p Place) bool { return p.Feed > 11 })
			woken <- at
		}()
		const n = 3*Most + 7
		for i := range uint64(n) {
			facts <- events.Record{Sequence: 11 + i, Ledger: 22 + 2*i}
		}
		synctest.Wait()
		if at := <-woken; at.Feed < 12 {
			t.Errorf("woken at %v", at)
		}
		list, to, kept := f.After(10 + n - Most)
		if len(list) != Most || list[0].Sequence != 11+n-Most || to != (Place{10 + n, 20 + 2*n}) || !kept {
			t.Errorf("%d facts to %v, kept %v", len(list), to, kept)
		}
		_, old, kept := f.After(10)
		if kept || old.Feed > 10+n-Most {
			t.Errorf("what is older ends at %v, kept %v", old, kept)
		}
		if list, _, kept := f.After(old.Feed); !kept || list[0].Sequence != old.Feed+1 {
			t.Errorf("what is kept does not begin behind what is not")
		}
		close(facts)
		if _, err := f.Reach(t.Context(), func(Place) bool { return false }); !errors.Is(err, broken) {
			t.Errorf("who waits behind the end is told %v", err)
		}
		if _, err := f.Reach(t.Context(), func(p Place) bool { return p.Feed == 10+n }); err != nil {
			t.Errorf("who has enough is told %v", err)
		}
	})
}

// A hole ends it.
func TestHole(t *testing.T) {
	f := New(Place{})
	err := f.Run(t.Context(), func(yield func(events.Record, error) bool) {
		_ = yield(events.Record{Sequence: 1}, nil) && yield(events.Record{Sequence: 3}, nil)
	})
	if err == nil {
		t.Error("a hole was not seen")
	}
}
