package api

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
)

// maxHot is the largest body, in bytes, that the short way takes.
const maxHot = 4096

// hotBuffer is what one request on the short way needs.
type hotBuffer struct {
	body [maxHot]byte
	in   hotRequest
	out  []byte
}

// hotRequest is a [VerifyRequest] with room for what its pointers point to.
type hotRequest struct {
	VerifyRequest
	authorization, key, origin, resource, contentType string
	tls                                               bool
}

var hotBuffers = sync.Pool{New: func() any { return &hotBuffer{out: make([]byte, 0, 2048)} }}

// hotVerify is the short way of POST /v1/verify: no routing, no reflection. It
// takes nothing but plain requests that may be answered, and is false for all
// others, which then go the way of every call and are answered there: what is
// refused, and how, is decided in one place.
func (a *API) hotVerify(w http.ResponseWriter, r *http.Request) bool {
	h := r.Header
	if a.Verifier == nil || r.Method != http.MethodPost || r.ContentLength < 2 || r.ContentLength > maxHot ||
		len(h["Content-Type"]) != 1 || h["Content-Type"][0] != "application/json" || len(h["Content-Encoding"]) > 0 {
		return false
	}
	began := time.Now()
	if !a.mayVerify(r) {
		return false
	}
	buffer := hotBuffers.Get().(*hotBuffer)
	defer hotBuffers.Put(buffer)
	body := buffer.body[:r.ContentLength]
	n, err := r.Body.Read(body)
	if n < len(body) || err != nil && err != io.EOF {
		// It comes in parts: there is time, and a deadline, on the long way.
		r.Body = &restored{io.MultiReader(bytes.NewReader(slices.Clone(body[:n])), r.Body), r.Body}
		return false
	}
	in := &buffer.in
	*in = hotRequest{}
	if !readVerify(string(body), in) || in.Keyspace == "" || in.Authorization != nil && in.Key != nil {
		r.Body = &restored{bytes.NewReader(slices.Clone(body)), r.Body}
		return false
	}
	id := requestIDOf(r, began)
	w.Header()["X-Request-Id"] = []string{id}
	buffer.out = a.answerDecision(w, &in.VerifyRequest, id, buffer.out)
	a.meter.verified.Inc()
	a.meter.verifiedTook.Observe(time.Since(began).Seconds())
	return true
}

// mayVerify says whether the caller is known to be allowed to verify; where it is
// not, the long way finds out why.
func (a *API) mayVerify(r *http.Request) bool {
	values := r.Header["Authorization"]
	if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") {
		return false
	}
	hash := domain.HashSecret(values[0][len("Bearer "):])
	key := a.Ring.BySecret(events.RootKeyspace, hash)
	if key == nil {
		return false
	}
	if key == a.steady.Load() && key.Hash == hash {
		return true
	}
	authority, err := a.authenticate(r)
	if err != nil || !authority.May(domain.Verify) {
		return false
	}
	// The ring replaces a key that changes. What is the same, and has nothing in
	// it that depends on time or place, is judged the same.
	if key.More == nil && key.ExpiresAt == 0 && len(key.AllowedIPs) == 0 && len(key.AllowedOrigins) == 0 {
		a.steady.Store(key)
	}
	return true
}

// restored is a body of which a part was read already.
type restored struct {
	io.Reader
	io.Closer
}

// readVerify reads a body of the plain kind: an object of known fields, each
// once, whose strings are visible ASCII without escapes. It is false for
// everything else, also for what is only unusual.
func readVerify(s string, in *hotRequest) bool {
	p := plain{s: s}
	if !p.take('{') {
		return false
	}
	var seen uint16
	for n := 0; ; n++ {
		if n > 0 {
			if p.take('}') {
				break
			}
			if !p.take(',') {
				return false
			}
		} else if p.take('}') {
			break
		}
		name, ok := p.text()
		if !ok || !p.take(':') {
			return false
		}
		var bit uint16
		switch name {
		case "keyspace":
			bit = 1 << 0
			in.Keyspace, ok = p.text()
		case "authorization":
			bit = 1 << 1
			in.Authorization, ok = p.pointer(&in.authorization)
		case "key":
			bit = 1 << 2
			in.Key, ok = p.pointer(&in.key)
		case "method":
			bit = 1 << 3
			in.Method, ok = p.text()
		case "path":
			bit = 1 << 4
			in.Path, ok = p.text()
		case "origin":
			bit = 1 << 5
			in.Origin, ok = p.pointer(&in.origin)
		case "ip":
			bit = 1 << 6
			in.IP, ok = p.text()
		case "tls":
			bit = 1 << 7
			in.tls, ok = p.bool()
			in.TLS = &in.tls
		case "scopes":
			bit = 1 << 8
			in.Scopes, ok = p.list()
		case "resource":
			bit = 1 << 9
			in.Resource, ok = p.pointer(&in.resource)
		case "report":
			bit = 1 << 10
			in.Report, ok = p.bool()
		case "content_type":
			bit = 1 << 11
			in.ContentType, ok = p.pointer(&in.contentType)
		case "user_agent":
			bit = 1 << 12
			in.UserAgent, ok = p.text()
		default:
			return false
		}
		if !ok || seen&bit != 0 {
			return false
		}
		seen |= bit
	}
	p.space()
	return p.i == len(p.s)
}

