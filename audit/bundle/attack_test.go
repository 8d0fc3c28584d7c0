package bundle_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

// files are the members of a bundle, to be changed.
type files []bundle.Member

func unpack(t testing.TB, b []byte) (list files) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, bundle.Member{Name: h.Name, Data: data})
	}
}

func (f files) at(name string) *bundle.Member {
	i := slices.IndexFunc(f, func(m bundle.Member) bool { return m.Name == name })
	if i < 0 {
		panic("no member " + name)
	}
	return &f[i]
}

func (f files) lines(name string) []string {
	return strings.SplitAfter(strings.TrimSuffix(string(f.at(name).Data), "\n")+"\n", "\n")
}

func (f files) edit(name string, change func(string) string) files {
	m := f.at(name)
	m.Data = []byte(change(string(m.Data)))
	return f
}

func (f files) editLines(name string, change func([]string) []string) files {
	return f.edit(name, func(s string) string {
		return strings.Join(change(slices.DeleteFunc(strings.SplitAfter(s, "\n"), func(l string) bool { return l == "" })), "")
	})
}

// both changes leaves and events in the same way.
func (f files) both(stream string, change func([]string) []string) files {
	return f.editLines(stream+"/000001.leaves.txt", change).editLines(stream+"/000001.events.ndjson", change)
}

func (f files) manifest(change func(*bundle.Manifest)) files {
	return f.edit("manifest.json", func(s string) string {
		var m bundle.Manifest
		if err := json.Unmarshal([]byte(s), &m); err != nil {
			panic(err)
		}
		change(&m)
		b, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			panic(err)
		}
		return string(b) + "\n"
	})
}

// sealed writes the sums anew: whoever changes a member does that too.
func (f files) sealed() files {
	f.at("SHA256SUMS").Data = bundle.Sums(f)
	return f
}

func without(i int) func([]string) []string {
	return func(l []string) []string { return slices.Delete(slices.Clone(l), i, i+1) }
}

// forged changes the first body of a stream, and its leaf's digest with it.
func (f files) forged(stream, old, new string) files {
	var digest string
	f.editLines(stream+"/000001.events.ndjson", func(l []string) []string {
		l[0] = strings.Replace(l[0], old, new, 1)
		sum := sha256.Sum256([]byte(strings.TrimSuffix(l[0], "\n")))
		digest = hex.EncodeToString(sum[:])
		return l
	})
	return f.editLines(stream+"/000001.leaves.txt", func(l []string) []string {
		l[0] = l[0][:len(l[0])-65] + digest + "\n"
		return l
	})
}

