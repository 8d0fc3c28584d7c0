// Package wal is a local write-ahead log: what a process has answered for and
// not yet handed to the event store, where the end of the process cannot reach
// it.
//
// A log is a directory of one process, <root>/<node>, with preallocated segments
// that are mapped into memory. [Log.Append] seals a record into the mapping: no
// system call, and from then on the record is in the kernel's page cache, which
// survives kill -9. Every 20 ms while there is something new, one goroutine
// syncs it to the disk and notes how far and when. A segment whose records are
// all [Log.Done] is used again. A [Tally] is a record with numbers behind it that
// may grow until it is done, for what is counted rather than listed.
//
// Everything but numbers and times of tallies is sealed with AES-256-GCM under a
// key of this log alone, which the master key wraps; the place in the log is the
// nonce.
//
// It promises:
//
//   - A record is found by [Dead.Read] once Append has returned, whatever ends the
//     process. Records under way at that moment are not, and nobody was answered
//     for them.
//   - A power cut takes the records of the last 20 ms and the time of one sync,
//     and Read says that it did and from when. A log that had nothing new for ten
//     seconds says on disk that it rests, and wakes with a sync that the first
//     record waits for, so that a machine which stops while it rests has lost
//     nothing and nothing is said to be lost.
//   - A record that was changed on disk is not given; Read says that there was
//     one, or that there may have been.
//   - It never fails its caller. Where there is no room for a segment, the disk
//     fails or the files are taken away, records are in memory alone: [Log.Err]
//     says so and why, the log notes how many there are, and it goes back to work
//     as soon as it can.
//   - A log whose process lives is never touched, by a lock that ends with it.
//
// How it can disappoint: a disk that says it has synced and has not; a directory
// on a network file system, where the lock may not be seen by others; somebody
// who removes whole segments, which nothing here can see.
package wal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"github.com/keyledger/keyledger/events/seal"
)

// Options of [Open].
type Options struct {
	Node   string      // the name of the process, and of the directory
	Master seal.Master // wraps the log's key

	// After is a place in the event store's stream behind which everything that
	// is logged from now on will stand, should it get there. See [Log.Stored].
	After uint64

	MaxBytes     int64        // of all segments; 0: 512 MiB
	SegmentBytes int          // 0: 256 KiB
	Log          *slog.Logger // nil: slog.Default()
}

const (
	defaultMax     = 512 << 20
	defaultSegment = 256 << 10

	// Segments are small, so that most are done and used again before they are
	// ever synced: what NATS has needs no disk here.
	fewFree, manyFree = 4, 16 // segments that wait for their next use

	syncEvery  = 20 * time.Millisecond
	quietEvery = time.Second      // between marks while nothing happens
	idleAfter  = 10 * time.Second // without a record the log rests
	wakeWithin = time.Second      // how long a record waits for a log that rests; a disk that takes longer has failed
)

// Log is an open log. It is safe for concurrent use.
type Log struct {
	crypt
	dir     string
	lock    *flock.Flock
	o       Options
	buffers sync.Pool // of *Buffer
	nowhere *segment  // stands for memory alone

	stored atomic.Uint64
	idle   atomic.Bool   // the disk says that the log rests
	wake   chan struct{} // has room for one
	stop   chan struct{}
	done   sync.WaitGroup

	// mu guards what follows, and the place where the next record goes. It is
	// held for a few words of a mapping, and for making a segment only where those
	// made in advance are used up.
	mu      sync.Mutex
	current *segment   // where the next record goes; never nil
	tallies *segment   // where the next tally goes: they are open for longer
	live    []*segment // with these; all that may hold open records
	free    []*segment // not in use
	number  uint64     // of the last segment
	fresh   bool       // a file was made since the directory was synced
	files   int        // made so far
	bytes   int64      // of the segments on disk
	loose   int64      // records in memory alone
	since   int64      // when loose became more than none, in Unix nanoseconds
	failed  error      // why there is no segment
	unsync  error      // why the disk does not have what it should
	marked  mark       // the last one
	awake   chan struct{}
	tried   time.Time // to get over failed
	closed  bool
}

// crypt is what a log is sealed with.
type crypt struct {
	aead cipher.AEAD
	salt uint64 // of the checks
}

func newCrypt(key []byte) (crypt, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return crypt{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return crypt{}, err
	}
	salt := sha256.Sum256(append([]byte("check"), key...))
	return crypt{aead, binary.LittleEndian.Uint64(salt[:])}, nil
}

// meta is the content of the file log.json. All of it may be seen.
type meta struct {
	Format  int    `json:"format"`
	Node    string `json:"node"`
	BootID  string `json:"boot_id"` // of the machine when the log was made; empty: not known
	Key     []byte `json:"key"`     // wrapped by the master key
	Created int64  `json:"created"` // Unix nanoseconds
}

const (
	format   = 1
	metaFile = "log.json"
	lockFile = "lock"
)

func (m *meta) context() string { return "write-ahead log of " + m.Node }