// plain is a place in the JSON of a plain body.
type plain struct {
	s string
	i int
}

func (p *plain) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\n' || p.s[p.i] == '\t' || p.s[p.i] == '\r') {
		p.i++
	}
}

func (p *plain) take(c byte) bool {
	p.space()
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *plain) text() (string, bool) {
	if !p.take('"') {
		return "", false
	}
	for from := p.i; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return p.s[from : p.i-1], true
		case c == '\\' || c < ' ' || c >= 0x7f:
			return "", false
		}
	}
	return "", false
}

func (p *plain) pointer(to *string) (_ *string, ok bool) {
	*to, ok = p.text()
	return to, ok
}

func (p *plain) bool() (bool, bool) {
	p.space()
	for _, word := range [...]string{"true", "false"} {
		if strings.HasPrefix(p.s[p.i:], word) {
			p.i += len(word)
			return word == "true", true
		}
	}
	return false, false
}

func (p *plain) list() ([]string, bool) {
	list := []string{}
	if !p.take('[') {
		return nil, false
	}
	if p.take(']') {
		return list, true
	}
	for {
		s, ok := p.text()
		if !ok {
			return nil, false
		}
		list = append(list, s)
		if p.take(']') {
			return list, true
		}
		if !p.take(',') {
			return nil, false
		}
	}
}

// appendDecision writes a [Decision]. The answer's body goes in as it was
// rendered: a gateway may relay it byte for byte.
func appendDecision(b []byte, d *verify.Decision, req *domain.Request, requestID string) []byte {
	b = append(b, `{"valid":`...)
	b = strconv.AppendBool(b, d.Valid)
	b = append(b, `,"code":"`...)
	b = append(b, d.Code...)
	b = append(b, `","decision_id":"`...)
	b = d.AppendID(b)
	b = append(b, `","key":`...)
	if d.Key == nil {
		b = append(b, "null"...)
	} else {
		b = appendKey(b, d.Key, d.Time, usedUp(d))
	}
	b = append(b, `,"limits":[`...)
	for i, l := range d.Limits() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"window":"`...)
		b = append(b, l.Window...)
		b = append(b, `","limit":`...)
		b = strconv.AppendInt(b, l.Limit, 10)
		b = append(b, `,"remaining":`...)
		b = strconv.AppendInt(b, l.Remaining, 10)
		b = append(l.Reset.AppendJSON(append(b, `,"reset":`...)), '}')
	}
	b = append(b, `],"retry_after":`...)
	if d.RetryAfter > 0 {
		b = strconv.AppendInt(b, d.RetryAfter, 10)
	} else {
		b = append(b, "null"...)
	}
	b = appendTexts(append(b, `,"skipped":`...), d.Skipped(req))
	b = append(b, `,"sequence":`...)
	b = strconv.AppendUint(b, d.Sequence, 10)
	b = appendAnswer(append(b, `,"answer":`...), d, req, requestID)
	return append(b, '}', '\n')
}

// usedUp says whether the next request of the decision's key would be refused.
func usedUp(d *verify.Decision) bool {
	for i := range d.Limits() {
		if d.Limits()[i].Remaining == 0 {
			return true
		}
	}
	return false
}

