// Package conformance holds the products' own pages against the program: for
// each sentence of a page that promises or requires something, what it means for
// a system of keys, what is sent, and exactly what must come back.
//
// It promises that no sentence is left out in silence: a page is kept as the
// hashes of its sentences, in order, and each of them is quoted with its proof,
// quoted with what carries it until there is one, or passed over with the
// reason. Every script runs twice, with owners and keys of its own: through the
// real gateway, and through POST /v1/verify; both must say the same, byte for
// byte. docs/products.md is written from what was seen, and a test fails where it
// differs.
//
// How it can disappoint. The clock of the product stands still and is moved by
// the scripts, so that a rolling minute takes no minute; that real clocks move it
// alike is for other tests. A page that changes is noticed only by whoever has
// the page: go test ./internal/conformance -pages DIR -update.
//
// testdata/<keyspace>.yaml is a suite; the types below say what may stand in one.
package conformance

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/gateway"
)

var update = flag.Bool("update", false, "write docs/products.md, and with -pages the hashes of the pages")

// suite is one product.
type suite struct {
	Product  string
	Keyspace string
	Hosts    []host // whose requests the gateway takes for it

	// Implied are headers that every answer of a status has, so that the
	// scripts need not repeat them: by status, or refused for all of them.
	Implied map[string]map[string]string

	// RoomShown says that admitted requests are answered with headers about
	// limits: they are compared where a step names some.
	RoomShown bool `yaml:"room_shown"`

	Refusals  map[string]refusal // what each code looks like, where a script says no other
	Sentences []sentence         // in the order of the page
	Beside    []sentence         // on what the page is silent: what the document chose, and what every product has
	Unreached map[string]string  // codes that no request to this product meets, and why
}

type refusal struct {
	Status int
	Body   string // JSON, blanks aside
}

type host struct {
	Name         string
	Environments []string
}

// sentence is a piece of a page, and what proves it.
type sentence struct {
	Says  string // the page's exact words, one sentence or more
	Pass  int    // instead: so many sentences that promise nothing,
	Why   string // because …
	Means string // for a system of keys
	By    string // what carries it where no script here can, or besides
	Do    []step
}

// step is one thing done, and what must come back. Exactly one of the first
// group is there. In what is sent, $owner is the script's owner, $key.secret,
// $key.id, $key.first8, $key.last8 and $key.old (the secret before a rotation) are the
// key's; a key that was created as: other is $other.….
//
// In what comes back, what differs from run to run has been replaced: <key_id>,
// <owner>, <request_id>, <secret>, <first 12> … for characters of a secret,
// <now> and <now+60s> for times, in whatever form.
type step struct {
	Owner  map[string]any    // PUT the owner, with these fields
	Create map[string]any    // POST /v1/keys, for $owner; without a name it gets one
	Import string            // POST /v1/keys/import of this secret's SHA-256; With: more fields
	With   map[string]any    //
	Call   string            // METHOD /path of the management API; JSON is its body
	JSON   any               //
	Bearer string            // who calls; empty: an operator
	Take   int               // POST /v1/limits/take
	Send   string            // METHOD URL, to the product's API; without a host: its first host, over TLS
	Curl   map[string]string // the same, by the quoted line of the page itself; with these words of it filled in
	Auth   *values           // the credential header; absent: as the page says, with $key.secret; []: none
	Having map[string]string // further headers of the request
	From   string            // the client's address, as a trusted proxy tells it
	Wait   string            // the clock moves on, after the rest of the step
	Until  string            // the clock moves to the next: midnight

	As    string // name of the key that is created or imported; key
	Times int    // done so often; each must come back alike
	Node  string // lost the stream | cannot record
	Only  string // gateway | verify: where the other way in cannot show it; By says why
	Row   string // its outcome is a cell of this row in the table of products

	Status  int
	Code    string            // the decision, for sent requests; VALID where the status is below 400
	Headers map[string]string // exactly these, besides Implied; of admitted requests those about limits
	Body    string            // exactly; for sent requests, where refused
	Echo    map[string]string // of admitted requests: what arrived upstream
	Shows   map[string]any    // of API calls: values by path in the JSON answer; .# is a length
	Lacks   []string          // what may not stand in the answer
	Begins  string            // the secret that was answered begins so
	Like    string            // and goes on like this regular expression, to its end
}

// values is a string or a list of them.
type values []string

func (v *values) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*v = values{n.Value}
		return nil
	}
	return n.Decode((*[]string)(v))
}

func suites(t *testing.T) []*suite {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no suites: %v", err)
	}
	var all []*suite
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, d := new(suite), yaml.NewDecoder(bytes.NewReader(b))
		d.KnownFields(true)
		if err := d.Decode(s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if s.Keyspace != strings.TrimSuffix(filepath.Base(file), ".yaml") {
			t.Errorf("%s is about %s", file, s.Keyspace)
		}
		all = append(all, s)
	}
	return all
}

// All products do what their pages say, and docs/products.md says what they were
// seen to do.
func TestConformance(t *testing.T) {
	all := suites(t)
	var routes []gateway.Route
	for _, s := range all {
		for _, h := range s.Hosts {
			routes = append(routes, gateway.Route{Host: h.Name, Keyspace: s.Keyspace, Environments: h.Environments})
		}
	}
	w := newWorld(t, routes)
	var whole []*observations
	for _, s := range all {
		passed := 0
		o := &observations{suite: s, codes: map[string]observed{}, rows: map[string][]string{}, sent: map[*sentence][]exchange{}}
		ok := t.Run(s.Keyspace, func(t *testing.T) {
			for i, list := range [][]sentence{s.Sentences, s.Beside} {
				for j := range list {
					if c := &list[j]; len(c.Do) > 0 {
						name := fmt.Sprintf("%c%d %.40s", "sb"[i], j+1, c.Says+c.Means)
						if t.Run(name, func(t *testing.T) { o.run(t, w, c) }) && o.sent[c] != nil {
							passed++
						}
					}
				}
			}
		})
		scripts := 0
		for _, c := range slices.Concat(s.Sentences, s.Beside) {
			scripts += min(len(c.Do), 1)
		}
		if !ok || passed < scripts {
			continue // something failed, or -run asked for a part
		}
		o.document = w.document(s.Keyspace)
		whole = append(whole, o)
		for _, code := range domain.Codes() {
			_, met := o.codes[string(code)]
			why, excused := s.Unreached[string(code)]
			if met == excused || excused && why == "" {
				t.Errorf("%s: %s must be met by a script or named, with the reason, under unreached", s.Product, code)
			}
		}
	}
	if len(whole) == len(all) {
		compareProducts(t, whole)
	}
}
