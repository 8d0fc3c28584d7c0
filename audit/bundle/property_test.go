package bundle_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

// Whatever bit of the archive or of a member is changed, whatever line or member is
// left out, doubled or moved, wherever the archive ends: no such bundle passes. The
// second verifier judges a sample of the same ones.
func TestAnyChangeIsRefused(outer *testing.T) {
	t := outer
	l := newLog(t, "keyledger-test")
	l.fill(t, 10)
	var exports [][]byte
	for _, k := range kinds {
		c := *l
		c.records = map[string][]events.Record{}
		for stream, r := range l.records {
			c.records[stream] = slices.Clone(r)
		}
		c.grown, c.short = k.grown, k.short
		exports = append(exports, c.export(t, k.scope, k.from, k.to))
	}
	sample := map[string][]byte{}
	var unpackedOf = map[*byte]files{}
	unpacked := func(b []byte) files {
		if unpackedOf[&b[0]] == nil {
			unpackedOf[&b[0]] = unpack(outer, b)
		}
		return unpackedOf[&b[0]]
	}
	rapid.Check(t, func(t *rapid.T) {
		good := exports[rapid.IntRange(0, len(exports)-1).Draw(t, "bundle")]
		bad := bytes.Clone(good)
		members := slices.Clone(unpacked(good))
		name := func(i int) string { return members[i].Name }
		i := rapid.IntRange(0, len(members)-1).Draw(t, "member")
		m := &members[i]
		m.Data = bytes.Clone(m.Data)
		flip := func(b []byte) string {
			bit := rapid.IntRange(0, 8*len(b)-1).Draw(t, "bit")
			b[bit/8] ^= 1 << (bit % 8)
			return fmt.Sprint("bit ", bit)
		}
		what := rapid.SampledFrom([]string{"archive", "truncate", "bit", "line missing", "line doubled", "lines moved", "lines cut", "member missing", "member doubled", "members moved", "renamed"}).Draw(t, "change")
		sums := rapid.Bool().Draw(t, "sums written anew")
		lines := bytes.SplitAfter(m.Data, []byte("\n"))
		lines = lines[:len(lines)-1]
		// README.txt, keys.txt and policy.txt are nobody's proof: sums are all that holds them.
		said := name(i) == "README.txt" || name(i) == "keys.txt" || name(i) == "policy.txt"
		if said || name(i) == "SHA256SUMS" {
			sums = false
		}
		if len(lines) == 0 && (what == "bit" || what[:4] == "line") {
			what = "member missing"
		}
		n := 0
		if len(lines) > 0 {
			n = rapid.IntRange(0, len(lines)-1).Draw(t, "line")
		}
		switch what {
		case "archive":
			flip(bad)
		case "truncate":
			bad = bad[:rapid.IntRange(0, len(bad)-1).Draw(t, "length")]
		case "bit":
			flip(m.Data)
		case "line missing":
			m.Data = bytes.Join(slices.Delete(lines, n, n+1), nil)
		case "line doubled":
			m.Data = bytes.Join(slices.Insert(lines, n, lines[n]), nil)
		case "lines moved":
			other := rapid.IntRange(0, len(lines)-1).Draw(t, "other line")
			lines[n], lines[other] = lines[other], lines[n]
			m.Data = bytes.Join(lines, nil)
		case "lines cut":
			m.Data = bytes.Join(lines[:n], nil)
		case "member missing":
			members = slices.Delete(members, i, i+1)
		case "member doubled":
			members = slices.Insert(members, i, *m)
		case "members moved":
			other := rapid.IntRange(0, len(members)-1).Draw(t, "other member")
			members[i], members[other] = members[other], members[i]
		case "renamed":
			m.Name = rapid.SampledFrom([]string{"../" + m.Name, "/" + m.Name, "./" + m.Name, m.Name + "x", "x" + m.Name[1:]}).Draw(t, "name")
		}
		if what != "archive" && what != "truncate" {
			if i := slices.IndexFunc(members, func(m bundle.Member) bool { return m.Name == "SHA256SUMS" }); sums && i >= 0 {
				members[i].Data = bundle.Sums(members)
			}
			if slices.EqualFunc(members, unpacked(good), func(a, b bundle.Member) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }) {
				return
			}
			bad = bundle.Repack(members)
		}
		r := verify(outer, l, bad)
		if r.Pass || r.Reason == "" {
			t.Fatalf("it passes with %s in %s: %+v", what, name(i), r)
		}
		if len(sample) < 300 {
			sample[fmt.Sprintf("%03d-%s", len(sample), bytes.ReplaceAll([]byte(what), []byte(" "), []byte("-")))] = bad
		}
	})
	python(t, l, sample, func(string, string) bool { return false })
}

