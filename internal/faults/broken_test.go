package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// broken is a copy of the state directory of a service that was stopped.
type broken struct {
	t        *testing.T
	dir      string
	postgres string
}

// blocks are the data files of a stream, oldest first.
func (b *broken) blocks(stream string) []string {
	b.t.Helper()
	found, err := filepath.Glob(filepath.Join(b.dir, "nats", "jetstream", "*", "streams", stream, "msgs", "*.blk"))
	if err != nil || len(found) == 0 {
		b.t.Fatalf("no data files of %s: %v", stream, err)
	}
	slices.SortFunc(found, func(a, b string) int { return len(a) - len(b) })
	return found
}

func (b *broken) flip(path string, at int) {
	b.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	data[at*len(data)/100] ^= 0x10
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *broken) truncate(path string) {
	b.t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()/2)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *broken) remove(path string) {
	b.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		b.t.Fatal(err)
	}
}

// forget takes away what the service itself remembers of the streams, so that
// the others that know them have to speak.
func (b *broken) forget() { b.remove(filepath.Join(b.dir, "head.json")) }

// through does something with JetStream's own API, as somebody with its
// administrator's rights could.
func (b *broken) through(f func(context.Context, jetstream.JetStream) error) {
	b.t.Helper()
	n := testenv.NATS(b.t, testenv.InDir(filepath.Join(b.dir, "nats")))
	conn := testenv.Conn(b.t, n)
	js, err := jetstream.New(conn)
	if err == nil {
		err = f(b.t.Context(), js)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	conn.Close()
	n.Shutdown()
}

func (b *broken) update(change func(*jetstream.StreamConfig)) {
	b.t.Helper()
	b.through(func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, events.Ledger)
		if err != nil {
			return err
		}
		config := s.CachedInfo().Config
		change(&config)
		_, err = js.UpdateStream(ctx, config)
		return err
	})
}

// recreate makes LEDGER anew with n facts that are good ones, of another history.
func (b *broken) recreate(n int) {
	b.t.Helper()
	b.through(func(ctx context.Context, js jetstream.JetStream) error {
		err := js.DeleteStream(ctx, events.Ledger)
		if err == nil {
			_, err = js.CreateStream(ctx, ledger.Config(events.Ledger, 1))
		}
		for i := range n {
			e := events.New(events.OwnerRegistered{Name: "Acme"}, time.Now())
			e.Keyspace, e.Owner, e.KeyVersion, e.Actor = "parcelbird", fmt.Sprintf("org_%d", i), 1, events.Actor{Type: "system", ID: "test"}
			var body []byte
			if body, err = events.Encode(e); err == nil {
				_, err = js.Publish(ctx, events.Subject(e.Keyspace, e.Owner, e.Key), body)
			}
			if err != nil {
				return err
			}
		}
		return err
	})
}

// heads are the last sequences of the streams, and how many messages they hold.
func (b *broken) heads() map[string][2]uint64 {
	b.t.Helper()
	found := map[string][2]uint64{}
	b.through(func(ctx context.Context, js jetstream.JetStream) error {
		for _, name := range []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ} {
			s, err := js.Stream(ctx, name)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			state := s.CachedInfo().State
			found[name] = [2]uint64{state.LastSeq, state.Msgs}
		}
		return nil
	})
	return found
}

// sql changes what PostgreSQL remembers.
func (b *broken) sql(query string, args ...any) {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), b.postgres)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close(b.t.Context())
	tag, err := conn.Exec(b.t.Context(), query, args...)
	if err != nil || tag.RowsAffected() == 0 {
		b.t.Fatalf("%s: %d rows, %v", query, tag.RowsAffected(), err)
	}
}

