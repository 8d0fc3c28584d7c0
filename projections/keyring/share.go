package keyring

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// shared keeps one copy of what many keys have alike: with a million keys it
// is what decides how much memory they take. It forgets everything from time to
// time, so that what no key has any more can go.
type shared struct {
	texts  map[string]string
	lists  map[string][]string
	limits map[string]events.Limits
	grants map[string]*domain.Grant
	last   *domain.Grant // keys that are alike are often made one after the other
}

const sharedMost = 1 << 16

// grant returns a grant equal to g whose parts are shared.
func (s *shared) grant(g *domain.Grant) *domain.Grant {
	if s.last == nil || !equal(s.last, g) {
		s.last = s.find(g)
	}
	return s.last
}

func equal(a, b *domain.Grant) bool {
	return a.Keyspace == b.Keyspace && a.Owner == b.Owner && a.Environment == b.Environment && a.Plan == b.Plan &&
		a.CreatedBy == b.CreatedBy && a.Role == b.Role && (a.For == b.For || a.For != nil && b.For != nil && *a.For == *b.For) &&
		slices.Equal(a.Scopes, b.Scopes) && slices.Equal(a.Resources, b.Resources) &&
		(a.Limits == nil) == (b.Limits == nil) && maps.Equal(a.Limits, b.Limits) && // no limits of its own is not the same as none at all
		slices.Equal(a.AllowedOrigins, b.AllowedOrigins) && slices.Equal(a.AllowedIPs, b.AllowedIPs)
}

func (s *shared) find(g *domain.Grant) *domain.Grant {
	if s.grants == nil || len(s.grants) >= sharedMost || len(s.lists) >= sharedMost || len(s.texts) >= sharedMost {
		*s = shared{texts: map[string]string{}, lists: map[string][]string{}, limits: map[string]events.Limits{}, grants: map[string]*domain.Grant{}}
	}
	b := make([]byte, 0, 256)
	for _, t := range []string{g.Keyspace, g.Owner, g.Environment, g.Plan, g.CreatedBy.Type, g.CreatedBy.ID, g.Role} {
		b = put(b, t)
	}
	for _, list := range [][]string{g.Scopes, g.Resources, g.AllowedOrigins, g.AllowedIPs} {
		b = putList(b, list)
	}
	if g.For != nil {
		b = put(put(b, g.For.Keyspace), g.For.Owner)
	}
	limits := limitsKey(g.Limits)
	key := string(b) + limits
	if old := s.grants[key]; old != nil {
		return old
	}
	pack(&g.Owner, &g.Role)
	g.Resources = cloned(g.Resources)
	if g.For != nil {
		g.For = new(*g.For)
		pack(&g.For.Keyspace, &g.For.Owner)
	}
	for _, t := range []*string{&g.Keyspace, &g.Environment, &g.Plan, &g.CreatedBy.Type, &g.CreatedBy.ID} {
		*t = s.text(*t)
	}
	for _, list := range []*[]string{&g.Scopes, &g.AllowedOrigins, &g.AllowedIPs} {
		*list = s.list(*list)
	}
	if g.Limits != nil {
		if old, ok := s.limits[limits]; ok {
			g.Limits = old
		} else {
			own := make(events.Limits, len(g.Limits))
			for window, n := range g.Limits {
				own[strings.Clone(window)] = n
			}
			g.Limits, s.limits[limits] = own, own
		}
	}
	s.grants[key] = g
	return g
}

func (s *shared) text(t string) string {
	if old, ok := s.texts[t]; ok {
		return old
	}
	t = strings.Clone(t)
	s.texts[t] = t
	return t
}

func (s *shared) list(list []string) []string {
	if len(list) == 0 {
		return list
	}
	key := string(putList(nil, list))
	if old, ok := s.lists[key]; ok {
		return old
	}
	list = cloned(list)
	s.lists[key] = list
	return list
}

// The strings of a record are parts of its body. What the ring keeps of it is
// copied, by the functions that follow or by pack, so that no body is kept.

func cloned(list []string) []string {
	list = slices.Clone(list)
	for i, t := range list {
		list[i] = strings.Clone(t)
	}
	return list
}

// own makes what few keys have independent of the record it came with.
func own(m *domain.More) {
	m.RevokeReason = strings.Clone(m.RevokeReason)
	if m.Meta != nil {
		meta := make(map[string]string, len(m.Meta))
		for name, value := range m.Meta {
			meta[strings.Clone(name)] = strings.Clone(value)
		}
		m.Meta = meta
	}
}

// limitsKey writes limits so that different ones differ. Sorting their names
// would cost more than all else that is done with a key here.
func limitsKey(l events.Limits) string {
	if l == nil {
		return ""
	}
	var room [96]byte
	b := append(room[:0], '{')
	known := 0
	for _, window := range domain.Windows {
		if n, ok := l[window]; ok {
			b = strconv.AppendInt(put(b, window), n, 10)
			known++
		}
	}
	if known < len(l) { // what no document allows, appended by hand
		for _, window := range slices.Sorted(maps.Keys(l)) {
			b = strconv.AppendInt(put(b, window), l[window], 10)
		}
	}
	return string(b)
}

// put appends a text so that no two rows of texts look the same.
func put(b []byte, t string) []byte {
	b = strconv.AppendInt(b, int64(len(t)), 10)
	return append(append(b, ':'), t...)
}

func putList(b []byte, list []string) []byte {
	b = append(strconv.AppendInt(b, int64(len(list)), 10), '[')
	for _, t := range list {
		b = put(b, t)
	}
	return b
}

// pack lays strings into one allocation.
func pack(texts ...*string) {
	n := 0
	for _, t := range texts {
		n += len(*t)
	}
	var b strings.Builder
	b.Grow(n)
	for _, t := range texts {
		b.WriteString(*t)
	}
	all := b.String()
	for _, t := range texts {
		*t, all = all[:len(*t)], all[len(*t):]
	}
}
