package sinks

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/domain"
)

// kinds are the publishers there are. Another one is a line here: a struct of
// settings, and what makes a publisher and its topic of them or says with wrong
// what is wrong with them. It MUST NOT connect: that the other side is away is
// no reason not to start.
var kinds = map[string]kind{
	"http":         of(openHTTP),
	"redis_stream": of(openRedis),
}

// base are the settings that every sink has.
type base struct {
	// Name is what status, metrics and DLQ call it, and what its position is kept
	// under: a sink of a new name begins with what happens from then on.
	Name string `yaml:"name"`
	Kind string `yaml:"kind"`

	// Types are what it gets: key.revoked, or key.* for a family. Default: every
	// fact of FEED, and alerts.
	Types    []string `yaml:"types"`
	Keyspace string   `yaml:"keyspace"` // Default: all
	Owner    string   `yaml:"owner"`    // Default: all

	// Timeout is of one attempt. Default 10s.
	Timeout time.Duration `yaml:"timeout"`
}

const timeout = 10 * time.Second

// secret reads a setting that is never written into the settings themselves: from
// the file that was named, else from the environment.
func (b base) secret(setting, file string) (string, error) {
	if file == "" {
		return os.Getenv(b.environment(setting)), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", wrong(setting+"_file", "cannot be read: "+err.Error(), "name a file that holds it, or set "+b.environment(setting))
	}
	s := strings.TrimSpace(string(text))
	if s == "" {
		return "", wrong(setting+"_file", "names an empty file", "write it there, or leave this out")
	}
	return s, nil
}

func (b base) environment(setting string) string {
	return "KEYLEDGER_SINK_" + strings.ToUpper(strings.ReplaceAll(b.Name+"_"+setting, "-", "_"))
}

// kind reads the settings of one sink.
type kind struct {
	fields []string
	open   func(n *yaml.Node, b base) (message.Publisher, string, error)
}

// of makes a kind of settings S, which embed base, and what opens a publisher with them.
func of[S any](open func(base, S) (publisher message.Publisher, topic string, err error)) kind {
	return kind{
		fields: slices.Concat(fields(reflect.TypeFor[base]()), fields(reflect.TypeFor[S]())),
		open: func(n *yaml.Node, b base) (message.Publisher, string, error) {
			var s S
			if err := n.Decode(&s); err != nil {
				return nil, "", err
			}
			return open(b, s)
		},
	}
}

func fields(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("yaml"))
	}
	return names
}

// settingError is what is wrong with one setting of a sink.
type settingError domain.Problem

func (e *settingError) Error() string { return domain.Problem(*e).String() }

func wrong(setting, message, fix string) error {
	return &settingError{Path: setting, Message: message, Fix: fix}
}

// Error lists everything that is wrong with the sinks of a file.
type Error struct {
	File     string
	Problems []domain.Problem
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "settings %s:", e.File)
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Read opens the sinks of a file of settings in YAML, where it has any; what else
// stands in the file is not looked at. Everything that is wrong with them comes as
// one [*Error], with path and line.
func Read(file string) ([]*Sink, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	sinks, problems := read(text)
	if len(problems) == 0 {
		return sinks, nil
	}
	for _, s := range sinks {
		_ = s.Close()
	}
	return nil, &Error{file, problems}
}

func read(text []byte) (sinks []*Sink, problems []domain.Problem) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, unreadable("", 0, err)
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	list := member(document.Content[0], "sinks")
	if list == nil || list.Tag == "!!null" {
		return nil, nil
	}
	if list.Kind != yaml.SequenceNode {
		return nil, []domain.Problem{{Path: "sinks", Line: list.Line, Message: "is no list", Fix: "write a dash before every sink"}}
	}
	first := map[string]int{} // line of a name
	for i, n := range list.Content {
		s, bad := readSink(fmt.Sprintf("sinks[%d]", i), n)
		if s != nil {
			sinks = append(sinks, s)
		}
		problems = append(problems, bad...)
		if name := member(n, "name"); name != nil {
			if line, taken := first[name.Value]; taken {
				problems = append(problems, domain.Problem{Path: fmt.Sprintf("sinks[%d].name", i), Line: name.Line, Message: fmt.Sprintf("is that of the sink at line %d", line), Fix: "give it another: positions are kept by name"})
			} else {
				first[name.Value] = name.Line
			}
		}
	}
	return sinks, problems
}

