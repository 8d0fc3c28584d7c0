package projections

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/events"
)

// A row for each use and what it is about would be several hundred bytes a use.
// So messages are put together in blocks, and a block holds, sorted by hash, in
// which of its messages each hash occurs: two to six bytes for each.
//
// 32 messages make a block, and 32 of those a larger one, which replaces them: an
// insertion is written three times, and all of the past is looked through in a
// 1,024th of its messages. Which blocks there are follows from the position alone,
// and what is in them from their messages, so neither depends on batches.
const (
	fan    = 32
	levels = 2 // above single messages
	widest = fan * fan

	hashBits = 40 // a false hit in a widest block of a million values: one in a million
	rowBytes = 1900
)

// entry is a hash in a message. Tag tells entries of the same hash apart that are
// not forgotten together.
type entry struct {
	at  uint64 // hash, and the offset of the message in the block in the lowest 16 bits
	tag uint64
}

func (e entry) hash() uint64   { return e.at >> 16 }
func (e entry) offset() uint64 { return e.at & 0xffff }

func (a entry) compare(b entry) int {
	return cmp.Or(cmp.Compare(a.hash(), b.hash()), cmp.Compare(a.tag, b.tag), cmp.Compare(a.at, b.at))
}

// block is a range of messages.
type block struct {
	starts, ends uint64
	entries      []entry // sorted, without repetition
	times        []span  // of each message
}

// span is from the earliest to the latest time of an event, inclusive.
type span struct{ earliest, latest events.Time }

func (b *block) span() span {
	all := b.times[0]
	for _, s := range b.times[1:] {
		all.earliest, all.latest = min(all.earliest, s.earliest), max(all.latest, s.latest)
	}
	return all
}

// joined is one block of several that follow each other.
func joined(parts []*block) *block {
	all := &block{starts: parts[0].starts, ends: parts[len(parts)-1].ends}
	n := 0
	for _, p := range parts {
		n += len(p.entries)
	}
	all.entries = make([]entry, 0, n)
	for _, p := range parts {
		shift := p.starts - all.starts
		for _, e := range p.entries {
			all.entries = append(all.entries, entry{e.at + shift, e.tag})
		}
		all.times = append(all.times, p.times...)
	}
	slices.SortFunc(all.entries, entry.compare)
	return all
}

// row is one row of a block's postings.
type row struct {
	starts   int64
	first    int64
	postings []byte
}

// rows cuts what a block holds. An entry of postings is the distance to the hash
// before, then, where there are tags, how many and for each its eight bytes, then
// the offsets.
func (b *block) rows(tags bool) (rows []row) {
	var r row
	var last uint64
	var buf []byte
	for rest := b.entries; len(rest) > 0; {
		hash := rest[0].hash()
		n := 1
		for n < len(rest) && rest[n].hash() == hash {
			n++
		}
		buf = appendHash(buf[:0], rest[:n], tags)
		rest = rest[n:]
		if r.postings != nil && len(r.postings)+binary.MaxVarintLen64+len(buf) > rowBytes {
			rows = append(rows, r)
			r.postings = nil
		}
		if r.postings == nil {
			r = row{int64(b.starts), int64(hash), make([]byte, 0, rowBytes)}
			last = hash
		}
		r.postings = binary.AppendUvarint(r.postings, hash-last)
		r.postings = append(r.postings, buf...)
		last = hash
	}
	if r.postings != nil {
		rows = append(rows, r)
	}
	return rows
}

func appendHash(dst []byte, of []entry, tags bool) []byte {
	if !tags {
		return appendOffsets(dst, of)
	}
	n := uint64(1)
	for i := range of[1:] {
		if of[i+1].tag != of[i].tag {
			n++
		}
	}
	dst = binary.AppendUvarint(dst, n)
	for len(of) > 0 {
		n := 1
		for n < len(of) && of[n].tag == of[0].tag {
			n++
		}
		dst = binary.BigEndian.AppendUint64(dst, of[0].tag)
		dst = appendOffsets(dst, of[:n])
		of = of[n:]
	}
	return dst
}

// appendOffsets writes one offset as twice it. Several are their number (times four
// plus one) and the distances between them; or, where that is shorter, the length of
// a bitmap (times four plus three) and the bitmap, lowest bit first.
func appendOffsets(dst []byte, of []entry) []byte {
	if len(of) == 1 {
		return binary.AppendUvarint(dst, of[0].offset()<<1)
	}
	bitmap := int(of[len(of)-1].offset()/8) + 1
	begin := len(dst)
	dst = binary.AppendUvarint(dst, uint64(len(of))<<2|1)
	last := uint64(0)
	for _, e := range of {
		dst = binary.AppendUvarint(dst, e.offset()-last)
		last = e.offset()
	}
	if len(dst)-begin <= bitmap+1 {
		return dst
	}
	dst = binary.AppendUvarint(dst[:begin], uint64(bitmap)<<2|3)
	bits := len(dst)
	dst = append(dst, make([]byte, bitmap)...)
	for _, e := range of {
		dst[bits+int(e.offset()/8)] |= 1 << (e.offset() % 8)
	}
	return dst
}

