package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// memory is a checkpoint that somebody remembers, signed by a key that counts.
type memory struct {
	whose    string
	holder   string // as of [merkle.Remembered], or OPS; of evidence empty
	tree     audit.Tree
	sequence uint64 // of its last event, as far as it is said
	newest   bool
	at       time.Time

	root tlog.Hash // of the stream at that size; set when seen
	seen bool
}

func (m *memory) fits() bool { return m.root == m.tree.Root }

// unpublished is how long after a checkpoint the published directory may lack it.
const unpublished = time.Minute

// stream checks one stream against everything that remembers it.
func (r *run) stream(ctx context.Context, stream string) error {
	w := &walk{run: r, stream: stream}
	if len(r.keys) > 0 && stream != events.Ops {
		w.remember()
	}
	if err := w.read(ctx); err != nil {
		return err
	}
	if stream == events.Ops {
		// Its own checkpoints may be signed by a key that it announces: OPS is read
		// twice, first for that.
		r.successors(w.statements)
		for _, e := range r.Evidence {
			if err := r.open(e); err != nil {
				return fmt.Errorf("%s: %w", e.Name, err)
			}
		}
		w = &walk{run: r, stream: stream, again: true}
		w.remember()
		if err := w.read(ctx); err != nil {
			return err
		}
	}
	return w.judge(ctx)
}

// walk is one reading of a stream.
type walk struct {
	*run
	stream   string
	again    bool
	memories []*memory // by size
	next     int       // of them, that was not reached yet
	first    uint64    // sequence that the stream begins with; 0: it is not there
	through  uint64    // what USAGE was pruned through
	last     audit.Place
	tree     audit.Frontier
	lost     bool  // its beginning is gone: there is no tree over what is left
	broken   error // where reading ended too early
	signed   []*signedLeaves

	statements []string // of log.key_rotated
}

// remember opens what is remembered of a stream.
func (w *walk) remember() {
	if len(w.keys) == 0 {
		return
	}
	furthest := map[string]*memory{} // by holder
	var before *memory
	for _, x := range w.run.memory.Streams[w.stream] {
		if x.Note == nil {
			w.fail(w.stream, Checkpoint, nil, "%s: the checkpoint was deleted", x.Whose)
			continue
		}
		c, _, err := audit.Open(x.Note, audit.Origin(w.name, w.stream), w.keys...)
		if err == nil && c.Of != nil {
			err = errors.New("it is one of parts")
		}
		if err != nil {
			w.fail(w.stream, Checkpoint, nil, "what %s remembers as its checkpoint was not signed by the log's key: %v", x.Whose, err)
			continue
		}
		if x.Tree != nil && *x.Tree != c.Tree {
			w.fail(w.stream, Checkpoint, nil, "%s: the row says %d events and root %s, and the signed checkpoint in it %d and %s: the row was changed", x.Whose, x.Tree.Size, x.Tree.Root, c.Size, c.Root)
			continue
		}
		m := &memory{whose: x.Whose, holder: x.Holder, tree: c.Tree, sequence: x.Sequence, newest: x.Newest, at: x.At}
		if x.Holder == merkle.InBucket {
			if before != nil && m.tree.Size < before.tree.Size {
				w.fail(w.stream, Checkpoint, nil, "%s was set back: it holds a checkpoint of %d events after one of %d", x.Holder, m.tree.Size, before.tree.Size)
			}
			before = m
		}
		if f := furthest[x.Holder]; f == nil || f.tree.Size < m.tree.Size {
			furthest[x.Holder] = m
		}
		w.memories = append(w.memories, m)
	}
	counts := before
	for _, holder := range []string{merkle.InDatabase, merkle.InDirectory} {
		f := furthest[holder]
		switch {
		case f == nil:
		case counts == nil:
			w.fail(w.stream, Checkpoint, nil, "%s has no checkpoint of it, but %s remembers one of %d events", merkle.InBucket, holder, f.tree.Size)
		case f.tree.Size > counts.tree.Size:
			w.fail(w.stream, Checkpoint, nil, "%s was set back: its checkpoint is of %d events, and %s remembers one of %d", merkle.InBucket, counts.tree.Size, holder, f.tree.Size)
		}
	}
	w.memories = append(w.memories, w.exported[w.stream]...)
	w.witnessed()
	for _, e := range w.evidences {
		for _, t := range e.trees {
			if t.stream == w.stream {
				w.memories = append(w.memories, &memory{whose: e.Name, tree: t.Tree})
			}
		}
	}
	slices.SortStableFunc(w.memories, func(a, b *memory) int { return cmp.Compare(a.tree.Size, b.tree.Size) })
	for i, m := range w.memories[min(1, len(w.memories)):] {
		if o := w.memories[i]; o.tree.Size == m.tree.Size && o.tree.Root != m.tree.Root {
			w.fail(w.stream, Rewritten, nil, "two roots were signed for %d events: %s by %s, %s by %s. Keep both: they are evidence against whoever has the log's key",
				m.tree.Size, o.tree.Root, o.whose, m.tree.Root, m.whose)
		}
	}
}

