package merkle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

const (
	cosignedKept = 32              // checkpoints of a stream whose cosignatures are kept
	cosignTime   = 2 * time.Minute // how long witnesses are led to one checkpoint
)

// cosigned is a checkpoint that witnesses have signed.
type cosigned struct {
	Note  string      `json:"note"`  // by the log and witnesses
	Since events.Time `json:"since"` // when the first of them came
}

func cosignedPlace(stream string) string { return "cosigned." + strings.ToLower(stream) }

// ErrUnknownWitness says that no witness of the policy has signed what was given.
var ErrUnknownWitness = errors.New("no witness of the policy has signed it")

// ErrNotOurs says that the log did not sign what was given.
var ErrNotOurs = errors.New("this log did not sign it")

// Policy is what the log is asked to be cosigned by, in the format of
// [audit.ParsePolicy]: the one it was given, or where there is none, nobody.
func (l *Log) Policy() []byte {
	if l.o.Policy != nil {
		return l.o.Policy.Text
	}
	var b strings.Builder
	b.WriteString("# Nobody is asked to sign but the log itself.\n")
	for _, k := range l.Keys() {
		b.WriteString("log " + k.Verifier + "\n")
	}
	b.WriteString("quorum none\n")
	return []byte(b.String())
}

// readCosigned reads what witnesses have signed, by size.
func (l *Log) readCosigned(ctx context.Context, stream string) (list []cosigned, revision uint64, err error) {
	value, revision, err := l.get(ctx, cosignedPlace(stream))
	if err != nil || value == nil {
		return nil, revision, err
	}
	if json.Unmarshal(value, &list) != nil {
		return nil, revision, nil // cosignatures are the witnesses' own to give again
	}
	return list, revision, nil
}

// Cosign takes the cosignatures of witnesses of the policy on a checkpoint that this
// log has signed, keeps them, and answers the checkpoint with all that it has now.
// It fails with [ErrNotOurs] and [ErrUnknownWitness].
func (l *Log) Cosign(ctx context.Context, stream string, given []byte) ([]byte, error) {
	keys := l.Verifiers()
	if len(keys) == 0 {
		return nil, ErrDoubt
	}
	c, ours, err := audit.Open(given, audit.Origin(keys[0].Name(), stream), keys...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotOurs, err)
	}
	if c.Of != nil {
		return nil, fmt.Errorf("%w: it is a checkpoint of parts", ErrNotOurs)
	}
	if l.o.Policy == nil {
		return nil, ErrUnknownWitness
	}
	theirs, err := note.Open(given, note.VerifierList(l.o.Policy.Witnesses...))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownWitness, err)
	}
	for {
		list, revision, err := l.readCosigned(ctx, stream)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(list, func(x cosigned) bool { return strings.HasPrefix(x.Note, theirs.Text+"\n") })
		if i < 0 {
			list = append(list, cosigned{Since: events.At(time.Now())})
			i = len(list) - 1
		}
		merged, err := l.merge(theirs.Text, ours.Sigs, theirs.Sigs, list[i].Note)
		if err != nil {
			return nil, err
		}
		list[i].Note = string(merged)
		value, err := json.Marshal(l.thinCosigned(list))
		if err != nil {
			return nil, err
		}
		if _, err = l.kv.Update(ctx, cosignedPlace(stream), value, revision); cluster.Conflict(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("store a cosignature of %s in the bucket %s: %w", stream, Bucket, err)
		}
		l.cosignedHere.Store(true)
		return merged, nil
	}
}

// merge is a checkpoint with the log's signatures and those of witnesses, of which
// the later ones count, with those that an earlier note has.
func (l *Log) merge(text string, ours, theirs []note.Signature, earlier string) ([]byte, error) {
	n := &note.Note{Text: text, Sigs: ours}
	all := slices.Clone(theirs)
	if old, err := note.Open([]byte(earlier), note.VerifierList(l.o.Policy.Witnesses...)); err == nil && old.Text == text {
		all = append(all, old.Sigs...)
	}
	for _, s := range all {
		if !slices.ContainsFunc(n.Sigs, func(x note.Signature) bool { return x.Name == s.Name && x.Hash == s.Hash }) {
			n.Sigs = append(n.Sigs, s)
		}
	}
	return note.Sign(n)
}

