package domain

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"strings"
	"testing"
)

// looksMade says, slowly and by itself, whether a secret is one that the format
// would make: it takes it apart and writes it again.
func looksMade(f Format, secret string) (environment string, ok bool) {
	prefix := ""
	for name, p := range f.Prefixes {
		if strings.HasPrefix(secret, p) && (!ok || len(p) > len(prefix)) {
			environment, prefix, ok = name, p, true
		}
	}
	if !ok {
		return "", false
	}
	allowed := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	if f.Alphabet == "base36" {
		allowed = "abcdefghijklmnopqrstuvwxyz0123456789"
	}
	random, check := strings.TrimPrefix(secret, prefix), ""
	if f.Checksum == "crc32" && len(random) >= 6 {
		random = random[:len(random)-6]
		n := new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(prefix + random))))
		// big writes digits 0-9a-zA-Z; ours are 0-9A-Za-z.
		swapped := strings.Map(func(c rune) rune {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
				return c ^ 0x20
			}
			return c
		}, n.Text(62))
		check = fmt.Sprintf("%06s", swapped)
	}
	if prefix+random+check != secret || len(random)+len(check) != f.Length || strings.Trim(random, allowed) != "" {
		return "", false
	}
	return environment, true
}

// A secret is taken for one of the keyspace's exactly where the format would
// write it so; one that was drawn is, for the environment that it was drawn for;
// and with a checksum nothing that differs from it in one place is.
func FuzzCheckFormat(f *testing.F) {
	formats := []Format{
		{Prefixes: map[string]string{"live": "ac_live_", "test": "ac_test_"}, DefaultEnvironment: "live", Alphabet: "base62", Length: 40, Checksum: "crc32"},
		{Prefixes: map[string]string{"live": "sk_", "test": "sk_test_"}, DefaultEnvironment: "live", Alphabet: "base36", Length: 32, Checksum: "none"},
		{Prefixes: map[string]string{"live": ""}, DefaultEnvironment: "live", Alphabet: "base62", Length: 28, Checksum: "crc32"},
		{Prefixes: map[string]string{"live": "k-"}, DefaultEnvironment: "live", Alphabet: "base36", Length: 36, Checksum: "crc32"},
		RootKeyspace().Format,
	}
	spaces := make([]*Keyspace, len(formats))
	for i, format := range formats {
		spaces[i] = Compile(&Document{Keyspace: "fuzzed", Credential: CredentialRules{Header: "Authorization"}, Format: format, Display: Display{First: 6, Last: 4}}, 1)
		for environment, prefix := range format.Prefixes {
			plain, _, err := spaces[i].NewSecret(bytes.NewReader(bytes.Repeat([]byte("seed of the corpus, "), 100)), environment)
			if err != nil {
				f.Fatal(err)
			}
			for _, s := range []string{plain, plain + "a", plain[:len(plain)-1], strings.ToUpper(plain), " " + plain, plain + "\n", plain + "\x00", prefix, prefix + strings.Repeat("0", format.Length), "\uff4b" + plain[1:], strings.Replace(plain, "e", "\u0435", 1)} {
				f.Add(uint8(i), s, []byte(s), uint16(len(s)/2), byte('x'))
			}
		}
	}
	for i, s := range badTexts {
		f.Add(uint8(i), "ac_live_"+s, []byte(s), uint16(len(s)), byte('0'))
		f.Add(uint8(i), s, []byte(s), uint16(0), byte(0))
	}
	f.Add(uint8(0), "ac_live_"+strings.Repeat("a", 1<<20), []byte{}, uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, which uint8, secret string, drawn []byte, at uint16, to byte) {
		k := spaces[int(which)%len(spaces)]
		environment, ok := k.CheckFormat(secret)
		if wantIn, want := looksMade(k.Format, secret); ok != want || environment != wantIn {
			t.Fatalf("%q is taken for %q %v, want %q %v", secret, environment, ok, wantIn, want)
		}
		for name := range k.Format.Prefixes {
			plain, kept, err := k.NewSecret(io.MultiReader(bytes.NewReader(drawn), bytes.NewReader(make([]byte, 1<<10))), name)
			if err != nil {
				t.Fatal(err)
			}
			if environment, ok := k.CheckFormat(plain); !ok || environment != name {
				t.Fatalf("%q, drawn for %s, is taken for %q %v", plain, name, environment, ok)
			}
			if len(kept.First) > k.Display.First || len(kept.Last) > k.Display.Last || !strings.HasPrefix(plain, kept.First) || !strings.HasSuffix(plain, kept.Last) {
				t.Fatalf("%q is kept as %q and %q", plain, kept.First, kept.Last)
			}
			i := int(at) % len(plain)
			wrong := []string{plain + string(rune(to)), plain[:i] + plain[i+1:]}
			if k.Format.Checksum == "crc32" && plain[i] != to {
				wrong = append(wrong, plain[:i]+string([]byte{to})+plain[i+1:])
			}
			for _, s := range wrong {
				if _, ok := k.CheckFormat(s); ok {
					t.Fatalf("%q passes, which differs from the drawn %q", s, plain)
				}
			}
		}
	})
}
