package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/reactors"
	"github.com/keyledger/keyledger/reactors/delivery"
	"github.com/keyledger/keyledger/reactors/lease"
	sender "github.com/keyledger/keyledger/reactors/webhooks"
)

// withWebhooks sends to webhooks, on loopback too, and serves anew. A fact that fails is
// dead after a moment.
func (s *service) withWebhooks() {
	s.t.Helper()
	js, err := jetstream.New(s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	store, err := delivery.Open(s.t.Context(), s.ledger, js, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	leases, err := lease.Open(s.t.Context(), js, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	policy, err := webhooks.ParsePolicy(true, []string{"127.0.0.0/8"})
	if err != nil {
		s.t.Fatal(err)
	}
	hooks := &sender.Webhooks{
		Registry: &webhooks.Registry{Ledger: s.ledger, Master: seal.Master{1}, Seal: s.deps.Seal, Policy: policy},
		Sender:   sender.NewSender(sender.Options{Master: seal.Master{1}, Policy: policy}), Store: store, Log: slog.New(slog.DiscardHandler),
	}
	if err := hooks.Engine(delivery.Options{Ledger: s.ledger, Leases: leases, MinBackoff: time.Millisecond, GiveUp: 50 * time.Millisecond, SaveEvery: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}); err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = hooks.Run(ctx) })
	feed, err := reactors.NewFeed(reactors.FeedOptions{Ledger: s.ledger, Conn: s.conn, Void: s.ring.Void, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	running.Go(func() { _ = feed.Run(ctx) })
	s.t.Cleanup(func() {
		stop()
		running.Wait()
		hooks.Sender.Close()
	})
	s.deps.Webhooks, s.deps.Deliveries, s.deps.TestWebhook = hooks.Registry, store, hooks.Test
	s.serve()
}

// revoked makes a key and revokes it.
func (s *service) revoked(owner string) {
	s.t.Helper()
	id, _ := s.create(map[string]any{"owner": owner})
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, "")
}

func webhookBody(fields map[string]any) string {
	b, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (a answer) hook() map[string]any {
	w, _ := a.json["webhook"].(map[string]any)
	return w
}

// until asks until an answer is as wanted.
func (s *service) until(path string, enough func(answer) bool) answer {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		a := s.must("GET", path, s.root, "")
		if enough(a) {
			return a
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s stays %s", path, a.body)
		}
		time.Sleep(5 * time.Millisecond) // nothing signals it
	}
}

// An endpoint is registered, tested, rotated, shown and removed; its secret is answered
// once, and what arrives is in its log.
func TestWebhooks(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.withWebhooks()
	var mu sync.Mutex
	var refuse bool
	ids := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			http.Error(w, "no", http.StatusTeapot)
			return
		}
		ids <- r.Header.Get("webhook-id")
	}))
	defer receiver.Close()

	body := webhookBody(map[string]any{"url": receiver.URL + "/in", "keyspace": "pb", "owner": "org_1", "types": []string{"key.revoked"}, "description": "one"})
	a := s.must("POST", "/v1/webhooks", s.root, body, "Idempotency-Key", "k1")
	id, _ := a.hook()["id"].(string)
	secret, _ := a.json["secret"].(string)
	if a.status != 201 || !strings.HasPrefix(secret, "whsec_") || a.header.Get("Location") != "/v1/webhooks/"+id || a.header.Get("Cache-Control") != "no-store" || a.hook()["status"] != "active" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	again := s.must("POST", "/v1/webhooks", s.root, body, "Idempotency-Key", "k1")
	if again.json["secret"] != nil || again.json["replayed"] != true || again.hook()["id"] != id {
		t.Errorf("%s", again.body)
	}
	s.refused(s.do("POST", "/v1/webhooks", s.root, webhookBody(map[string]any{"url": receiver.URL}), "Idempotency-Key", "k1"), 409, "IDEMPOTENCY_KEY_REUSED")

	tested := s.must("POST", "/v1/webhooks/"+id+"/test", s.root, "")
	if tested.json["delivered"] != true || <-ids == "" {
		t.Errorf("%s", tested.body)
	}
	s.revoked("org_2")
	s.revoked("org_1")
	<-ids
	s.until("/v1/webhooks/"+id, func(a answer) bool {
		return a.json["delivery"].(map[string]any)["delivered"] == 1.0 && a.json["delivery"].(map[string]any)["in_flight"] == 0.0
	})
	s.until("/v1/webhooks/"+id+"/deliveries", func(a answer) bool { return len(a.json["deliveries"].([]any)) == 2 })

	// What is refused for as long as a fact is tried is a dead letter, and can be replayed.
	mu.Lock()
	refuse = true
	mu.Unlock()
	s.revoked("org_1")
	dead := s.until("/v1/dead-letters?target="+id, func(a answer) bool { return len(a.json["dead_letters"].([]any)) == 1 })
	letter := dead.json["dead_letters"].([]any)[0].(map[string]any)
	if letter["state"] != "dead" || letter["event"] != nil || !strings.Contains(fmt.Sprint(letter["reason"]), "418") {
		t.Errorf("%v", letter)
	}
	sequence := fmt.Sprint(letter["sequence"])
	if a := s.must("GET", "/v1/dead-letters/"+sequence, s.root, ""); a.json["event"] == nil {
		t.Errorf("%s", a.body)
	}
	if a := s.until("/v1/webhooks/"+id, func(a answer) bool { return a.json["delivery"].(map[string]any)["dead_letters"] == 1.0 }); a.json["status"] != "failing" {
		t.Errorf("%s", a.body)
	}
	mu.Lock()
	refuse = false
	mu.Unlock()
	if a := s.must("POST", "/v1/dead-letters/replay", s.root, `{"target":"`+id+`"}`); fmt.Sprint(a.json["replaying"]) != "["+sequence+"]" {
		t.Errorf("%s", a.body)
	}
	if got := <-ids; got != letter["id"] {
		t.Errorf("%s arrives again instead of %s", got, letter["id"])
	}
	s.until("/v1/dead-letters?state=replayed", func(a answer) bool { return len(a.json["dead_letters"].([]any)) == 1 })
	if a := s.must("POST", "/v1/dead-letters/replay", s.root, `{"sequences":[`+sequence+`]}`); fmt.Sprint(a.json["skipped"]) != "["+sequence+"]" {
		t.Errorf("%s", a.body)
	}
	s.refused(s.do("POST", "/v1/dead-letters/replay", s.root, `{"sequences":[99]}`), 404, "DEAD_LETTER_NOT_FOUND")
	s.refused(s.do("POST", "/v1/dead-letters/replay", s.root, `{}`), 422, "INVALID")
	s.refused(s.do("GET", "/v1/dead-letters?target=a.b", s.root, ""), 422, "INVALID")

	rotated := s.must("POST", "/v1/webhooks/"+id+"/rotate-secret", s.root, `{"grace":"1h"}`)
	if next := rotated.json["secret"]; next == nil || next == secret || rotated.hook()["previous_secret_until"] == nil {
		t.Errorf("%s", rotated.body)
	}
	s.must("POST", "/v1/webhooks/"+id+"/rotate-secret", s.root, "")
	s.refused(s.do("POST", "/v1/webhooks/"+id+"/rotate-secret", s.root, `{"grace":"8d"}`), 422, "INVALID")
	s.must("POST", "/v1/webhooks/"+id+"/enable", s.root, "")
	list := s.must("GET", "/v1/webhooks", s.root, "")
	if len(list.json["webhooks"].([]any)) != 1 || strings.Contains(string(list.body), "whsec_") {
		t.Errorf("%s", list.body)
	}
	s.must("DELETE", "/v1/webhooks/"+id, s.root, "")
	s.refused(s.do("GET", "/v1/webhooks/"+id, s.root, ""), 404, "WEBHOOK_NOT_FOUND")

	for path, bad := range map[string]map[string]any{
		"url":         {"url": "https://10.0.0.1/"},
		"types.0":     {"url": receiver.URL, "types": []string{"key.nothing"}},
		"keys.0":      {"url": receiver.URL, "keys": []string{"key_nobody"}},
		"description": {"url": receiver.URL, "description": strings.Repeat("x", 501)},
		"from":        {"url": receiver.URL, "from": 1000},
	} {
		a := s.do("POST", "/v1/webhooks", s.root, webhookBody(bad))
		if s.refused(a, 422, "INVALID"); !strings.Contains(string(a.body), `"`+path+`"`) {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

// A manager has webhooks for what it may see itself, an auditor reads them, and nobody
// else has anything.
func TestWebhookAuthority(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.withWebhooks()
	role := func(body string) string { return s.must("POST", "/v1/root-keys", s.root, body).json["secret"].(string) }
	manager := role(`{"name":"m","role":"manager","keyspace":"pb","owner":"org_1"}`)
	auditor := role(`{"name":"a","role":"auditor"}`)
	verifier := role(`{"name":"v","role":"verifier"}`)
	theirs := s.must("POST", "/v1/webhooks", s.root, `{"url":"https://example.com/2","keyspace":"pb","owner":"org_2"}`).hook()["id"].(string)
	all := s.must("POST", "/v1/webhooks", s.root, `{"url":"https://example.com/all"}`).hook()["id"].(string)
	mine := s.must("POST", "/v1/webhooks", manager, `{"url":"https://example.com/1"}`)
	if mine.hook()["keyspace"] != "pb" || mine.hook()["owner"] != "org_1" {
		t.Errorf("%s", mine.body)
	}
	id := mine.hook()["id"].(string)
	s.refused(s.do("POST", "/v1/webhooks", manager, `{"url":"https://example.com/1","owner":"org_2"}`), 404, "OWNER_NOT_FOUND")
	s.refused(s.do("POST", "/v1/webhooks", manager, `{"url":"https://example.com/1","keyspace":"other"}`), 404, "KEYSPACE_NOT_FOUND")
	if a := s.must("GET", "/v1/webhooks", manager, ""); len(a.json["webhooks"].([]any)) != 1 {
		t.Errorf("%s", a.body)
	}
	if a := s.must("GET", "/v1/webhooks", auditor, ""); len(a.json["webhooks"].([]any)) != 3 {
		t.Errorf("%s", a.body)
	}
	s.must("GET", "/v1/dead-letters?target="+id, manager, "")
	s.must("GET", "/v1/dead-letters", auditor, "")
	s.refused(s.do("GET", "/v1/dead-letters", manager, ""), 403, "FORBIDDEN")
	s.refused(s.do("GET", "/v1/dead-letters?reactor=sinks&target="+id, manager, ""), 403, "FORBIDDEN")
	s.refused(s.do("GET", "/v1/webhooks", verifier, ""), 403, "FORBIDDEN")
	for _, foreign := range []string{theirs, all, "whk_nobody"} {
		for _, call := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"POST", "/test"}, {"POST", "/rotate-secret"}, {"POST", "/enable"}, {"GET", "/deliveries"}} {
			s.refused(s.do(call[0], "/v1/webhooks/"+foreign+call[1], manager, ""), 404, "WEBHOOK_NOT_FOUND")
		}
		s.refused(s.do("GET", "/v1/dead-letters?target="+foreign, manager, ""), 404, "WEBHOOK_NOT_FOUND")
		s.refused(s.do("POST", "/v1/dead-letters/replay", manager, `{"target":"`+foreign+`"}`), 404, "WEBHOOK_NOT_FOUND")
	}
	for _, call := range [][2]string{{"DELETE", ""}, {"POST", "/test"}, {"POST", "/rotate-secret"}, {"POST", "/enable"}} {
		s.refused(s.do(call[0], "/v1/webhooks/"+id+call[1], auditor, ""), 403, "FORBIDDEN")
	}
	s.must("DELETE", "/v1/webhooks/"+id, manager, "")
}