// attacks are what somebody who exports may try, each with a part of the reason. They
// leave sums that fit.
var attacks = []struct {
	name, kind, reason string
	do                 func(t *testing.T, l *log, f files) files
}{
	{"an event left out of everything", "everything", "is missing", func(_ *testing.T, _ *log, f files) files { return f.both("ledger", without(3)) }},
	{"a use left out of a page", "everything", "is missing", func(_ *testing.T, _ *log, f files) files { return f.both("usage", without(4)) }},
	{"the first event left out", "everything", "begins with 1 0", func(_ *testing.T, _ *log, f files) files { return f.both("ledger", without(0)) }},
	{"the tail cut", "everything", "are missing", func(_ *testing.T, _ *log, f files) files { return f.both("ops", without(6)).both("usage", without(71)) }},
	{"the tail cut, and the manifest says so", "everything", "manifest says another", func(_ *testing.T, _ *log, f files) files {
		return f.both("usage", without(71)).manifest(func(m *bundle.Manifest) { m.Streams[1].Leaves--; m.Streams[1].Size-- })
	}},
	{"an older checkpoint, with all that goes with it", "everything", "manifest says another", func(t *testing.T, l *log, f files) files {
		older := newLog(t, l.name)
		older.signer, older.records[events.Usage] = l.signer, l.records[events.Usage][:69]
		s := older.described(t, events.Usage)
		tree, _ := s.Tree()
		f.at("usage/checkpoint.txt").Data = []byte(l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, events.Usage), Tree: tree}))
		s.Leaves = s.Size
		return f.both("usage", func(lines []string) []string { return lines[:69] }).manifest(func(m *bundle.Manifest) { m.Streams[1] = s })
	}},
	{"an older checkpoint", "everything", "older", func(t *testing.T, l *log, f files) files {
		older := newLog(t, l.name)
		older.records[events.Usage] = l.records[events.Usage][:69]
		_, tree := older.tree(t, events.Usage)
		f.at("usage/checkpoint.txt").Data = []byte(l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, events.Usage), Tree: tree}))
		return f
	}},
	{"the checkpoint of another stream", "everything", "checkpoint of", func(_ *testing.T, _ *log, f files) files {
		f.at("feed/checkpoint.txt").Data = f.at("ledger/checkpoint.txt").Data
		return f
	}},
	{"the checkpoint of another log of the same name", "owner", "none of the keys", func(t *testing.T, l *log, f files) files {
		other := newLog(t, l.name)
		_, tree := l.tree(t, events.Ledger)
		f.at("ledger/checkpoint.txt").Data = []byte(other.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, events.Ledger), Tree: tree}))
		return f
	}},
	{"a checkpoint of a tree that does not contain the export's", "owner", "does not contain", func(t *testing.T, l *log, f files) files {
		other := newLog(t, l.name)
		other.fill(t, 30)
		_, tree := other.tree(t, events.Ledger)
		f.at("ledger/checkpoint.txt").Data = []byte(l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, events.Ledger), Tree: tree}))
		return f
	}},
	{"a signature doubled", "owner", "stands twice", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("ledger/checkpoint.txt", func(l []string) []string { return append(l, l[len(l)-1]) })
	}},
	{"a bit of a signature that means nothing", "owner", "not written as one is", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/parts.txt", func(s string) string { // 68 bytes end with a digit of which two bits count
			b := []byte(s)
			b[len(b)-3] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", b[len(b)-3])^1]
			return string(b)
		})
	}},
	{"an event of a part left out", "owner", "are missing", func(_ *testing.T, _ *log, f files) files { return f.both("ledger", without(1)) }},
	{"an event of a part left out, and the manifest says so", "owner", "events of the part", func(_ *testing.T, _ *log, f files) files {
		return f.both("ledger", without(1)).manifest(func(m *bundle.Manifest) { m.Streams[0].Leaves-- })
	}},
	{"an event of a part in another's place", "key", "chain", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("usage/000001.leaves.txt", func(l []string) []string {
			l[len(l)-1] = strings.Replace(l[len(l)-1], " 1 ", " 2 ", 1)
			return l
		})
	}},
	{"an event doubled", "everything", "stands twice", func(_ *testing.T, _ *log, f files) files {
		return f.both("ledger", func(l []string) []string { return slices.Insert(slices.Clone(l[:len(l)-1]), 4, l[4]) })
	}},
	{"events reordered", "owner", "out of order", func(_ *testing.T, _ *log, f files) files {
		return f.both("ledger", func(l []string) []string { l[1], l[2] = l[2], l[1]; return l })
	}},
	{"an event moved to another stream", "everything", "subject", func(_ *testing.T, _ *log, f files) files {
		leaf, body := f.lines("feed/000001.leaves.txt")[2], f.lines("feed/000001.events.ndjson")[2]
		f.editLines("ledger/000001.leaves.txt", func(l []string) []string { l[2] = leaf; return l })
		return f.editLines("ledger/000001.events.ndjson", func(l []string) []string { l[2] = body; return l })
	}},
	{"a body changed", "keyspace", "SHA-256 of its body", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.events.ndjson", func(s string) string { return strings.Replace(s, "leaked", "sold", 1) })
	}},
	{"a body and its leaf changed, of everything", "everything", "add up to the signed root", func(_ *testing.T, _ *log, f files) files { return f.forged("ledger", "leaked", "sold") }},
	{"a body and its leaf changed, of a part", "key", "chain is signed", func(_ *testing.T, _ *log, f files) files { return f.forged("ledger", "leaked", "sold") }},
	{"whom a body is about", "everything", "another time, keyspace, owner", func(_ *testing.T, _ *log, f files) files {
		return f.forged("ledger", `"owner":"org_0"`, `"owner":"org_9"`)
	}},
	{"a leaf's time", "everything", "another time", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("usage/000001.leaves.txt", func(l []string) []string {
			l[5] = strings.Replace(l[5], " 17687", " 17686", 1)
			return l
		})
	}},
	{"another scope in the manifest", "owner", "another scope", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.Scope.Owner = "" })
	}},
	{"other times in the manifest", "key, of times", "other times", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.From++ })
	}},
	{"another time of the export", "everything", "another time", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.Exported.Time += 86400000 })
	}},
	{"another event of the export", "everything", "another event than the one in export.ndjson", func(_ *testing.T, _ *log, f files) files {
		return f.edit("export.ndjson", func(s string) string { return strings.Replace(s, "evt_", "evt_f", 1) })
	}},
	{"an event of the export that is not in the log", "everything", "manifest says another", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.Exported.Sequence += 100 })
	}},
	{"an export that ends early and has no proof of its event", "everything, as far as was witnessed", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.DeleteFunc(f, func(m bundle.Member) bool { return m.Name == "export.proof.txt" })
	}},
	{"an export that ends early, with the proof of another event", "everything, as far as was witnessed", "another event", func(t *testing.T, l *log, f files) files {
		f.at("export.proof.txt").Data = []byte(l.proof(t, l.records[events.Ops][len(l.records[events.Ops])-1]))
		return f
	}},
	{"an export that ends early, with the proof of another log", "everything, as far as was witnessed", "none of the keys", func(t *testing.T, l *log, f files) files {
		other := newLog(t, l.name)
		return f.edit("export.proof.txt", func(s string) string {
			text, note, _ := strings.Cut(s, "\n\n")
			cut, _, _ := strings.Cut(note, "\n\n")
			c, err := audit.ParseCheckpoint(cut + "\n")
			if err != nil {
				t.Fatal(err)
			}
			return text + "\n\n" + other.sign(t, c)
		})
	}},
	{"an export that ends early, whose event was made up", "everything, as far as was witnessed", "not at its place", func(t *testing.T, l *log, f files) files {
		body := strings.Replace(string(f.at("export.ndjson").Data), "evt_", "evt_f", 1)
		f.at("export.ndjson").Data = []byte(body)
		sum := sha256.Sum256([]byte(strings.TrimSuffix(body, "\n")))
		return f.edit("export.proof.txt", func(s string) string {
			var p proof.TLogProof
			if err := p.Unmarshal([]byte(s)); err != nil {
				t.Fatal(err)
			}
			leaf, err := audit.ParseLeaf(p.ExtraData)
			if err != nil {
				t.Fatal(err)
			}
			leaf.Digest = sum
			p.ExtraData = leaf.Append(nil)
			return string(p.Marshal())
		})
	}},
	{"an export that ends early and says that nothing came later", "everything, as far as was witnessed", "manifest says another", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.Streams[0].Later = 0 })
	}},
	{"no proof that a larger tree contains the export's", "everything, checkpoints of larger trees", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.DeleteFunc(f, func(m bundle.Member) bool { return m.Name == "feed/consistency.txt" })
	}},
	{"a larger tree that does not contain the export's", "everything, checkpoints of larger trees", "does not contain", func(t *testing.T, l *log, f files) files {
		other := newLog(t, l.name)
		other.fill(t, 60)
		_, tree := other.tree(t, events.Ledger)
		f.at("ledger/checkpoint.txt").Data = []byte(l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, events.Ledger), Tree: tree}))
		return f
	}},
	{"the proof of another part", "owner", "neither the part", func(t *testing.T, l *log, f files) files {
		tree := described(f, 0)
		signed, text, _ := l.parts(t, events.Ledger, tree, audit.Scope{Keyspace: "space-0", Owner: "org_0"})
		f.at("ledger/parts.txt").Data, f.at("ledger/part.txt").Data = []byte(signed), []byte(text)
		return f
	}},
	{"neighbours that are none, to show that there is nothing", "owner", "neither the part", func(t *testing.T, l *log, f files) files {
		tree := described(f, 0)
		_, text, _ := l.parts(t, events.Ledger, tree, audit.Scope{Keyspace: "space-0", Owner: "org_none"})
		f.at("ledger/part.txt").Data = []byte(text)
		return f
	}},
	{"a part of an older tree", "owner", "another tree than the export's", func(t *testing.T, l *log, f files) files {
		older := newLog(t, l.name)
		older.records[events.Ledger] = l.records[events.Ledger][:20]
		_, tree := older.tree(t, events.Ledger)
		signed, text, _ := l.parts(t, events.Ledger, tree, audit.Scope{Keyspace: "space-0", Owner: "org_1"})
		f.at("ledger/parts.txt").Data, f.at("ledger/part.txt").Data = []byte(signed), []byte(text)
		return f
	}},
	{"a part with another count", "owner", "not at its place", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/part.txt", func(s string) string { return strings.Replace(s, " 4 ", " 3 ", 1) })
	}},
	{"a body left out within the times", "key, of times", "body", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("usage/000001.events.ndjson", without(0))
	}},
	{"the last body left out within the times", "key, of times", "its body is missing", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("usage/000001.events.ndjson", func(l []string) []string { return l[:len(l)-1] })
	}},
	{"a body outside the times", "key, of times", "more events", func(_ *testing.T, _ *log, f files) files {
		return f.editLines("usage/000001.events.ndjson", func(l []string) []string { return append(l, l[0]) })
	}},
	{"an event of somebody else's", "owner", "not about what was exported", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.leaves.txt", func(s string) string { return strings.Replace(s, " org_1 ", " org_2 ", 1) })
	}},
	{"lines that end in CR LF", "everything", "not a line", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.leaves.txt", func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") })
	}},
	{"bodies that end in CR LF", "everything", "SHA-256", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.events.ndjson", func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") })
	}},
	{"a leaf with another number of words", "everything", "not a line", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.leaves.txt", func(s string) string { return strings.Replace(s, " ", "  ", 1) })
	}},
	{"a sequence with a zero in front", "everything", "not a line", func(_ *testing.T, _ *log, f files) files {
		return f.edit("ledger/000001.leaves.txt", func(s string) string { return "0" + s })
	}},
	{"a member left out", "everything", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.DeleteFunc(f, func(m bundle.Member) bool { return m.Name == "ops/checkpoint.txt" })
	}},
	{"a stream left out", "everything", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.DeleteFunc(f, func(m bundle.Member) bool { return strings.HasPrefix(m.Name, "usage/") })
	}},
	{"a stream left out of the manifest too", "everything", "every stream", func(_ *testing.T, _ *log, f files) files {
		return slices.DeleteFunc(f, func(m bundle.Member) bool { return strings.HasPrefix(m.Name, "feed/") }).manifest(func(m *bundle.Manifest) { m.Streams = m.Streams[:3] })
	}},
	{"a member doubled", "everything", "stands where", func(_ *testing.T, _ *log, f files) files { return slices.Insert(f, 3, f[2]) }},
	{"a member nobody knows", "everything", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.Insert(f, 1, bundle.Member{Name: "INSTALL.sh", Data: []byte("#!/bin/sh\n")})
	}},
	{"a member that leads out", "everything", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.Insert(f, 1, bundle.Member{Name: "../../etc/cron.d/x", Data: []byte("x\n")})
	}},
	{"an absolute path", "everything", "", func(_ *testing.T, _ *log, f files) files {
		return slices.Insert(f, len(f), bundle.Member{Name: "/etc/passwd", Data: []byte("x\n")})
	}},
	{"a member in front", "everything", "stands where", func(_ *testing.T, _ *log, f files) files {
		return slices.Insert(f, 0, bundle.Member{Name: "a/../../README.txt", Data: []byte("x\n")})
	}},
	{"no member but the sums", "everything", "stands where", func(_ *testing.T, _ *log, f files) files { return f[len(f)-1:] }},
	{"a manifest that says a thing twice", "everything", "not one of a bundle", func(_ *testing.T, _ *log, f files) files {
		return f.edit("manifest.json", func(s string) string { return strings.Replace(s, `"program"`, `"log": "x", "program"`, 1) })
	}},
	{"a manifest written otherwise", "everything", "not one of a bundle", func(_ *testing.T, _ *log, f files) files {
		return f.edit("manifest.json", func(s string) string { return strings.Replace(s, "  ", "   ", 1) })
	}},
	{"numbers that make no sense", "everything", "", func(_ *testing.T, _ *log, f files) files {
		return f.edit("manifest.json", func(s string) string { return strings.Replace(s, `"leaves": `, `"leaves": -`, 1) })
	}},
	{"another log's name", "everything", "no key of that name", func(_ *testing.T, _ *log, f files) files {
		return f.manifest(func(m *bundle.Manifest) { m.Log = "keyledger-other" })
	}},
}

