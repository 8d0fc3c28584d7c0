package claims

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/testenv"
)

// Of several that take a sealed secret out at once, at any servers of a cluster, one has
// it and the others are told that somebody was faster.
func TestTakenOnce(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	var all []*Claims
	for i := range 3 {
		js, err := jetstream.New(nodes.Conn(i))
		if err != nil {
			t.Fatal(err)
		}
		kv, err := OpenBucket(t.Context(), js, 3)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &Claims{KV: kv})
	}
	for range 40 {
		revision, err := all[0].KV.Put(t.Context(), "sealed.x", []byte("box"))
		if err != nil {
			t.Fatal(err)
		}
		var had atomic.Int32
		var people sync.WaitGroup
		for i := range 6 {
			people.Go(func() {
				taken, err := all[i%3].take(t.Context(), "sealed.x", revision)
				if err != nil {
					t.Error(err)
				}
				if taken {
					had.Add(1)
				}
			})
		}
		people.Wait()
		if had.Load() != 1 {
			t.Fatalf("%d have it", had.Load())
		}
	}
}
