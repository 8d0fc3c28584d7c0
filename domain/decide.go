package domain

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyledger/keyledger/events"
)

// What people may write, at most.
const (
	maxName    = 200 // characters of a name
	maxReason  = 500 // characters of a reason
	maxList    = 100 // entries of a list
	maxMeta    = 50  // entries of meta
	maxMetaKey = 64
	maxMetaVal = 512
	maxLimit   = int64(1) << 53 // so that every JSON reader sees the same number
)

var (
	keyspaceID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	entityID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
)

// ValidKeyspaceID says whether id may name a keyspace.
func ValidKeyspaceID(id string) bool { return keyspaceID.MatchString(id) }

// ValidEntityID says whether id may name an owner or a resource.
func ValidEntityID(id string) bool { return entityID.MatchString(id) }

// Decide says which facts a command causes in a state, or refuses with a
// [*Refusal]. No facts and no error means that everything is already so. It is
// pure: the caller appends the facts, all or none, and fills in who asked.
func Decide(s State, c Command, now time.Time) ([]events.Payload, error) {
	at := events.At(now)
	if c, ok := c.(ConfigureKeyspace); ok {
		return configure(s, c)
	}
	if s.Keyspace == nil {
		return nil, KeyspaceNotFound()
	}
	switch c := c.(type) {
	case SetOwner:
		return setOwner(s, c)
	case CreateKey:
		return create(s, c, at)
	}
	if s.Key == nil {
		return nil, KeyNotFound()
	}
	if s.Key.Deleted() {
		return nil, refuse(Gone, "KEY_DELETED", "This key was deleted.")
	}
	switch c := c.(type) {
	case RevokeKey:
		return revoke(s, c, at)
	case DeleteKey:
		return remove(s, at)
	}
	if s.Key.Revoked() {
		return nil, refuse(Conflict, "KEY_REVOKED", "This key was revoked, which is final: create a new one.")
	}
	switch c := c.(type) {
	case UpdateKey:
		return update(s, c, at)
	case RotateKey:
		return rotate(s, c, at)
	case EndGrace:
		return endGrace(s, c, at)
	}
	return nil, fmt.Errorf("no rule for a command of type %T", c)
}

func configure(s State, c ConfigureKeyspace) ([]events.Payload, error) {
	doc := c.Document
	if doc.Keyspace == events.RootKeyspace {
		return nil, refuse(Forbidden, "KEYSPACE_RESERVED", "The keyspace keyledger holds the root keys and cannot be configured.")
	}
	if s.Keyspace == nil {
		return []events.Payload{events.KeyspaceConfigured{DocumentVersion: 1, Document: doc.JSON()}}, nil
	}
	if bytes.Equal(doc.JSON(), s.Keyspace.Document.JSON()) {
		return nil, nil
	}
	var p problems
	for what, users := range map[string]map[string][]string{"plans": c.Users.Plans, "scopes": c.Users.Scopes, "format.prefixes": c.Users.Environments} {
		for _, name := range slices.Sorted(maps.Keys(users)) {
			if !doc.has(what, name) {
				p.add(what+"."+name, "is in use by "+several(users[name]), "keep it, or move these to another one first")
			}
		}
	}
	if err := p.refusal("IN_USE", "The document removes what is in use."); err != nil {
		return nil, err
	}
	return []events.Payload{events.KeyspaceConfigured{DocumentVersion: s.Keyspace.DocumentVersion + 1, Document: doc.JSON()}}, nil
}

func (d *Document) has(what, name string) (ok bool) {
	switch what {
	case "plans":
		_, ok = d.Plans[name]
	case "scopes":
		_, ok = d.Scopes[name]
		ok = ok || slices.Contains(d.FixedScopes, name)
	default:
		_, ok = d.Format.Prefixes[name]
	}
	return ok
}

