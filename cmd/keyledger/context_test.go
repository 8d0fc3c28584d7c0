package main

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// What dev writes, another terminal reads, and nobody else.
func TestContextFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "context.json")
	if _, err := ReadContext(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for _, c := range []Context{
		{URL: "http://127.0.0.1:7070", TokenFile: "/state dir/root.key", NATSURL: "nats://127.0.0.1:4222", NATSCreds: "c", GatewayURL: "http://127.0.0.1:7071", PostgresURL: "postgres://u:p@/d"},
		{URL: "http://127.0.0.1:7171"},
	} {
		if err := WriteContext(path, c); err != nil {
			t.Fatal(err)
		}
		got, err := ReadContext(path)
		if err != nil || got != c {
			t.Errorf("read %+v, %v, want %+v", got, err, c)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("files left behind: %v, %v", entries, err)
	}
}

// The context's root key goes to the context's address and to no other.
func TestTokenStaysAtItsAddress(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 401, `{"status":401,"code":"UNAUTHORIZED","detail":"No."}`)
	})
	t.Setenv("KEYLEDGER_TOKEN", "")
	t.Setenv("KEYLEDGER_URL", "")
	token := write(t, filepath.Join(t.TempDir(), "root.key"), testToken+"\n")
	path := os.Getenv("KEYLEDGER_CONTEXT")
	for _, c := range []struct {
		context string
		args    []string
		sent    bool
	}{
		{s.URL, nil, true},
		{s.URL, []string{"--url", s.URL + "/"}, true},
		{"http://127.0.0.1:1", []string{"--url", s.URL}, false},
		{"http://127.0.0.1:1", []string{"--url", s.URL, "--token-file", token}, true},
	} {
		if err := WriteContext(path, Context{URL: c.context, TokenFile: token}); err != nil {
			t.Fatal(err)
		}
		s.seen = nil
		r := invoke(t, "", append([]string{"keys", "get", "key_1"}, c.args...)...).want(t, exitRefused)
		if sent := s.only(t).header.Get("Authorization") == "Bearer "+testToken; sent != c.sent {
			t.Errorf("context %s, %v: root key sent: %v, want %v", c.context, c.args, sent, c.sent)
		}
		if !c.sent {
			contains(t, "stderr", r.stderr, "is for another address")
		}
	}
	// The environment holds the key itself, or the path of its file.
	t.Setenv("KEYLEDGER_URL", s.URL)
	for _, value := range []string{testToken, token} {
		s.seen = nil
		t.Setenv("KEYLEDGER_TOKEN", value)
		invoke(t, "", "keys", "get", "key_1").want(t, exitRefused)
		if s.only(t).header.Get("Authorization") != "Bearer "+testToken {
			t.Error("the root key of KEYLEDGER_TOKEN was not sent")
		}
	}
}

func TestSamePlace(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"http://127.0.0.1:7070", "http://localhost:7070/", true},
		{"http://127.0.0.1:7070", "http://[::1]:7070", true},
		{"http://127.0.0.1:7070", "http://127.0.0.1:7071", false},
		{"http://127.0.0.1:7070", "https://127.0.0.1:7070", false},
		{"https://keys.example", "https://KEYS.example", true},
		{"https://keys.example", "https://keys.example.org", false},
	} {
		if got := samePlace(c.a, c.b); got != c.same {
			t.Errorf("samePlace(%s, %s) = %v", c.a, c.b, got)
		}
	}
}