var errPostings = errors.New("postings are not as they were written")

// reading reads postings; what cannot be read makes it bad, for good.
type reading struct {
	b   []byte
	bad bool
}

func (r *reading) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reading) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// offsets tells emit each offset of a list.
func (r *reading) offsets(emit func(uint64)) {
	kind := r.uvarint()
	switch {
	case kind&1 == 0:
		emit(kind >> 1)
	case kind&2 == 0:
		at := uint64(0)
		for i := uint64(0); i < kind>>2 && !r.bad; i++ {
			at += r.uvarint()
			emit(at)
		}
	default:
		for i, b := range r.bytes(kind >> 2) {
			for bit := range 8 {
				if b&(1<<bit) != 0 {
					emit(uint64(i*8 + bit))
				}
			}
		}
	}
}

// each tells emit what a row holds, sorted by hash, until it answers false.
func (r row) each(tags bool, emit func(hash, tag, offset uint64) bool) error {
	in := &reading{b: r.postings}
	hash := uint64(r.first)
	goesOn := true
	for goesOn && len(in.b) > 0 {
		hash += in.uvarint()
		n := uint64(1)
		if tags {
			n = in.uvarint()
		}
		for range n {
			tag := uint64(0)
			if tags {
				if b := in.bytes(8); b != nil {
					tag = binary.BigEndian.Uint64(b)
				}
			}
			in.offsets(func(offset uint64) { goesOn = goesOn && emit(hash, tag, offset) })
			if in.bad {
				return errPostings
			}
		}
	}
	if in.bad {
		return errPostings
	}
	return nil
}

func appendTimes(dst []byte, times []span) []byte {
	last := int64(0)
	for _, s := range times {
		dst = binary.AppendVarint(dst, int64(s.earliest)-last)
		dst = binary.AppendUvarint(dst, uint64(s.latest-s.earliest))
		last = int64(s.earliest)
	}
	return dst
}

func parseTimes(b []byte) (times []span, err error) {
	last := int64(0)
	for len(b) > 0 {
		d, n := binary.Varint(b)
		if n <= 0 {
			return nil, errPostings
		}
		width, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return nil, errPostings
		}
		last += d
		times = append(times, span{events.Time(last), events.Time(last + int64(width))})
		b = b[n+m:]
	}
	return times, nil
}

// postings are the tables of one index.
type postings struct {
	name string // of the table of rows, without its version
	tags bool
}

func (p postings) tables() []Table {
	return []Table{{p.name + "_v1", true}, {p.name + "_blocks_v1", true}, {p.name + "_keyspaces_v1", true}}
}

// apply adds messages. Hashes appends what an event is found by.
func (p postings) apply(ctx context.Context, tx pgx.Tx, batch []events.Record, hashes func(dst []entry, e *events.Envelope) ([]entry, error)) error {
	var blocks []*block
	keyspaces := map[string]bool{}
	for message := range messages(batch) {
		b := &block{starts: message[0].Sequence, ends: message[0].Sequence, times: []span{{message[0].Event.Time, message[0].Event.Time}}}
		keyspaces[message[0].Event.Keyspace] = true
		var err error
		for i := range message {
			e := &message[i].Event
			b.times[0].earliest, b.times[0].latest = min(b.times[0].earliest, e.Time), max(b.times[0].latest, e.Time)
			if b.entries, err = hashes(b.entries, e); err != nil {
				return fmt.Errorf("%s at sequence %d: %w", events.Usage, b.starts, err)
			}
		}
		slices.SortFunc(b.entries, entry.compare)
		b.entries = slices.Compact(b.entries)
		blocks = append(blocks, b)
	}
	var stored []*block
	width := uint64(1)
	for range levels {
		width *= fan
		var larger []*block
		for len(blocks) > 0 {
			starts := blocks[0].starts / width * width
			n := 1
			for n < len(blocks) && blocks[n].starts < starts+width {
				n++
			}
			parts := blocks[:n]
			blocks = blocks[n:]
			if parts[n-1].ends != starts+width-1 {
				stored = append(stored, parts...)
				continue
			}
			if parts[0].starts > starts {
				before, err := p.take(ctx, tx, starts, parts[0].starts)
				if err != nil {
					return err
				}
				parts = append(before, parts...)
			}
			larger = append(larger, joined(parts))
		}
		blocks = larger
	}
	if err := p.store(ctx, tx, append(stored, blocks...)); err != nil {
		return err
	}
	names := make([]string, 0, len(keyspaces))
	for name := range keyspaces {
		names = append(names, name)
	}
	slices.Sort(names)
	_, err := tx.Exec(ctx, fmt.Sprintf(`insert into %s_keyspaces_v1 select k from unnest($1::text[]) k
		where not exists (select from %[1]s_keyspaces_v1 where keyspace = k) on conflict do nothing`, p.name), names)
	return err
}

