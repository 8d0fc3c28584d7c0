package merkle

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

// scrubTiles is how many whole tiles are compared with the rows at a time.
const scrubTiles = 64

// mostRows is how many changed rows of a tree are told apart.
const mostRows = 8

// scrubbing is one reading of one server's copy of a stream. It folds the tree anew,
// as the projection does, and compares every whole tile with its row, and in the end
// the root with the one that was signed. So the stream is checked where there are no
// rows as well, and the rows where the stream is whole.
type scrubbing struct {
	l              *Log
	stream, server string
	several        bool // servers have a copy
	last           *entry

	edge    *edge
	first   uint64 // sequence
	bytes   int64
	rows    []Finding // changed rows of the tree
	doubted []uint64  // sequences at which changed rows of level 0 begin
}

// errDamage says that the copy is not what was signed.
type errDamage struct{ Finding }

func (e *errDamage) Error() string { return e.Problem }

// skipped says whether an error is of a copy that cannot be read now.
func (p *scrubbing) skipped(err error) bool { return errors.Is(err, ledger.ErrNotThere) }

// run reads the copy. What it finds goes to the log; its error says that nothing is
// known.
func (p *scrubbing) run(ctx context.Context) error {
	err := p.read(ctx)
	damage, isDamage := errors.AsType[*errDamage](err)
	if d, ok := errors.AsType[*ledger.DamageError](err); ok {
		damage, isDamage = p.damage(d), true
	}
	switch {
	case isDamage:
		damage.Server = p.server
		p.l.found(p.stream, damage.What, p.server, []Finding{damage.Finding})
		if len(p.rows) > 0 {
			p.l.found(p.stream, FoundTree, "", p.rows)
		}
		return nil
	case err != nil:
		return err
	}
	p.l.found(p.stream, FoundAltered, p.server, nil)
	p.l.found(p.stream, FoundTree, "", p.rows)
	return nil
}

// damage is a finding of what the stream itself shows.
func (p *scrubbing) damage(d *ledger.DamageError) *errDamage {
	f := Finding{Sequence: d.Sequence, Line: d.Line, Problem: d.Problem, Fix: p.restore()}
	switch d.Kind {
	case ledger.DamageMissing:
		f.What, f.Runbook = FoundMissing, "messages-missing.md"
	case ledger.DamageUnreadable:
		f.What, f.Runbook = FoundUnreadable, "not-a-fact.md"
	case ledger.DamageShort:
		f.What, f.Runbook = FoundShort, "stream-behind.md"
	}
	return &errDamage{f}
}

func (p *scrubbing) restore() string {
	if p.several {
		return fmt.Sprintf("keep a copy of server %s's data directory, and let it have its copy anew from the other servers, if theirs are whole; else restore from a backup", p.server)
	}
	return "keep a copy of the server's data directory as it is now, and restore the stream from a backup"
}

func (p *scrubbing) altered(sequence uint64, line int, problem string) *errDamage {
	return &errDamage{Finding{What: FoundAltered, Sequence: sequence, Line: line, Problem: problem, Fix: p.restore(), Runbook: "scrub-altered.md"}}
}

func (p *scrubbing) where() string {
	if p.server == "" {
		return ""
	}
	return " on server " + p.server
}

func (p *scrubbing) read(ctx context.Context) error {
	var err error
	if p.first, err = p.l.o.Ledger.First(ctx, p.stream); err != nil {
		return err
	}
	if p.first > p.last.sequence { // all of it was pruned: whether that is recorded, the ledger looks at
		return nil
	}
	p.edge = &edge{}
	if p.first > 1 {
		if err := p.begin(ctx); err != nil {
			return err
		}
	}
	p.l.scrub.update(p.stream, func(x *ScrubStream) { x.Server, x.Position, x.Of = p.server, p.first-1, p.last.sequence })
	pace := func(ctx context.Context, n int) error { return p.l.scrub.pace.wait(ctx, n) }
	if err := p.l.o.Ledger.Scan(ctx, p.stream, p.server, p.first, p.last.sequence, pace, func(sequence uint64, records []events.Record) error {
		return p.message(ctx, sequence, records)
	}); err != nil {
		return err
	}
	return p.end(ctx)
}

