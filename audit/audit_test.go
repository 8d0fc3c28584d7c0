package audit_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	formats "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

var id = rapid.StringMatching(`[a-zA-Z0-9_-]{2,12}`)

func leaf(t *rapid.T) audit.Leaf {
	none := func(label string) string {
		return rapid.OneOf(rapid.Just(""), id).Draw(t, label)
	}
	return audit.Leaf{
		Place:   audit.Place{Stream: rapid.SampledFrom(audit.Streams).Draw(t, "stream"), Sequence: rapid.Uint64().Draw(t, "sequence"), Line: rapid.IntRange(0, 1000).Draw(t, "line")},
		Subject: "usage." + id.Draw(t, "subject"), Keyspace: none("keyspace"), Owner: none("owner"), Key: none("key"),
		Time: events.Time(rapid.Int64().Draw(t, "time")), Digest: sha256.Sum256(rapid.SliceOf(rapid.Byte()).Draw(t, "body")),
	}
}

// What is written is read back, and a text with one byte changed is either refused
// or another leaf: never taken for the same.
func TestLeaf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := leaf(t)
		text := l.Append(nil)
		if got, err := audit.ParseLeaf(text); err != nil || got != l {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
		text[rapid.IntRange(0, len(text)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		got, err := audit.ParseLeaf(text)
		if err == nil && (got == l || !bytes.Equal(got.Append(nil), text)) || err != nil && !errors.Is(err, audit.ErrNoLeaf) {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
	})
}

func TestPart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := audit.Part{Scope: audit.Scope{Keyspace: id.Draw(t, "keyspace")}.ID()}
		for range rapid.IntRange(1, 5).Draw(t, "events") {
			l := leaf(t)
			p.Add(l.Hash())
		}
		text := p.Append(nil)
		if got, err := audit.ParsePart(text); err != nil || got != p {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
		text[rapid.IntRange(0, len(text)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		got, err := audit.ParsePart(text)
		if err == nil && (got == p || !bytes.Equal(got.Append(nil), text)) || err != nil && !errors.Is(err, audit.ErrNoPart) {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
	})
}

// An event is in the parts of its key, its owner and its keyspace.
func TestScopes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := leaf(t)
		for _, s := range l.Scopes() {
			if !s.Holds(&l) {
				t.Fatalf("%v does not hold %+v", s, l)
			}
		}
		other := audit.Scope{Keyspace: l.Keyspace, Owner: l.Owner + "x"}
		if other.Holds(&l) {
			t.Fatalf("%v holds %+v", other, l)
		}
	})
}

// Our hashes and checkpoints are those of other people's libraries.
func TestOthers(t *testing.T) {
	secret, public, err := note.GenerateKey(rand.Reader, "audit.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := note.NewSigner(secret)
	key, _ := note.NewVerifier(public)
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, i := range indexes {
			list = append(list, hashes[i])
		}
		return list, nil
	})
	const size = 100
	var leaves []audit.Leaf
	for i := range size {
		l := audit.Leaf{Place: audit.Place{Stream: events.Ledger, Sequence: uint64(i + 1)}, Subject: "ledger.ks._._", Keyspace: "ks"}
		more, err := tlog.StoredHashesForRecordHash(int64(i), l.Hash(), reader)
		if err != nil {
			t.Fatal(err)
		}
		leaves, hashes = append(leaves, l), append(hashes, more...)
	}
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		t.Fatal(err)
	}
	c := audit.Checkpoint{Origin: audit.Origin("audit.example", events.Ledger), Tree: audit.Tree{Size: size, Root: root}}
	signed, err := audit.Sign(c, signer)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := audit.Open(signed, c.Origin, key); err != nil || got.Tree != c.Tree || got.Of != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err := audit.Open(signed, audit.Origin("audit.example", events.Usage), key); err == nil || !strings.Contains(err.Error(), "audit.example/ledger") {
		t.Errorf("another stream's: %v", err)
	}
	theirs, _, _, err := formats.ParseCheckpoint(signed, c.Origin, key)
	if err != nil || theirs.Size != size || !bytes.Equal(theirs.Hash, root[:]) {
		t.Fatalf("%+v, %v", theirs, err)
	}
	for i := range leaves {
		p, err := tlog.ProveRecord(size, int64(i), reader)
		if err != nil {
			t.Fatal(err)
		}
		var path [][]byte
		for _, h := range p {
			path = append(path, h[:])
		}
		hash := rfc6962.DefaultHasher.HashLeaf(leaves[i].Append(nil))
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(i), size, hash, path, theirs.Hash); err != nil {
			t.Fatal(err)
		}
	}
}

// A checkpoint of a tree of parts says of which tree; nothing else is taken for one.
func TestCheckpoint(t *testing.T) {
	tree := audit.Tree{Size: 7, Root: tlog.RecordHash(nil)}
	c := audit.Checkpoint{Origin: audit.PartsOrigin("audit.example", events.Usage), Tree: audit.Tree{Size: 2}, Of: &tree}
	got, err := audit.ParseCheckpoint(c.Text())
	if err != nil || got.Of == nil || *got.Of != tree || got.Text() != c.Text() {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "x\n", strings.TrimSuffix(c.Text(), "\n"), c.Text() + "more\n", strings.Replace(c.Text(), "\n2\n", "\n02\n", 1), strings.Replace(c.Text(), "of 7", "of -7", 1), strings.Replace(c.Text(), "of ", "off ", 1)} {
		if got, err := audit.ParseCheckpoint(bad); !errors.Is(err, audit.ErrNoCheckpoint) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func BenchmarkLeaf(b *testing.B) {
	r := events.Record{Stream: events.Usage, Sequence: 123456, Line: 17, Subject: "usage.parcelbird.node-1", Body: bytes.Repeat([]byte("x"), 640)}
	r.Event.Keyspace, r.Event.Owner, r.Event.Key, r.Event.Time = "parcelbird", "org_1234567890", "key_01a201b4-19f8-7cb5-9bcc-ec83c23c4804", 1795324569029
	b.ReportAllocs()
	for b.Loop() {
		l := audit.LeafOf(&r)
		l.Hash()
	}
}

// A frontier has tlog's root at each size, and goes on from what it says of itself.
func TestFrontier(t *testing.T) {
	var f audit.Frontier
	hashes := memory{}
	for n := range int64(70) {
		want, err := tlog.TreeHash(n, hashes)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && f.Root() != want || f.Size() != n {
			t.Fatalf("with %d leaves its root is %s instead of %s", n, f.Root(), want)
		}
		again, err := audit.ParseFrontier(uint64(n), f.Root().String(), f.Texts())
		if err != nil {
			t.Fatal(err)
		}
		f = again
		leaf := tlog.RecordHash([]byte{byte(n)})
		more, err := tlog.StoredHashesForRecordHash(n, leaf, hashes)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		f.Add(leaf)
	}
	if _, err := audit.ParseFrontier(6, f.Root().String(), f.Texts()); err == nil {
		t.Error("a frontier of another size was taken")
	}
}

type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) (list []tlog.Hash, err error) {
	for _, i := range indexes {
		list = append(list, m[i])
	}
	return list, nil
}
