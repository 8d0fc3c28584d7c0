package bundle_test

import (
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"time"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

var begin = time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)

// log is an audit log in memory that signs.
type log struct {
	name     string
	signer   note.Signer
	verifier note.Verifier
	key      string
	records  map[string][]events.Record
	next     int // event
	given    map[string]bundle.Stream
	pruned   uint64 // messages of USAGE, from the front

	grown bool // checkpoints are of larger trees than the exports
	short bool // exports end before their own event
}

func newLog(t testing.TB, name string) *log {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	l := &log{name: name, key: public, records: map[string][]events.Record{}}
	if l.signer, err = note.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	if l.verifier, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	return l
}

// event is one about somebody, a second after the one before.
func (l *log) event(data events.Payload, keyspace, owner, key string) events.Envelope {
	e := events.New(data, begin.Add(time.Duration(l.next)*time.Second))
	l.next++
	e.Keyspace, e.Owner, e.Key = keyspace, owner, key
	e.Actor, e.Via = events.Actor{Type: "root_key", ID: "key_0"}, "api"
	return e
}

func (l *log) add(t testing.TB, stream, subject string, list ...events.Envelope) events.Record {
	t.Helper()
	var sequence uint64 = 1
	if n := len(l.records[stream]); n > 0 {
		sequence = l.records[stream][n-1].Sequence + 1
	}
	var r events.Record
	for i, e := range list {
		body, err := events.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		r = events.Record{Stream: stream, Sequence: sequence, Line: i, Subject: subject, Body: body, Event: e}
		l.records[stream] = append(l.records[stream], r)
	}
	return r
}

// fill adds n events of every stream: owners org_0 to org_2 with two keys each in two
// keyspaces, pages of three uses.
func (l *log) fill(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		keyspace, owner, key := fmt.Sprintf("space-%d", i%2), fmt.Sprintf("org_%d", i%3), fmt.Sprintf("key_%d_%d", i%3, i%4/2)
		revoked := l.event(events.KeyRevoked{Reason: "<leaked> \u2028 \"it\""}, keyspace, owner, key)
		revoked.KeyVersion = uint64(i + 1)
		l.add(t, events.Ledger, events.Subject(keyspace, owner, key), revoked)
		l.add(t, events.Feed, events.FeedSubject(revoked), revoked)
		var page []events.Envelope
		for j := range 3 {
			page = append(page, l.event(events.KeyUsed{Decision: fmt.Sprint("dec_", i, j), Method: "GET", Endpoint: "/v1/things", Status: new(200), Environment: "live", Secret: "current", Node: "node_1"},
				keyspace, owner, fmt.Sprintf("key_%d_%d", i%3, j%2)))
		}
		l.add(t, events.Usage, "usage."+keyspace+".node_1", page...)
		if i%4 == 0 {
			read := l.event(events.AuditRead{What: "events", Filter: map[string]string{}}, keyspace, owner, "")
			l.add(t, events.Ops, events.OpsSubject(read), read)
		}
	}
}

// hashes is the storage of a tree.
type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		list[i] = h[x]
	}
	return list, nil
}

func grow(t testing.TB, leaves []tlog.Hash) (hashes, audit.Tree) {
	t.Helper()
	var h hashes
	for i, leaf := range leaves {
		more, err := tlog.StoredHashesForRecordHash(int64(i), leaf, h)
		if err != nil {
			t.Fatal(err)
		}
		h = append(h, more...)
	}
	root, err := tlog.TreeHash(int64(len(leaves)), h)
	if err != nil {
		t.Fatal(err)
	}
	return h, audit.Tree{Size: int64(len(leaves)), Root: root}
}

func (l *log) tree(t testing.TB, stream string) (hashes, audit.Tree) {
	t.Helper()
	var leaves []tlog.Hash
	for i := range l.records[stream] {
		leaf := audit.LeafOf(&l.records[stream][i])
		leaves = append(leaves, leaf.Hash())
	}
	return grow(t, leaves)
}

