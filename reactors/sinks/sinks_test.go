package sinks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors/delivery"
)

func revoked(n uint64) delivery.Fact {
	id := fmt.Sprintf("evt_%d", n)
	return delivery.Fact{
		ID: id, Type: "key.revoked", Stream: "FEED", Sequence: n, Subject: "feed.key.revoked.parcelbird.birdwatch.key_1",
		Header: nats.Header{"ce-id": {id}, "ce-specversion": {"1.0"}, "ce-type": {"key.revoked"}, "ce-datacontenttype": {"application/json"}, "Ledger-Sequence": {"7"}},
		Body:   fmt.Appendf(nil, `{"id":%q,"type":"key.revoked","data":{"reason":"a <b> & ü"}}`, id), Keyspace: "parcelbird", Owner: "birdwatch", Key: "key_1",
	}
}

func want(f delivery.Fact) message.Metadata {
	return message.Metadata{
		"type": f.Type, "stream": "FEED", "sequence": fmt.Sprint(f.Sequence), "keyspace": "parcelbird", "owner": "birdwatch", "key": "key_1",
		"ce-id": f.ID, "ce-specversion": "1.0", "ce-type": "key.revoked", "ce-datacontenttype": "application/json",
	}
}

// opened are the sinks of settings in YAML.
func opened(t *testing.T, settings string) []*Sink {
	t.Helper()
	all, err := Read(written(t, settings))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		t.Cleanup(func() { s.Close() })
	}
	return all
}

func written(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// received is a request as a server got it.
type received struct {
	header http.Header
	body   string
}

// receiver is an HTTP server that answers with answer.
func receiver(t *testing.T, answer http.HandlerFunc) (url string, got chan received) {
	t.Helper()
	got = make(chan received, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- received{r.Header.Clone(), string(b)}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

// A server gets the envelope's bytes, the attributes as headers and an id that is
// the same in every attempt, on one connection.
func TestHTTP(t *testing.T) {
	connections := map[string]bool{}
	status := 200
	url, got := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		connections[r.RemoteAddr] = true
		w.WriteHeader(status)
		fmt.Fprint(w, strings.Repeat("thanks ", 1000))
	})
	token := written(t, "t0ken\n")
	s := opened(t, fmt.Sprintf("sinks:\n- {name: billing, kind: http, url: %q, token_file: %q, headers: {X-From: keyledger}}", url+"/in?a=b", token))[0]
	for n := range uint64(3) {
		f := revoked(n)
		for _, status = range []int{500, 404, 201} {
			err := s.Deliver(t.Context(), f)
			if (err == nil) != (status == 201) {
				t.Fatalf("%d: %v", status, err)
			}
			r := <-got
			if r.body != string(f.Body) {
				t.Errorf("The body is not the envelope: %s", r.body)
			}
			var metadata message.Metadata
			if err := json.Unmarshal([]byte(r.header.Get("Message-Metadata")), &metadata); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want(f), metadata); diff != "" {
				t.Error(diff)
			}
			for name, value := range map[string]string{
				"Content-Type": "application/json", "Authorization": "Bearer t0ken", "X-From": "keyledger", "Message-Uuid": f.ID,
				"Ce-Id": f.ID, "Ce-Type": "key.revoked", "Ce-Specversion": "1.0", "Ce-Datacontenttype": "",
			} {
				if r.header.Get(name) != value {
					t.Errorf("%s is %q", name, r.header.Get(name))
				}
			}
		}
	}
	if len(connections) != 1 {
		t.Errorf("nine requests took %d connections", len(connections))
	}
}

// What is no 2xx is not taken: a redirect, a server that is away or does not answer.
// The error says so without the URL, whose query may be a secret.
func TestHTTPNotTaken(t *testing.T) {
	elsewhere, unasked := receiver(t, func(http.ResponseWriter, *http.Request) {})
	redirecting, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, http.StatusFound) })
	hanging, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	away := fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t))
	for url, says := range map[string]string{redirecting: "redirects are not followed", hanging: "deadline", away: "connection refused"} {
		s := opened(t, fmt.Sprintf("sinks:\n- {name: billing, kind: http, url: %q, timeout: 100ms}", url+"?key=s3cret"))[0]
		err := s.Deliver(t.Context(), revoked(1))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "sink billing") {
			t.Errorf("%s: %v", says, err)
		}
	}
	if len(unasked) > 0 {
		t.Error("A redirect was followed.")
	}
}