// No header of gzip and no byte between two members may be changed either.
func TestBytesOfTheArchiveCount(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 1)
	good := l.export(t, bundle.Scope{}, 0, 0)
	for i := 0; i < len(good); i += 1 + 4*min(i/64, 1) {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if r := verify(t, l, bad); r.Pass {
			t.Errorf("byte %d of %d may be changed", i, len(good))
		}
	}
}

// Roots and proofs of a bundle are those of another library.
func TestProofsHoldInAnotherLibrary(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 24)
	h := l.head(t, bundle.Scope{Keyspace: "space-0", Owner: "org_1"}, 0, 0)
	f := unpack(t, l.pack(t, h))
	hasher := rfc6962.DefaultHasher
	for i, stream := range audit.Streams {
		tree, err := h.Manifest.Streams[i].Tree()
		if err != nil {
			t.Fatal(err)
		}
		whole := (&compact.RangeFactory{Hash: hasher.HashChildren}).NewEmptyRange(0)
		for n := range tree.Size {
			leaf := audit.LeafOf(&l.records[stream][n])
			if err := whole.Append(hasher.HashLeaf(leaf.Append(nil)), nil); err != nil {
				t.Fatal(err)
			}
		}
		if root, err := whole.GetRootHash(nil); err != nil || !bytes.Equal(root, tree.Root[:]) {
			t.Errorf("the root of %s is %x, %v", stream, root, err)
		}
		signed, _, err := audit.Open([]byte(h.Proofs[i].Checkpoint), audit.Origin(l.name, stream), l.verifier)
		if err != nil {
			t.Fatal(err)
		}
		var between [][]byte
		for _, line := range f.hashes(t, h.Proofs[i].Consistency) {
			between = append(between, line[:])
		}
		if err := proof.VerifyConsistency(hasher, uint64(tree.Size), uint64(signed.Size), between, tree.Root[:], signed.Root[:]); err != nil {
			t.Errorf("%s: %v", stream, err)
		}
		parts, _, err := audit.Open([]byte(h.Proofs[i].Parts), audit.PartsOrigin(l.name, stream), l.verifier)
		if err != nil {
			t.Fatal(err)
		}
		text := h.Proofs[i].Part
		var index uint64
		part, rest := text[:bytes.Index([]byte(text), []byte("index "))], text[bytes.Index([]byte(text), []byte("index ")):]
		if _, err := fmt.Sscanf(rest, "index %d\n", &index); err != nil {
			t.Fatal(err)
		}
		var path [][]byte
		for _, h := range f.hashes(t, rest[bytes.IndexByte([]byte(rest), '\n')+1:]) {
			path = append(path, h[:])
		}
		if err := proof.VerifyInclusion(hasher, index, uint64(parts.Size), hasher.HashLeaf([]byte(part)), path, parts.Root[:]); err != nil {
			t.Errorf("%s: %v", stream, err)
		}
	}
}

func (files) hashes(t *testing.T, text string) (list []tlog.Hash) {
	t.Helper()
	for line := range bytes.Lines([]byte(text)) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		h, err := tlog.ParseHash(string(line))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h)
	}
	return list
}

// The same content gives the same bytes, and a line is read back as it was written.
func TestABundleIsWrittenOneWay(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 8)
	h := l.head(t, bundle.Scope{}, 0, 0)
	if !bytes.Equal(l.pack(t, h), l.pack(t, h)) {
		t.Error("the same export gives two archives")
	}
	for _, stream := range audit.Streams {
		for i := range l.records[stream] {
			leaf := audit.LeafOf(&l.records[stream][i])
			line := bundle.AppendLine(nil, &leaf)
			if again, err := bundle.ParseLine(stream, line[:len(line)-1]); err != nil || again != leaf {
				t.Errorf("%s is read as %+v, %v", line, again, err)
			}
		}
	}
}

// What is no leaf is refused, and what is one is written back the same.
func FuzzParseLine(f *testing.F) {
	f.Add("1 0 ledger.a._._ a _ _ 1768737600000 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	f.Add("01 0 ledger.a._._ a _ _ 1 00")
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := bundle.ParseLine(events.Ledger, []byte(s)); err == nil {
			if again := bundle.AppendLine(nil, &l); string(again) != s+"\n" {
				t.Errorf("%q is written back as %q", s, again)
			}
		}
	})
}

// No input makes the check fail otherwise than with a report.
func FuzzVerify(f *testing.F) {
	l := newLog(f, "keyledger-test")
	l.fill(f, 1)
	f.Add(l.export(f, bundle.Scope{}, 0, 0))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, b []byte) {
		verify(t, l, b)
	})
}
