package queries

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
)

// log is a ledger with the three streams that the audit log reads.
type log struct {
	*Audit
	t        testing.TB
	l        *ledger.Ledger
	keys     *seal.Keys
	expected map[string]uint64
	versions map[string]uint64
}

func newLog(t testing.TB) *log {
	t.Helper()
	return newLogOn(t, testenv.Conn(t, testenv.NATS(t)))
}

func newLogOn(t testing.TB, nc *nats.Conn) *log {
	t.Helper()
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return &log{NewAudit(l), t, l, keys, map[string]uint64{}, map[string]uint64{}}
}

func (l *log) fact(at time.Time, keyspace, owner, key string, data events.Payload) {
	l.t.Helper()
	e := events.New(data, at)
	e.Keyspace, e.Owner, e.Key, e.Actor = keyspace, owner, key, events.Actor{Type: "root_key", ID: "key_root"}
	subject := events.Subject(keyspace, owner, key)
	l.versions[subject]++
	e.KeyVersion = l.versions[subject]
	seq, err := l.l.Append(l.t.Context(), l.expected[subject], e)
	if err != nil {
		l.t.Fatal(err)
	}
	l.expected[subject] = seq
}

func (l *log) act(at time.Time, data events.Payload) {
	l.t.Helper()
	e := events.New(data, at)
	if _, err := l.l.AppendOps(l.t.Context(), e); err != nil {
		l.t.Fatal(err)
	}
}