func several(users []string) string {
	if len(users) > 10 {
		return strings.Join(users[:10], ", ") + fmt.Sprintf(" and %d more", len(users)-10)
	}
	return strings.Join(users, ", ")
}

func setOwner(s State, c SetOwner) ([]events.Payload, error) {
	var p problems
	if c.Name != nil {
		p.text("name", *c.Name, maxName, false)
	}
	if c.Plan != nil {
		p.plan(s.Keyspace, *c.Plan)
	}
	if err := p.invalid(); err != nil {
		return nil, err
	}
	if s.Owner == nil {
		o := events.OwnerRegistered{Plan: s.Keyspace.DefaultPlan}
		set(&o.Name, c.Name)
		if c.Plan != nil && *c.Plan != "" {
			o.Plan = *c.Plan
		}
		return []events.Payload{o}, nil
	}
	var facts []events.Payload
	plan := s.Owner.Plan
	if c.Plan != nil && *c.Plan != "" && *c.Plan != plan {
		facts = append(facts, events.OwnerPlanChanged{Plan: *c.Plan, Previous: plan})
		plan = *c.Plan
	}
	if c.Name != nil && *c.Name != s.Owner.Name {
		facts = append(facts, events.OwnerRegistered{Name: *c.Name, Plan: plan})
	}
	return facts, nil
}

func create(s State, c CreateKey, now events.Time) ([]events.Payload, error) {
	ks, root := s.Keyspace, s.Keyspace.Document.Keyspace == events.RootKeyspace
	if s.Owner == nil && !root {
		return nil, OwnerNotFound()
	}
	if s.Key != nil {
		return nil, refuse(Conflict, "KEY_EXISTS", "A key with this secret is already known.")
	}
	fact := events.KeyCreated{
		Name: c.Name, Environment: c.Environment, Plan: c.Plan,
		Scopes: slices.Clone(ks.FixedScopes), Resources: c.Resources,
		AllowedOrigins: c.AllowedOrigins, AllowedIPs: c.AllowedIPs,
		Meta: c.Meta, Role: c.Role, For: c.For, Imported: c.Imported, Secret: c.Secret,
	}
	if fact.Environment == "" {
		fact.Environment = ks.Format.DefaultEnvironment
	}
	var p problems
	p.text("name", c.Name, maxName, true)
	if _, ok := ks.Format.Prefixes[fact.Environment]; !ok {
		p.add("environment", fmt.Sprintf("%q is not an environment of this keyspace", fact.Environment), "one of "+names(ks.Format.Prefixes))
	}
	p.plan(ks, c.Plan)
	if c.Scopes != nil {
		fact.Scopes = *c.Scopes
		p.scopes(ks, *c.Scopes)
	}
	p.resources(ks, c.Resources)
	fact.Limits = p.limits(ks, ks.Limits.Default, c.Limits)
	p.origins(ks, c.AllowedOrigins)
	p.ips(c.AllowedIPs)
	p.meta(c.Meta)
	fact.ExpiresAt = p.expiry(ks, c, now)
	p.secret(c.Secret)
	if root {
		p.role(c.Role, c.For)
	}
	if err := p.invalid(); err != nil {
		return nil, err
	}
	if root {
		return []events.Payload{fact}, nil
	}
	admitted, err := admit(s, c.ID, fact.Plan)
	if err != nil {
		return nil, err
	}
	return append(admitted, fact), nil
}

