package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

type fact struct {
	Sequence       uint64
	LedgerSequence uint64 `json:"ledger_sequence"`
	Previous       uint64
	Event          json.RawMessage
	name, id       string // of Server-Sent Events
}

func (f *fact) envelope(t testing.TB) (e events.Envelope) {
	t.Helper()
	e, err := events.Decode(f.Event)
	if err != nil {
		t.Fatalf("%s: %v", f.Event, err)
	}
	return e
}

type factPage struct {
	Events         []fact
	Sequence       uint64
	LedgerSequence uint64 `json:"ledger_sequence"`
	More           bool
}

func (s *service) facts(query, credential string, header ...string) (p factPage) {
	s.t.Helper()
	a := s.must("GET", "/v1/feeds/events"+query, credential, "", header...)
	if err := json.Unmarshal(a.body, &p); err != nil {
		s.t.Fatalf("%v: %s", err, a.body)
	}
	return p
}

// followFacts hands on what is sent until the connection ends, which closes the channel.
func followFacts(t testing.TB, ctx context.Context, url, credential, last string) <-chan fact {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", last)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		t.Fatalf("%s: %s", resp.Status, body)
	}
	sent := make(chan fact)
	go func() {
		defer close(sent)
		defer resp.Body.Close()
		var f fact
		in := bufio.NewScanner(resp.Body)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			field, value, _ := strings.Cut(in.Text(), ": ")
			switch field {
			case "event":
				f.name = value
			case "id":
				f.id = value
			case "data":
				if json.Unmarshal([]byte(value), &f) != nil {
					return
				}
			case "":
				if f.id != "" {
					select {
					case sent <- f:
					case <-ctx.Done():
						return
					}
				}
				f = fact{}
			}
		}
	}()
	return sent
}

