package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// envelope is what a body says that its leaf says too: the text of a string,
// empty for null.
type envelope struct{ kind, time, keyspace, owner, key []byte }

const maxDepth = 256

// readBody reads an event as strictly as every reader would have to, so that no two
// readers understand it differently: one JSON object in UTF-8, no member twice at any
// depth.
func readBody(body []byte, e *envelope) error {
	if !utf8.Valid(body) {
		return errors.New("it is not UTF-8")
	}
	*e = envelope{}
	s := strict{b: body, top: e}
	if len(body) == 0 || body[0] != '{' {
		return errors.New("it is not a JSON object")
	}
	if err := s.object(1); err != nil {
		return err
	}
	if s.at != len(body) {
		return fmt.Errorf("something follows the object at byte %d", s.at)
	}
	for _, v := range [][]byte{e.kind, e.time, e.keyspace, e.owner, e.key} {
		if v == nil {
			return errors.New("its envelope is not complete")
		}
	}
	return nil
}

// strict is a reader of JSON that takes what RFC 8259 does, and no member twice.
type strict struct {
	b   []byte
	at  int
	top *envelope
}

func (s *strict) fail(what string) error { return fmt.Errorf("%s at byte %d", what, s.at) }

func (s *strict) space() {
	for s.at < len(s.b) && (s.b[s.at] == ' ' || s.b[s.at] == '\t' || s.b[s.at] == '\r') {
		s.at++
	}
}

func (s *strict) peek() byte {
	if s.at < len(s.b) {
		return s.b[s.at]
	}
	return 0
}

func (s *strict) object(depth int) error {
	if depth > maxDepth {
		return s.fail("nesting is too deep")
	}
	var room [24][]byte
	seen := room[:0]
	var many map[string]bool // where seen would be slow to look through
	s.at++
	s.space()
	if s.peek() == '}' {
		s.at++
		return nil
	}
	for {
		name, err := s.name()
		if err != nil {
			return err
		}
		switch {
		case many != nil:
			if many[string(name)] {
				return s.fail(fmt.Sprintf("the member %.40q stands twice", name))
			}
			many[string(name)] = true
		default:
			for _, other := range seen {
				if string(other) == string(name) {
					return s.fail(fmt.Sprintf("the member %.40q stands twice", name))
				}
			}
			if seen = append(seen, name); len(seen) == cap(room[:]) {
				many = make(map[string]bool, 2*len(seen))
				for _, n := range seen {
					many[string(n)] = true
				}
			}
		}
		s.space()
		if s.peek() != ':' {
			return s.fail("a colon is missing")
		}
		s.at++
		s.space()
		from := s.at
		if err := s.value(depth); err != nil {
			return err
		}
		if depth == 1 {
			s.keep(name, s.b[from:s.at])
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
			s.space()
		case '}':
			s.at++
			return nil
		default:
			return s.fail("an object is not closed")
		}
	}
}

func (s *strict) keep(name, value []byte) {
	var to *[]byte
	switch string(name) {
	case "type":
		to = &s.top.kind
	case "time":
		to = &s.top.time
	case "keyspace":
		to = &s.top.keyspace
	case "owner":
		to = &s.top.owner
	case "key":
		to = &s.top.key
	default:
		return
	}
	var text string
	switch {
	case value[0] == '"' && bytes.IndexByte(value, '\\') >= 0:
		_ = json.Unmarshal(value, &text) // it is a string of JSON
		*to = []byte(text)
	case value[0] == '"':
		*to = value[1 : len(value)-1 : len(value)-1]
	case string(value) == "null":
		*to = []byte{}
	}
}

func (s *strict) array(depth int) error {
	if depth > maxDepth {
		return s.fail("nesting is too deep")
	}
	s.at++
	s.space()
	if s.peek() == ']' {
		s.at++
		return nil
	}
	for {
		if err := s.value(depth); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
			s.space()
		case ']':
			s.at++
			return nil
		default:
			return s.fail("an array is not closed")
		}
	}
}

func (s *strict) value(depth int) error {
	switch c := s.peek(); {
	case c == '"':
		_, err := s.text()
		return err
	case c == '{':
		return s.object(depth + 1)
	case c == '[':
		return s.array(depth + 1)
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if len(s.b)-s.at >= len(word) && string(s.b[s.at:s.at+len(word)]) == word {
			s.at += len(word)
			return nil
		}
	}
	return s.fail("there is no JSON value")
}

func (s *strict) number() error {
	digits := func() bool {
		from := s.at
		for '0' <= s.peek() && s.peek() <= '9' {
			s.at++
		}
		return s.at > from
	}
	if s.peek() == '-' {
		s.at++
	}
	zero := s.peek() == '0'
	from := s.at
	if !digits() || zero && s.at > from+1 {
		return s.fail("a number is not one of JSON")
	}
	if s.peek() == '.' {
		s.at++
		if !digits() {
			return s.fail("a number is not one of JSON")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		if !digits() {
			return s.fail("a number is not one of JSON")
		}
	}
	return nil
}

// name is the next string, without escapes, so that one name is one text.
func (s *strict) name() ([]byte, error) {
	if s.peek() != '"' {
		return nil, s.fail("a member has no name")
	}
	from := s.at
	escaped, err := s.text()
	if err != nil || !escaped {
		return s.b[from+1 : max(s.at-1, from+1)], err
	}
	var name string
	if err := json.Unmarshal(s.b[from:s.at], &name); err != nil {
		return nil, s.fail("a name is not a string of JSON")
	}
	return []byte(name), nil
}

// text passes over a string and says whether it has escapes.
func (s *strict) text() (escaped bool, err error) {
	for i := s.at + 1; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			s.at = i + 1
			return escaped, nil
		case c < ' ':
			s.at = i
			return escaped, s.fail("a control character stands in a string")
		case c == '\\':
			escaped = true
			if i++; i == len(s.b) {
				break
			}
			switch s.b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for n := 1; n <= 4; n++ {
					if i+n >= len(s.b) || nibble(s.b[i+n]|0x20) > 15 {
						s.at = i
						return escaped, s.fail("an escape is not one of JSON")
					}
				}
				i += 4
			default:
				s.at = i
				return escaped, s.fail("an escape is not one of JSON")
			}
		}
	}
	return escaped, s.fail("a string is not closed")
}
