// Package bundle is an export of the audit log that proves itself: its format,
// the writing of it, and the check on a machine that has no account, no network
// and no service. tools/verify_bundle.py is a second check of the same format, by
// other hands' libraries.
//
// A bundle is a tar.gz that an auditor can open with tar and read with less:
//
//	README.txt                      what this is, how to check it, what it proves
//	manifest.json                   what was exported, when, and the size of each tree
//	export.ndjson                   the event on OPS that records this export
//	export.proof.txt                where OPS ends before that event here: where it stands
//	keys.txt  policy.txt            the log's keys, and whose signatures it asks for
//	ledger/checkpoint.txt           the signed tree of the stream
//	ledger/consistency.txt          of a part, and where this tree is a larger one: that it
//	                                contains the export's
//	ledger/parts.txt  part.txt      of a part: the signed tree of parts, and its place in it
//	ledger/000001.leaves.txt        one leaf per line, see [AppendLine]
//	ledger/000001.events.ndjson     the stored bytes of each, one per line
//	usage/…  ops/…  feed/…
//	SHA256SUMS                      of all members, for sha256sum -c
//
// A pair of leaves and events holds at most 8 MiB of each, so that any number of
// events is read in bounded memory. Events outside the times of an export stand as
// leaves alone: place, subject, time and digest show that they are outside, and
// that nothing else was left out.
//
// What it proves. The export is itself an event in the log: it names what was asked
// for and the size and root of every tree at that moment. OPS holds that event, and
// its checkpoint is signed; the other checkpoints must be of exactly the trees that
// the event names, or contain them. Of a whole stream, root and size follow from the leaves. Of a
// part, count and chain do, which stand in a tree of parts that is signed together
// with the tree it is of; or the two neighbours between which the part would stand
// show that there is none. Inclusion proofs for each event of a part would add
// nothing: the chain fixes the hash of every leaf, and both are signed by the same
// key.
//
// What somebody who exports may try, and what stops it:
//
//   - leave out, double or reorder an event, cut the tail: sequences of a whole
//     stream have no gap; size, root, count and chain do not fit
//   - move an event between streams: its leaf names the stream
//   - an older or another log's checkpoint: the export's own event names the trees;
//     the origin names log and stream
//   - the proof of another part, or of another size of the tree: the part's name is
//     hashed from the scope, the tree of parts names the tree it is of
//   - change a body: its leaf has the digest; or whom it is about, in the leaf: the
//     body says it too
//   - change scope or times in the manifest: the export's own event has them
//   - leave bodies out within the times, or put others in: a leaf's time decides
//   - sign with a key of one's own: the keys are those of whoever checks, never those
//     in the bundle
//   - a body that other readers read differently: members that stand twice, text that
//     is not UTF-8, other than one JSON value: refused
//   - members with other names, twice, out of order, with paths that lead out; links
//     and devices; lines that end in CR LF; anything behind the end: refused
//   - bombs: a member holds at most 16 MiB, a bundle as many as its leaves need, and
//     what unpacks to more than 300 times its size is refused
//
// Of USAGE that was pruned, the export's event says where it began then, and what the
// hashes of all before add up to: those who exported cannot choose it.
//
// Who asks for witnesses (Options.Policy) asks that they have signed every stream's
// checkpoint. They see a tree some time after the event of an export, so the checkpoint
// is usually of a larger tree, which is shown to contain the export's. Where the
// witnesses stayed away the export ends with the trees that they had signed, OPS before
// its own event: the event then names the tree of OPS too, and how many events were
// there later, and export.proof.txt (C2SP tlog-proof) shows it in a tree that the log
// alone has signed.
//
// How it can disappoint. It is complete as of its export: what came later, what was
// pruned before, and what was never recorded, is not in it. Whoever holds the log's key can sign a tree of
// parts that is wrong: everybody with the whole log can show that. README.txt,
// keys.txt and policy.txt are words of whoever exported.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

// Format is the first word of a manifest. Another form would be another number.
const Format = "keyledger bundle v1"

// What is the audit.read event's word for an export as a bundle, and TreePrefix
// what stands before the stream's name where its filter names a tree as "<size>
// <root> <last sequence> <first sequence> <pruned leaves> <their state>"; behind
// LaterPrefix stands how many events the stream had beyond that tree.
const (
	What        = "bundle"
	TreePrefix  = "tree."
	LaterPrefix = "later."
)

