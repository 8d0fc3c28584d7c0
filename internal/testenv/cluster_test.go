package testenv_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/testenv"
)

// A stream of three replicas takes writes while one node is down, and the node
// has them when it is back.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := testenv.Cluster(t, 3)
	js, err := jetstream.New(c.Conn(0))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.a", nil); err != nil {
		t.Fatal(err)
	}
	// A follower, so that no election is waited for.
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	down := 1
	if info.Cluster.Leader == "n1" || c.Node(1).Server().JetStreamIsLeader() {
		down = 2
	}
	c.Stop(down)
	if c.Node(down) != nil {
		t.Errorf("Node(%d) is not nil after Stop", down)
	}
	ack, err := js.Publish(t.Context(), "s.a", nil, jetstream.WithRetryAttempts(100))
	if err != nil || ack.Sequence != 2 {
		t.Fatalf("Publish with a node down = %v, %v, want sequence 2", ack, err)
	}
	c.Restart(down)
	js, err = jetstream.New(c.Conn(down))
	if err != nil {
		t.Fatal(err)
	}
	ack, err = js.Publish(t.Context(), "s.a", nil, jetstream.WithRetryAttempts(100))
	if err != nil || ack.Sequence != 3 {
		t.Fatalf("Publish through the restarted node = %v, %v, want sequence 3", ack, err)
	}
}
