package events

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// The quick reader and writer agree with encoding/json on any bytes.
func FuzzFast(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimSuffix(body, []byte("\n")))
	}
	f.Fuzz(agree)
}

func agree(t *testing.T, body []byte) {
	slow, err := decode(body)
	if fast, ok := scanEnvelope(body, string(body)); ok && err != nil {
		t.Fatalf("%q is read quickly, but slowly it is %v", body, err)
	} else if ok && !reflect.DeepEqual(fast, slow) {
		t.Fatalf("%q is\n%#v\nquickly, but\n%#v", body, fast, slow)
	}
	if err != nil {
		return
	}
	if e, err := DecodeInPlace(body); err != nil || !reflect.DeepEqual(e, slow) {
		t.Fatalf("%q is\n%#v, %v\nin place, but\n%#v", body, e, err, slow)
	}
	want, err := encode(slow)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := appendEnvelope(nil, slow); ok && !bytes.Equal(got, want) {
		t.Fatalf("written quickly\n%s\nslowly\n%s", got, want)
	}
}

// Every golden file is read by the quick reader: it does not rot into a detour.
func TestFastIsUsed(t *testing.T) {
	files, _ := filepath.Glob("testdata/golden/*.json")
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.TrimSuffix(body, []byte("\n"))
		agree(t, body)
		if _, ok := scanEnvelope(body, string(body)); !ok && !bytes.Contains(body, []byte(`\"`)) {
			t.Errorf("%s is not read quickly", path)
		}
		// A bit flip anywhere is read alike, or refused alike.
		for i := range body {
			for bit := range 8 {
				flipped := bytes.Clone(body)
				flipped[i] ^= 1 << bit
				agree(t, flipped)
			}
		}
	}
}

// The same for facts with any strings, numbers and moments.
func TestFastAgrees(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z_0-9]*`))
	moment := rapid.Map(rapid.Int64Range(-62135596800000, 253402300799999), func(ms int64) Time { return Time(ms) })
	sealed := rapid.OneOf(rapid.Just((*Sealed)(nil)), rapid.Custom(func(t *rapid.T) *Sealed {
		return &Sealed{text.Draw(t, "key"), text.Draw(t, "box")}
	}))
	list := rapid.OneOf(rapid.Just([]string(nil)), rapid.SliceOf(text))
	fold := rapid.Custom(func(t *rapid.T) Fold {
		return Fold{rapid.Int64().Draw(t, "count"), moment.Draw(t, "first"), moment.Draw(t, "last")}
	})
	payload := rapid.OneOf(
		rapid.Custom(func(t *rapid.T) Payload {
			u := KeyUsed{Decision: text.Draw(t, "decision"), Method: text.Draw(t, "method"), Endpoint: text.Draw(t, "endpoint"), SourceIP: sealed.Draw(t, "ip"),
				UserAgent: sealed.Draw(t, "agent"), Origin: text.Draw(t, "origin"), CostMicros: rapid.Int64().Draw(t, "cost"), Node: text.Draw(t, "node"), LedgerSequence: rapid.Uint64().Draw(t, "sequence"), DocumentVersion: rapid.Int().Draw(t, "document")}
			if rapid.Bool().Draw(t, "known") {
				u.Status, u.LatencyMS = new(rapid.Int().Draw(t, "status")), new(rapid.Int64().Draw(t, "latency"))
			}
			return u
		}),
		rapid.Custom(func(t *rapid.T) Payload {
			return KeyCreated{Name: text.Draw(t, "name"), Environment: text.Draw(t, "environment"), Scopes: list.Draw(t, "scopes"), Resources: list.Draw(t, "resources"),
				Limits: rapid.MapOf(text, rapid.Int64()).Draw(t, "limits"), AllowedOrigins: list.Draw(t, "origins"), AllowedIPs: list.Draw(t, "ips"), ExpiresAt: moment.Draw(t, "expires"),
				Meta: rapid.MapOf(text, text).Draw(t, "meta"), Role: text.Draw(t, "role"), Imported: rapid.Bool().Draw(t, "imported"), Secret: Secret{text.Draw(t, "hash"), text.Draw(t, "first"), text.Draw(t, "last")}}
		}),
		rapid.Custom(func(t *rapid.T) Payload {
			return KeyDenied{text.Draw(t, "code"), text.Draw(t, "endpoint"), text.Draw(t, "node"), fold.Draw(t, "fold")}
		}),
		rapid.Custom(func(t *rapid.T) Payload {
			return CredentialRejected{text.Draw(t, "code"), sealed.Draw(t, "ip"), rapid.Bool().Draw(t, "overflow"), text.Draw(t, "node"), fold.Draw(t, "fold")}
		}),
		rapid.Custom(func(t *rapid.T) Payload {
			return KeyRateLimited{text.Draw(t, "window"), rapid.Int64().Draw(t, "limit"), text.Draw(t, "node"), fold.Draw(t, "fold")}
		}),
	)
	rapid.Check(t, func(rt *rapid.T) {
		data := payload.Draw(rt, "data")
		name, version := data.Kind()
		e := Envelope{text.Draw(rt, "id"), name, version, moment.Draw(rt, "time"), text.Draw(rt, "keyspace"), text.Draw(rt, "owner"), text.Draw(rt, "key"), rapid.Uint64().Draw(rt, "key version"),
			Actor{text.Draw(rt, "actor type"), text.Draw(rt, "actor")}, text.Draw(rt, "via"), text.Draw(rt, "request"), text.Draw(rt, "command"), data}
		want, err := encode(e)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := Encode(e)
		if err != nil || !bytes.Equal(got, want) {
			rt.Fatalf("written quickly\n%s\nslowly\n%s\n%v", got, want, err)
		}
		agree(t, want)
	})
}