// page records one use per moment in one page.
func (l *log) page(keyspace, owner, key string, moments ...time.Time) {
	l.t.Helper()
	var bodies [][]byte
	for _, at := range moments {
		ip, err := l.keys.Seal(l.t.Context(), keyspace, owner, at, "203.0.113.7")
		if err != nil {
			l.t.Fatal(err)
		}
		e := events.New(events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: "/v1/<b>", Status: new(200), SourceIP: ip, Secret: "current"}, at)
		e.Keyspace, e.Owner, e.Key = keyspace, owner, key
		b, err := events.Encode(e)
		if err != nil {
			l.t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	if _, err := l.l.AppendPage(l.t.Context(), keyspace, "n1", bodies); err != nil {
		l.t.Fatal(err)
	}
}

func after(seconds int) time.Time {
	return time.Now().Add(-time.Hour).Truncate(time.Second).Add(time.Duration(seconds) * time.Second)
}

// life is a small history over three streams; its times are recent, because the
// server's own clock stores it.
func life(t testing.TB) *log {
	l := newLog(t)
	base := after(0)
	at := func(n int) time.Time { return base.Add(time.Duration(n) * time.Second) }
	l.fact(at(1), "parcelbird", "o1", "", events.OwnerRegistered{Name: "One"})
	l.fact(at(2), "parcelbird", "o1", "key_a", events.KeyCreated{Name: "=cmd()", Secret: events.Secret{SHA256: strings.Repeat("ab", 32), First: "pb_live_"}})
	l.page("parcelbird", "o1", "key_a", at(4), at(5), at(9))
	l.act(at(6), events.ServiceStarted{Program: "serve"})
	l.page("parcelbird", "o1", "key_b", at(10), at(12))
	l.fact(at(11), "parcelbird", "o1", "key_a", events.KeyRevoked{Reason: "leaked"})
	l.fact(at(13), "keyledger", "", "key_root", events.KeyCreated{Name: "root", Role: "operator"})
	l.page("wind", "o9", "key_w", at(14))
	return l
}

func (l *log) list(f AuditFilter) string {
	l.t.Helper()
	var out []string
	for {
		page, err := l.Events(l.t.Context(), f, l.keys)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, e := range page.Events {
			out = append(out, fmt.Sprintf("%s:%d.%d", e.Stream[:1], e.Sequence, e.Line))
		}
		if page.NextCursor == "" {
			return strings.Join(out, " ")
		}
		f.After = page.NextCursor
	}
}

// The three streams read as one list in time order; every filter answers what it
// names, in pages of any size.
func TestAuditEvents(t *testing.T) {
	l := life(t)
	first, err := l.l.At(t.Context(), events.Ledger, 1)
	if err != nil {
		t.Fatal(err)
	}
	zero := first[0].Event.Time - 1000
	const all = "L:1.0 L:2.0 U:1.0 U:1.1 O:1.0 U:1.2 U:2.0 L:3.0 U:2.1 L:4.0 U:3.0"
	for _, c := range []struct {
		f    AuditFilter
		want string
	}{
		{AuditFilter{}, all},
		{AuditFilter{Limit: 1}, all},
		{AuditFilter{Limit: 2}, all},
		{AuditFilter{Limit: 3}, all},
		{AuditFilter{Keyspace: "parcelbird"}, "L:1.0 L:2.0 U:1.0 U:1.1 U:1.2 U:2.0 L:3.0 U:2.1"},
		{AuditFilter{Keyspace: "wind"}, "U:3.0"},
		{AuditFilter{Owner: "o1"}, "L:1.0 L:2.0 U:1.0 U:1.1 U:1.2 U:2.0 L:3.0 U:2.1"},
		{AuditFilter{Key: "key_a"}, "L:2.0 U:1.0 U:1.1 U:1.2 L:3.0"},
		{AuditFilter{Keyspace: "parcelbird", Owner: "o1", Key: "key_a", Limit: 1}, "L:2.0 U:1.0 U:1.1 U:1.2 L:3.0"},
		{AuditFilter{Key: "key_root"}, "L:4.0"},
		{AuditFilter{Keyspace: "keyledger"}, "L:4.0"},
		{AuditFilter{Types: []string{"key.used"}}, "U:1.0 U:1.1 U:1.2 U:2.0 U:2.1 U:3.0"},
		{AuditFilter{Types: []string{"key.revoked", "service.started"}}, "O:1.0 L:3.0"},
		{AuditFilter{Actor: "key_root"}, "L:1.0 L:2.0 L:3.0 L:4.0"},
		{AuditFilter{Actor: "root_key:key_root", Types: []string{"key.revoked"}}, "L:3.0"},
		{AuditFilter{From: zero + 6000, To: zero + 11000}, "O:1.0 U:1.2 U:2.0"},
		{AuditFilter{From: zero + 12000}, "U:2.1 L:4.0 U:3.0"},
		{AuditFilter{To: zero + 3000}, "L:1.0 L:2.0"},
		{AuditFilter{From: events.At(time.Now().Add(24 * time.Hour))}, ""},
		{AuditFilter{To: events.At(time.Now().Add(-240 * time.Hour))}, ""},
	} {
		if got := l.list(c.f); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.f, got, c.want)
		}
	}
}