func (l *log) sign(t testing.TB, c audit.Checkpoint) string {
	t.Helper()
	signed, err := audit.Sign(c, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	return string(signed)
}

// parts is the signed tree of a stream's parts, and what shows how a scope stands
// in it.
func (l *log) parts(t testing.TB, stream string, of audit.Tree, scope audit.Scope) (signed, text string, count int64) {
	t.Helper()
	byID := map[audit.ScopeID]*audit.Part{}
	for i := range l.records[stream][:of.Size] {
		leaf := audit.LeafOf(&l.records[stream][i])
		for _, s := range leaf.Scopes() {
			if byID[s.ID()] == nil {
				byID[s.ID()] = &audit.Part{Scope: s.ID()}
			}
			byID[s.ID()].Add(leaf.Hash())
		}
	}
	var parts []audit.Part
	for _, p := range byID {
		parts = append(parts, *p)
	}
	audit.SortParts(parts)
	var leaves []tlog.Hash
	for i := range parts {
		leaves = append(leaves, parts[i].Hash())
	}
	stored, tree := grow(t, leaves)
	signed = l.sign(t, audit.Checkpoint{Origin: audit.PartsOrigin(l.name, stream), Tree: tree, Of: &of})
	id := scope.ID()
	at, found := slices.BinarySearchFunc(parts, id, func(p audit.Part, id audit.ScopeID) int { return bytes.Compare(p.Scope[:], id[:]) })
	wanted := []int{at - 1, at}
	if found {
		wanted, count = []int{at}, parts[at].Count
	}
	var proofs []bundle.PartProof
	for _, i := range wanted {
		if i < 0 || i >= len(parts) {
			continue
		}
		hashes, err := tlog.ProveRecord(tree.Size, int64(i), stored)
		if err != nil {
			t.Fatal(err)
		}
		proofs = append(proofs, bundle.PartProof{Part: parts[i], Index: int64(i), Hashes: hashes})
	}
	return signed, bundle.PartText(proofs...), count
}

// head makes an export: its event, and everything that is signed.
func (l *log) head(t testing.TB, scope bundle.Scope, from, to events.Time) bundle.Head {
	t.Helper()
	h := bundle.Head{Keys: []string{l.key}, Policy: "log " + l.key + "\nquorum none\n"}
	h.Manifest = bundle.Manifest{Format: bundle.Format, Log: l.name, Scope: scope, From: from, To: to, Program: "test"}
	m := &h.Manifest
	for _, stream := range audit.Streams {
		s := bundle.Stream{Stream: stream, First: 1}
		if stream != events.Ops || l.short {
			s = l.described(t, stream)
			l.prune(t, &s, scope)
		}
		m.Streams = append(m.Streams, s)
	}
	if l.short {
		l.fill(t, 3)
		for i := range m.Streams {
			m.Streams[i].Later = int64(len(l.records[m.Streams[i].Stream])) - m.Streams[i].Size
		}
	}
	e := l.event(events.AuditRead{What: bundle.What, Filter: m.Filter()}, scope.Keyspace, scope.Owner, scope.Key)
	r := l.add(t, events.Ops, events.OpsSubject(e), e)
	m.Exported = bundle.Exported{Sequence: r.Sequence, Time: e.Time, Actor: e.Actor}
	h.Event = string(r.Body)
	if ops := slices.Index(audit.Streams, events.Ops); !l.short {
		m.Streams[ops] = l.described(t, events.Ops)
	} else {
		h.Proof = l.proof(t, r)
	}
	if l.given == nil {
		l.fill(t, 2) // what comes later is not in the export
	}
	for i := range m.Streams {
		s := &m.Streams[i]
		tree, err := s.Tree()
		if err != nil {
			t.Fatal(err)
		}
		p := bundle.StreamProof{Checkpoint: l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, s.Stream), Tree: tree})}
		s.Leaves = s.Size
		part, isPart := scope.Part()
		if isPart {
			p.Parts, p.Part, s.Leaves = l.parts(t, s.Stream, tree, part)
		}
		if isPart || l.grown {
			stored, now := l.tree(t, s.Stream)
			p.Checkpoint = l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, s.Stream), Tree: now})
			if tree.Size > 0 {
				between, err := tlog.ProveTree(now.Size, tree.Size, stored)
				if err != nil {
					t.Fatal(err)
				}
				p.Consistency = bundle.ConsistencyText(between)
			}
		}
		s.Leaves -= s.Pruned
		h.Proofs = append(h.Proofs, p)
	}
	return h
}