// Manifest says what a bundle holds. Everything in it but Program is proven.
type Manifest struct {
	Format   string   `json:"format"`
	Log      string   `json:"log"` // the name in the log's key
	Scope    Scope    `json:"scope"`
	From     Moment   `json:"from"` // bodies of events from here on; absent: from the first
	To       Moment   `json:"to"`   // and before this; absent: to the last
	Exported Exported `json:"exported"`
	Streams  []Stream `json:"streams"` // as [audit.Streams]
	Program  string   `json:"program"` // version of what exported
}

// Moment is a time, or null for none.
type Moment = events.Time

// Scope is what the export is about; all empty: everything.
type Scope struct {
	Keyspace string `json:"keyspace"`
	Owner    string `json:"owner"`
	Key      string `json:"key"`
}

// Part is the scope's name in the trees of parts; false: it is everything.
func (s Scope) Part() (audit.Scope, bool) {
	return audit.Scope(s), s != Scope{}
}

// Exported is the place of the export's own event on OPS, with its time and actor.
type Exported struct {
	Sequence uint64       `json:"sequence"`
	Time     events.Time  `json:"time"`
	Actor    events.Actor `json:"actor"`
}

// Stream says of one stream what the bundle holds.
type Stream struct {
	Stream string `json:"stream"`
	Size   int64  `json:"size"`   // of its tree
	Root   string `json:"root"`   // base64
	Last   uint64 `json:"last"`   // sequence of the last event in the tree; 0: none
	First  uint64 `json:"first"`  // sequence that the stream began with; 1 but for USAGE, which may be pruned
	Leaves int64  `json:"leaves"` // of the scope from there on, all of which the bundle has
	Pruned int64  `json:"pruned"` // of the scope before, of which the bundle has nothing
	// State is what the pruned leaves add up to, in base64: of a part their chain; of
	// everything the roots of their whole subtrees, the largest first, with blanks between.
	State string `json:"state"`
	// Later is how many events the signed tree had beyond this one when the export was
	// recorded, where it ends with what witnesses had signed.
	Later int64 `json:"later,omitempty"`
}

// Tree is the stream's tree.
func (s *Stream) Tree() (audit.Tree, error) {
	root, err := tlog.ParseHash(s.Root)
	return audit.Tree{Size: s.Size, Root: root}, err
}

// text is how the export's event names the tree, and what was pruned of it.
func (s *Stream) text() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s %d %d %d %s", s.Size, s.Root, s.Last, s.First, s.Pruned, s.State))
}

// Prune says that of the scope's leaves so many were pruned before first, with their
// state: one chain, or the roots of whole subtrees.
func (s *Stream) Prune(first uint64, leaves int64, state ...tlog.Hash) {
	words := make([]string, len(state))
	for i, h := range state {
		words[i] = h.String()
	}
	s.First, s.Pruned, s.State = first, leaves, strings.Join(words, " ")
}

// pruned is the state that Prune wrote.
func (s *Stream) pruned() (state []tlog.Hash, err error) {
	if s.State == "" {
		return nil, nil
	}
	for word := range strings.SplitSeq(s.State, " ") {
		h, err := tlog.ParseHash(word)
		if err != nil {
			return nil, err
		}
		state = append(state, h)
	}
	return state, nil
}

// Filter is what the export's event says of scope, times and trees. OPS is in it only
// where its tree ends before the event.
func (m *Manifest) Filter() map[string]string {
	f := map[string]string{}
	for name, value := range map[string]string{"keyspace": m.Scope.Keyspace, "owner": m.Scope.Owner, "key": m.Scope.Key, "from": m.From.String(), "to": m.To.String()} {
		if value != "" {
			f[name] = value
		}
	}
	for i := range m.Streams {
		s := &m.Streams[i]
		if s.Stream != events.Ops || m.short() {
			f[TreePrefix+s.Stream] = s.text()
		}
		if s.Later > 0 {
			f[LaterPrefix+s.Stream] = strconv.FormatInt(s.Later, 10)
		}
	}
	return f
}

// short says whether the tree of OPS ends before the export's own event, which may not
// be recorded yet.
func (m *Manifest) short() bool {
	for i := range m.Streams {
		if s := &m.Streams[i]; s.Stream == events.Ops {
			return s.Root != "" && (m.Exported.Sequence == 0 || s.Last < m.Exported.Sequence)
		}
	}
	return false
}

// Within says whether a time is one whose events stand with their bodies.
func (m *Manifest) Within(t events.Time) bool {
	return t >= m.From && (m.To == 0 || t < m.To)
}

// encode writes the manifest as it stands in a bundle.
func (m *Manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(m)
	return b.Bytes(), err
}

