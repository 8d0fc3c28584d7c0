package merkle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
)

// tilesAtOnce is how many tiles are read and written at a time while a directory is
// caught up: 2 MiB.
const tilesAtOnce = 256

const (
	checkpointName = "checkpoint"
	cosignedName   = "checkpoint.cosigned"
	cosignedLook   = 2 * time.Second // between looks at what witnesses have signed elsewhere
)

// published is the checkpoint in the directory as it is, or nil.
func (l *Log) published(stream string) ([]byte, error) {
	if l.o.Dir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(l.o.Dir, strings.ToLower(stream), checkpointName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the published log: %w", err)
	}
	return b, nil
}

// directory is the checkpoint that the directory remembers, or nil.
func (l *Log) directory(stream string) (*entry, error) {
	b, err := l.published(stream)
	if err != nil || b == nil {
		return nil, err
	}
	return l.open(stream, "the published directory "+l.o.Dir, b)
}

// publishAll writes what is shown into the directory, whenever something new is.
func (l *Log) publishAll(ctx context.Context) {
	if l.o.Dir == "" {
		return
	}
	type state struct {
		*entry
		cosigned uint64 // revision in the bucket
	}
	done := map[string]state{}
	var asked time.Time // for cosignatures
	for {
		select {
		case <-l.publisher:
		case <-ctx.Done():
			return
		}
		ask := l.o.Policy != nil && (l.cosignedHere.Swap(false) || time.Since(asked) >= cosignedLook)
		if ask {
			asked = time.Now()
		}
		for _, stream := range audit.Streams {
			l.mu.Lock()
			s := l.shown[stream]
			e, doubt := s.entry, s.doubt
			l.mu.Unlock()
			if e == nil || doubt != nil || l.Key() == "" || !ask && done[stream].entry == e {
				continue
			}
			var list []cosigned
			var revision uint64
			var err error
			if l.o.Policy != nil {
				list, revision, err = l.readCosigned(ctx, stream)
			}
			if now := (state{e, revision}); err == nil && done[stream] != now {
				if err = l.publish(ctx, stream, e, list); err == nil {
					done[stream] = now
				}
			}
			if ctx.Err() != nil {
				return
			}
			l.mu.Lock()
			had := s.publish
			if s.publish = err; err == nil {
				s.published = e.Size
			} else {
				s.publishFailures++
			}
			l.mu.Unlock()
			if err != nil && had == nil {
				l.o.Log.Warn("the log could not be published; trying again", "stream", stream, "dir", l.o.Dir, "error", err)
			}
		}
	}
}

// publish brings the directory of a stream to a checkpoint: first its tiles and
// entries, then, when they are on disk, the checkpoint with the cosignatures that it
// has, and the newest one that has all that the policy asks for. Several processes may
// share a directory; it never goes back.
func (l *Log) publish(ctx context.Context, stream string, e *entry, list []cosigned) error {
	dir := filepath.Join(l.o.Dir, strings.ToLower(stream))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	if err := lock.Lock(); err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	old, err := l.directory(stream)
	if err != nil {
		return err
	}
	shown := e.Note
	if l.o.Policy != nil {
		shown = l.withCosignatures(e.Signed, list)
	}
	from := int64(0)
	if old != nil {
		if old.Size > e.Size {
			return nil
		}
		from = old.Size
	}
	if err := errors.Join(l.publishKeys(), syncDir(l.o.Dir)); err != nil {
		return err
	}
	reader := l.TileReader(ctx, stream)
	for tiles := range slices.Chunk(tlog.NewTiles(tileHeight, from, e.Size), tilesAtOnce) {
		data, err := reader.ReadTiles(tiles)
		if err != nil {
			return err
		}
		if err := writeTiles(dir, tiles, data); err != nil {
			return err
		}
	}
	if !l.o.NoEntries {
		if err := l.publishEntries(ctx, stream, dir, e.Size); err != nil {
			return err
		}
	}
	if old == nil || string(old.Note) != string(shown) {
		if err := replaceFile(dir, checkpointName, shown); err != nil {
			return err
		}
	}
	return l.publishCosigned(ctx, stream, dir, e, list)
}

