package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const oneKey = `{"id":"key_1","keyspace":"parcelbird","owner":"org_1","name":"CI","display":"pb_live_3fA9...9xQ2",` +
	`"environment":"live","status":"active","plan":"","scopes":["parcels:read"],"resources":[],"limits":{"minute":20,"hour":null},` +
	`"allowed_origins":[],"allowed_ips":[],"meta":{},"created_at":"2026-01-18T11:57:00.000Z","created_by":{"type":"root_key","id":"key_0"},` +
	`"expires_at":"2026-01-30T12:00:00.000Z","rotated_at":null,"grace_until":null,"revoked_at":null,"revoke_reason":"",` +
	`"last_used_at":null,"use_count":0,"version":1}`

const created = `{"key":` + oneKey + `,"secret":"pb_live_thesecret"}`

func answerCreated(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Ledger-Sequence", "42")
	answerJSON(w, 201, created)
}

// Every field of POST /v1/keys has a flag, and each arrives as the contract
// spells it.
func TestKeysCreateSendsEveryField(t *testing.T) {
	s := newService(t, answerCreated)
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--environment", "test",
		"--plan", "large", "--scopes", "parcels:read,keys:manage", "--resources", "depot_1", "--expires-in", "30d",
		"--limits", "minute=10,day=none", "--allowed-origins", "https://a.example", "--allowed-ips", "10.0.0.0/8", "--meta", "team=core").want(t, 0)
	q := s.only(t)
	if q.method != "POST" || q.target != "/v1/keys" {
		t.Errorf("asked %s %s", q.method, q.target)
	}
	var got, want any
	json.Unmarshal([]byte(q.body), &got)
	json.Unmarshal([]byte(`{"keyspace":"parcelbird","owner":"org_1","name":"CI","environment":"test","plan":"large",
		"scopes":["parcels:read","keys:manage"],"resources":["depot_1"],"expires_in":"30d","limits":{"minute":10,"day":null},
		"allowed_origins":["https://a.example"],"allowed_ips":["10.0.0.0/8"],"meta":{"team":"core"}}`), &want)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := q.header.Get("Authorization"); got != "Bearer "+testToken {
		t.Error("the root key was not sent")
	}
	if q.header.Get("Content-Type") != "application/json" || len(q.header.Get("Idempotency-Key")) < 20 {
		t.Errorf("headers: %v", q.header)
	}
}

// What is not said is not sent: the service has the defaults.
func TestKeysCreateSendsNothingElse(t *testing.T) {
	s := newService(t, answerCreated)
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, 0)
	if got, want := s.only(t).body, `{"keyspace":"parcelbird","name":"CI","owner":"org_1"}`; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
}

// A pipe gets plain lines: name, tab, value, the secret last, exact times.
func TestKeysCreatePlain(t *testing.T) {
	newService(t, answerCreated)
	r := invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, 0)
	contains(t, "stdout", r.stdout, "id\tkey_1\n", "expires\t2026-01-30T12:00:00.000Z\n", "limits\t20/minute\n", "ledger sequence\t42\n")
	if !strings.HasSuffix(r.stdout, "\nsecret\tpb_live_thesecret\n") {
		t.Errorf("the secret is not the last line:\n%s", r.stdout)
	}
	contains(t, "stderr", r.stderr, "not shown again")
	lacks(t, "stdout", r.stdout, "│", "\x1b")
}

