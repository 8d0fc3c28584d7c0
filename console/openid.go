package console

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// OpenID says how people sign in by an identity provider (OpenID Connect Core 1.0, with
// the authorization code flow and PKCE). Nobody comes in whom Roles does not name.
type OpenID struct {
	// Issuer is the provider's address, below which /.well-known/openid-configuration is.
	Issuer string `yaml:"issuer"`

	// ClientID is what the provider calls this console.
	ClientID string `yaml:"client_id"`

	// ClientSecretFile holds the secret that the provider gave for it; or it is in
	// KEYLEDGER_OPENID_CLIENT_SECRET. Neither: a client without one.
	ClientSecretFile string `yaml:"client_secret_file"`
	ClientSecret     string `yaml:"client_secret"`

	// URL is where people open this console, such as https://keys.example.com: the
	// provider sends them back to /signin/openid/callback there. Default: where the
	// request came to.
	URL string `yaml:"url"`

	// Scopes are asked of the provider. Default: openid, profile.
	Scopes []string `yaml:"scopes"`

	// Name is what the button calls the provider. Default: its host.
	Name string `yaml:"name"`

	// Claim names the claim that Roles are told by, a text or a list of texts, of the
	// ID token or of the provider's UserInfo. What is inside of another claim is
	// named with a dot: realm_access.roles. Default: groups.
	Claim string `yaml:"claim"`

	// Roles are what people are here, by a value of the claim. Where several fit the
	// first of them counts.
	Roles []OpenIDRole `yaml:"roles"`
}

// OpenIDRole is what people with a value of the claim are.
type OpenIDRole struct {
	Value    string `yaml:"value"`
	Role     string `yaml:"role"`     // operator, auditor, manager
	Keyspace string `yaml:"keyspace"` // of a manager
	Owner    string `yaml:"owner"`    // likewise
}

// Validate says all that is wrong with it.
func (o *OpenID) Validate() error {
	var problems []error
	add := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("openid."+format, args...))
	}
	if u, err := url.Parse(o.Issuer); err != nil || u.Host == "" || !safe(u) || u.RawQuery != "" || u.Fragment != "" {
		add("issuer: write the provider's address, https://login.example.com; http is for this machine alone")
	}
	if o.ClientID == "" {
		add("client_id is missing: it is what the provider calls this console")
	}
	if o.ClientSecret != "" && o.ClientSecretFile != "" {
		add("client_secret_file: the secret is in the environment too: give one of them")
	}
	if o.URL != "" {
		if u, err := url.Parse(o.URL); err != nil || u.Host == "" || !safe(u) || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			add("url: write where people open this console, https://keys.example.com, without a path; http is for this machine alone")
		}
	}
	if len(o.Scopes) > 0 && !slices.Contains(o.Scopes, oidc.ScopeOpenID) {
		add("scopes: openid is missing")
	}
	if len(o.Roles) == 0 {
		add("roles: nobody could come in: name at least one value of the claim and its role")
	}
	for i, r := range o.Roles {
		if r.Value == "" {
			add("roles[%d].value is missing", i)
		}
		switch reach := r.Keyspace != "" || r.Owner != ""; {
		case r.Role == domain.Manager && (r.Keyspace == "" || r.Owner == ""):
			add("roles[%d]: a manager is one of a keyspace and owner: name both", i)
		case r.Role != domain.Manager && r.Role != domain.Operator && r.Role != domain.Auditor:
			add("roles[%d].role %q: write operator, auditor or manager", i, r.Role)
		case r.Role != domain.Manager && reach:
			add("roles[%d]: only a manager has a keyspace and an owner", i)
		}
	}
	return errors.Join(problems...)
}

// safe says whether nobody on the way sees or changes what is asked of an address.
func safe(u *url.URL) bool {
	if u.Scheme == "https" {
		return true
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && ip.IsLoopback())
}

// person is somebody who signed in by the provider, as their session keeps them.
type person struct {
	ID     string   `json:"id"`
	Values []string `json:"values"` // of the claim, as the provider told them then
	Token  string   `json:"token"`  // the ID token: the provider is told with it who signs out
}

// identity signs people in by a provider. It is safe for concurrent use.
type identity struct {
	OpenID
	secret []byte // that their ids are made with
	client *http.Client

	mu       sync.Mutex // guards provider
	provider *provider  // nil: it did not answer yet
}

