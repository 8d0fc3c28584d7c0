package witness_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/witness"
	"github.com/keyledger/keyledger/events"
)

const logName = "keyledger-0011223344556677"

// madeLog is a log in memory that shows any of its sizes, or lies.
type madeLog struct {
	signer note.Signer
	key    note.Verifier
	text   string
	hashes []tlog.Hash
	size   int64 // that is shown
	lost   bool  // its tiles cannot be had
	whole  bool  // its partial tiles are gone where there is a whole one
	bad    bool  // a bit of each tile is wrong

	named map[string][]byte // what its keys say of the next ones, by path
}

func newLog(t testing.TB) *madeLog {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, logName)
	if err != nil {
		t.Fatal(err)
	}
	l := &madeLog{text: public}
	l.signer, _ = note.NewSigner(secret)
	l.key, _ = note.NewVerifier(public)
	return l
}

// rotate gives it another key, named by a signer.
func (l *madeLog) rotate(t testing.TB, by note.Signer) {
	t.Helper()
	next := newLog(t)
	statement, err := audit.SignSuccessor(next.text, by)
	if err != nil {
		t.Fatal(err)
	}
	if l.named == nil {
		l.named = map[string][]byte{}
	}
	l.named[audit.SuccessorPath(l.key)] = statement
	l.signer, l.key, l.text = next.signer, next.key, next.text
}

// fork is a log with the same key that differs from a leaf on.
func (l *madeLog) fork(at int64) *madeLog {
	f := &madeLog{signer: l.signer, key: l.key, text: l.text}
	f.hashes = append(f.hashes, l.hashes[:tlog.StoredHashCount(at)]...)
	f.size = at
	return f
}

func (l *madeLog) read(indexes []int64) ([]tlog.Hash, error) {
	var list []tlog.Hash
	for _, i := range indexes {
		list = append(list, l.hashes[i])
	}
	return list, nil
}

func (l *madeLog) grow(to int64, what string) {
	for ; l.size < to; l.size++ {
		more, err := tlog.StoredHashes(l.size, fmt.Appendf(nil, "%s %d", what, l.size), tlog.HashReaderFunc(l.read))
		if err != nil {
			panic(err)
		}
		l.hashes = append(l.hashes, more...)
	}
}

func (l *madeLog) tree(size int64) audit.Tree {
	root, err := tlog.TreeHash(size, tlog.HashReaderFunc(l.read))
	if err != nil {
		panic(err)
	}
	return audit.Tree{Size: size, Root: root}
}

func (l *madeLog) checkpoint() []byte {
	b, err := audit.Sign(audit.Checkpoint{Origin: audit.Origin(logName, events.Ledger), Tree: l.tree(l.size)}, l.signer)
	if err != nil {
		panic(err)
	}
	return b
}

func (l *madeLog) fetch(_ context.Context, path string) ([]byte, error) {
	path = strings.TrimSuffix(path, witness.Next)
	if path == "ledger/checkpoint" {
		return l.checkpoint(), nil
	}
	if strings.HasPrefix(path, "successor/") {
		if l.named[path] == nil {
			return nil, fs.ErrNotExist
		}
		return l.named[path], nil
	}
	t, err := tlog.ParseTilePath("tile/8/" + strings.TrimPrefix(path, "ledger/tile/"))
	if err != nil {
		return nil, err
	}
	if l.lost || t.N*256+int64(t.W) > (l.size>>(8*t.L)) || l.whole && t.W < 256 && (t.N+1)*256 <= l.size>>(8*t.L) {
		return nil, fs.ErrNotExist
	}
	b, err := tlog.ReadTileData(t, tlog.HashReaderFunc(l.read))
	if l.bad {
		b[0] ^= 1
	}
	return b, err
}

