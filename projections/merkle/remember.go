package merkle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/seal"
)

// Remembered is a checkpoint as somebody remembers it. Nothing about it was checked.
type Remembered struct {
	Holder   string // InBucket, InDatabase or InDirectory
	Whose    string // the same for messages, with the place there
	Newest   bool   // it is the one that counts there
	Note     []byte
	Sequence uint64 // of its last event, as said beside it; 0: not said
	Tree     *audit.Tree
	At       time.Time // when it was remembered; zero: not known
}

// Who remembers.
const (
	InBucket    = "the bucket " + Bucket
	InDatabase  = "PostgreSQL"
	InDirectory = "the published directory"
)

// Memory is all that an installation remembers of what was signed, read without a
// [Log] and without changing anything.
type Memory struct {
	Name  string // of the log, by the bucket; empty: the bucket has no key
	Keys  []Key  // newest first
	Doubt error  // why the bucket's keys cannot be what a Log wrote; nil: they can

	Bucket    bool // it is there
	Dir       string
	Published []string                // verifier keys that the published directory names
	Streams   map[string][]Remembered // the bucket's by revision, then PostgreSQL's and the directory's by size
	Cosigned  map[string][][]byte     // of the bucket
}

// ReadMemory reads it. What the bucket remembers is read last: the others never
// remember more than it did before. master may be nil: then it is not tried whether
// the log's key can be used.
func ReadMemory(ctx context.Context, js jetstream.JetStream, pool *pgxpool.Pool, dir string, master *seal.Master) (*Memory, error) {
	m := &Memory{Dir: dir, Streams: map[string][]Remembered{}, Cosigned: map[string][][]byte{}}
	others := map[string][]Remembered{}
	for _, stream := range audit.Streams {
		if err := readPublished(dir, stream, others); err != nil {
			return nil, err
		}
	}
	if err := readRows(ctx, pool, others); err != nil {
		return nil, err
	}
	if dir != "" {
		b, err := os.ReadFile(filepath.Join(dir, "keys"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		m.Published = strings.Fields(string(b))
	}
	kv, err := js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		m.Streams = others
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", Bucket, err)
	}
	m.Bucket = true
	for _, stream := range audit.Streams {
		if err := m.readBucket(ctx, js.Conn(), kv, stream); err != nil {
			return nil, err
		}
		m.Streams[stream] = append(m.Streams[stream], others[stream]...)
	}
	return m, m.readKeys(ctx, js.Conn(), master)
}

func (m *Memory) readBucket(ctx context.Context, nc *nats.Conn, kv jetstream.KeyValue, stream string) error {
	history, err := kv.History(ctx, checkpointPlace(stream))
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("read the checkpoints of %s in the bucket %s: %w", stream, Bucket, err)
	}
	// The history is one replica's, which may be behind the leader: without the newest
	// the bucket would seem to have lost what others remember.
	newest, revision, err := cluster.Get(ctx, nc, Bucket, checkpointPlace(stream))
	if err != nil {
		return err
	}
	known := uint64(0)
	for _, e := range history {
		r := Remembered{Holder: InBucket, Whose: fmt.Sprintf("%s (revision %d)", InBucket, e.Revision()), At: e.Created()}
		if e.Operation() == jetstream.KeyValuePut {
			r.read(e.Value())
		}
		m.Streams[stream], known = append(m.Streams[stream], r), e.Revision()
	}
	if revision > known {
		r := Remembered{Holder: InBucket, At: time.Now()}
		r.read(newest)
		m.Streams[stream] = append(m.Streams[stream], r)
	}
	if kept := m.Streams[stream]; len(kept) > 0 {
		kept[len(kept)-1].Newest, kept[len(kept)-1].Whose = true, InBucket
	}
	value, _, err := cluster.Get(ctx, nc, Bucket, cosignedPlace(stream))
	if err != nil || value == nil {
		return err
	}
	var list []cosigned
	_ = json.Unmarshal(value, &list) // they are the witnesses' own to give again
	for _, c := range list {
		m.Cosigned[stream] = append(m.Cosigned[stream], []byte(c.Note))
	}
	return nil
}

