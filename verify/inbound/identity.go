package inbound

import (
	"slices"
	"strings"

	"github.com/keyledger/keyledger/verify"
)

// Identity is what an upstream is told of a request: whose key, for X-Key-Id,
// X-Key-Owner, X-Key-Scopes (those that the plan supports, joined by commas) and
// X-Key-Environment. Each has a value: a hyphen where there is none.
func Identity(d *verify.Decision) (id, owner, scopes, environment string) {
	if d.Key == nil {
		return "-", "-", "-", "-"
	}
	held := d.Keyspace.ScopesOf(d.Key)
	if _, plan, _ := d.Keyspace.PlanInForce(d.Key, d.Owner); plan.Scopes != nil {
		held = slices.DeleteFunc(slices.Clone(held), func(s string) bool { return !slices.Contains(plan.Scopes, s) })
	}
	return d.Key.ID, d.Key.Owner, orDash(strings.Join(held, ",")), orDash(d.Key.Environment)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