// admit takes a place under the cap of the plan in force, where it has one.
func admit(s State, key, keyPlan string) ([]events.Payload, error) {
	name, plan, ok := s.Keyspace.PlanInForce(&Key{Grant: &Grant{Plan: keyPlan}}, s.Owner)
	if !ok {
		return nil, refuse(Forbidden, "PLAN_DENIED", fmt.Sprintf("The plan %s is not one of this keyspace any more: move the owner to one that is.", name))
	}
	if plan.Access != nil && !*plan.Access {
		return nil, refuse(Forbidden, "PLAN_DENIED", fmt.Sprintf("The plan %s gives no access to this API: move the owner to one that does.", name))
	}
	if plan.MaxKeys == nil {
		return nil, nil
	}
	if s.ActiveKeys >= *plan.MaxKeys {
		r := refuse(Conflict, "KEY_LIMIT_REACHED", fmt.Sprintf("The owner has %d active keys and the plan %s allows %d: revoke or delete an unused one first.", s.ActiveKeys, name, *plan.MaxKeys))
		r.Count, r.Limit = new(s.ActiveKeys), new(*plan.MaxKeys)
		return nil, r
	}
	return []events.Payload{events.OwnerKeyAdmitted{Key: key, ActiveKeys: s.ActiveKeys + 1, MaxKeys: *plan.MaxKeys}}, nil
}

func update(s State, c UpdateKey, now events.Time) ([]events.Payload, error) {
	k, ks := s.Key, s.Keyspace
	var p problems
	var fact events.KeyUpdated
	if c.Name != nil && *c.Name != k.Name {
		p.text("name", *c.Name, maxName, true)
		fact.Name = c.Name
	}
	if c.Plan != nil && *c.Plan != k.Plan {
		p.plan(ks, *c.Plan)
		fact.Plan = c.Plan
	}
	if c.Scopes != nil && !slices.Equal(*c.Scopes, k.Scopes) {
		p.scopes(ks, *c.Scopes)
		fact.Scopes = c.Scopes
	}
	if c.Resources != nil && !slices.Equal(*c.Resources, k.Resources) {
		p.resources(ks, *c.Resources)
		fact.Resources = c.Resources
	}
	if c.Limits != nil {
		if limits := p.limits(ks, k.Limits, *c.Limits); !maps.Equal(limits, k.Limits) {
			fact.Limits = &limits
		}
	}
	if c.AllowedOrigins != nil && !slices.Equal(*c.AllowedOrigins, k.AllowedOrigins) {
		p.origins(ks, *c.AllowedOrigins)
		fact.AllowedOrigins = c.AllowedOrigins
	}
	if c.AllowedIPs != nil && !slices.Equal(*c.AllowedIPs, k.AllowedIPs) {
		p.ips(*c.AllowedIPs)
		fact.AllowedIPs = c.AllowedIPs
	}
	if c.ExpiresAt != nil && *c.ExpiresAt != k.ExpiresAt {
		p.future("expires_at", *c.ExpiresAt, now)
		fact.ExpiresAt = &events.Expiry{At: *c.ExpiresAt}
	}
	if c.Meta != nil {
		var meta map[string]string
		if k.More != nil {
			meta = k.Meta
		}
		if !maps.Equal(*c.Meta, meta) {
			p.meta(*c.Meta)
			fact.Meta = c.Meta
		}
	}
	if err := p.invalid(); err != nil {
		return nil, err
	}
	if fact == (events.KeyUpdated{}) {
		return nil, nil
	}
	if fact.ExpiresAt != nil && fact.ExpiresAt.At != 0 {
		if err := keepOperator(s, now); err != nil {
			return nil, err
		}
	}
	var admitted []events.Payload
	if s.Owner != nil {
		plan := k.Plan
		set(&plan, fact.Plan)
		switch {
		case fact.ExpiresAt != nil && k.Expired(now): // an expired key comes back and counts again
			var err error
			if admitted, err = admit(s, k.ID, plan); err != nil {
				return nil, err
			}
		case fact.Plan != nil:
			// The key has its place already; only access is asked.
			counted := s
			counted.ActiveKeys = -1
			if _, err := admit(counted, k.ID, plan); err != nil {
				return nil, err
			}
		}
	}
	return append(admitted, fact), nil
}

