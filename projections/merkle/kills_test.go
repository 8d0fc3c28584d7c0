package merkle_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

// In the environment this test program is a process that signs.
const signingProcess = "KEYLEDGER_TEST_SIGNS"

type signing struct {
	NATS, Postgres, Dir string
	Unguarded           bool
}

func TestMain(m *testing.M) {
	if given := os.Getenv(signingProcess); given != "" {
		if err := sign(given); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// sign runs the projections and the log until it is ended.
func sign(given string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var s signing
	if err := json.Unmarshal([]byte(given), &s); err != nil {
		return err
	}
	nc, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, s.Postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	known, err := merkle.Known(ctx, pool)
	if err != nil {
		return err
	}
	l, err := ledger.Open(ctx, nc, ledger.Options{AllowUnverifiedSync: true, Known: known})
	if err != nil {
		return err
	}
	defer l.Close()
	o := merkle.Options{Ledger: l, Pool: pool, JetStream: js, Master: seal.Master{1}, Dir: s.Dir, Node: "n", Every: 5 * time.Millisecond}
	if s.Unguarded {
		o = merkle.Unguarded(o)
	}
	log, err := merkle.Open(ctx, o)
	if err != nil {
		return err
	}
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() { projections.New(l, pool, slog.Default()).Run(ctx) })
	fmt.Println("signing")
	_ = log.Run(ctx)
	return nil
}

// times is how often a fault happens in a run, as in internal/faults.
func times(short, long int) int {
	if os.Getenv("KEYLEDGER_FAULTS") == "long" {
		return long
	}
	return short
}

// contest is a ledger that is written to while two processes sign, each with a
// database of its own: their trees are never equally far.
type contest struct {
	*stage
	pools   [2]*pgxpool.Pool
	envs    [2]string
	process [2]*testenv.Process
	dir     string
	writing sync.WaitGroup
	end     chan struct{}
	mu      sync.Mutex // guards signed
	signed  map[string][]merkle.Signed
}

func newContest(t *testing.T, unguarded bool) *contest {
	t.Helper()
	server := testenv.NATS(t, testenv.Listening())
	c := &contest{stage: &stage{t: t, conn: testenv.Conn(t, server)}, dir: filepath.Join(t.TempDir(), "log"), end: make(chan struct{}), signed: map[string][]merkle.Signed{}}
	var err error
	if c.js, err = jetstream.New(c.conn); err != nil {
		t.Fatal(err)
	}
	if c.ledger, err = ledger.Open(t.Context(), c.conn, ledger.Options{AllowUnverifiedSync: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.ledger.Close() })
	for i := range c.pools {
		c.pools[i] = database(t)
		b, err := json.Marshal(signing{server.ClientURL(), c.pools[i].Config().ConnString(), c.dir, unguarded})
		if err != nil {
			t.Fatal(err)
		}
		c.envs[i] = signingProcess + "=" + string(b)
	}
	c.launch(0)
	c.process[0].WaitOutput("signing", patience)
	c.launch(1)
	c.process[1].WaitOutput("signing", patience)
	kv, err := c.js.KeyValue(t.Context(), merkle.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := kv.Watch(t.Context(), "checkpoint.>", jetstream.IncludeHistory())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watch.Stop() })
	c.pool = c.pools[0]
	go func() {
		for e := range watch.Updates() {
			if e == nil {
				continue
			}
			var v struct{ Checkpoint string }
			if err := json.Unmarshal(e.Value(), &v); err != nil {
				t.Error(err)
			}
			s := merkle.Signed{Note: []byte(v.Checkpoint)}
			text, _, _ := strings.Cut(v.Checkpoint, "\n\n")
			if s.Checkpoint, err = audit.ParseCheckpoint(text + "\n"); err != nil {
				t.Error(err)
			}
			stream := strings.ToUpper(strings.TrimPrefix(e.Key(), "checkpoint."))
			c.mu.Lock()
			c.signed[stream] = append(c.signed[stream], s)
			c.mu.Unlock()
		}
	}()
	c.writing.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-c.end:
				return
			default:
			}
			c.facts(1)
			c.page(1 + n%40)
		}
	})
	return c
}

func (c *contest) launch(i int) {
	c.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	c.process[i] = testenv.Start(c.t, []string{c.envs[i]}, exe)
}

// back says where a checkpoint went back, or one size has two roots.
func (c *contest) back() (wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, list := range c.signed {
		for i := 1; i < len(list); i++ {
			if before, s := list[i-1], list[i]; s.Size < before.Size || s.Size == before.Size && s.Root != before.Root {
				wrong = append(wrong, fmt.Sprintf("%s: after size %d, root %s, size %d, root %s was signed", stream, before.Size, before.Root, s.Size, s.Root))
			}
		}
	}
	return wrong
}