// begin makes the edge of the tree before the first message that was not pruned, of
// hashes that are checked against what was signed.
func (p *scrubbing) begin(ctx context.Context) error {
	size, err := p.l.Index(ctx, audit.Place{Stream: p.stream, Sequence: p.first})
	if err != nil {
		return fmt.Errorf("the tree over %s up to sequence %d: %w", p.stream, p.first, err)
	}
	reader := p.l.HashReader(ctx, p.stream, p.last.Tree)
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		n := size >> (tileHeight * level)
		number, width := (n-1)/tileWidth, int((n-1)%tileWidth)+1
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(level*tileHeight, number*tileWidth+int64(i))
		}
		hashes, err := reader.ReadHashes(indexes)
		if _, missing := errors.AsType[*missingTile](err); missing {
			return fmt.Errorf("the tree over %s is not there as far as it was signed: %w", p.stream, err)
		}
		if err = altered(err); errors.Is(err, ErrAltered) {
			p.l.found(p.stream, FoundTree, "", []Finding{p.row(level, number, err.Error())})
			return err
		} else if err != nil {
			return err
		}
		t := &tile{level: int16(level), number: number, hashes: make([]byte, 0, tileWidth*tlog.HashSize)}
		for _, h := range hashes {
			t.hashes = append(t.hashes, h[:]...)
		}
		if level == 0 {
			if err := p.place(ctx, t); err != nil {
				return err
			}
		}
		p.edge.last = append(p.edge.last, t)
	}
	return nil
}

// place fills in where the leaves of a tile stand that were pruned, as its row has it.
func (p *scrubbing) place(ctx context.Context, t *tile) error {
	r, err := p.l.run(ctx, p.stream, t.number)
	if err != nil {
		return err
	}
	t.firstSequence, t.firstLine = r.firstSequence, int32(r.firstLine)
	left, end := int64(t.width()), 0
	for b := r.runs; left > 0 && len(b) > 0; {
		n := 0
		for n < len(b)-1 && b[n] >= 0x80 {
			n++
		}
		lines := int64(0)
		for i := n; i >= 0; i-- {
			lines = lines<<7 | int64(b[i]&0x7f)
		}
		left, end, b = left-lines, end+n+1, b[n+1:]
	}
	t.runs = append([]byte(nil), r.runs[:end]...)
	return nil
}

// message folds one message.
func (p *scrubbing) message(ctx context.Context, sequence uint64, records []events.Record) error {
	for i := range records {
		p.bytes += int64(len(records[i].Body))
	}
	p.edge.appendMessage(sequence, leafHashes(records))
	whole := 0
	for _, t := range p.edge.changed {
		if t.width() == tileWidth {
			whole++
		}
	}
	if whole < scrubTiles {
		return nil
	}
	p.l.scrub.update(p.stream, func(x *ScrubStream) { x.Position = sequence })
	return p.check(ctx, false)
}

// end compares what is left, and the root.
func (p *scrubbing) end(ctx context.Context) error {
	if err := p.check(ctx, true); err != nil {
		return err
	}
	p.l.scrub.update(p.stream, func(x *ScrubStream) { x.Position = p.last.sequence })
	if size := p.edge.size(); size != p.last.Size {
		return p.altered(0, 0, fmt.Sprintf("up to sequence %d%s it holds %d events, but %d were signed", p.last.sequence, p.where(), size, p.last.Size))
	}
	root, err := tlog.TreeHash(p.last.Size, tlog.HashReaderFunc(p.edge.ReadHashes))
	if err != nil {
		return err
	}
	if root == p.last.Root {
		return nil
	}
	return p.somewhere(fmt.Sprintf("the root over %d events is %s instead of %s", p.last.Size, root, p.last.Root))
}

// somewhere is of an event that no row tells from the one that was signed.
func (p *scrubbing) somewhere(why string) *errDamage {
	at, between := uint64(0), fmt.Sprintf("somewhere from sequence %d to %d", p.first, p.last.sequence)
	if len(p.doubted) > 0 {
		at, between = p.doubted[0], fmt.Sprintf("at or after sequence %d, where the rows of the tree are not what was signed either", p.doubted[0])
	}
	return p.altered(at, 0, fmt.Sprintf("%s it holds%s other events than were signed: %s", between, p.where(), why))
}

// ReadHashes reads from the right edge alone, which is all that a root needs.
func (e *edge) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		t := tlog.TileForIndex(tileHeight, index)
		if t.L >= len(e.last) || e.last[t.L].number != t.N || e.last[t.L].width() < t.W {
			return nil, fmt.Errorf("hash %d is not at the edge of the tree", index)
		}
		var err error
		if list[i], err = tlog.HashFromTile(t, e.last[t.L].hashes[:t.W*tlog.HashSize], index); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// check compares tiles with their rows: the whole ones, and at the end all.