// take reads the blocks that start in a range, and deletes them.
func (p postings) take(ctx context.Context, tx pgx.Tx, from, to uint64) (blocks []*block, err error) {
	at := map[uint64]*block{}
	rows, err := tx.Query(ctx, fmt.Sprintf(`delete from %s_blocks_v1 where starts >= $1 and starts < $2 returning starts, ends, times`, p.name), int64(from), int64(to))
	if err != nil {
		return nil, err
	}
	var starts, ends int64
	var times []byte
	if _, err := pgx.ForEachRow(rows, []any{&starts, &ends, &times}, func() (err error) {
		b := &block{starts: uint64(starts), ends: uint64(ends)}
		at[b.starts] = b
		blocks = append(blocks, b)
		b.times, err = parseTimes(times)
		return err
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(blocks, func(a, b *block) int { return cmp.Compare(a.starts, b.starts) })
	rows, err = tx.Query(ctx, fmt.Sprintf(`delete from %s_v1 where starts >= $1 and starts < $2 returning starts, first, postings`, p.name), int64(from), int64(to))
	if err != nil {
		return nil, err
	}
	var r row
	_, err = pgx.ForEachRow(rows, []any{&r.starts, &r.first, &r.postings}, func() error {
		b := at[uint64(r.starts)]
		if b == nil {
			return errPostings
		}
		return r.each(p.tags, func(hash, tag, offset uint64) bool {
			b.entries = append(b.entries, entry{hash<<16 | offset, tag})
			return true
		})
	})
	return blocks, err
}

// block reads the first block that starts at a sequence or behind it; nil: there is
// none.
func (p postings) block(ctx context.Context, tx pgx.Tx, from uint64) (*block, error) {
	var starts, ends int64
	var times []byte
	err := tx.QueryRow(ctx, fmt.Sprintf(`select starts, ends, times from %s_blocks_v1 where starts >= $1 order by starts limit 1`, p.name), int64(from)).Scan(&starts, &ends, &times)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := &block{starts: uint64(starts), ends: uint64(ends)}
	if b.times, err = parseTimes(times); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(`select first, postings from %s_v1 where starts = $1 order by first`, p.name), starts)
	if err != nil {
		return nil, err
	}
	var r row
	_, err = pgx.ForEachRow(rows, []any{&r.first, &r.postings}, func() error {
		return r.each(p.tags, func(hash, tag, offset uint64) bool {
			b.entries = append(b.entries, entry{hash<<16 | offset, tag})
			return true
		})
	})
	return b, err
}

// replace puts a block in the place of the one at a sequence.
func (p postings) replace(ctx context.Context, tx pgx.Tx, starts uint64, b *block) error {
	for _, table := range []string{"", "_blocks"} {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`delete from %s%s_v1 where starts = $1`, p.name, table), int64(starts)); err != nil {
			return err
		}
	}
	return p.store(ctx, tx, []*block{b})
}

// prune removes blocks, and of one in the middle what is before: it is then as if it
// had been joined of the rest.
func (p postings) prune(ctx context.Context, tx pgx.Tx, through uint64) error {
	for _, sql := range []string{
		`delete from %[1]s_v1 u using %[1]s_blocks_v1 b where b.ends <= $1 and u.starts = b.starts`,
		`delete from %[1]s_blocks_v1 where ends <= $1`,
	} {
		if _, err := tx.Exec(ctx, fmt.Sprintf(sql, p.name), int64(through)); err != nil {
			return err
		}
	}
	b, err := p.block(ctx, tx, 0)
	if b == nil || err != nil || b.starts > through {
		return err
	}
	gone := through + 1 - b.starts
	rest := &block{starts: through + 1, ends: b.ends, times: b.times[gone:]}
	for _, e := range b.entries {
		if e.offset() >= gone {
			rest.entries = append(rest.entries, entry{e.at - gone, e.tag})
		}
	}
	return p.replace(ctx, tx, b.starts, rest)
}

func (p postings) store(ctx context.Context, tx pgx.Tx, blocks []*block) error {
	if len(blocks) == 0 {
		return nil
	}
	var rows []row
	for _, b := range blocks {
		rows = append(rows, b.rows(p.tags)...)
	}
	var q pgx.Batch
	q.Queue(fmt.Sprintf(`insert into %s_blocks_v1 select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[])`, p.name),
		column(blocks, func(b **block) int64 { return int64((*b).starts) }),
		column(blocks, func(b **block) int64 { return int64((*b).ends) }),
		column(blocks, func(b **block) int64 { return int64((*b).span().earliest) }),
		column(blocks, func(b **block) int64 { return int64((*b).span().latest) }),
		column(blocks, func(b **block) []byte { return appendTimes(nil, (*b).times) }))
	for part := range slices.Chunk(rows, 2000) {
		q.Queue(fmt.Sprintf(`insert into %s_v1 select * from unnest($1::bigint[], $2::bigint[], $3::bytea[])`, p.name),
			column(part, func(r *row) int64 { return r.starts }),
			column(part, func(r *row) int64 { return r.first }),
			column(part, func(r *row) []byte { return r.postings }))
	}
	return tx.SendBatch(ctx, &q).Close()
}
