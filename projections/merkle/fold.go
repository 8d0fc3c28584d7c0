package merkle

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	levels     = 8 // of tiles: a tree of 2^64 leaves has no more
)

// Tree folds a stream into the tiles of its tree. It is what a projection of the
// name tree_<stream>_v1 applies.
type Tree struct{ Stream string }

// Table is its one table.
func (t Tree) Table() string { return "tree_" + strings.ToLower(t.Stream) + "_v1" }

// tile is a row.
type tile struct {
	level  int16
	number int64
	hashes []byte

	// Of level 0: the place of the first leaf, and for each message from there on
	// a varint, how many of its lines are leaves of this tile.
	firstSequence int64
	firstLine     int32
	runs          []byte
}

func (t *tile) width() int { return len(t.hashes) / tlog.HashSize }

// edge is the right edge of a tree: the last tile of each level, all that is needed
// to append to it.
type edge struct {
	last    []*tile // by level
	changed []*tile // since it was read
}

func readEdge(ctx context.Context, q querier, table string) (*edge, error) {
	rows, err := q.Query(ctx, `select t.level, t.number, t.hashes, coalesce(t.first_sequence, 0), coalesce(t.first_line, 0), t.runs
		from generate_series(0, $1) l, lateral (select * from `+table+` where level = l order by number desc limit 1) t order by t.level`, levels)
	if err != nil {
		return nil, err
	}
	e := &edge{}
	var t tile
	_, err = pgx.ForEachRow(rows, []any{&t.level, &t.number, &t.hashes, &t.firstSequence, &t.firstLine, &t.runs}, func() error {
		if int(t.level) != len(e.last) || t.width() == 0 || t.width() > tileWidth || len(t.hashes)%tlog.HashSize != 0 {
			return fmt.Errorf("the rows of %s are no tree: the last tile of level %d is number %d with %d bytes", table, t.level, t.number, len(t.hashes))
		}
		e.last = append(e.last, new(t))
		t = tile{}
		return nil
	})
	return e, err
}

// size is how many leaves the tree has.
func (e *edge) size() int64 {
	if len(e.last) == 0 {
		return 0
	}
	return e.last[0].number*tileWidth + int64(e.last[0].width())
}

// sequence is that of the last leaf's message.
func (e *edge) sequence() uint64 {
	if len(e.last) == 0 {
		return 0
	}
	t := e.last[0]
	n := uint64(t.firstSequence)
	for _, b := range t.runs {
		if b < 0x80 { // the last byte of a varint
			n++
		}
	}
	return n - 1
}

// at is the tile of a level that takes the next hash.
func (e *edge) at(level int) *tile {
	if level == len(e.last) {
		e.last = append(e.last, nil)
	}
	t := e.last[level]
	if t == nil || t.width() == tileWidth {
		next := &tile{level: int16(level), hashes: make([]byte, 0, tileWidth*tlog.HashSize)}
		if t != nil {
			next.number = t.number + 1
		}
		e.last[level], t = next, next
	}
	if len(e.changed) == 0 || !e.isChanged(t) {
		e.changed = append(e.changed, t)
	}
	return t
}

// isChanged looks among the last few: of each level only the last tile changes.
func (e *edge) isChanged(t *tile) bool {
	for i := len(e.changed) - 1; i >= 0; i-- {
		if e.changed[i] == t {
			return true
		}
		if e.changed[i].level == t.level {
			return false
		}
	}
	return false
}

// appendMessage appends the leaves of one message.
func (e *edge) appendMessage(sequence uint64, leaves []tlog.Hash) {
	for line := 0; line < len(leaves); {
		t := e.at(0)
		if t.width() == 0 {
			t.firstSequence, t.firstLine = int64(sequence), int32(line)
		}
		n := min(len(leaves)-line, tileWidth-t.width())
		for _, h := range leaves[line : line+n] {
			t.hashes = append(t.hashes, h[:]...)
		}
		t.runs = binary.AppendUvarint(t.runs, uint64(n))
		line += n
		for level := 0; e.last[level].width() == tileWidth; level++ {
			root := tileRoot(e.last[level].hashes)
			up := e.at(level + 1)
			up.hashes = append(up.hashes, root[:]...)
			if up.width() < tileWidth {
				break
			}
		}
	}
}

// tileRoot is the hash over all of a tile whose width is a power of two.
func tileRoot(hashes []byte) (h tlog.Hash) {
	if len(hashes) == tlog.HashSize {
		copy(h[:], hashes)
		return h
	}
	half := len(hashes) / 2
	return tlog.NodeHash(tileRoot(hashes[:half]), tileRoot(hashes[half:]))
}

// Apply appends the leaves of a batch of whole messages to the tree in its table.
// It fails when the batch does not begin right after the last one: a tree over
// a stream whose beginning is gone cannot be made.
func (t Tree) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	e, err := readEdge(ctx, tx, t.Table())
	if err != nil {
		return err
	}
	if want := e.sequence() + 1; len(batch) > 0 && batch[0].Sequence != want {
		return fmt.Errorf("the tree over %s ends before sequence %d and cannot go on at %d", t.Stream, want, batch[0].Sequence)
	}
	hashes := leafHashes(batch)
	for i := 0; i < len(batch); {
		n := 1
		for i+n < len(batch) && batch[i+n].Sequence == batch[i].Sequence {
			n++
		}
		e.appendMessage(batch[i].Sequence, hashes[i:i+n])
		i += n
	}
	return e.write(ctx, tx, t.Table())
}

func (e *edge) write(ctx context.Context, tx pgx.Tx, table string) error {
	n := len(e.changed)
	level, number, hashes := make([]int16, n), make([]int64, n), make([][]byte, n)
	sequence, line, runs := make([]*int64, n), make([]*int32, n), make([][]byte, n)
	for i, t := range e.changed {
		level[i], number[i], hashes[i] = t.level, t.number, t.hashes
		if t.level == 0 {
			sequence[i], line[i], runs[i] = &t.firstSequence, &t.firstLine, t.runs
		}
	}
	_, err := tx.Exec(ctx, `insert into `+table+` (level, number, hashes, first_sequence, first_line, runs)
		select * from unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::int[], $6::bytea[])
		on conflict (level, number) do update set hashes = excluded.hashes, runs = excluded.runs`, level, number, hashes, sequence, line, runs)
	return err
}

// leafShare is how many records are worth another processor.
const leafShare = 512

// leafHashes hashes the records on all processors, where there are enough of them.
func leafHashes(batch []events.Record) []tlog.Hash {
	hashes := make([]tlog.Hash, len(batch))
	hash := func(from, to int) {
		for i := from; i < to; i++ {
			l := audit.LeafOf(&batch[i])
			hashes[i] = l.Hash()
		}
	}
	if len(batch) <= leafShare {
		hash(0, len(batch))
		return hashes
	}
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	part := max(leafShare, (len(batch)+workers-1)/workers)
	for from := 0; from < len(batch); from += part {
		wg.Go(func() { hash(from, min(from+part, len(batch))) })
	}
	wg.Wait()
	return hashes
}
