package verify

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/keyledger/keyledger/events"
)

// A decision id says, without any memory, when it was made, about which key, and
// whether the request was admitted, so that POST /v1/uses finds the key on every
// node. To everybody else it is opaque.
//
// 32 bytes in lower-case base32 (RFC 4648, extended hex alphabet, which keeps
// the order of time): 48 bits of milliseconds, 4 bits version, 12 random bits,
// 2 bits that say admitted (binary 10) or refused (11), 62 random bits, then the
// 16 bytes of the key's id, zero where there is none.
const decisionIDLen = len("dec_") + 52

const decisionDigits = "0123456789abcdefghijklmnopqrstuv"

var decisionEncoding = base32.NewEncoding(decisionDigits).WithPadding(base32.NoPadding)

const (
	admittedBits = 0x80
	refusedBits  = 0xc0
)

// decisionStamp is the half of a decision id that is not the key.
//
// It needs to be unique, not secret: the runtime's ChaCha8 generator, seeded by
// the system, takes a tenth of the time of crypto/rand.
func decisionStamp(now time.Time, admitted bool) (u [16]byte) {
	stampDecision(&u, now, admitted)
	return u
}

func stampDecision(u *[16]byte, now time.Time, admitted bool) {
	mark := uint64(refusedBits)
	if admitted {
		mark = admittedBits
	}
	binary.BigEndian.PutUint64(u[:8], uint64(now.UnixMilli())<<16|uint64(rand.Uint32()&0x0fff)|0x7000)
	binary.BigEndian.PutUint64(u[8:], rand.Uint64()>>2|mark<<56)
}

func formatDecisionID(stamp [16]byte, key string) string {
	return string(appendDecisionID(make([]byte, 0, decisionIDLen), stamp, key))
}

func appendDecisionID(b []byte, stamp [16]byte, key string) []byte {
	var raw [32]byte
	copy(raw[:], stamp[:])
	if key != "" {
		u := keyBytes(key)
		copy(raw[16:], u[:])
	}
	b = append(b, "dec_0000000000000000000000000000000000000000000000000000"...)
	digits := b[len(b)-52:]
	for i := range 6 { // five bytes are eight digits; encoding/base32 takes thrice the time
		five := uint64(binary.BigEndian.Uint32(raw[5*i:]))<<8 | uint64(raw[5*i+4])
		for j := range 8 {
			digits[8*i+j] = decisionDigits[five>>(35-5*j)&31]
		}
	}
	last := uint64(binary.BigEndian.Uint16(raw[30:])) << 4
	for j := range 4 {
		digits[48+j] = decisionDigits[last>>(15-5*j)&31]
	}
	return b
}

// NewDecisionID returns a fresh id for a decision about a key (empty: no known
// key) at time now.
func NewDecisionID(key string, admitted bool, now time.Time) string {
	return formatDecisionID(decisionStamp(now, admitted), key)
}

// DecisionID is what a decision id says.
type DecisionID struct {
	Key      string // key_…, or empty where no key was known
	Admitted bool
	Time     time.Time // UTC, in milliseconds
}

// ParseDecisionID reads a decision id of any node.
func ParseDecisionID(id string) (DecisionID, error) {
	var raw [32]byte
	s, ok := strings.CutPrefix(id, "dec_")
	if !ok || len(id) != decisionIDLen {
		return DecisionID{}, errNoDecision
	}
	if n, err := decisionEncoding.Decode(raw[:], []byte(s)); err != nil || n != len(raw) {
		return DecisionID{}, errNoDecision
	}
	mark := raw[8] & 0xc0
	if raw[6]&0xf0 != 0x70 || mark != admittedBits && mark != refusedBits {
		return DecisionID{}, errNoDecision
	}
	d := DecisionID{
		Admitted: mark == admittedBits,
		Time:     time.UnixMilli(int64(binary.BigEndian.Uint64(raw[:8]) >> 16)).UTC(),
	}
	if key := [16]byte(raw[16:]); key != ([16]byte{}) {
		d.Key = events.FormatID("key", key)
	}
	// The last character of 52 carries four unused bits; another spelling of the
	// same bytes would be another id of the same decision.
	if formatDecisionID([16]byte(raw[:16]), d.Key) != id {
		return DecisionID{}, errNoDecision
	}
	return d, nil
}

var errNoDecision = errors.New("not the id of a decision: take the decision_id that verification answered with")

// keyBytes are the 16 bytes of key_<uuid>. An id of another form, which no
// program version ever made, gives a hash of it.
func keyBytes(id string) [16]byte {
	u, err := events.ParseID("key", id)
	if err != nil {
		h := sha256.Sum256([]byte(id))
		return [16]byte(h[:16])
	}
	return u
}

// reportID is the id of the event that reports the outcome of a decision: the
// same on every node and every time, so that a repeated report is recognised.
func reportID(decision string, at time.Time) string {
	h := sha256.Sum256([]byte("key.use_reported " + decision))
	u := [16]byte(h[:16])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(u[:6], ms[2:])
	return events.FormatID("evt", u)
}