// witnessed takes the furthest checkpoint that has the signatures which a policy asks
// for, from the bucket or from evidence.
func (w *walk) witnessed() {
	if w.Policy == nil {
		return
	}
	var best *memory
	take := func(whose string, signed []byte) {
		c, _, err := audit.Open(signed, audit.Origin(w.name, w.stream), w.keys...)
		if err == nil && c.Of == nil && w.Policy.Satisfied(signed) && (best == nil || best.tree.Size < c.Size) {
			best = &memory{whose: whose, tree: c.Tree}
		}
	}
	for _, signed := range w.run.memory.Cosigned[w.stream] {
		take("what the witnesses of the policy have signed", signed)
	}
	for _, e := range w.evidences {
		for _, t := range e.trees {
			if t.stream == w.stream && t.note != nil {
				take(e.Name+", signed by the witnesses of the policy", t.note)
			}
		}
	}
	if best == nil {
		w.fail(w.stream, Checkpoint, nil, "nobody remembers a checkpoint of it that has the signatures which the policy asks for")
		return
	}
	w.memories = append(w.memories, best)
}

const leavesAtOnce = 2048 // of signed leaves that are read at a time

// read goes through the stream, adds its leaves up, and notes the root at each
// remembered size.
func (w *walk) read(ctx context.Context) error {
	first, err := w.ledger.First(ctx, w.stream)
	if err != nil {
		if r := ctx.Err(); r != nil {
			return r
		}
		w.broken = err // it does not exist: the ledger's findings say so
		return nil
	}
	head, err := w.ledger.Head(ctx, w.stream)
	if err != nil {
		return err
	}
	w.first = first
	if first > 1 && !w.begin() {
		w.lost = true
	}
	w.signed = w.sources(ctx)
	w.mark()
	for rec, err := range w.ledger.Read(ctx, w.stream, first, head) {
		if err != nil {
			if refused(err) == nil {
				return err
			}
			w.broken = err
			break
		}
		if w.stream == events.Ops && !w.again {
			w.note(&rec)
			continue
		}
		if rec.Sequence <= w.through {
			continue
		}
		leaf := audit.LeafOf(&rec)
		w.last = leaf.Place
		if w.lost {
			continue
		}
		h := leaf.Hash()
		for _, s := range w.signed {
			if err := s.compare(w.tree.Size(), leaf.Place, h); err != nil {
				return err
			}
		}
		w.tree.Add(h)
		w.mark()
		if n := w.tree.Size(); n%4096 == 0 {
			w.Progress(w.stream, int64(rec.Sequence-first+1), int64(head-first+1))
		}
	}
	w.Progress(w.stream, int64(head-first+1), int64(head-first+1))
	return ctx.Err()
}

// note keeps what OPS says about keys, prunings and the trees that were exported.
func (w *walk) note(rec *events.Record) {
	switch d := rec.Event.Data.(type) {
	case events.LogKeyRotated:
		w.statements = append(w.statements, d.Statement)
	case events.UsagePruned:
		w.pruned = append(w.pruned, pruning{d, rec.Event.Actor})
	case events.AuditRead:
		if d.What != bundle.What {
			return
		}
		for _, stream := range audit.Streams {
			var size int64
			var root string
			if n, _ := fmt.Sscan(d.Filter[bundle.TreePrefix+stream], &size, &root); n < 2 {
				continue
			}
			if h, err := tlog.ParseHash(root); err == nil {
				w.exported[stream] = append(w.exported[stream], &memory{whose: fmt.Sprintf("the export that OPS %d records", rec.Sequence), holder: events.Ops, tree: audit.Tree{Size: size, Root: h}})
			}
		}
	}
}

