package alerts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
)

// sighting is a use of a key from an address that nobody has looked at yet.
type sighting struct {
	keyspace, key string
	ip            *events.Sealed
	at            int64
	sequence      uint64
}

// newcomer is an address that a key was never used from.
type newcomer struct {
	ip *events.Sealed
	at int64
}

const (
	// Addresses that are remembered, of one key and of all; what is not is looked up.
	mostAddresses = 1000
	mostKnown     = 1 << 21

	// mostSightings wait at most; who counts waits for room.
	mostSightings = 100_000

	// mostReads is how many messages are read to find out whether a key was used from
	// an address: beyond, it is taken to have been, and nobody is told.
	mostReads = 300

	// Sightings up to a place in USAGE are settled: it is kept so often, under this
	// name, and at most so many messages behind it are read again.
	keptEvery = 5 * time.Second
	keptName  = "alerts.sources"
	mostBack  = 200_000
)

// sources finds addresses that are new, in order.
type sources struct {
	*Engine
	known map[string][]uint64 // by key: the keyed hashes of addresses, the newest last
	total int
}

// followSources judges what apply has seen.
func (e *Engine) followSources(ctx context.Context) error {
	s := &sources{Engine: e, known: map[string][]uint64{}}
	kept := time.NewTicker(keptEvery)
	defer kept.Stop()
	var list []sighting
	for {
		e.mu.Lock()
		list, e.sightings = e.sightings, list[:0]
		settled := e.at // all up to here is in list, or was
		e.mu.Unlock()
		select {
		case e.room <- struct{}{}:
		default:
		}
		for i := range list {
			if err := s.judge(ctx, &list[i]); err != nil {
				return err
			}
		}
		clear(list)
		e.mu.Lock()
		if len(e.fresh) == 0 && settled > e.settled { // else something has yet to be told
			e.settled = settled
		}
		e.mu.Unlock()
		select {
		case <-kept.C:
			e.keep(ctx)
		case <-e.seen:
		case <-ctx.Done():
			keeping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			e.keep(keeping)
			cancel()
			return ctx.Err()
		}
	}
}

// keep remembers up to where sightings are settled. Losing it loses what came while
// no process did this.
func (e *Engine) keep(ctx context.Context) {
	if e.Keep == nil || e.settled == e.keptAt {
		return
	}
	if _, err := e.Keep.Put(ctx, keptName, strconv.AppendUint(nil, e.settled, 10)); err == nil {
		e.keptAt = e.settled
	}
}

// back is from where USAGE is read again for sightings, when it is counted up to at.
func (e *Engine) back(ctx context.Context, at uint64) uint64 {
	if e.Keep == nil {
		return at
	}
	v, err := e.Keep.Get(ctx, keptName)
	if err != nil {
		_, _ = e.Keep.Put(ctx, keptName, strconv.AppendUint(nil, at, 10))
		return at
	}
	n, err := strconv.ParseUint(string(v.Value()), 10, 64)
	if err != nil || n > at {
		return at
	}
	if at-n > mostBack {
		e.Log.Warn("alerts: new addresses are looked for in the newest uses alone", "from", at-mostBack, "settled", n)
		n = at - mostBack
	}
	if first, err := e.Ledger.First(ctx, events.Usage); err == nil && n+1 < first {
		n = first - 1
	}
	return n
}

// sight notes a use of a key for whose rules it matters. e.mu is held.
func (e *Engine) sight(r *events.Record) {
	d, ok := r.Event.Data.(events.KeyUsed)
	if !ok || d.SourceIP == nil || e.Seal == nil {
		return
	}
	space := e.spaces[r.Event.Keyspace]
	if space == nil || len(space.set) == 0 && space.common.source == nil {
		return
	}
	var id string
	if t := e.keys[r.Event.Key]; t != nil {
		if t.rules.source == nil {
			return
		}
		id = t.id
	} else {
		k := e.Ring.Key(r.Event.Key)
		if k == nil || space.of(k.Owner, k).source == nil {
			return
		}
		id = k.ID
	}
	e.sightings = append(e.sightings, sighting{space.keyspace.Document.Keyspace, id, d.SourceIP, int64(r.Event.Time), r.Sequence})
}

