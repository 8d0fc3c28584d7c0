package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

// Whoever begins an export has it recorded, whatever comes after the first byte: a
// client that goes away, or a kill.
func TestExportIsRecordedFirst(t *testing.T) {
	dir := t.TempDir()
	contextFile := filepath.Join(dir, "context.json")
	t.Setenv("KEYLEDGER_CONTEXT", contextFile)
	t.Setenv("KEYLEDGER_URL", "")
	t.Setenv("KEYLEDGER_TOKEN", "")
	exe, err := exec.LookPath("keyledger")
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (*testenv.Process, *Context) {
		p := testenv.Start(t, []string{"KEYLEDGER_CONTEXT=" + contextFile, "HOME=" + dir}, exe, "dev", "--no-sample",
			"--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0")
		p.WaitOutput("Ctrl-C stops it.", time.Minute)
		c, err := ReadContext(contextFile)
		if err != nil {
			t.Fatal(err)
		}
		return p, &c
	}
	server, c := begin()
	secret := filepath.Join(dir, "ci.key")
	invoke(t, "", "owners", "set", "org_1", "--keyspace", "parcelbird", "--plan", "large").want(t, 0)
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--scopes", "parcels:read", "--secret-file", secret).want(t, 0)
	authorization := func(file string) http.Header {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(b))}}
	}
	// More than the sockets between the two hold, so that the export waits for its reader.
	const uses, long = 3000, 5000
	for i := range uses {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/parcelbird/v1/parcels/%d-%s", c.GatewayURL, i, strings.Repeat("x", long)), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = authorization(secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	// open asks for everything, reads the first byte and nothing more.
	open := func(kind string) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).SetReadBuffer(4096)
		fmt.Fprintf(conn, "GET /v1/audit/events?keyspace=parcelbird&type=key.used HTTP/1.1\r\nHost: keyledger\r\nAccept: %s\r\nAuthorization: %s\r\n\r\n",
			kind, authorization(filepath.Join(dir, "state", "root.key")).Get("Authorization"))
		if line, err := bufio.NewReaderSize(conn, 16).ReadString(' '); err != nil || line != "HTTP/1.1 " {
			t.Fatalf("%q, %v", line, err)
		}
		return conn
	}
	acts := func() string {
		return invoke(t, "", "audit", "list", "--type", "audit.read", "--keyspace", "parcelbird", "--json").want(t, 0).stdout
	}
	for _, kind := range []string{"application/x-ndjson", "text/csv", "application/cloudevents-batch+json"} {
		before := strings.Count(acts(), `"what":"export"`)
		conn := open(kind)
		if told := acts(); strings.Count(told, `"what":"export"`) != before+1 || strings.Count(told, `"outcome":"broken off"`) != before {
			t.Errorf("%s has begun, and recorded is %s", kind, told)
		}
		conn.Close()
		for end := time.Now().Add(20 * time.Second); strings.Count(acts(), `"outcome":"broken off"`) != before+1; <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("that the client went away is not recorded: %s", acts())
			}
		}
	}
	conn := open("application/x-ndjson")
	defer conn.Close()
	server.Kill()
	server, c = begin()
	if told := acts(); strings.Count(told, `"what":"export"`) != 4 || strings.Count(told, `"what":"export.ended"`) != 3 {
		t.Errorf("after a kill within the fourth export, recorded is %s", told)
	}
	if err := server.Interrupt(20 * time.Second); err != nil {
		t.Error(err)
	}
}
