package bundle_test

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

func verify(t testing.TB, l *log, b []byte) bundle.Report {
	t.Helper()
	r, err := bundle.Verify(bytes.NewReader(b), bundle.Options{Keys: []note.Verifier{l.verifier}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// kinds are the exports that every test of a good bundle and of attacks begins with.
var kinds = map[string]struct {
	scope    bundle.Scope
	from, to events.Time
}{
	"everything":           {},
	"everything, of times": {from: events.At(begin.Add(10 * time.Second)), to: events.At(begin.Add(50 * time.Second))},
	"keyspace":             {scope: bundle.Scope{Keyspace: "space-1"}},
	"owner":                {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_1"}},
	"key":                  {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_2", Key: "key_2_1"}},
	"key, of times":        {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_2", Key: "key_2_1"}, from: events.At(begin.Add(20 * time.Second)), to: events.At(begin.Add(60 * time.Second))},
	"nobody":               {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_none"}},
}

// A bundle as it was made passes in both verifiers, whatever it is about.
func TestAGoodBundlePasses(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			l := newLog(t, "keyledger-test")
			l.fill(t, 24)
			b := l.export(t, k.scope, k.from, k.to)
			r := verify(t, l, b)
			if !r.Pass {
				t.Fatalf("it fails: %+v", r)
			}
			t.Logf("%+v", r.Streams)
			python(t, l, map[string][]byte{"good": b}, func(string, string) bool { return true })
		})
	}
}
