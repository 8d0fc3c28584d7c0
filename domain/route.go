package domain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A pattern is the path of a route: literal segments, * for one segment, at
// most one {name} that is captured, and a final ** for the rest, also nothing.
//
// A trailing slash makes no difference, neither in the pattern nor in the
// path. Letters are compared exactly (RFC 3986 section 6.2.2.1).
type pattern struct {
	lead     string   // the literal segments that it begins with, each after its /
	segments []string // those after lead
	rest     bool
	capture  int // index of the captured segment in segments, or -1
}

// segmentChars are what a literal segment of a pattern may hold: what means
// the same to every server. Anything else a document writes decoded, or not at all.
var segmentChars = regexp.MustCompile(`^[A-Za-z0-9._~!$&'()+,:@=-]+$`)

// parsePattern reads the path of a route or a template; name is what it must
// capture, or empty.
func parsePattern(s, name string) (pattern, error) {
	p := pattern{capture: -1}
	if !strings.HasPrefix(s, "/") {
		return p, fmt.Errorf("does not start with /")
	}
	if strings.Contains(s, "//") {
		return p, fmt.Errorf("has an empty segment")
	}
	s = strings.TrimSuffix(s[1:], "/")
	for i, segment := range strings.Split(s, "/") {
		switch {
		case p.rest:
			return p, fmt.Errorf("goes on after **")
		case segment == "" && i == 0 && s == "":
		case segment == "**":
			p.rest = true
			continue
		case segment == "*":
			p.segments = append(p.segments, segment)
		case name != "" && segment == "{"+name+"}":
			if p.capture >= 0 {
				return p, fmt.Errorf("has {%s} twice", name)
			}
			p.capture = len(p.segments)
			p.segments = append(p.segments, "*")
		case segment == "." || segment == "..":
			return p, fmt.Errorf("has the segment %s", segment)
		case strings.Contains(segment, "*"):
			return p, fmt.Errorf("has %q, but a * stands for a whole segment", segment)
		case strings.ContainsAny(segment, "{}"):
			return p, fmt.Errorf("has %q, which is no placeholder here", segment)
		case !segmentChars.MatchString(segment):
			return p, fmt.Errorf("has %q, with characters that not every server reads alike", segment)
		default:
			p.segments = append(p.segments, segment)
		}
	}
	if name != "" && p.capture < 0 {
		return p, fmt.Errorf("lacks {%s}", name)
	}
	for len(p.segments) > 0 && p.segments[0] != "*" {
		p.lead += "/" + p.segments[0]
		p.segments = p.segments[1:]
		p.capture = max(-1, p.capture-1)
	}
	return p, nil
}

// match compares one reading of a path. The captured segment is empty where
// the pattern captures none.
func (p *pattern) match(path string) (captured string, ok bool) {
	if !strings.HasPrefix(path, p.lead) {
		return "", false
	}
	rest := path[len(p.lead):]
	if rest != "" && rest[0] != '/' {
		return "", false
	}
	for i, want := range p.segments {
		if rest == "" || rest == "/" {
			return "", false
		}
		segment := rest[1:]
		if end := strings.IndexByte(segment, '/'); end >= 0 {
			segment, rest = segment[:end], segment[end:]
		} else {
			rest = ""
		}
		if want != "*" && want != segment {
			return "", false
		}
		if i == p.capture {
			captured = segment
		}
	}
	return captured, p.rest || rest == "" || rest == "/"
}

func (p *pattern) matches(path string) bool {
	_, ok := p.match(path)
	return ok
}

// A route is METHOD[,METHOD] /path; no methods: any.
type route struct {
	methods []string
	usual   methods // those of them that have a bit
	pattern pattern
}

// methods are the usual ones as a set, so that nothing is compared for each route
// of a document.
type methods uint8

// methodOf is 0 for a method that is unusual, or written in another case.
func methodOf(name string) methods {
	switch name {
	case "GET":
		return 1
	case "HEAD":
		return 1 << 1
	case "POST":
		return 1 << 2
	case "PUT":
		return 1 << 3
	case "PATCH":
		return 1 << 4
	case "DELETE":
		return 1 << 5
	case "OPTIONS":
		return 1 << 6
	}
	return 0
}

var methodName = regexp.MustCompile(`^[A-Z]{1,20}$`)

func parseRoute(s string) (route, error) {
	var r route
	methods, path, ok := strings.Cut(s, " ")
	if !ok {
		return r, fmt.Errorf("is not METHOD /path")
	}
	if methods != "*" {
		r.methods = strings.Split(methods, ",")
		for i, m := range r.methods {
			if !methodName.MatchString(m) {
				return r, fmt.Errorf("has the method %q", m)
			}
			if slices.Contains(r.methods[:i], m) {
				return r, fmt.Errorf("has the method %s twice", m)
			}
			r.usual |= methodOf(m)
			if m == "GET" {
				r.usual |= methodOf("HEAD")
			}
		}
	}
	p, err := parsePattern(path, "")
	r.pattern = p
	return r, err
}