// A person gets a table, times from now, and the secret on a line of its own.
func TestKeysCreateTable(t *testing.T) {
	newService(t, answerCreated)
	r := invokeApp(t, "", func(a *app) { a.tty = true }, "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, 0)
	contains(t, "stdout", r.stdout, "│ 3m ago", "│ in 12d", "\nSecret: pb_live_thesecret\n")
	lacks(t, "stdout", r.stdout, "\x1b")
}

// --json prints the API's own bytes.
func TestKeysCreateJSON(t *testing.T) {
	newService(t, answerCreated)
	r := invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--json").want(t, 0)
	if r.stdout != created+"\n" || r.stderr != "" {
		t.Errorf("stdout %s stderr %s", r.stdout, r.stderr)
	}
}

// A secret file has mode 0600, and then the secret stands nowhere else.
func TestSecretFile(t *testing.T) {
	for _, format := range []string{"plain", "json"} {
		newService(t, answerCreated)
		file := filepath.Join(t.TempDir(), "ci.key")
		args := []string{"keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--secret-file", file}
		if format == "json" {
			args = append(args, "--json")
		}
		r := invoke(t, "", args...).want(t, 0)
		lacks(t, format, r.stdout+r.stderr, "pb_live_thesecret")
		b, err := os.ReadFile(file)
		if err != nil || string(b) != "pb_live_thesecret\n" {
			t.Errorf("file holds %q, %v", b, err)
		}
		if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		if entries, _ := os.ReadDir(filepath.Dir(file)); len(entries) != 1 {
			t.Errorf("files left behind: %v", entries)
		}
	}
}

// No secret is overwritten by a new key's, and nothing is created where the
// secret could not be kept.
func TestSecretFileIsPreparedFirst(t *testing.T) {
	s := newService(t, answerCreated)
	file := write(t, filepath.Join(t.TempDir(), "old.key"), "old")
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--secret-file", file).want(t, exitUsage)
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--secret-file", filepath.Join(file, "x")).want(t, exitFailed)
	if n := len(s.asked(t)); n != 0 {
		t.Errorf("the service was asked %d times", n)
	}
	// Rotation replaces the secret of the same key.
	invoke(t, "", "keys", "rotate", "key_1", "--secret-file", file).want(t, 0)
	if b, _ := os.ReadFile(file); string(b) != "pb_live_thesecret\n" {
		t.Errorf("file holds %q", b)
	}
}

// --secret-file - is for pipes: the secret and nothing else.
func TestSecretToStdout(t *testing.T) {
	newService(t, answerCreated)
	r := invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--secret-file", "-").want(t, 0)
	if r.stdout != "pb_live_thesecret\n" {
		t.Errorf("stdout %q", r.stdout)
	}
}

// A repeated command gets no secret, and says how to get one.
func TestReplayedCreate(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 201, `{"key":`+oneKey+`,"secret":null,"replayed":true}`)
	})
	r := invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI", "--idempotency-key", "mine").want(t, 0)
	contains(t, "stderr", r.stderr, "only once", "keys rotate key_1")
	if got := s.only(t).header.Get("Idempotency-Key"); got != "mine" {
		t.Errorf("Idempotency-Key %q", got)
	}
}

// A command whose answer is lost is sent again under the same key.
func TestCommandIsRepeated(t *testing.T) {
	n := 0
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if n++; n < 3 {
			panic(http.ErrAbortHandler) // cuts the connection
		}
		answerCreated(w, r)
	})
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, 0)
	keys := map[string]bool{}
	for _, q := range s.asked(t) {
		keys[q.header.Get("Idempotency-Key")] = true
	}
	if len(s.asked(t)) != 3 || len(keys) != 1 {
		t.Errorf("%d requests with %d keys, want 3 with 1", len(s.asked(t)), len(keys))
	}
}