func open(t testing.TB, dir string, l *madeLog) *witness.Witness {
	t.Helper()
	if _, _, err := witness.Key(dir, "witness.example.com"); err != nil {
		t.Fatal(err)
	}
	w, err := witness.Open(dir, []note.Verifier{l.key})
	if err != nil {
		t.Fatal(err)
	}
	w.Patience = 0
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// A new key of the log is followed when the one before it names it, over several
// rotations and a start with the first key alone; what was cosigned before binds on.
func TestRotationIsFollowed(t *testing.T) {
	l, dir := newLog(t), t.TempDir()
	first := l.key
	l.grow(3, "leaf")
	w := open(t, dir, l)
	look := func() (witness.Seen, error) { return w.Look(t.Context(), events.Ledger, l.fetch) }
	if _, err := look(); err != nil {
		t.Fatal(err)
	}
	reopen := func() {
		t.Helper()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if w, err = witness.Open(dir, []note.Verifier{first}); err != nil {
			t.Fatal(err)
		}
		w.Patience = 0
	}
	defer func() { _ = w.Close() }()
	for i := range 3 {
		l.rotate(t, l.signer)
		if i == 1 {
			l.rotate(t, l.signer) // twice while the witness was away
		}
		l.grow(int64(10*(i+1)), "leaf")
		seen, err := look()
		if err != nil || !seen.New || seen.First {
			t.Fatalf("%+v, %v", seen, err)
		}
		if _, err := note.Open(seen.Note, note.VerifierList(l.key)); err != nil {
			t.Errorf("the new key has not signed what was cosigned: %v", err)
		}
		if i == 1 {
			reopen()
			if n := len(w.Keys()); n != 4 {
				t.Errorf("after a start it knows %d keys", n)
			}
		}
	}
	// The statement is not asked for again: the log may be away with it.
	l.named = nil
	reopen()
	l.grow(40, "leaf")
	if seen, err := look(); err != nil || !seen.New {
		t.Errorf("%+v, %v", seen, err)
	}

	// Whoever cannot sign with the old key leads no witness to another one.
	stranger := newLog(t)
	for name, statement := range map[string]func() []byte{
		"nothing":              func() []byte { return nil },
		"signed by a stranger": func() []byte { b, _ := audit.SignSuccessor(stranger.text, stranger.signer); return b },
		"no statement":         func() []byte { return l.checkpoint() },
	} {
		f := l.fork(40)
		f.grow(50, "another")
		f.named = map[string][]byte{}
		if b := statement(); b != nil {
			f.named[audit.SuccessorPath(l.key)] = b
		}
		f.signer, f.key = stranger.signer, stranger.key
		if _, err := w.Look(t.Context(), events.Ledger, f.fetch); !errors.Is(err, witness.ErrNotSigned) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A rotation does not make it forget: another history under a new key is an alarm.
	f := l.fork(20)
	f.grow(60, "another")
	f.rotate(t, l.signer)
	if _, err := w.Look(t.Context(), events.Ledger, f.fetch); err == nil {
		t.Error("another history under a new key was cosigned")
	} else if _, ok := errors.AsType[*witness.Alarm](err); !ok {
		t.Errorf("%v", err)
	}
	reopen()
}

// What it cosigns other people's library accepts, as the log's and as its own.
func TestCosign(t *testing.T) {
	l, dir := newLog(t), t.TempDir()
	w := open(t, dir, l)
	key, made, err := witness.Key(dir, "another")
	if err != nil || made {
		t.Fatalf("the key is made once: %v, %v", made, err)
	}
	theirs, err := fnote.NewVerifierForCosignatureV1(key)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int64{0, 1, 5, 255, 256, 257, 700, 70000} {
		l.grow(size, "leaf")
		l.whole = i%2 == 1
		seen, err := w.Look(t.Context(), events.Ledger, l.fetch)
		if err != nil {
			t.Fatal(err)
		}
		if !seen.New || seen.Known || seen.First != (i == 0) || seen.Tree != l.tree(size) {
			t.Errorf("at %d: %+v", size, seen)
		}
		c, _, n, err := formats.ParseCheckpoint(seen.Note, audit.Origin(logName, events.Ledger), l.key, theirs)
		if err != nil || c.Size != uint64(size) || len(n.Sigs) != 2 {
			t.Fatalf("at %d: %+v, %v", size, c, err)
		}
		if at, err := fnote.CoSigV1Timestamp(n.Sigs[1]); err != nil || time.Since(at) > time.Hour {
			t.Errorf("the time of the cosignature is %s, %v", at, err)
		}
		if kept, err := os.ReadFile(filepath.Join(dir, logName, "ledger", "cosigned", fmt.Sprintf("%d.txt", size))); err != nil || string(kept) != string(seen.Note) {
			t.Errorf("what was cosigned is kept: %v", err)
		}
		// The same size again is the same note, and not a second signature.
		again, err := w.Look(t.Context(), events.Ledger, l.fetch)
		if err != nil || again.New || string(again.Note) != string(seen.Note) {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
}

// Whatever does not contain what was there before is an alarm, with both
// checkpoints as evidence, and is not cosigned.
func TestAlarm(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(l *madeLog) *madeLog
		says string
	}{
		"a fork that went on":      {func(l *madeLog) *madeLog { f := l.fork(200); f.grow(400, "other"); return f }, "first 300 events are others"},
		"another of that size":     {func(l *madeLog) *madeLog { f := l.fork(200); f.grow(300, "other"); return f }, "two different trees of 300"},
		"another of an older size": {func(l *madeLog) *madeLog { f := l.fork(50); f.grow(100, "other"); return f }, "two different trees of 100"},
		"a shorter one":            {func(l *madeLog) *madeLog { return l.fork(250) }, "has 250 events now, and had 300"},
		"tiles of another tree":    {func(l *madeLog) *madeLog { l.grow(400, "leaf"); l.bad = true; return l }, "tiles are not those"},
	} {
		t.Run(name, func(t *testing.T) {
			l, dir := newLog(t), t.TempDir()
			w := open(t, dir, l)
			var before []byte
			for _, size := range []int64{100, 300} {
				l.grow(size, "leaf")
				seen, err := w.Look(t.Context(), events.Ledger, l.fetch)
				if err != nil {
					t.Fatal(err)
				}
				before = seen.Note
			}
			lie := c.lie(l)
			_, err := w.Look(t.Context(), events.Ledger, lie.fetch)
			alarm, ok := errors.AsType[*witness.Alarm](err)
			if !ok || !strings.Contains(alarm.Error(), c.says) || len(alarm.Files) != 3 {
				t.Fatalf("%v", err)
			}
			for _, f := range alarm.Files[:2] {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := audit.Open(b, audit.Origin(logName, events.Ledger), l.key); err != nil {
					t.Errorf("%s is no evidence: %v", f, err)
				}
			}
			if state, err := os.ReadFile(filepath.Join(dir, logName, "ledger", "last")); err != nil || string(state) != string(before) {
				t.Errorf("the state moved: %v", err)
			}
		})
	}
}

// What says nothing about the tree is no alarm: it is asked again later.
func TestNotAnswered(t *testing.T) {
	l := newLog(t)
	w := open(t, t.TempDir(), l)
	l.grow(10, "leaf")
	if _, err := w.Look(t.Context(), events.Ledger, l.fetch); err != nil {
		t.Fatal(err)
	}
	l.grow(20, "leaf")
	l.lost = true
	_, err := w.Look(t.Context(), events.Ledger, l.fetch)
	if _, ok := errors.AsType[*witness.Alarm](err); ok || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	other := newLog(t)
	other.grow(30, "leaf")
	if _, err := w.Look(t.Context(), events.Ledger, other.fetch); !errors.Is(err, witness.ErrNotSigned) {
		t.Errorf("%v", err)
	}
	l.lost = false
	if seen, err := w.Look(t.Context(), events.Ledger, l.fetch); err != nil || !seen.New {
		t.Errorf("%v", err)
	}
}

// One process at a time has a directory.
func TestOneAtATime(t *testing.T) {
	l, dir := newLog(t), t.TempDir()
	w := open(t, dir, l)
	if _, err := witness.Open(dir, []note.Verifier{l.key}); err == nil || !strings.Contains(err.Error(), "another witness") {
		t.Errorf("%v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, l)
}

// Whatever the log shows in whatever order, and whatever is done to the state
// between: for one size there is never a second root, and each cosigned tree
// contains those before.
func TestState(t *testing.T) {
	honest := newLog(t)
	honest.grow(600, "leaf")
	roots := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(roots, fmt.Sprint(n))
		if _, _, err := witness.Key(dir, "w"); err != nil {
			t.Fatal(err)
		}
		signed := map[int64]tlog.Hash{}
		logs := []*madeLog{honest.fork(0)}
		logs[0].grow(int64(rapid.IntRange(0, 300).Draw(t, "size")), "leaf")
		state := filepath.Join(dir, logName, "ledger", "last")
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			w, err := witness.Open(dir, []note.Verifier{honest.key})
			if err != nil {
				t.Fatal(err)
			}
			w.Patience = 0
			l := rapid.SampledFrom(logs).Draw(t, "log")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				l.grow(l.size+int64(rapid.IntRange(1, 300).Draw(t, "more")), fmt.Sprint("leaf", len(logs)))
			case 1:
				logs = append(logs, l.fork(int64(rapid.IntRange(0, int(l.size)).Draw(t, "fork"))))
			case 2: // a changed state is refused, or says the same
				b, err := os.ReadFile(state)
				if err != nil {
					break
				}
				_ = w.Close()
				bad := append([]byte(nil), b...)
				bad[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
				if err := os.WriteFile(state, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if w, err = witness.Open(dir, []note.Verifier{honest.key}); err != nil {
					if err := os.WriteFile(state, b, 0o600); err != nil {
						t.Fatal(err)
					}
					continue
				}
				w.Patience = 0
			case 3: // a lost one is refused
				b, err := os.ReadFile(state)
				if err != nil {
					break
				}
				_ = w.Close()
				_ = os.Remove(state)
				if _, err := witness.Open(dir, []note.Verifier{honest.key}); err == nil {
					t.Fatal("a lost state was not noticed")
				}
				if err := os.WriteFile(state, b, 0o600); err != nil {
					t.Fatal(err)
				}
				continue
			}
			seen, err := w.Look(context.Background(), events.Ledger, l.fetch)
			_ = w.Close()
			if err != nil {
				continue
			}
			if root, ok := signed[seen.Size]; ok && root != seen.Root {
				t.Fatalf("two roots for %d", seen.Size)
			}
			for size, root := range signed {
				if size > 0 && size <= l.size && seen.New && l.tree(size).Root != root {
					t.Fatalf("what was cosigned at %d does not contain what was at %d", seen.Size, size)
				}
			}
			signed[seen.Size] = seen.Root
		}
	})
}

const killed = "KEYLEDGER_TEST_WITNESS_KILLED"

// A witness that is killed at any moment has on disk whatever it gave away, and
// goes on from there.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killed); dir != "" { // the process that is killed
		l := newLog(t)
		if b, err := os.ReadFile(filepath.Join(dir, "log.key")); err == nil {
			l.signer, _ = note.NewSigner(string(b))
		}
		text, err := os.ReadFile(filepath.Join(dir, "log.pub"))
		if err != nil {
			t.Fatal(err)
		}
		l.key, _ = note.NewVerifier(string(text))
		w, err := witness.Open(dir, []note.Verifier{l.key})
		if err != nil {
			t.Fatal(err)
		}
		w.Patience = 0
		if b, err := os.ReadFile(filepath.Join(dir, logName, "ledger", "last")); err == nil {
			c, _, err := audit.Open(b, audit.Origin(logName, events.Ledger), l.key)
			if err != nil {
				t.Fatal(err)
			}
			l.grow(c.Size, "leaf")
		}
		for {
			l.grow(l.size+1, "leaf")
			if seen, err := w.Look(context.Background(), events.Ledger, l.fetch); err == nil {
				fmt.Printf("gave %d %s\n", seen.Size, seen.Root)
			}
		}
	}
	dir := t.TempDir()
	secret, public, err := note.GenerateKey(rand.Reader, logName)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"log.key": secret, "log.pub": public} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := witness.Key(dir, "w"); err != nil {
		t.Fatal(err)
	}
	key, _ := note.NewVerifier(public)
	for round := range 10 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killed+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said []byte
		buffer := make([]byte, 4096)
		for strings.Count(string(said), "\n") < 3+round*7 {
			n, err := out.Read(buffer)
			if said = append(said, buffer[:n]...); err != nil {
				t.Fatalf("it ended by itself: %s", said)
			}
		}
		_ = cmd.Process.Kill()
		for {
			n, err := out.Read(buffer)
			if said = append(said, buffer[:n]...); err != nil {
				break
			}
		}
		_ = cmd.Wait()
		lines := strings.Split(strings.TrimSpace(string(said[:strings.LastIndexByte(string(said), '\n')])), "\n")
		var gave int64
		if _, err := fmt.Sscanf(lines[len(lines)-1], "gave %d", &gave); err != nil {
			t.Fatalf("%q: %v", lines[len(lines)-1], err)
		}
		b, err := os.ReadFile(filepath.Join(dir, logName, "ledger", "last"))
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := audit.Open(b, audit.Origin(logName, events.Ledger), key)
		if err != nil || c.Size < gave {
			t.Fatalf("it gave %d away and remembers %d, %v", gave, c.Size, err)
		}
		w, err := witness.Open(dir, []note.Verifier{key})
		if err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
	}
}
