package upstream

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// script is a connection on which an upstream says its bytes, some at a time,
// and closes it.
type script struct {
	net.Conn
	rest []byte
	step int
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), max(s.step, 1))], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)     { return len(p), nil }
func (s *script) Close() error                    { return nil }
func (s *script) SetReadDeadline(time.Time) error { return nil }

// message is a response as a reader has understood it.
type message struct {
	Status  int
	Header  http.Header
	Body    string
	Trailer http.Header
	Rest    string // what was not used
}

func add(h http.Header, lines []Line) http.Header {
	for _, l := range lines {
		h[l.Name] = append(h[l.Name], l.Value)
	}
	return h
}

// ours reads the first head and, unless it is informational, its body.
func ours(data []byte, method string, step int) (m message, err error) {
	c := newConn(nil, &script{rest: data, step: step}, &script{})
	for {
		h, err := c.Head(method)
		if err == ErrMore {
			if err = c.More(); err == nil {
				continue
			}
		}
		if err != nil {
			return m, err
		}
		m.Status, m.Header = h.Status, add(http.Header{}, h.Lines)
		if h.Status < 200 {
			m.Rest = "?"
			return m, nil
		}
		break
	}
	var body []byte
	for {
		p, err := c.Next()
		body = append(body, p...)
		if err == ErrMore {
			err = c.More()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return m, err
		}
	}
	m.Body, m.Trailer = string(body), add(http.Header{}, c.Trailer())
	m.Rest = string(c.buffer[c.from:c.to]) + string(c.Conn.(*script).rest)
	return m, nil
}

// theirs is the same with net/http, less what concerns only the connection.
func theirs(data []byte, method string) (m message, err error) {
	in := bufio.NewReader(bytes.NewReader(data))
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return m, err
	}
	m.Status, m.Header, m.Trailer = res.StatusCode, res.Header, http.Header{}
	for _, v := range m.Header["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.TrimString(name); !strings.EqualFold(name, "close") && !strings.EqualFold(name, "keep-alive") {
				for h := range m.Header {
					if strings.EqualFold(h, name) {
						delete(m.Header, h)
					}
				}
			}
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(m.Header, name)
	}
	if m.Status < 200 || m.Status == 204 {
		delete(m.Header, "Content-Length")
	}
	if m.Status < 200 {
		m.Rest = "?"
		return m, nil
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return m, err
	}
	for name, values := range res.Trailer {
		if len(values) > 0 {
			m.Trailer[name] = values
		}
	}
	rest, err := io.ReadAll(in)
	m.Body, m.Rest = string(body), string(rest)
	return m, err
}

var (
	statusLine = regexp.MustCompile(`^HTTP/1\.[01] [1-9][0-9][0-9]( [\t\x20-\x7e\x80-\xff]*)?\r?\n`)
	fold       = regexp.MustCompile(`\n[ \t]`)
	coding     = regexp.MustCompile(`(?i)\ntransfer-encoding[ \t]*:`)
	length     = regexp.MustCompile(`(?i)\ncontent-length[ \t]*:`)
	oddLine    = regexp.MustCompile(`(?i)[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]|\r[^\n]|\n:|[ \t]:`)
	oddName    = regexp.MustCompile("\n[^:\r\n]*[^-!#$%&'*+.^_`|~0-9A-Za-z:\r\n][^:\r\n]*:")
	longSize   = regexp.MustCompile(`\n[0-9A-Fa-f]{16,}`)
	longLine   = regexp.MustCompile(`[^\n]{1000}`)
	plus       = regexp.MustCompile(`(?i)\ncontent-length:[ \t]*([^0-9]|[0-9]+[^0-9\r\n])`)
)

// stricter says whether we have announced to refuse what net/http takes.
func stricter(data []byte, method string) bool {
	old := bytes.HasPrefix(data, []byte("HTTP/1.0"))
	coded, sized := coding.Match(data), length.Match(data)
	return !statusLine.Match(data) || fold.Match(data) || coded && (sized || old) || len(coding.FindAll(data, -1)) > 1 || oddLine.Match(data) || oddName.Match(data) ||
		longSize.Match(data) || longLine.Match(data) || plus.Match(data) || len(data) > maxTrailer ||
		coded // trailers that are not announced are dropped there and kept here: their names must be right
}

