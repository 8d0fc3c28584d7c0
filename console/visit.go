package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

// visit is one request of somebody who is signed in.
type visit struct {
	*Console
	w       http.ResponseWriter
	r       *http.Request
	session *session
	me      api.Me
}

// visit finds out who asks. It never returns nil, so that its caller can fail.
func (c *Console) visit(w http.ResponseWriter, r *http.Request) (*visit, error) {
	v := &visit{Console: c, w: w, r: r}
	mode := r.Header.Get("Sec-Fetch-Mode") // absent: an old browser, or none
	s, err := c.Sessions.find(r.Context(), tokenOf(r), mode == "" || mode == "navigate")
	if err != nil {
		return v, err
	}
	v.session = s
	if err := v.judge(); err != nil {
		if errors.Is(err, errSignedOut) {
			_ = c.Sessions.end(r.Context(), tokenOf(r))
		}
		return v, err
	}
	if action := asks[r.PathValue("act")]; action != "" && !v.may(action) {
		return v, &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not do that."}
	}
	return v, nil
}

// asks are the pages below a key that ask before something is done to it, for whoever
// may do that.
var asks = map[string]domain.Action{"rotate": domain.KeysRotate, "end-grace": domain.KeysRotate, "revoke": domain.KeysRevoke, "delete": domain.KeysDelete}

// judge finds out what whoever is signed in is now. Their root key may be revoked by
// now, or their group no longer let in: that is errSignedOut, and ends the session.
func (v *visit) judge() error {
	if p := v.session.Person; p != nil {
		if v.session.Caller.Person = v.openid.judge(p); v.session.Caller.Person == nil {
			return errSignedOut
		}
	}
	var me api.Me
	if err := v.get("/v1/me", nil, &me); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusUnauthorized {
			return errSignedOut
		}
		return err
	}
	if me.Name == "" {
		me.Name = v.session.Name
	}
	v.me = me
	return nil
}

// answer is an answer of the API, kept in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// request makes a request to the API as whoever is signed in.
func (v *visit) request(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Request, error) {
	target := path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(api.As(ctx, v.session.Caller), method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	r.RequestURI = target
	r.RemoteAddr, r.Host = v.r.RemoteAddr, v.r.Host
	for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"} { // where allowed_ips counts, as for the API itself
		r.Header[h] = v.r.Header[h]
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, nil
}

// call asks the API and decodes its answer into out, which may be nil. An answer
// that is no success is an [*api.Problem].
func (v *visit) call(method, path string, query url.Values, header http.Header, in, out any) (http.Header, error) {
	var body []byte
	if in != nil {
		var err error
		if raw, ok := in.([]byte); ok {
			body = raw
		} else if body, err = json.Marshal(in); err != nil {
			return nil, err
		}
	}
	r, err := v.request(v.r.Context(), method, path, query, body)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	a := &answer{header: http.Header{}}
	v.API.ServeHTTP(a, r)
	if a.status >= 300 {
		p := &api.Problem{}
		if err := json.Unmarshal(a.body.Bytes(), p); err != nil || p.Status == 0 {
			p = &api.Problem{Status: a.status, Title: http.StatusText(a.status), Code: "UNEXPECTED"}
		}
		return a.header, p
	}
	if out == nil {
		return a.header, nil
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = a.body.Bytes()
		return a.header, nil
	}
	if err := json.Unmarshal(a.body.Bytes(), out); err != nil {
		return a.header, fmt.Errorf("the answer to %s %s: %w", method, path, err)
	}
	return a.header, nil
}

func (v *visit) get(path string, query url.Values, out any) error {
	_, err := v.call(http.MethodGet, path, query, nil, nil, out)
	return err
}

// through lets the API answer the browser itself: exports and tails.
func (v *visit) through(path string, query url.Values, accept string) error {
	r, err := v.request(v.r.Context(), http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", accept)
	r.Header["Last-Event-Id"] = v.r.Header["Last-Event-Id"]
	ctx, cancel, err := v.Sessions.ended(r.Context(), v.session)
	if err != nil {
		return err
	}
	defer cancel()
	v.API.ServeHTTP(&judged{v.w, v, cancel}, r.WithContext(ctx))
	return nil
}

// judged is an answer that goes on for long: whoever gets it is judged before every
// part of it, and it ends when they are signed out.
type judged struct {
	http.ResponseWriter
	visit *visit
	end   context.CancelFunc
}

func (j *judged) Write(b []byte) (int, error) {
	if err := j.visit.judge(); err != nil {
		j.end()
		return 0, err
	}
	return j.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (j *judged) Unwrap() http.ResponseWriter { return j.ResponseWriter }

// form is a field of the form that was sent.
func (v *visit) form(name string) string { return strings.TrimSpace(v.r.PostFormValue(name)) }

// redirect answers a form that took effect: reloading what follows repeats nothing.
// done names a message of [done].
func (v *visit) redirect(to, done string) error {
	if done != "" {
		u, err := url.Parse(to)
		if err != nil {
			return err
		}
		q := u.Query()
		q.Set("done", done)
		u.RawQuery = q.Encode()
		to = u.String()
	}
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

// fail answers with what went wrong, as a page.
func (v *visit) fail(err error) {
	if errors.Is(err, errSignedOut) {
		endSession(v.w, v.r)
		to := "/signin"
		if v.r.Method == http.MethodGet && v.r.URL.Path != "/" {
			to += "?" + url.Values{"to": {v.r.URL.RequestURI()}}.Encode()
		}
		http.Redirect(v.w, v.r, to, http.StatusSeeOther)
		return
	}
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		v.Log.ErrorContext(v.r.Context(), "page failed", "path", v.r.URL.Path, "error", err)
		p = &api.Problem{Status: http.StatusInternalServerError, Title: "Something went wrong here", Detail: "It was logged. Nothing was changed that is not in the audit log."}
	}
	if id := v.r.PathValue("id"); p.Code == "KEY_DELETED" && id != "" {
		if err := v.deletedKey(id); err != nil {
			v.Log.ErrorContext(v.r.Context(), "page failed", "path", v.r.URL.Path, "error", err)
		}
		return
	}
	v.w.WriteHeader(p.Status)
	if err := v.show("problem", titleOf(p), p); err != nil {
		v.Log.ErrorContext(v.r.Context(), "page failed", "path", v.r.URL.Path, "error", err)
	}
}

func titleOf(p *api.Problem) string {
	switch p.Status {
	case http.StatusNotFound:
		return "There is nothing here"
	case http.StatusForbidden:
		return "Not for this sign-in"
	case http.StatusServiceUnavailable:
		return "Not available at the moment"
	}
	return p.Title
}
