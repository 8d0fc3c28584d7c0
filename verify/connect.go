package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections/keyring"
)

// Config is what [Connect] needs. URL (or Conn) and MasterKeyFile are required.
type Config struct {
	// URL names the NATS servers, separated by commas. Options say who connects:
	// nats.UserInfo, nats.UserCredentials, nats.RootCAs, and for the user of
	// deploy/nats/nats.conf nats.CustomInboxPrefix("_INBOX_verifier").
	URL     string
	Options []nats.Option

	// Conn is a connection that is open already, instead of URL. It stays the
	// caller's. It MUST reconnect for ever (nats.MaxReconnects(-1)).
	Conn *nats.Conn

	// MasterKeyFile holds the key that personal data in the log is sealed under:
	// the same as the service's, mode 0600.
	MasterKeyFile string

	// Node is the name that uses are recorded under, a subject token; no two
	// running processes may share it. Default: one made of the host's name.
	Node string

	// StateDir is where this process keeps its write-ahead log, so that kill -9
	// loses no use that was answered, and remembers how far the streams were, so that
	// one that lost its end is refused at the next start. Default: nowhere.
	StateDir string

	// StaleWindow is how long requests are still decided after NATS was lost; then
	// STATE_TOO_STALE. Zero is [DefaultStaleWindow].
	StaleWindow time.Duration

	// Replicas of every stream, 1 (also for 0) or 3: as the service has it.
	Replicas int

	// Monitor are the monitoring addresses of all NATS servers
	// (http://nats-1:8222), where it is read back that they sync every write.
	// Default: taken from the service, which refuses to start otherwise.
	Monitor []string

	Log *slog.Logger // nil: slog.Default()
}

// Node is a verifier with all that it stands on: it follows the keys from NATS,
// decides from memory and records to NATS, and never asks the service.
type Node struct {
	*Verifier
	Recorder *Recorder
	Ring     *keyring.Ring
	Ledger   *ledger.Ledger

	keys *seal.Keys
	conn *nats.Conn // nil: the caller's
	stop context.CancelFunc
	done chan struct{} // closed when the ring has ended

	mu  sync.Mutex
	err error // why it did; guarded by mu
}

// recountTime is how long a start waits at most for the limits to be recounted.
const recountTime = 5 * time.Second

