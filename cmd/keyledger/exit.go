package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Exit codes, section 7 of the contract.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnreachable = 5
	exitRefused     = 6
	exitProof       = 7
)

// exitError ends the program with a code of its own. A nil err says nothing on
// stderr: what there was to say is already printed.
type exitError struct {
	code int
	name string // for --json, such as USAGE
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError says that the command line itself is wrong. It MUST NOT repeat an
// argument: somebody may have put a secret there.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, "USAGE", fmt.Errorf(format, args...)}
}

// quietly ends the program with a code after everything was printed.
func quietly(code int) error { return &exitError{code: code} }

// problem is the API's problem document (RFC 9457), section 5 of the contract.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
	Errors    []struct {
		Path    string `json:"path"`
		Line    int    `json:"line"` // of a keyspace document
		Message string `json:"message"`
		Fix     string `json:"fix"`
	} `json:"errors"`

	raw  []byte // as it came; nil when something else than keyledger answered
	hint string // what to do, where the program knows more than the API
}

func (p *problem) Error() string {
	var b strings.Builder
	says := p.Detail
	if says == "" {
		says = p.Title
	}
	if says == "" {
		says = http.StatusText(p.Status)
	}
	b.WriteString(clean(says))
	if p.Code != "" {
		fmt.Fprintf(&b, " (%d %s)", p.Status, clean(p.Code))
	} else {
		fmt.Fprintf(&b, " (%d)", p.Status)
	}
	for _, e := range p.Errors {
		b.WriteString("\n  ")
		if e.Line > 0 {
			fmt.Fprintf(&b, "line %d: ", e.Line)
		}
		if e.Path != "" {
			b.WriteString(clean(e.Path) + " ")
		}
		b.WriteString(clean(e.Message))
		if e.Fix != "" {
			b.WriteString(": " + clean(e.Fix))
		}
	}
	if p.hint != "" {
		b.WriteString("\n  " + p.hint)
	}
	if p.RequestID != "" {
		b.WriteString("\n  request " + clean(p.RequestID))
	}
	return b.String()
}

// exit maps the API's status to an exit code. Invalid input that only the
// service could find is a failure (1); usage (2) is what the program finds
// itself before it asks.
func (p *problem) exit() int {
	if p.Code == "LEGAL_HOLD" { // somebody forbade it, the state does not
		return exitRefused
	}
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitRefused
	case http.StatusNotFound, http.StatusGone:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	}
	return exitFailed
}

// unreachable says that nobody answered, or that an answer was lost.
type unreachable struct {
	url   string
	from  string // where the URL was found
	sent  bool   // the request left this machine: what it asks may have happened
	idem  string // with which the request may be repeated; empty for reads
	cause error
}

func (u *unreachable) Error() string {
	cause := rootCause(u.cause) // the outer one repeats the URL
	if u.sent && u.idem != "" {
		return fmt.Sprintf("%s was asked but its answer was lost (%v): it may have happened.\n"+
			"  Repeat the command with --idempotency-key %s to find out; it will not happen twice.", u.url, cause, u.idem)
	}
	return fmt.Sprintf("%s does not answer (%v); the address is from %s.\n"+
		"  Start one with `keyledger dev`, or name another with --url or KEYLEDGER_URL.", u.url, cause, u.from)
}

func (u *unreachable) Unwrap() error { return u.cause }

// finish prints what went wrong, as text or as a JSON document, and returns the
// exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return exitOK
	}
	code, name := exitFailed, "FAILED"
	var doc []byte
	if p, ok := errors.AsType[*problem](err); ok {
		code, name, doc = p.exit(), p.Code, p.raw
	} else if _, ok := errors.AsType[*unreachable](err); ok {
		code, name = exitUnreachable, "UNREACHABLE"
	} else if e, ok := errors.AsType[*exitError](err); ok {
		if e.err == nil {
			return e.code
		}
		code, name = e.code, e.name
	} else if errors.Is(err, context.Canceled) {
		name, err = "INTERRUPTED", errors.New("interrupted")
	} else if !a.started {
		// Cobra's own errors carry no type; before a command has begun there are no others.
		code, name = exitUsage, "USAGE"
	}
	if a.asJSON {
		if doc == nil {
			doc, _ = json.Marshal(map[string]any{"type": "about:blank", "title": name, "code": name, "detail": err.Error()})
		}
		fmt.Fprintf(a.stderr, "%s\n", trimNewline(doc))
		return code
	}
	fmt.Fprintf(a.stderr, "keyledger: %v\n", err)
	if code == exitUsage && a.running != nil {
		fmt.Fprintf(a.stderr, "  `%s --help` says more.\n", a.running.CommandPath())
	}
	return code
}
