package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyledger/keyledger/audit/bundle"
)

// An auditor checks a bundle with the program alone: no context, no service.
func TestAuditVerify(t *testing.T) {
	t.Setenv("KEYLEDGER_CONTEXT", filepath.Join(t.TempDir(), "none.json"))
	t.Setenv("KEYLEDGER_URL", "http://127.0.0.1:1")
	t.Setenv("XDG_STATE_HOME", t.TempDir()) // where there is no installation to check
	dir := "../../audit/bundle/testdata/"
	good, keyFile := dir+"v1-owner.tar.gz", dir+"v1-owner.key"
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	keyText := string(bytes.TrimSpace(key))

	passed := invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", keyText).want(t, exitOK)
	contains(t, "the report", passed.stdout, "PASS", "owner org_1 in keyspace space-0", "recorded as OPS", "USAGE", "of the stream's")
	invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", keyFile, "--keyspace", "space-0", "--owner", "org_1").want(t, exitOK)

	var r bundle.Report
	out := invoke(t, "", "audit", "verify", "--json", "--bundle", good, "--log-key", keyFile).want(t, exitOK)
	if err := json.Unmarshal([]byte(out.stdout), &r); err != nil || !r.Pass || r.Scope.Owner != "org_1" || len(r.Streams) != 4 {
		t.Errorf("the report in JSON is %s, %v", out.stdout, err)
	}

	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 4
	bad := write(t, filepath.Join(t.TempDir(), "bad.tar.gz"), string(b))
	failed := invoke(t, "", "audit", "verify", "--bundle", bad, "--log-key", keyFile).want(t, exitProof)
	contains(t, "the report", failed.stdout, "FAIL", "a bit of the archive was changed")
	failed = invoke(t, "", "audit", "verify", "--json", "--bundle", bad, "--log-key", keyFile).want(t, exitProof)
	if err := json.Unmarshal([]byte(failed.stdout), &r); err != nil || r.Pass || r.Reason == "" {
		t.Errorf("the report in JSON is %s, %v", failed.stdout, err)
	}
	failed = invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", dir+"v1-all.key", "--keyspace", "space-1").want(t, exitProof)
	contains(t, "the report", failed.stdout, "something else than what was to be checked")

	for _, args := range [][]string{
		{"--bundle", good},
		{"--log-key", keyFile},
		{"--log-key", keyFile, "--owner", "org_1"},
		{"--bundle", good, "--log-key", keyFile, "--earlier", good},
		{"--bundle", good, "--log-key", keyFile, "--streams-only"},
		{"--log-key", keyFile, "--earlier", "no such file"},
		{"--bundle", good, "--log-key", "no such file"},
		{"--bundle", good, "--log-key", good},
		{"--bundle", good, "--log-key", "a+b+c"},
		{"--bundle", good, "--log-key", keyFile, "--owner", "org_1"},
		{"--bundle", good, "--log-key", keyFile, "--policy", good},
	} {
		invoke(t, "", append([]string{"audit", "verify"}, args...)...).want(t, exitUsage)
	}
	missing := invoke(t, "", "audit", "verify", "--bundle", "no such file", "--log-key", keyFile).want(t, exitFailed)
	contains(t, "the error", missing.stderr, "no such file")
}

// cutting starts a proxy in front of the API that breaks the first readings of an
// export off, and sets CUT to its address.
func cutting(ts *testscript.TestScript, _ bool, _ []string) {
	target, err := url.Parse(ts.Getenv("API"))
	ts.Check(err)
	var left atomic.Int32
	left.Store(5)
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			if strings.HasPrefix(r.Request.URL.Path, "/v1/audit/exports/") && left.Add(-1) >= 0 {
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(io.LimitReader(r.Body, 5000), iotest.ErrReader(errors.New("cut"))), r.Body}
			}
			return nil
		},
	}
	s := httptest.NewServer(proxy)
	ts.Defer(s.Close)
	ts.Setenv("CUT", s.URL)
}