// proof is that an event of OPS stands in its tree.
func (l *log) proof(t testing.TB, r events.Record) string {
	t.Helper()
	stored, tree := l.tree(t, r.Stream)
	hashes, err := tlog.ProveRecord(tree.Size, tree.Size-1, stored)
	if err != nil {
		t.Fatal(err)
	}
	leaf := audit.LeafOf(&r)
	p := proof.TLogProof{Index: uint64(tree.Size - 1), Checkpoint: []byte(l.sign(t, audit.Checkpoint{Origin: audit.Origin(l.name, r.Stream), Tree: tree})), ExtraData: leaf.Append(nil)}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	return string(p.Marshal())
}

// prune says of USAGE what was pruned.
func (l *log) prune(t testing.TB, s *bundle.Stream, scope bundle.Scope) {
	t.Helper()
	if s.Stream != events.Usage || l.pruned == 0 {
		return
	}
	part, isPart := scope.Part()
	var gone []tlog.Hash
	var of audit.Part
	for i := range l.records[s.Stream] {
		leaf := audit.LeafOf(&l.records[s.Stream][i])
		if leaf.Sequence > l.pruned || isPart && !part.Holds(&leaf) {
			continue
		}
		gone = append(gone, leaf.Hash())
		of.Add(leaf.Hash())
	}
	state := []tlog.Hash{of.Chain}
	if !isPart {
		state = nil
		for rest := gone; len(rest) > 0; {
			n := 1 << (bits.Len(uint(len(rest))) - 1)
			_, tree := grow(t, rest[:n])
			state, rest = append(state, tree.Root), rest[n:]
		}
	}
	if len(gone) == 0 {
		state = nil
	}
	s.Prune(l.pruned+1, int64(len(gone)), state...)
}

// headOver is a head over everything, with streams whose events are elsewhere.
func (l *log) headOver(t testing.TB, given map[string]bundle.Stream) bundle.Head {
	t.Helper()
	l.given = given
	defer func() { l.given = nil }()
	return l.head(t, bundle.Scope{}, 0, 0)
}

func (l *log) described(t testing.TB, stream string) bundle.Stream {
	t.Helper()
	if s, ok := l.given[stream]; ok {
		return s
	}
	_, tree := l.tree(t, stream)
	s := bundle.Stream{Stream: stream, Size: tree.Size, Root: tree.Root.String(), First: 1}
	if n := len(l.records[stream]); n > 0 {
		s.Last = l.records[stream][n-1].Sequence
	}
	return s
}

// pack writes a bundle with the log's events.
func (l *log) pack(t testing.TB, h bundle.Head) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := bundle.NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	scope, isPart := h.Manifest.Scope.Part()
	for n, stream := range audit.Streams {
		for i := range l.records[stream] {
			r := &l.records[stream][i]
			leaf := audit.LeafOf(r)
			if isPart && !scope.Holds(&leaf) ||
				leaf.Sequence > h.Manifest.Streams[n].Last || leaf.Sequence < h.Manifest.Streams[n].First {
				continue
			}
			if err := w.Leaf(&leaf, r.Body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (l *log) export(t testing.TB, scope bundle.Scope, from, to events.Time) []byte {
	t.Helper()
	return l.pack(t, l.head(t, scope, from, to))
}

var many = flag.Int("bundle.events", 20_000, "events in the bundle of BenchmarkVerify")
