package domain

import "github.com/keyledger/keyledger/events"

// Quota is limits in the order of [Windows], as they are counted by: 0 is no
// limit, and what is less admits nothing.
type Quota [3]int64

// QuotaOf are limits as a Quota.
func QuotaOf(limits events.Limits) (q Quota) {
	for i, window := range Windows {
		if n, ok := limits[window]; ok {
			if q[i] = n; n < 1 { // which no document and no command may ask for
				q[i] = -1
			}
		}
	}
	return q
}

// QuotaFor is [Keyspace.LimitsFor], ready to be counted by. The Quota MUST NOT be
// changed.
func (k *Keyspace) QuotaFor(key *Key, owner *Owner) (*Quota, Pool) {
	return k.Quota(key, owner), k.PoolFor(key, owner)
}

// PoolFor is the pool that a key draws from, or other traffic of an owner where
// the key is nil.
func (k *Keyspace) PoolFor(key *Key, owner *Owner) Pool {
	pool := Pool{Keyspace: k.Document.Keyspace}
	if key != nil {
		pool.Owner = key.Owner
	} else if owner != nil {
		pool.Owner = owner.ID
	}
	if !k.OwnersPool(key) {
		pool.Key = key.ID
	}
	return pool
}

// OwnersPool says whether requests of a key, or with a nil key, draw from the pool
// of its owner and not from the key's own.
func (k *Keyspace) OwnersPool(key *Key) bool {
	return key == nil || k.Limits.CountBy == "owner" && k.Limits.From != "key" && key.Plan == ""
}

// Quota is that of QuotaFor.
func (k *Keyspace) Quota(key *Key, owner *Owner) *Quota {
	if k.Limits.From == "key" {
		switch {
		case key == nil:
			return &k.quota
		case key.quota == noQuota && len(key.Limits) > 0: // no fact made it
			return new(QuotaOf(key.Limits))
		}
		return &key.quota
	}
	name := k.DefaultPlan
	if key != nil && key.Plan != "" {
		name = key.Plan
	} else if owner != nil && owner.Plan != "" {
		name = owner.Plan
	}
	if q := k.quotas[name]; q != nil {
		return q
	}
	return &noQuota
}

var noQuota Quota
