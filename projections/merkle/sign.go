package merkle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

const (
	wholeLook = 5 * time.Second // between looks at all memories although nothing grew
	doubtLook = time.Second     // where something is in doubt: somebody may be mending it
	lookTime  = 10 * time.Second
	keepAll   = time.Hour // before PostgreSQL keeps one checkpoint of each hour
)

// Run signs what the trees have grown by, and publishes it, until ctx ends. Any
// number of processes may run it.
func (l *Log) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.publishAll(ctx)
	}()
	defer func() { <-done }()
	tick := time.NewTicker(l.o.Every)
	defer tick.Stop()
	for n := 0; ; n++ {
		l.lookAll(ctx)
		if n%1000 == 0 {
			l.thin(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lookAll looks at the streams whose trees have grown, and now and then at all.
func (l *Log) lookAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	sizes, err := l.sizes(ctx)
	// Once a round, and only where something is looked at.
	keys := sync.OnceValue(func() error { return cmp.Or(l.readKeys(ctx), l.readScrub(ctx)) })
	damaged := l.Damage() != nil
	for _, stream := range audit.Streams {
		l.mu.Lock()
		s := l.shown[stream]
		whole := time.Since(s.lookedAt) >= wholeLook || s.behind > 0 || damaged && s.doubt == nil || s.doubt != nil && time.Since(s.lookedAt) >= doubtLook
		looked := s.looked
		if err == nil {
			s.grown = sizes[stream]
		}
		l.mu.Unlock()
		if err == nil && !whole && sizes[stream] == looked {
			continue
		}
		e := err
		if e == nil {
			e = keys()
		}
		if e == nil {
			e = l.look(ctx, stream)
		}
		if ctx.Err() != nil && errors.Is(e, context.Canceled) {
			return
		}
		l.noted(stream, sizes[stream], e)
	}
	select {
	case l.publisher <- struct{}{}:
	default:
	}
}

// noted keeps what came of a look, and logs what changed.
func (l *Log) noted(stream string, size int64, err error) {
	l.mu.Lock()
	s := l.shown[stream]
	before, had := s.doubt, s.failed
	doubt, isDoubt := errors.AsType[*Doubt](err)
	s.doubt, s.failed = nil, nil
	switch {
	case isDoubt:
		s.doubt = doubt
	case errors.Is(err, errTaken): // at once again
		s.looked = -1
	case err != nil:
		s.failed = err
		s.failures++
	}
	if isDoubt {
		s.failures++
	}
	if err == nil || isDoubt {
		s.looked, s.lookedAt = size, time.Now()
	}
	l.mu.Unlock()
	switch {
	case isDoubt && (before == nil || before.Problem != doubt.Problem):
		l.o.Log.LogAttrs(context.Background(), slog.LevelError, "nothing is signed", slog.String("stream", stream), slog.Any("error", doubt))
	case !isDoubt && err != nil && !errors.Is(err, errTaken) && had == nil:
		l.o.Log.LogAttrs(context.Background(), slog.LevelWarn, "the tree could not be looked at; trying again", slog.String("stream", stream), slog.Any("error", err))
	case err == nil && before != nil:
		l.o.Log.LogAttrs(context.Background(), slog.LevelInfo, "the log is signed again", slog.String("stream", stream))
	}
}

// sizes are those of all trees.
func (l *Log) sizes(ctx context.Context) (map[string]int64, error) {
	var b strings.Builder
	for i, stream := range audit.Streams {
		if i > 0 {
			b.WriteString(" union all ")
		}
		fmt.Fprintf(&b, `select '%s', coalesce((select number * %d + length(hashes) / %d from keyledger.%s where level = 0 order by number desc limit 1), 0)`,
			stream, tileWidth, tlog.HashSize, Tree{stream}.Table())
	}
	rows, err := l.o.Pool.Query(ctx, b.String())
	if err != nil {
		return nil, err
	}
	all := map[string]int64{}
	var stream string
	var size int64
	_, err = pgx.ForEachRow(rows, []any{&stream, &size}, func() error { all[stream] = size; return nil })
	return all, err
}

// errTaken says that another process signed first.
var errTaken = errors.New("another process signed first")

// memory is a checkpoint that somebody remembers.
type memory struct {
	*entry
	whose string
}

// look compares the tree with everything that is remembered of what was signed, and
// signs it when it has grown. What it reads of the tree is one state of it. The
// bucket is read last: the others never remember more than it did before.
func (l *Log) look(ctx context.Context, stream string) error {
	l.mu.Lock()
	doubt := l.doubt
	l.mu.Unlock()
	if doubt != nil {
		return doubt
	}
	tx, err := l.o.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	e, err := readEdge(ctx, tx, "keyledger."+Tree{stream}.Table())
	if err != nil {
		return err
	}
	size := e.size()
	db, err := l.database(ctx, tx, stream)
	if err != nil {
		return err
	}
	dir, err := l.directory(stream)
	if err != nil {
		return err
	}
	last, revision, err := l.bucket(ctx, stream)
	if err != nil {
		return err
	}
	for _, m := range []memory{{db, "PostgreSQL"}, {dir, "the published directory"}} {
		if m.entry == nil {
			continue
		}
		switch {
		case last == nil:
			return &Doubt{stream, m.Size, "the bucket " + Bucket + " has no checkpoint of it, but " + m.whose + " remembers one", fixMemory}
		case m.Size > last.Size:
			return &Doubt{stream, m.Size, fmt.Sprintf("the bucket %s was set back: its checkpoint is of %d events, but %s remembers one of more", Bucket, last.Size, m.whose), fixMemory}
		case m.Size == last.Size && m.Root != last.Root:
			return &Doubt{stream, m.Size, fmt.Sprintf("two roots were signed: %s in the bucket %s, %s in %s", last.Root, Bucket, m.Root, m.whose),
				"keep both, they are evidence; " + fixMemory}
		}
	}
	if last != nil && size < last.Size {
		l.set(func() { l.shown[stream].behind = last.Size - size })
		head, err := l.o.Ledger.Head(ctx, stream)
		if err != nil {
			return err
		}
		if head < last.sequence {
			return &Doubt{stream, last.Size, fmt.Sprintf("the tree here has %d leaves and %s ends at sequence %d, but what was signed goes to sequence %d: its end was lost", size, stream, head, last.sequence),
				"restore the stream from a backup or an intact replica (docs/operators.md), then start again"}
		}
		return nil // it is being read
	}
	hashes := l.hashReader(ctx, tx, stream)
	root, err := tlog.TreeHash(size, hashes)
	if err = altered(err); errors.Is(err, ErrAltered) {
		return &Doubt{stream, size, "the rows of its tree are damaged: " + err.Error(), fmt.Sprintf("run `keyledger projections rebuild %s`", Tree{stream}.Table())}
	}
	if err != nil {
		return err
	}
	for _, m := range []memory{{last, "the bucket " + Bucket}, {db, "PostgreSQL"}, {dir, "the published directory"}} {
		if m.entry == nil {
			continue
		}
		err := altered(consistent(hashes, m.Tree, audit.Tree{Size: size, Root: root}))
		if err != nil && !errors.Is(err, ErrAltered) {
			return err
		}
		if err != nil {
			return &Doubt{stream, m.Size, fmt.Sprintf("the tree here does not contain the checkpoint that %s remembers, with root %s: %v", m.whose, m.Root, err),
				fmt.Sprintf("run `keyledger projections compare %s`: where it differs, rows were changed, and `keyledger projections rebuild` mends it. Where it does not, the stream is not the one that was signed: restore it from a backup", Tree{stream}.Table())}
		}
	}
	if refused := l.o.Ledger.Doubts(); len(refused) > 0 {
		return &Doubt{stream, size, "the event streams are in doubt: " + refused[0].Error(), "what is said there"}
	}
	if damage, ok := errors.AsType[*DamageError](l.Damage()); ok {
		f := &damage.Findings[0]
		return &Doubt{f.Stream, size, "a scrub has found that " + f.Problem, f.Fix + " (docs/runbooks/" + f.Runbook + ")"}
	}
	l.set(func() { l.shown[stream].behind = 0 })
	signer := l.signing()
	if last == nil || size > last.Size || !last.signedBy(signer) {
		next := &entry{sequence: e.sequence(), signedAt: events.At(time.Now())}
		if err := tx.QueryRow(ctx, `select coalesce((select event_id from keyledger.positions where name = $1 and sequence = $2), '')`, Tree{stream}.Table(), int64(next.sequence)).Scan(&next.eventID); err != nil {
			return err
		}
		next.Checkpoint = audit.Checkpoint{Origin: audit.Origin(signer.Name(), stream), Tree: audit.Tree{Size: size, Root: root}}
		if next.Note, err = audit.Sign(next.Checkpoint, signer); err != nil {
			return err
		}
		if err := l.replace(ctx, stream, next, revision); err != nil {
			return err
		}
		last = next
	}
	l.show(stream, last)
	if db == nil || db.Size < last.Size || !db.signedBy(signer) {
		return l.remember(ctx, stream, last)
	}
	return nil
}

// consistent says whether a tree, whose hashes are read, contains an earlier one.
func consistent(hashes tlog.HashReader, old, tree audit.Tree) error {
	if old.Size == tree.Size || old.Size == 0 {
		root, err := tlog.TreeHash(old.Size, hashes)
		if err == nil && root != old.Root {
			err = fmt.Errorf("its root there is %s", root)
		}
		return err
	}
	p, err := tlog.ProveTree(tree.Size, old.Size, hashes)
	if err != nil {
		return err
	}
	return tlog.CheckTree(p, tree.Size, tree.Root, old.Size, old.Root)
}

func (e *entry) signedBy(s note.Signer) bool {
	n, err := note.Open(e.Note, nil)
	unverified, ok := errors.AsType[*note.UnverifiedNoteError](err)
	if ok {
		n = unverified.Note
	}
	if n == nil {
		return false
	}
	for _, sig := range n.UnverifiedSigs {
		if sig.Hash == s.KeyHash() && sig.Name == s.Name() {
			return true
		}
	}
	return false
}

// keptCheckpoint is the value of a checkpoint in the bucket.
type keptCheckpoint struct {
	Checkpoint string `json:"checkpoint"` // signed note
	Sequence   uint64 `json:"sequence"`   // of its last event; 0: none
	EventID    string `json:"event_id"`

	SignedAt events.Time `json:"signed_at,omitempty"`
}

func checkpointPlace(stream string) string { return "checkpoint." + strings.ToLower(stream) }

// bucket is the checkpoint that the bucket holds, or nil.
func (l *Log) bucket(ctx context.Context, stream string) (*entry, uint64, error) {
	value, revision, err := l.get(ctx, checkpointPlace(stream))
	if err != nil || value == nil {
		return nil, revision, err
	}
	var k keptCheckpoint
	if json.Unmarshal(value, &k) != nil {
		return nil, 0, &Doubt{stream, 0, "its checkpoint in the bucket " + Bucket + " is not as it was written", fixMemory}
	}
	e, err := l.open(stream, "the bucket "+Bucket, []byte(k.Checkpoint))
	if err != nil {
		return nil, 0, err
	}
	e.sequence, e.eventID, e.signedAt = k.Sequence, k.EventID, k.SignedAt
	return e, revision, nil
}

// open reads a remembered checkpoint. One that no key of the log has signed is a doubt.
func (l *Log) open(stream, whose string, signed []byte) (*entry, error) {
	keys := l.Verifiers()
	if len(keys) == 0 {
		return nil, ErrDoubt
	}
	c, _, err := audit.Open(signed, audit.Origin(keys[0].Name(), stream), keys...)
	if err != nil || c.Of != nil {
		return nil, &Doubt{stream, c.Size, fmt.Sprintf("what %s remembers as its checkpoint was not signed by this log: %v", whose, err), fixMemory}
	}
	return &entry{Signed: Signed{c, signed}}, nil
}

// replace puts a checkpoint in the place of the one at revision, or fails with
// errTaken. From here on it was signed.
func (l *Log) replace(ctx context.Context, stream string, e *entry, revision uint64) error {
	value, err := json.Marshal(keptCheckpoint{string(e.Note), e.sequence, e.eventID, e.signedAt})
	if err != nil {
		return err
	}
	if l.o.unguarded {
		_, err = l.kv.Put(ctx, checkpointPlace(stream), value)
	} else {
		_, err = l.kv.Update(ctx, checkpointPlace(stream), value, revision)
	}
	if cluster.Conflict(err) {
		return errTaken
	}
	if err != nil {
		return fmt.Errorf("store the checkpoint of %s in the bucket %s: %w", stream, Bucket, err)
	}
	return nil
}

// show makes a checkpoint the one that is answered.
func (l *Log) show(stream string, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.shown[stream]
	if s.entry != nil && (s.Size > e.Size || string(s.Note) == string(e.Note)) {
		return
	}
	s.entry = e
	close(l.moved)
	l.moved = make(chan struct{})
}

// database is the furthest checkpoint that PostgreSQL remembers, or nil.
func (l *Log) database(ctx context.Context, tx pgx.Tx, stream string) (*entry, error) {
	var signed, id string
	var sequence int64
	err := tx.QueryRow(ctx, `select signed, sequence, event_id from keyledger.log_checkpoints where stream = $1 order by size desc limit 1`, stream).Scan(&signed, &sequence, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := l.open(stream, "PostgreSQL", []byte(signed))
	if err != nil {
		return nil, err
	}
	e.sequence, e.eventID = uint64(sequence), id
	return e, nil
}

// remember writes a checkpoint down in PostgreSQL.
func (l *Log) remember(ctx context.Context, stream string, e *entry) error {
	_, err := l.o.Pool.Exec(ctx, `insert into keyledger.log_checkpoints (stream, size, root, sequence, event_id, signed) values ($1, $2, $3, $4, $5, $6)
		on conflict (stream, size) do update set signed = excluded.signed where log_checkpoints.root = excluded.root`,
		stream, e.Size, e.Root[:], int64(e.sequence), e.eventID, string(e.Note))
	return err
}

// thin leaves of each hour that is over the last checkpoint.
func (l *Log) thin(ctx context.Context) {
	_, err := l.o.Pool.Exec(ctx, `delete from keyledger.log_checkpoints a using (
			select stream, date_trunc('hour', signed_at) as hour, max(size) as size from keyledger.log_checkpoints group by 1, 2) b
		where a.stream = b.stream and date_trunc('hour', a.signed_at) = b.hour and a.size < b.size and a.signed_at < now() - $1::interval`, keepAll)
	if err != nil && ctx.Err() == nil {
		l.o.Log.Debug("old checkpoints were not thinned out", "error", err)
	}
}

// remembered says who remembers a checkpoint, where the bucket has no key to open
// one with; empty: nobody.
func (l *Log) remembered(ctx context.Context) (string, error) {
	var any bool
	if err := l.o.Pool.QueryRow(ctx, `select exists (select from keyledger.log_checkpoints)`).Scan(&any); err != nil {
		return "", fmt.Errorf("read the checkpoints that were signed: %w", err)
	}
	if any {
		return "PostgreSQL", nil
	}
	for _, stream := range audit.Streams {
		if signed, err := l.published(stream); err != nil {
			return "", err
		} else if signed != nil {
			return "the published directory", nil
		}
	}
	return "", nil
}