// thinCosigned leaves the largest, and the largest that satisfies the policy.
func (l *Log) thinCosigned(list []cosigned) []cosigned {
	size := func(x cosigned) int64 {
		text, _, _ := strings.Cut(x.Note, "\n\n")
		c, err := audit.ParseCheckpoint(text + "\n")
		if err != nil {
			return -1
		}
		return c.Size
	}
	slices.SortStableFunc(list, func(a, b cosigned) int { return cmp.Compare(size(a), size(b)) })
	for len(list) > cosignedKept {
		i := 0
		if !slices.ContainsFunc(list[1:], func(x cosigned) bool { return l.o.Policy.Satisfied([]byte(x.Note)) }) {
			i = 1 // the first may be the only one
		}
		list = slices.Delete(list, i, i+1)
	}
	return list
}

// Which of a stream's checkpoints is asked for.
const (
	Newest   = "newest"   // with the cosignatures it has
	Cosigned = "cosigned" // the newest that has all that the policy asks for
	Next     = "next"     // for a witness: the one that others are cosigning, else the newest
)

// Shown is a checkpoint as it is shown outside: with the cosignatures that it has. It
// fails with [ErrNotSealed] where there is none.
func (l *Log) Shown(ctx context.Context, stream, which string) ([]byte, error) {
	newest, err := l.Checkpoint(stream)
	if err != nil || l.o.Policy == nil {
		if err == nil && which == Cosigned {
			return nil, fmt.Errorf("%s has no cosigned checkpoint, because no witness is named: %w", stream, ErrNotSealed)
		}
		return newest.Note, err
	}
	list, _, err := l.readCosigned(ctx, stream)
	if err != nil && which == Cosigned {
		return nil, err
	}
	switch which {
	case Cosigned:
		for _, x := range slices.Backward(list) {
			if l.o.Policy.Satisfied([]byte(x.Note)) {
				return l.renewed(ctx, stream, newest, []byte(x.Note))
			}
		}
		return nil, fmt.Errorf("%s has no checkpoint yet that the witnesses have cosigned as the policy asks: %w", stream, ErrNotSealed)
	case Next:
		if n := len(list); n > 0 && time.Since(list[n-1].Since.Time()) < cosignTime && !l.o.Policy.Satisfied([]byte(list[n-1].Note)) {
			// One that cannot be renewed now is nothing to lead a witness to.
			if next, err := l.renewed(ctx, stream, newest, []byte(list[n-1].Note)); err == nil {
				return next, nil
			}
		}
	}
	return l.withCosignatures(newest, list), nil
}

// withCosignatures is a checkpoint with those that it has.
func (l *Log) withCosignatures(c Signed, list []cosigned) []byte {
	for _, x := range list {
		if !strings.HasPrefix(x.Note, c.Text()+"\n") {
			continue
		}
		ours, err := note.Open(c.Note, note.VerifierList(l.Verifiers()...))
		if err != nil {
			break
		}
		// The log's signature here may be one by an older key.
		if merged, err := l.merge(ours.Text, ours.Sigs, nil, x.Note); err == nil {
			return merged
		}
	}
	return c.Note
}

