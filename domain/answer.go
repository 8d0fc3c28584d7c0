package domain

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/keyledger/keyledger/events"
)

// AnswerContext is what the placeholders of an answer stand for. What is empty
// is not known: null where the placeholder stands alone, nothing inside a
// string. It never holds a secret, so that no answer can.
type AnswerContext struct {
	RequestID      string
	Time           events.Time
	RetryAfter     int64         // seconds
	Limits         events.Limits // of the windows that count
	Remaining      events.Limits
	Plan           string // in force
	ScopesRequired []string
	KeyID          string
	Owner          string
	Resource       string
}

// Header is one header line of an answer.
type Header struct{ Name, Value string }

// Rendered is a refusal as it goes over the wire. Body is JSON.
type Rendered struct {
	Status  int
	Headers []Header // Content-Type first
	Body    []byte
}

// Answer renders a refusal: by the document's entry for the code, else by its
// default, else as a problem document (RFC 9457) with the status of section 3
// of the contract. An entry without a body is a problem document too, with the
// entry's status and message.
//
// What the default entry says is about keys. RATE_LIMITED, STATE_TOO_STALE and
// AUDIT_UNAVAILABLE take only its body and headers: told 401 for a limit or
// for our own trouble, callers would throw away keys that work.
func (k *Keyspace) Answer(code Code, ctx AnswerContext) Rendered {
	a := k.answers[code]
	if a == nil {
		return Rendered{Status: code.Status()}
	}
	r := rendering{ctx: &ctx, code: code, plans: k.Plans}
	r.documentation = string(r.text(nil, a.documentation))
	r.message = string(r.text(nil, a.message))
	out := Rendered{Status: a.status, Headers: make([]Header, 0, len(a.headers)+3)}
	out.Headers = append(out.Headers, Header{"Content-Type", a.contentType})
	for _, h := range a.headers {
		value := strings.TrimSpace(strings.Map(visible, string(r.text(nil, h.value))))
		if strings.EqualFold(h.name, "Content-Type") {
			out.Headers[0].Value = value
			continue
		}
		out.Headers = append(out.Headers, Header{h.name, value})
	}
	if a.challenge != "" {
		out.Headers = append(out.Headers, Header{"WWW-Authenticate", a.challenge})
	}
	if a.retryAfter && ctx.RetryAfter > 0 {
		out.Headers = append(out.Headers, Header{"Retry-After", strconv.FormatInt(ctx.RetryAfter, 10)})
	}
	out.Body = r.json(make([]byte, 0, 512), a.body)
	return out
}

// visible keeps a value on its header line.
func visible(c rune) rune {
	if c < ' ' || c == 0x7f {
		return ' '
	}
	return c
}

// answer is an entry with its strings cut at the placeholders.
type answer struct {
	status        int
	contentType   string
	challenge     string // of a 401, RFC 9110 section 11.6.1
	retryAfter    bool
	documentation []piece
	message       []piece
	headers       []headerPieces
	body          []piece
}

type headerPieces struct {
	name  string
	value []piece
}

// piece is literal text, or a placeholder: alone as a JSON value, else inside
// a string.
type piece struct {
	literal     string
	placeholder string
	alone       bool
}

func compileAnswers(doc *Document) map[Code]*answer {
	answers := make(map[Code]*answer, len(Codes()))
	for _, code := range Codes() {
		if code == CodeValid {
			continue
		}
		entry, own := doc.Answers[string(code)]
		if !own {
			entry = doc.Answers["default"]
			if code == CodeRateLimited || code.Status() == 503 {
				entry.Status, entry.Message, entry.DocumentationURL = 0, "", ""
			}
		}
		if entry.Status == 0 {
			entry.Status = code.Status()
		}
		if entry.Message == "" {
			entry.Message = code.Message()
		}
		answers[code] = compileAnswer(doc, code, entry)
	}
	return answers
}

func compileAnswer(doc *Document, code Code, entry Answer) *answer {
	a := &answer{
		status:        entry.Status,
		contentType:   "application/json",
		documentation: cut(entry.DocumentationURL),
		message:       cut(entry.Message),
		retryAfter:    code == CodeRateLimited && slices.Contains(doc.RateHeaders, "retry-after"),
	}
	if scheme := doc.Credential.Scheme; entry.Status == 401 && scheme != "" {
		a.challenge = scheme + ` realm="` + doc.Keyspace + `"`
	}
	for _, name := range slices.Sorted(maps.Keys(entry.Headers)) {
		a.headers = append(a.headers, headerPieces{name, cut(entry.Headers[name])})
		if strings.EqualFold(name, "WWW-Authenticate") {
			a.challenge = ""
		}
		if strings.EqualFold(name, "Retry-After") {
			a.retryAfter = false
		}
	}
	body := entry.Body
	if len(body) == 0 || !json.Valid(body) {
		a.contentType = "application/problem+json"
		about := "about:blank"
		if entry.DocumentationURL != "" {
			about = "${documentation_url}"
		}
		body = []byte(`{"type":"` + about + `","title":` + strconv.Quote(statusTitle(entry.Status)) + `,"status":` + strconv.Itoa(entry.Status) +
			`,"detail":"${message}","code":"${code}","request_id":"${request_id}"}`)
	}
	a.body = cutJSON(body)
	return a
}

// statusTitle names the statuses that refusals have (RFC 9110 section 15).
func statusTitle(status int) string {
	switch status {
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 402:
		return "Payment Required"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 415:
		return "Unsupported Media Type"
	case 429:
		return "Too Many Requests"
	case 503:
		return "Service Unavailable"
	}
	if status >= 500 {
		return "Server Error"
	}
	return "Request Refused"
}