// begin takes up the tree where the last recorded pruning left it.
func (w *walk) begin() bool {
	if w.stream != events.Usage {
		return false
	}
	for _, p := range slices.Backward(w.pruned) {
		if p.Through+1 < w.first {
			return false
		}
		f, err := audit.ParseFrontier(p.TreeSize, p.RootHash, p.Frontier)
		if err != nil {
			continue
		}
		w.tree, w.through = f, p.Through
		return true
	}
	return false
}

// mark notes the root at a size that somebody remembers.
func (w *walk) mark() {
	for ; w.next < len(w.memories) && w.memories[w.next].tree.Size <= w.tree.Size(); w.next++ {
		if m := w.memories[w.next]; m.tree.Size == w.tree.Size() {
			m.root, m.seen = w.tree.Root(), true
		}
	}
}

// judge says what came of a reading.
func (w *walk) judge(ctx context.Context) error {
	failed := w.doubts[w.stream]
	w.damage()
	if !w.lost {
		if err := errors.Join(w.ends(ctx), w.differs(ctx)); err != nil {
			return err
		}
	}
	if err := w.published(ctx); err != nil {
		return err
	}
	if failed || w.doubts[w.stream] {
		return nil
	}
	furthest := int64(-1)
	for _, m := range w.memories {
		furthest = m.tree.Size
	}
	if furthest < 0 {
		w.line(Unknown, w.stream, "", nil, "%d events, and nobody remembers a signed checkpoint of it", w.tree.Size())
		return nil
	}
	said := fmt.Sprintf("%d events, as in each of %d signed trees that are remembered", w.tree.Size(), len(w.memories))
	if w.through > 0 {
		p := w.pruned[len(w.pruned)-1]
		said += fmt.Sprintf("; pruned through sequence %d by %s %s, as OPS records", w.through, p.actor.Type, p.actor.ID)
	}
	if n := w.tree.Size() - furthest; n > 0 {
		said += fmt.Sprintf("; the last %d not signed yet", n)
	}
	w.line(Pass, w.stream, "", nil, "%s", said)
	return nil
}

// damage says where reading ended too early.
func (w *walk) damage() {
	if f := refused(w.broken); f != nil {
		w.fail(w.stream, Missing, nil, "%s. %s", f.Problem, f.Means)
	} else if w.broken != nil && !w.doubts[w.stream] {
		w.fail(w.stream, Missing, nil, "it cannot be read: %v", w.broken)
	}
	if w.lost {
		place := &audit.Place{Stream: w.stream, Sequence: 1}
		if n := len(w.memories); n > 0 {
			w.fail(w.stream, Trimmed, place, "its beginning is gone: it begins at sequence %d, no pruning that is recorded reaches there, and %s remembers a signed tree of %d events from the first on", w.first, w.memories[n-1].whose, w.memories[n-1].tree.Size)
		} else {
			w.fail(w.stream, Trimmed, place, "its beginning is gone: it begins at sequence %d, and no pruning that is recorded reaches there", w.first)
		}
	}
}

// ends says whether events that were signed are gone from the end.
func (w *walk) ends(ctx context.Context) error {
	if w.broken != nil {
		return nil
	}
	n := len(w.memories)
	if n == 0 || w.memories[n-1].tree.Size <= w.tree.Size() {
		return nil
	}
	f := w.memories[n-1]
	for _, m := range w.memories { // what was signed says it better than what is told of it
		if m.tree.Size == f.tree.Size && m.holder != "" && m.holder != events.Ops {
			f = m
		}
	}
	word, place, found := Trimmed, &audit.Place{Stream: w.stream, Sequence: w.last.Sequence + 1}, ""
	if f.holder == "" || f.holder == events.Ops {
		word = Rewritten
		at, said, err := w.shown(ctx, f)
		if err != nil {
			return err
		}
		if at != nil {
			place, found = at, said
		}
	}
	w.fail(w.stream, word, place, "its end is gone: it ends at sequence %d with %d events, and %s has a tree of %d: %d are missing.%s",
		w.last.Sequence, w.tree.Size(), f.whose, f.tree.Size, f.tree.Size-w.tree.Size(), found)
	return nil
}

