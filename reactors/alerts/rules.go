package alerts

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/keyledger/keyledger/domain"
)

// rule is one that counts, with what it is judged by.
type rule struct {
	domain.AlertInForce
	name   string
	series []int // of the ruleset's specs
}

// byTime says whether a rule is judged by passing time and not by requests.
func byTime(when string) bool {
	switch when {
	case "expiring", "expired", "unused", "rotation_overdue", "previous_secret":
		return true
	}
	return false
}

// ruleset are the rules of all keys that have the same ones.
type ruleset struct {
	byUse  []rule // judged when a key is used
	byTime []rule
	limits []rule // judged of the pool that a key draws from
	source *rule  // new_source_ip
	specs  []spec
	byKind [kinds][]int
	grace  bool // it watches previous secrets
}

func newRuleset(list []domain.AlertInForce) *ruleset {
	s := &ruleset{}
	for _, in := range list {
		r := rule{AlertInForce: in, name: in.Name()}
		over := milliseconds(r.Over)
		need := func(sp spec) {
			i := slices.Index(s.specs, sp)
			if i < 0 {
				i = len(s.specs)
				s.specs = append(s.specs, sp)
				s.byKind[sp.kind] = append(s.byKind[sp.kind], i)
			}
			r.series = append(r.series, i)
		}
		switch in.When {
		case "limit_used":
			s.limits = append(s.limits, r)
			continue
		case "new_source_ip":
			s.source = &r
			continue
		case "error_rate":
			need(window(failed, over))
			need(window(known, over))
		case "denied":
			need(window(denied, over))
		case "cost":
			need(window(cost, over))
		case "unusual_volume":
			need(spec{used, max(over, 1), volumePast + 2})
		}
		s.grace = s.grace || in.When == "previous_secret"
		if byTime(in.When) {
			s.byTime = append(s.byTime, r)
		} else {
			s.byUse = append(s.byUse, r)
		}
	}
	return s
}

// has is the rule of a name, or nil.
func (s *ruleset) has(name string) *rule {
	for _, list := range [][]rule{s.byUse, s.byTime, s.limits} {
		for i := range list {
			if list[i].name == name {
				return &list[i]
			}
		}
	}
	if s.source != nil && s.source.name == name {
		return s.source
	}
	return nil
}

// place is what rules are set for.
type place struct{ keyspace, owner, key, resource string }

// space are the rules of a keyspace: those that its document says and those that were
// set, as of a version of both.
type space struct {
	keyspace *domain.Keyspace
	set      map[place][]domain.AlertRule // of this keyspace alone
	common   *ruleset                     // of keys that nothing is set for
	special  map[string]*ruleset          // by what is set for them
	texts    map[place]string             // of set, as recorded
	turn     int                          // of the book that they were last compared with
}

func newSpace(k *domain.Keyspace, all map[place]json.RawMessage) *space {
	s := &space{keyspace: k, set: map[place][]domain.AlertRule{}, special: map[string]*ruleset{}, texts: map[place]string{}}
	for at, text := range all {
		if at.keyspace != k.Document.Keyspace {
			continue
		}
		s.texts[at] = string(text)
		var rules []domain.AlertRule
		if json.Unmarshal(text, &rules) == nil { // what a newer program has set is its business
			s.set[at] = rules
		}
	}
	s.common = newRuleset(s.inForce("", "", nil))
	return s
}

// inForce are the rules for a key, or for an owner where the key is empty.
func (s *space) inForce(owner, key string, resources []string) []domain.AlertInForce {
	return domain.AlertsFor(s.keyspace.Document, owner, key, resources, func(owner, key, resource string) []domain.AlertRule {
		return s.set[place{s.keyspace.Document.Keyspace, owner, key, resource}]
	})
}

// of are the rules for a key, or for an owner's pool where the key is nil.
func (s *space) of(owner string, k *domain.Key) *ruleset {
	if len(s.set) == 0 {
		return s.common
	}
	id := s.keyspace.Document.Keyspace
	var key string
	var resources []string
	var mark strings.Builder
	if _, ok := s.set[place{id, owner, "", ""}]; ok {
		mark.WriteString("o" + owner)
	}
	if k != nil {
		if _, ok := s.set[place{id, owner, k.ID, ""}]; ok {
			key = k.ID
			mark.WriteString(" k" + key)
		}
		for _, r := range k.Resources {
			if _, ok := s.set[place{id, "", "", r}]; ok {
				resources = append(resources, r)
				mark.WriteString(" r" + r)
			}
		}
	}
	if mark.Len() == 0 {
		return s.common
	}
	rs := s.special[mark.String()]
	if rs == nil {
		rs = newRuleset(s.inForce(owner, key, resources))
		s.special[mark.String()] = rs
	}
	return rs
}

// longest is how far back the widest window reaches, in milliseconds.
func (s *ruleset) longest() (most int64) {
	for _, sp := range s.specs {
		most = max(most, sp.width*sp.keep)
	}
	return most
}

func sortedSpecs(sets ...*ruleset) (list []spec) {
	for _, s := range sets {
		list = append(list, s.specs...)
	}
	slices.SortFunc(list, func(a, b spec) int { return cmp.Or(cmp.Compare(a.width, b.width), cmp.Compare(a.keep, b.keep)) })
	return slices.CompactFunc(list, func(a, b spec) bool { return a.width == b.width && a.keep == b.keep })
}
