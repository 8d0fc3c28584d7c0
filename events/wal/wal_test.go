package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events/seal"
)

var master = seal.Master{7}

func open(t testing.TB, root string, o Options) *Log {
	t.Helper()
	o.Node, o.Master, o.Log = "gw-1", master, slog.New(slog.DiscardHandler)
	l, err := Open(root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close() })
	return l
}

func add(l *Log, text string) Ref {
	b := l.Buffer()
	b.Plain = append(b.Plain, text...)
	return l.Append(b)
}

func tally(l *Log, text string) *Tally {
	b := l.Buffer()
	b.Plain = append(b.Plain, text...)
	return l.Tally(b)
}

// killed is a copy of a log as the kernel has it, under a root of its own: what a
// process that is killed now leaves.
func killed(t testing.TB, l *Log) string {
	t.Helper()
	root := t.TempDir()
	l.mu.Lock() // segments come and go
	defer l.mu.Unlock()
	copyDir(t, l.dir, filepath.Join(root, filepath.Base(l.dir)))
	return root
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, root string) *Contents {
	t.Helper()
	dead, err := Claim(root)
	if err != nil || len(dead) != 1 {
		t.Fatalf("%d logs to claim, %v", len(dead), err)
	}
	defer dead[0].Release()
	c, err := dead[0].Read(master)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func texts(c *Contents) (all []string) {
	for _, e := range c.Entries {
		s := string(e.Plain)
		if e.Tally {
			s += fmt.Sprint(" ", e.Count)
		}
		all = append(all, s)
	}
	return all
}

func expect(t testing.TB, c *Contents, want ...string) {
	t.Helper()
	got := texts(c)
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Fatalf("read %.200q, want %.200q", got, want)
	}
	if c.Damaged != 0 || c.Unreadable || c.Loose != 0 || c.PowerCut {
		t.Errorf("an undamaged log is read as %+v", *c)
	}
}

// What was appended is found after a kill, without a sync or a close; what is
// done in a segment that is given up is not kept.
func TestKill(t *testing.T) {
	l := open(t, t.TempDir(), Options{After: 7})
	add(l, "one")
	two := tally(l, "two")
	two.Set(1, 10, 10, 5)
	two.Set(2, 10, 12, 5)
	tally(l, "never counted")
	void := tally(l, "taken back")
	void.Set(3, 1, 1, 1)
	void.Set(0, 1, 1, 1)
	c := read(t, killed(t, l))
	expect(t, c, "one", "two 2")
	if e := c.Entries[1]; e.First != 10 || e.Last != 12 || e.Value != 5 || c.After != 7 || c.Node != "gw-1" {
		t.Errorf("%+v of %+v", e, *c)
	}
}

// A process that is killed while it removes a log that nobody needs leaves a part of
// it. The next claim removes the rest and reads nothing.
func TestKilledWhileRemoving(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	add(l, "one")
	root := killed(t, l)
	half := filepath.Join(root, removed+filepath.Base(l.dir))
	if err := os.Rename(filepath.Join(root, filepath.Base(l.dir)), half); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(half, metaFile)); err != nil {
		t.Fatal(err)
	}
	if dead, err := Claim(root); len(dead) != 0 || err != nil {
		t.Errorf("%d logs to claim, %v", len(dead), err)
	}
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the rest of the removed log stays: %v", err)
	}
}

// A log that is closed with nothing open leaves nothing; one with something open
// leaves that, and says that it ended well.
func TestClose(t *testing.T) {
	root := t.TempDir()
	l := open(t, root, Options{})
	ref := add(l, "one")
	l.Done(ref, 1)
	if n, err := l.Close(); n != 0 || err != nil {
		t.Errorf("%d open, %v", n, err)
	}
	if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a log without open records stays: %v", err)
	}
	l = open(t, root, Options{})
	add(l, "two")
	l.Done(add(l, "three"), 1)
	if n, err := l.Close(); n != 1 || err != nil {
		t.Errorf("%d open, %v", n, err)
	}
	reboot(t, l.dir)
	expect(t, read(t, root), "two", "three") // of one segment: whether three is done is the event store's to say
}

