package queries

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Leak is what a leaked secret could do, and did.
type Leak struct {
	Key       KeyView       `json:"key"` // its uses are those of the secret, below
	OwnerName string        `json:"owner_name"`
	Plan      string        `json:"plan"`   // in force
	Limits    events.Limits `json:"limits"` // in force
	Secret    LeakedSecret  `json:"secret"`
	Uses      LeakedUses    `json:"uses"`
	Refused   []RefusedSum  `json:"refused"` // of the key since the secret was made: which secret was sent is not recorded
	Revoke    string        `json:"revoke"`  // the command that refuses the key for ever
}

// LeakedSecret says which of a key's secrets it is.
type LeakedSecret struct {
	Which  string      `json:"which"` // current, previous (in its grace), superseded
	Works  bool        `json:"works"` // with this key as it is now
	MadeAt events.Time `json:"made_at"`
	EndsAt events.Time `json:"ends_at"` // of one that was rotated away; null: with the key
}

// LeakedUses are the admitted requests with the secret.
type LeakedUses struct {
	Count     int64           `json:"count"`
	Possible  int64           `json:"possible"` // besides: several previous secrets worked, and which one it was is not recorded
	First     events.Time     `json:"first"`
	Last      events.Time     `json:"last"`
	Endpoints []EndpointCount `json:"endpoints"` // the most frequent
	Others    int             `json:"others"`    // endpoints that are not listed
	IPs       []AddressCount  `json:"ips"`       // the most frequent; empty for whoever may not see them
	OtherIPs  int             `json:"other_ips"`
	Unknown   int64           `json:"unknown_ips"` // uses whose address is not known, was erased, or is not shown
}

// AddressCount is how often requests came from an address, and when.
type AddressCount struct {
	IP    string      `json:"ip"`
	Count int64       `json:"count"`
	First events.Time `json:"first"`
	Last  events.Time `json:"last"`
}

// RefusedSum counts refusals of one kind.
type RefusedSum struct {
	Code  string      `json:"code"`
	Count int64       `json:"count"`
	First events.Time `json:"first"`
	Last  events.Time `json:"last"`
}

// mostAddresses are shown; distinctAddresses are told apart.
const mostAddresses, distinctAddresses = 50, 10_000

// generation is one of the secrets that a key has had.
type generation struct {
	hash  [32]byte
	from  uint64 // the sequence that made it
	made  events.Time
	until events.Time // zero: it is the current one
}

// Leaked says what the secret with this hash, which a key has or had, was used
// for. It reads the key's uses since the secret was made.
func (p *Past) Leaked(ctx context.Context, k *domain.Key, hash [32]byte, o Opener, now time.Time) (*Leak, error) {
	at := events.At(now)
	secrets, err := p.generations(ctx, k)
	if err != nil {
		return nil, err
	}
	which := slices.IndexFunc(secrets, func(g generation) bool { return g.hash == hash })
	if which < 0 {
		return nil, domain.KeyNotFound()
	}
	g := secrets[which]
	l := &Leak{Key: ViewOf(k, now), Limits: events.Limits{}, Refused: []RefusedSum{}, Revoke: "keyledger keys revoke " + k.ID + " --reason leaked"}
	l.Key.UseCount = nil
	l.Secret = LeakedSecret{Which: "current", MadeAt: g.made, EndsAt: g.until}
	if g.until != 0 {
		l.Secret.Which = "previous"
		if g.until <= at {
			l.Secret.Which = "superseded"
		}
	}
	l.Secret.Works = l.Secret.Which != "superseded" && k.Active(at)
	if ks := p.ring.Keyspace(k.Keyspace); ks != nil {
		owner := p.ring.Owner(k.Keyspace, k.Owner)
		l.Plan, _, _ = ks.PlanInForce(k, owner)
		if limits, _ := ks.LimitsFor(k, owner); limits != nil {
			l.Limits = limits
		}
		if owner != nil {
			l.OwnerName = owner.Name
		}
	}
	return l, p.leakedUses(ctx, l, k, secrets, which, o)
}

