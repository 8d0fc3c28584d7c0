package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"
)

// client speaks to the management API, section 5 of the contract.
//
// A command is repeated when its answer is lost on the way, always with the
// same Idempotency-Key, so that it happens at most once. What was never sent
// is not repeated: nobody is there, and the caller should know at once.
type client struct {
	target target
	http   *http.Client
	wait   time.Duration // before the first repetition; doubled each time
}

// attempts of a command whose answer was lost: with the pauses, about 6 s.
const attempts = 6

func (a *app) client() (*client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	return &client{
		target: t,
		wait:   100 * time.Millisecond,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
				TLSHandshakeTimeout:   5 * time.Second,
				ResponseHeaderTimeout: time.Minute,
				ForceAttemptHTTP2:     true,
			},
			// A redirect would carry the root key, or a secret, to another place.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// call is one request. A call with an idempotency key is a command.
type call struct {
	method      string
	path        string // with its segments escaped
	query       url.Values
	header      http.Header
	body        []byte
	contentType string // application/json unless it says otherwise
	idem        string
}

// answer is a whole 2xx answer.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// decode reads the answer's JSON into v.
func (r *answer) decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return fmt.Errorf("the answer is not what this program expects (%w): is the address that of a keyledger API, and of the same version?", err)
	}
	return nil
}

// newIdempotencyKey is 130 random bits.
func newIdempotencyKey() string { return "cli-" + strings.ToLower(rand.Text()) }

// path joins segments to a path of the API.
func path(segments ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

func jsonBody(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps, strings and numbers are given here
	}
	return b
}

// do sends a call and reads the whole answer. It fails with a [*problem] where
// the API refuses and with [*unreachable] where nobody answers.
func (c *client) do(ctx context.Context, q call) (*answer, error) {
	wait, sent := c.wait, false
	for n := 1; ; n++ {
		r, err := c.once(ctx, q)
		lost, ok := errors.AsType[*unreachable](err)
		if !ok {
			return r, err
		}
		sent = sent || lost.sent
		lost.sent = sent
		if !sent || q.idem == "" || n == attempts {
			return nil, lost
		}
		select {
		case <-ctx.Done():
			return nil, lost
		case <-time.After(wait):
		}
		wait *= 2
	}
}

func (c *client) once(ctx context.Context, q call) (*answer, error) {
	resp, err := c.open(ctx, q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unreachable{c.target.URL, c.target.urlFrom, true, q.idem, err}
	}
	return &answer{resp.StatusCode, resp.Header, body}, nil
}

// open sends a call once and returns the answer with its body still to be read;
// the caller closes it.
func (c *client) open(ctx context.Context, q call) (*http.Response, error) {
	var sent bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent = true }})
	u := strings.TrimSuffix(c.target.URL, "/") + q.path
	if len(q.query) > 0 {
		u += "?" + q.query.Encode()
	}
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	req, err := http.NewRequestWithContext(traced, q.method, u, body)
	if err != nil {
		return nil, usageError("the address from %s is no URL of the form http://host:port", c.target.urlFrom)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "keyledger-cli/"+build().Version)
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.contentType != "" {
		req.Header.Set("Content-Type", q.contentType)
	}
	if q.idem != "" {
		req.Header.Set("Idempotency-Key", q.idem)
	}
	if c.target.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.target.token)
	}
	for name, values := range q.header {
		req.Header[name] = values
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unreachable{c.target.URL, c.target.urlFrom, sent, q.idem, err}
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, c.problem(resp)
	}
	return resp, nil
}

// problem reads a refusal. What is no problem document comes from something
// that is not keyledger, and the message says so.
func (c *client) problem(resp *http.Response) *problem {
	p := &problem{}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if (kind == "application/problem+json" || kind == "application/json") && json.Unmarshal(raw, p) == nil {
		p.raw = raw
	} else {
		p = &problem{Detail: fmt.Sprintf("%s answered %s, not as keyledger does: is it the right address? It is from %s",
			c.target.URL, resp.Status, c.target.urlFrom)}
	}
	p.Status = resp.StatusCode
	if resp.StatusCode == http.StatusUnauthorized {
		p.hint = c.tokenHint()
	}
	if after := resp.Header.Get("Retry-After"); after != "" {
		p.hint = "try again in " + clean(after) + " s"
	}
	return p
}

func (c *client) tokenHint() string {
	t := c.target
	switch {
	case t.tokenMiss != nil:
		return fmt.Sprintf("no root key was sent, because the one of %s cannot be read: %v", t.tokenFrom, t.tokenMiss)
	case t.token == "" && t.found && t.TokenFile != "":
		return "no root key was sent: the one of the context file is for another address; give one with --token-file or KEYLEDGER_TOKEN"
	case t.token == "":
		return "no root key was sent: give one with --token-file or KEYLEDGER_TOKEN; `keyledger dev` writes a context file with its own"
	}
	return "the root key came from " + t.tokenFrom
}
