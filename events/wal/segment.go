package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"
)

// A segment is a header of one page and records, all words little-endian and on
// multiples of 8:
//
//	0   magic
//	8   number, from 1 and never again in this log
//	16  place in the event store's stream behind which its records stand
//	24  check of the two; another one when all records are done
//	32  where the next record will begin
//	40  records in memory alone, 48 since when, 56 check of the two
//	64  mark: Unix nanoseconds, state, check; 96 another, used in turn
//	4096 records: a word, the sealed bytes and their tag, zeros up to a multiple
//	of 8; behind a tally its count, first, last, value and their check, twice
//
// The word of a record is the length of the sealed bytes (24 bits), the kind (8)
// and a check of these, the number, the place and whether the record is whole. It
// is written twice, when the place is taken and when the record is whole: so a
// reader finds the next record behind one that never became whole, and tells that
// from one that was damaged.
const (
	atMagic  = 0
	atNumber = 8
	atAfter  = 16
	atBirth  = 24
	atEnd    = 32
	atLoose  = 40
	atSince  = 48
	atLooseC = 56
	atMarks  = 64
	markSize = 32
	atFirst  = 4096

	wordSize  = 8
	tagSize   = 16
	numbers   = 40 // of a tally, once
	tallySize = 2 * numbers
	maxPlain  = 1<<24 - 1

	kindRecord = 1
	kindTally  = 2
)

var magic = binary.LittleEndian.Uint64([]byte("klwal\x00\x00\x01"))

// States of a record, part of its check.
const (
	taken = 1
	whole = 2
)

// States of a mark: how soon the next one is due.
const (
	busy  = 1
	quiet = 2
	idle  = 3
)

// mark says that everything logged before a moment is on the disk.
type mark struct {
	time  int64 // Unix nanoseconds
	state uint64
}

// segment is a mapped file. Who appends holds one of its open records, and its
// mapping stays while there is one.
type segment struct {
	number uint64
	path   string
	f      *os.File // nil where a mapping is synced without
	m      []byte
	marks  int // written so far, by the goroutine that syncs

	open  atomic.Int64 // records that are not done, one for being written to, one for being synced
	dirty atomic.Bool  // changed since the last sync began

	born   time.Time // when it was installed, with
	after  uint64    // what had been stored
	off    int       // where the next record goes; guarded by Log.mu
	broken bool      // its file cannot be written any more; guarded by Log.mu
	full   bool      // no longer written to; guarded by Log.mu
	unsync bool      // a sync failed, so nobody knows what the disk has; guarded by Log.mu
}

func (s *segment) word(at int) *uint64 { return (*uint64)(unsafe.Pointer(&s.m[at])) }

func (s *segment) store(at int, v uint64) { atomic.StoreUint64(s.word(at), v) }

// sync brings the first n bytes to the disk.
func (s *segment) sync(n int) error {
	err := guard(func() error { return flush(s.f, s.m[:n]) })
	if err != nil {
		return fmt.Errorf("sync %s: %w", s.path, err)
	}
	return nil
}

func (s *segment) mark(c *crypt, m mark) error {
	at := atMarks + s.marks%2*markSize
	s.marks++
	return guard(func() error {
		s.store(at+16, 0)
		s.store(at, uint64(m.time))
		s.store(at+8, m.state)
		s.store(at+16, c.mix(uint64(m.time), m.state, s.number))
		return nil
	})
}

func (s *segment) unmap() {
	_ = unmap(s.m)
	if s.f != nil {
		_ = s.f.Close()
	}
	s.m = nil
}

// mix is a keyed hash that finds damage, not malice.
func (c *crypt) mix(words ...uint64) uint64 {
	h := c.salt
	for _, w := range words {
		h ^= w
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

func (c *crypt) recordWord(number uint64, at, n int, kind byte, state uint64) uint64 {
	w := uint64(n) | uint64(kind)<<24
	return w | c.mix(w|state<<32, number, uint64(at))<<32
}

func recordSize(n int, kind byte) int {
	size := (wordSize + n + tagSize + 7) &^ 7
	if kind == kindTally {
		size += tallySize
	}
	return size
}

func nonce(dst *[12]byte, number uint64, at int) {
	binary.LittleEndian.PutUint64(dst[:], number)
	binary.LittleEndian.PutUint32(dst[8:], uint32(at))
}

// guard makes an error of a fault in a mapping: a file that was cut short, a disk
// that cannot be read, a file system that ran out of room after all.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = fault(r)
		}
	}()
	return f()
}

// fault is for what a recover found; it panics with anything but a fault.
func fault(r any) error {
	if _, ok := r.(interface{ Addr() uintptr }); ok {
		return errors.New("a segment cannot be written: its file was cut short or removed, or the disk failed")
	}
	panic(r)
}