// generations are a key's secrets, oldest first.
func (p *Past) generations(ctx context.Context, k *domain.Key) (list []generation, err error) {
	var s domain.State
	for r, err := range p.ledger.Read(ctx, events.Ledger, 1, k.Sequence, events.Subject(k.Keyspace, k.Owner, k.ID)) {
		if err != nil {
			return nil, err
		}
		if r.Event.Key != k.ID {
			continue
		}
		was := s.Key
		if s = domain.Evolve(s, r); s.Key != nil && (was == nil || was.Hash != s.Key.Hash) {
			list = append(list, generation{hash: s.Key.Hash, from: r.Sequence, made: r.Event.Time})
		}
	}
	if s.Key != nil && s.Key.More != nil {
		for i, e := range s.Key.Earlier {
			if i < len(list) {
				list[i].until = e.Until
			}
		}
	}
	return list, nil
}

func (p *Past) leakedUses(ctx context.Context, l *Leak, k *domain.Key, secrets []generation, which int, o Opener) error {
	endpoints := map[EndpointCount]int64{}
	addresses := map[string]*AddressCount{}
	refused := map[string]*RefusedSum{}
	refuse := func(code string, f events.Fold) {
		r := refused[code]
		if r == nil {
			r = &RefusedSum{Code: code, First: f.First}
			refused[code] = r
		}
		r.Count, r.First, r.Last = r.Count+f.Count, min(r.First, f.First), max(r.Last, f.Last)
	}
	f := AuditFilter{Keyspace: k.Keyspace, Owner: k.Owner, Key: k.ID, Types: []string{"key.used", "key.denied", "key.rate_limited"}, From: secrets[which].made}
	for e, err := range p.audit().All(ctx, f, o) {
		if err != nil {
			return err
		}
		switch d := e.Event.Data.(type) {
		case events.KeyDenied:
			refuse(d.Code, d.Fold)
		case events.KeyRateLimited:
			refuse(string(domain.CodeRateLimited), d.Fold)
		case events.KeyUsed:
			with, sure := usedWith(secrets, which, &d, e.Event.Time)
			if !with {
				continue
			}
			u := &l.Uses
			if !sure {
				u.Possible++
				continue
			}
			u.Count++
			u.First, u.Last = cmp.Or(min(u.First, e.Event.Time), e.Event.Time), max(u.Last, e.Event.Time)
			at := EndpointCount{Method: d.Method, Endpoint: d.Endpoint}
			if _, ok := endpoints[at]; !ok && len(endpoints) >= distinctEndpoints {
				at = EndpointCount{Endpoint: "…"}
			}
			endpoints[at]++
			if e.SourceIP == "" {
				u.Unknown++
				continue
			}
			a := addresses[e.SourceIP]
			if a == nil {
				if len(addresses) >= distinctAddresses {
					u.OtherIPs++
					continue
				}
				a = &AddressCount{IP: e.SourceIP, First: e.Event.Time}
				addresses[e.SourceIP] = a
			}
			a.Count++
			a.First, a.Last = min(a.First, e.Event.Time), max(a.Last, e.Event.Time)
		}
	}
	l.Uses.Endpoints = topEndpoints(endpoints)
	l.Uses.Others = len(endpoints) - len(l.Uses.Endpoints)
	l.Uses.IPs = []AddressCount{}
	for _, a := range addresses {
		l.Uses.IPs = append(l.Uses.IPs, *a)
	}
	slices.SortFunc(l.Uses.IPs, func(a, b AddressCount) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.IP, b.IP)) })
	if n := len(l.Uses.IPs); n > mostAddresses {
		l.Uses.OtherIPs += n - mostAddresses
		l.Uses.IPs = l.Uses.IPs[:mostAddresses]
	}
	for _, r := range refused {
		l.Refused = append(l.Refused, *r)
	}
	slices.SortFunc(l.Refused, func(a, b RefusedSum) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code)) })
	return nil
}

// usedWith says whether a use was made with one of the key's secrets, and whether
// that is sure: a use says current or previous, and of several previous ones in
// their grace not which.
func usedWith(secrets []generation, which int, d *events.KeyUsed, at events.Time) (with, sure bool) {
	current := 0
	for i, g := range secrets {
		if g.from <= d.LedgerSequence {
			current = i
		}
	}
	if d.Secret != "previous" {
		return current == which, true
	}
	// It worked then: where clocks of nodes say that none did, it was any of them.
	working := 0
	for _, g := range secrets[:current] {
		if at <= g.until {
			working++
		}
	}
	if working == 0 {
		return which < current, current == 1
	}
	return which < current && at <= secrets[which].until, working == 1
}