// matches compares a method and one reading of a path.
func (r *route) matches(method, path string) bool {
	return r.admits(methodOf(method), method) && r.pattern.matches(path)
}

// admits compares a method, which is also told by its name. A HEAD is also a GET:
// servers answer it with the handler of GET, so it may not need less. Methods
// are compared in any case for the same reason.
func (r *route) admits(method methods, name string) bool {
	if r.methods == nil || r.usual&method != 0 {
		return true
	}
	return method == 0 && slices.ContainsFunc(r.methods, func(m string) bool {
		return strings.EqualFold(m, name) || m == "GET" && strings.EqualFold(name, "HEAD")
	})
}

// paths are the ways in which the servers behind a gateway may read one
// request path. Nearly every path has one reading. Where it has several (an
// encoded slash, dot segments, doubled slashes, path parameters), a request
// needs what each of them needs, is public only if each of them is, and names
// a resource only if all name the same: no spelling gets past a rule that the
// plain spelling meets.
type paths struct {
	first   string
	more    []string
	unclear bool // too long to tell: needs every scope, names nothing
}

// maxUnclear is the length in bytes up to which a path with several readings
// is looked into. No honest client writes a longer one, and the work that it
// causes comes before any credential is known.
const maxUnclear = 4096

// at returns the i-th reading.
func (p *paths) at(i int) string {
	if i == 0 {
		return p.first
	}
	return p.more[i-1]
}

func (p *paths) len() int { return 1 + len(p.more) }

// readPath takes the path as it was on the request line: escapes untouched,
// the query cut off here.
func readPath(path string) paths {
	path, isPlain := plain(path)
	if isPlain {
		return paths{first: path}
	}
	if !strings.HasPrefix(path, "/") {
		// The absolute form of RFC 9112 section 3.2.2 names the host first.
		if _, after, ok := strings.Cut(path, "://"); ok {
			_, path, _ = strings.Cut(after, "/")
		}
		path = "/" + path
	}
	if _, isPlain := plain(path); isPlain {
		return paths{first: path}
	}
	if len(path) > maxUnclear {
		return paths{first: "/", unclear: true}
	}
	all := []string{path}
	for _, decoded := range []string{unescape(path), unescape(unescape(path))} {
		all = appendNew(all, decoded)
	}
	for _, change := range []func(string) string{backslashes, parameters, collapse, resolve, collapse} {
		for _, s := range slices.Clone(all) {
			all = appendNew(all, change(s))
		}
	}
	return paths{first: all[0], more: all[1:]}
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// plain cuts the query off a path and says whether the rest begins with a slash
// and has one reading only.
func plain(path string) (cut string, ok bool) {
	ok = path != "" && path[0] == '/'
	for i := range len(path) {
		switch path[i] {
		case '?', '#':
			return path[:i], ok
		case '%', '\\', ';':
			ok = false
		case '/':
			if i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.' && dots(path[i+1:])) {
				ok = false
			}
		}
	}
	return path, ok
}

// dots says whether a path begins with the segment . or ..
func dots(s string) bool {
	s = strings.TrimPrefix(s[1:], ".")
	return s == "" || s[0] == '/' || s[0] == '?' || s[0] == '#'
}

// unescape decodes what is well escaped and leaves the rest as it is.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, lo := hexDigit(s[i+1]), hexDigit(s[i+2])
			if hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int((c|0x20)-'a') + 10
	}
	return -1
}

func backslashes(s string) string { return strings.ReplaceAll(s, `\`, "/") }

// parameters drops what follows a ; in each segment, as servlet containers do.
func parameters(s string) string {
	if !strings.Contains(s, ";") {
		return s
	}
	segments := strings.Split(s, "/")
	for i, segment := range segments {
		segments[i], _, _ = strings.Cut(segment, ";")
	}
	return strings.Join(segments, "/")
}

func collapse(s string) string {
	if !strings.Contains(s, "//") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != '/' || i == 0 || s[i-1] != '/' {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// resolve removes dot segments as RFC 3986 section 5.2.4 does.
func resolve(s string) string {
	segments := strings.Split(s, "/")
	out := segments[:0:0]
	for i, segment := range segments {
		switch segment {
		case ".":
		case "..":
			if len(out) > 1 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, segment)
			continue
		}
		if i == len(segments)-1 {
			out = append(out, "")
		}
	}
	return strings.Join(out, "/")
}
