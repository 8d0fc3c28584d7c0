package domain

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/events"
)

// Request is what is known about one request to an API. What is nil or empty
// was not told, unless the field says otherwise: it is not checked, and
// [Request.Skipped] lists it.
type Request struct {
	Keyspace     string
	Credential   []string // all values of the credential header, as sent; empty: there is no such header
	Key          string   // the secret itself, instead of Credential
	Method       string
	Path         string // as on the request line: escapes untouched, with or without its query
	TLS          *bool
	ContentType  *string  // "": the request has no such header
	Origin       *string  // "": the request has no such header
	IP           string   // of the client, without port
	Environments []string // that the gateway's route admits; empty: all
	Scopes       []string // that the caller says the request needs, each of them
	Resource     *string  // that the caller says the request is about
}

// Skipped lists what the keyspace would check and the request does not tell,
// in the order of the decision.
func (r *Request) Skipped(k *Keyspace) []string {
	skipped := []string{}
	add := func(name string, missing bool) {
		if missing {
			skipped = append(skipped, name)
		}
	}
	add("tls", k.Document.Credential.RequireTLS && r.TLS == nil)
	add("content_type", k.Document.Credential.RequireContentType != "" && r.ContentType == nil && (r.Method == "" || writes(r.Method)))
	add("owner", k.ownerPath != nil && r.Path == "")
	add("resource", k.Document.Resource.Mode != "none" && r.Resource == nil && (k.resourcePath == nil || r.Path == ""))
	add("scopes", len(k.scopes) > 0 && len(r.Scopes) == 0 && (r.Method == "" || r.Path == ""))
	add("origin", k.Document.AllowedOrigins && r.Origin == nil)
	add("ip", r.IP == "")
	return skipped
}

// Judge decides one request in the order of section 3 of the contract, except
// RATE_LIMITED, which depends on other requests: a limiter asks next where the
// answer is VALID. key is the one that the request's secret belongs to, or
// nil; owner is the key's, or nil.
//
// VALID with no key means a public route without a credential.
//
// A verifier that finds the key itself calls [Keyspace.JudgeCredential], looks
// the secret's hash up, and calls [Keyspace.JudgeKey].
func (k *Keyspace) Judge(req Request, key *Key, owner *Owner, now time.Time) Code {
	secret, code := k.JudgeCredential(&req)
	if code != "" {
		return code
	}
	return k.JudgeKey(&req, secret, HashSecret(secret), key, owner, events.At(now))
}

// JudgeCredential decides what needs no key: INSECURE_TRANSPORT to
// MALFORMED_CREDENTIAL. With an empty code, secret is what to look up; VALID
// is a public route that was asked for without a credential.
func (k *Keyspace) JudgeCredential(req *Request) (secret string, code Code) {
	if k.unreadable {
		return "", CodeStateTooStale
	}
	rules := &k.Document.Credential
	if rules.RequireTLS && req.TLS != nil && !*req.TLS {
		return "", CodeInsecureTransport
	}
	if req.Key == "" && len(req.Credential) == 0 && k.PublicRoute(req.Method, req.Path) != nil {
		return "", CodeValid
	}
	if rules.RequireContentType != "" && req.ContentType != nil && writes(req.Method) {
		mediaType, _, _ := strings.Cut(*req.ContentType, ";")
		if !strings.EqualFold(strings.TrimSpace(mediaType), rules.RequireContentType) {
			return "", CodeWrongContentType
		}
	}
	if req.Key != "" {
		return req.Key, ""
	}
	return k.Credential(req.Credential)
}

func writes(method string) bool {
	return strings.EqualFold(method, "POST") || strings.EqualFold(method, "PUT") || strings.EqualFold(method, "PATCH")
}