// member is the value of a mapping's field; nil where it has none.
func member(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

var (
	sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	yamlLine = regexp.MustCompile(`(?m)^\s*(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+): (.*)$`)
)

// unreadable are the problems that the YAML library tells of, with its lines.
func unreadable(path string, line int, err error) (problems []domain.Problem) {
	for _, found := range yamlLine.FindAllStringSubmatch(err.Error(), -1) {
		at, _ := strconv.Atoi(found[1]) // digits
		problems = append(problems, domain.Problem{Path: path, Line: at, Message: found[2], Fix: "write a value of the kind that docs/sinks.md shows"})
	}
	if len(problems) == 0 {
		problems = []domain.Problem{{Path: path, Line: line, Message: strings.TrimPrefix(err.Error(), "yaml: "), Fix: "write YAML"}}
	}
	return problems
}

func readSink(path string, n *yaml.Node) (*Sink, []domain.Problem) {
	var problems []domain.Problem
	bad := func(field, message, fix string) {
		p := domain.Problem{Path: path, Line: n.Line, Message: message, Fix: fix}
		if field != "" {
			p.Path += "." + field
			if at := member(n, field); at != nil {
				p.Line = at.Line
			}
		}
		problems = append(problems, p)
	}
	if n.Kind != yaml.MappingNode {
		bad("", "is no sink", "write name, kind and what the kind needs")
		return nil, problems
	}
	var b base
	if err := n.Decode(&b); err != nil {
		return nil, unreadable(path, n.Line, err)
	}
	b.Timeout = cmp.Or(b.Timeout, timeout)
	b.check(bad)
	k, known := kinds[b.Kind]
	if !known {
		all := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
		if b.Kind == "" {
			bad("kind", "is missing", "write one of "+all)
		} else {
			bad("kind", fmt.Sprintf("%q is not known", b.Kind), "write one of "+all)
		}
		return nil, problems
	}
	for i := 0; i < len(n.Content); i += 2 {
		if name := n.Content[i].Value; !slices.Contains(k.fields, name) {
			bad(name, "is no setting of a sink of kind "+b.Kind, "its settings are "+strings.Join(k.fields, ", "))
		}
	}
	publisher, topic, err := k.open(n, b)
	if err != nil {
		for _, err := range each(err) {
			if s, ok := errors.AsType[*settingError](err); ok {
				bad(s.Path, s.Message, s.Fix)
			} else {
				problems = append(problems, unreadable(path, n.Line, err)...)
			}
		}
		return nil, problems
	}
	return &Sink{b, topic, publisher}, problems
}

// each are the errors that were joined.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func (b base) check(bad func(field, message, fix string)) {
	if !sinkName.MatchString(b.Name) {
		bad("name", fmt.Sprintf("%q is no name of a sink", b.Name), "write up to 32 lower-case letters, digits and hyphens, such as billing")
	}
	for _, t := range b.Types {
		if !slices.ContainsFunc(types, func(known string) bool { return matches(t, known) }) {
			bad("types", fmt.Sprintf("%q is no type that sinks get", t), "write some of "+strings.Join(types, ", ")+", or a family such as key.*")
		}
	}
	if b.Keyspace != "" && !keyspaceID.MatchString(b.Keyspace) {
		bad("keyspace", fmt.Sprintf("%q is no keyspace id", b.Keyspace), "write lower-case letters, digits and hyphens")
	}
	if b.Owner != "" && !ownerID.MatchString(b.Owner) {
		bad("owner", fmt.Sprintf("%q is no owner id", b.Owner), "write letters, digits, _ and -")
	}
	if b.Timeout < 0 {
		bad("timeout", "is negative", "write how long one attempt may take, such as 10s")
	}
}

var (
	keyspaceID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	ownerID    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
)

// types are those of the facts that sinks get: all that can stand in FEED, and alerts.
var types = []string{
	"alert.raised", "alert.resolved",
	"key.created", "key.deleted", "key.grace_ended", "key.revoked", "key.rotated", "key.updated",
	"keyspace.configured",
	"owner.key_admitted", "owner.plan_changed", "owner.registered",
}
