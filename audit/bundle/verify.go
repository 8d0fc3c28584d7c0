package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

// Options say whom to believe.
type Options struct {
	Keys   []note.Verifier    // the log's; at least one
	Policy []byte             // whose signatures count beside the log's, see [audit.ParsePolicy]; nil: nobody's
	Found  map[tlog.Hash]bool // hashes of leaves to look for: those that the bundle has become true
	Scope  *Scope             // that the bundle must be about; nil: any, and the report says which

	// Leaf is given each leaf in order, before anything is proven; its error ends the
	// check. nil: nobody asks.
	Leaf func(*audit.Leaf) error
}

// Report is the outcome of a check.
type Report struct {
	Pass   bool   `json:"pass"`
	Reason string `json:"reason,omitempty"` // of a failure
	// Where the first fault is, as far as it has a place.
	Member string       `json:"member,omitempty"`
	Place  *audit.Place `json:"place,omitempty"`

	// What was checked; of a failure, as far as it went. Nothing of it is proven
	// unless Pass.
	Log      string         `json:"log,omitempty"`
	Scope    Scope          `json:"scope"`
	From     Moment         `json:"from"`
	To       Moment         `json:"to"`
	Exported *Exported      `json:"exported,omitempty"`
	Streams  []StreamReport `json:"streams,omitempty"`
	Notes    []string       `json:"notes,omitempty"` // what somebody who reads the result should know
}

// StreamReport is what was checked of one stream.
type StreamReport struct {
	Stream string `json:"stream"`
	Size   int64  `json:"size"` // events in its tree
	Root   string `json:"root"`
	Leaves int64  `json:"leaves"`          // of the scope
	Events int64  `json:"events"`          // of them within the times, whose bytes are here
	Last   uint64 `json:"last"`            // sequence of the last event in its tree; 0: none
	Later  int64  `json:"later,omitempty"` // events that the log had beyond this tree when it was exported, and that are not here

	Witnesses []string `json:"witnesses,omitempty"` // of the policy, that have signed its checkpoint
}

// fault is what is wrong with a bundle, and where.
type fault struct {
	member string
	place  *audit.Place
	reason string
}

func (f *fault) Error() string { return f.reason }

// Verify checks a bundle as it is read, in bounded memory. It fails only where the
// reader or the options do; a bundle that is not right is a report.
func Verify(r io.Reader, o Options) (Report, error) {
	v := &verifier{o: o}
	if len(o.Keys) == 0 {
		return Report{}, errors.New("a bundle is checked with a key of the log")
	}
	if o.Policy != nil {
		p, err := audit.ParsePolicy(o.Policy)
		if err != nil {
			return Report{}, err
		}
		v.policy = p
	}
	stop := v.start(r)
	err := v.run()
	stop()
	if f, ok := errors.AsType[*fault](err); ok {
		v.report.Reason, v.report.Member, v.report.Place, err = f.reason, f.member, f.place, nil
	} else if w, ok := errors.AsType[*wrong](err); ok {
		v.report.Reason, err = w.reason, nil
	} else if err == nil {
		v.report.Pass = true
	}
	return v.report, err
}

// verifier checks one bundle.
//
// A goroutine reads the archive. Workers unpack members and check pairs of leaves
// and events, which is nearly all of the work; run takes what they found in order.
type verifier struct {
	o        Options
	policy   *audit.Policy
	report   Report
	manifest *Manifest
	keys     []note.Verifier
	sums     []byte
	named    []byte // keys.txt: words of whoever exported

	ordered chan chan entry // in the order of the archive
	jobs    chan func()
	done    chan struct{}
	readErr error // of the archive, once ordered is closed

	exported  [sha256.Size]byte // digest of the export's own event
	confirmed bool              // it stands where the manifest says
}