// JudgeKey decides the rest, MALFORMED_KEY to IP_DENIED, else VALID. hash is
// that of secret; key is nil where no key has it.
func (k *Keyspace) JudgeKey(req *Request, secret string, hash [32]byte, key *Key, owner *Owner, now events.Time) Code {
	// A key of another keyspace is no key here, least of all a root key.
	if key == nil || key.Keyspace != k.Document.Keyspace {
		if _, ok := k.CheckFormat(secret); !ok {
			return CodeMalformedKey
		}
		return CodeUnknownKey
	}
	if key.Revoked() {
		return CodeRevoked
	}
	if _, code := key.SecretState(hash, now); code != "" {
		return code
	}
	if key.Expired(now) {
		return CodeExpired
	}
	if len(req.Environments) > 0 && !slices.Contains(req.Environments, key.Environment) {
		return CodeWrongEnvironment
	}
	var supports []string // by the plan; nil: all
	if len(k.Plans) > 0 {
		_, plan, ok := k.PlanInForce(key, owner)
		if !ok || plan.Access != nil && !*plan.Access {
			return CodePlanDenied
		}
		supports = plan.Scopes
	}
	// The path is read once for the four rules that look at it.
	var at paths
	if req.Path != "" {
		at = readPath(req.Path)
	}
	supported, held := k.judgeScopes(req, &at, key, supports)
	switch {
	case !supported:
		return CodePlanDenied
	case req.Path != "" && k.wrongOwner(&at, key):
		return CodeWrongOwner
	case k.wrongResource(req, &at, key):
		return CodeWrongResource
	case !held:
		return CodeInsufficientScope
	case len(key.AllowedOrigins) > 0 && req.Origin != nil && !slices.Contains(key.AllowedOrigins, *req.Origin):
		return CodeOriginDenied
	case len(key.AllowedIPs) > 0 && req.IP != "" && !ipAllowed(key.AllowedIPs, req.IP):
		return CodeIPDenied
	}
	return CodeValid
}

// ScopesOf are the scopes that a key has: the fixed ones of its keyspace where
// there are such, else its own. Its plan may support fewer.
func (k *Keyspace) ScopesOf(key *Key) []string {
	if len(k.FixedScopes) > 0 {
		return k.FixedScopes
	}
	return key.Scopes
}

// judgeScopes says whether the plan supports what the request needs, and
// whether the key has it. A request whose path matches routes of several
// scopes needs any one of them; scopes that the caller names are all needed.
//
// plan is the scopes that the plan supports, nil all.
func (k *Keyspace) judgeScopes(req *Request, at *paths, key *Key, plan []string) (supported, held bool) {
	supported, held = true, true
	has := k.ScopesOf(key)
	for _, scope := range req.Scopes {
		inPlan := supports(plan, scope)
		supported = supported && inPlan
		held = held && inPlan && slices.Contains(has, scope)
	}
	if req.Method == "" || req.Path == "" || len(k.scopes) == 0 {
		return supported, held
	}
	method := methodOf(req.Method)
	for i := range at.len() {
		path := at.at(i)
		var needed, inPlan, inKey bool
		for j := range k.scopes {
			r := &k.scopes[j]
			if at.unclear {
				inPlan := supports(plan, r.scope)
				supported = supported && inPlan
				held = held && inPlan && slices.Contains(has, r.scope)
				continue
			}
			if !r.admits(method, req.Method) || !r.pattern.matches(path) {
				continue
			}
			needed = true
			if supports(plan, r.scope) {
				inPlan = true
				inKey = inKey || slices.Contains(has, r.scope)
			}
		}
		supported = supported && (inPlan || !needed)
		held = held && (inKey || !needed)
	}
	return supported, held
}

func supports(plan []string, scope string) bool {
	return plan == nil || slices.Contains(plan, scope)
}

// wrongOwner says whether any reading of the path names another owner.
func (k *Keyspace) wrongOwner(at *paths, key *Key) bool {
	if k.ownerPath == nil || at.unclear {
		return k.ownerPath != nil
	}
	for i := range at.len() {
		if owner, ok := k.ownerPath.match(at.at(i)); ok && owner != key.Owner {
			return true
		}
	}
	return false
}

// wrongResource says whether the key may not be used where the request goes. A
// bound key may go nowhere else; where binding is required, an unbound key may
// go nowhere.
func (k *Keyspace) wrongResource(req *Request, at *paths, key *Key) bool {
	if len(key.Resources) == 0 {
		return k.Document.Resource.Mode == "required"
	}
	if req.Resource != nil && !slices.Contains(key.Resources, *req.Resource) {
		return true
	}
	if k.resourcePath == nil || req.Path == "" {
		return false
	}
	if at.unclear {
		return true
	}
	for i := range at.len() {
		if resource, ok := k.resourcePath.match(at.at(i)); !ok || !slices.Contains(key.Resources, resource) {
			return true
		}
	}
	return false
}

// ipAllowed says whether an address is in a list of addresses and networks.
// What is no plain address (a zone, a port, a name) is in none. An IPv4
// address counts the same when it is written as IPv6.
func ipAllowed(allowed []string, ip string) bool {
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	for _, s := range allowed {
		if strings.IndexByte(s, '/') >= 0 {
			if p, err := netip.ParsePrefix(s); err == nil && p.Contains(addr) {
				return true
			}
		} else if a, err := netip.ParseAddr(s); err == nil && a.Unmap() == addr {
			return true
		}
	}
	return false
}

