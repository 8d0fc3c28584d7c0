// Package merkle keeps a Merkle tree over each stream, signs how it stands, and
// proves from it. What stands in a tree and what a checkpoint says is package
// [audit]'s.
//
// [Tree] and [Parts] fold a stream into rows; the runner of the projections
// applies them. A [Log] signs and answers:
//
//	l, err := merkle.Open(ctx, merkle.Options{…})
//	go l.Run(ctx)                                   // signs and publishes
//	l.Key(), l.Keys(), l.Verifiers(), l.Rotate(…)   // verifier keys, newest first
//	l.Checkpoint(stream)                            // Signed{Checkpoint, Note}
//	l.Prove(ctx, place)                             // Proof{Leaf, Index, Hashes, Signed}
//	l.Sealed(ctx, stream, sequence)                 // waits for a checkpoint that holds it
//	l.HashReader(ctx, stream, tree)                 // tlog.HashReader, checked against the tree
//	l.TileReader(ctx, stream)                       // tlog.TileReader, unchecked
//	l.Tile(ctx, stream, tile), l.Entries(…)         // as C2SP tlog-tiles serves them
//	l.Parts(ctx, stream)                            // Closing: parts, their tree, its checkpoint
//	l.Receipt(leaf)                                 // signed before the tree holds it
//	l.Cosign(ctx, stream, note), l.Shown(…)         // takes and shows witnesses' signatures
//	l.Witnessed(ctx, stream, size), l.Cosigners(ctx) // what they have signed, who, and when
//	l.Policy()                                      // whose signatures are asked for
//	l.State()                                       // per stream: signed, behind, in doubt
//	go l.Scrub(ctx)                                 // reads the streams again, for ever
//	l.ScrubState(), l.Damage(), l.ScrubNow(ctx)     // how far, what it found; begin at once
//	merkle.Known(ctx, pool)                         // what was signed, for ledger.Open
//
// It promises that one stream never has two signed roots for one size, and that
// every checkpoint is consistent with all that were signed before, whatever was
// killed and however many processes sign: a checkpoint counts when it has replaced
// the one before it in the NATS bucket [Bucket] by compare-and-swap, and is shown
// only then. Before it signs, a process proves that its tree contains the furthest
// checkpoint that the bucket, PostgreSQL or the published directory remember. On
// any doubt it signs nothing and says which stream, which size and what to do;
// what was signed is served on.
//
// How it can disappoint. A checkpoint comes up to a second after the event, or
// later where PostgreSQL is away or a tree is rebuilt. Whoever takes the bucket,
// the database and the published directory together takes the memory of what was
// signed: let somebody else keep checkpoints too. A tree over a stream whose
// beginning was pruned cannot be built from it again, only kept.
package merkle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
)

// Options of [Open]. Ledger, Pool, JetStream and Master are needed.
type Options struct {
	Ledger    *ledger.Ledger
	Pool      *pgxpool.Pool
	JetStream jetstream.JetStream
	Master    seal.Master
	Replicas  int           // of the bucket: 1 (also for 0) or 3
	Dir       string        // where checkpoints, tiles and entries are published; empty: nowhere
	NoEntries bool          // entries, which name owners and keys, are not published
	Node      string        // of this process, for events
	Policy    *audit.Policy // whose cosignatures are taken and asked for; nil: nobody's

	Every time.Duration // how often a tree is looked at; 0 is 300 ms

	ScrubRate  int64         // bytes a second that a scrub reads; 0 is DefaultScrubRate
	ScrubEvery time.Duration // between the beginnings of two passes; 0 is 30 s
	Log        *slog.Logger  // nil: slog.Default()

	unguarded bool // replaces checkpoints without comparing, for the control of a test
}

// Log signs and proves. It is safe for concurrent use.
type Log struct {
	o  Options
	kv jetstream.KeyValue

	keyed     sync.Mutex // held while the log's keys are read or changed
	publisher chan struct{}
	scrub     *scrub

	cosignedHere atomic.Bool // a cosignature was taken that is not published yet

	mu     sync.Mutex // guards what follows
	keys   []logKey   // newest first; none: they are in doubt
	signer note.Signer
	doubt  *Doubt // of the keys
	shown  map[string]*shown
	moved  chan struct{} // closed and replaced when a checkpoint is shown
}

// shown is the newest checkpoint of a stream that this process has found in its
// own tree, and what it thinks of the stream.
type shown struct {
	*entry
	behind int64  // leaves that the tree lacks of what was signed
	doubt  *Doubt // nil: none
	failed error  // why the last look failed; nil: it did not

	grown     int64     // size of the tree
	looked    int64     // size of the tree at the last whole look
	lookedAt  time.Time // zero: never
	published int64     // size; -1: not known
	publish   error

	failures, publishFailures uint64 // attempts of this process
}

// Signed is a signed checkpoint.
type Signed struct {
	audit.Checkpoint
	Note []byte // as it is published, C2SP signed-note
}

// entry is a signed checkpoint with the place of its last event.
type entry struct {
	Signed
	sequence uint64
	eventID  string
	signedAt events.Time // 0: not known
}

// Doubt says why nothing is signed.
type Doubt struct {
	Stream  string // empty: all
	Size    int64
	Problem string
	Fix     string
}

func (d *Doubt) Error() string {
	where := "the audit log"
	if d.Stream != "" {
		where = fmt.Sprintf("the tree over %s at size %d", d.Stream, d.Size)
	}
	return fmt.Sprintf("%s: %s; nothing is signed. What to do: %s", where, d.Problem, d.Fix)
}