func (v *verifier) start(r io.Reader) (stop func()) {
	workers := max(2, runtime.GOMAXPROCS(0))
	v.ordered = make(chan chan entry, workers+1)
	v.jobs = make(chan func())
	v.done = make(chan struct{})
	for range workers {
		go func() {
			for {
				select {
				case job := <-v.jobs:
					job()
				case <-v.done:
					return
				}
			}
		}()
	}
	go func() {
		v.readErr = members(r, func(unpack func() entry) bool {
			result := make(chan entry, 1)
			select {
			case v.ordered <- result:
			case <-v.done:
				return false
			}
			return v.give(func() { result <- unpack() })
		})
		close(v.ordered)
	}()
	return func() {
		close(v.done)
		for range v.ordered { // until the reader has ended
		}
	}
}

func (v *verifier) give(job func()) bool {
	select {
	case v.jobs <- job:
		return true
	case <-v.done:
		return false
	}
}

// next is the next member, which MUST be the one of this name.
func (v *verifier) next(name string) ([]byte, error) {
	e, ok, err := v.take()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &fault{name, nil, "the archive ends before the member " + name}
	}
	if e.name != name {
		return nil, &fault{name, nil, fmt.Sprintf("the member %.60q stands where %s should: one is missing, doubled, renamed or out of order", e.name, name)}
	}
	if name != sumsName {
		v.sums = fmt.Appendf(v.sums, "%x  %s\n", e.sum, name)
	}
	return e.data, nil
}

func (v *verifier) take() (entry, bool, error) {
	result, ok := <-v.ordered
	if !ok {
		return entry{}, false, v.readErr
	}
	e := <-result
	return e, true, e.err
}

func (v *verifier) run() error {
	if _, err := v.next(readmeName); err != nil {
		return err
	}
	if err := v.head(); err != nil {
		return err
	}
	for i := range v.manifest.Streams {
		if err := v.stream(&v.manifest.Streams[i]); err != nil {
			return err
		}
	}
	if !v.confirmed {
		return &fault{eventName, &audit.Place{Stream: events.Ops, Sequence: v.manifest.Exported.Sequence}, "the event of this export does not stand in the log"}
	}
	want := v.sums
	got, err := v.next(sumsName)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return &fault{sumsName, nil, differs(string(got), string(want))}
	}
	if e, more, err := v.take(); err != nil {
		return err
	} else if more {
		return &fault{e.name, nil, fmt.Sprintf("the member %.60q follows the last one", e.name)}
	}
	return nil
}

// differs says which member's sum is not the one that is written.
func differs(got, want string) string {
	for line := range strings.Lines(want) {
		first, rest, _ := strings.Cut(got, "\n")
		if got = rest; first+"\n" != line {
			return "the SHA-256 of " + strings.TrimSpace(line[2*sha256.Size:]) + " is not the one that is written"
		}
	}
	return "it has more lines than there are members"
}

// head reads what stands before the streams.
func (v *verifier) head() error {
	raw, err := v.next(manifestName)
	if err != nil {
		return err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return &fault{manifestName, nil, "the manifest is not one of a bundle: " + err.Error()}
	}
	v.manifest = m
	r := &v.report
	r.Log, r.Scope, r.From, r.To, r.Exported = m.Log, m.Scope, m.From, m.To, &m.Exported
	if v.o.Scope != nil && *v.o.Scope != m.Scope {
		return &fault{manifestName, nil, "it is an export of something else than what was to be checked"}
	}
	seen := map[uint32]bool{}
	names := map[string]bool{}
	for _, k := range v.o.Keys {
		names[k.Name()] = true
		if k.Name() == m.Log && !seen[k.KeyHash()] {
			seen[k.KeyHash()] = true
			v.keys = append(v.keys, k)
		}
	}
	if len(v.keys) == 0 {
		return &fault{manifestName, nil, fmt.Sprintf("it says that it is of the log %.80q, and no key of that name was given", m.Log)}
	}
	body, err := v.next(eventName)
	if err != nil {
		return err
	}
	if err := v.event(body); err != nil {
		return &fault{eventName, &audit.Place{Stream: events.Ops, Sequence: m.Exported.Sequence}, err.Error()}
	}
	if m.short() {
		if err := v.proof(); err != nil {
			return err
		}
	}
	if v.named, err = v.next(keysName); err != nil {
		return err
	}
	policy, err := v.next(policyName)
	if err == nil && v.policy == nil && bytes.Contains(policy, []byte("\nwitness ")) {
		r.Notes = append(r.Notes, "The log names witnesses in policy.txt; they were not asked for. --policy does.")
	}
	return err
}

