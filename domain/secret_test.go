package domain

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// The checksum is pinned by the check value of CRC-32 (IEEE 802.3) for
// "123456789", which is 0xcbf43926, written in base62 by other means.
func TestChecksum(t *testing.T) {
	if got, want := string(appendChecksum(nil, []byte("123456789"))), "3jZRME"; got != want {
		t.Errorf("checksum %s, want %s", got, want)
	}
	if got := string(appendChecksum([]byte("a"), nil)); got != "a000000" {
		t.Errorf("the checksum of nothing is written %s", got)
	}
}

func drawFormat(t *rapid.T) *Keyspace {
	d := &Document{Keyspace: "drawn", Credential: CredentialRules{Header: "Authorization"}}
	d.Format = Format{
		Prefixes: map[string]string{"live": "pb_live_", "dev": "pb_live_dev_", "test": rapid.SampledFrom([]string{"pb_test_", "t.", "x-"}).Draw(t, "prefix")},
		Alphabet: rapid.SampledFrom([]string{"base36", "base62"}).Draw(t, "alphabet"),
		Checksum: rapid.SampledFrom([]string{"none", "crc32"}).Draw(t, "checksum"),
		Length:   rapid.IntRange(31, 200).Draw(t, "length"),
	}
	d.Display = Display{First: rapid.IntRange(0, 20).Draw(t, "first"), Last: rapid.IntRange(0, 20).Draw(t, "last")}
	return Compile(d, 1)
}

// A keyspace recognises its own secrets and their environment, and no secret
// with one character more, less or other.
func TestSecretHasItsFormat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawFormat(t)
		environment := rapid.SampledFrom([]string{"live", "dev", "test"}).Draw(t, "environment")
		plain, kept, err := k.NewSecret(rand.Reader, environment)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := k.CheckFormat(plain); !ok || got != environment {
			t.Fatalf("own secret of %s reads as %q, %v", environment, got, ok)
		}
		if len(plain) != len(k.Format.Prefixes[environment])+k.Format.Length {
			t.Fatalf("length %d", len(plain))
		}
		hash := HashSecret(plain)
		if kept.SHA256 != hex.EncodeToString(hash[:]) || kept.First != plain[:k.Display.First] || kept.Last != plain[len(plain)-k.Display.Last:] {
			t.Fatalf("kept %+v", kept)
		}
		for _, other := range []string{plain + "a", plain[:len(plain)-1], " " + plain, plain + " ", "", strings.ToUpper(plain[:3]) + plain[3:]} {
			if other == plain {
				continue
			}
			if _, ok := k.CheckFormat(other); ok {
				t.Fatalf("a secret that was changed passes")
			}
		}
		if k.Format.Checksum == "crc32" {
			i := rapid.IntRange(0, len(plain)-1).Draw(t, "changed")
			c := base62[rapid.IntRange(0, 61).Draw(t, "to")]
			changed := plain[:i] + string(c) + plain[i+1:]
			if _, ok := k.CheckFormat(changed); ok && changed != plain {
				t.Fatalf("the checksum does not notice one changed character")
			}
		}
	})
}

// Every character of the alphabet is equally likely: with counting bytes as
// the source, each appears as often as every other.
func TestSecretIsUniform(t *testing.T) {
	for alphabet, n := range map[string]int{"base36": 36, "base62": 62} {
		limit := 256 - 256%n
		var source []byte
		for len(source) < limit*64 {
			for c := range 256 {
				source = append(source, byte(c))
			}
		}
		k := Compile(&Document{Format: Format{Prefixes: map[string]string{"live": ""}, Alphabet: alphabet, Length: limit}}, 1)
		plain, _, err := k.NewSecret(bytes.NewReader(source), "live")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range alphabetOf(alphabet) {
			if got := strings.Count(plain, string(c)); got != limit/n {
				t.Errorf("%s: %c comes %d times, want %d", alphabet, c, got, limit/n)
			}
		}
	}
}

// A source that fails gives an error and no secret.
func TestSecretNeedsRandom(t *testing.T) {
	k := RootKeyspace()
	broken := errors.New("no entropy")
	for _, source := range []io.Reader{iotest.ErrReader(broken), bytes.NewReader([]byte("short"))} {
		if plain, kept, err := k.NewSecret(source, "live"); err == nil || plain != "" || kept.SHA256 != "" {
			t.Errorf("made %q, %v, from a broken source", plain, err)
		}
	}
	if _, _, err := k.NewSecret(rand.Reader, "test"); err == nil || !strings.Contains(err.Error(), "live") {
		t.Errorf("an unknown environment: %v", err)
	}
}

func TestShowSecret(t *testing.T) {
	for _, test := range [][3]string{{"sk_3fA9c1b2d", "", "sk_3fA9c1b2d..."}, {"", "stu901vw", "...stu901vw"}, {"pb_l", "wxyz", "pb_l...wxyz"}, {"", "", ""}} {
		if got := ShowSecret(test[0], test[1]); got != test[2] {
			t.Errorf("%q and %q show as %q, want %q", test[0], test[1], got, test[2])
		}
	}
}

// Root keys are recognised by anybody's scanner: klr_ and a checksum.
func TestRootSecret(t *testing.T) {
	plain, kept, err := RootKeyspace().NewSecret(rand.Reader, "live")
	if err != nil || !strings.HasPrefix(plain, "klr_") || len(plain) != 4+43 || kept.First != plain[:8] || kept.Last != "" {
		t.Errorf("kept %+v, %v", kept, err)
	}
}
