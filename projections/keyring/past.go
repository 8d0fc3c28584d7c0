package keyring

import (
	"iter"
	"slices"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Block is how many sequences of LEDGER [Ring.BlockAt] knows together. The time
// of each fact would cost more memory than it is worth: a block is read in
// milliseconds.
const Block = 256

// times are the least and the greatest time of the facts in each block. Nodes'
// clocks differ, so the times of facts do not rise with their sequences.
type times []struct{ least, most events.Time }

func (t *times) add(sequence uint64, at events.Time) {
	if sequence == 0 {
		return // no fact of a stream has it
	}
	i := (sequence - 1) / Block
	for uint64(len(*t)) <= i {
		// A block that was never reached holds nothing: no time is at most its least.
		*t = append(*t, struct{ least, most events.Time }{1<<63 - 1, -1 << 63})
	}
	b := &(*t)[i]
	b.least, b.most = min(b.least, at), max(b.most, at)
}

// BlockAt are the sequences among which the last applied fact stands whose time
// is not after a moment: every later fact has a later time. It is not ok where
// there is no such fact.
func (r *Ring) BlockAt(at events.Time) (first, last uint64, ok bool) {
	r.deciding.RLock()
	defer r.deciding.RUnlock()
	for i := len(r.times) - 1; i >= 0; i-- {
		if r.times[i].least <= at {
			first = uint64(i)*Block + 1
			return first, min(first+Block-1, r.applied), true
		}
	}
	return 0, 0, false
}

// LatestTo is a time that no fact up to a sequence is later than.
func (r *Ring) LatestTo(sequence uint64) events.Time {
	r.deciding.RLock()
	defer r.deciding.RUnlock()
	latest := events.Time(-1 << 63)
	for i := range r.times {
		if uint64(i)*Block >= sequence {
			break
		}
		latest = max(latest, r.times[i].most)
	}
	return latest
}

// All are the keys of a keyspace and, unless it is empty, an owner, in order of
// creation, deleted ones included. An empty keyspace is every one but that of root keys.
func (r *Ring) All(keyspace, owner string) iter.Seq[*domain.Key] {
	return func(yield func(*domain.Key) bool) {
		emit := func(k *domain.Key) bool {
			if keyspace == "" && k.Keyspace == events.RootKeyspace || keyspace != "" && k.Keyspace != keyspace || owner != "" && k.Owner != owner {
				return true
			}
			return yield(k)
		}
		if keyspace != "" && owner != "" {
			for k := range r.Keys(keyspace, owner) {
				if !emit(k) {
					return
				}
			}
			return
		}
		rows := r.entries.rows.Load()
		if rows == nil {
			return
		}
		for _, row := range *rows {
			for i := range row {
				// Entries are added in order: behind the last one there is none.
				k := row[i].key.Load()
				if k == nil || !emit(k) {
					return
				}
			}
		}
	}
}

// Newest are the keys that [Ring.All] has, in the opposite order.
func (r *Ring) Newest(keyspace, owner string) iter.Seq[*domain.Key] {
	return func(yield func(*domain.Key) bool) {
		if keyspace != "" && owner != "" {
			o := r.findOwner(keyspace, owner)
			if o == nil {
				return
			}
			o.mu.Lock()
			keys := o.keys[:len(o.keys):len(o.keys)]
			o.mu.Unlock()
			for _, e := range slices.Backward(keys) {
				if !yield(e.key.Load()) {
					return
				}
			}
			return
		}
		rows := r.entries.rows.Load()
		if rows == nil {
			return
		}
		for _, row := range slices.Backward(*rows) {
			for i := range row {
				k := row[len(row)-1-i].key.Load()
				if k == nil { // behind the last one
					continue
				}
				if keyspace == "" && k.Keyspace == events.RootKeyspace || keyspace != "" && k.Keyspace != keyspace || owner != "" && k.Owner != owner {
					continue
				}
				if !yield(k) {
					return
				}
			}
		}
	}
}