// event checks that the manifest says what the export's own event does.
func (v *verifier) event(body []byte) error {
	body, ok := bytes.CutSuffix(body, []byte("\n"))
	if !ok || bytes.IndexByte(body, '\n') >= 0 {
		return errors.New("it is not one line")
	}
	var e envelope
	if err := readBody(body, &e); err != nil {
		return err
	}
	var read struct {
		Type  string           `json:"type"`
		Time  events.Time      `json:"time"`
		Actor events.Actor     `json:"actor"`
		Data  events.AuditRead `json:"data"`
	}
	if err := json.Unmarshal(body, &read); err != nil {
		return err
	}
	m := v.manifest
	switch {
	case read.Type != "audit.read" || read.Data.What != What:
		return errors.New("it is not the event of an export")
	case read.Time != m.Exported.Time || read.Actor != m.Exported.Actor:
		return errors.New("the manifest says another time or another actor than the event of the export")
	case !maps.Equal(read.Data.Filter, m.Filter()):
		return errors.New("the manifest says another scope, other times or other trees than the event of the export: one of them was changed, or a checkpoint is not of that export")
	}
	v.exported = sha256.Sum256(body)
	return nil
}

// proof reads where the export's own event stands, whose tree of OPS is not here.
func (v *verifier) proof() error {
	text, err := v.next(proofName)
	if err != nil {
		return err
	}
	bad := func(reason string) error {
		return &fault{proofName, &audit.Place{Stream: events.Ops, Sequence: v.manifest.Exported.Sequence}, reason}
	}
	var p proof.TLogProof
	if err := p.Unmarshal(text); err != nil || !bytes.Equal(p.Marshal(), text) {
		return bad("it is not a proof, or not written as one is")
	}
	c, err := v.checkpoint(p.Checkpoint, audit.Origin(v.manifest.Log, events.Ops))
	if err != nil {
		return bad(err.Error())
	}
	l, err := audit.ParseLeaf(p.ExtraData)
	if err != nil || l.Digest != v.exported || l.Place != (audit.Place{Stream: events.Ops, Sequence: v.manifest.Exported.Sequence}) {
		return bad("it is the proof of another event than the one in export.ndjson")
	}
	hashes := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		hashes[i] = h
	}
	if c.Of != nil || p.Index > math.MaxInt64 || tlog.CheckRecord(hashes, c.Size, c.Root, int64(p.Index), l.Hash()) != nil {
		return bad("the event of this export is not at its place in the signed tree")
	}
	v.confirmed = true
	v.report.Notes = append(v.report.Notes, "It ends with what witnesses had signed when it was exported: later events are not in it. That it was exported, by whom, stands in a tree that the log alone has signed.")
	return nil
}

