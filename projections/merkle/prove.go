package merkle

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// ErrAltered says that what is stored is not what was signed: an event in the
// stream, or a row of the tree.
var ErrAltered = errors.New("it is not what was signed")

// Proof is that an event stands in a signed tree.
type Proof struct {
	Leaf   audit.Leaf
	Index  int64 // of the leaf, from 0
	Hashes tlog.RecordProof
	Signed // the tree
}

// TLogProof is the proof as C2SP tlog-proof has it, with the leaf's text as extra data.
func (p *Proof) TLogProof() []byte {
	b := fmt.Appendf(nil, "c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n", base64.StdEncoding.EncodeToString(p.Leaf.Append(nil)), p.Index)
	for _, h := range p.Hashes {
		b = fmt.Appendf(b, "%s\n", h)
	}
	return append(append(b, '\n'), p.Note...)
}

// sealWait is how long a proof waits for an event that was just written to be sealed.
const sealWait = 3 * time.Second

// Prove proves that an event stands in the newest signed tree of its stream. What it
// answers it has checked. It fails with [ledger.ErrNotFound] where there is no such
// event, with [ErrNotSealed] where it is too new or nothing is signed, and with
// [ErrAltered].
func (l *Log) Prove(ctx context.Context, at audit.Place) (Proof, error) {
	p := Proof{}
	type read struct {
		events.Record
		err error
	}
	event := make(chan read, 1)
	go func() {
		r, err := l.o.Ledger.Line(ctx, at.Stream, at.Sequence, at.Line)
		event <- read{r, err}
	}()
	// What is signed already is looked for meanwhile; only what is there is waited for.
	signed, sequence := l.newest(at.Stream)
	isSealed := sequence >= at.Sequence
	var r read
	if !isSealed {
		if r = <-event; r.err != nil {
			return p, r.err
		}
		wait, cancel := context.WithTimeout(ctx, sealWait)
		defer cancel()
		var err error
		if signed, err = l.Sealed(wait, at.Stream, at.Sequence); err != nil {
			return p, err
		}
	}
	p.Signed = signed
	index, err := l.Index(ctx, at)
	if err != nil {
		return p, err
	}
	p.Index = index
	p.Hashes, err = tlog.ProveRecord(p.Size, p.Index, l.HashReader(ctx, at.Stream, p.Tree))
	if isSealed {
		if r = <-event; r.err != nil {
			return p, r.err
		}
	}
	p.Leaf = audit.LeafOf(&r.Record)
	if err == nil {
		err = tlog.CheckRecord(p.Hashes, p.Size, p.Root, p.Index, p.Leaf.Hash())
	}
	if err != nil {
		return p, fmt.Errorf("%s, leaf %d of %d: %w", at, p.Index, p.Size, altered(err))
	}
	return p, nil
}

// run is where the leaves of a tile of level 0 stand.
type run struct {
	number        int64
	firstSequence int64
	firstLine     int64
	runs          []byte
}

const runColumns = `number, first_sequence, first_line, runs`

func (r *run) scan(row pgx.Row) error {
	return row.Scan(&r.number, &r.firstSequence, &r.firstLine, &r.runs)
}

// places calls f with the place of each leaf, by messages.
func (r *run) each(f func(sequence uint64, line, lines int64) (goOn bool)) error {
	sequence, line := uint64(r.firstSequence), r.firstLine
	for b := r.runs; len(b) > 0; {
		lines, n := binary.Uvarint(b)
		if n <= 0 || lines == 0 || lines > tileWidth {
			return fmt.Errorf("tile %d of level 0 does not say where its leaves stand: %w", r.number, ErrAltered)
		}
		if !f(sequence, line, int64(lines)) {
			return nil
		}
		sequence, line, b = sequence+1, 0, b[n:]
	}
	return nil
}

// Index is the index of an event's leaf in the tree of its stream. It fails with
// [ledger.ErrNotFound] where a tree of USAGE has none; elsewhere it follows from the
// sequence alone.
func (l *Log) Index(ctx context.Context, at audit.Place) (int64, error) {
	if at.Stream != events.Usage { // a message is one event there, and none is ever pruned
		if at.Sequence == 0 || at.Line != 0 {
			return 0, fmt.Errorf("%s: %w", at, ledger.ErrNotFound)
		}
		return int64(at.Sequence) - 1, nil
	}
	var r run
	err := r.scan(l.o.Pool.QueryRow(ctx, `select `+runColumns+` from keyledger.`+Tree{at.Stream}.Table()+`
		where level = 0 and (first_sequence, first_line) <= ($1, $2) order by first_sequence desc, first_line desc limit 1`, int64(at.Sequence), at.Line))
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("%s: %w", at, ledger.ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	index, found := r.number*tileWidth, false
	if err := r.each(func(sequence uint64, line, lines int64) bool {
		if sequence < at.Sequence {
			index += lines
			return true
		}
		found = int64(at.Line) >= line && int64(at.Line) < line+lines
		index += int64(at.Line) - line
		return false
	}); err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("%s: %w", at, ledger.ErrNotFound)
	}
	return index, nil
}

// Place is where the event of a leaf stands. It fails with [ledger.ErrNotFound]
// where the tree has no such leaf.
func (l *Log) Place(ctx context.Context, stream string, index int64) (audit.Place, error) {
	at := audit.Place{Stream: stream}
	r, err := l.run(ctx, stream, index/tileWidth)
	if err != nil {
		return at, err
	}
	left, found := index%tileWidth, false
	err = r.each(func(sequence uint64, line, lines int64) bool {
		if left >= lines {
			left -= lines
			return true
		}
		at.Sequence, at.Line, found = sequence, int(line+left), true
		return false
	})
	if err == nil && !found {
		err = fmt.Errorf("leaf %d of %s: %w", index, stream, ledger.ErrNotFound)
	}
	return at, err
}

func (l *Log) run(ctx context.Context, stream string, tile int64) (r run, err error) {
	err = r.scan(l.o.Pool.QueryRow(ctx, `select `+runColumns+` from keyledger.`+Tree{stream}.Table()+` where level = 0 and number = $1`, tile))
	if errors.Is(err, pgx.ErrNoRows) {
		err = fmt.Errorf("tile %d of %s: %w", tile, stream, ledger.ErrNotFound)
	}
	return r, err
}

// holds says whether a tree of a size has a tile.
func holds(size int64, t tlog.Tile) bool {
	if t.H != tileHeight || t.L > levels || t.N < 0 || t.W < 1 || t.W > tileWidth {
		return false
	}
	n := size
	if t.L > 0 {
		n >>= tileHeight * t.L
	}
	return t.N <= (n-int64(t.W))/tileWidth && t.N*tileWidth+int64(t.W) <= n
}

// Tile is a tile of hashes, or for level -1 a bundle of leaves, of what is signed. It
// fails with [ledger.ErrNotFound] beyond that.
func (l *Log) Tile(ctx context.Context, stream string, t tlog.Tile) ([]byte, error) {
	signed, err := l.Checkpoint(stream)
	if err != nil {
		return nil, err
	}
	if !holds(signed.Size, t) {
		return nil, fmt.Errorf("%s of %s, whose signed tree has %d leaves: %w", TilePath(t), stream, signed.Size, ledger.ErrNotFound)
	}
	if t.L < 0 {
		bundles, err := l.bundles(ctx, stream, []tlog.Tile{t})
		if err != nil {
			return nil, err
		}
		return bundles[0], nil
	}
	data, err := l.TileReader(ctx, stream).ReadTiles([]tlog.Tile{t})
	if err != nil {
		return nil, err
	}
	return data[0], nil
}