func rotate(s State, c RotateKey, now events.Time) ([]events.Payload, error) {
	rules := s.Keyspace.Lifecycle.Rotation
	if !rules.Enabled {
		return nil, refuse(Conflict, "ROTATION_DISABLED", "This keyspace does not rotate keys: create a new key and revoke this one.")
	}
	if s.Key.Expired(now) {
		return nil, refuse(Conflict, "KEY_EXPIRED", "This key has expired: give it a later expires_at before rotating it.")
	}
	grace := rules.GraceDefault
	if c.Grace != nil {
		grace = *c.Grace
	}
	var p problems
	if grace < 0 || grace > rules.GraceMax {
		p.add("grace", "is longer than this keyspace allows", fmt.Sprintf("at most %s", rules.GraceMax))
	}
	p.text("reason", c.Reason, maxReason, false)
	p.secret(c.Secret)
	if err := p.invalid(); err != nil {
		return nil, err
	}
	fact := events.KeyRotated{Secret: c.Secret, EndGrace: c.EndGrace, Reason: c.Reason}
	if grace > 0 {
		fact.GraceUntil = now + events.Time(time.Duration(grace).Milliseconds())
	}
	return []events.Payload{fact}, nil
}

func endGrace(s State, c EndGrace, now events.Time) ([]events.Payload, error) {
	var p problems
	p.text("reason", c.Reason, maxReason, false)
	if err := p.invalid(); err != nil {
		return nil, err
	}
	if s.Key.GraceUntil(now) == 0 {
		return nil, nil
	}
	return []events.Payload{events.KeyGraceEnded{Reason: c.Reason}}, nil
}

func revoke(s State, c RevokeKey, now events.Time) ([]events.Payload, error) {
	var p problems
	p.text("reason", c.Reason, maxReason, false)
	if err := p.invalid(); err != nil {
		return nil, err
	}
	if s.Key.Revoked() {
		return nil, nil
	}
	if err := keepOperator(s, now); err != nil {
		return nil, err
	}
	return []events.Payload{events.KeyRevoked{Reason: c.Reason}}, nil
}

func remove(s State, now events.Time) ([]events.Payload, error) {
	if s.Key.Revoked() {
		return []events.Payload{events.KeyDeleted{}}, nil
	}
	if err := keepOperator(s, now); err != nil {
		return nil, err
	}
	return []events.Payload{events.KeyRevoked{Reason: "deleted"}, events.KeyDeleted{}}, nil
}

// keepOperator refuses to take away the last key that can give others.
func keepOperator(s State, now events.Time) error {
	if s.Key.Role == Operator && s.Key.Active(now) && s.Operators <= 1 {
		return refuse(Conflict, "LAST_OPERATOR", "This is the last operator key: create another one first.")
	}
	return nil
}

// The roles of root keys.
const (
	Operator = "operator" // everything
	Verifier = "verifier" // verify, uses, limits and forward-auth only
	Auditor  = "auditor"  // reading and exporting only
	Manager  = "manager"  // everything about the keys of one keyspace and owner
)

// problems collects everything that is wrong with an input.
type problems []Problem

func (p *problems) add(path, message, fix string) {
	*p = append(*p, Problem{Path: path, Message: message, Fix: fix})
}

func (p problems) invalid() error {
	return p.refusal("INVALID", "The input is not valid.")
}

func (p problems) refusal(code, detail string) error {
	if len(p) == 0 {
		return nil
	}
	return &Refusal{Kind: Invalid, Code: code, Detail: detail, Problems: p}
}

func (p *problems) text(path, s string, most int, required bool) {
	switch {
	case required && strings.TrimSpace(s) == "":
		p.add(path, "is missing", "give a descriptive text")
	case !utf8.ValidString(s):
		p.add(path, "is not UTF-8", "send UTF-8")
	case utf8.RuneCountInString(s) > most:
		p.add(path, fmt.Sprintf("is longer than %d characters", most), "shorten it")
	case strings.ContainsFunc(s, unseen):
		p.add(path, "has control or direction characters, which would make it read as something else", "remove them")
	}
}

