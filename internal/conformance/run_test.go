package conformance

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/gateway/demo"
)

// The two ways in.
const (
	byGateway = "gateway"
	byVerify  = "verify"
)

// observations are what one suite was seen to do.
type observations struct {
	suite    *suite
	document *domain.Document    // as the API answers it
	codes    map[string]observed // first refusal of each code
	rows     map[string][]string // by row of the table of products
	sent     map[*sentence][]exchange
}

// observed is a refusal as it was seen, with what differs between runs replaced.
type observed struct {
	status  int
	headers map[string]string
	body    string
}

// exchange is one step as it is shown: what was sent, what came back. wire is
// all that came back.
type exchange struct{ sent, got, wire string }

// script is one run of one sentence.
type script struct {
	*testing.T
	w     *world
	s     *suite
	way   string
	owner string
	keys  map[string]*key
}

// key is one that the script made.
type key struct{ id, secret, old, display string }

// run runs a sentence's script through both ways in, and compares what they
// said.
func (o *observations) run(t *testing.T, w *world, c *sentence) {
	var both [2][]exchange
	for i, way := range []string{byGateway, byVerify} {
		w.runs++
		// Noon of the next day: no window holds anything of the last script.
		now := w.now()
		w.clock.Store(time.Date(now.Year(), now.Month(), now.Day()+1, 12, 0, 0, 0, time.UTC).UnixMilli())
		s := &script{T: t, w: w, s: o.suite, way: way, owner: fmt.Sprintf("owner%d", w.runs), keys: map[string]*key{}}
		for j := range c.Do {
			st := &c.Do[j]
			if st.Only != "" && st.Only != way {
				both[i] = append(both[i], exchange{})
				continue
			}
			var x exchange
			for range max(st.Times, 1) {
				x = s.step(o, c, st)
				if t.Failed() {
					t.Fatalf("in step %d, through the %s", j+1, way)
				}
			}
			if st.Times > 1 {
				x.sent = fmt.Sprintf("%d × %s", st.Times, x.sent)
			}
			both[i] = append(both[i], x)
		}
	}
	for j := range c.Do {
		a, b := both[0][j], both[1][j]
		switch {
		case c.Do[j].Only == byVerify:
			both[0][j] = b
		case c.Do[j].Only == "" && a != b:
			t.Errorf("step %d: the gateway says\n%s %s\nand POST /v1/verify\n%s %s", j+1, a.got, a.wire, b.got, b.wire)
		}
		if row := c.Do[j].Row; row != "" {
			o.rows[row] = append(o.rows[row], both[0][j].sent+" → "+both[0][j].got)
		}
	}
	o.sent[c] = both[0]
}

func (s *script) step(o *observations, c *sentence, st *step) (x exchange) {
	s.Helper()
	switch {
	case st.Owner != nil:
		x = s.api(st, "PUT", "/v1/keyspaces/"+s.s.Keyspace+"/owners/"+s.owner, merged(map[string]any{"name": "Example"}, st.Owner), code(strings.TrimSpace("PUT …/owners/$owner "+compact(st.Owner))))
	case st.Create != nil:
		body := merged(map[string]any{"keyspace": s.s.Keyspace, "owner": s.owner, "name": "CI"}, st.Create)
		x = s.api(st, "POST", "/v1/keys", body, code(strings.TrimSpace("POST /v1/keys "+compact(st.Create))))
	case st.Import != "":
		x = s.importKey(st)
	case st.Take > 0:
		x = s.api(st, "POST", "/v1/limits/take", map[string]any{"keyspace": s.s.Keyspace, "owner": s.owner, "n": st.Take}, code(fmt.Sprintf(`POST /v1/limits/take {"n":%d}`, st.Take)))
	case st.Call != "":
		method, path, _ := strings.Cut(st.Call, " ")
		sent := st.Call
		if st.JSON != nil {
			sent += " " + compact(st.JSON)
		}
		x = s.api(st, method, path, st.JSON, code(sent))
	case st.Send != "" || st.Curl != nil:
		x = s.request(o, c, st)
	}
	if st.Wait != "" {
		d, err := domain.ParseDuration(st.Wait)
		s.must(err)
		s.w.clock.Add(time.Duration(d).Milliseconds())
		x.got = strings.TrimPrefix(x.got+", then "+st.Wait+" pass", ", then ")
	}
	if st.Until == "midnight" {
		s.w.clock.Store(s.w.now().Truncate(24 * time.Hour).Add(24 * time.Hour).UnixMilli())
		x.got = strings.TrimPrefix(x.got+", then midnight (UTC) passes", ", then ")
	}
	return x
}