// Buffer is room for one record: append to Plain, then hand it to the log.
type Buffer struct {
	Plain []byte
	nonce [12]byte
}

// Ref is the part of the log that a record is in. The zero Ref is none.
type Ref struct{ s *segment }

// Kept says whether the Ref is of a log at all.
func (r Ref) Kept() bool { return r.s != nil }

// Open makes the log of a process. There MUST be no log of this name any more:
// see [Claim]. [Log.Close] MUST be called.
func Open(root string, o Options) (*Log, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMax
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegment
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	l := &Log{
		dir: filepath.Join(root, o.Node), o: o, nowhere: new(segment),
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.buffers.New = func() any { return &Buffer{Plain: make([]byte, 0, 512)} }
	l.stored.Store(o.After)
	if err := l.make(root); err != nil {
		return nil, fmt.Errorf("the write-ahead log %s cannot be made: %w", l.dir, err)
	}
	l.done.Go(l.run)
	return l, nil
}

// make leaves a directory that is locked, or none.
func (l *Log) make(root string) (err error) {
	unlock, err := lockRoot(root)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("a process that runs records under the name %q: give every process its own", l.o.Node)
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(l.dir)
			if l.lock != nil {
				_ = l.lock.Close()
			}
		}
	}()
	l.lock = flock.New(filepath.Join(l.dir, lockFile), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	if ok, err := l.lock.TryLock(); err != nil || !ok {
		return errors.Join(errors.New("it cannot be locked"), err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if l.crypt, err = newCrypt(key); err != nil {
		return err
	}
	m := meta{Format: format, Node: l.o.Node, BootID: bootID(), Created: time.Now().UnixNano()}
	m.Key = l.o.Master.Wrap(key, m.context())
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(l.dir, metaFile), append(b, '\n')); err != nil {
		return err
	}
	l.marked = mark{time: m.Created, state: busy}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, place := range []**segment{&l.current, &l.tallies} {
		if err := l.install(place); err != nil {
			return err
		}
		if err := (*place).sync(atFirst); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(l.dir), syncDir(root))
}

// Buffer is one for the next record.
func (l *Log) Buffer() *Buffer {
	b := l.buffers.Get().(*Buffer)
	b.Plain = b.Plain[:0]
	return b
}

// Append is [Log.Write] of a buffer of [Log.Buffer], which it takes back.
func (l *Log) Append(b *Buffer) Ref {
	defer l.buffers.Put(b)
	return l.Write(b)
}

// Write writes a record. The record is open until [Log.Done]; the buffer stays the
// caller's.
func (l *Log) Write(b *Buffer) Ref {
	s, _ := l.write(b, kindRecord)
	if s != l.nowhere {
		l.touch(s)
	}
	return Ref{s}
}

// Done says that n records of a Ref are in the event store, or that nobody needs
// them any more.
func (l *Log) Done(r Ref, n int) {
	if r.s == nil || n == 0 {
		return
	}
	if r.s == l.nowhere {
		l.mu.Lock()
		l.count(int64(-n))
		l.mu.Unlock()
		return
	}
	l.release(r.s, n)
}

// Stored says that everything that is logged after the call stands behind a
// place in the event store's stream, should it get there.
func (l *Log) Stored(sequence uint64) {
	for {
		before := l.stored.Load()
		if sequence <= before || l.stored.CompareAndSwap(before, sequence) {
			return
		}
	}
}

// Err says why records are not safe at present: nil where they are.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return fmt.Errorf("records are in memory alone, a killed process loses them: %w", l.failed)
	case l.loose > 0:
		return fmt.Errorf("%d records are still in memory alone", l.loose)
	case l.unsync != nil:
		return fmt.Errorf("records survive a killed process, but no power cut: %w", l.unsync)
	}
	return nil
}

// Bytes is what the log takes on disk.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// Dir is where the log is.
func (l *Log) Dir() string { return l.dir }

// Close ends the log. Where every record is done its directory is removed;
// otherwise everything is synced and stays, for the next start, and open says how
// many records that are.
func (l *Log) Close() (open int64, err error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	open = l.loose - 2 // the two that are written to are open for that
	for _, s := range l.live {
		open += s.open.Load()
	}
	if open == 0 {
		for _, s := range append(l.live, l.free...) {
			s.unmap()
		}
		err = errors.Join(remove(l.dir), l.lock.Close())
		return open, err
	}
	// The mappings stay: somebody may still hold a tally.
	for _, s := range l.live {
		err = errors.Join(err, s.sync(len(s.m)))
	}
	if err == nil {
		l.marked = mark{time: time.Now().UnixNano(), state: idle}
		err = errors.Join(l.current.mark(&l.crypt, l.marked), l.current.sync(atFirst))
	}
	return open, errors.Join(err, l.lock.Close())
}

// lockRoot holds what making and claiming logs must not do at the same time.
func lockRoot(root string) (unlock func(), err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(root, ".lock"), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	if err := l.Lock(); err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
