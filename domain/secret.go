package domain

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unsafe"

	"github.com/keyledger/keyledger/events"
)

// The alphabets of secrets. base62 is also what checksums are written in,
// whatever the alphabet of the rest.
const (
	base36 = "0123456789abcdefghijklmnopqrstuvwxyz"
	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

const checksumLength = 6

func alphabetOf(name string) string {
	if name == "base36" {
		return base36
	}
	return base62
}

// NewSecret draws a secret for an environment of the keyspace: the literal
// prefix, characters of the alphabet that are all equally likely, and the
// checksum where the document asks for one. It returns the plaintext, which
// exists in one answer and nowhere else, and what is kept of it.
//
// It fails when the environment is not one of the document's or when random
// does; the error never holds a part of the secret. In production random MUST
// be crypto/rand.Reader.
func (k *Keyspace) NewSecret(random io.Reader, environment string) (plain string, kept events.Secret, err error) {
	prefix, ok := k.Format.Prefixes[environment]
	if !ok {
		return "", events.Secret{}, fmt.Errorf("%q is not an environment of keyspace %s: use one of %s", environment, k.Keyspace, names(k.Format.Prefixes))
	}
	alphabet, n := alphabetOf(k.Format.Alphabet), k.Format.Length
	if k.Format.Checksum == "crc32" {
		n -= checksumLength
	}
	b := make([]byte, 0, len(prefix)+k.Format.Length)
	b = append(b, prefix...)
	// A byte beyond the last multiple of the alphabet's size is thrown away:
	// folding it back would make the first characters more likely than others.
	limit := 256 - 256%len(alphabet)
	var buf [64]byte
	for drawn := 0; drawn < n; {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return "", events.Secret{}, fmt.Errorf("draw a secret: %w", err)
		}
		for _, c := range buf {
			if int(c) < limit && drawn < n {
				b = append(b, alphabet[int(c)%len(alphabet)])
				drawn++
			}
		}
	}
	if k.Format.Checksum == "crc32" {
		b = appendChecksum(b, b)
	}
	plain = string(b)
	return plain, k.Keep(plain), nil
}

// Keep is what is kept of a secret: its hash and the characters that the
// document allows to be shown.
func (k *Keyspace) Keep(plain string) events.Secret {
	hash := HashSecret(plain)
	first, last := min(k.Display.First, len(plain)), min(k.Display.Last, len(plain))
	return events.Secret{
		SHA256: hex.EncodeToString(hash[:]),
		First:  plain[:first],
		Last:   plain[len(plain)-last:],
	}
}

// HashSecret is the SHA-256 of the whole secret, prefix and checksum included.
// A secret has at least 128 random bits, so that no salt and no slow hash is
// needed to keep it from being guessed.
//
// The hash reads the string where it is: a copy would be the one allocation of
// a verification, and one more place in memory that holds a secret.
func HashSecret(plain string) [32]byte {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(plain), len(plain)))
}

// SameHash compares two hashes, by words and not by a call, which a decision
// makes several times.
func SameHash(a, b *[32]byte) bool {
	return word(a, 0) == word(b, 0) && word(a, 8) == word(b, 8) && word(a, 16) == word(b, 16) && word(a, 24) == word(b, 24)
}

func word(hash *[32]byte, i int) uint64 { return binary.LittleEndian.Uint64(hash[i:]) }

// CheckFormat says whether a secret looks like one that the document in force
// would make, and for which environment. It decides nothing about known keys:
// those are found by their hash first, whatever they look like.
//
// The environment is that of the longest prefix that matches.
func (k *Keyspace) CheckFormat(secret string) (environment string, ok bool) {
	for _, p := range k.prefixes {
		if !strings.HasPrefix(secret, p.prefix) {
			continue
		}
		rest := secret[len(p.prefix):]
		if len(rest) != k.Format.Length {
			return "", false
		}
		random := rest
		if k.Format.Checksum == "crc32" {
			random = rest[:len(rest)-checksumLength]
			whole := []byte(secret)
			if string(appendChecksum(nil, whole[:len(whole)-checksumLength])) != rest[len(random):] {
				return "", false
			}
		}
		for i := range len(random) {
			if strings.IndexByte(k.alphabet, random[i]) < 0 {
				return "", false
			}
		}
		return p.environment, true
	}
	return "", false
}

// appendChecksum appends CRC-32 (IEEE 802.3) of data as six base62 digits, the
// most significant first, padded with 0.
func appendChecksum(b, data []byte) []byte {
	sum := crc32.ChecksumIEEE(data)
	var digits [checksumLength]byte
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = base62[sum%62]
		sum /= 62
	}
	return append(b, digits[:]...)
}

// ShowSecret joins the kept characters of a secret as people see them:
// first...last, first... or ...last; empty where nothing is kept.
func ShowSecret(first, last string) string {
	if first == "" && last == "" {
		return ""
	}
	return first + "..." + last
}

// Display is how the key's current secret is shown.
func (k *Key) Display() string { return ShowSecret(k.First, k.Last) }
