package keyring

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyledger/keyledger/domain"
)

// Whoever looks for what was added finds it while the tables grow, entries of
// the same hash included, and never one that is not meant.
func TestIndexWhileItGrows(t *testing.T) {
	const n = 5000
	var all entries
	x := index{entries: &all}
	hash := func(i int) uint64 { return uint64(i%(n/4)) * 0x9e3779b97f4a7c15 } // of four each
	id := func(i int) string { return fmt.Sprint("key_", i) }
	search := func(i int) (*entry, uint32) {
		h := hash(i)
		for table, from := x.table(h), uint32(h); ; {
			at, number, after := x.next(table, h, from)
			if at == nil || at.key.Load().ID == id(i) {
				return at, number
			}
			from = after
		}
	}
	find := func(i int) *entry {
		at, _ := search(i)
		return at
	}
	var added atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for seen := 0; seen < n; {
				seen = int(added.Load())
				for i := 0; i < seen; i += 1 + seen/50 {
					if at := find(i); at == nil || at.key.Load().ID != id(i) {
						t.Errorf("of %d, %d is not found", seen, i)
						return
					}
				}
			}
		})
	}
	for i := range n {
		if find(i) != nil {
			t.Fatalf("%d is found before it is added", i)
		}
		number, _ := all.add(nil, &domain.Key{ID: id(i)})
		x.add(hash(i), number)
		added.Add(1)
	}
	wg.Wait()
	for i := range n {
		if at, number := search(i); at == nil || int(number) != i {
			t.Fatalf("%d is found as %v, %d", i, at, number)
		}
	}
}