// unseen are characters that change how the text around them is shown.
func unseen(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' || r == '\ufeff'
}

func (p *problems) plan(ks *Keyspace, plan string) {
	if plan == "" {
		return
	}
	if _, ok := ks.Plans[plan]; !ok {
		p.add("plan", fmt.Sprintf("%q is not a plan of this keyspace", plan), oneOf(ks.Plans))
	}
}

func oneOf[V any](m map[string]V) string {
	if len(m) == 0 {
		return "leave it out: this keyspace has none"
	}
	return "one of " + names(m)
}

func names[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}

func (p *problems) list(path string, list []string) bool {
	if len(list) > maxList {
		p.add(path, fmt.Sprintf("has more than %d entries", maxList), "shorten it")
		return false
	}
	for i, s := range list {
		if slices.Contains(list[:i], s) {
			p.add(fmt.Sprintf("%s[%d]", path, i), "is there twice", "remove one")
		}
	}
	return true
}

func (p *problems) scopes(ks *Keyspace, scopes []string) {
	if !p.list("scopes", scopes) {
		return
	}
	if len(ks.FixedScopes) > 0 {
		if !slices.Equal(slices.Sorted(slices.Values(scopes)), slices.Sorted(slices.Values(ks.FixedScopes))) {
			p.add("scopes", "are fixed in this keyspace", "leave them out, or send exactly "+strings.Join(ks.FixedScopes, ", "))
		}
		return
	}
	for i, s := range scopes {
		path := fmt.Sprintf("scopes[%d]", i)
		rules, ok := ks.Scopes[s]
		switch {
		case !ok:
			p.add(path, "is not a scope of this keyspace", oneOf(ks.Scopes))
		case rules.Available != nil && !*rules.Available:
			p.add(path, "cannot be granted yet", "leave it out")
		}
	}
}

func (p *problems) resources(ks *Keyspace, resources []string) {
	switch mode := ks.Resource.Mode; {
	case !p.list("resources", resources):
	case mode == "none" && len(resources) > 0:
		p.add("resources", "keys of this keyspace are not bound to resources", "leave them out")
	case mode == "required" && len(resources) == 0:
		p.add("resources", "keys of this keyspace are bound to at least one resource", "name the "+or(ks.Resource.Kind, "resource"))
	}
	for i, r := range resources {
		if !ValidEntityID(r) {
			p.add(fmt.Sprintf("resources[%d]", i), "is not an id", "letters, digits, - and _, at most 64, not starting with - or _")
		}
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// limits lays the limits asked for over those in force.
func (p *problems) limits(ks *Keyspace, base events.Limits, asked map[string]*int64) events.Limits {
	if ks.Limits.From != "key" {
		if len(asked) > 0 {
			p.add("limits", "come from the plan in this keyspace", "name a plan instead")
		}
		return nil
	}
	limits := maps.Clone(base)
	for _, window := range slices.Sorted(maps.Keys(asked)) {
		n := asked[window]
		switch path := "limits." + window; {
		case !slices.Contains(Windows, window):
			p.add(path, "is not a window", "minute, hour or day")
		case n == nil:
			delete(limits, window)
		case *n < 1 || *n > maxLimit:
			p.add(path, "is not a number of requests", "a whole number from 1 to 9007199254740992, or null for no limit")
		default:
			if limits == nil {
				limits = events.Limits{}
			}
			limits[window] = *n
		}
	}
	return limits
}

// Windows are the names of limits' windows, shortest first: rolling 60 s,
// rolling 60 min, calendar day UTC.
var Windows = []string{"minute", "hour", "day"}

func (p *problems) origins(ks *Keyspace, origins []string) {
	if len(origins) > 0 && !ks.AllowedOrigins {
		p.add("allowed_origins", "keys of this keyspace carry no origins", "leave them out")
		return
	}
	p.list("allowed_origins", origins)
	for i, o := range origins {
		if !validOrigin(o) {
			p.add(fmt.Sprintf("allowed_origins[%d]", i), "is not an origin", "scheme and host in lower case, with a port where it is not the usual one, nothing after: https://app.example.com")
		}
	}
}

// validOrigin says whether o is an origin as browsers send it (RFC 6454):
// anything else could never match.
func validOrigin(o string) bool {
	u, err := url.Parse(o)
	if err != nil || u.Scheme == "" || u.Hostname() == "" || u.Scheme+"://"+u.Host != o || o != strings.ToLower(o) {
		return false
	}
	if u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" || strings.HasSuffix(u.Host, ":") {
		return false
	}
	return !strings.ContainsFunc(u.Host, func(r rune) bool {
		return r > unicode.MaxASCII || !(unicode.IsLower(r) || unicode.IsDigit(r) || strings.ContainsRune(".-:[]", r))
	})
}

func (p *problems) ips(ips []string) {
	p.list("allowed_ips", ips)
	for i, s := range ips {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" && !addr.Is4In6() {
			continue
		}
		if prefix, err := netip.ParsePrefix(s); err == nil && prefix.Masked() == prefix && !prefix.Addr().Is4In6() {
			continue
		}
		p.add(fmt.Sprintf("allowed_ips[%d]", i), "is not an IP address or network", "such as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32, with no zone, port or host bits")
	}
}

