// Package audit says what the audit log proves and how: what of an event stands
// in the tree, how its parts are counted, and what a checkpoint says. It does no
// I/O and knows no service: a verifier on another machine uses nothing else.
//
// What it promises. Each stream has one tree by RFC 6962, whose leaves are its
// events in order, a page of USAGE line by line. A [Leaf] commits to the stored
// bytes of one event, its subject and its place, and shows nothing else, so that
// leaves may be published and a proof for one event says nothing about what its
// neighbours contain. A tree is as large as a checkpoint says, which is signed
// with Ed25519 (C2SP tlog-checkpoint). A [Part] is the events of one key, one owner
// or one keyspace: how many there are and a hash over all of them, the last
// included, so that an export of a part can be shown to leave nothing out.
//
// How it can disappoint. A signature says that the log stood by a tree, not that
// it showed everybody the same one: that is what witnesses are for. What was never
// recorded is in no tree.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/events"
)

// Streams are those that have a tree. DLQ has none: what stands there is copies of
// others' events that still wait.
var Streams = []string{events.Ledger, events.Usage, events.Ops, events.Feed}

// Place is where an event stands: line counts from 0 in its message.
type Place struct {
	Stream   string
	Sequence uint64
	Line     int
}

func (p Place) String() string { return fmt.Sprintf("%s %d %d", p.Stream, p.Sequence, p.Line) }

// Leaf is what the tree holds of one event.
type Leaf struct {
	Place
	Subject              string
	Keyspace, Owner, Key string // whom it is about; empty: none
	Time                 events.Time
	Digest               [sha256.Size]byte // SHA-256 of the stored bytes
}

// LeafOf is the leaf of a record.
func LeafOf(r *events.Record) Leaf {
	return Leaf{
		Place: Place{r.Stream, r.Sequence, r.Line}, Subject: r.Subject,
		Keyspace: r.Event.Keyspace, Owner: r.Event.Owner, Key: r.Event.Key,
		Time: r.Event.Time, Digest: sha256.Sum256(r.Body),
	}
}

// leafKind is the first line of every leaf. Another form would be another kind.
const leafKind = "keyledger event v1\n"

// Append writes the leaf, six lines of text:
//
//	keyledger event v1
//	<stream> <sequence> <line>
//	<subject>
//	<keyspace> <owner> <key>
//	<milliseconds since 1970>
//	<SHA-256 of the stored bytes, hexadecimal>
//
// where _ stands for no keyspace, owner or key.
func (l *Leaf) Append(b []byte) []byte {
	b = append(append(b, leafKind...), l.Stream...)
	b = strconv.AppendUint(append(b, ' '), l.Sequence, 10)
	b = strconv.AppendInt(append(b, ' '), int64(l.Line), 10)
	b = append(append(append(b, '\n'), l.Subject...), '\n')
	b = append(append(b, orNone(l.Keyspace)...), ' ')
	b = append(append(b, orNone(l.Owner)...), ' ')
	b = append(append(b, orNone(l.Key)...), '\n')
	b = append(strconv.AppendInt(b, int64(l.Time), 10), '\n')
	return append(hex.AppendEncode(b, l.Digest[:]), '\n')
}

func orNone(s string) string {
	if s == "" {
		return "_"
	}
	return s
}

// Hash is the leaf's hash in the tree.
func (l *Leaf) Hash() tlog.Hash {
	var room [512]byte
	return tlog.RecordHash(l.Append(room[:0]))
}

// ErrNoLeaf says that a text is not a leaf.
var ErrNoLeaf = errors.New("not a leaf of this log")

// ParseLeaf reads what [Leaf.Append] wrote, and nothing else: whatever it takes is
// written back the same. It fails with [ErrNoLeaf].
func ParseLeaf(b []byte) (Leaf, error) {
	var l Leaf
	lines := strings.Split(string(b), "\n")
	if len(lines) != 7 || lines[0]+"\n" != leafKind {
		return l, fmt.Errorf("%w: it has not the six lines of one", ErrNoLeaf)
	}
	place, about := strings.Split(lines[1], " "), strings.Split(lines[3], " ")
	if len(place) != 3 || len(about) != 3 {
		return l, fmt.Errorf("%w: its place and whom it is about are three words each", ErrNoLeaf)
	}
	var errs [4]error
	var at int64
	l.Stream, l.Subject = place[0], lines[2]
	l.Sequence, errs[0] = strconv.ParseUint(place[1], 10, 64)
	l.Line, errs[1] = strconv.Atoi(place[2])
	at, errs[2] = strconv.ParseInt(lines[4], 10, 64)
	l.Time = events.Time(at)
	for i, to := range []*string{&l.Keyspace, &l.Owner, &l.Key} {
		if about[i] != "_" {
			*to = about[i]
		}
	}
	if n, err := hex.Decode(l.Digest[:], []byte(lines[5])[:min(len(lines[5]), 2*sha256.Size)]); err != nil || n != sha256.Size {
		errs[3] = errors.New("its digest is not 64 hexadecimal digits")
	}
	if err := errors.Join(errs[:]...); err != nil {
		return Leaf{}, fmt.Errorf("%w: %w", ErrNoLeaf, err)
	}
	if !bytes.Equal(l.Append(nil), b) {
		return Leaf{}, fmt.Errorf("%w: it is not written as one is", ErrNoLeaf)
	}
	return l, nil
}