// ScopesFor lists the scopes that a request to the path needs: any one of
// them, or none where the list is empty.
func (k *Keyspace) ScopesFor(method, path string) []string {
	at := readPath(path)
	var scopes []string
	for j := range k.scopes {
		r := &k.scopes[j]
		for i := range at.len() {
			if at.unclear || r.matches(method, at.at(i)) {
				scopes = appendNew(scopes, r.scope)
				break
			}
		}
	}
	return scopes
}

// ResourceIn is the resource that the path names by the document's template.
// It is not ok where it names none, or where the path can be read in several
// ways that name different ones.
func (k *Keyspace) ResourceIn(path string) (resource string, ok bool) {
	return captured(k.resourcePath, path)
}

// OwnerIn likewise for the owner.
func (k *Keyspace) OwnerIn(path string) (owner string, ok bool) {
	return captured(k.ownerPath, path)
}

func captured(p *pattern, path string) (string, bool) {
	if p == nil {
		return "", false
	}
	at := readPath(path)
	if at.unclear {
		return "", false
	}
	first, ok := p.match(at.at(0))
	for i := range at.len() {
		if other, also := p.match(at.at(i)); also != ok || other != first {
			return "", false
		}
	}
	return first, ok && first != ""
}

// PublicRoute is the route that needs no credential and that the request asks
// for, or nil. A path that can be read in several ways is public only where
// each reading is.
func (k *Keyspace) PublicRoute(method, path string) *PublicRoute {
	if len(k.public) == 0 || method == "" || path == "" {
		return nil
	}
	at := readPath(path)
	if at.unclear {
		return nil
	}
	var found *PublicRoute
	for i := range at.len() {
		r := k.publicAt(method, at.at(i))
		if r == nil {
			return nil
		}
		if found == nil {
			found = r
		}
	}
	return found
}

func (k *Keyspace) publicAt(method, path string) *PublicRoute {
	for i := range k.public {
		if k.public[i].matches(method, path) {
			return &k.public[i].PublicRoute
		}
	}
	return nil
}

// PlanInForce is the plan that counts for a key: its own, else its owner's,
// else the document's default. Key and owner may be nil. It is not ok where
// the keyspace has plans and none of this name: nothing is granted then. A
// keyspace without plans grants access with no cap.
func (k *Keyspace) PlanInForce(key *Key, owner *Owner) (name string, plan Plan, ok bool) {
	if key != nil && key.Plan != "" {
		name = key.Plan
	} else if owner != nil && owner.Plan != "" {
		name = owner.Plan
	} else {
		name = k.DefaultPlan
	}
	if len(k.Plans) == 0 {
		return name, Plan{}, true
	}
	plan, ok = k.Plans[name]
	return name, plan, ok
}

// Pool is whose requests a limit counts together: a key's, or (Key empty) those
// of all keys of an owner. It may be the key of a map.
type Pool struct{ Keyspace, Owner, Key string }

// LimitsFor are the limits that count for a key and the pool that it draws
// from. An absent window is unlimited. With a nil key they are those of the
// owner's own pool, which other traffic draws from.
func (k *Keyspace) LimitsFor(key *Key, owner *Owner) (events.Limits, Pool) {
	pool := Pool{Keyspace: k.Document.Keyspace}
	if key != nil {
		pool.Owner, pool.Key = key.Owner, key.ID
	}
	if owner != nil {
		pool.Owner = owner.ID
	}
	if k.Limits.From == "key" {
		if key == nil {
			return k.Limits.Default, pool
		}
		return key.Limits, pool
	}
	if k.Limits.CountBy == "owner" && key != nil && key.Plan == "" {
		pool.Key = ""
	}
	_, plan, _ := k.PlanInForce(key, owner)
	return plan.Limits, pool
}

// SecretState says which of a key's secrets has this hash: the current one, or
// a previous one in its grace; else SUPERSEDED for one whose grace is over and
// UNKNOWN_KEY for one that was never the key's. The code is empty where the
// secret works.
func (k *Key) SecretState(hash [32]byte, now events.Time) (which string, code Code) {
	if SameHash(&hash, &k.Hash) {
		return "current", ""
	}
	if k.More != nil {
		for i := range k.Earlier {
			if k.Earlier[i].Hash == hash {
				if now < k.Earlier[i].Until {
					return "previous", ""
				}
				return "previous", CodeSuperseded
			}
		}
	}
	return "", CodeUnknownKey
}

// Status is active, expired or revoked; a deleted key was revoked. Whether a
// limit is used up is not known here.
func (k *Key) Status(now events.Time) string {
	switch {
	case k.Revoked():
		return "revoked"
	case k.Expired(now):
		return "expired"
	}
	return "active"
}
