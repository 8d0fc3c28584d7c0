package alerts

import (
	"slices"
	"time"
)

// kind is what is counted of a key's requests.
type kind int

const (
	used    kind = iota // admitted
	known               // admitted, with an outcome that is known
	failed              // of known, answered with 400 or above
	denied              // refused for another reason than a limit
	cost                // micros
	refused             // by a limit
	kinds
)

// spec is one thing that is counted: in buckets of a width, of which the newest few
// are kept.
type spec struct {
	kind  kind
	width int64 // milliseconds
	keep  int64 // buckets, the one that is under way included
}

// window is what is counted for a rule over a time in milliseconds: in twentieths, of
// which the oldest leaves early, so that a window never counts more than what happened in
// it; whole days in twenty-fourths, which the read model has.
func window(k kind, over int64) spec {
	parts := int64(20)
	if over%(24*time.Hour.Milliseconds()) == 0 {
		parts = 24
	}
	return spec{k, max(over/parts, 1), parts}
}

// bucket is a count; those without one are not there.
type bucket struct{ index, n int64 }

// series are the buckets of a spec, oldest first. The zero value is empty.
type series []bucket

// add counts n at a moment in milliseconds. What is older than all that is kept is
// dropped.
func (s *series) add(sp spec, at, n int64) {
	b := *s
	index := at / sp.width
	if last := len(b) - 1; last >= 0 && b[last].index == index {
		b[last].n += n
		return
	} else if last >= 0 && b[last].index > index {
		i, there := slices.BinarySearchFunc(b, index, func(b bucket, index int64) int { return int(b.index - index) })
		switch {
		case there:
			b[i].n += n
		case index > b[last].index-sp.keep:
			*s = slices.Insert(b, i, bucket{index, n})
		}
		return
	}
	gone := 0
	for gone < len(b) && b[gone].index <= index-sp.keep {
		gone++
	}
	if gone > 0 {
		b = b[:copy(b, b[gone:])]
	}
	*s = append(b, bucket{index, n})
}

// sum is what was counted in the window that ends at a moment.
func (s series) sum(sp spec, now int64) (n int64) {
	oldest := now/sp.width - sp.keep
	for i := len(s) - 1; i >= 0 && s[i].index > oldest; i-- {
		n += s[i].n
	}
	return n
}

// of is the count of one bucket.
func (s series) of(index int64) int64 {
	for i := len(s) - 1; i >= 0 && s[i].index >= index; i-- {
		if s[i].index == index {
			return s[i].n
		}
	}
	return 0
}
