package domain

import (
	"fmt"
	"slices"

	"github.com/keyledger/keyledger/events"
)

// Action is one thing that a caller may or may not do.
type Action string

// The actions. Those that start with keys. can be granted by a scope of a
// keyspace document, except KeysUpdate.
const (
	KeysCreate    Action = "keys.create"
	KeysRead      Action = "keys.read"
	KeysRotate    Action = "keys.rotate"
	KeysRevoke    Action = "keys.revoke"
	KeysDelete    Action = "keys.delete"
	KeysUpdate    Action = "keys.update"
	OwnersRead    Action = "owners.read"
	OwnersWrite   Action = "owners.write"
	KeyspacesRead Action = "keyspaces.read"
	Configure     Action = "keyspaces.write"
	AuditRead     Action = "audit.read"
	LogRead       Action = "audit.log" // checkpoints, tiles and proofs
	UsageRead     Action = "usage.read"
	AlertsRead    Action = "alerts.read"
	AlertsWrite   Action = "alerts.write" // which rules count
	Verify        Action = "verify"       // and reporting uses, taking limits, forward-auth
	RootKeys      Action = "root_keys"
	Operate       Action = "operate" // status, projections
	WebhooksRead  Action = "webhooks.read"
	WebhooksWrite Action = "webhooks.write"
)

// Actions are all of them.
var Actions = []Action{KeysCreate, KeysRead, KeysRotate, KeysRevoke, KeysDelete, KeysUpdate, OwnersRead, OwnersWrite,
	KeyspacesRead, Configure, AuditRead, LogRead, UsageRead, AlertsRead, AlertsWrite, WebhooksRead, WebhooksWrite, Verify, RootKeys, Operate}

// Grantable are the actions that a scope may grant.
var Grantable = []Action{KeysCreate, KeysRotate, KeysRevoke, KeysDelete, KeysRead}

var roles = map[string][]Action{
	Verifier: {Verify},
	Auditor:  {KeysRead, OwnersRead, KeyspacesRead, AuditRead, LogRead, UsageRead, AlertsRead, WebhooksRead},
	Manager:  {KeysCreate, KeysRead, KeysRotate, KeysRevoke, KeysDelete, KeysUpdate, OwnersRead, KeyspacesRead, AuditRead, UsageRead, AlertsRead, AlertsWrite, WebhooksRead, WebhooksWrite},
}

// Authority is what the holder of a credential may do. The zero value may do
// nothing.
type Authority struct {
	Actor events.Actor
	Role  string        // of a root key
	Reach *events.Reach // the one keyspace and owner it may touch; nil: all
	key   *Key          // a customer's key, whose own reach bounds what it makes
	grant []Action
}

// System is the authority of the program itself and of whoever owns the
// machine that it runs on.
func System(id string) Authority {
	return Authority{Actor: events.Actor{Type: "system", ID: id}, Role: Operator}
}

// AuthorityOf is what a key that was just verified may do: a root key by its
// role, a customer's key by what its scopes grant in its own keyspace and owner.
func AuthorityOf(k *Key, ks *Keyspace) Authority {
	if k.Keyspace == events.RootKeyspace {
		return Authority{Actor: events.Actor{Type: "root_key", ID: k.ID}, Role: k.Role, Reach: k.For, grant: roles[k.Role]}
	}
	a := Authority{
		Actor: events.Actor{Type: "key", ID: k.ID},
		Reach: &events.Reach{Keyspace: k.Keyspace, Owner: k.Owner},
		key:   k,
	}
	for _, s := range k.Scopes {
		for _, g := range ks.Scopes[s].Grants {
			a.grant = append(a.grant, Action(g))
		}
	}
	return a
}

// Person is somebody who signed in at the console by an identity provider.
type Person struct {
	ID    string        // opaque, the same at every sign-in
	Role  string        // Operator, Manager or Auditor
	Reach *events.Reach // of a manager
}

// Authority is what the role allows, as for a root key of that role. A manager
// without a reach may do nothing.
func (p Person) Authority() Authority {
	if p.Role == Manager && p.Reach == nil {
		return Authority{Actor: events.Actor{Type: "user", ID: p.ID}}
	}
	return Authority{Actor: events.Actor{Type: "user", ID: p.ID}, Role: p.Role, Reach: p.Reach, grant: roles[p.Role]}
}

// May says whether an action is within the authority at all.
func (a Authority) May(action Action) bool {
	return a.Role == Operator || slices.Contains(a.grant, action)
}

// Reaches says whether a keyspace and owner are within it. What is not is
// answered as if it were absent.
func (a Authority) Reaches(keyspace, owner string) bool {
	if a.Reach != nil {
		return a.Reach.Keyspace == keyspace && a.Reach.Owner == owner
	}
	return a.Role != "" && (keyspace != events.RootKeyspace || a.Role == Operator)
}

// Require refuses an action that is not within the authority.
func (a Authority) Require(action Action) error {
	if a.May(action) {
		return nil
	}
	return refuse(Forbidden, "FORBIDDEN", fmt.Sprintf("This credential may not do %s.", action))
}

// Covers refuses what a customer's key makes or touches beyond its own reach:
// more scopes, resources, limits, origins or networks, another plan or
// environment, a later expiry. target and facts are what the command touches and
// causes.
func (a Authority) Covers(target *Key, facts []events.Payload) error {
	if a.key == nil {
		return nil
	}
	if target != nil {
		if what := a.key.exceededBy(target.Grant, target.ExpiresAt); what != "" {
			return exceeds(what)
		}
	}
	for _, f := range facts {
		if d, ok := f.(events.KeyCreated); ok {
			g := &Grant{Environment: d.Environment, Plan: d.Plan, Scopes: d.Scopes, Resources: d.Resources,
				Limits: d.Limits, AllowedOrigins: d.AllowedOrigins, AllowedIPs: d.AllowedIPs}
			if what := a.key.exceededBy(g, d.ExpiresAt); what != "" {
				return exceeds(what)
			}
		}
	}
	return nil
}

func exceeds(what string) error {
	return refuse(Forbidden, "EXCEEDS_AUTHORITY", fmt.Sprintf("The key's %s would exceed those of the key that asks.", what))
}

func (k *Key) exceededBy(g *Grant, expires events.Time) string {
	switch {
	case g.Environment != k.Environment:
		return "environment"
	case g.Plan != k.Plan:
		return "plan"
	case !within(g.Scopes, k.Scopes):
		return "scopes"
	case len(k.Resources) > 0 && (len(g.Resources) == 0 || !within(g.Resources, k.Resources)):
		return "resources"
	case len(k.AllowedOrigins) > 0 && (len(g.AllowedOrigins) == 0 || !within(g.AllowedOrigins, k.AllowedOrigins)):
		return "allowed origins"
	case len(k.AllowedIPs) > 0 && (len(g.AllowedIPs) == 0 || !within(g.AllowedIPs, k.AllowedIPs)):
		return "allowed IPs"
	case k.ExpiresAt != 0 && (expires == 0 || expires > k.ExpiresAt):
		return "expiry"
	}
	for window, most := range k.Limits {
		if n, ok := g.Limits[window]; !ok || n > most {
			return "limits"
		}
	}
	return ""
}

func within(list, all []string) bool {
	for _, s := range list {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}
