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

	// mu guards seconds, of which there are two at most but for clock steps.
	mu      sync.Mutex
	seconds map[int64]*second // by Unix time
}

type second struct {
	denied    map[deniedAs]*denied
	limited   map[limitedAs]*limited
	rejected  map[rejectedAs]*events.Fold
	taken     map[takenAs]*events.Fold
	endpoints int
	sources   int
}

type deniedAs struct {
	key      string
	code     domain.Code
	endpoint string
}

type denied struct {
	keyspace, owner string
	events.Fold
}

type limitedAs struct{ key, window string }

type limited struct {
	keyspace, owner string
	limit           int64
	events.Fold
}

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
			denied: make(map[deniedAs]*denied), limited: make(map[limitedAs]*limited),
			rejected: make(map[rejectedAs]*events.Fold), taken: make(map[takenAs]*events.Fold),
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
		d = &denied{keyspace: key.Keyspace, owner: key.Owner}
		s.denied[as] = d
		s.endpoints++
	}
	add(&d.Fold, 1, now)
}

// limit counts a request that a key's limit refused.
func (f *folds) limit(key *domain.Key, by *Limit, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := limitedAs{key.ID, by.Window}
	l := s.limited[as]
	if l == nil {
		l = &limited{keyspace: key.Keyspace, owner: key.Owner}
		s.limited[as] = l
	}
	l.limit = by.Limit
	add(&l.Fold, 1, now)
}

// take counts n requests of other traffic that drew from an owner's pool.
func (f *folds) take(owner *domain.Owner, n int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := takenAs{owner.Keyspace, owner.ID}
	if s.taken[as] == nil {
		s.taken[as] = new(events.Fold)
	}
	add(s.taken[as], n, now)
}

// reject counts a request without a known key.
func (f *folds) reject(keyspace string, code domain.Code, source netip.Addr, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.at(now)
	as := rejectedAs{keyspace: keyspace, code: code, source: network(source)}
	fold := s.rejected[as]
	if fold == nil && s.sources >= maxSources {
		as = rejectedAs{keyspace: keyspace, code: code, overflow: true}
		fold = s.rejected[as]
	}
	if fold == nil {
		as.keyspace = strings.Clone(keyspace) // as above: it may be a part of a body
		fold = new(events.Fold)
		s.rejected[as] = fold
		if !as.overflow {
			s.sources++
		}
	}
	add(fold, 1, now)
}

func add(f *events.Fold, n int64, now time.Time) {
	at := events.At(now)
	f.Count += n
	if f.First == 0 || at < f.First {
		f.First = at
	}
	f.Last = max(f.Last, at)
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
		for as, d := range s.denied {
			e := events.New(events.KeyDenied{Code: string(as.code), Endpoint: as.endpoint, Node: f.node, Fold: d.Fold}, now)
			e.Keyspace, e.Owner, e.Key = d.keyspace, d.owner, as.key
			f.emit(e)
		}
		for as, l := range s.limited {
			e := events.New(events.KeyRateLimited{Window: as.window, Limit: l.limit, Node: f.node, Fold: l.Fold}, now)
			e.Keyspace, e.Owner, e.Key = l.keyspace, l.owner, as.key
			f.emit(e)
		}
		for as, fold := range s.taken {
			e := events.New(events.LimitTaken{Node: f.node, Fold: *fold}, now)
			e.Keyspace, e.Owner = as.keyspace, as.owner
			f.emit(e)
		}
		for as, fold := range s.rejected {
			data := events.CredentialRejected{Code: string(as.code), Overflow: as.overflow, Node: f.node, Fold: *fold}
			e := events.New(data, now)
			e.Keyspace = as.keyspace
			e.Data = seal.Rejected{CredentialRejected: data, ClearIP: sourceText(as.source)}
			f.emit(e)
		}
	}
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