// read reads a checkpoint as the bucket keeps it; what is none has no signature either.
func (r *Remembered) read(value []byte) {
	var k keptCheckpoint
	_ = json.Unmarshal(value, &k)
	r.Note, r.Sequence = []byte(k.Checkpoint), k.Sequence
}

func (m *Memory) readKeys(ctx context.Context, nc *nats.Conn, master *seal.Master) error {
	value, _, err := cluster.Get(ctx, nc, Bucket, keyPlace)
	if err != nil || value == nil {
		return err
	}
	l := &Log{}
	if master != nil {
		l.o.Master = *master
	}
	var s stored
	doubt := l.openKeys(value, &s)
	if doubt != nil && (master != nil || len(s.Keys) == 0) {
		m.Doubt = doubt
	}
	m.Name = s.Name
	for i := len(s.Keys) - 1; i >= 0; i-- {
		k := Key{Verifier: s.Keys[i].Verifier, Since: s.Keys[i].Since}
		if i < len(s.Keys)-1 {
			k.Until = s.Keys[i+1].Since
		}
		m.Keys = append(m.Keys, k)
	}
	return nil
}

func readPublished(dir, stream string, into map[string][]Remembered) error {
	if dir == "" {
		return nil
	}
	file := filepath.Join(dir, strings.ToLower(stream), "checkpoint")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the published log: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("the published log: %w", err)
	}
	into[stream] = append(into[stream], Remembered{Holder: InDirectory, Whose: InDirectory + " " + dir, Newest: true, Note: b, At: info.ModTime()})
	return nil
}

func readRows(ctx context.Context, pool *pgxpool.Pool, into map[string][]Remembered) error {
	rows, err := pool.Query(ctx, `select stream, size, root, sequence, signed, signed_at, size = max(size) over (partition by stream) from keyledger.log_checkpoints order by stream, size`)
	if err == nil {
		var stream, signed string
		var size, sequence int64
		var root []byte
		var at time.Time
		var newest bool
		_, err = pgx.ForEachRow(rows, []any{&stream, &size, &root, &sequence, &signed, &at, &newest}, func() error {
			r := Remembered{Holder: InDatabase, Whose: fmt.Sprintf("PostgreSQL (log_checkpoints, %s of %d)", stream, size), Newest: newest, Note: []byte(signed), Sequence: uint64(sequence), At: at, Tree: &audit.Tree{Size: size}}
			if len(root) == tlog.HashSize {
				r.Tree.Root = tlog.Hash(root)
			}
			into[stream] = append(into[stream], r)
			return nil
		})
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "3F000") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the checkpoints that were signed: %w", err)
	}
	return nil
}

// Rows reads the tiles of a stream's tree in PostgreSQL as they are, without checking
// them.
func Rows(ctx context.Context, pool *pgxpool.Pool, stream string) tlog.TileReader {
	return &tileReader{ctx, pool, stream}
}

// Published reads the tiles of a stream's tree in a published directory as they are,
// without checking them. A partial tile may be read from the whole one.
func Published(dir, stream string) tlog.TileReader {
	return &fileReader{filepath.Join(dir, strings.ToLower(stream)), stream}
}

type fileReader struct{ dir, stream string }

func (r *fileReader) Height() int                     { return tileHeight }
func (r *fileReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r *fileReader) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		b, err := os.ReadFile(filepath.Join(r.dir, filepath.FromSlash(TilePath(t))))
		if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
			whole := t
			whole.W = tileWidth
			b, err = os.ReadFile(filepath.Join(r.dir, filepath.FromSlash(TilePath(whole))))
			b = b[:min(len(b), t.W*tlog.HashSize)]
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) != t.W*tlog.HashSize {
			return nil, &missingTile{r.stream, t}
		}
		if err != nil {
			return nil, &readError{err}
		}
		data = append(data, b)
	}
	return data, nil
}