// differs says whether an event is not the one that was signed, and which.
func (w *walk) differs(ctx context.Context) error {
	var fit int64 = -1 // largest size at which the stream is as the installation remembers
	var wrong []*memory
	for _, m := range w.memories {
		switch {
		case !m.seen:
		case !m.fits():
			wrong = append(wrong, m)
		case m.holder != "" && m.holder != events.Ops:
			fit = m.tree.Size
		}
	}
	more := ""
	if len(wrong) > 1 {
		more = fmt.Sprintf(" (and %d more do not fit)", len(wrong)-1)
	}
	if len(wrong) > 0 && (wrong[0].holder == "" || wrong[0].holder == events.Ops && fit >= wrong[0].tree.Size) {
		m := wrong[0]
		place, found, err := w.shown(ctx, m)
		if err != nil {
			return err
		}
		w.fail(w.stream, Rewritten, place, "it is not the history that was shown before: %s has a tree of %d events with root %s, and the stream gives %s%s.%s Keep both, they are evidence",
			m.whose, m.tree.Size, m.tree.Root, m.root, more, found)
		return nil
	}
	said := ""
	if len(wrong) > 0 {
		m := wrong[0]
		if fit >= m.tree.Size {
			w.fail(w.stream, Checkpoint, nil, "the checkpoint that %s remembers, of %d events with root %s, is false: the stream gives %s there, and a later checkpoint, of %d events, fits%s", m.whose, m.tree.Size, m.tree.Root, m.root, fit, more)
			return nil
		}
		said = fmt.Sprintf(" It was changed after it was signed: %s remembers %d events with root %s, and the stream gives %s%s.", m.whose, m.tree.Size, m.tree.Root, m.root, more)
		if fit >= 0 {
			said += fmt.Sprintf(" Up to %d events it is as signed.", fit)
		}
	}
	for _, s := range w.signed {
		if s.differ == 0 {
			continue
		}
		word, what := Edited, fmt.Sprintf("the event at %s is not the one that was signed", s.at)
		if s.differ > 1 && s.first+s.differ == min(s.size, w.tree.Size()) {
			word, what = Recreated, fmt.Sprintf("from %s on none of %d events is the one that was signed: one was left out or put in, or another history stands there", s.at, s.differ)
		} else if s.differ > 1 {
			what = fmt.Sprintf("%d events are not those that were signed, the first at %s", s.differ, s.at)
		}
		w.fail(w.stream, word, &s.at, "%s, by the tree of %d events in %s, whose root was signed. What stood there: %s.%s", what, s.size, s.whose, w.copy(ctx, s.at), said)
		return nil
	}
	if said != "" {
		w.fail(w.stream, Edited, nil, "one event or more is not the one that was signed.%s Which cannot be told: nobody has the tree any more that was signed", said)
	}
	return nil
}

// copy is what the copy of LEDGER in PostgreSQL holds at a place, for a message.
func (w *walk) copy(ctx context.Context, at audit.Place) string {
	if w.stream != events.Ledger {
		return "not known, PostgreSQL has no copy of " + w.stream
	}
	var id, kind, keyspace, owner, key string
	var when time.Time
	err := w.Pool.QueryRow(ctx, `select event_id, type, keyspace, owner, key, time from keyledger.ledger_v1 where sequence = $1`, int64(at.Sequence)).Scan(&id, &kind, &keyspace, &owner, &key, &when)
	if err != nil {
		return "not known, the copy in PostgreSQL has no such row"
	}
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s of %s %s %s at %s, by the copy in PostgreSQL", id, kind, keyspace, owner, key, events.At(when))), " ")
}

