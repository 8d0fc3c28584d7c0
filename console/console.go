// Package console is the web console: pages for people who create, rotate and
// revoke keys, operate keyspaces and read the audit log. Its pages are written on
// the server and work without scripts; scripts add copying, live parts and what
// spares a click.
//
// It promises that nothing can be done here that the HTTP API does not do: every
// page is made of answers of the API ([Deps.API]), asked for as whoever signed in,
// and judged there with every request. A session ends with the root key it was
// begun with. A secret stands in the one page that answers its creation, which no
// browser keeps. Pages load nothing from elsewhere, and run no script but those of
// this package.
//
// How it can disappoint. Sessions are in NATS: without it nobody is signed in.
// Figures and lists come from PostgreSQL, and their pages say so while it is away.
package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
)

// Deps are what the console works with. API and Sessions are required.
type Deps struct {
	// API is what api.New returns: it answers [api.As] requests of the console, and
	// all that are not the console's.
	API http.Handler

	Sessions *Sessions

	// Origins are other origins that may post forms here, such as the one that a
	// proxy in front of the console is reached under; usually none.
	Origins []string

	// OpenID is the identity provider that people sign in by; nil: none. PersonSecret,
	// of 32 bytes and always the same, makes their ids.
	OpenID       *OpenID
	PersonSecret []byte

	// ClientIP is the address that a request came from, for the number of its wrong
	// sign-ins; nil: the one of the connection.
	ClientIP func(*http.Request) string

	// Failed records that somebody at an address could not sign in; nil: nobody does.
	Failed func(ctx context.Context, reason, ip string) error

	Version string           // of the program
	Log     *slog.Logger     // nil: slog.Default()
	Now     func() time.Time // nil: time.Now
}

// Console is the handler of everything: pages, and the API below its own paths.
type Console struct {
	Deps
	mux     *http.ServeMux
	foreign *http.CrossOriginProtection
	openid  *identity // nil: nobody signs in by a provider
	tries   *throttle
	short   interface {
		ServeShort(http.ResponseWriter, *http.Request) bool
	}
}

// New returns the console. It starts nothing.
func New(d Deps) (*Console, error) {
	if d.API == nil || d.Sessions == nil {
		return nil, errors.New("console: API and Sessions are required")
	}
	d.Log = cmp.Or(d.Log, slog.Default())
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.ClientIP == nil {
		d.ClientIP = remote
	}
	c := &Console{Deps: d, mux: http.NewServeMux(), foreign: http.NewCrossOriginProtection(), tries: &throttle{now: d.Now}}
	if d.OpenID != nil {
		var err error
		if c.openid, err = newIdentity(*d.OpenID, d.PersonSecret); err != nil {
			return nil, err
		}
	}
	for _, o := range d.Origins {
		if err := c.foreign.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
	}
	c.foreign.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.plainProblem(w, r, http.StatusForbidden, "This form was sent by another site. Open the console and send it from there.")
	}))
	c.short, _ = d.API.(interface {
		ServeShort(http.ResponseWriter, *http.Request) bool
	})
	c.assets()
	c.signing()
	c.pages()
	return c, nil
}

// page registers a page for people who are signed in. GET pages are asked for
// with GET and HEAD; the others are forms.
func (c *Console) page(pattern string, serve func(*visit) error) {
	c.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := c.visit(w, r)
		if err == nil {
			err = serve(v)
		}
		if err != nil {
			v.fail(err)
		}
	})
}

// theirs says whether a path is the API's, which has no pages.
func theirs(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "v1", "openapi.json", "asyncapi.yaml", "schemas", "healthz", "readyz", "metrics":
		return true
	}
	return false
}

// ServeShort is the API's short way; see gateway/front.
func (c *Console) ServeShort(w http.ResponseWriter, r *http.Request) bool {
	return c.short != nil && c.short.ServeShort(w, r)
}

// ServeHTTP answers a request for a page, or hands it to the API.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if theirs(r.URL.Path) {
		c.API.ServeHTTP(w, r)
		return
	}
	h := w.Header()
	// A page shows what is behind a credential, runs what is ours, and is framed by
	// nobody.
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store")
	if zips(r) {
		z := &zipping{ResponseWriter: w}
		defer z.close()
		w = z
	}
	defer func() {
		if cause := recover(); cause != nil {
			if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(cause)
			}
			c.Log.Error("panic", "cause", cause, "stack", string(debug.Stack()))
			c.plainProblem(w, r, http.StatusInternalServerError, "Something went wrong here; it was logged.")
		}
	}()
	// Bodies of forms are small; a keyspace document is the longest.
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	c.foreign.Handler(c.mux).ServeHTTP(w, r)
}