// When no answer comes at all, the message has the key to find out with.
func TestLostAnswer(t *testing.T) {
	s := newService(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	s.Config.ErrorLog = nil
	q := call{method: "POST", path: path("keys"), body: []byte("{}"), idem: "mine"}
	a := newApp(strings.NewReader(""), nil, nil)
	c, err := a.client()
	if err != nil {
		t.Fatal(err)
	}
	c.wait = 1
	_, err = c.do(t.Context(), q)
	if err == nil || !strings.Contains(err.Error(), "--idempotency-key mine") {
		t.Errorf("error %v", err)
	}
	if len(s.asked(t)) != attempts {
		t.Errorf("%d requests, want %d", len(s.asked(t)), attempts)
	}
	// A read is not repeated: whoever asked can ask again.
	s.seen = nil
	invoke(t, "", "keys", "list").want(t, exitUnreachable)
	s.only(t)
}

// Only the named fields are changed; empty ones are taken away.
func TestKeysUpdate(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"key":`+oneKey+`}`) })
	invoke(t, "", "keys", "update", "key_1", "--allowed-ips", "", "--expires-at", "never", "--plan", "", "--if-match", "3").want(t, 0)
	q := s.only(t)
	if q.method != "PATCH" || q.target != "/v1/keys/key_1" || q.header.Get("If-Match") != `"3"` {
		t.Errorf("asked %s %s If-Match %s", q.method, q.target, q.header.Get("If-Match"))
	}
	if want := `{"allowed_ips":[],"expires_at":null,"plan":null}`; q.body != want {
		t.Errorf("sent %s, want %s", q.body, want)
	}
	invoke(t, "", "keys", "update", "key_1").want(t, exitUsage)
}

func TestKeyCommands(t *testing.T) {
	for _, c := range []struct {
		args                 []string
		method, target, body string
	}{
		{[]string{"rotate", "key_1", "--grace", "0s", "--reason", "leaked", "--end-grace"}, "POST", "/v1/keys/key_1/rotate", `{"end_grace":true,"grace":"0s","reason":"leaked"}`},
		{[]string{"end-grace", "key_1"}, "POST", "/v1/keys/key_1/end-grace", `{}`},
		{[]string{"revoke", "key_1", "--reason", "leaked"}, "POST", "/v1/keys/key_1/revoke", `{"reason":"leaked"}`},
		{[]string{"delete", "key_1"}, "DELETE", "/v1/keys/key_1", ``},
		// An id is one segment of the path, whatever is in it.
		{[]string{"delete", "../root-keys"}, "DELETE", "/v1/keys/..%2Froot-keys", ``},
		{[]string{"get", "key_1"}, "GET", "/v1/keys/key_1", ``},
	} {
		s := newService(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "GET" {
				answerJSON(w, 200, oneKey)
				return
			}
			answerJSON(w, 200, created)
		})
		invoke(t, "", append([]string{"keys"}, c.args...)...).want(t, 0)
		q := s.only(t)
		if got := [3]string{q.method, q.target, q.body}; got != [3]string{c.method, c.target, c.body} {
			t.Errorf("%v: asked %v", c.args, got)
		}
		if c.method != "GET" && q.header.Get("Idempotency-Key") == "" {
			t.Errorf("%v: no Idempotency-Key", c.args)
		}
	}
}

// --all follows the cursors and makes one document of the pages.
func TestKeysListPages(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") == "" {
			answerJSON(w, 200, `{"keys":[{"id":"key_1"}],"next_cursor":"c2"}`)
			return
		}
		answerJSON(w, 200, `{"keys":[{"id":"key_2"}],"next_cursor":null}`)
	})
	r := invoke(t, "", "keys", "list", "--keyspace", "parcelbird", "--unused-since", "90d", "--min-sequence", "7", "--all", "--json").want(t, 0)
	if want := `{"keys":[{"id":"key_1"},{"id":"key_2"}],"next_cursor":null}` + "\n"; r.stdout != want {
		t.Errorf("stdout %s, want %s", r.stdout, want)
	}
	first := s.asked(t)[0]
	if first.header.Get("Min-Sequence") != "7" || first.target != "/v1/keys?keyspace=parcelbird&unused_since=2025-10-20T12%3A00%3A00.000Z" {
		t.Errorf("asked %s, Min-Sequence %s", first.target, first.header.Get("Min-Sequence"))
	}
	s.seen = nil
	for _, args := range [][]string{{"--sort", "-last_used_at"}, {"--sort=-last_used_at"}} {
		invoke(t, "", append([]string{"keys", "list", "--limit", "5"}, args...)...).want(t, 0)
		if got := s.only(t).target; got != "/v1/keys?limit=5&sort=-last_used_at" {
			t.Errorf("%q asked %s", args, got)
		}
		s.seen = nil
	}
	// One page is the default, and says that there are more.
	r = invoke(t, "", "keys", "list").want(t, 0)
	contains(t, "stderr", r.stderr, "--cursor c2")
}

// A list after a change shows it: the program asks for the change's sequence.
func TestListShowsOwnChange(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "POST":
			answerCreated(w, r)
		case r.Header.Get("Min-Sequence") != "":
			answerJSON(w, 503, `{"status":503,"code":"NOT_YET"}`)
		default:
			answerJSON(w, 200, `{"keys":[]}`)
		}
	})
	invoke(t, "", "keys", "create", "--keyspace", "parcelbird", "--owner", "org_1", "--name", "CI").want(t, 0)
	// The second request is for a ledger that was begun anew since.
	invoke(t, "", "keys", "list").want(t, 0)
	all := s.asked(t)
	if len(all) != 3 || all[1].header.Get("Min-Sequence") != "42" || all[2].header.Get("Min-Sequence") != "" {
		t.Errorf("asked %v", all)
	}
	// Figures follow another stream, whose sequences are others.
	s.seen = nil
	invoke(t, "", "usage").want(t, exitFailed) // the answer has no usage
	if got := s.only(t).header.Get("Min-Sequence"); got != "" {
		t.Errorf("Min-Sequence %s for figures", got)
	}
	// What the caller asks for is not softened.
	invoke(t, "", "keys", "list", "--min-sequence", "42").want(t, exitFailed)
}

// A key's name cannot move the cursor or turn the text around.
func TestNamesAreHarmless(t *testing.T) {
	newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"keys":[{"id":"key_1","name":"a\u001b[2Jb\n\tc\u202ed"}]}`)
	})
	for _, tty := range []bool{false, true} {
		r := invokeApp(t, "", func(a *app) { a.tty = tty }, "keys", "list").want(t, 0)
		contains(t, "stdout", r.stdout, `a\x1b[2Jb\n\tc\u202ed`)
	}
}

