// Package witness is what somebody else runs beside an audit log: it looks at the
// log's checkpoints, checks that each contains the one it saw before, and signs them
// too (C2SP tlog-cosignature v1). Whoever then sees a cosigned checkpoint knows that
// the log cannot show others a different one without the witness's help.
//
//	key, made, err := witness.Key(dir, name)            // its verifier key, made where there is none
//	w, err := witness.Open(dir, log keys)               // takes the directory for itself
//	seen, err := w.Look(ctx, events.Ledger, fetch)      // Seen, or *Alarm
//	w.Keys()                                            // of the log, with those that it followed
//
// It promises that it never cosigns two roots for one size, nor a tree that does not
// contain the last one it cosigned, whatever was killed: a cosignature is on disk,
// as the one state file of its stream, before [Witness.Look] returns it, and one
// process at a time has the directory. What the log shows that does not fit is an
// [Alarm], with both checkpoints kept as files: two notes signed by one key that
// cannot both be true need no further witness. Tiles are checked against the signed
// root before they are believed, so it does not matter who sends them.
//
// A log that has a new key is followed by itself, when the key before it says so in a
// signed note: whoever trusts that one trusts the other. The note is on disk before the
// new key is believed. What was cosigned binds under every key.
//
// How it can disappoint. The first checkpoint is taken as it is. It sees sizes and
// hashes, no events: that an event was recorded at all it cannot know. Whoever can
// write its directory can make it forget, as far as they remove the state file and
// every cosigned checkpoint; half of that it refuses.
package witness

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
)

// Fetch reads a path of a published log, such as ledger/checkpoint or
// ledger/tile/0/000.p/5. It fails with fs.ErrNotExist where there is none.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// Next is what stands behind the path of a checkpoint where a witness asks for the
// one that others are cosigning too, so that several meet at one size.
const Next = "?which=next"

// Directory reads a log that is published in a directory. Next means nothing to it.
func Directory(dir string) Fetch {
	return func(_ context.Context, path string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, filepath.FromSlash(strings.TrimSuffix(path, Next))))
	}
}

// Witness cosigns the checkpoints of one log. Its methods are for one goroutine.
type Witness struct {
	// Patience is how long [Witness.Look] asks again where a smaller tree is shown: one
	// of several processes may be behind the others for a moment.
	Patience time.Duration

	dir    string // of this log
	lock   *flock.Flock
	signer note.Signer
	key    note.Verifier // its own
	log    string
	keys   []note.Verifier // of the log
	last   map[string]*state
}

// state is the last checkpoint of a stream that was cosigned.
type state struct {
	audit.Checkpoint
	note []byte // by the log and the witness
}

// Seen is a checkpoint that the witness stands by.
type Seen struct {
	audit.Checkpoint
	Note  []byte // signed by log and witness, and by others as far as the log showed that
	New   bool   // it was cosigned now
	Known bool   // the log shows the cosignature already
	First bool   // nothing was there to compare it with
}

// Alarm says that the log showed what cannot be true together with what it had shown.
type Alarm struct {
	Stream  string
	Problem string
	Kept    audit.Checkpoint // cosigned earlier
	Shown   audit.Checkpoint // now
	Files   []string         // evidence: both as signed notes, and what they are
}

func (a *Alarm) Error() string {
	return fmt.Sprintf("ALARM: the log shows a tree over %s that does not fit the one it showed before: %s. Nothing was cosigned. Both checkpoints are kept: %s",
		a.Stream, a.Problem, strings.Join(a.Files, ", "))
}

// ErrNotSigned says that what is shown as a checkpoint was not signed by a key of the log.
var ErrNotSigned = errors.New("it is not a checkpoint that a given key of the log has signed")

const (
	keyFile   = "witness.key"
	stateFile = "last"
	kept      = "cosigned"
	followed  = "successor" // what keys of the log say of the next ones
	evidence  = "evidence"
)

// Key is the verifier key of the witness whose directory this is. Where it has none
// one is made, under a name; an empty name makes none and fails with fs.ErrNotExist.
func Key(dir, name string) (verifier string, made bool, err error) {
	file := filepath.Join(dir, keyFile)
	secret, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && name != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", false, err
		}
		text, _, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return "", false, fmt.Errorf("%q cannot be the name of a witness: a name has no blanks and no plus sign", name)
		}
		// Linked, not renamed: of two that make a key at once one wins.
		if err := create(dir, keyFile, []byte(text+"\n")); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", false, err
		}
		made = err == nil
		if secret, err = os.ReadFile(file); err != nil {
			return "", false, err
		}
	} else if err != nil {
		return "", false, err
	}
	verifier, _, err = open(secret)
	return verifier, made, err
}