func (p *problems) meta(meta map[string]string) {
	if len(meta) > maxMeta {
		p.add("meta", fmt.Sprintf("has more than %d entries", maxMeta), "shorten it")
		return
	}
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		if k == "" || utf8.RuneCountInString(k) > maxMetaKey {
			p.add("meta", fmt.Sprintf("has a name that is empty or longer than %d characters", maxMetaKey), "shorten it")
			continue
		}
		p.text("meta", k, maxMetaKey, false)
		p.text("meta."+k, meta[k], maxMetaVal, false)
	}
}

func (p *problems) expiry(ks *Keyspace, c CreateKey, now events.Time) events.Time {
	switch {
	case c.ExpiresAt != nil && c.ExpiresIn != nil:
		p.add("expires_in", "is given together with expires_at", "send one of them")
	case c.ExpiresAt != nil:
		p.future("expires_at", *c.ExpiresAt, now)
		return *c.ExpiresAt
	case c.ExpiresIn != nil:
		at := now + events.Time(time.Duration(*c.ExpiresIn).Milliseconds())
		p.future("expires_in", at, now)
		return at
	}
	if d, err := ParseDuration(ks.Lifecycle.Expiry.Default); err == nil && d > 0 {
		return now + events.Time(time.Duration(d).Milliseconds())
	}
	return 0
}

func (p *problems) future(path string, at, now events.Time) {
	if at == 0 {
		return
	}
	if at <= now {
		p.add(path, "is not in the future", "a later time; to end a key now, revoke it")
	} else if at.Time().Year() > 9999 {
		p.add(path, "is after the year 9999", "null for a key that never expires")
	}
}

func (p *problems) secret(s events.Secret) {
	if _, ok := ParseHash(s.SHA256); !ok {
		p.add("sha256", "is not a SHA-256 hash", "64 hexadecimal digits in lower case")
	}
}

func (p *problems) role(role string, reach *events.Reach) {
	switch role {
	case Operator, Verifier, Auditor:
		if reach != nil {
			p.add("keyspace", "only a manager is bound to a keyspace and owner", "leave both out, or ask for the role manager")
		}
	case Manager:
		if reach == nil || !ValidKeyspaceID(reach.Keyspace) || !ValidEntityID(reach.Owner) {
			p.add("keyspace", "a manager is bound to one keyspace and owner", "name both")
		}
	default:
		p.add("role", fmt.Sprintf("%q is not a role", role), "operator, verifier, auditor or manager")
	}
}
