package faults

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// What is done to the streams behind the back of a service that runs is found while it
// runs: commands are refused, nothing is signed, and keys are verified.
func TestDoubtWhileRunning(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name string
		does func(context.Context, jetstream.JetStream) error
		says []string // any of them: the one who looks first finds it
	}{
		{"limit set", func(ctx context.Context, js jetstream.JetStream) error {
			c := ledger.Config(events.Ledger, 1)
			c.MaxMsgs = 1 << 30
			_, err := js.UpdateStream(ctx, c)
			return err
		}, []string{"max_msgs is"}},
		{"made anew", func(ctx context.Context, js jetstream.JetStream) error {
			err := js.DeleteStream(ctx, events.Ledger)
			if err == nil {
				_, err = js.CreateStream(ctx, ledger.Config(events.Ledger, 1))
			}
			return err
		}, []string{"the stream was created at", "it ends at sequence 0, but"}},
		{"gone", func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, events.Ledger) }, []string{"the stream does not exist, although"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			d := newDev(t, t.TempDir(), "KEYLEDGER_POSTGRES_URL="+testenv.Postgres(t))
			d.start()
			c := d.client()
			c.prepare()
			var key made
			c.until(t.Context(), http.MethodPost, "/v1/keys", "k1", map[string]any{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"}).decode(t, &key)
			conn, err := nats.Connect(d.places().NATSURL)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			js, err := jetstream.New(conn)
			if err == nil {
				err = x.does(t.Context(), js)
			}
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(patience); ; {
				a, err := c.once(t.Context(), http.MethodGet, "/readyz", "", nil)
				if err != nil {
					t.Fatalf("it does not answer any more: %v", err)
				}
				if slices.ContainsFunc(x.says, func(says string) bool { return strings.Contains(string(a.body), says) }) {
					if a.status != http.StatusServiceUnavailable {
						t.Errorf("/readyz answers %d %s", a.status, a.body)
					}
					break
				}
				if time.Now().After(end) {
					t.Fatalf("not found: %d %s", a.status, a.body)
				}
				<-time.After(20 * time.Millisecond)
			}
			a, err := c.once(t.Context(), http.MethodPost, "/v1/keys", "k2", map[string]any{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
			if err != nil || a.status != http.StatusServiceUnavailable || a.code() != "LEDGER_REFUSED" || !slices.ContainsFunc(x.says, func(says string) bool { return strings.Contains(string(a.body), says) }) {
				t.Errorf("a command is answered %d %s, %v", a.status, a.body, err)
			}
			for range 3 {
				if code, err := c.verify(t.Context(), key.Secret); err != nil || code != "VALID" {
					t.Errorf("verify answers %q, %v", code, err)
				}
			}
			// Of a stream that is gone nobody can say that there is no more in it.
			if a, err := c.once(t.Context(), http.MethodGet, "/readyz?for=verify", "", nil); err != nil || a.status != http.StatusOK && x.name != "gone" {
				t.Errorf("/readyz?for=verify answers %d %s, %v", a.status, a.body, err)
			}
		})
	}
}
