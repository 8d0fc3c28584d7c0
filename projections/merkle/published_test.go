package merkle_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/witness"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/merkle"
)

// A client of C2SP tlog-tiles that other people wrote reads the published directory
// alone: the checkpoint with the signatures of log and witness, every entry, and a proof
// for each.
func TestPublishedDirectoryIsReadByOthers(t *testing.T) {
	dir := t.TempDir()
	key, _, err := witness.Key(dir, "watch.example")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := audit.ParsePolicy([]byte("witness watch " + key + "\nquorum watch\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t, func(o *merkle.Options) { o.Policy = policy })
	cosigner, err := fnote.NewVerifierForCosignatureV1(key)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.Open(dir, []note.Verifier{s.verifier()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	usage := filepath.Join(s.o.Dir, "usage")
	tiles := testenv.TLogTiles(t)
	entries := func(want int) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), tiles, usage, audit.Origin(s.verifier().Name(), events.Usage), s.log.Key()).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(want) {
			t.Errorf("the client reads %s, not %d entries: %v", out, want, err)
		}
	}
	published := func(size int64) {
		t.Helper()
		until(t, "it is published", func() bool { return s.log.State()[1].Published == size })
	}
	for range 6 {
		s.page(200)
	}
	published(s.sealed(events.Usage, s.last).Size)
	entries(1200)

	// The witness reads the directory; the log takes what it signs, and shows it there.
	seen, err := w.Look(t.Context(), events.Usage, witness.Directory(s.o.Dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.log.Cosign(t.Context(), events.Usage, seen.Note); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"checkpoint", "checkpoint.cosigned"} {
		until(t, name+" has the witness's signature", func() bool {
			b, err := os.ReadFile(filepath.Join(usage, name))
			if err != nil {
				return false
			}
			n, err := note.Open(b, note.VerifierList(s.verifier(), cosigner))
			return err == nil && len(n.Sigs) == 2
		})
	}
	cosigned, err := os.ReadFile(filepath.Join(usage, "checkpoint.cosigned"))
	if err != nil {
		t.Fatal(err)
	}
	// The log goes on: the newest is nobody's yet, and the other stays.
	s.page(56)
	published(s.sealed(events.Usage, s.last).Size)
	entries(1256)
	if again, err := os.ReadFile(filepath.Join(usage, "checkpoint.cosigned")); err != nil || !bytes.Equal(again, cosigned) {
		t.Errorf("%v: %s", err, again)
	}

	// A witness follows a rotation in the directory too, and what it signed before has
	// the new key's signature beside it.
	if _, err := s.log.Rotate(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"checkpoint", "checkpoint.cosigned"} {
		until(t, name+" is signed by the new key", func() bool {
			b, err := os.ReadFile(filepath.Join(usage, name))
			if err != nil {
				return false
			}
			_, err = note.Open(b, note.VerifierList(s.verifier()))
			return err == nil
		})
	}
	if signed, _, err := s.log.Witnessed(t.Context(), events.Usage, 1200); err != nil || !policy.Satisfied(signed.Note) {
		t.Errorf("%+v, %v", signed, err)
	} else if _, err := note.Open(signed.Note, note.VerifierList(s.verifier())); err != nil {
		t.Errorf("what was cosigned is not signed by the new key: %v", err)
	}
	if seen, err := w.Look(t.Context(), events.Usage, witness.Directory(s.o.Dir)); err != nil || seen.Size != 1256 || len(w.Keys()) != 2 {
		t.Errorf("%+v, %v", seen, err)
	}

	// One that was written without entries, or lost them, gets them.
	s.stop()
	if err := errors.Join(os.RemoveAll(filepath.Join(usage, "tile", "entries")), os.Remove(filepath.Join(usage, "entries"))); err != nil {
		t.Fatal(err)
	}
	s.o.NoEntries = true
	s.open()
	s.page(10)
	published(s.sealed(events.Usage, s.last).Size)
	if _, err := os.Stat(filepath.Join(usage, "tile", "entries")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entries were written although nobody wanted them: %v", err)
	}
	s.stop()
	s.o.NoEntries = false
	s.open()
	s.page(10)
	published(s.sealed(events.Usage, s.last).Size)
	entries(1276)
	var found []string
	if err := filepath.WalkDir(s.o.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".new-") {
			found = append(found, path)
		}
		return err
	}); err != nil || len(found) > 0 {
		t.Errorf("left behind: %v, %v", found, err)
	}
}