// stream checks one stream.
func (v *verifier) stream(s *Stream) error {
	v.report.Streams = append(v.report.Streams, StreamReport{Stream: s.Stream, Size: s.Size, Root: s.Root, Leaves: s.Leaves, Last: s.Last, Later: s.Later})
	told := &v.report.Streams[len(v.report.Streams)-1]
	tree, err := s.Tree()
	if err != nil {
		return err
	}
	signed, err := v.next(checkpointName(s.Stream))
	if err != nil {
		return err
	}
	scope, isPart := v.manifest.Scope.Part()
	c, err := v.checkpoint(signed, audit.Origin(v.manifest.Log, s.Stream))
	switch {
	case err != nil:
	case c.Of != nil || c.Size == tree.Size && c.Root != tree.Root || c.Size < tree.Size:
		err = fmt.Errorf("it is of a tree of size %d, not of the export's of size %d, or of another root: an older, a newer or another log's", c.Size, tree.Size)
	case isPart || c.Size != tree.Size:
		if err := v.consistent(s.Stream, tree, c.Tree); err != nil {
			return err
		}
	}
	if err != nil {
		return &fault{checkpointName(s.Stream), nil, err.Error()}
	}
	if v.policy != nil {
		if !v.policy.Satisfied(signed) {
			return &fault{checkpointName(s.Stream), nil, v.policy.Lacking(signed)}
		}
		told.Witnesses, _ = v.policy.Signers(signed)
	}
	var part audit.Part
	if isPart {
		if part, err = v.part(s, tree, scope.ID()); err != nil {
			return err
		}
		if part.Count != s.Pruned+s.Leaves {
			return &fault{partName(s.Stream), nil, fmt.Sprintf("the log has %d events of the part, and the manifest says %d", part.Count, s.Pruned+s.Leaves)}
		}
	} else if s.Pruned+s.Leaves != s.Size {
		return &fault{manifestName, nil, fmt.Sprintf("the tree of %s has %d events, and the manifest says %d", s.Stream, s.Size, s.Pruned+s.Leaves)}
	}
	if s.First > 1 {
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s was pruned: when this was exported it began at sequence %d, and %d events before were gone.", s.Stream, s.First, s.Pruned))
	}
	sum, err := begun(s, isPart)
	if err != nil {
		return &fault{manifestName, nil, "the state of what was pruned is none"}
	}
	first := true
	err = v.pairs(s, func(c *pair) error {
		if c.err == nil && !first {
			if reason := follows(s.Stream, isPart, &sum.last, c.first); reason != "" {
				c.err = &fault{c.member, &c.first, reason}
			}
		}
		if c.err == nil && first && (c.first.Sequence < s.First || !isPart && c.first != (audit.Place{Stream: s.Stream, Sequence: s.First})) {
			c.err = &fault{c.member, &c.first, fmt.Sprintf("it is the first event here, and the stream begins with %d 0", s.First)}
		}
		if c.err != nil {
			return c.err
		}
		first = false
		sum.add(c)
		if v.o.Found != nil {
			for _, h := range c.hashes {
				if _, wanted := v.o.Found[h]; wanted {
					v.o.Found[h] = true
				}
			}
		}
		for i := range c.leaves {
			if err := v.o.Leaf(&c.leaves[i]); err != nil {
				return err
			}
		}
		told.Events += c.bodies
		v.confirmed = v.confirmed || c.confirmed
		return nil
	}, s.Leaves)
	if err != nil {
		return err
	}
	switch {
	case isPart && sum.chain.Chain != part.Chain:
		return &fault{partName(s.Stream), nil, fmt.Sprintf("the events of %s are not those whose chain is signed: one was changed, left out, added or moved", s.Stream)}
	case !isPart && sum.root() != tree.Root:
		return &fault{checkpointName(s.Stream), nil, fmt.Sprintf("the events of %s do not add up to the signed root: one was changed, left out, added or moved", s.Stream)}
	case !first && (sum.last.Sequence > s.Last || !isPart && sum.last.Sequence != s.Last):
		return &fault{manifestName, &sum.last, fmt.Sprintf("it is the last event, and the export's own event says that the tree ends at %d", s.Last)}
	case s.Size == 0 && s.Last != 0 || s.Last != 0 && s.First > s.Last+1:
		return &fault{manifestName, nil, fmt.Sprintf("the first and the last event of %s make no sense", s.Stream)}
	}
	return nil
}

// newer is what to add where a given key may be one that the log had before.
func (v *verifier) newer() string {
	first, _, _ := strings.Cut(string(v.named), "\n")
	newest, err := note.NewVerifier(first)
	if err != nil {
		return ""
	}
	given := func(k note.Verifier) bool { return k.Name() == newest.Name() && k.KeyHash() == newest.KeyHash() }
	for line := range strings.Lines(string(v.named)) {
		old, err := note.NewVerifier(strings.TrimSuffix(line, "\n"))
		if err == nil && !slices.ContainsFunc(v.keys, given) && slices.ContainsFunc(v.keys, func(k note.Verifier) bool { return k.KeyHash() == old.KeyHash() }) {
			return fmt.Sprintf("; keys.txt, which proves nothing, says that the log has the newer key %s+%08x: get it from somebody you trust", newest.Name(), newest.KeyHash())
		}
	}
	return ""
}

