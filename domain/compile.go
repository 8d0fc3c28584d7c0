package domain

import (
	"cmp"
	"maps"
	"slices"
)

// compiled is what a document is turned into once, so that a request is judged
// without parsing anything. It is immutable, like the Keyspace that holds it.
type compiled struct {
	unreadable   bool // the document says nothing of where keys are or how they look
	alphabet     string
	prefixes     []prefix // longest first
	scopes       []scopeRoute
	public       []publicRoute
	ownerPath    *pattern
	resourcePath *pattern
	answers      map[Code]*answer  // one for every code
	quota        Quota             // of Limits.Default
	quotas       map[string]*Quota // of plans
}

type prefix struct{ prefix, environment string }

type scopeRoute struct {
	scope string
	route
}

type publicRoute struct {
	route
	PublicRoute
}

// Compile makes a validated document ready for use. It cannot fail. Of a
// document that an older program accepted and that this one would refuse, it
// takes what it cannot read towards refusing: a scope's route that cannot be
// read guards every path, a public one opens none, and a document without a
// header or a prefix admits nobody.
func Compile(doc *Document, version int) *Keyspace {
	k := &Keyspace{Document: doc, DocumentVersion: version}
	k.unreadable = doc.Credential.Header == "" || len(doc.Format.Prefixes) == 0
	k.alphabet = alphabetOf(doc.Format.Alphabet)
	for environment, p := range doc.Format.Prefixes {
		k.prefixes = append(k.prefixes, prefix{p, environment})
	}
	slices.SortFunc(k.prefixes, func(a, b prefix) int {
		return cmp.Or(cmp.Compare(len(b.prefix), len(a.prefix)), cmp.Compare(a.prefix, b.prefix), cmp.Compare(a.environment, b.environment))
	})
	for _, scope := range slices.Sorted(maps.Keys(doc.Scopes)) {
		for _, s := range doc.Scopes[scope].Routes {
			r, err := parseRoute(s)
			if err != nil {
				r = route{pattern: everything}
			}
			k.scopes = append(k.scopes, scopeRoute{scope, r})
		}
	}
	for _, p := range doc.PublicRoutes {
		if r, err := parseRoute(p.Route); err == nil {
			k.public = append(k.public, publicRoute{r, p})
		}
	}
	k.ownerPath = template(doc.Owner.Path, "owner", everything)
	k.resourcePath = template(doc.Resource.Path, "resource", nothing)
	k.answers = compileAnswers(doc)
	k.quota = QuotaOf(doc.Limits.Default)
	k.quotas = make(map[string]*Quota, len(doc.Plans))
	for name, p := range doc.Plans {
		k.quotas[name] = new(QuotaOf(p.Limits))
	}
	return k
}

var (
	everything = pattern{rest: true, capture: -1}
	nothing    = pattern{segments: []string{""}, capture: -1}
)

func template(path, name string, otherwise pattern) *pattern {
	if path == "" {
		return nil
	}
	p, err := parsePattern(path, name)
	if err != nil {
		p = otherwise
	}
	return &p
}
