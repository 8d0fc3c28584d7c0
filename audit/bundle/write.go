package bundle

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keyledger/keyledger/audit"
)

//go:embed readme.txt
var readme []byte

// Writer writes a bundle. The same head and leaves give the same bytes.
type Writer struct {
	w      io.Writer
	framer framer
	head   Head
	at     time.Time
	sums   []byte
	err    error // the first; nothing is written after it

	stream         int // whose leaves are written
	pair           int // of the stream, counted from 1
	left           int64
	leaves, events []byte // of the pair that grows
}

// NewWriter begins a bundle. The caller then gives every leaf of the manifest's
// streams, in order, and closes it.
func NewWriter(w io.Writer, head Head) (*Writer, error) {
	manifest, err := head.Manifest.encode()
	if err != nil {
		return nil, err
	}
	if _, err := parseManifest(manifest); err != nil {
		return nil, fmt.Errorf("manifest of a bundle: %w", err)
	}
	if len(head.Proofs) != len(head.Manifest.Streams) {
		return nil, errors.New("a bundle has the proofs of every stream")
	}
	b := &Writer{w: w, head: head, at: head.Manifest.Exported.Time.Time().Truncate(time.Second), stream: -1}
	var keys []byte
	for _, k := range head.Keys {
		keys = append(append(keys, k...), '\n')
	}
	b.member(readmeName, readme)
	b.member(manifestName, manifest)
	b.member(eventName, []byte(head.Event+"\n"))
	if head.Manifest.short() {
		b.member(proofName, []byte(head.Proof))
	}
	b.member(keysName, keys)
	b.member(policyName, []byte(head.Policy))
	b.next()
	return b, b.err
}

func (b *Writer) member(name string, data []byte) {
	if b.err != nil {
		return
	}
	header, err := tarHead(name, int64(len(data)), b.at)
	if err == nil && len(data) > memberBytes {
		err = fmt.Errorf("member %s of a bundle would be %d bytes long; the most is %d", name, len(data), memberBytes)
	}
	if err != nil {
		b.err = err
		return
	}
	sum := sha256.Sum256(data)
	end := zeros[:0]
	if name == sumsName {
		end = zeros[:]
	} else {
		b.sums = fmt.Appendf(b.sums, "%x  %s\n", sum, name)
	}
	b.err = b.framer.write(b.w, header, data, padding(len(data)), end)
}

// next begins the next stream that has leaves, or none.
func (b *Writer) next() {
	for b.left == 0 {
		if b.stream++; b.stream >= len(b.head.Manifest.Streams) {
			return
		}
		s, p := &b.head.Manifest.Streams[b.stream], &b.head.Proofs[b.stream]
		b.member(checkpointName(s.Stream), []byte(p.Checkpoint))
		_, part := b.head.Manifest.Scope.Part()
		if part || sizeOf(p.Checkpoint) != s.Size {
			b.member(consistencyName(s.Stream), []byte(p.Consistency))
		}
		if part {
			b.member(partsName(s.Stream), []byte(p.Parts))
			b.member(partName(s.Stream), []byte(p.Part))
		}
		b.left, b.pair = s.Leaves, 0
	}
}

// sizeOf is what a checkpoint says of its size, or -1.
func sizeOf(checkpoint string) int64 {
	text, _, _ := strings.Cut(checkpoint, "\n\n")
	c, err := audit.ParseCheckpoint(text + "\n")
	if err != nil {
		return -1
	}
	return c.Size
}

// Stream is the one whose leaves are wanted now; empty: all are written.
func (b *Writer) Stream() string {
	if b.stream >= len(b.head.Manifest.Streams) {
		return ""
	}
	return b.head.Manifest.Streams[b.stream].Stream
}

// Left is how many leaves of the stream are still wanted.
func (b *Writer) Left() int64 { return b.left }

// Leaf writes the next leaf, and its body where its time is within the manifest's.
func (b *Writer) Leaf(l *audit.Leaf, body []byte) error {
	if b.err != nil {
		return b.err
	}
	if l.Stream != b.Stream() {
		return fmt.Errorf("a leaf of %s where one of %q was wanted", l.Stream, b.Stream())
	}
	if bytes.IndexByte(body, '\n') >= 0 {
		return fmt.Errorf("the body at %s is not one line: something else than keyledger wrote it", l.Place)
	}
	within := b.head.Manifest.Within(l.Time)
	if within && sha256.Sum256(body) != l.Digest {
		return fmt.Errorf("the body at %s is not the one of its leaf", l.Place)
	}
	before := len(b.leaves)
	b.leaves = AppendLine(b.leaves, l)
	grown := 0
	if within {
		grown = len(body) + 1
	}
	if before > 0 && (len(b.leaves) > chunkBytes || len(b.events)+grown > chunkBytes) {
		line := bytes.Clone(b.leaves[before:])
		b.leaves = b.leaves[:before]
		b.flush()
		b.leaves = append(b.leaves, line...)
	}
	if within {
		b.events = append(append(b.events, body...), '\n')
	}
	if b.left--; b.left == 0 {
		b.flush()
		b.next()
	}
	return b.err
}

func (b *Writer) flush() {
	b.pair++
	b.member(leavesName(b.Stream(), b.pair), b.leaves)
	b.member(eventsName(b.Stream(), b.pair), b.events)
	b.leaves, b.events = b.leaves[:0], b.events[:0]
}

// Close ends the bundle. It fails where leaves are missing.
func (b *Writer) Close() error {
	if b.err != nil {
		return b.err
	}
	if s := b.Stream(); s != "" {
		return fmt.Errorf("%d leaves of %s are missing in the bundle", b.left, s)
	}
	b.member(sumsName, b.sums)
	return b.err
}
