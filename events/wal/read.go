package wal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/keyledger/keyledger/events/seal"
)

// Dead is the log of a process that ended and left something.
type Dead struct {
	Dir  string
	lock *flock.Flock
}

// Entry is a record that was not done, or not known to be.
type Entry struct {
	Plain []byte

	// Of a tally.
	Tally                     bool
	Count, First, Last, Value int64
}

// Contents is what a dead log holds.
type Contents struct {
	Node    string
	Created time.Time
	After   uint64  // whatever of it the event store has stands behind this place
	Entries []Entry // in the order in which they were begun, but for those of one moment

	// Damaged records were whole and cannot be read any more; with Unreadable
	// there may be more of them, nobody knows how many.
	Damaged    int64
	Unreadable bool

	// Loose records were in memory alone when the process ended, at most so many,
	// since a moment.
	Loose int64
	Since time.Time

	// PowerCut: the machine stopped, or may have. Records between From and To that
	// are not in Entries were on no disk: those of at most 50 ms, if the disk was
	// as fast as usual. Nobody knows how many. To is when the machine started
	// again, or when this is read where that is not known.
	PowerCut bool
	From, To time.Time
}

// Claim takes the logs under root whose processes have ended. Each MUST be
// removed or released.
func Claim(root string) (dead []*Dead, err error) {
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lockRoot(root)
	if err != nil {
		return nil, fmt.Errorf("the write-ahead logs in %s cannot be looked at: %w", root, err)
	}
	defer unlock()
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, d := range dead {
				d.Release()
			}
		}
	}()
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), removed) {
			_ = os.RemoveAll(filepath.Join(root, e.Name())) // the next claim tries again
		}
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		d := &Dead{Dir: filepath.Join(root, e.Name())}
		d.lock = flock.New(filepath.Join(d.Dir, lockFile), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
		ok, err := d.lock.TryLock()
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has just finished with it
		}
		if err != nil {
			return dead, fmt.Errorf("the write-ahead log %s of a process that ended cannot be taken over: %w: run as the user it belongs to, or give this process another state_dir", d.Dir, err)
		}
		if ok {
			dead = append(dead, d)
		}
	}
	return dead, nil
}

// Release leaves a log as it is, for another to claim.
func (d *Dead) Release() { _ = d.lock.Close() }

// removed begins the names of logs that nobody needs: a process that is killed while
// it removes one must not leave a part of it for the next to read.
const removed = ".removed-"

// Remove is for a log whose entries are in the event store.
func (d *Dead) Remove() error {
	return errors.Join(remove(d.Dir), d.lock.Close())
}