// checkpoint reads a signed tree of an origin.
func (v *verifier) checkpoint(signed []byte, origin string) (audit.Checkpoint, error) {
	c, _, err := audit.Open(signed, origin, v.keys...)
	if _, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		return c, errors.New("none of the keys that were given has signed it" + v.newer())
	}
	if _, ok := errors.AsType[*note.InvalidSignatureError](err); ok {
		return c, errors.New("its signature does not fit: it was changed, or signed by somebody else")
	}
	if err != nil {
		return c, fmt.Errorf("it is not a signed tree: %w", err)
	}
	return c, oneWay(signed)
}

// oneWay refuses a note that is not the one way to write it: base64 has bits that mean
// nothing, and a signature may stand twice without making a difference.
func oneWay(signed []byte) error {
	_, signatures, _ := bytes.Cut(signed, []byte("\n\n"))
	seen := map[string]bool{}
	for line := range strings.Lines(string(signatures)) {
		text := strings.TrimSuffix(line[strings.LastIndexByte(line, ' ')+1:], "\n")
		if _, err := base64.StdEncoding.Strict().DecodeString(text); err != nil || seen[line] {
			return errors.New("one of its signatures stands twice, or is not written as one is")
		}
		seen[line] = true
	}
	return nil
}

// consistent checks that the signed tree contains the export's.
func (v *verifier) consistent(stream string, export, signed audit.Tree) error {
	text, err := v.next(consistencyName(stream))
	if err != nil {
		return err
	}
	p, err := parseConsistencyText(string(text))
	if err != nil {
		return &fault{consistencyName(stream), nil, "it is not a proof of consistency: " + err.Error()}
	}
	if export.Size == signed.Size || export.Size == 0 {
		empty := summary{}
		if len(p) == 0 && (export == signed || export == audit.Tree{Root: empty.root()}) {
			return nil
		}
	} else if tlog.CheckTree(p, signed.Size, signed.Root, export.Size, export.Root) == nil {
		return nil
	}
	return &fault{consistencyName(stream), nil, "the signed tree does not contain the export's: it is another log's, or one of them was changed"}
}

// part reads how the scope stands in the tree of parts; a part of no events is none.
func (v *verifier) part(s *Stream, tree audit.Tree, id audit.ScopeID) (audit.Part, error) {
	signed, err := v.next(partsName(s.Stream))
	if err != nil {
		return audit.Part{}, err
	}
	text, err := v.next(partName(s.Stream))
	if err != nil {
		return audit.Part{}, err
	}
	parts, err := v.checkpoint(signed, audit.PartsOrigin(v.manifest.Log, s.Stream))
	if err == nil && (parts.Of == nil || *parts.Of != tree) {
		err = errors.New("it is a tree of parts of another tree than the export's")
	}
	if err != nil {
		return audit.Part{}, &fault{partsName(s.Stream), nil, err.Error()}
	}
	bad := func(reason string) (audit.Part, error) {
		return audit.Part{}, &fault{partName(s.Stream), nil, reason}
	}
	proofs, err := parsePartText(string(text))
	if err != nil {
		return bad("it is not the proof of a part: " + err.Error())
	}
	for _, p := range proofs {
		if tlog.CheckRecord(p.Hashes, parts.Size, parts.Root, p.Index, p.Part.Hash()) != nil {
			return bad("a part is not at its place in the signed tree of parts")
		}
	}
	if len(proofs) == 1 && proofs[0].Part.Scope == id {
		return proofs[0].Part, nil
	}
	// There is none: it would stand before the first, after the last, or between two.
	none := audit.Part{Scope: id}
	before := func(p *PartProof) bool { return bytes.Compare(p.Part.Scope[:], id[:]) < 0 }
	after := func(p *PartProof) bool { return bytes.Compare(p.Part.Scope[:], id[:]) > 0 }
	switch len(proofs) {
	case 0:
		if parts.Size == 0 {
			return none, nil
		}
	case 1:
		if p := &proofs[0]; p.Index == 0 && after(p) || p.Index == parts.Size-1 && before(p) {
			return none, nil
		}
	case 2:
		if p, q := &proofs[0], &proofs[1]; q.Index == p.Index+1 && before(p) && after(q) {
			return none, nil
		}
	}
	return bad("it shows neither the part of this scope nor that there is none: it is the proof of another")
}

