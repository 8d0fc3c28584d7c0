package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/keyring"
)

// realService is the API itself over a real ledger, without PostgreSQL. The
// context file leads to it.
func realService(t *testing.T) {
	t.Helper()
	l, err := ledger.Open(t.Context(), testenv.Conn(t, testenv.NATS(t)), ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	ring := keyring.New()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		<-ended
		_ = l.Close()
	})
	<-ring.Ready()
	c := &commands.Commands{Ledger: l, Ring: ring}
	first, err := c.CreateRootKey(t.Context(), commands.Request{Authority: domain.System("test"), Via: "test"},
		domain.CreateKey{Name: "first", Role: domain.Operator})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(api.New(api.Deps{Commands: c, Ring: ring, Ledger: l, Version: "test", Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	t.Setenv("KEYLEDGER_URL", "")
	t.Setenv("KEYLEDGER_TOKEN", "")
	t.Setenv("KEYLEDGER_CONTEXT", filepath.Join(dir, "context.json"))
	token := write(t, filepath.Join(dir, "root.key"), first.Secret+"\n")
	if err := WriteContext(filepath.Join(dir, "context.json"), Context{URL: server.URL, TokenFile: token}); err != nil {
		t.Fatal(err)
	}
}

// The life of a key, by the command line over the API itself: what one sends
// the other understands, and the other way round.
func TestLifeOfAKey(t *testing.T) {
	realService(t)
	doc := write(t, filepath.Join(t.TempDir(), "parcelbird.yaml"), `
keyspace: parcelbird
about: Parcels
format: {prefixes: {live: pb_live_, test: pb_test_}, default_environment: live, length: 40}
display: {first: 12, last: 4}
scopes:
  parcels:read: {about: Read parcels, routes: ["GET /v1/parcels/**"]}
limits: {from: key, count_by: key, default: {minute: 100}}
allowed_origins: true
`)
	r := invoke(t, "", "keyspaces", "apply", "-f", doc, "--dry-run").want(t, 0)
	contains(t, "dry run", r.stdout, `"type":"keyspace.configured"`)
	contains(t, "stdout", invoke(t, "", "keyspaces", "apply", "-f", doc).want(t, 0).stdout, "keyspace parcelbird: version 1 configured\n")
	contains(t, "stdout", invoke(t, "", "keyspaces", "apply", "-f", doc).want(t, 0).stdout, "version 1 is in force already\n")
	contains(t, "stdout", invoke(t, "", "keyspaces", "apply", "-f", doc, "--dry-run").want(t, 0).stdout, "no change, no event\n")
	if r := invoke(t, "", "keyspaces", "list").want(t, 0); r.stdout != "parcelbird\t1\tParcels\n" {
		t.Errorf("keyspaces: %q", r.stdout)
	}
	// What is shown can be applied again: it says the same.
	shown := invoke(t, "", "keyspaces", "get", "parcelbird").want(t, 0).stdout
	contains(t, "stdout", invoke(t, shown, "keyspaces", "apply", "-f", "-").want(t, 0).stdout, "version 1 is in force already\n")

	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, exitNotFound)
	contains(t, "stdout", invoke(t, "", "owners", "set", "org_1", "--keyspace", "parcelbird", "--name", "One").want(t, 0).stdout, "active keys\t0\n", "max keys\tno cap\n")

	secretFile := filepath.Join(t.TempDir(), "ci.key")
	r = invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--environment", "test",
		"--scopes", "parcels:read", "--limits", "minute=10,day=none", "--expires-in", "30d", "--allowed-origins", "https://a.example",
		"--allowed-ips", "10.0.0.0/8", "--meta", "team=core", "--secret-file", secretFile, "--idempotency-key", "one", "--json").want(t, 0)
	var made struct {
		Key keyView `json:"key"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &made); err != nil {
		t.Fatal(err)
	}
	id := made.Key.ID
	secret, err := os.ReadFile(secretFile)
	if err != nil || !strings.HasPrefix(string(secret), "pb_test_") {
		t.Fatalf("secret file: %q, %v", secret, err)
	}
	// The same again is the same key, without its secret; something else under
	// the same idempotency key is a conflict.
	again := []string{"keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--environment", "test",
		"--scopes", "parcels:read", "--limits", "minute=10,day=none", "--expires-in", "30d", "--allowed-origins", "https://a.example",
		"--allowed-ips", "10.0.0.0/8", "--meta", "team=core", "--idempotency-key", "one"}
	r = invoke(t, "", again...).want(t, 0)
	contains(t, "stdout", r.stdout, "id\t"+id+"\n")
	contains(t, "stderr", r.stderr, "a secret is answered only once")
	again[7] = "Other"
	invoke(t, "", again...).want(t, exitConflict)

	r = invoke(t, "", "keys", "get", id).want(t, 0)
	contains(t, "stdout", r.stdout, "environment\ttest\n", "status\tactive\n", "limits\t10/minute\n", "allowed ips\t10.0.0.0/8\n", "meta\tteam=core\n", "version\t1\n")
	contains(t, "stdout", invoke(t, string(secret), "keys", "lookup", "--keyspace", "parcelbird", "--secret-file", "-").want(t, 0).stdout, id)
	invoke(t, "pb_test_nobody's", "keys", "lookup", "--keyspace", "parcelbird", "--secret-file", "-").want(t, exitNotFound)

	invoke(t, "", "keys", "update", id, "--name", "Build", "--expires-at", "never", "--allowed-ips", "", "--if-match", "1").want(t, 0)
	invoke(t, "", "keys", "update", id, "--name", "Late", "--if-match", "1").want(t, exitConflict)
	r = invoke(t, "", "keys", "rotate", id, "--grace", "1h", "--reason", "quarterly", "--secret-file", secretFile).want(t, 0)
	contains(t, "stdout", r.stdout, "grace until\t", "version\t3\n", "name\tBuild\n")
	rotated, _ := os.ReadFile(secretFile)
	if string(rotated) == string(secret) {
		t.Error("the secret is the same after a rotation")
	}
	contains(t, "stderr", invoke(t, "", "keys", "end-grace", id).want(t, 0).stderr, "No use of the previous secret is known.")
	contains(t, "stdout", invoke(t, "", "keys", "revoke", id, "--reason", "leaked").want(t, 0).stdout, "status\trevoked\n", "revoke reason\tleaked\n")
	invoke(t, "", "keys", "rotate", id).want(t, exitConflict)
	invoke(t, "", "keys", "delete", id).want(t, 0)
	invoke(t, "", "keys", "get", id).want(t, exitNotFound)

	// A root key may do what its role says, and no more.
	auditor := filepath.Join(t.TempDir(), "auditor.key")
	invoke(t, "", "root-key", "create", "--name", "auditor", "--role", "auditor", "--secret-file", auditor).want(t, 0)
	invoke(t, "", "owners", "set", "org_2", "--keyspace", "parcelbird", "--token-file", auditor).want(t, exitRefused)
	invoke(t, "", "root-key", "create", "--name", "x", "--role", "king").want(t, exitFailed)
}