type provider struct {
	*oidc.Provider
	verifier *oidc.IDTokenVerifier
	end      *url.URL // where people sign out there; nil: nowhere
}

func newIdentity(o OpenID, secret []byte) (*identity, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if len(secret) < sha256.Size {
		return nil, errors.New("console: PersonSecret is required with OpenID, of 32 bytes")
	}
	if len(o.Scopes) == 0 {
		o.Scopes = []string{oidc.ScopeOpenID, "profile"}
	}
	if u, _ := url.Parse(o.Issuer); o.Name == "" {
		o.Name = u.Host
	}
	o.Claim = cmp.Or(o.Claim, "groups")
	o.URL = strings.TrimSuffix(o.URL, "/")
	// A provider that is slow must not hold up those who wait for it for long.
	return &identity{OpenID: o, secret: secret, client: &http.Client{Timeout: 10 * time.Second}}, nil
}

// ask returns a context in which the provider is asked.
func (i *identity) ask(ctx context.Context) context.Context { return oidc.ClientContext(ctx, i.client) }

// discover asks the provider what it is, until it has said so once.
func (i *identity) discover() (*provider, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.provider != nil {
		return i.provider, nil
	}
	// Its keys are fetched in this context for as long as the program runs.
	p, err := oidc.NewProvider(i.ask(context.Background()), i.Issuer)
	if err != nil {
		return nil, fmt.Errorf("the identity provider %s: %w", i.Issuer, err)
	}
	var more struct {
		End string `json:"end_session_endpoint"`
	}
	if err := p.Claims(&more); err != nil {
		return nil, fmt.Errorf("the identity provider %s: %w", i.Issuer, err)
	}
	found := &provider{Provider: p, verifier: p.Verifier(&oidc.Config{ClientID: i.ClientID})}
	if u, err := url.Parse(more.End); err == nil && u.Host != "" && safe(u) {
		found.end = u
	}
	i.provider = found
	return found, nil
}