// pair is what was found in a pair of leaves and events.
type pair struct {
	member      string // of the leaves
	hashes      []tlog.Hash
	leaves      []audit.Leaf // where somebody asks for them
	first, last audit.Place
	bodies      int64
	confirmed   bool
	err         error // a *fault
}

// pairs hands on the pairs of a stream in order, until there are as many leaves as
// wanted.
func (v *verifier) pairs(s *Stream, take func(*pair) error, wanted int64) error {
	var waiting []chan *pair
	first := func() error {
		c := <-waiting[0]
		waiting = waiting[1:]
		return take(c)
	}
	for n := 1; wanted > 0; n++ {
		leaves, err := v.next(leavesName(s.Stream, n))
		if f, ok := errors.AsType[*fault](err); ok {
			f.reason = fmt.Sprintf("%d events of %s are missing: %s", wanted, s.Stream, f.reason)
		}
		if err == nil {
			var bodies []byte
			bodies, err = v.next(eventsName(s.Stream, n))
			lines := int64(bytes.Count(leaves, []byte("\n")))
			if err == nil && (lines == 0 || lines > wanted) {
				err = &fault{leavesName(s.Stream, n), nil, fmt.Sprintf("it has %d lines where 1 to %d should be", lines, wanted)}
			}
			wanted -= lines
			if err == nil {
				result := make(chan *pair, 1)
				v.give(func() { result <- v.check(s.Stream, n, leaves, bodies) })
				waiting = append(waiting, result)
			}
		}
		// What stands before it comes first.
		for err != nil && len(waiting) > 0 {
			if before := first(); before != nil {
				return before
			}
		}
		if err != nil {
			return err
		}
		if len(waiting) > runtime.GOMAXPROCS(0) {
			if err := first(); err != nil {
				return err
			}
		}
	}
	for len(waiting) > 0 {
		if err := first(); err != nil {
			return err
		}
	}
	return nil
}

// check checks a pair by itself.
func (v *verifier) check(stream string, n int, leaves, bodies []byte) *pair {
	c := &pair{member: leavesName(stream, n), hashes: make([]tlog.Hash, 0, bytes.Count(leaves, []byte("\n")))}
	scope, isPart := v.manifest.Scope.Part()
	at := 0 // line of the leaves
	bad := func(l *audit.Leaf, format string, args ...any) *pair {
		c.err = &fault{c.member, nil, fmt.Sprintf("line %d: ", at) + fmt.Sprintf(format, args...)}
		if l != nil {
			c.err = &fault{c.member, &l.Place, fmt.Sprintf(format, args...)}
		}
		return c
	}
	for len(leaves) > 0 {
		at++
		line, rest, ok := bytes.Cut(leaves, []byte("\n"))
		if leaves = rest; !ok {
			return bad(nil, "it does not end with a newline")
		}
		l, err := ParseLine(stream, line)
		if err != nil {
			return bad(nil, "%v", err)
		}
		if at == 1 {
			c.first = l.Place
			if stream != events.Usage && l.Line != 0 {
				return bad(&l, "only pages of USAGE have lines")
			}
		} else if reason := follows(stream, isPart, &c.last, l.Place); reason != "" {
			return bad(&l, "%s", reason)
		}
		c.last = l.Place
		if isPart && !scope.Holds(&l) {
			return bad(&l, "it is not about what was exported")
		}
		own := stream == events.Ops && l.Sequence == v.manifest.Exported.Sequence
		if own {
			if l.Digest != v.exported {
				return bad(&l, "it is another event than the one in export.ndjson")
			}
			c.confirmed = true
		}
		if v.manifest.Within(l.Time) {
			body, rest, ok := bytes.Cut(bodies, []byte("\n"))
			if bodies = rest; !ok {
				return bad(&l, "its body is missing")
			}
			if sha256.Sum256(body) != l.Digest {
				return bad(&l, "the SHA-256 of its body is not the one of its leaf: it was changed, left out, doubled or moved")
			}
			var e envelope
			if err := readBody(body, &e); err != nil {
				return bad(&l, "its body can be read in more than one way: %v", err)
			}
			if !e.fits(&l) {
				return bad(&l, "its body says another time, keyspace, owner, key or subject than its leaf")
			}
			c.bodies++
		}
		c.hashes = append(c.hashes, l.Hash())
		if v.o.Leaf != nil {
			c.leaves = append(c.leaves, l)
		}
	}
	if len(bodies) > 0 {
		c.err = &fault{eventsName(stream, n), &c.last, "more events follow than there are leaves within the times"}
	}
	return c
}