func described(f files, stream int) (tree audit.Tree) {
	f.manifest(func(m *bundle.Manifest) { tree, _ = m.Streams[stream].Tree() })
	return tree
}

// Every attack is refused by both verifiers, with its reason, although whoever made it
// has written the sums anew.
func TestEveryAttackIsRefused(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 24)
	exports := map[string][]byte{}
	bad := map[string][]byte{}
	for name, k := range kinds {
		// Each is of the same 24 rounds: the log is copied before its event is added.
		c := *l
		c.records = map[string][]events.Record{}
		for stream, r := range l.records {
			c.records[stream] = slices.Clone(r)
		}
		c.grown, c.short = k.grown, k.short
		exports[name] = c.export(t, k.scope, k.from, k.to)
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			if r := verify(t, l, bundle.Repack(unpack(t, exports[a.kind]))); !r.Pass {
				t.Fatalf("packed again without a change it fails: %+v", r)
			}
			b := bundle.Repack(a.do(t, l, unpack(t, exports[a.kind])).sealed())
			r := verify(t, l, b)
			if r.Pass || !strings.Contains(r.Reason, a.reason) || r.Reason == "" {
				t.Errorf("Verify says %+v", r)
			}
			bad[strings.ReplaceAll(a.name, " ", "-")] = b
		})
	}
	python(t, l, bad, func(name, reason string) bool { return false })
}