// A leaked secret is read from stdin; a key that is not found is exit code 3.
func TestLookup(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"keys":[]}`) })
	invoke(t, "pb_live_leaked\n", "keys", "lookup", "--keyspace", "parcelbird", "--secret-file", "-").want(t, exitNotFound)
	if got, want := s.only(t).body, `{"keyspace":"parcelbird","secret":"pb_live_leaked"}`; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	invoke(t, "", "keys", "lookup", "--keyspace", "parcelbird").want(t, exitUsage)
}

// Problems name the line in the file, though empty lines are not sent.
func TestImport(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"results":[{"line":1,"key":`+oneKey+`},{"line":2,"problem":{"code":"KEY_EXISTS","detail":"A key with this secret is already known."}}]}`)
	})
	r := invoke(t, "{\"sha256\":\"aa\"}\n\n{\"sha256\":\"bb\"}\n", "keys", "import", "-").want(t, exitFailed)
	contains(t, "stdout", r.stdout, "3\tA key with this secret is already known. (KEY_EXISTS)\n")
	contains(t, "stderr", r.stderr, "created: 1, lines with a problem: 1")
	if q := s.only(t); q.body != "{\"sha256\":\"aa\"}\n{\"sha256\":\"bb\"}\n" || q.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("sent %q as %s", q.body, q.header.Get("Content-Type"))
	}
	invoke(t, "\n\n", "keys", "import", "-").want(t, exitUsage)
}

// More than 10,000 lines are several calls, each with a key of its own.
func TestImportInCalls(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"results":[]}`) })
	r := invoke(t, strings.Repeat("{}\n", importCall+1), "keys", "import", "-", "--idempotency-key", "mine").want(t, 0)
	all := s.asked(t)
	if len(all) != 2 || strings.Count(all[0].body, "\n") != importCall || strings.Count(all[1].body, "\n") != 1 {
		t.Fatalf("%d calls", len(all))
	}
	if all[0].header.Get("Idempotency-Key") != "mine" || all[1].header.Get("Idempotency-Key") != "mine-1" {
		t.Error("the calls share an idempotency key")
	}
	contains(t, "stderr", r.stderr, "import: 10001 of 10001\n")
}

// The API's status decides the exit code, and its words are what people read.
func TestProblems(t *testing.T) {
	for status, code := range map[int]int{
		400: exitFailed, 401: exitRefused, 403: exitRefused, 404: exitNotFound, 409: exitConflict, 410: exitNotFound,
		412: exitConflict, 422: exitFailed, 500: exitFailed, 503: exitFailed,
	} {
		doc := fmt.Sprintf(`{"type":"about:blank","title":"T","status":%d,"detail":"Something is so.","code":"SO","request_id":"req_1",`+
			`"errors":[{"path":"limits.minute","message":"is not a number","fix":"a whole number"}]}`, status)
		newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, status, doc) })
		r := invoke(t, "", "keys", "get", "key_1").want(t, code)
		contains(t, "stderr", r.stderr, fmt.Sprintf("keyledger: Something is so. (%d SO)\n", status), "\n  limits.minute is not a number: a whole number\n", "\n  request req_1\n")
		r = invoke(t, "", "keys", "get", "key_1", "--json").want(t, code)
		if r.stderr != doc+"\n" || r.stdout != "" {
			t.Errorf("stderr %s", r.stderr)
		}
	}
}

// Another program's answer is not taken for keyledger's.
func TestAnotherService(t *testing.T) {
	newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.Write([]byte("<html>It works!</html>"))
			return
		}
		http.Error(w, "no", http.StatusNotFound)
	})
	contains(t, "stderr", invoke(t, "", "keys", "get", "key_1").want(t, exitFailed).stderr, "not what this program expects")
	contains(t, "stderr", invoke(t, "", "keys", "delete", "key_1").want(t, exitNotFound).stderr, "not as keyledger does")
}

// A redirect is not followed: it would carry the root key elsewhere.
func TestRedirect(t *testing.T) {
	s := newService(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	invoke(t, "", "keys", "get", "key_1").want(t, exitFailed)
	s.only(t)
}

var moments = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)

func TestMoments(t *testing.T) {
	for _, s := range []string{"2026-01-18", "2026-01-18T12:00:00Z", "2026-01-18T12:00:00.5+02:00"} {
		if got, err := moment(s); err != nil || !moments.MatchString(got) {
			t.Errorf("moment(%q) = %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "tomorrow", "18.1.2026"} {
		if got, err := moment(s); err == nil {
			t.Errorf("moment(%q) = %q, want an error", s, got)
		}
	}
}
