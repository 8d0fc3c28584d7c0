package upstream

import (
	"errors"
	"fmt"
	"net/textproto"
	"strconv"
	"strings"
)

// Line is a header or trailer field. Its name is in canonical form.
type Line struct{ Name, Value string }

// Head is a response's status and header.
type Head struct {
	Status  int
	Lines   []Line   // what is for whoever reads the body: nothing that concerns this connection alone. Valid until the next head
	Trailer []string // the names that the upstream announced, in canonical form

	length int64 // of the body that follows; or one of the two below
	keep   bool  // the connection may carry another request afterwards
}

const (
	chunked    = -1
	untilClose = -2
)

// HasBody says whether a body may follow.
func (h *Head) HasBody() bool { return h.length != 0 }

// Malformed is a response that is not HTTP, or could be read in two ways.
type Malformed struct{ problem string }

func (m *Malformed) Error() string { return "the upstream's response is malformed: " + m.problem }

func malformed(format string, a ...any) error { return &Malformed{fmt.Sprintf(format, a...)} }

// errHead is what a head of impossible size is refused with.
var errHead = &Malformed{"its head is longer than " + strconv.Itoa(maxHead) + " bytes"}

// endOfHead is the length of the head that b begins with, its blank line
// included; 0 while it is not there yet. What is below from was looked at before.
func endOfHead(b []byte, from int) int {
	for i := from; i < len(b); i++ {
		if b[i] != '\n' {
			continue
		}
		switch rest := b[i+1:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 2
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 3
		}
	}
	return 0
}

// parseHead reads a whole head. It is stricter than RFC 9112 asks of a client
// where leniency would let two readers disagree: no folded lines, no bare CR, no
// control characters, one transfer coding and only chunked, never beside a
// length, and no coding at all of HTTP/1.0.
func parseHead(s, method string, lines []Line) (Head, error) {
	h := Head{length: untilClose}
	status, rest := cutLine(s)
	old := strings.HasPrefix(status, "HTTP/1.0 ")
	if !old && !strings.HasPrefix(status, "HTTP/1.1 ") || len(status) < 12 || len(status) > 12 && status[12] != ' ' {
		return h, malformed("it does not begin with HTTP/1.1 or 1.0 and a status")
	}
	for _, d := range []byte(status[9:12]) {
		if d < '0' || d > '9' {
			return h, malformed("its status is no number")
		}
		h.Status = h.Status*10 + int(d-'0')
	}
	if h.Status < 100 || !isValue(status) {
		return h, malformed("its status line is not valid")
	}
	lines, err := parseLines(rest, lines)
	if err != nil {
		return h, err
	}
	h.keep = !old
	length, written, coded := int64(-1), "", false
	var named []string // by Connection
	kept := lines[:0]
	for _, l := range lines {
		switch l.Name {
		case "Connection":
			for token := range strings.SplitSeq(l.Value, ",") {
				switch token = strings.Trim(token, " \t"); {
				case token == "":
				case strings.EqualFold(token, "close"):
					h.keep, old = false, false
				case strings.EqualFold(token, "keep-alive"):
					h.keep = h.keep || old
				default:
					named = append(named, token)
				}
			}
			continue
		case "Trailer":
			for name := range strings.SplitSeq(l.Value, ",") {
				if name = strings.Trim(name, " \t"); name != "" {
					h.Trailer = append(h.Trailer, textproto.CanonicalMIMEHeaderKey(name))
				}
			}
			continue
		case "Transfer-Encoding":
			if coded || !strings.EqualFold(l.Value, "chunked") {
				return h, malformed("its transfer coding is not only chunked")
			}
			coded = true
			continue
		case "Content-Length":
			n, err := parseLength(l.Value)
			if err != nil || length >= 0 && l.Value != written { // 02 is not 2 for everybody
				return h, malformed("its Content-Length is no number, or not the only one")
			}
			if length >= 0 {
				continue // the same once more
			}
			length, written = n, l.Value
		case "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Upgrade":
			continue
		}
		kept = append(kept, l)
	}
	switch {
	case coded && length >= 0:
		return h, malformed("it has both a transfer coding and a length")
	case coded && strings.HasPrefix(status, "HTTP/1.0"):
		return h, malformed("HTTP/1.0 has no transfer codings")
	case h.Status < 200, h.Status == 204:
		h.length = 0
		named = append(named, "Content-Length")
	case method == "HEAD", h.Status == 304:
		h.length = 0
	case coded:
		h.length = chunked
	case length >= 0:
		h.length = length
	default:
		h.keep = false
	}
	if len(named) > 0 {
		lines, kept = kept, kept[:0]
		for _, l := range lines {
			if !containsFold(named, l.Name) {
				kept = append(kept, l)
			}
		}
	}
	h.Lines = kept
	return h, nil
}

func containsFold(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}

func parseLength(s string) (int64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, errors.New("no length")
	}
	return strconv.ParseInt(s, 10, 64)
}

// cutLine takes a line, without its end, off a text that has one.
func cutLine(s string) (line, rest string) {
	line, rest, _ = strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r"), rest
}

// parseLines reads fields up to the blank line that s ends with, and appends
// them to lines.
func parseLines(s string, lines []Line) ([]Line, error) {
	for {
		line, rest := cutLine(s)
		if line == "" {
			if rest != "" {
				return nil, malformed("something follows its blank line")
			}
			return lines, nil
		}
		colon := strings.IndexByte(line, ':')
		if colon < 1 {
			return nil, malformed("a header line has no name")
		}
		name, ok := canonical(line[:colon])
		if !ok {
			return nil, malformed("a header's name has a character that no name has") // folded lines begin with a blank
		}
		value := line[colon+1:]
		for value != "" && (value[0] == ' ' || value[0] == '\t') {
			value = value[1:]
		}
		for value != "" && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
			value = value[:len(value)-1]
		}
		if !isValue(value) {
			return nil, malformed("the value of %s has a control character", name)
		}
		lines = append(lines, Line{name, value})
		s = rest
	}
}

// isToken is the table of RFC 9110's tchar, which names are made of.
var isToken = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = true
	}
	return t
}()

// canonical is a valid name as net/http writes it, mostly without copying it.
func canonical(name string) (string, bool) {
	asItIs, upper := true, true
	for i := range len(name) {
		c := name[i]
		if !isToken[c] {
			return "", false
		}
		if upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			asItIs = false
		}
		upper = c == '-'
	}
	if asItIs {
		return name, true
	}
	return textproto.CanonicalMIMEHeaderKey(name), true
}

// isValue says whether a header may have this value: no control characters but
// the tab.
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// IsName says whether s can be the name of a header.
func IsName(s string) bool {
	for i := range len(s) {
		if !isToken[s[i]] {
			return false
		}
	}
	return s != ""
}

// IsValue says whether a header can have the value s: no control characters but
// the tab (RFC 9110, 5.5).
func IsValue(s string) bool { return isValue(s) }
