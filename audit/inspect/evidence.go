package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events/ledger"
)

// Evidence is a file that somebody outside has kept of the log: an export,
// checkpoints, with witnesses' signatures or without, or receipts, several of the same
// kind one behind the other as well.
type Evidence struct {
	Name string // for messages
	File io.ReadSeeker
}

// evidence is what was opened: signed by a key of the log each.
type evidence struct {
	Evidence
	trees    []keptTree
	receipts []audit.Leaf
	leaves   func(func(*audit.Leaf) error) error // of an export, in order; nil: it is none
}

type keptTree struct {
	stream string
	audit.Tree
	note []byte // nil: of an export
}

// open takes what others have kept, as far as a key that counts has signed it.
func (r *run) open(given Evidence) error {
	e := evidence{Evidence: given}
	magic := make([]byte, 2)
	if _, err := io.ReadFull(e.File, magic); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if _, err := e.File.Seek(0, io.SeekStart); err != nil {
		return err
	}
	problem := ""
	if len(r.keys) == 0 {
		problem = "there is no key to check it with"
	} else if magic[0] == 0x1f && magic[1] == 0x8b {
		var err error
		if problem, err = e.export(r.keys); err != nil {
			return err
		}
	} else {
		text, err := io.ReadAll(io.LimitReader(e.File, 1<<24))
		if err != nil {
			return err
		}
		for _, n := range audit.SplitNotes(text) {
			if !e.note(n, r.keys) {
				problem = "it is no checkpoint and no receipt that a key of this log has signed: it is of another log, or the key was replaced"
			}
		}
		if problem == "" && len(e.trees)+len(e.receipts) == 0 {
			problem = "it holds nothing"
		}
	}
	if problem != "" {
		r.line(Fail, e.Name, Checkpoint, nil, "it proves nothing about this log: %s", problem)
	}
	r.evidences = append(r.evidences, e)
	return nil
}

func (e *evidence) export(keys []note.Verifier) (problem string, err error) {
	report, err := bundle.Verify(e.File, bundle.Options{Keys: keys})
	if err != nil {
		return "", err
	}
	if !report.Pass {
		return "as an export it fails by itself, " + report.Reason, nil
	}
	for _, s := range report.Streams {
		t, err := (&bundle.Stream{Size: s.Size, Root: s.Root}).Tree()
		if err != nil {
			return "", err
		}
		e.trees = append(e.trees, keptTree{s.Stream, t, nil})
	}
	e.leaves = func(take func(*audit.Leaf) error) error {
		if _, err := e.File.Seek(0, io.SeekStart); err != nil {
			return err
		}
		_, err := bundle.Verify(e.File, bundle.Options{Keys: keys, Leaf: take})
		return err
	}
	return "", nil
}

func (e *evidence) note(text []byte, keys []note.Verifier) bool {
	if leaf, _, err := audit.OpenReceipt(text, keys...); err == nil {
		e.receipts = append(e.receipts, leaf)
		return true
	}
	for _, k := range keys {
		for _, stream := range audit.Streams {
			if c, _, err := audit.Open(text, audit.Origin(k.Name(), stream), keys...); err == nil && c.Of == nil {
				e.trees = append(e.trees, keptTree{stream, c.Tree, bytes.Clone(text)})
				return true
			}
			if c, _, err := audit.Open(text, audit.PartsOrigin(k.Name(), stream), keys...); err == nil && c.Of != nil {
				e.trees = append(e.trees, keptTree{stream, *c.Of, nil})
				return true
			}
		}
	}
	return false
}

var errFound = errors.New("found")

// shown is the first place at which the stream does not have what an export has,
// and what is to be said about it; nil where nobody can tell.
func (w *walk) shown(ctx context.Context, m *memory) (*audit.Place, string, error) {
	for _, e := range w.evidences {
		if e.Name != m.whose || e.leaves == nil {
			continue
		}
		var place *audit.Place
		said := ""
		err := e.leaves(func(l *audit.Leaf) error {
			if l.Stream != w.stream || place != nil || l.Sequence < w.first {
				return nil
			}
			has, err := w.at(ctx, l.Place)
			if err != nil {
				return err
			}
			if has == nil {
				place, said = &l.Place, fmt.Sprintf(" The export has an event about %s at %s, and the stream has none there.", about(l), l.Place)
			} else if *has != *l {
				place, said = &l.Place, fmt.Sprintf(" The export has an event about %s at %s, and the stream another one.", about(l), l.Place)
			}
			if place != nil {
				place = new(*place)
				return errFound
			}
			return nil
		})
		if err != nil && !errors.Is(err, errFound) {
			return nil, "", err
		}
		return place, said, nil
	}
	return nil, "", nil
}

func about(l *audit.Leaf) string {
	return audit.Scope{Keyspace: l.Keyspace, Owner: l.Owner, Key: l.Key}.String()
}

// at is the leaf of the event that the stream holds at a place, or nil.
func (r *run) at(ctx context.Context, p audit.Place) (*audit.Leaf, error) {
	rec, err := r.ledger.Line(ctx, p.Stream, p.Sequence, p.Line)
	if errors.Is(err, ledger.ErrNotFound) || refused(err) != nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return new(audit.LeafOf(&rec)), nil
}

// receipts checks that what was answered is there.
func (r *run) receipts(ctx context.Context) error {
	for _, e := range r.evidences {
		for _, l := range e.receipts {
			has, err := r.at(ctx, l.Place)
			switch {
			case err != nil:
				return err
			case has == nil:
				r.fail(l.Stream, Rewritten, &l.Place, "the log's key signed a receipt (%s) for the event about %s at %s, and the stream has none there: it was recorded and answered, and is gone", e.Name, about(&l), l.Place)
			case *has != l:
				r.fail(l.Stream, Rewritten, &l.Place, "the log's key signed a receipt (%s) for the event about %s at %s, and the stream has another one there", e.Name, about(&l), l.Place)
			default:
				r.line(Pass, l.Stream, "", nil, "the event of the receipt %s stands at %s", e.Name, l.Place)
			}
		}
	}
	return nil
}
