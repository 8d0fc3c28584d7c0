package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxDocument is the size in bytes of the largest keyspace document.
const MaxDocument = 1 << 20

const (
	maxDepth = 32
	maxNodes = 50_000
)

// shape is the JSON type of a node.
type shape int

const (
	isNull shape = iota
	isBool
	isNumber
	isString
	isList
	isObject
)

func (s shape) String() string {
	return [...]string{"null", "true or false", "a number", "a string", "a list", "an object"}[s]
}

// node is a value of a document with its line, whether it was written in YAML
// or in JSON: both are read alike from here on.
type node struct {
	shape  shape
	path   string
	line   int
	text   string         // of a string; a number or bool as JSON writes it
	names  []string       // of an object's values, in the order of the author
	values []*node        // of an object or a list
	index  map[string]int // of an object's names
	bare   bool           // null, because {…, name} has no colon
}

// readTree reads YAML or JSON. The node is nil where there is nothing to go on
// with; otherwise the problems are not all there are. It is not readable where
// the source is neither YAML nor JSON. What is JSON is read as JSON: its strings
// may hold escapes that YAML does not know.
func readTree(source []byte) (root *node, problems []Problem, readable bool) {
	one := func(line int, message, fix string) (*node, []Problem, bool) {
		return nil, []Problem{{Line: line, Message: message, Fix: fix}}, false
	}
	if len(source) > MaxDocument {
		return one(0, fmt.Sprintf("the document has %d bytes", len(source)), fmt.Sprintf("write at most %d", MaxDocument))
	}
	if !utf8.Valid(source) {
		return one(0, "the document is not UTF-8", "save it as UTF-8")
	}
	source = bytes.TrimPrefix(source, []byte("\ufeff"))
	if len(bytes.TrimSpace(source)) == 0 {
		return one(0, "the document is empty", "write a keyspace document")
	}
	t := &treeReader{}
	if json.Valid(source) {
		t.source, t.decoder = source, json.NewDecoder(bytes.NewReader(source))
		t.decoder.UseNumber()
		root, err := t.fromJSON("", 0)
		if err != nil && !t.stopped {
			t.stopped = true
			t.bad("", t.line+1, "cannot be read: "+err.Error(), "correct it there")
		}
		if t.stopped {
			root = nil
		}
		return root, t.problems, true
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var first, second yaml.Node
	if err := decoder.Decode(&first); errors.Is(err, io.EOF) {
		return one(0, "the document is empty", "write a keyspace document")
	} else if err != nil {
		line, message := yamlError(err)
		return one(line, "the document is neither YAML nor JSON: "+message, "correct the syntax there")
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return one(second.Line, "the document goes on after its end", "write one document, without a --- between")
	}
	if len(first.Content) != 1 {
		return one(0, "the document is empty", "write a keyspace document")
	}
	root = t.fromYAML(first.Content[0], "", 0)
	if t.stopped {
		root = nil
	}
	return root, t.problems, true
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func yamlError(err error) (line int, message string) {
	message = err.Error()
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = message[len(m[0]):]
	}
	return line, message
}

type treeReader struct {
	problems []Problem
	nodes    int
	stopped  bool // a bound was passed: what was read is not the whole document
	source   []byte
	decoder  *json.Decoder
	line     int // of offset, from 0
	offset   int
}

func (t *treeReader) bad(path string, line int, message, fix string) {
	if len(t.problems) < maxProblems {
		t.problems = append(t.problems, Problem{path, line, message, fix})
	}
}

// full counts values and levels. A document that people maintain has a few
// hundred values; beyond the bounds nothing is read.
func (t *treeReader) full(path string, line, depth int) bool {
	t.nodes++
	switch {
	case t.stopped:
	case depth > maxDepth:
		t.stopped = true
		t.bad(path, line, fmt.Sprintf("is nested deeper than %d levels", maxDepth), "flatten it")
	case t.nodes > maxNodes:
		t.stopped = true
		t.bad(path, line, fmt.Sprintf("is beyond the %d values that a document may have", maxNodes), "shorten the document")
	}
	return t.stopped
}

func (t *treeReader) fromYAML(y *yaml.Node, path string, depth int) *node {
	n := &node{path: path, line: y.Line}
	if t.full(path, y.Line, depth) {
		return n
	}
	if y.Kind == yaml.AliasNode || y.Anchor != "" {
		t.bad(path, y.Line, "uses an anchor or an alias", "write the value out where it is needed")
		return n
	}
	switch y.Kind {
	case yaml.SequenceNode:
		n.shape = isList
		t.untagged(y, path, "!!seq")
		for i, c := range y.Content {
			n.values = append(n.values, t.fromYAML(c, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case yaml.MappingNode:
		n.shape = isObject
		t.untagged(y, path, "!!map")
		for i := 0; i+1 < len(y.Content); i += 2 {
			name := y.Content[i]
			value := t.fromYAML(y.Content[i+1], dotted(path, name.Value), depth+1)
			value.bare = y.Style&yaml.FlowStyle != 0 && value.shape == isNull && y.Content[i+1].Value == ""
			switch {
			case name.Kind == yaml.AliasNode || name.Anchor != "" || name.ShortTag() == "!!merge":
				t.bad(path, name.Line, "uses an anchor, an alias or a merge", "write the value out where it is needed")
			case name.Kind != yaml.ScalarNode:
				t.bad(path, name.Line, "has a name that is not text", "write a word before the colon")
			case name.ShortTag() != "!!str":
				t.bad(path, name.Line, fmt.Sprintf("has the name %s, which YAML does not read as text", clip(name.Value)), fmt.Sprintf("write %q in quotes", clip(name.Value)))
			default:
				t.member(n, name.Value, name.Line, value)
			}
		}
	case yaml.ScalarNode:
		t.scalar(n, y)
	default:
		t.bad(path, y.Line, "is not a value", "write a value")
	}
	return n
}

func (t *treeReader) untagged(y *yaml.Node, path, tag string) {
	if y.ShortTag() != tag {
		t.bad(path, y.Line, "has the tag "+clip(y.Tag), "leave tags out")
	}
}

func (t *treeReader) scalar(n *node, y *yaml.Node) {
	switch tag := y.ShortTag(); tag {
	case "!!str", "!!timestamp":
		n.shape, n.text = isString, y.Value
	case "!!null":
	case "!!bool":
		var b bool
		if y.Decode(&b) != nil {
			t.bad(n.path, y.Line, y.Value+" is not true or false", "write true or false")
		}
		n.shape, n.text = isBool, strconv.FormatBool(b)
	case "!!int", "!!float":
		n.shape, n.text = isNumber, y.Value
		if jsonNumber.MatchString(y.Value) {
			return
		}
		// YAML also knows 0x10, 1_000, +1 and .5.
		var i int64
		var f float64
		if tag == "!!int" && y.Decode(&i) == nil {
			n.text = strconv.FormatInt(i, 10)
		} else if y.Decode(&f) == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			n.text = strconv.FormatFloat(f, 'f', -1, 64)
		} else {
			n.text = "0"
			t.bad(n.path, y.Line, y.Value+" is not a number that JSON can hold", "write a decimal number")
		}
	default:
		n.shape = isString
		t.bad(n.path, y.Line, "has the tag "+clip(tag), "leave tags out")
	}
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

func (t *treeReader) member(n *node, name string, line int, value *node) {
	if first, ok := n.index[name]; ok {
		t.bad(value.path, line, fmt.Sprintf("is there twice, first in line %d", n.values[first].line), "remove one")
		return
	}
	if n.index == nil {
		n.index = make(map[string]int)
	}
	n.index[name] = len(n.names)
	n.names = append(n.names, name)
	n.values = append(n.values, value)
}

var errStopped = errors.New("stopped reading")

// fromJSON reads one value of what is known to be valid JSON.
func (t *treeReader) fromJSON(path string, depth int) (*node, error) {
	token, err := t.decoder.Token()
	if err != nil {
		return nil, err
	}
	n := &node{path: path, line: t.at()}
	if t.full(path, n.line, depth) {
		return n, errStopped
	}
	switch v := token.(type) {
	case nil:
	case bool:
		n.shape, n.text = isBool, strconv.FormatBool(v)
	case json.Number:
		n.shape, n.text = isNumber, v.String()
	case string:
		n.shape, n.text = isString, v
	case json.Delim:
		n.shape = isList
		if v == '{' {
			n.shape = isObject
		}
		for t.decoder.More() {
			if n.shape == isList {
				value, err := t.fromJSON(fmt.Sprintf("%s[%d]", path, len(n.values)), depth+1)
				if err != nil {
					return n, err
				}
				n.values = append(n.values, value)
				continue
			}
			token, err := t.decoder.Token()
			if err != nil {
				return n, err
			}
			name, line := token.(string), t.at()
			value, err := t.fromJSON(dotted(path, name), depth+1)
			if err != nil {
				return n, err
			}
			t.member(n, name, line, value)
		}
		_, err = t.decoder.Token()
	}
	return n, err
}

// at is the line of the token just read.
func (t *treeReader) at() int {
	end := int(t.decoder.InputOffset())
	t.line += bytes.Count(t.source[t.offset:end], []byte("\n"))
	t.offset = end
	return t.line + 1
}

// json writes a node as compact JSON, its names in the order of the author.
func (n *node) json(b []byte) []byte {
	switch n.shape {
	case isNull:
		return append(b, "null"...)
	case isBool, isNumber:
		return append(b, n.text...)
	case isString:
		return append(appendEscaped(append(b, '"'), n.text), '"')
	case isList:
		b = append(b, '[')
		for i, v := range n.values {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.json(b)
		}
		return append(b, ']')
	}
	b = append(b, '{')
	for i, v := range n.values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendEscaped(append(b, '"'), n.names[i]), `":`...)
		b = v.json(b)
	}
	return append(b, '}')
}

// clip shortens what a message or a path quotes, and keeps it on one line.
func clip(s string) string {
	s = strings.Map(visible, s)
	if utf8.RuneCountInString(s) <= 60 {
		return s
	}
	return string([]rune(s)[:60]) + "…"
}

func dotted(path, name string) string {
	if path == "" {
		return clip(name)
	}
	return path + "." + clip(name)
}

// LineOf is the line, from 1, that a path of a document stands on, or what it is
// missing in; 0 where the source cannot be read.
func LineOf(source []byte, path string) int {
	root, _, _ := readTree(source)
	if root == nil {
		return 0
	}
	best := root
	var walk func(*node)
	walk = func(n *node) {
		within := n.path == path || n.path == "" || strings.HasPrefix(path, n.path) && strings.ContainsAny(path[len(n.path):len(n.path)+1], ".[")
		if !within {
			return
		}
		if len(n.path) >= len(best.path) {
			best = n
		}
		for _, v := range n.values {
			walk(v)
		}
	}
	walk(root)
	return best.line
}
