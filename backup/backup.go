// Package backup copies a whole installation into one file while it is running,
// and puts such a file back.
//
// A backup holds every stream as JetStream's own snapshot, which is the one way
// that keeps sequences, timestamps, headers and the positions of durable
// consumers; the KV buckets beside the streams; and those tables of PostgreSQL
// that nothing else can be built from. The master key is not in it.
//
// What it promises:
//
//   - Streams are taken in the order of [order]: what speaks of another stream is
//     taken before that one, so that nothing in a backup speaks of a fact that is
//     not in it. All that was acknowledged before it began is in it.
//   - A backup that was written was restored once, into an empty server, opened
//     there as the service opens it, and read to its end. What was read is in the
//     manifest as a digest of every message with its sequence, time and header, and
//     is compared after every restore.
//   - The file appears under its name when it is whole and on disk, mode 0600.
//     Any changed byte, a shorter or longer file and a missing member are refused
//     before anything is restored.
//
// How it can disappoint. It is a copy of what the server had: who copies a damaged
// stream has a refusal, not a repair. The hashes tell damage, not forgery: whoever
// can write the file can write the hashes; what was signed tells that, with
// `keyledger audit verify`. While it is made it takes as much room again beside its
// file, for the server that it is tried in.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/embedded"
)

// format is the version of the file's layout.
const format = 1

// buckets begins the names of the streams behind the KV buckets of an installation.
const buckets = "KV_keyledger_"

// logBucket is the stream of what the audit log's signer remembers. It is taken
// first, so that no stream is shorter than what was signed of it.
const logBucket = buckets + "log"

// passing are buckets that are not taken: who is signed in, and secrets that wait for
// whoever has a link. What ended after a backup must not begin again with it.
var passing = []string{buckets + "sessions", buckets + "claims"}

// order is how streams are taken: FEED, USAGE and OPS speak of LEDGER; the record of
// what was pruned from USAGE is on OPS before it is pruned. Data keys are taken after
// what they seal: they were made before it.
func order(names []string) ([]string, error) {
	var all []string
	if slices.Contains(names, logBucket) {
		all = append(all, logBucket)
	}
	all = append(all, events.Feed, events.Usage, events.DLQ, events.Ops)
	for _, n := range slices.Sorted(slices.Values(names)) {
		if strings.HasPrefix(n, buckets) && n != logBucket && !slices.Contains(passing, n) {
			all = append(all, n)
		}
	}
	all = append(all, events.Ledger)
	for _, n := range all {
		if !slices.Contains(names, n) {
			return nil, fmt.Errorf("there is no stream %s on this server and account: is it the one that the service uses, and was the service ever started there?", n)
		}
	}
	return all, nil
}

// Manifest says what a backup holds. It is the file's last member.
type Manifest struct {
	Format   int         `json:"format"`
	Program  string      `json:"program"` // version of the program that made it
	Server   string      `json:"server"`  // version of the NATS server
	Began    events.Time `json:"began"`   // all that was acknowledged before is in it
	Ended    events.Time `json:"ended"`
	Streams  []Stream    `json:"streams"` // in the order in which they were taken
	Postgres []Table     `json:"postgres"`

	// Checkpoints are the newest that the audit log had signed, as its bucket holds them.
	Checkpoints []string `json:"checkpoints"`
	Without     []string `json:"without"` // what one might look for in it
}

// Stream is a stream in a backup.
type Stream struct {
	Name      string          `json:"name"`
	Member    string          `json:"member"` // JetStream's snapshot
	Bytes     int64           `json:"bytes"`  // of the member
	SHA256    string          `json:"sha256"` // of the member
	Config    json.RawMessage `json:"config"` // as the server had it
	State     json.RawMessage `json:"state"`  // as the server had it when it began
	First     uint64          `json:"first"`
	Last      uint64          `json:"last"`
	Messages  uint64          `json:"messages"`
	Events    uint64          `json:"events"` // lines of its messages; 0 of a bucket
	LastEvent string          `json:"last_event"`
	LastTime  events.Time     `json:"last_time"` // when the server took the last message; null: there is none
	Digest    string          `json:"digest"`    // SHA-256 over every message with its place, time, subject and header
}

// Table is a table of PostgreSQL in a backup.
type Table struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
	Member  string   `json:"member"` // COPY, text format
	Bytes   int64    `json:"bytes"`
	SHA256  string   `json:"sha256"`
}

// Stream is the stream of a name, or nil.
func (m *Manifest) Stream(name string) *Stream {
	for i := range m.Streams {
		if m.Streams[i].Name == name {
			return &m.Streams[i]
		}
	}
	return nil
}