// id is what the audit log calls somebody: the same at every sign-in, and nothing
// that leads back to them without the secret.
func (i *identity) id(issuer, subject string) string {
	h := hmac.New(sha256.New, i.secret)
	fmt.Fprintf(h, "%d %s %s", len(issuer), issuer, subject)
	return "user_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// judge is what somebody is by the settings of now; nil: nobody.
func (i *identity) judge(p *person) *domain.Person {
	if i == nil {
		return nil
	}
	for _, r := range i.Roles {
		if !slices.Contains(p.Values, r.Value) {
			continue
		}
		d := &domain.Person{ID: p.ID, Role: r.Role}
		if r.Role == domain.Manager {
			d.Reach = &events.Reach{Keyspace: r.Keyspace, Owner: r.Owner}
		}
		return d
	}
	return nil
}

// origin is where people open this console.
func (i *identity) origin(r *http.Request) string {
	if i.URL != "" {
		return i.URL
	}
	if secure(r) {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

const callbackPath = "/signin/openid/callback"

func (i *identity) oauth(r *http.Request, p *provider) *oauth2.Config {
	return &oauth2.Config{ClientID: i.ClientID, ClientSecret: i.ClientSecret, Endpoint: p.Endpoint(), RedirectURL: i.origin(r) + callbackPath, Scopes: i.Scopes}
}

// flow is a sign-in that was begun and not ended. It is in the browser that began it
// alone, so that nobody is signed in by a link of somebody else's.
type flow struct {
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"` // of PKCE
	To       string    `json:"to"`
	Until    time.Time `json:"until"`
}

const flowTime = 10 * time.Minute

func flowCookie(r *http.Request) *http.Cookie {
	c := &http.Cookie{Name: "keyledger_openid", Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure(r)}
	if c.Secure {
		c.Name = "__Host-" + c.Name
	}
	return c
}

// beginOpenID sends somebody to the provider.
func (c *Console) beginOpenID(w http.ResponseWriter, r *http.Request) {
	to := ours(r.URL.Query().Get("to"))
	p, err := c.openid.discover()
	if err != nil {
		c.Log.ErrorContext(r.Context(), "nobody can sign in by the identity provider", "error", err)
		c.showSignin(w, r, http.StatusServiceUnavailable, signinData{To: to, Wrong: "The identity provider does not answer at the moment. Try again, or use a root key."})
		return
	}
	f := flow{State: newToken(), Nonce: newToken(), Verifier: oauth2.GenerateVerifier(), To: to, Until: c.Now().Add(flowTime)}
	b, err := json.Marshal(f)
	if err != nil || len(b) > 2500 { // of what a browser keeps in a cookie
		f.To = "/"
		b, _ = json.Marshal(f)
	}
	cookie := flowCookie(r)
	cookie.Value, cookie.MaxAge = base64.RawURLEncoding.EncodeToString(b), int(flowTime/time.Second)
	http.SetCookie(w, cookie)
	options := []oauth2.AuthCodeOption{oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)}
	if r.URL.Query().Has("another") {
		options = append(options, oauth2.SetAuthURLParam("prompt", "select_account"))
	}
	http.Redirect(w, r, c.openid.oauth(r, p).AuthCodeURL(f.State, options...), http.StatusFound)
}

// noEntry is a sign-in that the provider was asked about and that came to nothing.
type noEntry struct {
	status int
	Title  string
	Text   string
	Values []string // of the claim, of somebody who is known and not let in
	Claim  string
	record string // the reason in the audit log: fixed words, nothing of what was answered
	err    error  // for the program's log
}

func (n *noEntry) Error() string { return n.Title }

// endOpenID is where the provider sends people back to.
func (c *Console) endOpenID(w http.ResponseWriter, r *http.Request) {
	settle, wait := c.tries.begin(c.ClientIP(r))
	if wait > 0 {
		c.tooMany(w, r, "/", wait)
		return
	}
	to, s, err := c.returned(w, r)
	n, refused := errors.AsType[*noEntry](err)
	settle(err == nil || refused && n.status == http.StatusForbidden) // whoever the provider knows has not guessed
	if refused {
		c.Log.WarnContext(r.Context(), "nobody was signed in by the identity provider", "reason", n.Title, "error", n.err)
		c.failed(r, n.record)
		w.WriteHeader(n.status)
		err = c.render(w, layout{Title: n.Title, Page: "noentry", Alone: true, Path: r.URL.Path, Version: c.Version, Data: n})
		if err != nil {
			c.Log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
		}
		return
	}
	if err == nil {
		err = c.enter(w, r, s)
	}
	if err != nil {
		c.refuseSignin(w, r, to, err, "")
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// returned judges what the provider sent somebody back with.
func (c *Console) returned(w http.ResponseWriter, r *http.Request) (to string, s *session, err error) {
	cookie := flowCookie(r)
	given, err := r.Cookie(cookie.Name)
	cookie.MaxAge = -1
	http.SetCookie(w, cookie) // once
	q := r.URL.Query()
	astray := func(err error) error {
		return &noEntry{status: http.StatusBadRequest, Title: "This sign-in does not go on here",
			Text:   "It was begun in another browser or window, took longer than ten minutes, or was used already. Begin again.",
			record: "The identity provider's answer came to no sign-in that was begun there", err: err}
	}
	if err != nil {
		return "/", nil, astray(errors.New("the browser has begun no sign-in"))
	}
	var f flow
	b, err := base64.RawURLEncoding.DecodeString(given.Value)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil || len(f.State) < 32 || c.Now().After(f.Until) {
		return "/", nil, astray(errors.New("it was begun too long ago, or the cookie cannot be read"))
	}
	if subtle.ConstantTimeCompare([]byte(f.State), []byte(q.Get("state"))) != 1 {
		return "/", nil, astray(errors.New("the state is another one"))
	}
	to = ours(f.To)
	if iss := q.Get("iss"); iss != "" && iss != c.openid.Issuer { // RFC 9207
		return to, nil, astray(errors.New("another provider answered"))
	}
	if q.Has("error") {
		text := "It did not sign you in. Begin again, or ask whoever looks after it."
		if q.Get("error") == "access_denied" {
			text = "You said no there, or may not use this console. Begin again, or ask whoever looks after it."
		}
		return to, nil, &noEntry{status: http.StatusUnauthorized, Title: "The identity provider said no", Text: text,
			record: "The identity provider said no", err: errors.New(q.Get("error"))}
	}
	p, err := c.openid.discover()
	if err != nil {
		return to, nil, unknowable(err)
	}
	ctx := c.openid.ask(r.Context())
	token, err := c.openid.oauth(r, p).Exchange(ctx, q.Get("code"), oauth2.VerifierOption(f.Verifier))
	if err != nil {
		if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			// What it answers may hold what was sent to it.
			err = fmt.Errorf("the code was not exchanged: %s %s", e.Response.Status, e.ErrorCode)
		}
		return to, nil, unknowable(err)
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := p.verifier.Verify(ctx, raw)
	if err != nil {
		return to, nil, unknowable(err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.Nonce)) != 1 {
		return to, nil, unknowable(errors.New("the ID token is for another sign-in: its nonce is another one"))
	}
	claims := map[string]any{}
	if err := id.Claims(&claims); err != nil {
		return to, nil, unknowable(err)
	}
	values, told := claimed(claims, c.openid.Claim)
	name := nameIn(claims)
	if (!told || name == "") && p.UserInfoEndpoint() != "" {
		info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(token))
		more := map[string]any{}
		if err == nil && info.Subject != id.Subject { // OpenID Connect Core, 5.3.2
			err = errors.New("UserInfo is about somebody else")
		}
		if err == nil {
			err = info.Claims(&more)
		}
		if err != nil {
			return to, nil, unknowable(err)
		}
		if !told {
			values, _ = claimed(more, c.openid.Claim)
		}
		name = cmp.Or(name, nameIn(more))
	}
	who := &person{ID: c.openid.id(id.Issuer, id.Subject), Values: known(values, c.openid.Roles), Token: raw}
	if c.openid.judge(who) == nil {
		return to, nil, &noEntry{status: http.StatusForbidden, Title: "You are not let in here",
			Text:   "You are known, but this console is not for you: it lets nobody in by what the identity provider says about you.",
			Values: values[:min(len(values), 30)], Claim: c.openid.Claim,
			record: "Nobody is let in by what the identity provider says about them", err: errors.New("no role is for any value of the claim")}
	}
	return to, &session{Person: who, Name: name}, nil
}

func unknowable(err error) error {
	return &noEntry{status: http.StatusBadGateway, Title: "The identity provider's answer does not count",
		Text:   "What it answered could not be verified. Begin again; whoever looks after this console finds the reason in its log.",
		record: "The identity provider's answer could not be verified", err: err}
}

// known are the values that some role is for: nothing else about people is kept.
func known(values []string, roles []OpenIDRole) []string {
	return slices.DeleteFunc(slices.Clone(values), func(v string) bool {
		return !slices.ContainsFunc(roles, func(r OpenIDRole) bool { return r.Value == v })
	})
}

// claimed are the values of a claim, which may be inside of another one; false: it is
// not there.
func claimed(claims map[string]any, name string) ([]string, bool) {
	v, ok := claims[name]
	if !ok {
		outer, inner, dotted := strings.Cut(name, ".")
		if deeper, is := claims[outer].(map[string]any); dotted && is {
			return claimed(deeper, inner)
		}
		return nil, false
	}
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		var values []string
		for _, x := range v {
			if s, ok := x.(string); ok {
				values = append(values, s)
			}
		}
		return values, true
	}
	return nil, true
}

// nameIn is what people are called, for pages alone.
func nameIn(claims map[string]any) string {
	for _, c := range []string{"name", "preferred_username", "email"} {
		if s, _ := claims[c].(string); s != "" {
			if r := []rune(s); len(r) > 80 {
				s = string(r[:80])
			}
			return s
		}
	}
	return ""
}

// endAt is where somebody goes on to sign out at the provider (OpenID Connect
// RP-Initiated Logout 1.0); empty: nowhere.
func (i *identity) endAt(r *http.Request, p *person) string {
	if i == nil || p == nil {
		return ""
	}
	found, err := i.discover()
	if err != nil || found.end == nil {
		return ""
	}
	u := *found.end
	q := u.Query()
	q.Set("id_token_hint", p.Token)
	q.Set("client_id", i.ClientID)
	q.Set("post_logout_redirect_uri", i.origin(r)+"/signin")
	u.RawQuery = q.Encode()
	return u.String()
}

// remote is the address of a connection.
func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}