// signedLeaves are the leaves of a tree whose root was signed, as somebody's tiles have
// them. Each is checked against the root before it is believed.
type signedLeaves struct {
	whose  string
	size   int64
	hashes tlog.HashReader
	chunk  []tlog.Hash
	begins int64 // index of the first in chunk
	failed error // the tiles are not those of the root

	differ int64 // leaves of the stream that are others
	first  int64 // index of the first of them
	at     audit.Place
}

// sources are those who have leaves to compare with: the published directory by its
// own checkpoint, and PostgreSQL by the furthest checkpoint that its rows reach.
func (w *walk) sources(ctx context.Context) (list []*signedLeaves) {
	add := func(whose string, m *memory, tiles tlog.TileReader) bool {
		s := &signedLeaves{whose: whose, size: m.tree.Size, hashes: tlog.TileHashReader(tlog.Tree{N: m.tree.Size, Hash: m.tree.Root}, tiles)}
		if m.tree.Size == 0 || s.load(min(w.tree.Size(), m.tree.Size-1)) != nil || s.load(m.tree.Size-1) != nil {
			return false
		}
		list = append(list, s)
		return true
	}
	rows := merkle.Rows(ctx, w.Pool, w.stream)
	found := false
	for _, m := range slices.Backward(w.memories) {
		switch {
		case m.holder == "", m.holder == events.Ops:
		case m.holder == merkle.InDirectory:
			add(m.holder, m, merkle.Published(w.Dir, w.stream))
		case !found:
			found = add("PostgreSQL", m, rows)
		}
	}
	return list
}

// load reads the leaves around one.
func (s *signedLeaves) load(index int64) error {
	s.begins = index / leavesAtOnce * leavesAtOnce
	var indexes []int64
	for i := s.begins; i < min(s.begins+leavesAtOnce, s.size); i++ {
		indexes = append(indexes, tlog.StoredHashIndex(0, i))
	}
	var err error
	s.chunk, err = s.hashes.ReadHashes(indexes)
	return err
}

// compare looks whether a leaf of the stream is the one that was signed.
func (s *signedLeaves) compare(index int64, at audit.Place, leaf tlog.Hash) error {
	if s.failed != nil || index >= s.size {
		return nil
	}
	if index < s.begins || index >= s.begins+int64(len(s.chunk)) {
		if err := s.load(index); err != nil {
			s.failed = err
			return nil
		}
	}
	if s.chunk[index-s.begins] != leaf {
		if s.differ++; s.differ == 1 {
			s.first, s.at = index, at
		}
	}
	return nil
}

// published says whether the published directory is what its checkpoint says, and the
// newest that was signed.
func (w *walk) published(ctx context.Context) error {
	if w.Dir == "" {
		return nil
	}
	var dir, bucket *memory
	for _, m := range w.memories {
		switch {
		case m.holder == merkle.InDirectory:
			dir = m
		case m.holder == merkle.InBucket && m.newest:
			bucket = m
		}
	}
	if dir == nil {
		return nil
	}
	s := &signedLeaves{size: dir.tree.Size, hashes: tlog.TileHashReader(tlog.Tree{N: dir.tree.Size, Hash: dir.tree.Root}, merkle.Published(w.Dir, w.stream))}
	for i := int64(0); i < s.size; i += leavesAtOnce {
		if err := s.load(i); err != nil {
			w.fail(w.stream, Checkpoint, nil, "the published directory %s does not hold the tree that its own checkpoint signs: %v", w.Dir, err)
			return nil
		}
	}
	if bucket == nil || dir.tree.Size >= bucket.tree.Size {
		return ctx.Err()
	}
	// Whoever signs publishes: where somebody signed on for longer than this, what was
	// signed before is there.
	for _, m := range w.memories {
		if m.tree.Size > dir.tree.Size && !m.at.IsZero() && bucket.at.Sub(m.at) > unpublished {
			w.fail(w.stream, Checkpoint, nil, "the published directory %s shows an older checkpoint, of %d events: %s had one of %d at %s, and the log was signed on until %s",
				w.Dir, dir.tree.Size, m.whose, m.tree.Size, events.At(m.at), events.At(bucket.at))
			return nil
		}
	}
	return ctx.Err()
}