// The archive itself: what is no plain file, what follows the end, what is cut off.
func TestArchivesThatAreNone(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 8)
	good := l.export(t, bundle.Scope{}, 0, 0)
	tarred := func(change func(i int, h *tar.Header), more ...byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for i, m := range unpack(t, good) {
			h := &tar.Header{Name: m.Name, Size: int64(len(m.Data)), Mode: 0o600, ModTime: time.Unix(1e9, 0)}
			change(i, h)
			if h.Size != int64(len(m.Data)) {
				m.Data = make([]byte, h.Size)
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(m.Data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		_, _ = z.Write(more)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, b := range map[string][]byte{
		"packed-again":              tarred(func(int, *tar.Header) {}),
		"packed-again-with-padding": tarred(func(int, *tar.Header) {}, make([]byte, 8192)...),
		"packed-again-with-pax":     tarred(func(_ int, h *tar.Header) { h.Format, h.ModTime = tar.FormatPAX, time.Unix(1e9, 5e8) }),
	} {
		if r := verify(t, l, b); !r.Pass {
			t.Errorf("%s fails: %+v", name, r)
		}
		python(t, l, map[string][]byte{name: b}, func(string, string) bool { return true })
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	bad := map[string][]byte{
		"empty":                  nil,
		"no-archive":             []byte("PK\x03\x04 something else"),
		"truncated":              good[:len(good)-1],
		"truncated-a-lot":        good[:len(good)/3],
		"its-start":              good[:30],
		"doubled":                append(bytes.Clone(good), good...),
		"followed":               append(bytes.Clone(good), "more"...),
		"followed-by-zeros":      append(bytes.Clone(good), make([]byte, 512)...),
		"followed-by-an-archive": append(bytes.Clone(good), bomb.Bytes()...),
		"flipped":                flipped,
		"a-bomb":                 bomb.Bytes(),
		"a-long-member":          tarred(func(i int, h *tar.Header) { h.Size += int64(i / 4 % 2 << 25) }),
		"a-symbolic-link":        tarred(func(i int, h *tar.Header) { link(h, tar.TypeSymlink, i == 3) }),
		"a-hard-link":            tarred(func(i int, h *tar.Header) { link(h, tar.TypeLink, i == 3) }),
		"a-folder":               tarred(func(i int, h *tar.Header) { link(h, tar.TypeDir, i == 3) }),
		"a-device":               tarred(func(i int, h *tar.Header) { link(h, tar.TypeChar, i == 3) }),
		"a-long-name":            tarred(func(i int, h *tar.Header) { h.Name = strings.Repeat("x/", 90*(i%2)) + h.Name }),
		"another-name-by-pax":    tarred(func(i int, h *tar.Header) { h.Format, h.Name = tar.FormatPAX, strings.Repeat("../", 60*(i%2))+h.Name }),
		"packed-again-followed":  append(tarred(func(int, *tar.Header) {}), "more"...),
		"packed-with-more":       tarred(func(int, *tar.Header) {}, []byte("more")...),
	}
	for name, b := range bad {
		if r := verify(t, l, b); r.Pass || r.Reason == "" {
			t.Errorf("%s: Verify says %+v", name, r)
		}
	}
	python(t, l, bad, func(string, string) bool { return false })
}

func link(h *tar.Header, kind byte, yes bool) {
	if yes {
		h.Typeflag, h.Linkname, h.Size = kind, "/etc/passwd", 0
	}
}

// A body that two readers may read differently is refused, although it stands in the
// log: here the log itself has taken it.
func TestBodiesThatCanBeReadInTwoWays(t *testing.T) {
	bad := map[string][]byte{}
	var l *log
	for i, change := range []func(string) string{
		func(s string) string { return strings.Replace(s, `"owner":`, `"owner":"org_x","owner":`, 1) },
		func(s string) string { return strings.Replace(s, `"reason":`, `"reason":"x","reason":`, 1) },
		func(s string) string { return strings.Replace(s, `"reason":`, `"reaso\u006e":"x","reason":`, 1) },
		func(s string) string {
			return strings.Replace(s, `"reason":`, `"x":`+strings.Repeat("[", 300)+strings.Repeat("]", 300)+`,"reason":`, 1)
		},
		func(s string) string { return strings.Replace(s, `"reason":`, `"x":NaN,"reason":`, 1) },
		func(s string) string { return strings.Replace(s, `"reason":`, `"x":01,"reason":`, 1) },
		func(s string) string { return strings.Replace(s, "leaked", "leaked\xff", 1) },
		func(s string) string { return strings.Replace(s, "leaked", "leaked\t", 1) },
		func(s string) string { return strings.Replace(s, "leaked", `leaked\x`, 1) },
		func(s string) string { return s + "{}" },
		func(s string) string { return s + " " },
		func(s string) string { return strings.Replace(s, `"keyspace":`, `"Keyspace":`, 1) },
	} {
		if l == nil {
			l = newLog(t, "keyledger-test")
		}
		l.records, l.next = map[string][]events.Record{}, 0
		l.fill(t, 4)
		r := &l.records[events.Ledger][2]
		r.Body = []byte(change(string(r.Body)))
		b := l.export(t, bundle.Scope{}, 0, 0)
		report := verify(t, l, b)
		if report.Pass || report.Place == nil || *report.Place != (audit.Place{Stream: events.Ledger, Sequence: 3}) {
			t.Errorf("body %s: Verify says %+v", r.Body, report)
		}
		bad[fmt.Sprint("body-", i)] = b
	}
	python(t, l, bad, func(string, string) bool { return false })
}

// With a quorum of two of three, two are enough and one is not, and both verifiers name
// who has signed and who has not.
func TestQuorums(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 8)
	l.grown = true
	var signers []note.Signer
	var lines string
	for i := range 3 {
		private, public, err := note.GenerateKey(rand.Reader, fmt.Sprintf("w%d.example", i+1))
		if err != nil {
			t.Fatal(err)
		}
		signer, err := fnote.NewSignerForCosignatureV1(private)
		if err != nil {
			t.Fatal(err)
		}
		key, err := fnote.VKeyToCosignatureV1(public)
		if err != nil {
			t.Fatal(err)
		}
		signers, lines = append(signers, signer), lines+fmt.Sprintf("witness w%d.example %s\n", i+1, key)
	}
	policy := lines + "group two 2 w1.example w2.example w3.example\nquorum two\n"
	dir := t.TempDir()
	asked := filepath.Join(dir, "policy")
	if err := os.WriteFile(asked, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, scope := range []bundle.Scope{{}, {Keyspace: "space-0", Owner: "org_1"}} {
		head := l.head(t, scope, 0, 0)
		for by := range 1 << len(signers) {
			h, enough := head, by == 3 || by >= 5
			h.Proofs = slices.Clone(head.Proofs)
			var have, lack []string
			for i := range signers {
				if by>>i&1 == 1 {
					have = append(have, signers[i].Name())
				} else {
					lack = append(lack, signers[i].Name())
				}
			}
			// One stream that lacks a signature is enough to fail.
			for i := range h.Proofs {
				n := &note.Note{Text: h.Proofs[i].Checkpoint[:strings.Index(h.Proofs[i].Checkpoint, "\n\n")+1]}
				all := []note.Signer{l.signer}
				for j := range signers {
					if by>>j&1 == 1 || i != 2 {
						all = append(all, signers[j])
					}
				}
				signed, err := note.Sign(n, all...)
				if err != nil {
					t.Fatal(err)
				}
				h.Proofs[i].Checkpoint = string(signed)
			}
			b := l.pack(t, h)
			r, err := bundle.Verify(bytes.NewReader(b), bundle.Options{Keys: []note.Verifier{l.verifier}, Policy: []byte(policy)})
			if err != nil || r.Pass != enough || enough && !slices.Equal(r.Streams[2].Witnesses, have) {
				t.Errorf("%v have signed: %+v, %v", have, r, err)
			}
			file := filepath.Join(dir, "bundle")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "python3", "-B", "../../tools/verify_bundle.py", file, l.key, "--policy", asked)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != map[bool]int{true: 0, false: 7}[enough] {
				t.Errorf("%v have signed: tools/verify_bundle.py ends with %d: %s", have, code, out)
			}
			if enough {
				continue
			}
			said := "signed by " + cmp.Or(strings.Join(have, ", "), "nobody") + "; not by " + strings.Join(lack, ", ")
			if r.Member != "ops/checkpoint.txt" || !strings.Contains(r.Reason, said) || !strings.Contains(string(out), said) {
				t.Errorf("%v have signed: %+v and %s", have, r, out)
			}
		}
	}
}

// A bundle is checked with the keys of whoever checks, and with whose signatures
// their policy asks for.
func TestWhoseSignaturesCount(t *testing.T) {
	l := newLog(t, "keyledger-test")
	l.fill(t, 8)
	head := l.head(t, bundle.Scope{}, 0, 0)
	foreign := newLog(t, l.name)
	if r := verify(t, foreign, l.pack(t, head)); r.Pass || !strings.Contains(r.Reason, "none of the keys") {
		t.Errorf("with another key: %+v", r)
	}

	// Who has an older key is told that there is a newer one, and no more than told.
	rotated := head
	rotated.Keys = []string{l.key, foreign.key}
	if r := verify(t, foreign, l.pack(t, rotated)); r.Pass || !strings.Contains(r.Reason, fmt.Sprintf("newer key %s+%08x", l.name, l.verifier.KeyHash())) {
		t.Errorf("with an older key: %+v", r)
	}

	private, public, err := note.GenerateKey(rand.Reader, "witness.example.com")
	if err != nil {
		t.Fatal(err)
	}
	cosigner, err := fnote.NewSignerForCosignatureV1(private)
	if err != nil {
		t.Fatal(err)
	}
	witness, err := fnote.VKeyToCosignatureV1(public)
	if err != nil {
		t.Fatal(err)
	}
	policy := "log " + l.key + "\nwitness w1 " + witness + " https://witness.example.com/\ngroup all-of-them all w1\nquorum all-of-them\n"
	if p, err := audit.ParsePolicy([]byte(policy)); err != nil || len(p.Logs) != 1 || p.Logs[0] != l.key {
		t.Errorf("the log's keys of the policy: %+v, %v", p, err)
	}
	head.Policy = policy
	uncosigned := l.pack(t, head)
	for i := range head.Proofs {
		n, err := note.Open([]byte(head.Proofs[i].Checkpoint), note.VerifierList(l.verifier))
		if err != nil {
			t.Fatal(err)
		}
		signed, err := note.Sign(n, l.signer, cosigner)
		if err != nil {
			t.Fatal(err)
		}
		head.Proofs[i].Checkpoint = string(signed)
	}
	cosigned := l.pack(t, head)
	dir := t.TempDir()
	run := func(args ...string) int {
		cmd := exec.CommandContext(t.Context(), "python3", append([]string{"-B", "../../tools/verify_bundle.py"}, args...)...)
		out, err := cmd.CombinedOutput()
		if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(err)
		}
		t.Logf("%s", out)
		return cmd.ProcessState.ExitCode()
	}
	file := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	asked := file("policy", []byte(policy))
	for name, c := range map[string]struct {
		b      []byte
		policy string
		pass   bool
	}{"uncosigned": {uncosigned, policy, false}, "cosigned": {cosigned, policy, true}, "not asked": {uncosigned, "", true}} {
		o := bundle.Options{Keys: []note.Verifier{l.verifier, foreign.verifier}}
		args := []string{file("bundle", c.b), l.key, foreign.key}
		if c.policy != "" {
			o.Policy, args = []byte(c.policy), append(args, "--policy", asked)
		} else if r := verify(t, l, c.b); len(r.Notes) != 1 {
			t.Errorf("nothing says that there are witnesses: %+v", r)
		}
		r, err := bundle.Verify(bytes.NewReader(c.b), o)
		if err != nil || r.Pass != c.pass {
			t.Errorf("%s: Verify says %+v, %v", name, r, err)
		}
		if code, want := run(args...), map[bool]int{true: 0, false: 7}[c.pass]; code != want {
			t.Errorf("%s: tools/verify_bundle.py ends with %d, want %d", name, code, want)
		}
	}
	if code := run(file("bundle", cosigned)); code != 2 {
		t.Errorf("without a key tools/verify_bundle.py ends with %d", code)
	}
	if code := run(filepath.Join(dir, "none"), l.key); code != 1 {
		t.Errorf("without a bundle tools/verify_bundle.py ends with %d", code)
	}
	if _, err := bundle.Verify(bytes.NewReader(cosigned), bundle.Options{}); err == nil {
		t.Error("it is checked without a key")
	}
	if _, err := bundle.Verify(iotest.ErrReader(io.ErrNoProgress), bundle.Options{Keys: []note.Verifier{l.verifier}}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that fails: %v", err)
	}
}