// fits says whether a body is about what its leaf says.
func (e *envelope) fits(l *audit.Leaf) bool {
	if string(e.keyspace) != l.Keyspace || string(e.owner) != l.Owner || string(e.key) != l.Key || string(e.time) != l.Time.String() {
		return false
	}
	token := func(s string) string { return cmp.Or(s, events.None) }
	switch l.Stream {
	case events.Ledger:
		return l.Subject == events.Subject(l.Keyspace, l.Owner, l.Key)
	case events.Ops:
		return l.Subject == "ops."+token(l.Keyspace)+"."+token(l.Owner)+"."+token(l.Key)
	case events.Feed:
		return l.Subject == "feed."+string(e.kind)+"."+l.Keyspace+"."+token(l.Owner)+"."+token(l.Key)
	}
	return strings.HasPrefix(l.Subject, "usage."+token(l.Keyspace)+".")
}

// follows says what is wrong with a place after another; empty: nothing.
func follows(stream string, part bool, before *audit.Place, next audit.Place) string {
	later := next.Sequence > before.Sequence || next.Sequence == before.Sequence && next.Line > before.Line
	switch {
	case next == *before:
		return "it stands twice"
	case !later:
		return fmt.Sprintf("it stands behind %d %d: the events are out of order, or one is doubled", before.Sequence, before.Line)
	case stream != events.Usage && next.Line != 0:
		return "only pages of USAGE have lines"
	case part, next.Sequence == before.Sequence && next.Line == before.Line+1, next.Sequence == before.Sequence+1 && next.Line == 0:
		return ""
	}
	return fmt.Sprintf("it follows %d %d: what stands between them is missing", before.Sequence, before.Line)
}

// summary adds leaves up: to a root, or to the chain of a part.
type summary struct {
	part  bool
	count int64
	last  audit.Place
	chain audit.Part
	// peaks are the roots of the whole subtrees so far, the largest first.
	peaks []tlog.Hash
}

// begun is the sum over what was pruned.
func begun(s *Stream, part bool) (*summary, error) {
	sum := &summary{part: part, count: s.Pruned}
	state, err := s.pruned()
	if part && len(state) == 1 {
		sum.chain = audit.Part{Count: s.Pruned, Chain: state[0]}
	} else {
		sum.peaks = state
	}
	return sum, err
}

func (s *summary) add(c *pair) {
	for _, h := range c.hashes {
		if s.count++; s.part {
			s.chain.Add(h)
			continue
		}
		for n := s.count; n&1 == 0; n >>= 1 {
			h = tlog.NodeHash(s.peaks[len(s.peaks)-1], h)
			s.peaks = s.peaks[:len(s.peaks)-1]
		}
		s.peaks = append(s.peaks, h)
	}
	s.last = c.last
}

func (s *summary) root() tlog.Hash {
	if s.count == 0 {
		return sha256.Sum256(nil)
	}
	h := s.peaks[len(s.peaks)-1]
	for i := len(s.peaks) - 2; i >= 0; i-- {
		h = tlog.NodeHash(s.peaks[i], h)
	}
	return h
}
