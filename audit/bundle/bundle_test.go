package bundle_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

	grown, short bool
}{
	"everything": {},
	"everything, checkpoints of larger trees": {grown: true},
	"everything, as far as was witnessed":     {short: true},
	"the same, of larger trees":               {short: true, grown: true},
	"everything, of times":                    {from: events.At(begin.Add(10 * time.Second)), to: events.At(begin.Add(50 * time.Second))},
	"keyspace":                                {scope: bundle.Scope{Keyspace: "space-1"}},
	"owner":                                   {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_1"}},
	"key":                                     {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_2", Key: "key_2_1"}},
	"key, of times":                           {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_2", Key: "key_2_1"}, from: events.At(begin.Add(20 * time.Second)), to: events.At(begin.Add(60 * time.Second))},
	"nobody":                                  {scope: bundle.Scope{Keyspace: "space-0", Owner: "org_none"}},
}

// A bundle as it was made passes in both verifiers, whatever it is about.
func TestAGoodBundlePasses(t *testing.T) {
	l := newLog(t, "keyledger-test")
	bundles := map[string][]byte{}
	for name, k := range kinds {
		l.records, l.next = map[string][]events.Record{}, 0
		l.fill(t, 24)
		l.grown, l.short = k.grown, k.short
		bundles[name] = l.export(t, k.scope, k.from, k.to)
		if r := verify(t, l, bundles[name]); !r.Pass || r.Scope != k.scope || r.Streams[2].Leaves < 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	python(t, l, bundles, func(string, string) bool { return true })
}

// Of USAGE that was pruned, what is left is checked with what the export's event says
// of the rest. Nobody can say afterwards that more was pruned.
func TestWhatWasPruned(t *testing.T) {
	l := newLog(t, "keyledger-test")
	bundles := map[string][]byte{}
	for name, k := range kinds {
		for _, pruned := range []uint64{1, 7, 24} {
			l.records, l.next, l.pruned, l.grown, l.short = map[string][]events.Record{}, 0, pruned, k.grown, k.short
			l.fill(t, 24)
			b := l.export(t, k.scope, k.from, k.to)
			r := verify(t, l, b)
			if !r.Pass || len(r.Notes) != 1+map[bool]int{true: 1}[k.short] {
				t.Fatalf("%s, %d messages pruned: %+v", name, pruned, r)
			}
			name := fmt.Sprint(name, pruned)
			bundles["good "+name] = b
			if pruned == 24 || r.Streams[1].Leaves == 0 {
				continue
			}
			bad := bundle.Repack(unpack(t, b).both("usage", without(0)).manifest(func(m *bundle.Manifest) {
				m.Streams[1].First++
				m.Streams[1].Leaves--
				m.Streams[1].Pruned++
			}).sealed())
			if r := verify(t, l, bad); r.Pass {
				t.Errorf("%s: more was pruned afterwards", name)
			}
			bundles["bad "+name] = bad
		}
	}
	python(t, l, bundles, func(name, _ string) bool { return strings.HasPrefix(name, "good") })
}

// Bundles that were made once are checked for ever: golden files, never edited, only
// added. -bundle.golden NAME writes new ones.
func TestBundlesOfReleasedFormats(t *testing.T) {
	if *golden != "" {
		l := newLog(t, "keyledger-golden")
		l.fill(t, 12)
		for name, k := range map[string]string{"all": "everything", "owner": "owner", "grown": "everything, checkpoints of larger trees", "short": "the same, of larger trees"} {
			name = filepath.Join("testdata", *golden+"-"+name)
			l.grown, l.short = kinds[k].grown, kinds[k].short
			b := l.export(t, kinds[k].scope, 0, 0)
			for file, content := range map[string][]byte{name + ".tar.gz": b, name + ".key": []byte(l.key + "\n")} {
				if err := os.WriteFile(file, content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	names, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(names) < 2 {
		t.Fatalf("there are %d golden bundles, %v", len(names), err)
	}
	for _, name := range names {
		key, err := os.ReadFile(strings.TrimSuffix(name, ".tar.gz") + ".key")
		if err != nil {
			t.Fatal(err)
		}
		l := &log{key: strings.TrimSpace(string(key))}
		if l.verifier, err = note.NewVerifier(l.key); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if r := verify(t, l, b); !r.Pass {
			t.Errorf("%s fails: %+v", name, r)
		}
		python(t, l, map[string][]byte{filepath.Base(name): b}, func(string, string) bool { return true })
	}
}

var golden = flag.String("bundle.golden", "", "writes golden bundles of this name")
