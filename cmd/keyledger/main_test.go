package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyledger": main, "curl": curlMain})
}

// The scripts use the program from outside, as far as that needs no service.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"code": exitCode},
	})
}

// exitCode runs the program and compares its exit code: code N ARG…
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("keyledger", args[1:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// seen is one request as the service got it.
type seen struct {
	method, target string
	header         http.Header
	body           string
}

// service answers as section 5 of the contract says, one handler a test, and
// keeps what it was asked.
type service struct {
	*httptest.Server
	mu   sync.Mutex
	seen []seen // guarded by mu
}

func newService(t *testing.T, handler http.HandlerFunc) *service {
	t.Helper()
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.seen = append(s.seen, seen{r.Method, r.URL.RequestURI(), r.Header.Clone(), string(body)})
		s.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	t.Setenv("KEYLEDGER_CONTEXT", filepath.Join(t.TempDir(), "context.json"))
	t.Setenv("KEYLEDGER_URL", s.URL)
	t.Setenv("KEYLEDGER_TOKEN", testToken)
	return s
}

const testToken = "klr_notatokenbutitmustneverbeprinted"

func (s *service) asked(t *testing.T) []seen {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *service) only(t *testing.T) seen {
	t.Helper()
	all := s.asked(t)
	if len(all) != 1 {
		t.Fatalf("the service was asked %d times, want once: %v", len(all), all)
	}
	return all[0]
}

// said is what one run of the program printed.
type said struct {
	code           int
	stdout, stderr string
}

// invoke runs the program in this process. The root key is in no output.
func invoke(t *testing.T, stdin string, args ...string) said {
	t.Helper()
	return invokeApp(t, stdin, func(*app) {}, args...)
}

func invokeApp(t *testing.T, stdin string, prepare func(*app), args ...string) said {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := newApp(strings.NewReader(stdin), &stdout, &stderr)
	a.now = func() time.Time { return time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC) }
	prepare(a)
	code := a.execute(t.Context(), args)
	for _, out := range []string{stdout.String(), stderr.String()} {
		if strings.Contains(out, testToken) {
			t.Errorf("the root key was printed: %s", out)
		}
	}
	return said{code, stdout.String(), stderr.String()}
}

func (s said) want(t *testing.T, code int) said {
	t.Helper()
	if s.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", s.code, code, s.stdout, s.stderr)
	}
	return s
}

func contains(t *testing.T, where, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", where, w, text)
		}
	}
}

func lacks(t *testing.T, where, text string, unwanted ...string) {
	t.Helper()
	for _, w := range unwanted {
		if strings.Contains(text, w) {
			t.Errorf("%s has %q:\n%s", where, w, text)
		}
	}
}

func answerJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	if status >= 400 {
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(status)
	io.WriteString(w, body)
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
