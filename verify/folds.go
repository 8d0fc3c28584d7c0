package verify

import (
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// folds counts refusals, and what other traffic draws, by second, so that an attack writes a bounded number of
// facts and every refusal is still counted. The counts are exact; what is given
// up when there is too much of it is the detail: past maxEndpoints endpoints in a
// second a key's refusals are counted without the endpoint, past maxSources
// sources those without a known key are counted as overflow, one count per
// keyspace and code.
//
// Memory is bounded by two seconds of the caps plus a few entries for every known
// key that was refused in them, and every owner.
type folds struct {
	node string
	emit func(events.Envelope)

	// log, where there is one, has every count before the request is answered,
	// and then the facts go to kept with it.
	log  *wal.Log
	kept func(events.Envelope, *wal.Tally)

	// mu guards seconds, of which there are two at most but for clock steps.
	mu      sync.Mutex
	seconds map[int64]*second // by Unix time
}

type second struct {
	denied    map[deniedAs]*count
	limited   map[limitedAs]*count
	rejected  map[rejectedAs]*count
	taken     map[takenAs]*count
	endpoints int
	sources   int
}

// count is what one fact will say.
type count struct {
	events.Fold
	keyspace, owner string
	limit           int64 // of a key.rate_limited
	id              string
	tally           *wal.Tally
}

type deniedAs struct {
	key      string
	code     domain.Code
	endpoint string
}

type limitedAs struct{ key, window string }

// takenAs is an owner's pool, which other traffic drew from.
type takenAs struct{ keyspace, owner string }

type rejectedAs struct {
	keyspace string
	code     domain.Code
	source   netip.Addr // of /64 for IPv6; invalid where it is not known
	overflow bool
}

const (
	maxEndpoints = 1024
	maxSources   = 100
	maxEndpoint  = 1024 // bytes of an endpoint that are kept
)

func newFolds(node string, emit func(events.Envelope)) *folds {
	return &folds{node: node, emit: emit, seconds: make(map[int64]*second)}
}

func (f *folds) at(now time.Time) *second {
	s := f.seconds[now.Unix()]
	if s == nil {
		s = &second{
			denied: make(map[deniedAs]*count), limited: make(map[limitedAs]*count),
			rejected: make(map[rejectedAs]*count), taken: make(map[takenAs]*count),
		}
		f.seconds[now.Unix()] = s
	}
	return s
}

// deny counts a refused request of a known key.
func (f *folds) deny(key *domain.Key, code domain.Code, path string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := deniedAs{key.ID, code, endpoint(path)}
	d := s.denied[as]
	if d == nil && s.endpoints >= maxEndpoints {
		as.endpoint = ""
		d = s.denied[as]
	}
	if d == nil {
		// A part of the request's text would keep all of it in memory, and a
		// request line may have a megabyte.
		as.endpoint = strings.Clone(as.endpoint)
		d = &count{keyspace: key.Keyspace, owner: key.Owner}
		s.denied[as] = d
		s.endpoints++
		f.begin(d, as.event(d, f.node, now))
	}
	d.add(1, now)
}

// limit counts a request that a key's limit refused.
func (f *folds) limit(key *domain.Key, by *Limit, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := limitedAs{key.ID, by.Window}
	l := s.limited[as]
	if l == nil {
		l = &count{keyspace: key.Keyspace, owner: key.Owner}
		s.limited[as] = l
		f.begin(l, as.event(l, f.node, now))
	}
	l.limit = by.Limit
	l.add(1, now)
}

// take counts n requests of other traffic that drew from an owner's pool.
func (f *folds) take(owner *domain.Owner, n int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := takenAs{owner.Keyspace, owner.ID}
	t := s.taken[as]
	if t == nil {
		t = &count{keyspace: owner.Keyspace, owner: owner.ID}
		s.taken[as] = t
		f.begin(t, as.event(t, f.node, now))
	}
	t.add(n, now)
}

// reject counts a request without a known key.
func (f *folds) reject(keyspace string, code domain.Code, source netip.Addr, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := rejectedAs{keyspace: keyspace, code: code, source: network(source)}
	r := s.rejected[as]
	if r == nil && s.sources >= maxSources {
		as = rejectedAs{keyspace: keyspace, code: code, overflow: true}
		r = s.rejected[as]
	}
	if r == nil {
		as.keyspace = strings.Clone(keyspace) // as above: it may be a part of a body
		r = &count{keyspace: as.keyspace}
		s.rejected[as] = r
		if !as.overflow {
			s.sources++
		}
		f.begin(r, as.event(r, f.node, now))
	}
	r.add(1, now)
}

// begin puts a fact into the log that counts nothing yet. Its id stays, so that
// whoever finds it there can tell whether it was written. mu is held.
func (f *folds) begin(c *count, e events.Envelope) {
	c.id = e.ID
	if f.log != nil {
		b := f.log.Buffer()
		b.Plain = keep(b.Plain, e)
		c.tally = f.log.Tally(b)
	}
}

func (c *count) add(n int64, now time.Time) {
	at := events.At(now)
	c.Count += n
	if c.First == 0 || at < c.First {
		c.First = at
	}
	c.Last = max(c.Last, at)
	c.tally.Set(c.Count, int64(c.First), int64(c.Last), c.limit)
}

// network is the address as it is folded: IPv6 by /64, because whoever has one
// address of that has all of it.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// flush emits the seconds before a moment.
func (f *folds) flush(before time.Time) {
	f.mu.Lock()
	var over []*second
	for at, s := range f.seconds {
		if at < before.Unix() {
			over = append(over, s)
			delete(f.seconds, at)
		}
	}
	f.mu.Unlock()
	now := time.Now()
	for _, s := range over {
		for as, c := range s.denied {
			f.write(c, as.event(c, f.node, now))
		}
		for as, c := range s.limited {
			f.write(c, as.event(c, f.node, now))
		}
		for as, c := range s.taken {
			f.write(c, as.event(c, f.node, now))
		}
		for as, c := range s.rejected {
			f.write(c, as.event(c, f.node, now))
		}
	}
}

func (f *folds) write(c *count, e events.Envelope) {
	e.ID = c.id
	if c.tally != nil {
		f.kept(e, c.tally)
	} else {
		f.emit(e)
	}
}

func (c *count) event(data events.Payload, key string, now time.Time) events.Envelope {
	e := events.New(data, now)
	e.Keyspace, e.Owner, e.Key = c.keyspace, c.owner, key
	return e
}

func (as deniedAs) event(c *count, node string, now time.Time) events.Envelope {
	return c.event(events.KeyDenied{Code: string(as.code), Endpoint: as.endpoint, Node: node, Fold: c.Fold}, as.key, now)
}

func (as limitedAs) event(c *count, node string, now time.Time) events.Envelope {
	return c.event(events.KeyRateLimited{Window: as.window, Limit: c.limit, Node: node, Fold: c.Fold}, as.key, now)
}

func (as takenAs) event(c *count, node string, now time.Time) events.Envelope {
	return c.event(events.LimitTaken{Node: node, Fold: c.Fold}, "", now)
}

func (as rejectedAs) event(c *count, node string, now time.Time) events.Envelope {
	return c.event(seal.Rejected{
		CredentialRejected: events.CredentialRejected{Code: string(as.code), Overflow: as.overflow, Node: node, Fold: c.Fold},
		ClearIP:            sourceText(as.source),
	}, "", now)
}

func sourceText(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Is6():
		return a.String() + "/64"
	}
	return a.String()
}

// endpoint is the path of a request as it is recorded: without its query, of
// bounded length, and text whatever the caller sent.
func endpoint(path string) string {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	if len(path) > maxEndpoint {
		cut := maxEndpoint
		for cut > maxEndpoint-utf8.UTFMax && !utf8.RuneStart(path[cut]) {
			cut--
		}
		path = path[:cut]
	}
	if !utf8.ValidString(path) {
		return strings.ToValidUTF8(path, "\uFFFD")
	}
	return path
}
