package merkle

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
)

// tileReader reads tiles of a stream's tree from its rows. It is a tlog.TileReader.
type tileReader struct {
	ctx    context.Context
	q      querier
	stream string
}

func (r *tileReader) Height() int { return tileHeight }

// SaveTiles does nothing: what is read here is kept here.
func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles reads tiles in one question. A row that is wider than what is asked for
// is cut: earlier hashes never change.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	level, number := make([]int16, len(tiles)), make([]int64, len(tiles))
	for i, t := range tiles {
		if t.H != tileHeight || t.L < 0 || t.L > levels {
			return nil, fmt.Errorf("%s is no tile of this tree", t.Path())
		}
		level[i], number[i] = int16(t.L), t.N
	}
	rows, err := r.q.Query(r.ctx, `select w.i::int, t.hashes from unnest($1::smallint[], $2::bigint[]) with ordinality w(level, number, i)
		join keyledger.`+Tree{r.stream}.Table()+` t on t.level = w.level and t.number = w.number`, level, number)
	if err != nil {
		return nil, &readError{err}
	}
	data := make([][]byte, len(tiles))
	var i int
	var hashes []byte
	if _, err := pgx.ForEachRow(rows, []any{&i, &hashes}, func() error {
		data[i-1], hashes = hashes, nil
		return nil
	}); err != nil {
		return nil, &readError{err}
	}
	for i, t := range tiles {
		if len(data[i]) < t.W*tlog.HashSize {
			return nil, &missingTile{r.stream, t}
		}
		data[i] = data[i][:t.W*tlog.HashSize]
	}
	return data, nil
}

// readError is of a database that did not answer: it says nothing about the tree.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// altered marks what the hashes of a tree themselves say to be wrong.
func altered(err error) error {
	if _, unread := errors.AsType[*readError](err); unread || err == nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrAltered, err)
}

// missingTile says that a tree has not so many leaves, or not that row.
type missingTile struct {
	stream string
	tile   tlog.Tile
}

func (e *missingTile) Error() string {
	return fmt.Sprintf("the tree over %s has no tile %s", e.stream, e.tile.Path())
}

// hashReader reads hashes of a tree as its rows have them, without checking them.
func (l *Log) hashReader(ctx context.Context, q querier, stream string) tlog.HashReader {
	r := &tileReader{ctx, q, stream}
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var tiles []tlog.Tile
		where := map[[2]int64]int{} // level and number: index in tiles
		at := make([]int, len(indexes))
		for i, index := range indexes {
			t := tlog.TileForIndex(tileHeight, index)
			key := [2]int64{int64(t.L), t.N}
			n, ok := where[key]
			if !ok {
				n = len(tiles)
				where[key], tiles = n, append(tiles, t)
			}
			tiles[n].W = max(tiles[n].W, t.W)
			at[i] = n
		}
		data, err := r.ReadTiles(tiles)
		if err != nil {
			return nil, err
		}
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			if hashes[i], err = tlog.HashFromTile(tiles[at[i]], data[at[i]], index); err != nil {
				return nil, err
			}
		}
		return hashes, nil
	})
}

// TileReader reads tiles of height 8 as they are stored, without checking them.
func (l *Log) TileReader(ctx context.Context, stream string) tlog.TileReader {
	return &tileReader{ctx, l.o.Pool, stream}
}

// HashReader reads hashes of a tree and checks each against its root: rows that were
// changed are an error and never an answer.
func (l *Log) HashReader(ctx context.Context, stream string, tree audit.Tree) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: tree.Size, Hash: tree.Root}, l.TileReader(ctx, stream))
}
