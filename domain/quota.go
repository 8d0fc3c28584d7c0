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
	pool := Pool{Keyspace: k.Document.Keyspace}
	if key != nil {
		pool.Owner, pool.Key = key.Owner, key.ID
	} else if owner != nil {
		pool.Owner = owner.ID
	}
	if k.Limits.From == "key" {
		switch {
		case key == nil:
			return &k.quota, pool
		case key.quota == noQuota && len(key.Limits) > 0: // no fact made it
			return new(QuotaOf(key.Limits)), pool
		}
		return &key.quota, pool
	}
	if k.Limits.CountBy == "owner" && key != nil && key.Plan == "" {
		pool.Key = ""
	}
	name := k.DefaultPlan
	if key != nil && key.Plan != "" {
		name = key.Plan
	} else if owner != nil && owner.Plan != "" {
		name = owner.Plan
	}
	if q := k.quotas[name]; q != nil {
		return q, pool
	}
	return &noQuota, pool
}

var noQuota Quota
