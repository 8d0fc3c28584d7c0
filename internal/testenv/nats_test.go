package testenv_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/testenv"
)

func TestNATS(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   []testenv.Option
		synced bool
	}{
		{"fast", nil, false},
		{"synced", []testenv.Option{testenv.Synced()}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := testenv.NATS(t, c.opts...)
			if n.SyncAlways() != c.synced {
				t.Errorf("SyncAlways() = %v, want %v", n.SyncAlways(), c.synced)
			}
			js, err := jetstream.New(testenv.Conn(t, n))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
				t.Fatal(err)
			}
			ack, err := js.Publish(t.Context(), "s.a", []byte("x"))
			if err != nil || ack.Sequence != 1 {
				t.Fatalf("Publish = %v, %v, want sequence 1", ack, err)
			}
		})
	}
}