const fixMemory = "keep copies of the bucket " + Bucket + ", of the table keyledger.log_checkpoints and of the published directory as they are now, find out who changed them, and restore the bucket from a backup"

// ErrNotSealed says that a place is not in a signed tree yet.
var ErrNotSealed = errors.New("not sealed yet")

// Open opens the log and makes its key where there is none and nobody remembers
// one. It does not sign: that is [Log.Run]. It fails where NATS does not answer; what it
// doubts is said by [Log.State].
func Open(ctx context.Context, o Options) (*Log, error) {
	o.Every = cmp.Or(o.Every, 300*time.Millisecond)
	o.Replicas = max(o.Replicas, 1)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.scrubDefaults()
	l := &Log{o: o, shown: map[string]*shown{}, moved: make(chan struct{}), publisher: make(chan struct{}, 1), scrub: newScrub(o.ScrubRate)}
	for _, stream := range audit.Streams {
		l.shown[stream] = &shown{published: -1}
	}
	var err error
	if l.kv, err = openBucket(ctx, o.JetStream, o.Replicas); err != nil {
		return nil, err
	}
	// Who leads a bucket that was just made may not be chosen yet.
	err = cluster.AskToStart(ctx, func(ctx context.Context) error {
		if err := l.readKeys(ctx); err != nil {
			return err
		}
		return l.readScrub(ctx)
	})
	if err != nil {
		return nil, err
	}
	o.Ledger.Hold(l.Damage)
	return l, nil
}

// Known are the places of the checkpoints that a database remembers, for
// [ledger.Open], which refuses streams that do not reach them. A database without
// the table has none.
func Known(ctx context.Context, pool *pgxpool.Pool) ([]ledger.Position, error) {
	rows, err := pool.Query(ctx, `select distinct on (stream) stream, size, sequence, event_id from keyledger.log_checkpoints where sequence > 0 order by stream, size desc`)
	if err == nil {
		var list []ledger.Position
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p ledger.Position, err error) {
			var size, at int64
			err = row.Scan(&p.Stream, &size, &at, &p.EventID)
			p.Name, p.Sequence = fmt.Sprintf("the signed checkpoint of %d events", size), uint64(at)
			return p, err
		})
		if err == nil {
			return list, nil
		}
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "3F000") {
		return nil, nil
	}
	return nil, fmt.Errorf("read the checkpoints that were signed: %w", err)
}

// Stream is the stream of a name in any case, or false.
func Stream(name string) (string, bool) {
	name = strings.ToUpper(name)
	return name, slices.Contains(audit.Streams, name)
}

// Checkpoint is the newest signed checkpoint of a stream whose tree this process
// has. It fails with [ErrNotSealed] where there is none yet.
func (l *Log) Checkpoint(stream string) (Signed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.shown[stream]; s != nil && s.entry != nil {
		return s.Signed, nil
	}
	return Signed{}, fmt.Errorf("%s has no checkpoint: %w", stream, ErrNotSealed)
}

// newest is the newest checkpoint and the sequence of its last event; 0 for none.
func (l *Log) newest(stream string) (Signed, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.shown[stream]; s != nil && s.entry != nil {
		return s.Signed, s.sequence
	}
	return Signed{}, 0
}

// Sealed waits for a checkpoint that holds a message, as long as ctx allows.
func (l *Log) Sealed(ctx context.Context, stream string, sequence uint64) (Signed, error) {
	for {
		l.mu.Lock()
		s, moved := l.shown[stream], l.moved
		var at *entry
		var doubt *Doubt
		if s != nil {
			at, doubt = s.entry, cmp.Or(s.doubt, l.doubt)
		}
		l.mu.Unlock()
		if at != nil && at.sequence >= sequence {
			return at.Signed, nil
		}
		if doubt != nil {
			return Signed{}, fmt.Errorf("%s %d: %w: %w", stream, sequence, ErrNotSealed, doubt)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return Signed{}, fmt.Errorf("%s %d: %w", stream, sequence, ErrNotSealed)
		}
	}
}

// State is how the tree over a stream is doing.
type State struct {
	Stream    string
	Size      int64  // that is signed, and shown here; -1: none yet
	Sequence  uint64 // of the last event in it
	Behind    int64  // leaves that the tree here lacks of what was signed
	Published int64  // size of the published directory; -1: none
	Doubt     error  // why nothing is signed, or nil
	Failed    error  // what the last attempt met: it is tried again

	SignedAt        events.Time // 0: not known
	Unsigned        int64       // leaves of the tree here that are not signed yet
	Failures        uint64      // attempts to sign by this process that met an error or a doubt
	PublishFailures uint64      // and to publish
}

// State tells of every stream.
func (l *Log) State() []State {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []State
	for _, stream := range audit.Streams {
		s := l.shown[stream]
		st := State{Stream: stream, Size: -1, Behind: s.behind, Published: s.published, Failed: errors.Join(s.failed, s.publish)}
		if s.entry != nil {
			st.Size, st.Sequence, st.SignedAt = s.Size, s.sequence, s.signedAt
			st.Unsigned = max(s.grown-s.Size, 0)
		}
		st.Failures, st.PublishFailures = s.failures, s.publishFailures
		if d := cmp.Or(s.doubt, l.doubt); d != nil {
			st.Doubt = d
		}
		list = append(list, st)
	}
	return list
}

// Doubt is the first reason why something is not signed, or nil.
func (l *Log) Doubt() error {
	for _, s := range l.State() {
		if s.Doubt != nil {
			return s.Doubt
		}
	}
	return nil
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}