// What stands in FEED is answered byte for byte, in pages and by filters, to whoever may
// see it, whether it is in memory or in the stream alone.
func TestFeed(t *testing.T) {
	s := start(t)
	s.withFeed()
	s.configure("pb")
	s.configure("other")
	mine, _ := s.create(nil)
	theirs, _ := s.create(map[string]any{"owner": "org_2"})
	other, _ := s.create(map[string]any{"keyspace": "other"})
	s.withRecent() // what came before is in the stream alone
	s.must("POST", "/v1/keys/"+mine+"/rotate", s.root, `{}`)
	s.must("POST", "/v1/keys/"+mine+"/revoke", s.root, `{"reason":"<leaked> & lost"}`)
	s.must("POST", "/v1/keys/"+theirs+"/revoke", s.root, `{"reason":"leaked"}`)
	min := s.must("POST", "/v1/keys/"+other+"/revoke", s.root, `{"reason":"leaked"}`).header.Get("Ledger-Sequence")

	p := s.facts("?limit=1000", s.root, "Min-Sequence", min)
	var stored []events.Record
	for r, err := range s.ledger.Read(t.Context(), events.Feed, 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, r)
	}
	if len(p.Events) != len(stored) || p.More || p.Sequence != uint64(len(stored)) || strconv.FormatUint(p.LedgerSequence, 10) != min {
		t.Fatalf("%d events up to %d (LEDGER %d), more %v; FEED holds %d", len(p.Events), p.Sequence, p.LedgerSequence, p.More, len(stored))
	}
	for i, f := range p.Events {
		if string(f.Event) != string(stored[i].Body) || f.Sequence != stored[i].Sequence || f.LedgerSequence != stored[i].Ledger || f.LedgerSequence == 0 {
			t.Errorf("%d: %+v is not what stands in FEED: %s", i, f, stored[i].Body)
		}
	}
	if body := s.must("GET", "/v1/feeds/events", s.root, "").body; strings.Contains(string(body), "sha256") {
		t.Error("a hash of a secret is answered")
	}

	// In pages the same is told, once.
	var paged []uint64
	for after, more := uint64(0), true; more; {
		page := s.facts(fmt.Sprintf("?limit=2&after=%d", after), s.root)
		for _, f := range page.Events {
			paged = append(paged, f.Sequence)
		}
		after, more = page.Sequence, page.More
	}
	if len(paged) != len(stored) || !slices.IsSorted(paged) {
		t.Errorf("in pages: %d", paged)
	}

	types := func(p factPage) (list []string) {
		for _, f := range p.Events {
			e := f.envelope(t)
			list = append(list, e.Type+" "+e.Keyspace+"/"+e.Owner)
		}
		return list
	}
	for query, want := range map[string][]string{
		"?type=key.revoked":                                 {"key.revoked pb/org_1", "key.revoked pb/org_2", "key.revoked other/org_1"},
		"?type=key.revoked&keyspace=pb":                     {"key.revoked pb/org_1", "key.revoked pb/org_2"},
		"?type=key.revoked,key.*,key.created&owner=org_2":   {"key.created pb/org_2", "key.revoked pb/org_2"},
		"?type=key.deleted":                                 nil,
		"?keyspace=pb&type=keyspace.configured":             {"keyspace.configured pb/"},
		"?type=key.revoked&keyspace=other&owner=org_1":      {"key.revoked other/org_1"},
		"?type=key.created,key.rotated&owner=org_1&limit=2": {"key.created pb/org_1", "key.created other/org_1"},
	} {
		if got := types(s.facts(query, s.root)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}

	// Owners, managers and customers' keys see their own, auditors no root keys.
	root := func(body string) string {
		return s.must("POST", "/v1/root-keys", s.root, body).json["secret"].(string)
	}
	manager := root(`{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	_, customer := s.create(map[string]any{"scopes": []string{"keys:manage"}})
	auditor := root(`{"name":"a","role":"auditor"}`)
	for _, credential := range []string{manager, customer} {
		for _, text := range types(s.facts("", credential)) {
			if !strings.HasSuffix(text, " pb/org_1") {
				t.Errorf("of org_1: %s", text)
			}
		}
		s.refused(s.do("GET", "/v1/feeds/events?owner=org_2", credential, ""), 404, "OWNER_NOT_FOUND")
		s.refused(s.do("GET", "/v1/feeds/events?keyspace=other", credential, ""), 404, "KEYSPACE_NOT_FOUND")
	}
	if all := types(s.facts("?limit=1000", auditor)); len(all) < 10 || slices.ContainsFunc(all, func(text string) bool { return strings.Contains(text, " keyledger/") }) {
		t.Errorf("an auditor sees %q", all)
	}
	if all := types(s.facts("?keyspace=keyledger", s.root, "Min-Sequence", strconv.FormatUint(s.head(), 10))); len(all) < 3 {
		t.Errorf("an operator sees of root keys %q", all)
	}
	s.refused(s.do("GET", "/v1/feeds/events", root(`{"name":"v","role":"verifier"}`), ""), 403, "FORBIDDEN")
	for _, wrong := range []string{"?after=x", "?after=-1", "?after=9999", "?limit=0", "?limit=1001", "?before=1", "?type=key.used", "?type=*.*", "?type=key.revoked,x", "?type=key.>"} {
		s.refused(s.do("GET", "/v1/feeds/events"+wrong, s.root, ""), 422, "INVALID")
	}
	s.refused(s.do("GET", "/v1/feeds/events", s.root, "", "Last-Event-ID", "forged", "Accept", "text/event-stream"), 422, "INVALID")
}

// What there was comes first, then "reached", then what happens; a manager's stream has
// nothing of others, goes on behind Last-Event-ID on another node, and ends with its key.
func TestFeedEvents(t *testing.T) {
	s := start(t)
	s.withFeed()
	s.configure("pb")
	first, _ := s.create(nil)
	theirs, _ := s.create(map[string]any{"owner": "org_2"})
	end := s.withRecent()
	m := s.must("POST", "/v1/root-keys", s.root, `{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	manager := m.json["secret"].(string)
	s.must("POST", "/v1/keys/"+first+"/rotate", s.root, `{"grace":"1h"}`)
	s.facts("", s.root, "Min-Sequence", strconv.FormatUint(s.head(), 10))
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	var last uint64
	var sent <-chan fact
	expect := func(kind, key string) {
		t.Helper()
		f := <-sent
		if f.id != strconv.FormatUint(f.Sequence, 10) || f.Previous != last {
			t.Errorf("sent %+v after %d", f, last)
		}
		last = f.Sequence
		if f.name != "" || kind == "reached" {
			if f.name != kind || f.Event != nil {
				t.Errorf("sent %+v instead of %s", f, kind)
			}
			return
		}
		if e := f.envelope(t); e.Type != kind || key != "" && e.Key != key {
			t.Errorf("sent %s of %s instead of %s of %s", e.Type, e.Key, kind, key)
		}
	}
	sent = followFacts(t, ctx, s.url+"/v1/feeds/events?type=key.*", manager, "0")
	expect("key.created", first)
	expect("key.rotated", first)
	expect("reached", "")
	s.must("POST", "/v1/keys/"+theirs+"/revoke", s.root, `{"reason":"leaked"}`)
	s.must("POST", "/v1/keys/"+first+"/end-grace", s.root, `{}`)
	expect("key.grace_ended", first)
	end()
	for range sent {
		t.Error("sent after the service has ended")
	}
	s.withRecent()
	s.must("POST", "/v1/keys/"+first+"/revoke", s.root, `{"reason":"leaked"}`)
	s.facts("", s.root, "Min-Sequence", strconv.FormatUint(s.head(), 10))
	sent = followFacts(t, ctx, s.url+"/v1/feeds/events?type=key.*", manager, strconv.FormatUint(last, 10))
	expect("key.revoked", first)
	expect("reached", "")
	s.must("POST", "/v1/keys/"+m.key()["id"].(string)+"/revoke", s.root, `{"reason":"gone"}`)
	if f, ok := <-sent; ok {
		t.Errorf("sent after its key was revoked: %+v", f)
	}
	if ctx.Err() != nil {
		t.Error("the stream goes on although its key was revoked")
	}
}

// The description of what subscribers get is served with all that it refers to; nothing
// else of the program is.
func TestPublishedSchemas(t *testing.T) {
	s := start(t)
	var index struct {
		Schemas []struct{ Type, ID, URL, Stream string }
	}
	if err := json.Unmarshal(s.must("GET", "/schemas", "", "").body, &index); err != nil {
		t.Fatal(err)
	}
	urls := map[string]bool{}
	for _, x := range index.Schemas {
		a := s.must("GET", x.URL, "", "")
		if a.header.Get("Content-Type") != "application/schema+json" || a.json["$id"] != x.ID || a.json["title"] != x.Type {
			t.Errorf("%s is %s", x.URL, a.body)
		}
		urls[strings.TrimPrefix(x.URL, "/")] = x.Stream == events.Ledger
	}
	if len(urls) < len(events.Types()) {
		t.Errorf("%d schemas of %d types", len(urls), len(events.Types()))
	}
	a := s.must("GET", "/asyncapi.yaml", "", "")
	if !strings.HasPrefix(a.header.Get("Content-Type"), "application/yaml") {
		t.Errorf("the description is of type %s", a.header.Get("Content-Type"))
	}
	refs := regexp.MustCompile(`schemas/[a-z_.]+\.v\d+\.json`).FindAllString(string(a.body), -1)
	for _, ref := range refs {
		if _, ok := urls[ref]; !ok {
			t.Errorf("the description refers to %s, which is not there", ref)
		}
	}
	for url, fed := range urls {
		if fed && !slices.Contains(refs, url) {
			t.Errorf("the description lacks %s", url)
		}
	}
	for _, path := range []string{"/schemas/x.json", "/schemas/..%2fasyncapi.yaml", "/schemas/..", "/schemas/%2e%2e/types.go"} {
		if a := s.do("GET", path, "", ""); a.status != 404 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}