// open reads the witness's own key, an Ed25519 signer key.
func open(secret []byte) (verifier string, s note.Signer, err error) {
	text := strings.TrimSpace(string(secret))
	signer, err := fnote.NewSignerForCosignatureV1(text)
	if err != nil {
		return "", nil, errors.New(keyFile + " holds no signer key") // the error may show it
	}
	plain, err := plainVerifier(text)
	if err == nil {
		verifier, err = fnote.VKeyToCosignatureV1(plain)
	}
	if err != nil {
		return "", nil, errors.New(keyFile + " holds no Ed25519 signer key")
	}
	return verifier, signer, nil
}

// Open takes a directory for a log whose keys are given. It fails where another
// process has it, where it has no key ([Key] makes one), and where what it remembers
// is not as it was written.
func Open(dir string, keys []note.Verifier) (*Witness, error) {
	if len(keys) == 0 {
		return nil, errors.New("a witness needs a verifier key of the log")
	}
	secret, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("the witness's key: %w", err)
	}
	verifier, signer, err := open(secret)
	if err != nil {
		return nil, err
	}
	w := &Witness{Patience: 10 * time.Second, signer: signer, log: keys[0].Name(), keys: keys, last: map[string]*state{}}
	if w.key, err = audit.WitnessVerifier(verifier); err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.Name() != w.log {
			return nil, fmt.Errorf("the keys are of two logs, %q and %q", w.log, k.Name())
		}
	}
	w.dir = filepath.Join(dir, url.PathEscape(w.log))
	w.lock = flock.New(filepath.Join(dir, ".lock"))
	if ok, err := w.lock.TryLock(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	} else if !ok {
		return nil, fmt.Errorf("another witness works in %s: one at a time has a directory", dir)
	}
	err = w.loadKeys()
	for _, stream := range audit.Streams {
		if err == nil {
			err = w.load(stream)
		}
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

// Keys are the verifier keys of the log that are believed: those that were given, and
// those that they led to.
func (w *Witness) Keys() []note.Verifier { return slices.Clone(w.keys) }

// loadKeys follows what was followed before.
func (w *Witness) loadKeys() error {
	_, err := w.follow(func(key note.Verifier) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(w.dir, filepath.FromSlash(audit.SuccessorPath(key))))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return b, err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(w.dir, followed), err)
	}
	return nil
}

// maxRotations is how many keys a witness follows at most.
const maxRotations = 1000

// follow believes the keys that those it believes name, as far as ask has notes of
// them, and returns how many are new.
func (w *Witness) follow(ask func(note.Verifier) ([]byte, error)) (more int, err error) {
	for i := 0; i < len(w.keys) && len(w.keys) < maxRotations; i++ {
		statement, err := ask(w.keys[i])
		if err != nil || statement == nil {
			if err != nil {
				return more, err
			}
			continue
		}
		_, next, err := audit.OpenSuccessor(statement, w.keys[i])
		if err != nil {
			return more, err
		}
		if !slices.ContainsFunc(w.keys, func(k note.Verifier) bool { return k.KeyHash() == next.KeyHash() }) {
			w.keys, more = append(w.keys, next), more+1
		}
	}
	return more, nil
}

