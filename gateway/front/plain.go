package front

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// request is a plain request, and what it is made of, used again for the next one.
type request struct {
	http.Request
	values []string
	body   body
}

// body is that of a request, all there.
type body struct{ bytes.Reader }

func (*body) Close() error { return nil }

func (q *request) init(from string) {
	q.Request = http.Request{Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: from}
}

func (q *request) reset() {
	clear(q.Header)
	clear(q.values)
	q.values = q.values[:0]
}

// content gives the request its body.
func (q *request) content(b []byte) {
	if len(b) == 0 {
		q.Body = http.NoBody
		return
	}
	q.body.Reset(b)
	q.Body = io.ReadCloser(&q.body)
}

// maxLines is how many header lines a plain request has at most.
const maxLines = 100

// read takes the head of a plain request, with the line end of its last line. It is
// false for everything else; what it takes, net/http's server takes and reads alike.
func (q *request) read(head string) bool {
	line, head, _ := strings.Cut(head, "\r\n")
	method, line, _ := strings.Cut(line, " ")
	target, proto, _ := strings.Cut(line, " ")
	if proto != "HTTP/1.1" || method == "" || !strings.HasPrefix(target, "/") {
		return false
	}
	for i := range len(method) {
		if method[i] < 'A' || method[i] > 'Z' {
			return false
		}
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '%' && !escaped(target[i:]) {
			return false
		}
	}
	q.Method, q.RequestURI = method, target
	q.Host, q.ContentLength = "", 0
	pragma := false
	for n := 0; head != ""; n++ {
		line, rest, ok := strings.Cut(head, "\r\n")
		name, value, colon := strings.Cut(line, ":")
		if head = rest; !ok || !colon || n == maxLines {
			return false
		}
		name = canonical(name)
		value = strings.Trim(value, " \t")
		for i := range len(value) {
			if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
				return false
			}
		}
		once := false
		switch name {
		case "":
			return false
		case "Host":
			if q.Host != "" || value == "" || strings.Trim(value, hostChars) != "" {
				return false
			}
			q.Host = value
			continue
		case "Connection":
			if once = true; !strings.EqualFold(value, "keep-alive") {
				return false
			}
		case "Content-Length":
			once = true
			if q.ContentLength, ok = length(value); !ok {
				return false
			}
		case "Pragma":
			pragma = true
		case "Transfer-Encoding", "Trailer", "Expect", "Upgrade":
			return false
		}
		q.values = append(q.values, value)
		if earlier := q.Header[name]; earlier == nil {
			at := len(q.values)
			q.Header[name] = q.values[at-1 : at : at]
		} else if once {
			return false
		} else {
			q.Header[name] = append(earlier, value)
		}
	}
	if pragma && q.Header["Pragma"][0] == "no-cache" && q.Header["Cache-Control"] == nil {
		q.Header["Cache-Control"] = []string{"no-cache"} // as net/http does
	}
	return q.Host != ""
}

const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"

// length reads a Content-Length of at most [maxPlainBody].
func length(s string) (int64, bool) {
	if s == "" || len(s) > 4 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, n <= maxPlainBody
}

func escaped(s string) bool {
	return len(s) > 2 && strings.IndexByte(hexDigits, s[1]) >= 0 && strings.IndexByte(hexDigits, s[2]) >= 0
}

const hexDigits = "0123456789abcdefABCDEF"

// canonical is a header's name as net/http writes it, or empty where it is none.
func canonical(name string) string {
	if name == "X-Original-URI" { // as nginx writes it
		return "X-Original-Uri"
	}
	same, upper := true, true
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z':
			same = same && !upper
		case c >= 'A' && c <= 'Z':
			same = same && upper
		case strings.IndexByte("!#$%&'*+-.^_`|~0123456789", c) < 0: // RFC 9110 section 5.6.2
			return ""
		}
		upper = c == '-'
	}
	if same {
		return name
	}
	return http.CanonicalHeaderKey(name)
}

// reply is an answer being made. It is an [http.ResponseWriter].
type reply struct {
	header http.Header
	status int
	body   []byte
	date   []byte // of second
	second int64
}

func (a *reply) init() { a.header = http.Header{} }

func (a *reply) Header() http.Header { return a.header }
func (a *reply) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}
func (a *reply) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, b...)
	return len(b), nil
}

func (a *reply) reset() {
	clear(a.header)
	a.status, a.body = 0, a.body[:0]
}

// append writes the answer as it goes over the wire, with what net/http adds.
func (a *reply) append(b []byte, head, last bool, now time.Time) []byte {
	a.WriteHeader(http.StatusOK)
	b = strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(a.status), 10)
	b = append(append(append(b, ' '), http.StatusText(a.status)...), "\r\nDate: "...)
	if second := now.Unix(); second != a.second {
		a.second = second
		a.date = now.UTC().AppendFormat(a.date[:0], http.TimeFormat)
	}
	b = append(append(b, a.date...), "\r\n"...)
	none := a.status == http.StatusNoContent || a.status == http.StatusNotModified
	if !none {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, int64(len(a.body)), 10), "\r\n"...)
		if a.header["Content-Type"] == nil && len(a.body) > 0 {
			b = append(append(append(b, "Content-Type: "...), http.DetectContentType(a.body)...), "\r\n"...)
		}
	}
	for name, values := range a.header {
		if name == "Content-Length" || name == "Date" {
			continue
		}
		for _, v := range values {
			b = append(append(b, name...), ": "...)
			from := len(b)
			b = append(append(b, v...), "\r\n"...)
			for i := from; i < len(b)-2; i++ { // no value ends its line
				if b[i] == '\r' || b[i] == '\n' {
					b[i] = ' '
				}
			}
		}
	}
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if head || none {
		return b
	}
	return append(b, a.body...)
}