// parseManifest reads what encode wrote, and nothing else: nothing can stand in it
// that another reader would read differently.
func parseManifest(b []byte) (*Manifest, error) {
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	again, err := m.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("it is not written as one is")
	}
	if m.Format != Format {
		return nil, fmt.Errorf("its format is not %q", Format)
	}
	if s := m.Scope; s.Keyspace == "" && (s.Owner != "" || s.Key != "") {
		return nil, errors.New("its scope names no keyspace")
	}
	if len(m.Streams) != len(audit.Streams) {
		return nil, errors.New("it does not name every stream")
	}
	for i, s := range m.Streams {
		if s.Stream != audit.Streams[i] {
			return nil, errors.New("it does not name every stream, in order")
		}
		_, isPart := m.Scope.Part()
		state, err := s.pruned()
		hashes := bits.OnesCount64(uint64(s.Pruned))
		if isPart {
			hashes = min(hashes, 1)
		}
		// The numbers are summed only when neither can wrap.
		if s.Size < 0 || s.Later < 0 || s.Leaves < 0 || s.Pruned < 0 || s.Leaves > s.Size || s.Pruned > s.Size-s.Leaves || s.First < 1 || err != nil || len(state) != hashes ||
			s.Stream != events.Usage && (s.First != 1 || s.Pruned != 0) {
			return nil, fmt.Errorf("its numbers of %s make no sense", s.Stream)
		}
		if _, err := s.Tree(); err != nil {
			return nil, fmt.Errorf("the root of %s is none", s.Stream)
		}
	}
	return &m, nil
}

// Head is everything of an export but its leaves and events.
type Head struct {
	Manifest Manifest      `json:"manifest"`
	Event    string        `json:"event"`           // stored bytes of the export's own event
	Proof    string        `json:"proof,omitempty"` // of it, where OPS ends before it: C2SP tlog-proof, the leaf's text as extra data
	Keys     []string      `json:"keys"`            // the log's verifier keys
	Policy   string        `json:"policy"`
	Proofs   []StreamProof `json:"proofs"` // as the manifest's streams
}

// StreamProof is what is signed about one stream.
type StreamProof struct {
	Checkpoint string `json:"checkpoint"` // signed; its tree may be larger than the export's, and contains it then
	// Of a part, or where the checkpoint is of another size than the export's tree.
	Consistency string `json:"consistency,omitempty"` // see [ConsistencyText]
	// Of a part.
	Parts string `json:"parts,omitempty"` // the signed checkpoint of the tree of parts
	Part  string `json:"part,omitempty"`  // see [PartText]
}