// followLog asks the log for keys that it has now, and remembers what shows that they
// are its.
func (w *Witness) followLog(ctx context.Context, fetch Fetch) (bool, error) {
	more, err := w.follow(func(key note.Verifier) ([]byte, error) {
		path := audit.SuccessorPath(key)
		b, err := fetch(ctx, path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err == nil {
			_, _, err = audit.OpenSuccessor(b, key)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := os.MkdirAll(filepath.Join(w.dir, followed), 0o700); err != nil {
			return nil, err
		}
		dir, name := filepath.Split(filepath.Join(w.dir, filepath.FromSlash(path)))
		return b, replace(dir, name, b)
	})
	return more > 0, err
}

// Close gives the directory back.
func (w *Witness) Close() error { return w.lock.Close() }

// Name is that of the witness's key.
func (w *Witness) Name() string { return w.key.Name() }

// Log is the name of the log.
func (w *Witness) Log() string { return w.log }

func (w *Witness) place(stream string, more ...string) string {
	return filepath.Join(append([]string{w.dir, strings.ToLower(stream)}, more...)...)
}

// load reads what was cosigned last. A state that lacks something that was cosigned
// is refused: signing on from it could sign a second root.
func (w *Witness) load(stream string) error {
	file := w.place(stream, stateFile)
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		c, err := w.readState(b, audit.Origin(w.log, stream))
		if err != nil {
			return fmt.Errorf("%s is not as it was written (%w): restore it, or look at the newest in %s; what was cosigned must not be forgotten", file, err, w.place(stream, kept))
		}
		w.last[stream] = &state{c, b}
	}
	names, err := os.ReadDir(w.place(stream, kept))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	most := int64(-1)
	for _, n := range names {
		if size, err := strconv.ParseInt(strings.TrimSuffix(n.Name(), ".txt"), 10, 64); err == nil {
			most = max(most, size)
		}
	}
	if last := w.last[stream]; most >= 0 && (last == nil || last.Size < most) {
		return fmt.Errorf("%s was set back or lost: %s holds a checkpoint of %d events that was cosigned after it. Restore it: copy that one over it",
			file, w.place(stream, kept), most)
	}
	return nil
}

// readState reads a cosigned checkpoint. The witness's own signature says that it is
// as it was written; the log's is checked where its key is among those given.
func (w *Witness) readState(b []byte, origin string) (audit.Checkpoint, error) {
	c, n, err := audit.Open(b, origin, append([]note.Verifier{w.key}, w.keys...)...)
	if err != nil {
		return c, err
	}
	if c.Of != nil || !slices.ContainsFunc(n.Sigs, func(s note.Signature) bool { return s.Hash == w.key.KeyHash() && s.Name == w.key.Name() }) {
		return c, errors.New("it is not a checkpoint that this witness has signed")
	}
	return c, nil
}

// Look asks for the newest checkpoint of a stream and cosigns it when it contains
// the last one. It fails with an [*Alarm], with [ErrNotSigned], or with what fetch
// failed with.
func (w *Witness) Look(ctx context.Context, stream string, fetch Fetch) (Seen, error) {
	path := strings.ToLower(stream) + "/checkpoint"
	for until, ask := time.Now().Add(w.Patience), path+Next; ; ask = path {
		shown, err := fetch(ctx, ask)
		if err != nil {
			return Seen{}, fmt.Errorf("the checkpoint of %s: %w", stream, err)
		}
		c, n, err := audit.Open(shown, audit.Origin(w.log, stream), w.keys...)
		if _, unknown := errors.AsType[*note.UnverifiedNoteError](err); unknown {
			more, failed := w.followLog(ctx, fetch)
			if failed != nil {
				err = fmt.Errorf("%w; and what its keys say of the next ones: %w", err, failed)
			} else if more {
				c, n, err = audit.Open(shown, audit.Origin(w.log, stream), w.keys...)
			}
		}
		if err != nil || c.Of != nil {
			return Seen{}, fmt.Errorf("the checkpoint of %s: %w: %w", stream, ErrNotSigned, cmp.Or(err, errors.New("it is one of parts")))
		}
		seen, err := w.judge(ctx, stream, fetch, c, n, shown)
		if alarm, ok := errors.AsType[*Alarm](err); !ok || alarm.Kept.Size <= alarm.Shown.Size {
			return seen, err
		} else if ask == path && time.Now().After(until) {
			alarm.Files, err = w.keep(alarm, shown)
			return seen, errors.Join(alarm, err)
		}
		if ask == path {
			select {
			case <-time.After(max(w.Patience/10, 10*time.Millisecond)):
			case <-ctx.Done():
				return Seen{}, ctx.Err()
			}
		}
	}
}

func (w *Witness) judge(ctx context.Context, stream string, fetch Fetch, c audit.Checkpoint, n *note.Note, shown []byte) (Seen, error) {
	last := w.last[stream]
	alarm := func(before audit.Checkpoint, format string, args ...any) error {
		a := &Alarm{Stream: stream, Problem: fmt.Sprintf(format, args...), Kept: before, Shown: c}
		var err error
		a.Files, err = w.keep(a, shown)
		return errors.Join(a, err)
	}
	switch {
	case last == nil:
	case c.Size < last.Size:
		// One that was cosigned at that size must be the same.
		if b, err := os.ReadFile(w.place(stream, kept, fmt.Sprintf("%d.txt", c.Size))); err == nil {
			if old, err := w.readState(b, c.Origin); err == nil && old.Root != c.Root {
				return Seen{}, alarm(old, "two different trees of %d events, both signed", c.Size)
			}
		}
		return Seen{}, &Alarm{Stream: stream, Kept: last.Checkpoint, Shown: c,
			Problem: fmt.Sprintf("it has %d events now, and had %d: its end was taken away, or the process that answered is far behind", c.Size, last.Size)}
	case c.Size == last.Size && c.Root != last.Root:
		return Seen{}, alarm(last.Checkpoint, "two different trees of %d events, both signed", c.Size)
	case c.Size == last.Size:
		return Seen{Checkpoint: c, Note: last.note, Known: w.signed(shown)}, nil
	case last.Size > 0:
		root, err := tlog.TreeHash(last.Size, tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, &tiles{ctx, fetch, stream}))
		if lost, ok := errors.AsType[*lostTile](err); ok {
			return Seen{}, fmt.Errorf("the tree over %s: %w", stream, lost)
		}
		if err != nil {
			return Seen{}, alarm(last.Checkpoint, "its tiles are not those of the tree of %d events that it signed (%v)", c.Size, err)
		}
		if root != last.Root {
			return Seen{}, alarm(last.Checkpoint, "its first %d events are others than those that were there: the root over them is %s now, and was %s", last.Size, root, last.Root)
		}
	}
	cosigned, err := note.Sign(&note.Note{Text: n.Text, Sigs: n.Sigs}, w.signer)
	if err != nil {
		return Seen{}, err
	}
	if err := w.persist(stream, c, cosigned); err != nil {
		return Seen{}, err
	}
	return Seen{Checkpoint: c, Note: cosigned, New: true, Known: w.signed(shown), First: last == nil}, nil
}

