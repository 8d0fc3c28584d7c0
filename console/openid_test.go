package console_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// liar is an identity provider that answers each code with the ID token that the test
// wants: what no real provider can be made to do.
type liar struct {
	*httptest.Server
	key *rsa.PrivateKey // that it publishes

	mu     sync.Mutex
	tokens map[string]any // by code; guarded by mu
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{key: key, tokens: map[string]any{}}
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": l.URL, "authorization_endpoint": l.URL + "/authorize", "token_endpoint": l.URL + "/token", "jwks_uri": l.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"keys": []any{map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "one",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())}}})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		token := map[string]any{"access_token": "opaque", "token_type": "Bearer", "expires_in": 60}
		l.mu.Lock()
		defer l.mu.Unlock()
		if id := l.tokens[r.FormValue("code")]; id != nil {
			token["id_token"] = id
		}
		answer(w, token)
	})
	l.Server = httptest.NewServer(mux)
	t.Cleanup(l.Close)
	return l
}

// token is a JWT of claims, by a header, signed with a key; nil: with nothing.
func token(t *testing.T, header, claims map[string]any, key *rsa.PrivateKey) string {
	t.Helper()
	var parts []string
	for _, part := range []map[string]any{header, claims} {
		b, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(b))
	}
	text := strings.Join(parts, ".")
	if key == nil {
		return text + "."
	}
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// An ID token that is for another sign-in, for somebody else, too old, or not signed by the
// provider signs nobody in. Whoever came reads so, and the audit log says that it failed
// and from where, and nothing of what was answered. The same token without the lie signs in.
func TestOpenIDLies(t *testing.T) {
	l := newLiar(t)
	settings := filepath.Join(t.TempDir(), "openid.yaml")
	if err := os.WriteFile(settings, []byte("openid:\n  issuer: "+l.URL+"\n  client_id: keyledger\n  roles:\n    - {value: operators, role: operator}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "--openid", settings)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	type claims = map[string]any
	now := time.Now()
	type lie struct {
		change func(header, told claims)
		key    *rsa.PrivateKey
		raw    func(string) any // of the token; nil: as it is
	}
	lies := map[string]lie{
		"the truth":                {nil, l.key, nil},
		"wrong nonce":              {func(_, c claims) { c["nonce"] = strings.Repeat("0", 43) }, l.key, nil},
		"no nonce":                 {func(_, c claims) { delete(c, "nonce") }, l.key, nil},
		"wrong audience":           {func(_, c claims) { c["aud"] = "another-client" }, l.key, nil},
		"no audience":              {func(_, c claims) { delete(c, "aud") }, l.key, nil},
		"expired":                  {func(_, c claims) { c["exp"] = now.Add(-time.Hour).Unix() }, l.key, nil},
		"without an end":           {func(_, c claims) { delete(c, "exp") }, l.key, nil},
		"not valid yet":            {func(_, c claims) { c["nbf"] = now.Add(time.Hour).Unix() }, l.key, nil},
		"of another issuer":        {func(_, c claims) { c["iss"] = "https://other.example.com" }, l.key, nil},
		"signed by another key":    {nil, other, nil},
		"with another key's name":  {func(h, _ claims) { h["kid"] = "two" }, l.key, nil},
		"signed by nobody":         {func(h, _ claims) { h["alg"] = "none" }, nil, nil},
		"signed by a public key":   {func(h, _ claims) { h["alg"] = "HS256" }, l.key, nil},
		"changed after signing":    {nil, l.key, func(raw string) any { return swapped(t, raw) }},
		"no ID token":              {nil, l.key, func(string) any { return nil }},
		"something that is no JWT": {nil, l.key, func(string) any { return "eyJ.eyJ" }},
	}
	for i, what := range slices.Sorted(maps.Keys(lies)) {
		lie := lies[what]
		c := s.stranger(t)
		ask := func(at string) (*http.Response, string) {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), "GET", at, nil)
			if err != nil {
				t.Fatal(err)
			}
			// Each from an address of its own: of one address ten a minute are heard.
			r.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i+1))
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp, string(b)
		}
		begun, _ := ask(s.url + "/signin/openid?to=/keys")
		at, err := url.Parse(begun.Header.Get("Location"))
		if err != nil || !strings.HasPrefix(at.String(), l.URL+"/authorize?") {
			t.Fatalf("sent to %s (%v)", at, err)
		}
		header := claims{"alg": "RS256", "kid": "one", "typ": "JWT"}
		told := claims{"iss": l.URL, "sub": "olga-at-the-liar", "aud": "keyledger", "nonce": at.Query().Get("nonce"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
			"groups": []string{"operators"}, "name": "Olga Example"}
		if lie.change != nil {
			lie.change(header, told)
		}
		raw := token(t, header, told, lie.key)
		l.mu.Lock()
		l.tokens[what] = raw
		if lie.raw != nil {
			l.tokens[what] = lie.raw(raw)
		}
		l.mu.Unlock()
		back := s.url + "/signin/openid/callback?" + url.Values{"state": {at.Query().Get("state")}, "code": {what}}.Encode()
		resp, page := ask(back)
		in, _ := ask(s.url + "/keys")
		if what == "the truth" {
			if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/keys" || in.StatusCode != http.StatusOK {
				t.Errorf("%s: %s, and /keys %s: %s", what, resp.Status, in.Status, page)
			}
			continue
		}
		if resp.StatusCode != http.StatusBadGateway || in.StatusCode == http.StatusOK || len(resp.Header.Values("Set-Cookie")) != 1 {
			t.Errorf("%s: %s with %q, and /keys %s", what, resp.Status, resp.Header.Values("Set-Cookie"), in.Status)
		}
		if !strings.Contains(page, "answer does not count") || !strings.Contains(page, "could not be verified") || strings.Contains(page, "olga") || strings.Contains(page, "eyJ") {
			t.Errorf("%s: the page says %s", what, page)
		}
	}
	body := s.get(t, "/v1/audit/events?type=signin.failed&limit=100", s.root)
	var log struct {
		Events []struct {
			Data struct {
				Reason   string
				SourceIP string `json:"source_ip"`
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &log); err != nil {
		t.Fatal(err)
	}
	from := map[string]bool{}
	for _, e := range log.Events {
		if e.Data.Reason != "The identity provider's answer could not be verified" {
			t.Errorf("the log has a sign-in that failed: %+v", e)
		}
		from[e.Data.SourceIP] = true
	}
	if len(log.Events) != len(lies)-1 || len(from) != len(lies)-1 || strings.Contains(body, "olga") {
		t.Errorf("%d lies, and the log has %d from %d addresses: %s", len(lies)-1, len(log.Events), len(from), body)
	}
	if said := s.process.Output(); strings.Contains(said, "eyJ") || strings.Contains(said, "olga-at") {
		t.Error("the program's log has an ID token, or says who came")
	}
}

// swapped is a token about somebody else, with the signature as it was.
func swapped(t *testing.T, raw string) string {
	t.Helper()
	parts := strings.Split(raw, ".")
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || !strings.Contains(string(b), "olga") {
		t.Fatalf("%s: %v", b, err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(b), "olga", "olgb", 1)))
	return strings.Join(parts, ".")
}