func (s *script) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func merged(a, b map[string]any) map[string]any {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// compact is JSON as it is shown.
func compact(v any) string {
	if m, ok := v.(map[string]any); ok && len(m) == 0 {
		return ""
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return strings.TrimSpace(b.String())
}

var reference = regexp.MustCompile(`\$([a-z]+)(?:\.([a-z]+)([0-9]*))?`)

// fill puts the script's owner and keys into what is sent. A name it does not
// know stays as it is: pages have dollars too.
func (s *script) fill(text string) string {
	return reference.ReplaceAllStringFunc(text, func(r string) string {
		m := reference.FindStringSubmatch(r)
		if m[1] == "owner" {
			return s.owner + strings.TrimPrefix(r, "$owner")
		}
		if m[1] == "today" {
			return s.w.now().Format("2006-01-02T15:04:05Z")
		}
		k := s.keys[m[1]]
		if k == nil {
			return r
		}
		n, _ := strconv.Atoi(m[3])
		switch m[2] {
		case "secret":
			return k.secret + m[3]
		case "old":
			return k.old + m[3]
		case "id":
			return k.id
		case "first":
			return k.secret[:n]
		case "last":
			return k.secret[len(k.secret)-n:]
		}
		return r
	})
}

// known replaces what differs from run to run.
func (s *script) known(text string) string {
	type pair struct{ from, to string }
	var pairs []pair
	for _, name := range slices.Sorted(maps.Keys(s.keys)) {
		k := s.keys[name]
		of := ""
		if name != "key" {
			of = name + " "
		}
		hash := sha256.Sum256([]byte(k.secret))
		pairs = append(pairs, pair{k.secret, "<" + of + "secret>"}, pair{k.id, "<" + of + "key_id>"}, pair{hex.EncodeToString(hash[:]), "<sha256 of " + of + "secret>"})
		if k.old != "" {
			pairs = append(pairs, pair{k.old, "<" + of + "old secret>"})
		}
		if k.display != "" {
			pairs = append(pairs, pair{k.display, s.shown(k)})
		}
	}
	pairs = append(pairs, pair{s.owner, "<owner>"})
	slices.SortStableFunc(pairs, func(a, b pair) int { return cmp.Compare(len(b.from), len(a.from)) })
	for _, p := range pairs {
		text = strings.ReplaceAll(text, p.from, p.to)
	}
	text = opaque.ReplaceAllStringFunc(text, func(id string) string {
		return map[string]string{"key": "<key_id>", "evt": "<event_id>", "dec": "<decision_id>", "req": "<request_id>"}[id[:3]]
	})
	return moment.ReplaceAllStringFunc(text, func(m string) string {
		at, err := time.Parse(time.RFC3339, m)
		s.must(err)
		return s.relative(at)
	})
}

var (
	opaque = regexp.MustCompile(`\b(key|evt|dec|req)_[0-9a-z][0-9a-z-]{8,}`)
	moment = regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z`)
)

func (s *script) relative(at time.Time) string {
	d := at.Sub(s.w.now())
	if d == 0 {
		return "<now>"
	}
	text := domain.Duration(d.Abs()).String()
	if seconds := d.Abs() / time.Second; seconds < 120 && d.Abs()%time.Second == 0 {
		text = fmt.Sprintf("%ds", seconds) // as the pages say it: 60 seconds
	}
	if d < 0 {
		return "<now-" + text + ">"
	}
	return "<now+" + text + ">"
}

// shown is a key's display with the characters of its secret counted.
func (s *script) shown(k *key) string {
	first, last, ok := strings.Cut(k.display, "...")
	if !ok || !strings.HasPrefix(k.secret, first) || !strings.HasSuffix(k.secret, last) {
		s.Fatalf("the display %q is not of the secret", k.display)
	}
	out := "..."
	if first != "" {
		out = fmt.Sprintf("<first %d>", len(first)) + out
	}
	if last != "" {
		out += fmt.Sprintf("<last %d>", len(last))
	}
	return out
}

// api asks the management API and checks the answer.
func (s *script) api(st *step, method, path string, body any, sent string) exchange {
	s.Helper()
	headers := []string{}
	if method == http.MethodGet {
		facts, uses := s.w.settle()
		headers = append(headers, "Min-Sequence", facts)
		if strings.HasPrefix(path, "/v1/analytics/") {
			headers[1] = uses
		}
	}
	text := ""
	if body != nil {
		text = s.fill(compact(body))
	}
	for _, name := range slices.Sorted(maps.Keys(st.Having)) {
		headers = append(headers, name, s.fill(st.Having[name]))
		sent += " " + code(name+": "+st.Having[name])
	}
	bearer := s.w.root
	if st.Bearer != "" {
		bearer = s.fill(st.Bearer)
		sent += " as " + code(st.Bearer)
	}
	a := s.w.call(method, s.fill(path), bearer, text, headers...)
	var made struct {
		Secret *string
		Key    struct{ ID, Display string }
	}
	if json.Unmarshal(a.body, &made) == nil && made.Secret != nil {
		s.w.answered(*made.Secret)
		k := &key{id: made.Key.ID, secret: *made.Secret, display: made.Key.Display}
		name := cmp.Or(st.As, "key")
		for n, old := range s.keys { // a rotation
			if old.id == k.id {
				name, k.old = n, old.secret
			}
		}
		s.keys[name] = k
	}
	shape := ""
	if st.Begins != "" {
		rest, ok := strings.CutPrefix(*cmp.Or(made.Secret, new("")), st.Begins)
		if like := cmp.Or(st.Like, ".+"); !ok || !regexp.MustCompile("^"+like+"$").MatchString(rest) {
			s.Errorf("%s: the secret is not like %s%s", sent, st.Begins, like)
		}
		shape = ", " + code(fmt.Sprintf("secret: %s + %d characters", st.Begins, len(rest)))
	}
	if want := cmp.Or(st.Status, map[bool]int{true: 201, false: 200}[st.Create != nil]); a.status != want {
		s.Errorf("%s: %d, want %d: %s", sent, a.status, want, a.body)
	}
	got := fmt.Sprint(a.status)
	var parsed any
	if err := json.Unmarshal(a.body, &parsed); err != nil && a.status != 204 && strings.Contains(a.header.Get("Content-Type"), "json") {
		s.Errorf("%s: %v: %s", sent, err, a.body)
	}
	for _, at := range slices.Sorted(maps.Keys(st.Shows)) {
		value := s.known(show(lookup(parsed, at)))
		want := show(st.Shows[at])
		if _, err := strconv.ParseFloat(value, 64); err == nil && want == "<a number>" {
			value = want // measured
		}
		if value != want {
			s.Errorf("%s: %s is %s, want %s\n%s", sent, at, value, want, a.body)
		}
		got += ", " + code(at+": "+value)
	}
	got += shape
	for _, lack := range st.Lacks {
		if strings.Contains(string(a.body), s.fill(lack)) {
			s.Errorf("%s: the answer has %s", sent, lack)
		}
	}
	for name, want := range st.Headers {
		if value := s.known(a.header.Get(name)); value != want {
			s.Errorf("%s: %s: %q, want %q", sent, name, value, want)
		}
		got += ", " + code(name+": "+want)
	}
	if refused, ok := lookup(parsed, "code").(string); ok && a.status >= 400 {
		if st.Code != "" && st.Code != refused {
			s.Errorf("%s: %s, want %s: %s", sent, refused, st.Code, a.body)
		}
		got += " " + code(refused)
	}
	return exchange{sent: sent, got: got}
}

// lookup finds a value by its path: names and indexes with dots between.
func lookup(v any, path string) any {
	for path != "" {
		name := path
		switch m := v.(type) {
		case map[string]any:
			if path == "#" {
				return len(m)
			}
			if whole, ok := m[path]; ok {
				return whole // names have dots and colons too
			}
			name, path, _ = strings.Cut(path, ".")
			var ok bool
			if v, ok = m[name]; !ok {
				return "nothing"
			}
		case []any:
			name, path, _ = strings.Cut(path, ".")
			if name == "#" {
				return len(m)
			}
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(m) {
				return "nothing"
			}
			v = m[i]
		default:
			return "nothing"
		}
	}
	return v
}

// show is a value as it stands in a suite: text as it is, the rest as JSON.
func show(v any) string {
	if text, ok := v.(string); ok {
		return text
	}
	return compact(v)
}

// importKey gives a key the secret that the page shows. The second run finds it
// known, and goes on with it.
func (s *script) importKey(st *step) exchange {
	sent := code(strings.TrimSpace("POST /v1/keys/import "+compact(st.With))) + " with the SHA-256 of " + code(st.Import)
	name := cmp.Or(st.As, "key")
	if first := s.w.imported[st.Import]; first != nil {
		s.owner = first.owner
		s.keys[name] = first.keys[name]
		return exchange{sent: sent, got: "created, with no secret in the answer"}
	}
	hash := sha256.Sum256([]byte(s.fill(st.Import)))
	line := merged(map[string]any{"keyspace": s.s.Keyspace, "owner": s.owner, "name": "Example", "sha256": hex.EncodeToString(hash[:])}, st.With)
	a := s.w.call("POST", "/v1/keys/import", s.w.root, compact(line), "Content-Type", "application/x-ndjson")
	var out struct {
		Created int
		Results []struct {
			Key     struct{ ID string }
			Problem struct{ Code string }
		}
	}
	s.must(json.Unmarshal(a.body, &out))
	if st.Code != "" {
		if out.Created != 0 || out.Results[0].Problem.Code != st.Code {
			s.Errorf("%s: %s, want %s", sent, a.body, st.Code)
		}
		return exchange{sent: sent, got: "refused " + code(st.Code)}
	}
	if out.Created != 1 {
		s.Fatalf("%s: %s", sent, a.body)
	}
	s.w.answered(st.Import)
	s.keys[name] = &key{id: out.Results[0].Key.ID, secret: st.Import}
	s.w.imported[st.Import] = s
	return exchange{sent: sent, got: "created, with no secret in the answer"}
}

// sending is a request to a product's API.
type sending struct {
	method, url, body string
	headers           [][2]string
}

// request sends a request through the way in that this run is for, and checks
// what comes back.
func (s *script) request(o *observations, c *sentence, st *step) exchange {
	s.Helper()
	doc := s.w.document(s.s.Keyspace)
	var q sending
	sent := code(st.Send)
	if st.Curl != nil {
		line := curlLine.FindString(c.Says)
		sent = code(strings.Join(strings.Fields(strings.ReplaceAll(line, "\\\n", " ")), " "))
		for _, words := range slices.Sorted(maps.Keys(st.Curl)) {
			if !strings.Contains(line, words) {
				s.Fatalf("%q is not in the line", words)
			}
			line = strings.ReplaceAll(line, words, s.fill(st.Curl[words]))
			sent += ", with " + code(st.Curl[words]) + " for " + code(words)
		}
		q = parseCurl(s.T, line)
	} else {
		q.method, q.url, _ = strings.Cut(s.fill(st.Send), " ")
		if strings.HasPrefix(q.url, "/") {
			q.url = "https://" + s.s.Hosts[0].Name + q.url
		}
	}
	name := doc.Credential.Header
	auth := values{strings.TrimSpace(doc.Credential.Scheme + " $key.secret")}
	if st.Auth != nil {
		auth = *st.Auth
	}
	if st.Curl == nil {
		for _, v := range auth {
			q.headers = append(q.headers, [2]string{name, s.fill(v)})
			if st.Auth != nil {
				sent += " " + code(name+": "+strings.NewReplacer("\n", "↵", "\t", "⇥").Replace(v))
			}
		}
		if len(auth) == 0 {
			sent += " without " + code(name)
		}
	}
	for _, h := range slices.Sorted(maps.Keys(st.Having)) {
		q.headers = append(q.headers, [2]string{h, s.fill(st.Having[h])})
		sent += " " + code(h+": "+st.Having[h])
	}
	if st.From != "" {
		sent += " from " + st.From
	}
	if st.Node != well {
		sent += " to a node that " + st.Node
	}
	var got observed
	var decided string
	if s.way == byGateway {
		got = s.throughGateway(st, q)
	} else {
		got, decided = s.throughVerify(st, q, doc)
	}
	usual := s.s.Refusals[st.Code]
	want := cmp.Or(st.Status, usual.Status, 200)
	wantCode := cmp.Or(st.Code, string(domain.CodeValid))
	if got.status != want {
		s.Errorf("%s: %d, want %d: %s", sent, got.status, want, got.body)
	}
	if decided != "" && decided != wantCode {
		s.Errorf("%s: the decision is %s, want %s", sent, decided, wantCode)
	}
	refused := wantCode != string(domain.CodeValid)
	if refused || st.Body != "" {
		var b bytes.Buffer
		s.must(json.Compact(&b, []byte(cmp.Or(st.Body, usual.Body))))
		if got.body != b.String() {
			s.Errorf("%s:\n%s\nwant\n%s", sent, got.body, &b)
		}
	}
	headers := map[string]string{}
	if refused {
		maps.Copy(headers, s.s.Implied["refused"])
		maps.Copy(headers, s.s.Implied[fmt.Sprint(want)])
	}
	maps.Copy(headers, st.Headers)
	for name, value := range headers {
		delete(headers, name)
		headers[http.CanonicalHeaderKey(name)] = value
	}
	if told := refused || st.Headers != nil || !s.s.RoomShown; told && !maps.Equal(headers, got.headers) {
		s.Errorf("%s: headers %v, want %v", sent, got.headers, headers)
	}
	if refused {
		if _, ok := o.codes[wantCode]; !ok {
			o.codes[wantCode] = got
		}
	} else if _, ok := o.codes[wantCode]; !ok {
		o.codes[wantCode] = observed{status: want}
	}
	text := fmt.Sprint(got.status)
	for _, h := range slices.Sorted(maps.Keys(st.Headers)) {
		text += " " + code(h+": "+st.Headers[h])
	}
	if got.body != "" {
		text += " " + code(got.body)
	}
	for _, h := range slices.Sorted(maps.Keys(st.Echo)) {
		text += ", upstream got " + code(h+": "+st.Echo[h])
	}
	return exchange{sent, text, fmt.Sprint(got)}
}

// unlike are headers that only one of the ways in has: what HTTP adds by itself,
// and what lets a browser read a refusal.
func unlike(name string) bool {
	return slices.Contains([]string{"Date", "Content-Length", "X-Request-Id", "Vary"}, name) || strings.HasPrefix(name, "Access-Control-")
}

// aboutLimits are those headers of an admitted request's answer that are not the
// upstream's.
func aboutLimits(name string) bool {
	return strings.HasPrefix(strings.ToLower(name), "x-ratelimit-") || strings.HasPrefix(strings.ToLower(name), "ratelimit") || strings.EqualFold(name, "Retry-After")
}

func (s *script) throughGateway(st *step, q sending) observed {
	s.Helper()
	r := httptest.NewRequest(q.method, q.url, strings.NewReader(q.body))
	r.RequestURI, r.RemoteAddr = "", ""
	if q.body == "" {
		r.Body = nil
	}
	for _, h := range q.headers {
		r.Header.Add(h[0], h[1])
	}
	r.Header.Set("User-Agent", "conformance")
	if st.From != "" {
		r.Header.Set("X-Forwarded-For", st.From)
	}
	a := s.w.send(st.Node, r)
	out := observed{status: a.status, headers: map[string]string{}}
	var echo demo.Echo
	admitted := json.Unmarshal(a.body, &echo) == nil && echo.Headers != nil || q.method == http.MethodHead && a.status == 200
	for name, v := range a.header {
		if value := strings.Join(v, ", "); !unlike(name) && (!admitted || aboutLimits(name)) {
			out.headers[name] = s.headerValue(name, value)
		}
	}
	if !admitted {
		out.body = s.known(string(a.body))
		if a.header.Get("X-Request-Id") == "" {
			s.Error("an answer without X-Request-Id")
		}
		return out
	}
	for name, want := range st.Echo {
		got := strings.Join(echo.Headers[name], ", ")
		switch name {
		case "path":
			got = echo.Path
		case "query":
			got = echo.Query
		case "body":
			got = echo.Body
		}
		if got = s.known(got); got != want {
			s.Errorf("upstream got %s: %q, want %q", name, got, want)
		}
	}
	for _, k := range s.keys {
		if strings.Contains(string(a.body), k.secret) {
			s.Error("the secret reached the upstream")
		}
	}
	return out
}

func (s *script) headerValue(name, value string) string {
	if strings.EqualFold(name, "X-RateLimit-Reset") {
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return s.relative(time.Unix(n, 0))
		}
	}
	return s.known(value)
}

// throughVerify asks for the decision, and where the request is admitted reports
// how the upstream would have answered.
func (s *script) throughVerify(st *step, q sending, doc *domain.Document) (observed, string) {
	s.Helper()
	u, err := url.Parse(q.url)
	s.must(err)
	ask := map[string]any{
		"keyspace": s.s.Keyspace, "method": q.method, "path": u.RequestURI(), "tls": u.Scheme == "https",
		"ip": cmp.Or(st.From, "127.0.0.1"), "origin": "", "content_type": "", "user_agent": "conformance", "report": true,
	}
	status := 200
	var auth []string
	for _, h := range q.headers {
		switch {
		case strings.EqualFold(h[0], doc.Credential.Header):
			auth = append(auth, h[1])
		case strings.EqualFold(h[0], "Content-Type"):
			ask["content_type"] = h[1]
		case strings.EqualFold(h[0], "Origin"):
			ask["origin"] = h[1]
		case h[0] == "X-Upstream-Status":
			status, err = strconv.Atoi(h[1])
			s.must(err)
		case h[0] == "X-Upstream-Cost":
			ask["cost"], err = strconv.Atoi(h[1])
			s.must(err)
		}
	}
	if len(auth) > 0 {
		ask["authorization"] = strings.Join(auth, ", ") // as a proxy joins several lines
	}
	a := s.w.callAt(st.Node, "POST", "/v1/verify", s.w.root, compact(ask))
	var d struct {
		Valid      bool
		Code       string
		DecisionID string `json:"decision_id"`
		Skipped    []string
		Key        *struct{ ID string }
		Answer     struct {
			Status  int
			Headers map[string]string
			Body    json.RawMessage
		}
	}
	if a.status != 200 {
		s.Fatalf("POST /v1/verify: %d %s", a.status, a.body)
	}
	s.must(json.Unmarshal(a.body, &d))
	if len(d.Skipped) > 0 {
		s.Errorf("not checked: %v", d.Skipped)
	}
	for _, k := range s.keys {
		if bytes.Contains(a.body, []byte(k.secret)) {
			s.Error("the secret is in the decision")
		}
	}
	out := observed{status: d.Answer.Status, headers: map[string]string{}}
	for name, value := range d.Answer.Headers {
		out.headers[http.CanonicalHeaderKey(name)] = s.headerValue(name, value)
	}
	if string(d.Answer.Body) != "null" {
		out.body = s.known(string(d.Answer.Body))
	}
	if d.Valid && d.Key != nil {
		out.status = status
		report := []map[string]any{{"decision_id": d.DecisionID, "status": status, "latency_ms": 1}}
		if a := s.w.call("POST", "/v1/uses", s.w.root, compact(report)); a.status != 200 {
			s.Errorf("POST /v1/uses: %d %s", a.status, a.body)
		}
	}
	return out, d.Code
}

// document is a keyspace's document as the API answers it.
func (w *world) document(keyspace string) *domain.Document {
	w.t.Helper()
	a := w.call("GET", "/v1/keyspaces/"+keyspace, w.root, "")
	var out struct{ Document json.RawMessage }
	w.ok(json.Unmarshal(a.body, &out))
	d, err := domain.ParseDocument(out.Document)
	w.ok(err)
	return d
}

// parseCurl reads a command line of curl with the options that the pages use. A
// line that ends with a backslash goes on.
func parseCurl(t *testing.T, line string) sending {
	t.Helper()
	words := shellWords.FindAllString(strings.ReplaceAll(line, "\\\n", " "), -1)
	for i, w := range words {
		words[i] = strings.Trim(w, `"'`)
	}
	q := sending{}
	if len(words) == 0 || words[0] != "curl" {
		t.Fatalf("not a line of curl: %s", line)
	}
	for i := 1; i < len(words); i++ {
		option := words[i]
		if !strings.HasPrefix(option, "-") {
			q.url = option
			continue
		}
		i++
		switch option {
		case "-X":
			q.method = words[i]
		case "-H":
			name, value, _ := strings.Cut(words[i], ": ")
			q.headers = append(q.headers, [2]string{name, value})
		case "-d":
			q.body = words[i]
			q.method = cmp.Or(q.method, "POST")
		default:
			t.Fatalf("curl %s is not an option that the pages use", option)
		}
	}
	q.method = cmp.Or(q.method, "GET")
	return q
}

// curlLine goes on where a line ends with a backslash.
var curlLine = regexp.MustCompile(`(?m)^ *curl (.*\\\n)*.*$`)

var shellWords = regexp.MustCompile(`"[^"]*"|'[^']*'|[^\s"']+`)

// sendFolded writes a request whose header spans lines by hand.
func (w *world) sendFolded(node string, r *http.Request, name, value string) answer {
	w.t.Helper()
	conn, err := tls.Dial("tcp", w.secure[node], anyCertificate)
	w.ok(err)
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\nConnection: close\r\n\r\n", r.Method, r.URL.RequestURI(), r.URL.Host, name, strings.ReplaceAll(value, "\n", "\r\n "))
	res, err := http.ReadResponse(bufio.NewReader(conn), r)
	w.ok(err)
	return w.read(res)
}