// A page goes on exactly where the one before ended, however records came in
// between, and the end has a cursor to ask for what comes later.
func TestAuditCursor(t *testing.T) {
	l := life(t)
	page, err := l.Events(t.Context(), AuditFilter{}, nil)
	if err != nil || page.NextCursor != "" {
		t.Fatal(page.NextCursor, err)
	}
	if got := l.list(AuditFilter{After: page.End}); got != "" {
		t.Errorf("behind the end is %s", got)
	}
	// A fact with an earlier time than all that were read is not lost.
	l.fact(after(-1000), "parcelbird", "o1", "key_a", events.KeyDeleted{})
	l.page("parcelbird", "o1", "key_a", after(1), after(2))
	if got := l.list(AuditFilter{After: page.End}); got != "L:5.0 U:4.0 U:4.1" {
		t.Errorf("behind the end is %s", got)
	}
	for _, e := range page.Events[:3] {
		if got := l.list(AuditFilter{After: e.Cursor, To: page.Events[3].Event.Time + 1}); e.Stream == events.Ledger && !strings.Contains(got, "U:1.1") {
			t.Errorf("behind %s %d.%d is %s", e.Stream, e.Sequence, e.Line, got)
		}
	}
	for _, f := range []AuditFilter{{After: "x"}, {After: page.End[1:]}, {Types: []string{"key.exploded"}}, {Key: "*"}, {Owner: ">"}, {Keyspace: "a.b"},
		{From: 2, To: 1}, {Limit: 5000}} {
		if _, err := l.Events(t.Context(), f, nil); !refused(err, "INVALID") {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// Who may open sees personal data and the stored bytes; others see neither
// personal data nor hashes; what was erased says so.
func TestAuditShows(t *testing.T) {
	l := life(t)
	find := func(o Opener, kind string) string {
		for e, err := range l.All(t.Context(), AuditFilter{Types: []string{kind}}, o) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		t.Fatalf("no %s", kind)
		return ""
	}
	if s := find(l.keys, "key.used"); !strings.Contains(s, `"source_ip":"203.0.113.7"`) || !strings.HasSuffix(s, `,"stream":"USAGE","sequence":1,"line":0}`) {
		t.Errorf("an auditor sees %s", s)
	}
	if s := find(nil, "key.used"); !strings.Contains(s, `"source_ip":{"sealed":true}`) {
		t.Errorf("others see %s", s)
	}
	if s := find(l.keys, "key.created"); !strings.Contains(s, "abab") {
		t.Errorf("an auditor sees %s", s)
	}
	if s := find(nil, "key.created"); strings.Contains(s, "abab") || !strings.Contains(s, "pb_live_") {
		t.Errorf("others see %s", s)
	}
	if err := l.keys.Destroy(t.Context(), time.Now(), seal.KeyID("parcelbird", "o1", after(0))); err != nil {
		t.Fatal(err)
	}
	if s := find(l.keys, "key.used"); !strings.Contains(s, `"source_ip":{"erased":true}`) {
		t.Errorf("after erasing an auditor sees %s", s)
	}
}

// The tail has everything behind its cursor and then what comes, each record
// with the cursor from which another tail goes on.
func TestAuditTail(t *testing.T) {
	l := life(t)
	page, err := l.Events(t.Context(), AuditFilter{Limit: 9}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []string
	last := page.NextCursor
	for e, err := range l.Tail(ctx, AuditFilter{After: last}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s:%d.%d", e.Stream[:1], e.Sequence, e.Line))
		last = e.Cursor
		if len(got) == 2 {
			l.page("parcelbird", "o1", "key_a", after(1), after(2))
		}
		if len(got) == 3 {
			break // in the middle of a page
		}
	}
	l.fact(after(3), "parcelbird", "o1", "key_a", events.KeyDeleted{})
	for e, err := range l.Tail(ctx, AuditFilter{After: last}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s:%d.%d", e.Stream[:1], e.Sequence, e.Line))
		if len(got) == 5 {
			break
		}
	}
	if s := strings.Join(got, " "); s != "L:4.0 U:3.0 U:4.0 U:4.1 L:5.0" && s != "L:4.0 U:3.0 U:4.0 L:5.0 U:4.1" {
		t.Errorf("the tail is %s", s)
	}
	ended, stop := context.WithCancel(ctx)
	stop()
	for _, err := range l.Tail(ended, AuditFilter{}, nil) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a tail whose context ended: %v", err)
		}
	}
}

// No cell of the table is a formula, and it reads back.
func TestCSV(t *testing.T) {
	l := life(t)
	var b bytes.Buffer
	if err := WriteCSV(&b, l.All(t.Context(), AuditFilter{}, l.keys)); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 12 || len(rows[1]) != len(CSVHeader) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if rows[3][11] != "203.0.113.7" || rows[3][1] != "key.used" {
		t.Errorf("row %q", rows[3])
	}
	for in, want := range map[string]string{"": "", "a=b": "a=b", "=cmd()": "'=cmd()", "+1": "'+1", "-1": "'-1", "@x": "'@x", "\tx": "'\tx", "\rx": "' x", "a\r\nb": "a\nb"} {
		if got := Cell(in); got != want {
			t.Errorf("Cell(%q) = %q, want %q", in, got, want)
		}
	}
}