// cut splits a string at its placeholders.
func cut(s string) []piece {
	var pieces []piece
	for s != "" {
		before, rest, ok := strings.Cut(s, "${")
		name, after, closed := strings.Cut(rest, "}")
		if !ok || !closed {
			return append(pieces, piece{literal: s})
		}
		if before != "" {
			pieces = append(pieces, piece{literal: before})
		}
		pieces = append(pieces, piece{placeholder: name})
		s = after
	}
	return pieces
}

// cutJSON splits valid JSON at the placeholders in its string values.
func cutJSON(body []byte) []piece {
	var pieces []piece
	literal := make([]byte, 0, len(body))
	flush := func() {
		if len(literal) > 0 {
			pieces = append(pieces, piece{literal: string(literal)})
			literal = literal[:0]
		}
	}
	for i := 0; i < len(body); {
		if body[i] != '"' {
			literal = append(literal, body[i])
			i++
			continue
		}
		end := i + 1
		for body[end] != '"' {
			if body[end] == '\\' {
				end++
			}
			end++
		}
		end++
		quoted := body[i:end]
		i = end
		var s string
		isName := i < len(body) && body[i] == ':'
		if isName || !strings.Contains(string(quoted), "${") || json.Unmarshal(quoted, &s) != nil {
			literal = append(literal, quoted...)
			continue
		}
		inside := cut(s)
		if len(inside) == 1 && inside[0].placeholder != "" {
			flush()
			pieces = append(pieces, piece{placeholder: inside[0].placeholder, alone: true})
			continue
		}
		literal = append(literal, '"')
		for _, p := range inside {
			if p.placeholder == "" {
				literal = appendEscaped(literal, p.literal)
				continue
			}
			flush()
			pieces = append(pieces, p)
		}
		literal = append(literal, '"')
	}
	flush()
	return pieces
}

// rendering is one answer being written.
type rendering struct {
	ctx           *AnswerContext
	code          Code
	plans         map[string]Plan
	message       string
	documentation string
}

func (r *rendering) text(b []byte, pieces []piece) []byte {
	for i := range pieces {
		if p := &pieces[i]; p.placeholder == "" {
			b = append(b, p.literal...)
		} else {
			b = append(b, r.value(p.placeholder).text()...)
		}
	}
	return b
}

func (r *rendering) json(b []byte, pieces []piece) []byte {
	for i := range pieces {
		switch p := &pieces[i]; {
		case p.placeholder == "":
			b = append(b, p.literal...)
		case p.alone:
			b = r.value(p.placeholder).json(b)
		default:
			b = appendEscaped(b, r.value(p.placeholder).text())
		}
	}
	return b
}

// value is what a placeholder stands for: a string, a list or other JSON. The
// zero value is what is not known.
type value struct {
	s    string
	list []string
	raw  []byte // JSON
}

func (v value) text() string {
	switch {
	case v.list != nil:
		return strings.Join(v.list, ", ")
	case v.raw == nil:
		return v.s
	case string(v.raw) == "null":
		return ""
	}
	var s string
	if json.Unmarshal(v.raw, &s) == nil {
		return s
	}
	return string(v.raw)
}

func (v value) json(b []byte) []byte {
	switch {
	case v.list != nil:
		b = append(b, '[')
		for i, s := range v.list {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendEscaped(append(b, '"'), s), '"')
		}
		return append(b, ']')
	case v.raw != nil:
		return append(b, v.raw...)
	case v.s == "":
		return append(b, "null"...)
	}
	return append(appendEscaped(append(b, '"'), v.s), '"')
}

// placeholders are the names that an answer may use, besides
// plan.details.NAME.
var placeholders = []string{
	"code", "message", "request_id", "timestamp", "documentation_url", "retry_after",
	"limit.minute", "limit.hour", "limit.day", "remaining.minute", "remaining.hour", "remaining.day",
	"plan", "scopes_required", "key_id", "owner", "resource",
}

const detailsPrefix = "plan.details."

func (r *rendering) value(name string) value {
	switch name {
	case "code":
		return value{s: string(r.code)}
	case "message":
		return value{s: r.message}
	case "request_id":
		return value{s: r.ctx.RequestID}
	case "timestamp":
		return value{s: r.ctx.Time.String()}
	case "documentation_url":
		return value{s: r.documentation}
	case "retry_after":
		return positive(r.ctx.RetryAfter, r.ctx.RetryAfter > 0)
	case "plan":
		return value{s: r.ctx.Plan}
	case "scopes_required":
		if len(r.ctx.ScopesRequired) == 0 {
			return value{}
		}
		return value{list: r.ctx.ScopesRequired}
	case "key_id":
		return value{s: r.ctx.KeyID}
	case "owner":
		return value{s: r.ctx.Owner}
	case "resource":
		return value{s: r.ctx.Resource}
	}
	if detail, ok := strings.CutPrefix(name, detailsPrefix); ok {
		return value{raw: r.plans[r.ctx.Plan].Details[detail]}
	}
	if window, ok := strings.CutPrefix(name, "limit."); ok {
		n, ok := r.ctx.Limits[window]
		return positive(n, ok)
	}
	if window, ok := strings.CutPrefix(name, "remaining."); ok {
		n, ok := r.ctx.Remaining[window]
		return positive(n, ok)
	}
	return value{}
}

func positive(n int64, known bool) value {
	if !known {
		return value{}
	}
	return value{raw: strconv.AppendInt(nil, n, 10)}
}

// appendEscaped appends s as the inside of a JSON string.
func appendEscaped(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				b = append(b, "\ufffd"...)
			case r == '\u2028' || r == '\u2029':
				b = append(b, '\\', 'u', '2', '0', '2', digits[r&0xf])
			default:
				b = append(b, s[i:i+size]...)
			}
			i += size
			continue
		}
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
		default:
			b = append(b, c)
		}
		i++
	}
	return b
}