// nginx takes what a sink sends and hands it on unchanged.
func TestNginx(t *testing.T) {
	url, got := receiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	dir, port := t.TempDir(), testenv.FreePort(t)
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `daemon off; master_process off; pid %[1]s/pid; error_log stderr notice; events {}
http { access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
server { listen 127.0.0.1:%[2]d; location /in { proxy_pass %[3]s; } } }`, dir, port, url), 0o600); err != nil {
		t.Fatal(err)
	}
	path, env := testenv.Nginx(t)
	testenv.Start(t, env, path, "-p", dir, "-c", conf).WaitOutput("getrlimit", 30*time.Second)
	s := opened(t, fmt.Sprintf("sinks:\n- {name: billing, kind: http, url: \"http://127.0.0.1:%d/in\"}", port))[0]
	f := revoked(1)
	taken(t, s, f)
	if r := <-got; r.body != string(f.Body) || r.header.Get("ce-id") != f.ID || r.header.Get("Message-Uuid") != f.ID {
		t.Errorf("%+v", r)
	}
}

// taken delivers until the other side takes it: it may be about to start.
func taken(t *testing.T, s *Sink, f delivery.Fact) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := s.Deliver(ctx, f)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Watermill's subscriber reads from a real Redis what the sink put there, also after
// Redis was killed and came back; meanwhile the sink says that nothing was taken.
func TestRedis(t *testing.T) {
	r := testenv.Redis(t, "pass word")
	t.Setenv("KEYLEDGER_SINK_ON_THE_BUS_PASSWORD", "pass word")
	s := opened(t, fmt.Sprintf("sinks:\n- {name: on-the-bus, kind: redis_stream, address: %q, stream: keyledger, timeout: 2s}", r.Address))[0]
	first := revoked(1)
	if err := s.Deliver(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	if err := s.Deliver(t.Context(), revoked(2)); err == nil || strings.Contains(err.Error(), "pass word") {
		t.Errorf("nobody is there: %v", err)
	}
	r.Start()
	second := revoked(2)
	taken(t, s, second)

	client := redis.NewClient(&redis.Options{Addr: r.Address, Password: "pass word"})
	subscriber, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: client, ConsumerGroup: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(t.Context(), "keyledger")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []delivery.Fact{first, second} {
		m := <-messages
		if m.UUID != f.ID || string(m.Payload) != string(f.Body) {
			t.Errorf("%s %s", m.UUID, m.Payload)
		}
		if diff := cmp.Diff(want(f), m.Metadata); diff != "" {
			t.Error(diff)
		}
		m.Ack()
	}

	wrongly := opened(t, fmt.Sprintf("sinks:\n- {name: b, kind: redis_stream, address: %q, stream: keyledger, password_file: %q}", r.Address, written(t, "other word")))[0]
	if err := wrongly.Deliver(t.Context(), first); err == nil || strings.Contains(err.Error(), "other word") {
		t.Errorf("with a wrong password: %v", err)
	}
}

// A stream keeps about as many messages as was asked for.
func TestRedisMaxLength(t *testing.T) {
	r := testenv.Redis(t, "")
	s := opened(t, fmt.Sprintf("sinks:\n- {name: bus, kind: redis_stream, address: %q, stream: short, max_length: 100}", r.Address))[0]
	for n := range uint64(1000) {
		if err := s.Deliver(t.Context(), revoked(n)); err != nil {
			t.Fatal(err)
		}
	}
	client := redis.NewClient(&redis.Options{Addr: r.Address})
	defer client.Close()
	if n, err := client.XLen(t.Context(), "short").Result(); err != nil || n < 100 || n > 300 {
		t.Errorf("%d messages, %v", n, err)
	}
}

func TestWants(t *testing.T) {
	all := opened(t, `
sinks:
- {name: all, kind: http, url: "http://a"}
- {name: some, kind: http, url: "http://a", types: [key.created, "alert.*"]}
- {name: keyspace, kind: http, url: "http://a", keyspace: parcelbird}
- {name: owner, kind: http, url: "http://a", types: ["key.*"], keyspace: parcelbird, owner: birdwatch}
`)
	for _, c := range []struct {
		fact delivery.Fact
		want string
	}{
		{revoked(1), "all keyspace owner"},
		{delivery.Fact{Type: "key.created", Keyspace: "other"}, "all some"},
		{delivery.Fact{Type: "alert.raised", Keyspace: "parcelbird", Owner: "birdwatch"}, "all some keyspace"},
		{delivery.Fact{Type: "key.revoked", Keyspace: "parcelbird", Owner: "acme"}, "all keyspace"},
	} {
		var got []string
		for _, s := range all {
			if s.Wants(c.fact) {
				got = append(got, s.Name())
			}
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%s of %s: %s", c.fact.Type, c.fact.Owner, got)
		}
	}
}

// Everything that is wrong comes at once, with path, line and what to write.
func TestRefused(t *testing.T) {
	file := written(t, `listen: 127.0.0.1:0
sinks:
- name: Billing
  kind: http
  types: [key.revokd, key.*, key.used]
  keyspace: Parcel
  url: https://me:s3cret@example.com
  headers: {Ce-Id: "1"}
- name: bus
  kind: redis_stream
  adress: 127.0.0.1:6379
  max_length: -1
- name: bus
  kind: kafka
- kind: http
  name: ftp
  url: ftp://example.com
  token_file: /nowhere/token
  timeout: soon
- just words
- name: token
  kind: http
  url: http://example.com
  token_file: /nowhere/token
`)
	_, err := Read(file)
	if err == nil {
		t.Fatal("nothing is wrong")
	}
	want := `settings FILE:
  line 3: sinks[0].name "Billing" is no name of a sink: write up to 32 lower-case letters, digits and hyphens, such as billing
  line 5: sinks[0].types "key.revokd" is no type that sinks get: write some of alert.raised, alert.resolved, key.created, key.deleted, key.grace_ended, key.revoked, key.rotated, key.updated, keyspace.configured, owner.key_admitted, owner.plan_changed, owner.registered, or a family such as key.*
  line 5: sinks[0].types "key.used" is no type that sinks get: write some of alert.raised, alert.resolved, key.created, key.deleted, key.grace_ended, key.revoked, key.rotated, key.updated, keyspace.configured, owner.key_admitted, owner.plan_changed, owner.registered, or a family such as key.*
  line 6: sinks[0].keyspace "Parcel" is no keyspace id: write lower-case letters, digits and hyphens
  line 7: sinks[0].url holds a user or a password: leave them out; a bearer token comes from token_file or KEYLEDGER_SINK_BILLING_TOKEN
  line 8: sinks[0].headers sets "Ce-Id", which is the sink's own, or no header at all: leave it out; a bearer token comes from token_file
  line 11: sinks[1].adress is no setting of a sink of kind redis_stream: its settings are name, kind, types, keyspace, owner, timeout, address, stream, database, username, password_file, tls, ca, max_length
  line 9: sinks[1].address is missing: write where Redis is, such as 127.0.0.1:6379
  line 9: sinks[1].stream is missing: write the key of the stream, such as keyledger
  line 12: sinks[1].max_length is negative: write how many messages the stream keeps, or leave it out for all
  line 14: sinks[2].kind "kafka" is not known: write one of http, redis_stream
  line 13: sinks[2].name is that of the sink at line 9: give it another: positions are kept by name
  line 19: sinks[3] cannot unmarshal !!str ` + "`soon`" + ` into time.Duration: write a value of the kind that docs/sinks.md shows
  line 20: sinks[4] is no sink: write name, kind and what the kind needs
  line 24: sinks[5].token_file cannot be read: open /nowhere/token: no such file or directory: name a file that holds it, or set KEYLEDGER_SINK_TOKEN_TOKEN`
	if diff := cmp.Diff(want, strings.ReplaceAll(err.Error(), file, "FILE")); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"", "listen: x", "sinks:", "sinks: []"} {
		if all, err := Read(written(t, text)); err != nil || len(all) > 0 {
			t.Errorf("%q: %v %v", text, all, err)
		}
	}
	if _, err := Read(written(t, "sinks: {name: a}")); err == nil {
		t.Error("a mapping is no list")
	}
}