func (p *scrubbing) check(ctx context.Context, all bool) error {
	var now, later []*tile
	for _, t := range p.edge.changed {
		if all || t.width() == tileWidth {
			now = append(now, t)
		} else {
			later = append(later, t)
		}
	}
	p.edge.changed = later
	if len(now) == 0 {
		return nil
	}
	rows, err := p.readRows(ctx, now)
	if err != nil {
		return err
	}
	for level := int16(0); level <= levels; level++ { // an event is named before what was computed from it
		for i, t := range now {
			if t.level != level {
				continue
			}
			if err := p.checkRow(ctx, t, rows[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *scrubbing) readRows(ctx context.Context, tiles []*tile) ([]*tile, error) {
	level, number := make([]int16, len(tiles)), make([]int64, len(tiles))
	for i, t := range tiles {
		level[i], number[i] = t.level, t.number
	}
	found, err := p.l.o.Pool.Query(ctx, `select w.i::int, t.hashes, coalesce(t.first_sequence, 0), coalesce(t.first_line, 0), t.runs
		from unnest($1::smallint[], $2::bigint[]) with ordinality w(level, number, i)
		join keyledger.`+Tree{p.stream}.Table()+` t on t.level = w.level and t.number = w.number`, level, number)
	if err != nil {
		return nil, err
	}
	rows := make([]*tile, len(tiles))
	var i int
	var r tile
	_, err = pgx.ForEachRow(found, []any{&i, &r.hashes, &r.firstSequence, &r.firstLine, &r.runs}, func() error {
		rows[i-1] = new(r)
		r = tile{}
		return nil
	})
	return rows, err
}

func (p *scrubbing) checkRow(ctx context.Context, t, row *tile) error {
	number := t.number * tileWidth
	if row == nil {
		sizes, err := p.l.sizes(ctx)
		if err != nil {
			return err
		}
		if leaves := (number + int64(t.width())) << (tileHeight * int(t.level)); sizes[p.stream] < leaves {
			return nil // it is being built
		}
		p.note(t, "it is missing")
		return nil
	}
	if bytes.HasPrefix(row.hashes, t.hashes) {
		if t.level == 0 && (row.firstSequence != t.firstSequence || row.firstLine != t.firstLine || !bytes.HasPrefix(row.runs, t.runs)) {
			p.note(t, "it says wrongly where its events stand")
		}
		return nil
	}
	i := 0
	for i < t.width() && (i+1)*tlog.HashSize <= len(row.hashes) && bytes.Equal(row.hashes[i*tlog.HashSize:(i+1)*tlog.HashSize], t.hashes[i*tlog.HashSize:(i+1)*tlog.HashSize]) {
		i++
	}
	// Either is wrong: which one, the signed root says.
	index := tlog.StoredHashIndex(tileHeight*int(t.level), number+int64(i))
	_, err := p.l.HashReader(ctx, p.stream, p.last.Tree).ReadHashes([]int64{index})
	if err = altered(err); err != nil && !errors.Is(err, ErrAltered) {
		return err
	}
	if err != nil {
		p.note(t, "it is not what was signed: "+err.Error())
		return nil
	}
	if t.level > 0 {
		return p.somewhere(fmt.Sprintf("tile %d of level %d is another one", t.number, t.level))
	}
	sequence, line := t.at(i)
	return p.altered(sequence, line, fmt.Sprintf("the event at sequence %d, line %d,%s is not the one that was signed: leaf %d of %d", sequence, line, p.where(), number+int64(i), p.last.Size))
}

// at is the place of a leaf of a tile of level 0.
func (t *tile) at(i int) (sequence uint64, line int) {
	r := run{t.number, t.firstSequence, int64(t.firstLine), t.runs}
	left := int64(i)
	_ = r.each(func(s uint64, first, lines int64) bool {
		if left >= lines {
			left -= lines
			return true
		}
		sequence, line = s, int(first+left)
		return false
	})
	return sequence, line
}

func (p *scrubbing) note(t *tile, problem string) {
	if t.level == 0 {
		p.doubted = append(p.doubted, uint64(t.firstSequence))
	}
	if len(p.rows) < mostRows {
		f := p.row(int(t.level), t.number, problem)
		f.Sequence, f.Line = uint64(t.firstSequence), int(t.firstLine)
		p.rows = append(p.rows, f)
	}
}

func (p *scrubbing) row(level int, number int64, problem string) Finding {
	table := Tree{p.stream}.Table()
	return Finding{What: FoundTree, Problem: fmt.Sprintf("the row of keyledger.%s with level %d and number %d was changed in PostgreSQL: %s", table, level, number, problem),
		Fix: fmt.Sprintf("run `keyledger projections rebuild %s`, and find out who may write to that table", table), Runbook: "scrub-tree.md"}
}
