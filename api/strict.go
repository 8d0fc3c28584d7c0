package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth is how deeply a body may be nested.
const maxDepth = 64

// readable refuses a body that readers of JSON understand differently, or at
// the cost of their stack: not one value of UTF-8 JSON, a name given twice,
// deeper than maxDepth. It also refuses the NUL character, which PostgreSQL
// cannot hold. Nothing of the body is repeated: it may hold a secret.
func readable(body []byte) *Problem {
	if !utf8.Valid(body) {
		return unreadable("it is not UTF-8")
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return unreadable("it is empty, and this call needs JSON")
	}
	s := &scan{decoder: json.NewDecoder(bytes.NewReader(body))}
	s.decoder.UseNumber()
	if p := s.value(""); p != nil {
		return p
	}
	if _, err := s.decoder.Token(); !errors.Is(err, io.EOF) {
		return unreadable("it goes on after the end of the JSON")
	}
	return nil
}

func unreadable(why string) *Problem {
	return problem(http.StatusBadRequest, "UNREADABLE", "The body cannot be read: "+why+".")
}

type scan struct {
	decoder *json.Decoder
	depth   int
}

func (s *scan) token() (json.Token, *Problem) {
	t, err := s.decoder.Token()
	if err == nil {
		return t, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, unreadable("it ends in the middle of the JSON")
	}
	return nil, unreadable(fmt.Sprintf("it is no JSON at byte %d", s.decoder.InputOffset()+1))
}

func (s *scan) value(path string) *Problem {
	t, p := s.token()
	if p != nil {
		return p
	}
	switch t := t.(type) {
	case string:
		return noNUL(path, t)
	case json.Delim:
		if s.depth++; s.depth > maxDepth {
			return unreadable("it is nested deeper than " + strconv.Itoa(maxDepth) + " levels")
		}
		defer func() { s.depth-- }()
		if t == '[' {
			return s.list(path)
		}
		return s.object(path)
	}
	return nil
}

func (s *scan) list(path string) *Problem {
	for i := 0; s.decoder.More(); i++ {
		if p := s.value(path + "[" + strconv.Itoa(i) + "]"); p != nil {
			return p
		}
	}
	_, p := s.token()
	return p
}

func (s *scan) object(path string) *Problem {
	seen := map[string]bool{}
	for s.decoder.More() {
		t, p := s.token()
		if p != nil {
			return p
		}
		name, _ := t.(string)
		at := name
		if path != "" {
			at = path + "." + name
		}
		if seen[name] {
			p := unreadable("a name is there twice in one object")
			p.Errors = []Detail{{Path: shown(at), Message: "is there twice", Fix: "remove one"}}
			return p
		}
		seen[name] = true
		if p := noNUL(at, name); p != nil {
			return p
		}
		if p := s.value(at); p != nil {
			return p
		}
	}
	_, p := s.token()
	return p
}

func noNUL(path, text string) *Problem {
	if !strings.ContainsRune(text, 0) {
		return nil
	}
	return unprocessable(Detail{Path: shown(path), Message: "has the character NUL", Fix: "remove it"})
}

// shown cuts a path that a caller made up to a length that can be answered.
func shown(path string) string {
	path = strings.ReplaceAll(path, "\x00", "")
	if len(path) > 200 {
		return strings.ToValidUTF8(path[:200], "") + "…"
	}
	return path
}

// unmarshal reads JSON that was found readable into the type of its call.
func unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is too large a number, or of the wrong type", wrong.Field)
	}
	return err
}