// write places a record, in memory alone where that fails.
func (l *Log) write(b *Buffer, kind byte) (s *segment, at int) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			s, at = l.lose(s, fault(r)), 0
		}
	}()
	n := len(b.Plain)
	if n > maxPlain || recordSize(n, kind) > l.o.SegmentBytes-atFirst {
		l.mu.Lock()
		l.count(1)
		l.mu.Unlock()
		return l.nowhere, 0
	}
	if s = l.reserve(n, kind, &at); s == l.nowhere {
		return s, 0
	}
	if kind == kindTally { // the file may have been used before
		numbersAt := at + recordSize(n, kindRecord)
		clear(s.m[numbersAt : numbersAt+tallySize])
	}
	nonce(&b.nonce, s.number, at)
	l.aead.Seal(s.m[at+wordSize:at+wordSize], b.nonce[:], b.Plain, nil)
	s.store(at, l.recordWord(s.number, at, n, kind, whole))
	return s, at
}

// reserve takes the place for a record. Its word stands there before anybody can
// take the next place.
func (l *Log) reserve(n int, kind byte, at *int) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := recordSize(n, kind)
	place := &l.current
	if kind == kindTally {
		place = &l.tallies
	}
	if s := *place; l.closed || s.broken || s.off+size > len(s.m) {
		if l.closed || !l.advance(place) {
			l.count(1)
			return l.nowhere
		}
	}
	s := *place
	*at = s.off
	// A fault here is of this segment, and found by the caller.
	s.broken = true
	s.store(*at, l.recordWord(s.number, *at, n, kind, taken))
	s.store(atEnd, uint64(*at+size))
	s.broken = false
	s.off += size
	s.open.Add(1)
	return s
}

// lose is for a record that could not be written. Of a fault while it was sealed
// it holds an open record in s, which is given back.
func (l *Log) lose(s *segment, err error) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s != nil && s != l.nowhere {
		s.broken = true
		if s.open.Add(-1) == 0 {
			l.retire(s)
		}
	}
	l.fail(err)
	l.count(1)
	return l.nowhere
}

// count changes the number of records in memory alone, and notes it where the
// next start sees it. mu is held.
func (l *Log) count(n int64) {
	if l.loose == 0 && n > 0 {
		l.since = nowNano()
	}
	l.loose = max(l.loose+n, 0)
	s := l.current
	if l.closed || s == nil || s.broken {
		return
	}
	if guard(func() error { l.noteLoose(s); return nil }) == nil {
		s.dirty.Store(true)
		l.poke()
	}
}

func (l *Log) noteLoose(s *segment) {
	s.store(atLoose, uint64(l.loose))
	s.store(atSince, uint64(l.since))
	s.store(atLooseC, l.mix(uint64(l.loose), uint64(l.since), s.number))
}

// fail notes that there is no segment. mu is held.
func (l *Log) fail(err error) {
	if l.failed == nil {
		l.o.Log.Error("the write-ahead log fails: a killed process would lose what it answered in the last milliseconds", "log", l.dir, "error", err)
	}
	l.failed = err
	l.poke()
}

// advance has a new segment written to in place of the current one. mu is held.
func (l *Log) advance(place **segment) bool {
	if l.failed != nil {
		return false // the goroutine that syncs tries again
	}
	if err := l.install(place); err != nil {
		l.fail(err)
		return false
	}
	return true
}

// take is a segment that is not in use. mu is held.
func (l *Log) take() (*segment, error) {
	for n := len(l.free); n > 0; n = len(l.free) {
		s := l.free[n-1]
		l.free = l.free[:n-1]
		if !s.broken && guard(func() error { clear(s.m[:atFirst]); return nil }) == nil {
			return l.renumber(s), nil
		}
		l.remove(s)
	}
	s, err := l.create()
	if err != nil {
		return nil, err
	}
	l.poke() // for more of them
	return l.renumber(s), nil
}

// gone is the check of a segment whose records are all done.
func (l *Log) gone(s *segment) uint64 { return l.mix(s.number, *s.word(atAfter), 1) }

func (l *Log) renumber(s *segment) *segment {
	l.number++
	return &segment{number: l.number, path: s.path, f: s.f, m: s.m, off: atFirst}
}

