package witness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tiles reads tiles of hashes as C2SP tlog-tiles lays them out. It is a
// tlog.TileReader; who uses it checks them.
type tiles struct {
	ctx    context.Context
	fetch  Fetch
	stream string
}

// lostTile says that a tile could not be had, which says nothing about the tree.
type lostTile struct {
	path  string
	cause error
}

func (e *lostTile) Error() string {
	return fmt.Sprintf("its tile %s cannot be had: %v", e.path, e.cause)
}
func (e *lostTile) Unwrap() error { return e.cause }

func (r *tiles) Height() int                     { return tileHeight }
func (r *tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (r *tiles) ReadTiles(list []tlog.Tile) (data [][]byte, err error) {
	for _, t := range list {
		b, err := r.fetch(r.ctx, r.path(t))
		if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
			// A partial tile may go when the whole one is there.
			b, err = r.fetch(r.ctx, r.path(tlog.Tile{H: t.H, L: t.L, N: t.N, W: tileWidth}))
			if err == nil && len(b) == tileWidth*tlog.HashSize {
				b = b[:t.W*tlog.HashSize]
			}
		}
		if err == nil && len(b) != t.W*tlog.HashSize {
			err = fmt.Errorf("it has %d bytes and not %d", len(b), t.W*tlog.HashSize)
		}
		if err != nil {
			return nil, &lostTile{r.path(t), err}
		}
		data = append(data, b)
	}
	return data, nil
}

// path is <stream>/tile/<level>/<number>, with .p/<width> where it is partial.
func (r *tiles) path(t tlog.Tile) string {
	return strings.ToLower(r.stream) + "/" + strings.Replace(t.Path(), fmt.Sprintf("tile/%d/", t.H), "tile/", 1)
}