// A history that is in doubt is refused at the start, with a message that says
// what was found and what to do, and nothing is written.
func TestBrokenStreams(t *testing.T) {
	t.Parallel()
	original, postgres := t.TempDir(), testenv.Postgres(t)
	d := newDev(t, original, "KEYLEDGER_POSTGRES_URL="+postgres)
	d.start()
	c := d.client()
	c.prepare()
	for i := range 20 {
		a := c.until(t.Context(), http.MethodPost, "/v1/keys", fmt.Sprint("k", i), map[string]any{
			"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI", "meta": map[string]string{"filler": strings.Repeat("x", 500)}})
		if a.status != http.StatusCreated {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	invariants(t, d.places().NATSURL, postgres, 1, d.seen)
	if err := d.process.Interrupt(patience); err != nil {
		t.Fatal(err)
	}
	intact := (&broken{t, original, postgres}).heads()
	last := intact[events.Ledger][0]

	for _, x := range []struct {
		name    string
		damages func(*broken)
		says    []string
	}{
		{"bit flip at the start", func(b *broken) { b.flip(b.blocks(events.Ledger)[0], 1) }, []string{"LEDGER"}},
		{"bit flip in the middle", func(b *broken) { b.flip(b.blocks(events.Ledger)[0], 50) }, []string{"LEDGER"}},
		{"bit flip near the end, index gone", func(b *broken) {
			block := b.blocks(events.Ledger)[0]
			b.flip(block, 97)
			b.remove(filepath.Join(filepath.Dir(block), "index.db"))
		}, []string{"LEDGER"}},
		{"truncated block", func(b *broken) { b.truncate(b.blocks(events.Ledger)[0]) }, []string{"LEDGER"}},
		{"missing block", func(b *broken) { b.remove(b.blocks(events.Ledger)[0]) }, []string{"LEDGER"}},
		{"missing stream", func(b *broken) { b.remove(filepath.Dir(filepath.Dir(b.blocks(events.Ledger)[0]))) },
			[]string{"LEDGER", "the stream does not exist, although", fmt.Sprint(last)}},
		{"recreated stream, empty", func(b *broken) { b.forget(); b.recreate(0) },
			[]string{"LEDGER", "it ends at sequence 0", "the last message of FEED stands at", "keys_v1 stands at"}},
		{"recreated stream, shorter", func(b *broken) { b.forget(); b.recreate(3) },
			[]string{"LEDGER", "it ends at sequence 3", "keys_v1 stands at"}},
		{"recreated stream, longer", func(b *broken) { b.forget(); b.recreate(int(last) + 5) },
			[]string{"LEDGER", fmt.Sprintf("at sequence %d it holds event", last), "keys_v1 has read event", "another history"}},
		{"limit set", func(b *broken) { b.update(func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 }) },
			[]string{"LEDGER", "max_msgs is 1000 instead of -1", "nats stream edit LEDGER"}},
		{"limit that removed facts, set back", func(b *broken) {
			b.update(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardOld })
			b.update(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = -1, jetstream.DiscardNew })
		}, []string{"LEDGER", fmt.Sprintf("it begins at sequence %d instead of 1", last-2)}},
		{"head behind a position in PostgreSQL", func(b *broken) {
			b.sql(`update keyledger.positions set sequence = sequence + 7 where name = 'keys_v1'`)
		}, []string{"LEDGER", fmt.Sprintf("it ends at sequence %d, but", last), fmt.Sprintf("keys_v1 stands at %d", last+7)}},
		{"another event at a position in PostgreSQL", func(b *broken) {
			b.sql(`update keyledger.positions set event_id = 'evt_of_another_history' where name = 'keys_v1'`)
		}, []string{"LEDGER", fmt.Sprintf("at sequence %d it holds event", last), "evt_of_another_history"}},
		{"FEED emptied", func(b *broken) { b.remove(b.blocks(events.Feed)[0]) }, []string{"FEED"}},
		{"data directory lost", func(b *broken) { b.remove(filepath.Join(b.dir, "nats")) },
			[]string{"LEDGER", "the stream does not exist, although", "data directory"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := &broken{t, t.TempDir(), postgres}
			copyDir(t, b.dir, original)
			positions := b.positions()
			t.Cleanup(func() { b.restore(positions) })
			x.damages(b)
			before := map[string][2]uint64{}
			for name, h := range intact {
				before[name] = h
			}
			if strings.HasPrefix(x.name, "recreated") {
				before = b.heads()
			}
			said := b.refused()
			for _, want := range append(x.says, "What it means:", "What to do:") {
				if !strings.Contains(said, want) {
					t.Errorf("The refusal does not say %q:\n%s", want, said)
				}
			}
			t.Log(said)
			for name, h := range b.heads() {
				if h[0] > before[name][0] || h[1] > before[name][1] {
					t.Errorf("%s had %d messages up to %d, and now %d up to %d", name, before[name][1], before[name][0], h[1], h[0])
				}
			}
		})
	}

	// The control: what was not damaged starts.
	again := newDev(t, original, "KEYLEDGER_POSTGRES_URL="+postgres)
	again.start()
	invariants(t, again.places().NATSURL, postgres, 1, again.seen)
}

// refused starts the service on the directory and answers what it says when it
// refuses.
func (b *broken) refused() string {
	b.t.Helper()
	d := newDev(b.t, b.dir, "KEYLEDGER_POSTGRES_URL="+b.postgres)
	d.launch()
	err := d.process.Wait(patience)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		b.t.Fatalf("It ended with %v instead of exit code 1:\n%s", err, d.process.Output())
	}
	return d.process.Output()
}

// positions are the rows that remember how far projections have read.
func (b *broken) positions() string {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), b.postgres)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close(b.t.Context())
	var rows string
	if err := conn.QueryRow(b.t.Context(), `select coalesce(json_agg(json_build_object('name', name, 'sequence', sequence, 'event_id', event_id)), '[]')::text from keyledger.positions`).Scan(&rows); err != nil {
		b.t.Fatal(err)
	}
	return rows
}

func (b *broken) restore(positions string) {
	var rows []struct {
		Name     string
		Sequence int64
		EventID  string `json:"event_id"`
	}
	if err := json.Unmarshal([]byte(positions), &rows); err != nil {
		b.t.Fatal(err)
	}
	conn, err := pgx.Connect(context.Background(), b.postgres)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, r := range rows {
		if _, err := conn.Exec(context.Background(), `update keyledger.positions set sequence = $2, event_id = $3 where name = $1`, r.Name, r.Sequence, r.EventID); err != nil {
			b.t.Error(err)
		}
	}
}

// copyDir copies files with their modes.
func copyDir(t testing.TB, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