// publishCosigned leaves the newest checkpoint that has all cosignatures that the policy
// asks for beside the newest, which witnesses have not seen yet.
func (l *Log) publishCosigned(ctx context.Context, stream, dir string, e *entry, list []cosigned) error {
	if l.o.Policy == nil {
		return nil
	}
	var old *entry
	b, err := os.ReadFile(filepath.Join(dir, cosignedName))
	if err == nil {
		old, _ = l.open(stream, "the published directory", b) // else it is written again
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, x := range slices.Backward(list) {
		n, err := l.open(stream, "a witness", []byte(x.Note))
		if err != nil || n.Size > e.Size || !l.o.Policy.Satisfied([]byte(x.Note)) {
			continue
		}
		if old != nil && old.Size > n.Size {
			return nil
		}
		shown, err := l.renewed(ctx, stream, e.Signed, []byte(x.Note))
		if err != nil || old != nil && string(old.Note) == string(shown) {
			return err
		}
		return replaceFile(dir, cosignedName, shown)
	}
	return nil
}

// publishKeys leaves the verifier keys in the directory, newest first, one a line, and
// for each but the newest the note in which it names the next one.
// They are there to be compared with those that an auditor was given; a key that
// is read from the log that it is to check proves nothing, unless one that was given
// names it.
func (l *Log) publishKeys() error {
	var b strings.Builder
	for _, k := range l.Keys() {
		b.WriteString(k.Verifier + "\n")
	}
	for _, v := range l.Verifiers() {
		named, ok := l.Successor(v.KeyHash())
		if !ok {
			continue
		}
		dir, name := filepath.Split(filepath.Join(l.o.Dir, filepath.FromSlash(audit.SuccessorPath(v))))
		if old, err := os.ReadFile(filepath.Join(dir, name)); err == nil && string(old) == string(named) {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := replaceFile(dir, name, named); err != nil {
			return err
		}
	}
	if old, err := os.ReadFile(filepath.Join(l.o.Dir, "keys")); err == nil && string(old) == b.String() {
		return nil
	}
	return replaceFile(l.o.Dir, "keys", []byte(b.String()))
}

// TilePath is the path of a tile as C2SP tlog-tiles has it: tile/<level>/<number>,
// with .p/<width> where it is partial, and tile/entries/<number> for level -1.
func TilePath(t tlog.Tile) string {
	path := strings.Replace(t.Path(), fmt.Sprintf("tile/%d/", t.H), "tile/", 1)
	return strings.Replace(path, "tile/data/", "tile/entries/", 1)
}

// ParseTilePath reads a path that [TilePath] wrote.
func ParseTilePath(path string) (tlog.Tile, error) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if entries, is := strings.CutPrefix(rest, "entries/"); is {
		rest = "data/" + entries
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, rest))
	if err != nil || !ok || TilePath(t) != path {
		return t, fmt.Errorf("%q is no path of a tile", path)
	}
	return t, nil
}

// writeTiles writes tiles and returns when they are on disk. What a crash leaves is
// a whole tile or none. Partial tiles go when the whole one is there.
func writeTiles(dir string, tiles []tlog.Tile, data [][]byte) error {
	parents := map[string]bool{}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	paths := make([]string, len(tiles))
	for i, t := range tiles {
		paths[i] = filepath.Join(dir, filepath.FromSlash(TilePath(t)))
		parent := filepath.Dir(paths[i])
		if !parents[parent] {
			if err := os.MkdirAll(parent, 0o755); err != nil {
				return err
			}
			for p := parent; len(p) > len(dir); p = filepath.Dir(p) {
				parents[p] = true
				parents[filepath.Dir(p)] = true
			}
		}
		f, err := os.CreateTemp(parent, ".new-*")
		if err != nil {
			return err
		}
		files = append(files, f)
		if _, err := f.Write(data[i]); err != nil {
			return err
		}
	}
	for i, f := range files {
		if err := errors.Join(f.Chmod(0o644), f.Sync(), os.Rename(f.Name(), paths[i])); err != nil {
			return err
		}
	}
	for p := range parents {
		if err := syncDir(p); err != nil {
			return err
		}
	}
	for i, t := range tiles {
		if t.W == tileWidth {
			if err := os.RemoveAll(paths[i] + ".p"); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceFile puts a file in its place, whole or not at all, and returns when it
// is on disk.
func replaceFile(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