// Whatever an upstream says is understood as net/http understands it, or
// refused; and refused more often only where that was announced.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200\r\ncontent-length: 2\r\nX-A: 1\r\nx-a:  2 \t\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\nuntil the end",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nrest",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
		"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\nETag: \"a\"\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: a\rb\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "", "\r\n",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			f.Add([]byte(s), method == "HEAD", 7)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool, step int) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		we, wrong := ours(data, method, step%64)
		they, refused := theirs(data, method)
		switch {
		case wrong == nil && refused != nil:
			t.Fatalf("taken, although net/http says %v: %+v", refused, we)
		case wrong != nil && refused == nil:
			if !stricter(data, method) {
				t.Fatalf("refused with %v, although net/http reads %+v", wrong, they)
			}
		case wrong == nil:
			if len(they.Trailer) == 0 {
				they.Trailer, we.Trailer = nil, nil // those that nobody announced are not dropped here
			}
			if !reflect.DeepEqual(we, they) {
				t.Fatalf("%+v\nnet/http: %+v", we, they)
			}
		}
	})
}

// What a chunked body holds does not depend on how it arrives, and is what
// net/http takes it for.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), 1)
	f.Add([]byte("00005;x\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"), 3)
	f.Add([]byte("fffffffffffffffff\r\n"), 3)
	f.Add([]byte("5\r\nhello!\r\n0\r\n\r\n"), 3)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		read := func(step int) (string, error) {
			s, b, out := body{chunks: chunkSize}, []byte(nil), []byte(nil)
			for rest := data; ; {
				piece, used, err := s.next(b, false)
				out, b = append(out, piece...), b[used:]
				switch {
				case err == io.EOF:
					return string(out), nil
				case err == ErrMore && len(rest) == 0:
					return string(out), io.ErrUnexpectedEOF
				case err == ErrMore:
					n := min(step, len(rest))
					b, rest = append(b, rest[:n]...), rest[n:]
				case err != nil:
					return string(out), err
				}
			}
		}
		step = 1 + (step%100+100)%100
		one, err := read(step)
		other, otherErr := read(len(data) + 1)
		if one != other || (err == nil) != (otherErr == nil) {
			t.Fatalf("%q, %v in steps of %d; %q, %v at once", one, err, step, other, otherErr)
		}
		if err != nil {
			return
		}
		they, refused := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(data)))
		if refused != nil || string(they) != one {
			t.Fatalf("%q, but net/http: %q, %v", one, they, refused)
		}
	})
}

// What has two readings, or none, is refused.
func TestMalformed(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: 1\r\n\tfolded\r\n\r\n",
		"HTTP/1.1 200 OK\r\n first: folded\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\n\r\n",
		"HTTP/1.1 200 OK\rX-B: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-\xc3\xa4: a\r\n\r\n",
		"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 -10 OK\r\n\r\n", "HTTP/1.1 200OK\r\n\r\n", "HTTP/3 200 OK\r\n\r\n", "<html>\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", maxHead) + "\r\n\r\n",
	} {
		if m, err := ours([]byte(head), "GET", 1000); err == nil {
			t.Errorf("%.80q is taken: %+v", head, m)
		} else if _, ok := err.(*Malformed); !ok {
			t.Errorf("%.80q: %v", head, err)
		}
	}
}

// Only what cannot be misunderstood lets a connection be used again.
func TestKeep(t *testing.T) {
	for head, keep := range map[string]bool{
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":                                                   true,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":                                          true,
		"HTTP/1.1 204 No Content\r\n\r\n":                                                                true,
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X, CLOSE\r\n\r\n":                           false,
		"HTTP/1.1 200 OK\r\n\r\n":                                                                        false,
		"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n":                                              false,
		"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n":                                                   false,
		"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n":                         true,
		"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n":    false,
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n":    false,
		"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nConnection: close, ,\r\n\r\n": false,
	} {
		if h, err := parseHead(head, "GET", nil); err != nil || h.keep != keep {
			t.Errorf("%q: %v, %v, want %v", head, h.keep, err, keep)
		}
	}
}