func appendAnswer(b []byte, d *verify.Decision, req *domain.Request, requestID string) []byte {
	rendered := domain.Rendered{Status: http.StatusOK}
	if !d.Valid {
		rendered = d.Answer(req, requestID)
	} else if route := d.Keyspace.PublicRoute(req.Method, req.Path); route != nil && route.Status != 0 { // with a key or without
		rendered.Status = route.Status
		if len(route.Body) > 0 {
			rendered.Body, rendered.Headers = route.Body, []domain.Header{{Name: "Content-Type", Value: "application/json"}}
		}
	} else if d.Owner != nil {
		var room [5]domain.Header
		rendered.Headers = d.RateHeaders(room[:0])
	}
	b = append(b, `{"status":`...)
	b = strconv.AppendInt(b, int64(rendered.Status), 10)
	b = append(b, `,"headers":{`...)
	for i, h := range rendered.Headers {
		if slices.ContainsFunc(rendered.Headers[:i], func(o domain.Header) bool { return strings.EqualFold(o.Name, h.Name) }) {
			continue // the name of an object's member counts once; the first is the document's
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(appendText(b, h.Name), ':'), h.Value)
	}
	b = append(b, `},"body":`...)
	if len(rendered.Body) == 0 {
		return append(b, "null}"...)
	}
	return append(append(b, rendered.Body...), '}')
}

// appendKey writes a [Key] with what memory knows, as encoding/json does.
func appendKey(b []byte, k *domain.Key, now time.Time, limited bool) []byte {
	at := events.At(now)
	status := k.Status(at)
	if limited && status == "active" {
		status = "rate_limited"
	}
	b = appendText(append(b, `{"id":`...), k.ID)
	b = appendText(append(b, `,"keyspace":`...), k.Keyspace)
	b = appendText(append(b, `,"owner":`...), k.Owner)
	b = appendText(append(b, `,"name":`...), k.Name)
	b = append(b, `,"display":`...)
	if first, last := k.First, k.Last; first != "" && last != "" && isPlain(first) && isPlain(last) {
		b = append(append(append(append(append(b, '"'), first...), "..."...), last...), '"')
	} else {
		b = appendText(b, k.Display())
	}
	b = appendText(append(b, `,"environment":`...), k.Environment)
	b = appendText(append(b, `,"status":`...), status)
	b = appendText(append(b, `,"plan":`...), k.Plan)
	b = appendTexts(append(b, `,"scopes":`...), k.Scopes)
	b = appendTexts(append(b, `,"resources":`...), k.Resources)
	b = append(b, `,"limits":{`...)
	first := true
	for _, window := range [...]string{"day", "hour", "minute"} {
		if n, ok := k.Limits[window]; ok {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = strconv.AppendInt(append(appendText(b, window), ':'), n, 10)
		}
	}
	b = append(b, '}')
	b = appendTexts(append(b, `,"allowed_origins":`...), k.AllowedOrigins)
	b = appendTexts(append(b, `,"allowed_ips":`...), k.AllowedIPs)
	var more domain.More
	if k.More != nil {
		more = *k.More
	}
	if len(more.Meta) == 0 {
		b = append(b, `,"meta":{}`...)
	} else {
		b = append(append(b, `,"meta":`...), must(marshal(more.Meta))...)
	}
	b = k.CreatedAt.AppendJSON(append(b, `,"created_at":`...))
	b = appendText(append(b, `,"created_by":{"type":`...), k.CreatedBy.Type)
	b = appendText(append(b, `,"id":`...), k.CreatedBy.ID)
	b = k.ExpiresAt.AppendJSON(append(b, `},"expires_at":`...))
	b = more.RotatedAt.AppendJSON(append(b, `,"rotated_at":`...))
	b = k.GraceUntil(at).AppendJSON(append(b, `,"grace_until":`...))
	b = more.RevokedAt.AppendJSON(append(b, `,"revoked_at":`...))
	b = appendText(append(b, `,"revoke_reason":`...), more.RevokeReason)
	b = append(b, `,"last_used_at":null,"use_count":0,"version":`...)
	b = strconv.AppendUint(b, uint64(k.Version), 10)
	if k.Role != "" {
		b = appendText(append(b, `,"role":`...), k.Role)
	}
	if k.For != nil {
		b = append(append(b, `,"for":`...), must(marshal(k.For))...)
	}
	return append(b, '}')
}

// must is for values that encoding/json cannot fail on.
func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func appendTexts(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, s)
	}
	return append(b, ']')
}

func appendText(b []byte, s string) []byte {
	if !isPlain(s) {
		return append(b, must(marshal(s))...)
	}
	return append(append(append(b, '"'), s...), '"')
}

// isPlain says whether a text stands for itself in JSON.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