func remove(dir string) error {
	gone := filepath.Join(filepath.Dir(dir), removed+filepath.Base(dir))
	if err := os.Rename(dir, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Read reads a dead log, which stays as it is. It fails where the log cannot be
// opened at all; of damage it reads what is left.
func (d *Dead) Read(master seal.Master) (*Contents, error) {
	b, err := os.ReadFile(filepath.Join(d.Dir, metaFile))
	segments, globErr := filepath.Glob(filepath.Join(d.Dir, "*.seg"))
	if err != nil || globErr != nil {
		if errors.Is(err, fs.ErrNotExist) && len(segments) == 0 {
			return &Contents{Node: filepath.Base(d.Dir)}, nil // it ended before it began
		}
		return nil, d.unusable("%v", errors.Join(err, globErr))
	}
	var m meta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, d.unusable("its file %s is damaged", metaFile)
	}
	if m.Format > format {
		return nil, fmt.Errorf("the write-ahead log %s was written by a newer keyledger (format %d, this program knows %d): start that one, it will record what the log holds", d.Dir, m.Format, format)
	}
	key, err := master.Unwrap(m.Key, m.context())
	if err != nil {
		return nil, d.unusable("it was sealed under another master key, or its file %s was changed: start with the master key of the process that wrote it", metaFile)
	}
	c, err := newCrypt(key)
	if err != nil {
		return nil, d.unusable("its file %s was changed", metaFile)
	}
	r := reading{crypt: c, Contents: &Contents{Node: m.Node, Created: time.Unix(0, m.Created)}, same: m.BootID != "" && m.BootID == bootID()}
	r.newest = mark{m.Created, busy}
	var all []found
	for _, path := range segments {
		m, err := os.ReadFile(path)
		if err != nil {
			return nil, d.unusable("%v", err)
		}
		if f, ok := r.header(m); ok {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b found) int { return int(int64(a.number - b.number)) })
	for i, f := range all {
		if i == 0 || f.after < r.After {
			r.After = f.after
		}
		r.records(f)
	}
	if n := len(all); n > 0 {
		r.loose(all[n-1])
	}
	if !r.same && r.newest.state != idle {
		// What is torn or missing behind the mark is what the cut took.
		r.PowerCut, r.Damaged, r.Unreadable = true, 0, false
		r.From = time.Unix(0, r.newest.time)
		// How long after that the machine stopped nobody wrote down: a sync may have
		// been under way for long.
		if r.To = bootTime(); r.To.Before(r.From) {
			r.To = time.Now()
		}
	}
	return r.Contents, nil
}

func (d *Dead) unusable(why string, args ...any) error {
	return fmt.Errorf("the write-ahead log %s, of a process that ended, holds uses that were answered and cannot be read: %s. Should that be impossible, move the directory away: the uses in it are lost then",
		d.Dir, fmt.Sprintf(why, args...))
}

// reading is a log on the way to its Contents.
type reading struct {
	crypt
	*Contents
	same   bool // boot: the page cache that was written to is the one that is read
	newest mark
}

type found struct {
	number, after uint64
	m             []byte
}

func word(m []byte, at int) uint64 { return binary.LittleEndian.Uint64(m[at:]) }

// header is false for a segment that holds nothing anybody needs, or that cannot
// be read.
func (r *reading) header(m []byte) (found, bool) {
	empty := len(m) < atFirst
	if !empty {
		empty = true
		for _, b := range m[:atFirst] {
			empty = empty && b == 0
		}
	}
	if empty {
		return found{}, false // made in advance
	}
	f := found{word(m, atNumber), word(m, atAfter), m}
	done := word(m, atBirth) == r.mix(f.number, f.after, 1)
	if word(m, atMagic) != magic || !done && word(m, atBirth) != r.mix(f.number, f.after) {
		r.Unreadable = true
		return f, false
	}
	// Also where all is done: most marks are in segments of which nothing is left,
	// and without them a power cut would be declared from the beginning of the log.
	for i := range 2 {
		at := atMarks + i*markSize
		if t, state := word(m, at), word(m, at+8); word(m, at+16) == r.mix(t, state, f.number) {
			if int64(t) > r.newest.time {
				r.newest = mark{int64(t), state}
			}
		}
	}
	return f, !done
}

// records reads all that a segment has, beyond damaged places too. After a power
// cut the header may be older than the records, so it reads to the end.
func (r *reading) records(f found) {
	end := int(min(word(f.m, atEnd), uint64(len(f.m))))
	for at := atFirst; at+wordSize+tagSize <= len(f.m); {
		n, kind, state := r.recordAt(f, at)
		if state == 0 {
			if at < end {
				r.Unreadable = true
			}
			at += 8
			continue
		}
		size := recordSize(n, kind)
		if state == whole {
			r.entry(f, at, n, kind, at < end)
		}
		at += size
	}
}

// recordAt is of state 0 where no record begins.
func (r *reading) recordAt(f found, at int) (n int, kind byte, state uint64) {
	w := word(f.m, at)
	if w == 0 {
		return 0, 0, 0
	}
	n, kind = int(w&0xffffff), byte(w>>24)
	if kind != kindRecord && kind != kindTally || at+recordSize(n, kind) > len(f.m) {
		return 0, 0, 0
	}
	for _, state := range []uint64{whole, taken} {
		if r.recordWord(f.number, at, n, kind, state) == w {
			return n, kind, state
		}
	}
	return 0, 0, 0
}

func (r *reading) entry(f found, at, n int, kind byte, expected bool) {
	var place [12]byte
	nonce(&place, f.number, at)
	from := at + wordSize
	plain, err := r.aead.Open(nil, place[:], f.m[from:from+n+tagSize], nil)
	if err != nil {
		if expected {
			r.Damaged++
		}
		return
	}
	e := Entry{Plain: plain, Tally: kind == kindTally}
	if e.Tally && !r.numbers(f, at+recordSize(n, kindRecord), &e) {
		return
	}
	r.Entries = append(r.Entries, e)
}

func (r *reading) loose(f found) {
	n, since := word(f.m, atLoose), word(f.m, atSince)
	switch {
	case word(f.m, atLooseC) != r.mix(n, since, f.number):
		r.Unreadable = true
	case n > 0:
		r.Loose, r.Since = int64(n), time.Unix(0, int64(since))
	}
}

// numbers are the newer ones of the two that are whole. It is false where nothing
// was counted.
func (r *reading) numbers(f found, at int, e *Entry) bool {
	for range 2 {
		count, first, last, value, check := word(f.m, at), word(f.m, at+8), word(f.m, at+16), word(f.m, at+24), word(f.m, at+32)
		switch {
		case check == 0: // never written, or being written when the process ended
		case check != r.tallyCheck(count, first, last, value, f.number, at):
			r.Unreadable = true
		case int64(count) == 0:
			return false // it was taken back
		case int64(count) > e.Count:
			e.Count, e.First, e.Last, e.Value = int64(count), int64(first), int64(last), int64(value)
		}
		at += numbers
	}
	return e.Count > 0
}
