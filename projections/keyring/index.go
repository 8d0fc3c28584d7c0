package keyring

import (
	"sync/atomic"

	"github.com/keyledger/keyledger/domain"
)

// With a million keys a request pays for every cache line that is looked at on
// the way to its key, and for every lock, which waits for the lines before it. So
// entries lie in rows of their own and have numbers, and an index is a table of
// eight bytes for each key: one line of it, then the entry.

// entry is half a cache line: what leads to all that a decision reads.
type entry struct {
	key    atomic.Pointer[domain.Key]
	owner  *ownerEntry  // of the key; set before anybody can find the entry
	beside atomic.Value // see Found
}

// entries are all of them, by their numbers. One goroutine adds; none is ever
// taken out.
type entries struct {
	rows atomic.Pointer[[]*[rowLength]entry]
	n    uint32
}

const rowLength = 1024

func (s *entries) add(owner *ownerEntry, key *domain.Key) (number uint32, at *entry) {
	number = s.n
	if number%rowLength == 0 {
		var rows []*[rowLength]entry
		if old := s.rows.Load(); old != nil {
			rows = *old
		}
		rows = append(rows, new([rowLength]entry)) // readers of a shorter list see no more than it
		s.rows.Store(&rows)
	}
	s.n++
	at = s.at(number)
	at.owner = owner
	at.key.Store(key)
	return number, at
}

func (s *entries) at(number uint32) *entry {
	return &(*s.rows.Load())[number/rowLength][number%rowLength]
}

// index is the numbers of entries by a hash, in parts that grow by themselves, so
// that none of them keeps the fold for long. One goroutine adds; readers take no
// lock. Entries whose hashes are alike follow one another, and whoever searches
// says which is meant.
type index struct {
	entries *entries
	parts   [64]part
}

// part is a table with open addresses. A place holds the lower half of a hash,
// which is also where it begins to look for room, above the entry's number plus
// one; 0 is an empty place, and at least a quarter of them are.
type part struct {
	places atomic.Pointer[[]atomic.Uint64] // as many as a power of two
	n      int
}

// table is where the entries with a hash are, as it is now.
func (x *index) table(hash uint64) []atomic.Uint64 {
	if table := x.parts[hash>>58].places.Load(); table != nil {
		return *table
	}
	return nil
}

// next is the next entry in a table whose hash is alike, or nil, its number, and
// where to go on; the first search begins at the hash. It is no iterator, and has
// no state of its own, because a decision would feel either.
func (x *index) next(table []atomic.Uint64, hash uint64, i uint32) (at *entry, number, after uint32) {
	for len(table) > 0 {
		place := table[i&uint32(len(table)-1)].Load()
		if place == 0 {
			break
		}
		i++
		if uint32(place>>32) == uint32(hash) {
			number = uint32(place) - 1
			return x.entries.at(number), number, i
		}
	}
	return nil, 0, i
}

// add makes an entry, which has its key already, be found by a hash.
func (x *index) add(hash uint64, number uint32) {
	p := &x.parts[hash>>58]
	var places []atomic.Uint64
	if old := p.places.Load(); old != nil {
		places = *old
	}
	if 4*(p.n+1) > 3*len(places) {
		larger := make([]atomic.Uint64, max(8, 2*len(places)))
		for i := range places {
			if place := places[i].Load(); place != 0 {
				seat(larger, place)
			}
		}
		seat(larger, hash<<32|uint64(number+1))
		p.places.Store(&larger)
	} else {
		seat(places, hash<<32|uint64(number+1))
	}
	p.n++
}

// seat puts a place where the search for its hash comes by.
func seat(places []atomic.Uint64, place uint64) {
	i := uint32(place >> 32)
	for places[i&uint32(len(places)-1)].Load() != 0 {
		i++
	}
	places[i&uint32(len(places)-1)].Store(place)
}
