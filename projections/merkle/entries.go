package merkle

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

const (
	entriesName   = "entries" // up to which leaf a published stream has bundles of entries
	bundlesAtOnce = 64        // that are written at a time, and read into memory: up to 4 MiB
)

// appendEntry adds a leaf's text to a bundle of entries as C2SP tlog-tiles has it.
func appendEntry(bundle []byte, l *audit.Leaf) []byte {
	text := l.Append(nil)
	return append(binary.BigEndian.AppendUint16(bundle, uint16(len(text))), text...)
}

// publishEntries writes bundles of entries up to a size. Those of events that were
// pruned before anybody wrote them are left out: nobody can make them any more.
func (l *Log) publishEntries(ctx context.Context, stream, dir string, size int64) error {
	done, err := readEntries(dir)
	if err != nil || done >= size {
		return err
	}
	from, err := l.firstBundle(ctx, stream, done/tileWidth, size)
	if err != nil {
		return err
	}
	for from*tileWidth < size {
		var tiles []tlog.Tile
		for n := from; n*tileWidth < size && len(tiles) < bundlesAtOnce; n++ {
			tiles = append(tiles, tlog.Tile{H: tileHeight, L: -1, N: n, W: int(min(tileWidth, size-n*tileWidth))})
		}
		bundles, err := l.bundles(ctx, stream, tiles)
		if err != nil {
			return err
		}
		if err := writeTiles(dir, tiles, bundles); err != nil {
			return err
		}
		from += int64(len(tiles))
		if err := replaceFile(dir, entriesName, fmt.Appendf(nil, "%d\n", min(from*tileWidth, size))); err != nil {
			return err
		}
	}
	return nil
}

// readEntries is up to which leaf a directory has bundles.
func readEntries(dir string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, entriesName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0, nil // written again
	}
	return n, nil
}

// firstBundle is the first bundle from a number on whose events the stream still has.
func (l *Log) firstBundle(ctx context.Context, stream string, from, size int64) (int64, error) {
	if stream != events.Usage {
		return from, nil
	}
	first, err := l.o.Ledger.First(ctx, stream)
	if err != nil || first <= 1 {
		return from, err
	}
	index, err := l.Index(ctx, audit.Place{Stream: stream, Sequence: first})
	if errors.Is(err, ledger.ErrNotFound) { // all of the tree was pruned
		return size/tileWidth + 1, nil
	}
	return max(from, (index+tileWidth-1)/tileWidth), err
}

// bundles are bundles of entries that follow each other. Their leaves are made from the
// stream and compared with the tree.
func (l *Log) bundles(ctx context.Context, stream string, tiles []tlog.Tile) ([][]byte, error) {
	last := tiles[len(tiles)-1]
	from, err := l.Place(ctx, stream, tiles[0].N*tileWidth)
	if err != nil {
		return nil, err
	}
	to, err := l.Place(ctx, stream, last.N*tileWidth+int64(last.W)-1)
	if err != nil {
		return nil, err
	}
	wanted := make([]tlog.Tile, len(tiles))
	for i, t := range tiles {
		wanted[i] = tlog.Tile{H: t.H, N: t.N, W: t.W}
	}
	hashes, err := l.TileReader(ctx, stream).ReadTiles(wanted)
	if err != nil {
		return nil, err
	}
	bundles := make([][]byte, len(tiles))
	i, n := 0, 0 // tile, and leaf in it
	for r, err := range l.o.Ledger.Read(ctx, stream, from.Sequence, to.Sequence) {
		if err != nil {
			return nil, err
		}
		if r.Sequence == from.Sequence && r.Line < from.Line {
			continue
		}
		leaf := audit.LeafOf(&r)
		if hash := leaf.Hash(); string(hash[:]) != string(hashes[i][n*tlog.HashSize:(n+1)*tlog.HashSize]) {
			return nil, fmt.Errorf("%s: %w", leaf.Place, ErrAltered)
		}
		bundles[i] = appendEntry(bundles[i], &leaf)
		if n++; n == tiles[i].W {
			if i, n = i+1, 0; i == len(tiles) {
				return bundles, nil
			}
		}
	}
	return nil, fmt.Errorf("%s has only %d of its %d events, the others were pruned: %w", TilePath(tiles[i]), n, tiles[i].W, ledger.ErrNotFound)
}