// reboot makes a log that of a machine which was started again.
func reboot(t testing.TB, dir string) {
	t.Helper()
	path := filepath.Join(dir, metaFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	id := bootID()
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"boot_id": "`+id, `"boot_id": "another`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A live log is not claimed, and its name is not given away.
func TestLive(t *testing.T) {
	root := t.TempDir()
	l := open(t, root, Options{})
	if dead, err := Claim(root); len(dead) != 0 || err != nil {
		t.Errorf("claimed %d live logs, %v", len(dead), err)
	}
	if _, err := Open(root, l.o); err == nil || !strings.Contains(err.Error(), "gw-1") {
		t.Errorf("a second log of the same name: %v", err)
	}
	if dead, err := Claim(filepath.Join(root, "none")); len(dead) != 0 || err != nil {
		t.Errorf("%d, %v", len(dead), err)
	}
}

// Segments are used again when all in them is done, so that the log does not
// grow with what was logged; each record is in it until it is done.
func TestSegmentsAreUsedAgain(t *testing.T) {
	l := open(t, t.TempDir(), Options{SegmentBytes: 16 << 10, MaxBytes: 1 << 20})
	keep := add(l, "kept")
	var refs []Ref
	for i := range 20000 {
		refs = append(refs, add(l, fmt.Sprintf("record %d %s", i, strings.Repeat("x", 100))))
		if len(refs) > 200 {
			l.Done(refs[0], 1)
			refs = refs[1:]
		}
		if i%1000 == 0 {
			l.Stored(uint64(i))
		}
	}
	c := read(t, killed(t, l))
	last := texts(c)
	if len(last) < 201 || last[0] != "kept" || !strings.HasPrefix(last[len(last)-1], "record 19999 ") || !strings.HasPrefix(last[len(last)-200], "record 19800 ") {
		t.Errorf("%d records", len(last))
	}
	if c.After != 0 || c.Damaged != 0 || c.Unreadable || c.Loose != 0 {
		t.Errorf("%+v", *c)
	}
	l.Done(keep, 1)
	// What is done behind a place is not asked for again: the log moves on.
	l.Done(tally(l, "done").Ref(), 1)
	l.mu.Lock()
	l.current.born, l.tallies.born = time.Time{}, time.Time{}
	l.mu.Unlock()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l.tend() // as its goroutine does, which may just hold a segment to sync it
		c := read(t, killed(t, l))
		if c.After >= 18000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d", c.After)
		}
	}
	for _, r := range refs {
		l.Done(r, 1)
	}
	if n, err := l.Close(); n != 0 || err != nil {
		t.Errorf("%d open, %v", n, err)
	}
}

// A tally in a segment that was used before knows nothing of what stood there.
func TestTalliesInUsedSegments(t *testing.T) {
	l := open(t, t.TempDir(), Options{SegmentBytes: 8 << 10})
	var open []*Tally
	for i := range 2000 {
		y := tally(l, fmt.Sprint("tally ", i))
		y.Set(int64(i+1), 1, 2, 3)
		if i%3 == 0 {
			y.Set(int64(i+2), 1, 2, 3)
		}
		if open = append(open, y); len(open) > 10 {
			l.Done(open[0].Ref(), 1)
			open = open[1:]
		}
		if i%50 == 0 {
			if c := read(t, killed(t, l)); c.Unreadable || c.Damaged > 0 {
				t.Fatalf("after %d tallies: %+v", i, *c)
			}
		}
	}
}

// Records of many at once are all found, and each once.
func TestTogether(t *testing.T) {
	l := open(t, t.TempDir(), Options{SegmentBytes: 16 << 10})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 500 {
				ref := add(l, fmt.Sprintf("%d %d %s", w, i, strings.Repeat("x", rand.IntN(300))))
				if i < 450 {
					l.Done(ref, 1)
				}
			}
		})
	}
	wg.Wait()
	count := map[string]int{}
	for _, s := range texts(read(t, killed(t, l))) {
		var w, i int
		_, _ = fmt.Sscan(s, &w, &i)
		count[fmt.Sprint(w, i)]++
	}
	for w := range 8 {
		for i := 450; i < 500; i++ {
			if count[fmt.Sprint(w, i)] != 1 {
				t.Errorf("record %d of %d is there %d times", i, w, count[fmt.Sprint(w, i)])
			}
		}
	}
}

// Nothing that was logged can be read in the files.
func TestSealed(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	add(l, "203.0.113.9 curl/8")
	tally(l, "2001:db8::1").Set(1, 1, 1, 1)
	_ = filepath.WalkDir(l.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(b), "203.0.113.9") || strings.Contains(string(b), "curl") || strings.Contains(string(b), "2001:db8") {
			t.Errorf("%s in clear, %v", path, err)
		}
		return nil
	})
	dead, err := Claim(killed(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer dead[0].Release()
	if _, err := dead[0].Read(seal.Master{8}); err == nil || !strings.Contains(err.Error(), dead[0].Dir) || !strings.Contains(err.Error(), "move the directory away") {
		t.Errorf("another master key: %v", err)
	}
}

// Whatever bit is flipped, wherever the log is cut: what is read was written, and
// what is missing is said to be.
func TestDamage(t *testing.T) {
	l := open(t, t.TempDir(), Options{SegmentBytes: 8 << 10})
	var want []string
	for i := range 60 {
		text := fmt.Sprintf("record %d %s", i, strings.Repeat("x", i))
		if i%7 == 0 {
			c := tally(l, text)
			c.Set(int64(i+1), 1, 2, 3)
			c.Set(int64(i+2), 1, 2, 3)
			want = append(want, fmt.Sprint(text, " ", i+2))
			continue
		}
		want = append(want, text)
		add(l, text)
	}
	whole := killed(t, l)
	expect(t, read(t, whole), want...)
	segments, err := filepath.Glob(filepath.Join(whole, "gw-1", "*.seg"))
	if err != nil || len(segments) < 2 {
		t.Fatal(len(segments), err)
	}
	image := map[string][]byte{}
	for _, path := range segments {
		if image[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t interface {
		Errorf(string, ...any)
		Fatal(...any)
	}, path string, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile(path, image[path], 0o600)
		dead, err := Claim(whole)
		if err != nil || len(dead) != 1 {
			t.Fatal(err)
		}
		defer dead[0].Release()
		c, err := dead[0].Read(master)
		if err != nil {
			t.Fatal(err)
		}
		missing := map[string]bool{}
		for _, s := range want {
			missing[s] = true
		}
		for _, s := range texts(c) {
			if !missing[s] && !c.Unreadable { // of a damaged tally the numbers before may be left
				t.Errorf("%q was never written", s)
			}
			delete(missing, s)
		}
		if len(missing) > 0 && c.Damaged == 0 && !c.Unreadable {
			t.Errorf("%d records are missing and nothing is said", len(missing))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.SampledFrom(segments).Draw(t, "segment")
		b := slices.Clone(image[path])
		at := rapid.IntRange(0, len(b)-1).Draw(t, "byte")
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		check(t, path, b)
	})
	// The tail is torn at every word: zeros, as a page that never reached the disk.
	path := segments[0]
	for at := atFirst; at < len(image[path]); at += 8 {
		b := slices.Clone(image[path])
		clear(b[at:])
		check(t, path, b)
	}
}

// A record that was under way when the process ended is nobody's loss, and hides
// none behind it.
func TestUnderWay(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	add(l, "one")
	var at int
	l.reserve(100, kindRecord, &at)
	add(l, "two")
	expect(t, read(t, killed(t, l)), "one", "two")
}

// After a power cut the loss is declared from the last mark on, unless the log
// said that it rests.
func TestPowerCut(t *testing.T) {
	begun := time.Now()
	l := open(t, t.TempDir(), Options{})
	add(l, "one")
	root := killed(t, l)
	reboot(t, filepath.Join(root, "gw-1"))
	c := read(t, root)
	if !c.PowerCut || c.From.Before(begun) || c.From.After(time.Now()) || c.To.Before(c.From) || len(c.Entries) != 1 {
		t.Errorf("%+v", *c)
	}
	// Its goroutine is stopped, so that this test has its place.
	close(l.stop)
	l.done.Wait()
	l.stop = make(chan struct{})
	l.save(l.changed(), time.Now())
	l.rest(time.Now())
	if !l.idle.Load() {
		t.Fatal("the log does not rest")
	}
	root = killed(t, l)
	reboot(t, filepath.Join(root, "gw-1"))
	expect(t, read(t, root), "one")
	// It wakes before the next record is answered for.
	l.done.Go(l.run)
	add(l, "two")
	for deadline := time.Now().Add(10 * time.Second); l.idle.Load(); time.Sleep(time.Millisecond) { // a disk under load
		if time.Now().After(deadline) {
			t.Fatal("the log still rests")
		}
	}
	root = killed(t, l)
	reboot(t, filepath.Join(root, "gw-1"))
	if c := read(t, root); !c.PowerCut || len(c.Entries) != 2 {
		t.Errorf("%+v", *c)
	}
}

// Marks move while there is something to sync.
func TestMarks(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	first := l.last()
	for deadline := time.Now().Add(10 * time.Second); l.last().time == first.time; {
		if time.Now().After(deadline) {
			t.Fatal("no mark in ten seconds")
		}
		add(l, "one")
	}
}

// Without room, or with its files taken away, the log goes on in memory, says so,
// notes how much, and works again when it can.
func TestNoRoom(t *testing.T) {
	l := open(t, t.TempDir(), Options{SegmentBytes: 8 << 10, MaxBytes: 24 << 10})
	var refs []Ref
	for i := 0; l.Err() == nil; i++ {
		refs = append(refs, add(l, strings.Repeat("x", 500)))
		if i > 1000 {
			t.Fatal("it has no end")
		}
	}
	for range 9 {
		refs = append(refs, add(l, strings.Repeat("y", 500)))
	}
	c := read(t, killed(t, l))
	if c.Loose != 10 || c.Since.IsZero() {
		t.Errorf("%d in memory alone since %v, want 10", c.Loose, c.Since)
	}
	if !strings.Contains(l.Err().Error(), "memory alone") {
		t.Error(l.Err())
	}
	for _, r := range refs {
		l.Done(r, 1)
	}
	well(t, l)
	if c := read(t, killed(t, l)); c.Loose != 0 {
		t.Errorf("%d loose", c.Loose)
	}
}

// well waits until the log works again: nothing signals that.
func well(t *testing.T, l *Log) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); l.Err() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(l.Err())
		}
	}
	ref := add(l, "works")
	if ref.s == l.nowhere {
		t.Error("it does not work")
	}
	l.Done(ref, 1)
}

func TestFilesTakenAway(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	one := tally(l, "one")
	l.mu.Lock()
	path := l.current.path
	l.mu.Unlock()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	one.Set(1, 1, 1, 1)
	ref := add(l, "two")
	l.Done(ref, 1)
	if l.Err() == nil {
		t.Error("a log whose file was cut short is well")
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if ref := add(l, "three"); ref.s != l.nowhere {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(l.Err())
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{64, 260} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := open(b, b.TempDir(), Options{})
			text := make([]byte, n)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					buf := l.Buffer()
					buf.Plain = append(buf.Plain, text...)
					l.Done(l.Append(buf), 1)
				}
			})
		})
	}
}

func BenchmarkTally(b *testing.B) {
	l := open(b, b.TempDir(), Options{})
	t := tally(l, "one")
	for i := int64(0); b.Loop(); i++ {
		t.Set(i, i, i, i)
	}
}
