package cluster_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/internal/testenv"
)

func jet(t *testing.T, nodes *testenv.Nodes, i int) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nodes.Conn(i))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Several processes open a bucket at once: one makes it, and every one gets it. While a
// cluster has no majority nobody is answered, for longer than one question waits, and
// then it goes on.
func TestOpenBucket(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	together := func(bucket string) {
		t.Helper()
		var all sync.WaitGroup
		for i := range 6 {
			js := jet(t, nodes, i%3)
			all.Go(func() {
				kv, err := cluster.OpenBucket(t.Context(), js, jetstream.KeyValueConfig{Bucket: bucket, Replicas: 3})
				if err != nil {
					t.Error(err)
				} else if kv.Bucket() != bucket {
					t.Errorf("opened %s, want %s", kv.Bucket(), bucket)
				}
			})
		}
		all.Wait()
	}
	together("first")

	js := jet(t, nodes, 0)
	nodes.Stop(1)
	nodes.Stop(2)
	opened := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := cluster.OpenBucket(t.Context(), js, jetstream.KeyValueConfig{Bucket: "second", Replicas: 3})
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("opened without a majority after %s: %v", time.Since(began), err)
	case <-time.After(cluster.AskTime + 2*time.Second):
	}
	nodes.Restart(1)
	nodes.Restart(2)
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	together("second")
}

// What a question is told for good is told at once, and a question that nobody answers
// ends when its asker does.
func TestAsk(t *testing.T) {
	asked, wrong := 0, errors.New("wrong")
	if err := cluster.Ask(t.Context(), func(context.Context) error { asked++; return wrong }); err != wrong || asked != 1 {
		t.Errorf("asked %d times, %v", asked, err)
	}
	asked = 0
	err := cluster.Ask(t.Context(), func(context.Context) error {
		if asked++; asked < 4 {
			return &jetstream.APIError{Code: 503}
		}
		return nil
	})
	if err != nil || asked != 4 {
		t.Errorf("asked %d times, %v", asked, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = cluster.Ask(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Get reads what the leader has, and tells what was deleted from what was never there.
func TestGet(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	kv, err := cluster.OpenBucket(t.Context(), jet(t, nodes, 0), jetstream.KeyValueConfig{Bucket: "b", Replicas: 3, LimitMarkerTTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		revision, err := kv.Put(t.Context(), "a.b", []byte{byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		value, at, err := cluster.Get(t.Context(), nodes.Conn(i%3), "b", "a.b")
		if err != nil || at != revision || len(value) != 1 || value[0] != byte(i) {
			t.Fatalf("%v at %d, want %d at %d: %v", value, at, i, revision, err)
		}
	}
	if _, err := kv.Update(t.Context(), "a.b", nil, 1); !cluster.Conflict(err) {
		t.Errorf("an update of a revision that is past: %v", err)
	}
	if err := kv.Delete(t.Context(), "a.b"); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(t.Context(), "short", []byte("x"), jetstream.KeyTTL(time.Second)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		value, _, err := cluster.Get(t.Context(), nodes.Conn(1), "b", "short")
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%q, %v", value, err)
		}
		if value == nil {
			break
		}
	}
	for _, c := range []struct {
		bucket, key string
		was         bool
	}{{"b", "a.b", true}, {"b", "short", true}, {"b", "never", false}, {"none", "a", false}} {
		value, revision, err := cluster.Get(t.Context(), nodes.Conn(1), c.bucket, c.key)
		if err != nil || value != nil || c.was != (revision > 0) {
			t.Errorf("%s in %s: %v at %d, %v", c.key, c.bucket, value, revision, err)
		}
	}
}