// AppendLine writes a leaf as one line of eight words, whose order is the leaf's:
//
//	<sequence> <line> <subject> <keyspace> <owner> <key> <milliseconds since 1970> <SHA-256>
//
// The stream is that of the member it stands in.
func AppendLine(b []byte, l *audit.Leaf) []byte {
	b = strconv.AppendUint(b, l.Sequence, 10)
	b = strconv.AppendInt(append(b, ' '), int64(l.Line), 10)
	b = append(append(append(b, ' '), l.Subject...), ' ')
	for _, s := range [...]string{l.Keyspace, l.Owner, l.Key} {
		if s == "" {
			s = "_"
		}
		b = append(append(b, s...), ' ')
	}
	b = strconv.AppendInt(b, int64(l.Time), 10)
	b = append(b, ' ')
	const digits = "0123456789abcdef"
	for _, c := range l.Digest {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return append(b, '\n')
}

var errLine = errors.New("not a line of eight words as leaves are written")

// ParseLine reads what [AppendLine] wrote, without its newline, and nothing else.
func ParseLine(stream string, line []byte) (audit.Leaf, error) {
	l := audit.Leaf{Place: audit.Place{Stream: stream}}
	text := string(line)
	var words [8]string
	for i := range words {
		end := strings.IndexByte(text, ' ')
		if i == len(words)-1 {
			end = len(text)
		}
		if end < 1 {
			return l, errLine
		}
		words[i] = text[:end]
		text = text[min(end+1, len(text)):]
	}
	var err1, err2, err3 error
	l.Sequence, err1 = strconv.ParseUint(words[0], 10, 64)
	l.Line, err2 = strconv.Atoi(words[1])
	l.Subject = words[2]
	for i, to := range [...]*string{&l.Keyspace, &l.Owner, &l.Key} {
		if words[3+i] != "_" {
			*to = words[3+i]
		}
	}
	at, err3 := strconv.ParseInt(words[6], 10, 64)
	l.Time = events.Time(at)
	if err1 != nil || err2 != nil || err3 != nil || l.Line < 0 || at < 0 || len(words[7]) != 2*len(l.Digest) {
		return l, errLine
	}
	for i := range l.Digest {
		high, low := nibble(words[7][2*i]), nibble(words[7][2*i+1])
		if high|low > 15 {
			return l, errLine
		}
		l.Digest[i] = high<<4 | low
	}
	for _, c := range line {
		if c < ' ' || c > '~' {
			return l, errLine
		}
	}
	var room [512]byte
	if again := AppendLine(room[:0], &l); !bytes.Equal(again[:len(again)-1], line) {
		return l, errLine
	}
	return l, nil
}

func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// PartProof is a part with its place in the tree of parts.
type PartProof struct {
	Part   audit.Part
	Index  int64
	Hashes tlog.RecordProof
}

// PartText writes what shows how a scope stands in a tree of parts: its part, or
// its neighbours where there is none. Each is the part's two lines, a line "index
// <n>", the hashes of the inclusion proof in base64, a line each, and an empty line.
func PartText(proofs ...PartProof) string {
	var b []byte
	for _, p := range proofs {
		b = fmt.Appendf(p.Part.Append(b), "index %d\n", p.Index)
		for _, h := range p.Hashes {
			b = fmt.Appendf(b, "%s\n", h)
		}
		b = append(b, '\n')
	}
	return string(b)
}

// ConsistencyText writes a proof of consistency: its hashes in base64, a line each.
func ConsistencyText(p tlog.TreeProof) string {
	var b []byte
	for _, h := range p {
		b = fmt.Appendf(b, "%s\n", h)
	}
	return string(b)
}

func parseConsistencyText(text string) (p tlog.TreeProof, err error) {
	for line := range strings.Lines(text) {
		h, err := tlog.ParseHash(strings.TrimSuffix(line, "\n"))
		if err != nil || len(p) > 128 {
			return nil, errors.New("it is not the hashes of one")
		}
		p = append(p, h)
	}
	if ConsistencyText(p) != text {
		return nil, errors.New("it is not written as one is")
	}
	return p, nil
}

// parsePartText reads what PartText wrote, and nothing else.
func parsePartText(text string) ([]PartProof, error) {
	var proofs []PartProof
	for rest := text; rest != ""; {
		var block string
		var ok bool
		if block, rest, ok = strings.Cut(rest, "\n\n"); !ok || len(proofs) == 2 {
			return nil, errors.New("it is not written as one is")
		}
		lines := strings.Split(block, "\n")
		if len(lines) < 3 || len(lines) > 3+64 {
			return nil, errors.New("it has not the lines of one")
		}
		var p PartProof
		var err error
		if p.Part, err = audit.ParsePart([]byte(lines[0] + "\n" + lines[1] + "\n")); err != nil {
			return nil, err
		}
		index, _ := strings.CutPrefix(lines[2], "index ")
		if p.Index, err = strconv.ParseInt(index, 10, 64); err != nil {
			return nil, errors.New("its index is no number")
		}
		for _, line := range lines[3:] {
			h, err := tlog.ParseHash(line)
			if err != nil {
				return nil, errors.New("a hash of it is none")
			}
			p.Hashes = append(p.Hashes, h)
		}
		proofs = append(proofs, p)
	}
	if PartText(proofs...) != text {
		return nil, errors.New("it is not written as one is")
	}
	return proofs, nil
}

// Names of members.
const (
	readmeName   = "README.txt"
	manifestName = "manifest.json"
	eventName    = "export.ndjson"
	proofName    = "export.proof.txt"
	keysName     = "keys.txt"
	policyName   = "policy.txt"
	sumsName     = "SHA256SUMS"
)

func checkpointName(stream string) string { return strings.ToLower(stream) + "/checkpoint.txt" }
func consistencyName(stream string) string {
	return strings.ToLower(stream) + "/consistency.txt"
}
func partsName(stream string) string { return strings.ToLower(stream) + "/parts.txt" }
func partName(stream string) string  { return strings.ToLower(stream) + "/part.txt" }
func leavesName(stream string, n int) string {
	return fmt.Sprintf("%s/%06d.leaves.txt", strings.ToLower(stream), n)
}
func eventsName(stream string, n int) string {
	return fmt.Sprintf("%s/%06d.events.ndjson", strings.ToLower(stream), n)
}

const (
	chunkBytes  = 8 << 20  // of the leaves of a pair, and of its events
	memberBytes = 16 << 20 // no member is longer; no event is either
	unpacked    = 300      // a bundle unpacks to at most so many times its size, and a member
)
