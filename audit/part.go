package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Scope names a part of a stream: the events of one key, of one owner with all its
// keys, or of a keyspace with all its owners. Empty fields at the end are wider.
type Scope struct{ Keyspace, Owner, Key string }

func (s Scope) String() string {
	return strings.Join([]string{orNone(s.Keyspace), orNone(s.Owner), orNone(s.Key)}, " ")
}

// Holds says whether a leaf is about the scope.
func (s Scope) Holds(l *Leaf) bool {
	return l.Keyspace == s.Keyspace && (s.Owner == "" || l.Owner == s.Owner) && (s.Key == "" || l.Key == s.Key)
}

// Scopes are those that an event belongs to, widest first: none where it is about
// no keyspace.
func (l *Leaf) Scopes() []Scope {
	if l.Keyspace == "" {
		return nil
	}
	all := []Scope{{Keyspace: l.Keyspace}}
	if l.Owner != "" {
		all = append(all, Scope{l.Keyspace, l.Owner, ""})
	}
	if l.Key != "" {
		all = append(all, Scope{l.Keyspace, l.Owner, l.Key})
	}
	return all
}

// ScopeID hides a scope's name where the parts of others stand beside it.
type ScopeID [sha256.Size]byte

// ID is SHA-256 of "keyledger scope v1\n<keyspace> <owner> <key>\n", with _ for what
// is empty.
func (s Scope) ID() ScopeID {
	return sha256.Sum256([]byte("keyledger scope v1\n" + s.String() + "\n"))
}

// Part is what a tree of a certain size holds of one scope.
type Part struct {
	Scope ScopeID
	Count int64     // events
	Chain tlog.Hash // over all of them in order; of none, zero
}

// Add appends an event to the part.
func (p *Part) Add(leaf tlog.Hash) {
	p.Count++
	p.Chain = Link(p.Chain, leaf)
}

// Link is SHA-256 of the byte 2, the chain so far and the hash of the next leaf.
// RFC 6962 begins its own hashes with 0 and 1.
func Link(chain, leaf tlog.Hash) tlog.Hash {
	var b [1 + 2*tlog.HashSize]byte
	b[0] = 2
	copy(b[1:], chain[:])
	copy(b[1+tlog.HashSize:], leaf[:])
	return sha256.Sum256(b[:])
}

// partKind is the first line of every part's text.
const partKind = "keyledger part v1\n"

// Append writes the part as it stands in the tree of parts:
//
//	keyledger part v1
//	<scope id, hexadecimal> <events> <chain, hexadecimal>
func (p *Part) Append(b []byte) []byte {
	b = hex.AppendEncode(append(b, partKind...), p.Scope[:])
	b = strconv.AppendInt(append(b, ' '), p.Count, 10)
	return append(hex.AppendEncode(append(b, ' '), p.Chain[:]), '\n')
}

// Hash is the part's hash in the tree of parts.
func (p *Part) Hash() tlog.Hash {
	var room [256]byte
	return tlog.RecordHash(p.Append(room[:0]))
}

// ErrNoPart says that a text is not that of a part.
var ErrNoPart = errors.New("not a part of this log")

// ParsePart reads what [Part.Append] wrote, and nothing else.
func ParsePart(b []byte) (Part, error) {
	var p Part
	text, ok := strings.CutPrefix(string(b), partKind)
	words := strings.Split(strings.TrimSuffix(text, "\n"), " ")
	if !ok || len(words) != 3 || len(words[0]) != 2*len(p.Scope) || len(words[2]) != 2*len(p.Chain) {
		return p, ErrNoPart
	}
	_, err1 := hex.Decode(p.Scope[:], []byte(words[0]))
	_, err2 := hex.Decode(p.Chain[:], []byte(words[2]))
	var err3 error
	p.Count, err3 = strconv.ParseInt(words[1], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil || p.Count < 1 || !bytes.Equal(p.Append(nil), b) {
		return Part{}, fmt.Errorf("%w: it is not written as one is", ErrNoPart)
	}
	return p, nil
}

// SortParts brings parts into the order in which their tree has them: by scope id.
// Two neighbours in it show that there is nothing between them.
func SortParts(parts []Part) {
	slices.SortFunc(parts, func(a, b Part) int { return bytes.Compare(a.Scope[:], b.Scope[:]) })
}