// Two processes sign, and are killed at random moments. No size has two roots, no
// checkpoint is smaller than one before, and each is what tlog makes of the stream.
func TestKillsOfSigners(t *testing.T) {
	t.Parallel()
	c := newContest(t, false)
	n := times(8, 100)
	for range n {
		i := rand.IntN(2)
		if rand.IntN(8) > 0 {
			c.process[i].WaitOutput("signing", patience)
		}
		<-time.After(rand.N(600 * time.Millisecond))
		c.process[i].Kill()
		if out := c.process[i].Output(); strings.Contains(out, "nothing is signed") {
			t.Errorf("something was doubted: %s", out)
		}
		c.launch(i)
	}
	close(c.end)
	c.writing.Wait()

	trees := map[string]*memory{}
	var size int64
	for _, stream := range []string{events.Ledger, events.Usage} {
		m := &memory{parts: map[audit.Scope]*audit.Part{}}
		for r, err := range c.ledger.Read(t.Context(), stream, 1, 0) {
			if err != nil {
				t.Fatal(err)
			}
			m.add(t, &r)
		}
		trees[stream] = m
		size = int64(len(m.leaves))
		until(t, "all of "+stream+" is signed, by both databases and in the directory", func() bool {
			c.mu.Lock()
			list := c.signed[stream]
			c.mu.Unlock()
			if len(list) == 0 || list[len(list)-1].Size != size {
				return false
			}
			for _, pool := range c.pools {
				var most int64
				if err := pool.QueryRow(t.Context(), `select coalesce(max(size), 0) from keyledger.log_checkpoints where stream = $1`, stream).Scan(&most); err != nil || most != size {
					return false
				}
			}
			b, err := os.ReadFile(filepath.Join(c.dir, strings.ToLower(stream), "checkpoint"))
			return err == nil && strings.Contains(string(b), fmt.Sprintf("\n%d\n", size))
		})
	}
	for _, wrong := range c.back() {
		t.Error(wrong)
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err) // there is one: no process has made a second
	}
	all := 0
	for stream, m := range trees {
		signed := slices.Clone(c.signed[stream])
		for _, pool := range c.pools {
			rows, err := pool.Query(t.Context(), `select signed from keyledger.log_checkpoints where stream = $1`, stream)
			if err != nil {
				t.Fatal(err)
			}
			list, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				signed = append(signed, merkle.Signed{Note: []byte(s)})
			}
		}
		for _, s := range signed {
			got, _, err := audit.Open(s.Note, audit.Origin(key.Name(), stream), key)
			if err != nil || got.Size > int64(len(m.leaves)) || got.Root != m.root(t, got.Size) {
				t.Errorf("%s: %v: %s", stream, err, s.Note)
			}
		}
		all += len(signed)
		whole := tlog.TileHashReader(tlog.Tree{N: int64(len(m.leaves)), Hash: m.root(t, int64(len(m.leaves)))}, fileTiles{filepath.Join(c.dir, strings.ToLower(stream))})
		for i := range int64(len(m.leaves)) {
			h, err := whole.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
			if err != nil || h[0] != m.leaves[i].Hash() {
				t.Fatalf("leaf %d in the directory of %s: %v", i, stream, err)
			}
		}
	}
	t.Logf("%d checkpoints over %d kills, %d and %d leaves", all, n, len(trees[events.Ledger].leaves), len(trees[events.Usage].leaves))
	runner := projections.New(c.ledger, c.pools[0], slog.New(slog.DiscardHandler))
	for _, p := range projections.All() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		head, err := c.ledger.Head(ctx, p.Stream())
		if err == nil {
			err = runner.Wait(ctx, p.Name(), head)
		}
		if r, e := runner.Compare(ctx, p.Name(), nil); err != nil || e != nil || r.Differences != 0 {
			t.Errorf("%s: %+v, %v, %v", p.Name(), r, err, e)
		}
		cancel()
	}
}

// The control: processes that replace checkpoints without comparing sign less after
// more, and the test above would see it.
func TestSignersUnguarded(t *testing.T) {
	t.Parallel()
	c := newContest(t, true)
	defer func() {
		close(c.end)
		c.writing.Wait()
	}()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if wrong := c.back(); len(wrong) > 0 {
			t.Log(wrong[0])
			return
		}
		for i := range c.process { // one that doubts what the other did starts anew
			if strings.Contains(c.process[i].Output(), "nothing is signed") {
				c.process[i].Kill()
				c.launch(i)
			}
		}
	}
	t.Error("No checkpoint went back without comparing: the contest proves nothing.")
}
