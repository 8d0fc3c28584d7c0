package console

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

// CodePath is where a holder of a root key asks for a one-time sign-in code, with
// POST and Authorization as for the API.
const CodePath = "/signin/codes"

// Code answers [CodePath].
type Code struct {
	Path  string `json:"path"` // to open in a browser, on this host; the code is behind the #, which browsers send nobody
	Until string `json:"until"`
}

func (c *Console) signing() {
	c.mux.HandleFunc("GET /signin", c.signinPage)
	c.mux.HandleFunc("POST /signin", c.signin)
	c.mux.HandleFunc("POST /signout", c.signout)
	c.mux.HandleFunc("POST "+CodePath, c.makeCode)
	if c.openid != nil {
		c.mux.HandleFunc("GET /signin/openid", c.beginOpenID)
		c.mux.HandleFunc("GET "+callbackPath, c.endOpenID)
	}
}

type signinData struct {
	To       string
	Wrong    string
	Provider string // that people may sign in by
}

func (c *Console) signinPage(w http.ResponseWriter, r *http.Request) {
	c.showSignin(w, r, http.StatusOK, signinData{To: ours(r.URL.Query().Get("to"))})
}

func (c *Console) showSignin(w http.ResponseWriter, r *http.Request, status int, d signinData) {
	if c.openid != nil {
		d.Provider = c.openid.Name
	}
	if status != http.StatusOK {
		w.WriteHeader(status)
	}
	if err := c.render(w, layout{Title: "Sign in", Page: "signin", Alone: true, Path: r.URL.Path, Version: c.Version, Done: done[r.URL.Query().Get("done")], Data: d}); err != nil {
		c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
}

// ours is a path of this console to go on to, and / where it is anything else.
func ours(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") ||
		strings.ContainsFunc(to, func(r rune) bool { return r == '\\' || r <= ' ' || r == 0x7f }) {
		return "/"
	}
	return to
}

// signin takes a root key or a one-time code.
func (c *Console) signin(w http.ResponseWriter, r *http.Request) {
	given, to := strings.TrimSpace(r.PostFormValue("credential")), ours(r.PostFormValue("to"))
	settle, wait := c.tries.begin(c.ClientIP(r))
	if wait > 0 {
		c.tooMany(w, r, to, wait)
		return
	}
	hash := sha256.Sum256([]byte(given))
	s := &session{RootKey: hash[:]}
	if strings.HasPrefix(given, "once_") {
		code, err := c.Sessions.redeem(r.Context(), given)
		if err != nil {
			settle(!errors.Is(err, errSignedOut))
			c.refuseSignin(w, r, to, err, "This code was used already, or is older than ten minutes. Ask for another one.")
			return
		}
		s.RootKey = code.RootKey
	}
	err := c.enter(w, r, s)
	settle(err == nil)
	if errors.Is(err, errVerifier) {
		c.refuseSignin(w, r, to, errSignedOut, "A verifier's key verifies, and cannot sign in. Use an operator's, a manager's or an auditor's.")
		return
	}
	if err != nil {
		c.refuseSignin(w, r, to, err, "This is no root key that works: it may be revoked or expired, or miss a character.")
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// errVerifier says that a credential is good, and not for signing in.
var errVerifier = errors.New("a verifier's key cannot sign in")

// enter begins a session for somebody who is who they say, with a token that the
// browser did not have before. errSignedOut: their credential does not work.
func (c *Console) enter(w http.ResponseWriter, r *http.Request, s *session) error {
	v := &visit{Console: c, w: w, r: r, session: s}
	if len(s.RootKey) > 0 {
		copy(s.Caller.RootKey[:], s.RootKey)
	}
	if err := v.judge(); err != nil {
		return err
	}
	if v.me.Role == "" || v.me.Role == domain.Verifier {
		return errVerifier
	}
	s.Actor, s.Role, s.Name, s.Browser = v.me.Actor, v.me.Role, v.me.Name, browser(r.UserAgent())
	if old := tokenOf(r); old != "" {
		_ = c.Sessions.end(r.Context(), old)
	}
	token, err := c.Sessions.begin(r.Context(), *s)
	if err != nil {
		return err
	}
	setSession(w, r, token)
	return nil
}

// tooMany answers an address that has been wrong too often.
func (c *Console) tooMany(w http.ResponseWriter, r *http.Request, to string, wait time.Duration) {
	seconds := int(wait/time.Second) + 1
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	c.showSignin(w, r, http.StatusTooManyRequests, signinData{To: to, Wrong: "Too many sign-ins from your address were wrong. Try again in " + plural(seconds, "second") + "."})
}

// refuseSignin shows the form again with the reason.
func (c *Console) refuseSignin(w http.ResponseWriter, r *http.Request, to string, err error, wrong string) {
	p, ok := errors.AsType[*api.Problem](err)
	status := http.StatusUnauthorized
	switch {
	case ok && p.Status != http.StatusUnauthorized:
		status, wrong = p.Status, p.Detail
	case !ok && !errors.Is(err, errSignedOut):
		c.Log.ErrorContext(r.Context(), "sign-in failed", "error", err)
		status, wrong = http.StatusServiceUnavailable, "Sessions cannot be kept at the moment: NATS does not answer. Try again."
	}
	if status == http.StatusUnauthorized {
		reason, _, _ := strings.Cut(wrong, ".")
		c.failed(r, cmp.Or(reason, "The answer of the identity provider was not accepted"))
	}
	c.showSignin(w, r, status, signinData{To: to, Wrong: wrong})
}

// failed records a sign-in that failed. How many there are of one address is bounded
// ([Console.tooMany]), and so is how many are recorded; not of those whom the provider
// knows and who are let in nowhere, each of whom it has signed in before.
func (c *Console) failed(r *http.Request, reason string) {
	if c.Failed == nil {
		return
	}
	if err := c.Failed(r.Context(), reason, c.ClientIP(r)); err != nil {
		c.Log.WarnContext(r.Context(), "a sign-in that failed was not recorded", "reason", reason, "error", err)
	}
}

// signout ends the session, in whatever window it is used, and leads on to the
// provider that somebody signed in by.
func (c *Console) signout(w http.ResponseWriter, r *http.Request) {
	var at string
	if token := tokenOf(r); token != "" {
		if s, err := c.Sessions.find(r.Context(), token, false); err == nil {
			at = c.openid.endAt(r, s.Person)
		}
		if err := c.Sessions.end(r.Context(), token); err != nil {
			c.Log.WarnContext(r.Context(), "a session was not ended", "error", err)
		}
	}
	endSession(w, r)
	w.Header().Set("Clear-Site-Data", `"cache", "storage"`)
	if at == "" {
		http.Redirect(w, r, "/signin?done=signed-out", http.StatusSeeOther)
		return
	}
	// The policy of the pages lets no form lead elsewhere, also not by a redirect.
	if err := c.render(w, layout{Title: "You are signed out here", Page: "signedout", Alone: true, Path: r.URL.Path, Version: c.Version, Data: signedOut{at, c.openid.Name}}); err != nil {
		c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
}

type signedOut struct{ At, Provider string }

// makeCode gives the holder of a root key a code for a browser.
func (c *Console) makeCode(w http.ResponseWriter, r *http.Request) {
	settle, wait := c.tries.begin(c.ClientIP(r))
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		plainly(w, http.StatusTooManyRequests, "TOO_MANY_ATTEMPTS", "Too many sign-ins from your address were wrong.")
		return
	}
	secret, code := domain.RootKeyspace().Credential(r.Header.Values("Authorization"))
	hash := sha256.Sum256([]byte(secret))
	v := &visit{Console: c, w: w, r: r, session: &session{RootKey: hash[:], Caller: api.Caller{RootKey: hash}}}
	err := v.judge()
	right := code == "" && err == nil && v.me.Role != "" && v.me.Role != domain.Verifier
	settle(right)
	if !right {
		c.failed(r, "A sign-in code was asked for without a root key that works")
		plainly(w, http.StatusUnauthorized, "UNAUTHORIZED", "Send Authorization: Bearer and an operator's, a manager's or an auditor's root key.")
		return
	}
	path, until, err := c.Sessions.Link(r.Context(), hash)
	if err != nil {
		c.Log.ErrorContext(r.Context(), "no sign-in code was made", "error", err)
		plainly(w, http.StatusServiceUnavailable, "UNAVAILABLE", "NATS does not answer: try again.")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Code{Path: path, Until: until.UTC().Format("2006-01-02T15:04:05.000Z")})
}

// plainly answers a program with a problem.
func plainly(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail})
}