func (l *Log) create() (*segment, error) {
	if l.bytes+int64(l.o.SegmentBytes) > l.o.MaxBytes {
		return nil, fmt.Errorf("the log has its %d MiB: what it holds has not reached the event store yet", l.o.MaxBytes>>20)
	}
	l.files++
	s := &segment{path: filepath.Join(l.dir, fmt.Sprintf("%08d.seg", l.files))}
	var err error
	if s.f, err = os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err = allocate(s.f, int64(l.o.SegmentBytes)); err == nil {
		s.m, err = mapFile(s.f, l.o.SegmentBytes)
	}
	if err != nil {
		_ = s.f.Close()
		_ = os.Remove(s.path)
		return nil, fmt.Errorf("make a segment of %d KiB: %w", l.o.SegmentBytes>>10, err)
	}
	if !needsFile {
		_ = s.f.Close()
		s.f = nil
	}
	l.fresh = true
	l.bytes += int64(l.o.SegmentBytes)
	return s, nil
}

// remove takes a segment off the disk. Nobody may hold a record in it.
func (l *Log) remove(s *segment) {
	s.unmap()
	_ = os.Remove(s.path)
	l.bytes -= int64(l.o.SegmentBytes)
}

// install has a new segment written to at a place, l.current or l.tallies. mu is
// held.
func (l *Log) install(place **segment) error {
	s, err := l.take()
	if err != nil {
		return err
	}
	after := l.stored.Load()
	err = guard(func() error {
		s.store(atEnd, uint64(s.off))
		s.store(atAfter, after)
		s.store(atBirth, l.mix(s.number, after))
		l.noteLoose(s)
		s.store(atNumber, s.number)
		s.store(atMagic, magic)
		return nil
	})
	if err == nil {
		err = s.mark(&l.crypt, l.marked)
	}
	if err != nil {
		l.remove(s)
		return err
	}
	s.born, s.after = time.Now(), after
	s.dirty.Store(true)
	s.open.Store(1) // for being written to
	before := *place
	*place, l.live = s, append(l.live, s)
	if before != nil {
		before.full = true
		if before.open.Add(-1) == 0 {
			l.retire(before)
		}
	}
	return nil
}

// release gives back n of a segment's open records.
func (l *Log) release(s *segment, n int) {
	if s.open.Add(int64(-n)) > 0 {
		return
	}
	l.mu.Lock()
	l.retire(s)
	l.mu.Unlock()
}

// retire takes a segment out of use that nobody needs any more. mu is held.
func (l *Log) retire(s *segment) {
	if !s.full || s.open.Load() > 0 {
		return
	}
	i := slices.Index(l.live, s)
	if i < 0 {
		return
	}
	l.live = slices.Delete(l.live, i, i+1)
	if guard(func() error { s.store(atBirth, l.gone(s)); return nil }) != nil {
		s.broken = true
	}
	l.free = append(l.free, s)
	if len(l.free) > manyFree {
		l.poke()
	}
}

// Tally is a record with numbers that may grow until it is done.
type Tally struct {
	l    *Log
	s    *segment
	at   int // of its numbers
	turn int // which of the two places is the older one
}

// Tally begins one, and takes the buffer back. What it counts is nothing until
// [Tally.Set].
func (l *Log) Tally(b *Buffer) *Tally {
	n := len(b.Plain)
	s, at := l.write(b, kindTally)
	l.buffers.Put(b)
	return &Tally{l: l, s: s, at: at + recordSize(n, kindRecord)}
}

// Set writes the numbers: the count, first and last moment, and one more. Calls
// for one tally MUST NOT overlap, and none may follow [Log.Done]. A tally of 0 is
// as if it had never been.
func (t *Tally) Set(count, first, last, value int64) {
	if t == nil || t.s == t.l.nowhere {
		return
	}
	if err := t.set(uint64(count), uint64(first), uint64(last), uint64(value)); err != nil {
		t.l.mu.Lock()
		t.s.broken = true
		t.l.fail(err)
		t.l.mu.Unlock()
		return
	}
	t.l.touch(t.s)
}

// set overwrites the older numbers, so that a process which ends meanwhile leaves
// the newer ones. A check of 0 says that it was about to.
func (t *Tally) set(count, first, last, value uint64) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = fault(r)
		}
	}()
	at := t.at + t.turn*numbers
	t.turn ^= 1
	t.s.store(at+32, 0)
	*t.s.word(at), *t.s.word(at + 8), *t.s.word(at + 16), *t.s.word(at + 24) = count, first, last, value
	t.s.store(at+32, t.l.tallyCheck(count, first, last, value, t.s.number, at))
	return nil
}

func (c *crypt) tallyCheck(count, first, last, value, number uint64, at int) uint64 {
	return c.mix(count, first, last, value, number, uint64(at)) | 1
}

// Ref is the part of the log that the tally is in.
func (t *Tally) Ref() Ref {
	if t == nil {
		return Ref{}
	}
	return Ref{t.s}
}