// renewed is a checkpoint that has a signature by the key that signs now: one that was
// cosigned before the key was rotated gets it when the tree here contains it.
func (l *Log) renewed(ctx context.Context, stream string, newest Signed, given []byte) ([]byte, error) {
	e, err := l.open(stream, "a witness", given)
	if err != nil {
		return nil, err
	}
	signer := l.signing()
	if signer == nil || e.signedBy(signer) || e.Size > newest.Size {
		return given, nil
	}
	root, err := tlog.TreeHash(e.Size, l.HashReader(ctx, stream, newest.Tree))
	if err != nil {
		return nil, fmt.Errorf("the tree over %s at %d: %w", stream, e.Size, altered(err))
	}
	if root != e.Root {
		return nil, fmt.Errorf("the tree over %s at %d has the root %s, and what witnesses have cosigned %s: %w", stream, e.Size, root, e.Root, ErrAltered)
	}
	ours, err := note.Sign(&note.Note{Text: e.Text()}, signer)
	if err != nil {
		return nil, err
	}
	n, err := note.Open(ours, note.VerifierList(l.Verifiers()...))
	if err != nil {
		return nil, err
	}
	old, err := note.Open(given, note.VerifierList(l.Verifiers()...))
	if err != nil {
		return nil, err
	}
	return l.merge(n.Text, append(n.Sigs, old.Sigs...), nil, string(given))
}

// Witnessed is the newest checkpoint that has all cosignatures that the policy asks for
// and whose tree holds so many events, with the proof that it contains the tree of
// exactly so many. It fails with [ErrNotSealed] where there is none yet, or this process
// has not read so far.
func (l *Log) Witnessed(ctx context.Context, stream string, size int64) (Signed, tlog.TreeProof, error) {
	none := fmt.Errorf("%s has no checkpoint of %d events or more that the witnesses have cosigned as the policy asks: %w", stream, size, ErrNotSealed)
	newest, err := l.Checkpoint(stream)
	if err != nil || l.o.Policy == nil {
		return Signed{}, nil, errors.Join(err, none)
	}
	list, _, err := l.readCosigned(ctx, stream)
	if err != nil {
		return Signed{}, nil, err
	}
	for _, x := range slices.Backward(list) {
		e, err := l.open(stream, "a witness", []byte(x.Note))
		if err != nil || e.Size < size || e.Size > newest.Size || !l.o.Policy.Satisfied([]byte(x.Note)) {
			continue
		}
		if e.Note, err = l.renewed(ctx, stream, newest, e.Note); err != nil {
			return Signed{}, nil, err
		}
		if size == 0 || size == e.Size {
			return e.Signed, nil, nil
		}
		p, err := tlog.ProveTree(e.Size, size, l.HashReader(ctx, stream, e.Tree))
		if err != nil {
			return Signed{}, nil, fmt.Errorf("the tree over %s at %d of %d: %w", stream, size, e.Size, altered(err))
		}
		return e.Signed, p, nil
	}
	return Signed{}, nil, none
}

// Cosigner is what a witness of the policy has cosigned last of a stream.
type Cosigner struct {
	Name   string // of its key
	Hash   uint32 // likewise
	Stream string
	Size   int64     // of the largest tree; -1: none that is kept
	Time   time.Time // of that signature, by the witness's clock
}

// Cosigners tells of every stream and every witness of the policy.
func (l *Log) Cosigners(ctx context.Context) (all []Cosigner, err error) {
	if l.o.Policy == nil {
		return nil, nil
	}
	for _, stream := range audit.Streams {
		list, _, err := l.readCosigned(ctx, stream)
		if err != nil {
			return nil, err
		}
		for _, v := range l.o.Policy.Witnesses {
			c := Cosigner{Name: v.Name(), Hash: v.KeyHash(), Stream: stream, Size: -1}
			for _, x := range list {
				n, err := note.Open([]byte(x.Note), note.VerifierList(v))
				if err != nil {
					continue
				}
				tree, err := audit.ParseCheckpoint(n.Text)
				at, timeErr := fnote.CoSigV1Timestamp(n.Sigs[0])
				if err == nil && timeErr == nil && tree.Size >= c.Size {
					c.Size, c.Time = tree.Size, at
				}
			}
			all = append(all, c)
		}
	}
	return all, nil
}

// Receipt stands by an event that the tree may not hold yet. It fails with [ErrDoubt].
func (l *Log) Receipt(leaf audit.Leaf) ([]byte, error) {
	signer := l.signing()
	if signer == nil {
		return nil, ErrDoubt
	}
	return audit.SignReceipt(leaf, signer)
}