func (w *Witness) signed(shown []byte) bool {
	_, err := note.Open(shown, note.VerifierList(w.key))
	return err == nil
}

// persist remembers a cosigned checkpoint. When it returns nil, and not before, the
// cosignature may leave the machine.
func (w *Witness) persist(stream string, c audit.Checkpoint, cosigned []byte) error {
	dir := w.place(stream)
	if err := os.MkdirAll(w.place(stream, kept), 0o700); err != nil {
		return err
	}
	if err := replace(dir, stateFile, cosigned); err != nil {
		return err
	}
	w.last[stream] = &state{c, cosigned}
	return replace(w.place(stream, kept), fmt.Sprintf("%d.txt", c.Size), cosigned)
}

// keep writes evidence down: the same again gives the same files.
func (w *Witness) keep(a *Alarm, shown []byte) ([]string, error) {
	before := w.last[a.Stream].note
	if a.Kept.Size != w.last[a.Stream].Size {
		var err error
		if before, err = os.ReadFile(w.place(a.Stream, kept, fmt.Sprintf("%d.txt", a.Kept.Size))); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(w.dir, evidence, fmt.Sprintf("%s-%d-%d-%x", strings.ToLower(a.Stream), a.Kept.Size, a.Shown.Size, a.Shown.Root[:4]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	what := fmt.Sprintf(`Evidence against the log %s, stream %s, found %s by the witness %s.

kept.txt   a checkpoint of %d events, signed by the log, that this witness had cosigned
shown.txt  a checkpoint of %d events, signed by the log, that it showed later

They do not fit: %s.
Both carry the log's signature, so nobody else can have made them. Keep this directory,
tell those who rely on the log, and have the log's operator explain it.
`, w.log, a.Stream, time.Now().UTC().Format(time.RFC3339), w.Name(), a.Kept.Size, a.Shown.Size, a.Problem)
	var files []string
	for _, f := range []struct {
		name string
		data []byte
	}{{"kept.txt", before}, {"shown.txt", shown}, {"README.txt", []byte(what)}} {
		if err := replace(dir, f.name, f.data); err != nil {
			return files, err
		}
		files = append(files, filepath.Join(dir, f.name))
	}
	return files, nil
}