// Connect starts a node and returns when it knows every key. The service
// (keyledger serve) MUST have been started once: it makes the streams. It fails
// where NATS cannot be reached, where the master key is not the service's, and with
// a [*ledger.RefusalError] on any doubt about the streams. ctx bounds the start
// alone; [Node.Close] MUST be called.
func Connect(ctx context.Context, c Config) (_ *Node, err error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Node == "" {
		c.Node = NodeName("verifier")
	}
	n := &Node{Ring: keyring.New(), done: make(chan struct{})}
	defer func() {
		if err != nil {
			ended, stop := context.WithCancel(ctx)
			stop()
			_ = n.Close(ended)
		}
	}()
	master, err := seal.LoadMaster(c.MasterKeyFile)
	if err != nil {
		return nil, err
	}
	conn := c.Conn
	if conn == nil {
		options := append([]nats.Option{nats.Name("keyledger " + c.Node), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond)}, c.Options...)
		if conn, err = nats.Connect(c.URL, options...); err != nil {
			return nil, fmt.Errorf("NATS: %w", err)
		}
		n.conn = conn
	}
	head := ""
	if c.StateDir != "" {
		if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		head = filepath.Join(c.StateDir, "head.json")
	}
	n.Ledger, err = ledger.Open(ctx, conn, ledger.Options{
		Replicas: c.Replicas, ReadOnly: true, SyncAlways: ledger.SyncedBy(c.Monitor), AllowUnverifiedSync: len(c.Monitor) == 0,
		HeadFile: head, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	if n.keys, err = seal.Open(ctx, js, master, max(c.Replicas, 1)); err != nil {
		return nil, err
	}
	if err := n.follow(ctx, c.Log); err != nil {
		return nil, err
	}
	recording := RecorderOptions{Log: c.Log, Master: master}
	if c.StateDir == "" {
		n.Recorder = NewRecorder(n.Ledger, n.keys, c.Node, recording)
	} else {
		recording.Dir = filepath.Join(c.StateDir, "wal")
		for _, k := range n.Ring.Keyspaces() {
			recording.Keyspaces = append(recording.Keyspaces, k.Document.Keyspace)
		}
		if n.Recorder, err = OpenRecorder(ctx, n.Ledger, n.keys, c.Node, recording); err != nil {
			return nil, err
		}
	}
	n.Verifier = New(n.Ring, n.Recorder, Options{
		Head: func(ctx context.Context) (uint64, error) {
			if err := n.failed(); err != nil {
				return 0, err
			}
			return n.Ledger.Head(ctx, events.Ledger)
		},
		StaleWindow: c.StaleWindow,
	})
	if err := n.Share(ctx, conn, c.Node, c.Log); err != nil {
		return nil, fmt.Errorf("tell other verifiers what is admitted here: %w", err)
	}
	n.Tell(conn, c.Node, "verifier")
	// What is limited counts on; a log that cannot be read says so elsewhere, and
	// keeps nobody from verifying.
	if err := n.Recount(ctx, n.Ledger, recountTime, c.Log); err != nil {
		c.Log.Warn("limits begin empty, as if nothing had been used before this start", "error", err)
	}
	return n, n.started(ctx, c.Node)
}

// follow runs the ring and returns when it holds all that was in LEDGER.
func (n *Node) follow(ctx context.Context, log *slog.Logger) error {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	go func() {
		defer close(n.done)
		if err := n.Ring.Run(life, n.Ledger); !errors.Is(err, context.Canceled) {
			log.Error("the keys are not followed any more: end this process, and start it again when the ledger is well", "error", err)
			n.mu.Lock()
			n.err = err
			n.mu.Unlock()
		}
	}()
	select {
	case <-n.Ring.Ready():
		return nil
	case <-n.done:
		return n.failed()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) failed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// started records that this process verifies from now on.
func (n *Node) started(ctx context.Context, name string) error {
	build := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		build = info.Main.Path + "@" + info.Main.Version
	}
	e := events.New(events.ServiceStarted{Program: "verifier", Build: build, Node: name, Head: n.Ring.Sequence()}, time.Now())
	e.Actor, e.Via = events.Actor{Type: "system", ID: name}, "verifier"
	_, err := n.Ledger.AppendOps(ctx, e)
	return err
}

// Done is closed when the keys are not followed any more: after [Node.Close], or
// when the ledger was found damaged, which [Node.Ready] then says. A process should
// end in the latter case; until it does, it refuses with STATE_TOO_STALE after the
// stale window.
func (n *Node) Done() <-chan struct{} { return n.done }

// lostTooLong is from when on a lost stream makes a node not ready: it still
// decides, by its stale window, but others know more.
const lostTooLong = 10 * time.Second

// Ready is nil where the node can be relied on, else why not: for a readiness
// check. [Verifier.Lost] tells how old its knowledge is.
func (n *Node) Ready() error {
	if err := n.failed(); err != nil {
		return err
	}
	if err := n.Ledger.Err(events.Ledger); err != nil {
		return err
	}
	if lost := n.Lost(); lost > lostTooLong {
		return fmt.Errorf("LEDGER was last known to be followed to its end %s ago: is NATS reachable?", lost.Round(time.Second))
	}
	return nil
}

// Close records what is left, as far as ctx allows, and ends the node. Requests
// MUST have ended: stop the HTTP server first.
func (n *Node) Close(ctx context.Context) error {
	var errs []error
	if n.Verifier != nil {
		n.Verifier.Close()
	}
	if n.Recorder != nil {
		if err := n.Recorder.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("record the last uses: %w", err))
		}
	}
	if n.stop != nil {
		n.stop()
		<-n.done
	}
	if n.keys != nil {
		n.keys.Close()
	}
	if n.Ledger != nil {
		errs = append(errs, n.Ledger.Close())
	}
	if n.conn != nil {
		n.conn.Close()
	}
	return errors.Join(errs...)
}

// NodeName is a name for a running process that no other has, and that tells a
// person which machine it was.
func NodeName(program string) string {
	host, _ := os.Hostname()
	token := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, host)
	if token == "" {
		token = "node"
	}
	return program + "-" + token + "-" + strings.ReplaceAll(events.NewID("n", time.Now()), "-", "")[2:]
}
