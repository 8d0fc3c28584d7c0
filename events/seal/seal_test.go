package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/internal/testenv"
)

var (
	master = seal.Master{1, 2, 3}
	at     = time.Date(2026, 1, 31, 23, 30, 0, 0, time.FixedZone("", -3600)) // February in UTC
)

func jet(t testing.TB, n *embedded.NATS) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(testenv.Conn(t, n))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func open(t testing.TB, n *embedded.NATS, m seal.Master) *seal.Keys {
	t.Helper()
	k, err := seal.Open(t.Context(), jet(t, n), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func sealed(t testing.TB, k *seal.Keys, keyspace, owner, plain string) *events.Sealed {
	t.Helper()
	s, err := k.Seal(t.Context(), keyspace, owner, at, plain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a process of a cluster sealed a moment ago, every other one opens, whichever
// replica it asks; what was destroyed stays destroyed.
func TestReplicas(t *testing.T) {
	nodes := testenv.Cluster(t, 3)
	var opening sync.WaitGroup
	all := make([]*seal.Keys, 3)
	for i := range all {
		opening.Go(func() { // at once, as processes start
			js, err := jetstream.New(nodes.Conn(i))
			if err == nil {
				all[i], err = seal.Open(t.Context(), js, master, 3)
			}
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(all[i].Close)
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	var people sync.WaitGroup
	for i := range 6 {
		people.Go(func() {
			for n := range 400 {
				s, err := all[i%3].Seal(t.Context(), "shop", fmt.Sprintf("o%d_%d", i, n), at, "1.2.3.4")
				if err == nil {
					_, err = all[(i+n)%3].Open(t.Context(), s)
				}
				if err == nil && n%10 == 0 {
					if err = all[(i+n+1)%3].Destroy(t.Context(), time.Now(), s.Key); err == nil {
						var mark uint32
						if _, mark, err = all[(i+n+1)%3].OpenMarked(t.Context(), s); errors.Is(err, seal.ErrErased) {
							err = nil
						} else if err == nil {
							err = fmt.Errorf("it opens after it was destroyed, mark %d", mark)
						}
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	people.Wait()
}

// What one process seals, another opens; the data key is named by keyspace,
// owner and month; the same datum never gives the same box.
func TestSealOpen(t *testing.T) {
	n := testenv.NATS(t)
	a, b := open(t, n, master), open(t, n, master)
	for _, c := range []struct{ owner, key string }{{"org_1", "birds.org_1.2026-02"}, {"", "birds._.2026-02"}} {
		s := sealed(t, a, "birds", c.owner, "203.0.113.9")
		if s.Key != c.key {
			t.Errorf("sealed with %q, want %q", s.Key, c.key)
		}
		if strings.Contains(s.Box, "203.0.113.9") {
			t.Error("the box shows what it holds")
		}
		if again := sealed(t, a, "birds", c.owner, "203.0.113.9"); again.Box == s.Box {
			t.Error("two boxes are equal")
		}
		if plain, err := b.Open(t.Context(), s); err != nil || plain != "203.0.113.9" {
			t.Errorf("another process opens %q, %v", plain, err)
		}
	}
	if s := sealed(t, a, "birds", "org_1", ""); s != nil {
		t.Errorf("nothing is sealed as %v", s)
	}
	if plain, err := a.Open(t.Context(), nil); plain != "" || err != nil {
		t.Errorf("nothing opens as %q, %v", plain, err)
	}
}

// Processes that make the same data key at once agree on one.
func TestRace(t *testing.T) {
	n := testenv.NATS(t)
	var all [8]*seal.Keys
	for i := range all {
		all[i] = open(t, n, master)
	}
	var boxes [8]*events.Sealed
	var wg sync.WaitGroup
	for i, k := range all {
		wg.Go(func() { boxes[i], _ = k.Seal(t.Context(), "birds", "org_1", at, fmt.Sprint("datum ", i)) })
	}
	wg.Wait()
	for i, s := range boxes {
		for _, k := range all {
			if plain, err := k.Open(t.Context(), s); err != nil || plain != fmt.Sprint("datum ", i) {
				t.Fatalf("box %d opens as %q, %v", i, plain, err)
			}
		}
	}
}

// After an erasure nobody opens what was sealed, also a process that had the
// data key in memory; later uses of the same month are sealed with a new key.
func TestDestroy(t *testing.T) {
	n := testenv.NATS(t)
	a, b := open(t, n, master), open(t, n, master)
	old, other := sealed(t, a, "birds", "org_1", "secret place"), sealed(t, a, "birds", "org_2", "elsewhere")
	if plain, err := b.Open(t.Context(), old); err != nil || plain != "secret place" {
		t.Fatalf("%q, %v", plain, err)
	}
	if err := a.Destroy(t.Context(), at, old.Key, "birds.org_9.2026-02"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Open(t.Context(), old); !errors.Is(err, seal.ErrErased) {
		t.Errorf("the process that destroyed the key opens with %v, want ErrErased", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(time.Millisecond) {
		_, err := b.Open(t.Context(), old)
		if errors.Is(err, seal.ErrErased) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("another process still answers %v, want ErrErased", err)
		}
	}
	fresh := sealed(t, b, "birds", "org_1", "later")
	for _, k := range []*seal.Keys{a, b} {
		if _, err := k.Open(t.Context(), old); !errors.Is(err, seal.ErrErased) {
			t.Errorf("with a new key the old box answers %v, want ErrErased", err)
		}
		if plain, err := k.Open(t.Context(), fresh); err != nil || plain != "later" {
			t.Errorf("the later use opens as %q, %v", plain, err)
		}
		if plain, err := k.Open(t.Context(), other); err != nil || plain != "elsewhere" {
			t.Errorf("another owner's use opens as %q, %v", plain, err)
		}
	}
}

// What happened before an erasure and is sealed after it, by a process that had to
// wait, cannot be opened by anybody; what happened after it can. Erasing again
// changes nothing for either.
func TestLate(t *testing.T) {
	n := testenv.NATS(t)
	a, b := open(t, n, master), open(t, n, master)
	erased := at.Add(time.Hour)
	id := sealed(t, a, "birds", "org_1", "secret place").Key
	never := seal.KeyID("birds", "org_9", at) // an owner whose first use still waits
	if err := a.Destroy(t.Context(), erased, id, never); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*seal.Keys{a, b} {
		for _, owner := range []string{"org_1", "org_9"} {
			late := sealed(t, k, "birds", owner, "secret place")
			if err := k.Prime(t.Context(), late.Key); err != nil {
				t.Fatal(err)
			}
			sealer := k.Sealer()
			sealer.Begin()
			key := sealer.Find("birds", owner, at)
			if key == nil {
				t.Fatal("the new key is not at hand")
			}
			paged := &events.Sealed{Key: late.Key, Box: string(sealer.AppendBox(nil, key, at, "secret place"))}
			now, err := k.Seal(t.Context(), "birds", owner, erased, "new place")
			if err != nil {
				t.Fatal(err)
			}
			after := &events.Sealed{Key: late.Key, Box: string(sealer.AppendBox(nil, key, erased, "new place"))}
			for _, o := range []*seal.Keys{a, b} {
				for _, s := range []*events.Sealed{late, paged} {
					if plain, err := o.Open(t.Context(), s); !errors.Is(err, seal.ErrErased) {
						t.Errorf("%s: a late use opens as %q, %v", owner, plain, err)
					}
				}
				for _, s := range []*events.Sealed{now, after} {
					if plain, err := o.Open(t.Context(), s); err != nil || plain != "new place" {
						t.Errorf("%s: a use after the erasure opens as %q, %v", owner, plain, err)
					}
				}
			}
		}
	}
	if done, err := b.IsDestroyed(t.Context(), id, erased); err != nil || !done {
		t.Errorf("destroyed: %v, %v", done, err)
	}
	if done, err := b.IsDestroyed(t.Context(), id, erased.Add(time.Hour)); err != nil || done {
		t.Errorf("destroyed as of an hour later: %v, %v", done, err)
	}
}

// The bucket's files hold a destroyed key no more, in no revision.
func TestDestroyedOnDisk(t *testing.T) {
	dir := t.TempDir()
	n, err := embedded.StartNATS(embedded.NATSConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Shutdown)
	k, js := open(t, n, master), jet(t, n)
	id := sealed(t, k, "birds", "org_1", "secret place").Key
	sealed(t, k, "birds", "org_2", "another in the same block")
	kv, err := js.KeyValue(t.Context(), seal.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !onDisk(t, dir, e.Value()) {
		t.Fatal("the wrapped key is not found in the files while it exists")
	}
	if err := k.Destroy(t.Context(), at, id); err != nil {
		t.Fatal(err)
	}
	if onDisk(t, dir, e.Value()) {
		t.Error("the files still hold the wrapped key")
	}
	// What is merely purged stays in them: the check can fail.
	other, err := kv.Get(t.Context(), "birds.org_2.2026-02")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), other.Key()); err != nil {
		t.Fatal(err)
	}
	if !onDisk(t, dir, other.Value()) {
		t.Error("a purge overwrites it too by now: deleting is not needed any more")
	}
}

func onDisk(t *testing.T, dir string, what []byte) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, what)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What exists is listed by keyspace, owner and month; what was destroyed is not.
func TestHeld(t *testing.T) {
	k := open(t, testenv.NATS(t), master)
	var ids []string
	for _, month := range []string{"2025-12", "2026-01", "2026-02"} {
		for _, who := range []string{"birds.org_1", "birds._", "fish.org_1"} {
			ids = append(ids, who+"."+month)
		}
	}
	if err := k.Prime(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	if err := k.Destroy(t.Context(), at, "birds.org_1.2025-12"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    seal.Held
		want string
	}{
		{seal.Held{Keyspace: "birds", Owner: "org_1"}, "[birds.org_1.2026-01 birds.org_1.2026-02]"},
		{seal.Held{Keyspace: "birds", Owner: events.None, Through: "2026-01"}, "[birds._.2025-12 birds._.2026-01]"},
		{seal.Held{From: "2026-02"}, "[birds._.2026-02 birds.org_1.2026-02 fish.org_1.2026-02]"},
		{seal.Held{Keyspace: "cats"}, "[]"},
	} {
		if got, err := k.Held(t.Context(), c.f); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v, %v, want %s", c.f, got, err, c.want)
		}
	}
}

// An erasure that happened around a lost connection is not missed.
func TestReconnected(t *testing.T) {
	n := testenv.NATS(t)
	a := open(t, n, master)
	nc := testenv.Conn(t, n)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := seal.Open(t.Context(), js, master, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	for i := range 5 {
		s := sealed(t, a, "birds", fmt.Sprint("org_", i), "secret place")
		if _, err := b.Open(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		if err := a.Destroy(t.Context(), time.Now(), s.Key); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; {
			_, err := b.Open(t.Context(), s)
			if errors.Is(err, seal.ErrErased) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after a reconnection it still answers %v, want ErrErased", err)
			}
		}
	}
}

// A box moved to another owner, and one with a changed byte, do not open, and
// the error does not tell what they held.
func TestTampered(t *testing.T) {
	k := open(t, testenv.NATS(t), master)
	s := sealed(t, k, "birds", "org_1", "203.0.113.9")
	sealed(t, k, "birds", "org_2", "anything")
	for name, bad := range map[string]events.Sealed{
		"moved":      {Key: "birds.org_2.2026-02", Box: s.Box},
		"changed":    {Key: s.Key, Box: "AAAA" + s.Box[4:]},
		"short":      {Key: s.Key, Box: "AAAA"},
		"not base64": {Key: s.Key, Box: "203.0.113.9!"},
	} {
		_, err := k.Open(t.Context(), &bad)
		if !errors.Is(err, seal.ErrTampered) || strings.Contains(err.Error(), "203.0") {
			t.Errorf("%s: %v, want ErrTampered", name, err)
		}
	}
	if _, err := k.Open(t.Context(), &events.Sealed{Key: "no such id *", Box: s.Box}); err == nil {
		t.Error("an impossible id opens")
	}
}

// A wrong master key is refused before anything is sealed with it.
func TestWrongMaster(t *testing.T) {
	n := testenv.NATS(t)
	open(t, n, master)
	if _, err := seal.Open(t.Context(), jet(t, n), seal.Master{9}, 1); !errors.Is(err, seal.ErrWrongMaster) {
		t.Errorf("%v, want ErrWrongMaster", err)
	}
}

// A bucket that would lose data keys by itself is refused.
func TestWrongBucket(t *testing.T) {
	n := testenv.NATS(t)
	js := jet(t, n)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: seal.Bucket, TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(t.Context(), js, master, 1); err == nil || !strings.Contains(err.Error(), "TTL") {
		t.Errorf("%v, want a refusal that names the TTL", err)
	}
}

// A new month's keys are made together.
func TestPrime(t *testing.T) {
	n := testenv.NATS(t)
	k := open(t, n, master)
	var ids []string
	for i := range 100 {
		ids = append(ids, seal.KeyID("birds", fmt.Sprint("org_", i), at))
	}
	if err := k.Prime(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	n.Shutdown()
	if s := sealed(t, k, "birds", "org_42", "x"); s.Key != ids[42] {
		t.Errorf("sealed with %s", s.Key)
	}
}

func TestMasterFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master key")
	var made [4]seal.Master
	var wg sync.WaitGroup
	for i := range made {
		wg.Go(func() { made[i], _ = seal.LoadOrCreateMaster(path) })
	}
	wg.Wait()
	for _, m := range made {
		if m != made[0] || m == (seal.Master{}) {
			t.Fatal("processes that start at once do not agree on the master key")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", info.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprintf("%v %s %x %+v", made[0], made[0], made[0], struct{ M seal.Master }{made[0]}); strings.Contains(shown, string(b[:8])) {
		t.Error("a master key shows itself when printed")
	}
	// A file that others may read is refused, and so is one that is no key.
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.LoadOrCreateMaster(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v, want a refusal that says what to do", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("hunter2\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.LoadOrCreateMaster(path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v, want a refusal without the content", err)
	}
}

func BenchmarkSeal(b *testing.B) {
	k := open(b, testenv.NATS(b), master)
	for b.Loop() {
		if _, err := k.Seal(b.Context(), "birds", "org_1", at, "203.0.113.9"); err != nil {
			b.Fatal(err)
		}
	}
}

// A page's uses carry their personal data in clear until the page is written;
// encoded too early they lack it. Sealing again changes nothing.
func TestPrepare(t *testing.T) {
	k := open(t, testenv.NATS(t), master)
	used := events.New(events.KeyUsed{Decision: "dec_1"}, at)
	used.Keyspace, used.Owner = "birds", "org_1"
	used.Data = seal.Use{KeyUsed: events.KeyUsed{Decision: "dec_1"}, ClearIP: "203.0.113.9", ClearUserAgent: "curl/8"}
	rejected := events.New(events.CredentialRejected{}, at)
	rejected.Keyspace = "birds"
	rejected.Data = seal.Rejected{CredentialRejected: events.CredentialRejected{Code: "UNKNOWN_KEY"}, ClearIP: "203.0.113.9"}
	other := events.New(events.KeyDenied{Code: "EXPIRED"}, at)
	page := []events.Envelope{used, rejected, other}

	for _, e := range page {
		if b, err := events.Encode(e); err != nil || strings.Contains(string(b), "203.0") || strings.Contains(string(b), "curl") {
			t.Errorf("encoded too early: %s, %v", b, err)
		}
	}
	for range 2 {
		if err := k.Prepare(t.Context(), page); err != nil {
			t.Fatal(err)
		}
	}
	u, r := page[0].Data.(events.KeyUsed), page[1].Data.(events.CredentialRejected)
	for _, c := range []struct {
		s    *events.Sealed
		want string
	}{{u.SourceIP, "203.0.113.9"}, {u.UserAgent, "curl/8"}, {r.SourceIP, "203.0.113.9"}} {
		if plain, err := k.Open(t.Context(), c.s); err != nil || plain != c.want {
			t.Errorf("opens as %q, %v, want %q", plain, err, c.want)
		}
	}
	if r.SourceIP.Key != "birds._.2026-02" {
		t.Errorf("without an owner sealed with %q", r.SourceIP.Key)
	}
}