// Options of [Write].
type Options struct {
	Conn     *nats.Conn
	Pool     *pgxpool.Pool // nil: nothing of PostgreSQL
	Program  string
	Progress func(done, total int64) // messages read of those there are; may be nil
	Log      *slog.Logger            // nil: nothing
}

// Write makes a backup at path, which MUST NOT exist.
func Write(ctx context.Context, path string, o Options) (*Manifest, error) {
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s is there already: a backup never replaces a file", path)
	}
	for try := 0; ; try++ {
		m, err := write(ctx, path, o)
		if !errors.Is(err, errMoved) || try == 2 {
			return m, err
		}
	}
}

// errMoved says that something was pruned while the backup was made.
var errMoved = errors.New("USAGE was pruned while the backup was made")

func write(ctx context.Context, path string, o Options) (_ *Manifest, err error) {
	names, total, err := survey(ctx, o.Conn)
	if err != nil {
		return nil, err
	}
	trial, err := startTrial(filepath.Dir(path), o.Log)
	if err != nil {
		return nil, err
	}
	defer trial.close()
	a, err := createArchive(path)
	if err != nil {
		return nil, err
	}
	defer a.abandon()
	m := &Manifest{
		Format: format, Program: o.Program, Server: o.Conn.ConnectedServerVersion(), Began: events.At(time.Now()),
		Streams: []Stream{}, Postgres: []Table{}, Checkpoints: []string{},
		Without: []string{"the master key", "configuration and passwords", "write-ahead logs of uses that are answered and not yet in NATS", "who is signed in at the console, and secrets that wait behind a link", "read models that are built again from the streams"},
	}
	began, err := firstOf(ctx, o.Conn, events.Usage)
	if err != nil {
		return nil, err
	}
	baseline := uint64(0)
	var done int64
	if o.Pool != nil { // before the log's bucket: the database never remembers more than that did before
		if m.Postgres, baseline, err = dump(ctx, o.Pool, a); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		s, err := snapshot(ctx, o.Conn, name, a)
		if err != nil {
			return nil, fmt.Errorf("copy stream %s: %w", name, err)
		}
		if err := trial.restore(ctx, s, a); err != nil {
			return nil, fmt.Errorf("the copy of stream %s cannot be restored: %w", name, err)
		}
		read, err := readThrough(ctx, trial.conn, name, func(n int64) { o.Progress(done+n, max(total, done+n)) })
		if err != nil {
			return nil, fmt.Errorf("the copy of stream %s cannot be read: %w", name, err)
		}
		done += int64(read.Messages)
		s.take(read)
		if name == events.Usage && o.Pool != nil && s.First > began && s.First > baseline+1 {
			return nil, errMoved
		}
		m.Streams = append(m.Streams, *s)
	}
	o.Progress(done, done)
	if err := trial.open(ctx); err != nil {
		return nil, fmt.Errorf("the copy would be refused by the service; what was copied is as doubtful: %w", err)
	}
	if m.Checkpoints, err = checkpoints(ctx, trial.conn, m); err != nil {
		return nil, err
	}
	m.Ended = events.At(time.Now())
	if err := a.finish(m); err != nil {
		return nil, err
	}
	return m, nil
}

// trial is an empty server that a backup is restored into, to see that it can be.
type trial struct {
	dir    string
	server *embedded.NATS
	conn   *nats.Conn
}

// startTrial starts one beside a file.
func startTrial(beside string, log *slog.Logger) (*trial, error) {
	dir, err := os.MkdirTemp(beside, ".keyledger-trial-*") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("the directory of the backup cannot be written: %w", err)
	}
	t := &trial{dir: dir}
	if t.server, err = embedded.StartNATS(embedded.NATSConfig{Dir: filepath.Join(dir, "nats"), ServerName: "keyledger-trial", NoSync: true, Log: log}); err == nil {
		t.conn, err = t.server.Conn()
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("start a server to try the backup in: %w", err)
	}
	return t, nil
}

func (t *trial) close() {
	if t.conn != nil {
		t.conn.Close()
	}
	if t.server != nil {
		t.server.Shutdown()
	}
	_ = os.RemoveAll(t.dir)
}

func (t *trial) restore(ctx context.Context, s *Stream, a *archive) error {
	r, err := a.read(s.Member)
	if err != nil {
		return err
	}
	return restoreStream(ctx, t.conn, s, r, 1, nil)
}

// open opens the streams as the service does.
func (t *trial) open(ctx context.Context) error {
	l, err := ledger.Open(ctx, t.conn, ledger.Options{ReadOnly: true, AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return l.Close()
}