func (s *sources) judge(ctx context.Context, x *sighting) error {
	plain, err := s.Seal.Open(ctx, x.ip)
	switch {
	case errors.Is(err, seal.ErrErased), errors.Is(err, seal.ErrTampered):
		return nil // nobody knows it
	case err != nil:
		return fmt.Errorf("open an address: %w", err)
	}
	address := projections.Address(plain)
	hash := s.Seal.Blind(x.keyspace, address)
	if slices.Contains(s.known[x.key], hash) {
		return nil
	}
	first := len(s.known[x.key]) == 0
	if x.sequence > 1 {
		for _, index := range []string{projections.Uses{}.Name(), projections.Addresses{}.Name()} {
			waiting, cancel := context.WithTimeout(ctx, foldWithin)
			err := s.Runner.Wait(waiting, index, x.sequence-1)
			cancel()
			if err != nil {
				return fmt.Errorf("wait for %s: %w", index, err)
			}
		}
		before, err := s.usedFrom(ctx, x, address)
		if err == nil && !before && first {
			var ever bool
			ever, err = s.usedFrom(ctx, x, "")
			first = !ever
		}
		if err != nil {
			return err
		}
		first = first || before
	}
	s.remember(x.key, hash)
	if first {
		return nil
	}
	s.mu.Lock()
	s.fresh[x.key] = &newcomer{x.ip, x.at}
	s.mu.Unlock()
	return nil
}

func (s *sources) remember(key string, hash uint64) {
	if s.total >= mostKnown {
		clear(s.known)
		s.total = 0
	}
	list := s.known[key]
	if len(list) >= mostAddresses {
		list = append(list[:0], list[len(list)/2:]...)
		s.total -= mostAddresses / 2
	}
	s.known[key] = append(list, hash)
	s.total++
}

// usedFrom says whether a key was used from an address before a sighting; from any that
// can still be opened where the address is empty.
func (s *sources) usedFrom(ctx context.Context, x *sighting, address string) (bool, error) {
	var places map[uint64]bool // of the address; nil: any
	if address != "" {
		places = map[uint64]bool{}
		for from, last := uint64(1), false; !last && from < x.sequence; {
			l, err := s.index.Locate(ctx, projections.Wanted{Keyspace: x.keyspace, IP: address}, from)
			if err != nil {
				return false, err
			}
			for _, at := range l.Sequences {
				if at < x.sequence {
					places[at] = true
				}
			}
			from, last = l.Through+1, l.Last || l.Through == 0
		}
		if len(places) == 0 {
			return false, nil
		}
	}
	reads := 0
	for from, last := uint64(1), false; !last && from < x.sequence; {
		l, err := s.index.Locate(ctx, projections.Wanted{Keyspace: x.keyspace, Key: x.key}, from)
		if err != nil {
			return false, err
		}
		for _, at := range l.Sequences {
			if at >= x.sequence || places != nil && !places[at] {
				continue
			}
			if reads++; reads > mostReads {
				return address != "", nil
			}
			there, err := s.reads(ctx, at, x.key, address)
			if there || err != nil {
				return there, err
			}
		}
		from, last = l.Through+1, l.Last || l.Through == 0
	}
	return false, nil
}

// reads looks into a message for a use of a key from an address, or any where that is empty.
func (s *sources) reads(ctx context.Context, sequence uint64, key, address string) (bool, error) {
	records, err := s.Ledger.At(ctx, events.Usage, sequence)
	if err != nil {
		return false, err
	}
	for i := range records {
		d, ok := records[i].Event.Data.(events.KeyUsed)
		if !ok || records[i].Event.Key != key || d.SourceIP == nil {
			continue
		}
		plain, err := s.Seal.Open(ctx, d.SourceIP)
		if err == nil && (address == "" || projections.Address(plain) == address) {
			return true, nil
		}
		if err != nil && !errors.Is(err, seal.ErrErased) && !errors.Is(err, seal.ErrTampered) {
			return false, fmt.Errorf("open an address: %w", err)
		}
	}
	return false, nil
}

// lookAtNewcomers raises what is new. e.mu is held.
func (e *Engine) lookAtNewcomers(now int64) {
	for key, n := range e.fresh {
		k := e.Ring.Key(key)
		if k == nil || k.Revoked() || e.spaces[k.Keyspace] == nil {
			delete(e.fresh, key)
			continue
		}
		r := e.spaces[k.Keyspace].of(k.Owner, k).source
		if r == nil {
			delete(e.fresh, key)
			continue
		}
		s := subject{k.Keyspace, k.Owner, k.ID, r.name}
		if ep := e.book.episode(s); ep != nil && ep.raised {
			ep.seen = now
			delete(e.fresh, key)
			continue
		}
		e.found(s, r, condition{value: 1, holds: true, near: true, ip: n.ip, detail: "used for the first time from an address, at " + events.Time(n.at).String()}, now)
	}
}
