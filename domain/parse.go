package domain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyledger/keyledger/events"
)

// ParseDocument reads and checks a keyspace document, YAML or JSON, of at most
// [MaxDocument] bytes. A field that is absent gets its default, so that the
// document says everything that it means. The error is a [*DocumentError] with
// everything that is wrong, of 500 problems at most.
//
// The defaults are the careful choice wherever the contract leaves one:
//
//	credential   header Authorization, scheme Bearer ("" must be written), TLS not required
//	format       the only environment, alphabet base62, no checksum; prefixes and length are required
//	display      nothing kept, nothing shown
//	resource     mode none
//	limits       from plan where there are plans, else from key; counted by key
//	expiry       never; rotation enabled, no grace unless asked for, at most 48h of it, no max_age
//	last_used    any
//	rate_headers retry-after
//	answers      a problem document for each code, a status of 0 is the code's own
//	public_routes without status and body are answered by the upstream; with a body alone by 200
func ParseDocument(source []byte) (*Document, error) {
	root, problems, readable := readTree(source)
	if root == nil {
		return nil, &DocumentError{Problems: problems, Unreadable: !readable}
	}
	r := &reader{problems: problems}
	d := r.document(root)
	if len(r.problems) > 0 {
		slices.SortStableFunc(r.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
		return nil, &DocumentError{Problems: slices.Compact(r.problems)}
	}
	return d, nil
}

// reader turns a tree into a document. It goes on after a problem, so that the
// author sees all of them at once.
type reader struct {
	problems []Problem
	doc      Document
}

// maxProblems is far more than a person reads at once.
const maxProblems = 500

func (r *reader) bad(n *node, message, fix string) {
	r.add(Problem{n.path, n.line, message, fix})
}

func (r *reader) add(p Problem) {
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, p)
	}
}

var (
	fieldName       = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$") // RFC 9110 token
	environmentName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	prefixChars     = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,32}$`)
	scopeName       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$`)
	planName        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	detailName      = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	mediaTypeName   = regexp.MustCompile(`^[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+$`)
)

func (r *reader) document(n *node) *Document {
	d := &r.doc
	o := r.object(n)
	if id := o.required("keyspace"); id != nil {
		d.Keyspace = r.word(id, keyspaceID, "lower-case letters, digits and -, at most 63, such as my-product")
		if d.Keyspace == events.RootKeyspace {
			r.bad(id, "is the built-in keyspace of root keys", "choose another name")
		}
	}
	d.About = o.text("about", 1000)
	r.credential(o.section("credential"))
	// Scopes and plans are read first: other sections refer to them by name.
	r.scopes(o)
	r.plans(o)
	r.format(o.required("format"), o.get("display"))
	r.owner(o.section("owner"))
	r.resource(o.section("resource"))
	r.limits(o.section("limits"))
	r.lifecycle(o.section("lifecycle"))
	d.LastUsed = o.choice("last_used", "any", "any", "successful")
	d.AllowedOrigins = o.flag("allowed_origins", false)
	r.cost(o.section("cost"))
	d.RateHeaders = []string{"retry-after"}
	if n := o.get("rate_headers"); n != nil {
		d.RateHeaders = r.list(n, oneOfThese("x-ratelimit", "retry-after", "ietf"))
	}
	r.answers(o.get("answers"))
	r.publicRoutes(o.get("public_routes"))
	r.console(o.section("console"))
	r.alerts(o.get("alerts"))
	o.done()
	return d
}

func (r *reader) credential(o *object) {
	c := &r.doc.Credential
	c.Header, c.Scheme = "Authorization", "Bearer"
	if n := o.get("header"); n != nil {
		c.Header = r.word(n, fieldName, "the name of a header, such as Authorization")
		if framing(c.Header) {
			r.bad(n, "is a header that HTTP itself needs", "use Authorization or a header of your own")
		}
	}
	if n := o.get("scheme"); n != nil {
		if c.Scheme = r.string(n); c.Scheme != "" {
			c.Scheme = r.word(n, fieldName, `one word, such as Bearer, or "" for the bare header value`)
		}
	}
	c.RequireTLS = o.flag("require_tls", false)
	if n := o.get("require_content_type"); n != nil {
		if c.RequireContentType = r.string(n); c.RequireContentType != "" {
			c.RequireContentType = r.word(n, mediaTypeName, `a media type in lower case without parameters, such as application/json, or ""`)
		}
	}
	o.done()
}

// framing says whether a header belongs to the message and not to its author.
func framing(name string) bool {
	return slices.ContainsFunc([]string{"Host", "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Trailer", "TE", "Keep-Alive"}, func(s string) bool {
		return strings.EqualFold(s, name)
	})
}

func (r *reader) format(n, display *node) {
	f := &r.doc.Format
	shown := r.object(display)
	r.doc.Display = Display{First: int(shown.int("first", 0, 0, 256)), Last: int(shown.int("last", 0, 0, 256))}
	shown.done()
	if n == nil {
		return
	}
	problems := len(r.problems)
	o := r.object(n)
	prefixes := o.required("prefixes")
	r.each(prefixes, environmentName, "lower-case letters, digits, - and _, at most 32, such as live", func(name string, n *node) {
		if f.Prefixes == nil {
			f.Prefixes = make(map[string]string)
		}
		f.Prefixes[name] = r.word(n, prefixChars, "at most 32 letters, digits, _, . and -, such as my_live_")
		if strings.HasPrefix(f.Prefixes[name], rootPrefix) {
			r.bad(n, "begins like a root key", "choose another prefix than "+rootPrefix)
		}
	})
	if prefixes != nil && len(prefixes.values) == 0 {
		r.bad(prefixes, "names no environment", "write at least one, such as {live: my_live_}")
	}
	f.Alphabet = o.choice("alphabet", "base62", "base36", "base62")
	f.Checksum = o.choice("checksum", "none", "none", "crc32")
	if length := o.required("length"); length != nil {
		f.Length = int(r.int(length, 1, 200))
	}
	if named := o.get("default_environment"); named != nil {
		f.DefaultEnvironment = r.string(named)
		if _, ok := f.Prefixes[f.DefaultEnvironment]; !ok && len(f.Prefixes) > 0 {
			r.bad(named, fmt.Sprintf("%q has no prefix", clip(f.DefaultEnvironment)), oneOf(f.Prefixes))
		}
	} else if len(f.Prefixes) == 1 {
		for f.DefaultEnvironment = range f.Prefixes {
		}
	} else if len(f.Prefixes) > 1 {
		r.bad(n, "has several environments and no default_environment", oneOf(f.Prefixes))
	}
	o.done()
	if len(r.problems) == problems {
		if len(prefixes.names) > maxList {
			r.bad(prefixes, fmt.Sprintf("has more than %d environments", maxList), "shorten it")
			return
		}
		r.prefixesApart(prefixes)
		r.enoughUnseen(n)
	}
}

// prefixesApart refuses prefixes that would let a secret of one environment
// read as one of another.
func (r *reader) prefixesApart(n *node) {
	f := r.doc.Format
	alphabet := alphabetOf(f.Alphabet)
	for i, name := range n.names {
		for _, other := range n.names[:i] {
			short, long := f.Prefixes[name], f.Prefixes[other]
			if len(short) > len(long) {
				short, long = long, short
			}
			rest, ok := strings.CutPrefix(long, short)
			switch {
			case ok && rest == "":
				r.bad(n.values[i], fmt.Sprintf("is also the prefix of %s", other), "give each environment its own")
			case ok && strings.Trim(rest, alphabet) == "":
				r.bad(n.values[i], fmt.Sprintf("and the prefix of %s: a secret that starts with %s could start with %s by chance", other, short, long), "end prefixes with _")
			}
		}
	}
}

// enoughUnseen refuses a format that can be guessed from what is shown of a
// secret. A shown character of a checksum tells as much as a random one does.
func (r *reader) enoughUnseen(n *node) {
	f, show := r.doc.Format, r.doc.Display
	random, check := f.Length, 0
	if f.Checksum == "crc32" {
		random, check = f.Length-checksumLength, checksumLength
	}
	perCharacter := math.Log2(float64(len(alphabetOf(f.Alphabet))))
	for _, environment := range slices.Sorted(maps.Keys(f.Prefixes)) {
		first := min(max(0, show.First-len(f.Prefixes[environment])), max(0, random))
		last := max(0, show.Last-check)
		told := min(32, float64(min(show.Last, check))*math.Log2(62))
		if show.First > len(f.Prefixes[environment])+random {
			told = 32
		}
		bits := max(0, float64(random-first-last)*perCharacter-told)
		if bits >= 128 {
			continue
		}
		more := int(math.Ceil((128 - float64(random-first-last)*perCharacter + told) / perCharacter))
		r.bad(n, fmt.Sprintf("leaves %d bits of a secret of %s unseen, and 128 must stay so: %d characters, of which %d are checksum, and display shows the first %d and the last %d of the whole secret", int(bits), environment, f.Length, check, show.First, show.Last),
			fmt.Sprintf("a length of at least %d, or show less", f.Length+more))
		return
	}
}

func (r *reader) owner(o *object) {
	r.doc.Owner.Kind = o.text("kind", 64)
	r.doc.Owner.Path = r.template(o, "owner")
	o.done()
}

func (r *reader) resource(o *object) {
	rules := &r.doc.Resource
	rules.Kind = o.text("kind", 64)
	rules.Mode = o.choice("mode", "none", "none", "optional", "required")
	rules.Path = r.template(o, "resource")
	if rules.Mode == "none" && rules.Path != "" {
		r.bad(o.get("path"), "is there although mode is none, so that no key is bound to anything", "set mode to optional or required, or remove path")
	}
	o.done()
}

// template reads a path that captures {name}; "" is none.
func (r *reader) template(o *object, name string) string {
	n := o.get("path")
	if n == nil {
		return ""
	}
	path := r.string(n)
	if path == "" || n.shape != isString {
		return ""
	}
	if _, err := parsePattern(path, name); err != nil {
		r.bad(n, err.Error(), fmt.Sprintf("a path such as /v1/things/{%s}/**", name))
	}
	return path
}

var grants = []string{"keys.create", "keys.rotate", "keys.revoke", "keys.delete", "keys.read"}

func (r *reader) scopes(o *object) {
	d := &r.doc
	r.each(o.get("scopes"), scopeName, "letters, digits, _, ., :, / and -, at most 64, such as parcels:read", func(name string, n *node) {
		if d.Scopes == nil {
			d.Scopes = make(map[string]ScopeRules)
		}
		o := r.object(n)
		s := ScopeRules{About: o.text("about", 1000)}
		s.Routes = r.list(o.get("routes"), routeText)
		s.Grants = r.list(o.get("grants"), oneOfThese(grants...))
		if n := o.get("available"); n != nil && !r.flag(n) && n.shape == isBool {
			s.Available = new(false)
		}
		o.done()
		d.Scopes[name] = s
	})
	d.FixedScopes = r.list(o.get("fixed_scopes"), func(s string) (string, string) {
		rules, ok := d.Scopes[s]
		switch {
		case !ok:
			return fmt.Sprintf("%q is not a scope of this keyspace", clip(s)), declared("scopes", d.Scopes)
		case rules.Available != nil:
			return fmt.Sprintf("%q cannot be granted yet", s), "remove available: false from the scope, or leave it out here"
		}
		return "", ""
	})
	if len(d.FixedScopes) == 0 {
		d.FixedScopes = nil
	}
}

func declared[V any](section string, m map[string]V) string {
	if len(m) == 0 {
		return "declare it under " + section
	}
	return "one of " + names(m) + ", or declare it under " + section
}

func routeText(s string) (string, string) {
	if _, err := parseRoute(s); err != nil {
		return "the route " + strconv.Quote(clip(s)) + " " + err.Error(), "METHOD[,METHOD] /path, such as GET /v1/parcels/**"
	}
	return "", ""
}

func (r *reader) plans(o *object) {
	d := &r.doc
	plans := o.get("plans")
	r.each(plans, planName, "letters, digits, - and _, at most 64, such as basic", func(name string, n *node) {
		if d.Plans == nil {
			d.Plans = make(map[string]Plan)
		}
		o := r.object(n)
		var p Plan
		if n := o.get("access"); n != nil && !r.flag(n) && n.shape == isBool {
			p.Access = new(false)
		}
		p.Limits = r.windows(o.get("limits"))
		if n := o.get("max_keys"); n != nil {
			p.MaxKeys = new(int(r.int(n, 0, 1_000_000)))
		}
		p.Scopes = r.list(o.get("scopes"), func(s string) (string, string) {
			if _, ok := d.Scopes[s]; !ok {
				return fmt.Sprintf("%q is not a scope of this keyspace", clip(s)), declared("scopes", d.Scopes)
			}
			return "", ""
		})
		r.each(o.get("details"), detailName, "letters, digits, _, . and -, at most 64, such as upgrade_url", func(name string, n *node) {
			if p.Details == nil {
				p.Details = make(map[string]json.RawMessage)
			}
			p.Details[name] = n.json(nil)
		})
		o.done()
		d.Plans[name] = p
	})
	n := o.get("default_plan")
	switch {
	case n != nil:
		d.DefaultPlan = r.string(n)
		if _, ok := d.Plans[d.DefaultPlan]; !ok && n.shape == isString {
			r.bad(n, fmt.Sprintf("%q is not a plan of this keyspace", clip(d.DefaultPlan)), declared("plans", d.Plans))
		}
	case len(d.Plans) > 0:
		r.bad(plans, "are there without a default_plan", "add default_plan: "+names(d.Plans)+" (one of them)")
	}
}

func (r *reader) windows(n *node) events.Limits {
	var limits events.Limits
	if n == nil {
		return nil
	}
	o := r.object(n)
	for _, window := range Windows {
		if n := o.get(window); n != nil {
			if limits == nil {
				limits = make(events.Limits)
			}
			limits[window] = r.int(n, 1, maxLimit)
		}
	}
	o.done()
	return limits
}

func (r *reader) limits(o *object) {
	l := &r.doc.Limits
	from := "key"
	if len(r.doc.Plans) > 0 {
		from = "plan"
	}
	l.From = o.choice("from", from, "key", "plan")
	l.CountBy = o.choice("count_by", "key", "key", "owner")
	if l.CountBy == "owner" && l.From == "key" {
		r.bad(o.get("count_by"), "is owner although limits come from the key: keys with limits of their own cannot share a pool", "set from to plan, or count_by to key")
	}
	if n := o.get("from"); n != nil && l.From == "plan" && o.r.doc.Plans == nil {
		r.bad(n, "is plan although there are no plans, so that nothing would be limited", "declare plans, or set from to key")
	}
	l.Default = r.windows(o.get("default"))
	r.each(o.get("presets"), nil, "", func(name string, n *node) {
		if l.Presets == nil {
			l.Presets = make(map[string]events.Limits)
		}
		// Not nil, so that a preset without a limit is written as {}.
		limits := r.windows(n)
		if limits == nil {
			limits = events.Limits{}
		}
		l.Presets[name] = limits
	})
	o.done()
}

func (r *reader) lifecycle(o *object) {
	expiry := o.section("expiry")
	e := &r.doc.Lifecycle.Expiry
	presets := expiry.get("presets")
	e.Presets = r.list(presets, func(s string) (string, string) {
		if s == "never" || s == "custom" {
			return "", ""
		}
		return expiryText(s)
	})
	if len(e.Presets) == 0 {
		e.Presets = nil
	}
	e.Default = "never"
	if n := expiry.get("default"); n != nil {
		e.Default = r.string(n)
		if message, fix := expiryText(e.Default); e.Default != "never" && message != "" {
			r.bad(n, message, fix)
		} else if e.Presets != nil && !slices.Contains(e.Presets, e.Default) {
			r.bad(n, fmt.Sprintf("%q is not among the presets", e.Default), "one of the presets, or add it to them")
		}
	} else if e.Presets != nil && !slices.Contains(e.Presets, "never") {
		r.bad(presets, "do not have never, and there is no default", "add a default, one of the presets")
	}
	expiry.done()

	rotation := o.section("rotation")
	rules := &r.doc.Lifecycle.Rotation
	rules.Enabled = rotation.flag("enabled", true)
	rules.GraceDefault = rotation.duration("grace_default", 0)
	rules.GraceMax = rotation.duration("grace_max", max(rules.GraceDefault, Duration(48*time.Hour)))
	rules.MaxAge = rotation.duration("max_age", 0)
	if rules.GraceDefault > rules.GraceMax {
		r.bad(rotation.get("grace_default"), fmt.Sprintf("%s is longer than grace_max, %s", rules.GraceDefault, rules.GraceMax), "at most grace_max")
	}
	rotation.done()
	o.done()
}

func expiryText(s string) (string, string) {
	if d, err := ParseDuration(s); err != nil || d <= 0 {
		return fmt.Sprintf("%q is not an expiry", clip(s)), "never, or a duration such as 30d"
	}
	return "", ""
}

func (r *reader) cost(o *object) {
	c := &r.doc.Cost
	if n := o.get("header"); n != nil {
		if c.Header = r.string(n); c.Header != "" {
			c.Header = r.word(n, fieldName, "the name of a response header, such as X-Usage-Cost-Micros")
		}
	}
	c.PerRequest = o.int("per_request", 0, 0, maxLimit)
	o.done()
}

func (r *reader) answers(n *node) {
	r.each(n, nil, "", func(name string, n *node) {
		if code := Code(name); name != "default" && (code == CodeValid || !slices.Contains(Codes(), code)) {
			r.bad(n, fmt.Sprintf("%q is not a code of a refusal", clip(name)), "default, or one of "+refusals(name))
			return
		}
		if r.doc.Answers == nil {
			r.doc.Answers = make(map[string]Answer)
		}
		r.doc.Answers[name] = r.answer(r.object(n))
	})
}

func refusals(like string) string {
	var all []string
	for _, c := range Codes() {
		if c != CodeValid {
			all = append(all, string(c))
		}
	}
	if near := nearest(like, all); near != "" {
		return "these: did you mean " + near + "?"
	}
	return strings.Join(all, ", ")
}

func (r *reader) answer(o *object) Answer {
	a := Answer{Status: int(o.int("status", 0, 400, 599))}
	a.Message = r.filled(o, "message", 1000, "message")
	a.DocumentationURL = r.filled(o, "documentation_url", 1000, "message", "documentation_url")
	seen := make(map[string]string)
	r.each(o.get("headers"), fieldName, "the name of a header, such as X-Reason", func(name string, n *node) {
		if a.Headers == nil {
			a.Headers = make(map[string]string)
		}
		a.Headers[name] = r.string(n)
		r.known(n, a.Headers[name])
		if strings.ContainsFunc(a.Headers[name], unseen) {
			r.bad(n, "has control characters", "write one line of visible characters")
		}
		if framing(name) {
			r.bad(n, "is a header that HTTP itself needs", "leave it out")
		}
		if other, ok := seen[strings.ToLower(name)]; ok {
			r.bad(n, "is the same header as "+other, "remove one")
		}
		seen[strings.ToLower(name)] = name
	})
	if n := o.get("body"); n != nil {
		r.knownInside(n)
		a.Body = n.json(nil)
	}
	o.done()
	return a
}

// filled reads a text with placeholders; itself are those that would make it
// contain itself.
func (r *reader) filled(o *object, name string, most int, itself ...string) string {
	s := o.text(name, most)
	n := o.get(name)
	if n == nil {
		return s
	}
	r.known(n, s)
	for _, p := range itself {
		if strings.Contains(s, "${"+p+"}") {
			r.bad(n, fmt.Sprintf("has ${%s}, which would contain itself", p), "write it out")
		}
	}
	return s
}

// known refuses placeholders that nothing would fill.
func (r *reader) known(n *node, s string) {
	for rest := s; ; {
		_, after, ok := strings.Cut(rest, "${")
		if !ok {
			return
		}
		name, remaining, closed := strings.Cut(after, "}")
		if !closed {
			r.bad(n, "has a ${ without its }", "close the placeholder, or write no ${")
			return
		}
		detail, isDetail := strings.CutPrefix(name, detailsPrefix)
		if !slices.Contains(placeholders, name) && !(isDetail && detailName.MatchString(detail)) {
			fix := "one of ${" + strings.Join(placeholders, "} ${") + "} ${plan.details.NAME}"
			if near := nearest(name, placeholders); near != "" {
				fix = "did you mean ${" + near + "}?"
			}
			r.bad(n, fmt.Sprintf("has the unknown placeholder ${%s}", clip(name)), fix)
		}
		rest = remaining
	}
}

// knownInside checks the strings of a body.
func (r *reader) knownInside(n *node) {
	if n.shape == isString {
		r.known(n, n.text)
	}
	for i, v := range n.values {
		if n.shape == isObject && strings.Contains(n.names[i], "${") {
			r.bad(v, "has a placeholder in a name", "placeholders stand in values")
		}
		r.knownInside(v)
	}
}

func (r *reader) publicRoutes(n *node) {
	for _, n := range r.items(n) {
		o := r.object(n)
		var p PublicRoute
		if n := o.required("route"); n != nil {
			p.Route = r.string(n)
			if message, fix := routeText(p.Route); message != "" {
				r.bad(n, message, fix)
			}
		}
		if n := o.get("body"); n != nil {
			p.Body = n.json(nil)
			p.Status = 200
		}
		p.Status = int(o.int("status", int64(p.Status), 200, 599))
		if p.Body != nil && (p.Status == 204 || p.Status == 304) {
			r.bad(n, fmt.Sprintf("has a body with status %d, which allows none", p.Status), "set status to 200")
		}
		o.done()
		r.doc.PublicRoutes = append(r.doc.PublicRoutes, p)
	}
}

var (
	columns = []string{
		"id", "name", "display", "owner", "environment", "status", "plan", "scopes", "resources", "limits",
		"allowed_origins", "allowed_ips", "created_at", "created_by", "expires_at", "rotated_at", "grace_until",
		"revoked_at", "last_used", "use_count",
	}
	statuses = []string{"active", "expired", "revoked", "rate_limited"}
)

func (r *reader) console(o *object) {
	c := &r.doc.Console
	if c.Columns = r.list(o.get("columns"), oneOfThese(columns...)); len(c.Columns) == 0 {
		c.Columns = nil
	}
	if n := o.get("statuses"); n != nil {
		o := r.object(n)
		for _, status := range statuses {
			if s := o.text(status, 64); s != "" {
				if c.Statuses == nil {
					c.Statuses = make(map[string]string)
				}
				c.Statuses[status] = s
			}
		}
		o.done()
	}
	o.done()
}

// alertFields are what each alert needs besides when; ? stands before what it
// may have.
var alertFields = map[string][]string{
	"limit_used":       {"above"},
	"error_rate":       {"above", "over", "?min_requests"},
	"unusual_volume":   {"above", "over", "?min_requests"},
	"new_source_ip":    {},
	"denied":           {"above", "over"},
	"cost":             {"above", "over"},
	"expiring":         {"within"},
	"expired":          {},
	"unused":           {"for"},
	"previous_secret":  {"within"},
	"rotation_overdue": {},
}

func (r *reader) alerts(n *node) {
	off := map[string]bool{}
	for _, n := range r.items(n) {
		o := r.object(n)
		when := o.required("when")
		if o.n == nil || when == nil {
			continue
		}
		var a AlertRule
		a.When = r.string(when)
		fields, ok := alertFields[a.When]
		if !ok {
			if when.shape == isString {
				r.bad(when, fmt.Sprintf("%q is not an alert", clip(a.When)), "one of "+names(alertFields))
			}
			continue
		}
		if a.Off = o.flag("off", false); a.Off {
			fields = nil
		}
		if other, ok := off[a.When]; ok && (a.Off || other) {
			r.bad(n, fmt.Sprintf("contradicts another one: %s is switched off and on", a.When), "keep one of them")
		}
		off[a.When] = a.Off
		for _, field := range fields {
			field, optional := strings.CutPrefix(field, "?")
			n := o.get(field)
			if n == nil {
				if !optional {
					o.required(field)
				}
				continue
			}
			switch field {
			case "above":
				a.Above = new(r.above(n, a.When == "limit_used" || a.When == "error_rate"))
			case "over":
				a.Over = r.span(n)
			case "within":
				a.Within = r.span(n)
			case "for":
				a.For = r.span(n)
			case "min_requests":
				a.MinRequests = r.int(n, 1, maxLimit)
			}
		}
		if a.When == "rotation_overdue" && !a.Off && r.doc.Lifecycle.Rotation.MaxAge == 0 {
			r.bad(n, "can never be raised: no secret is overdue without lifecycle.rotation.max_age", "set max_age, or remove the alert")
		}
		o.done()
		r.doc.Alerts = append(r.doc.Alerts, a)
	}
}

func (r *reader) above(n *node, share bool) float64 {
	f, err := strconv.ParseFloat(n.text, 64)
	switch {
	case n.shape != isNumber || err != nil:
		r.expected(n, isNumber)
	case f < 0:
		r.bad(n, "is negative", "a number from 0 up")
	case share && f > 1:
		r.bad(n, n.text+" is more than everything", "a share from 0 to 1, such as 0.8")
	default:
		return f
	}
	return 0
}

func (r *reader) span(n *node) Duration {
	d := r.duration(n)
	if d == 0 && n.shape == isString && n.text != "" {
		if _, err := ParseDuration(n.text); err == nil {
			r.bad(n, "is no time at all", "a duration such as 5m")
		}
	}
	return d
}

// object is an object being read. Reading a field makes it known; done refuses
// what nobody read.
type object struct {
	r     *reader
	n     *node // nil: absent, or no object
	known []string
}

func (r *reader) object(n *node) *object {
	if n != nil && n.shape != isObject {
		r.expected(n, isObject)
		n = nil
	}
	return &object{r: r, n: n}
}

func (r *reader) expected(n *node, want shape) {
	r.bad(n, "is "+n.shape.String(), "write "+want.String())
}

// section is a field that is itself an object, empty where it is absent.
func (o *object) section(name string) *object { return o.r.object(o.get(name)) }

func (o *object) get(name string) *node {
	if !slices.Contains(o.known, name) {
		o.known = append(o.known, name)
	}
	if o.n == nil {
		return nil
	}
	i, ok := o.n.index[name]
	if !ok {
		return nil
	}
	n := o.n.values[i]
	if n.shape == isNull {
		if !slices.ContainsFunc(o.r.problems, func(p Problem) bool { return p.Path == n.path && p.Line == n.line }) {
			o.r.bad(n, "has no value", "give it one, or remove the line")
		}
		return nil
	}
	return n
}

func (o *object) required(name string) *node {
	n := o.get(name)
	if n == nil && o.n != nil {
		if _, ok := o.n.index[name]; !ok {
			o.r.add(Problem{dotted(o.n.path, name), o.n.line, "is missing", "add it"})
		}
	}
	return n
}

func (o *object) done() {
	if o.n == nil {
		return
	}
	for i, name := range o.n.names {
		if slices.Contains(o.known, name) {
			continue
		}
		fix := "remove it: there are " + strings.Join(o.known, ", ")
		if o.n.values[i].bare {
			fix = "put text that has a comma in quotes"
		}
		if near := nearest(name, o.known); near != "" {
			fix = "did you mean " + near + "?"
		}
		o.r.bad(o.n.values[i], "is not a known field", fix)
	}
}

func (o *object) text(name string, most int) string {
	n := o.get(name)
	if n == nil {
		return ""
	}
	s := strings.TrimRight(o.r.string(n), "\n") // which YAML's block texts end with
	// In {about: Read, change and delete, routes: …} YAML ends the text at its
	// comma and reads a name without a value. No field has such a name, so that
	// this can only be the rest of the text.
	for i := o.n.index[name] + 1; i < len(o.n.names) && o.n.values[i].bare && strings.Contains(o.n.names[i], " "); i++ {
		s += ", " + o.n.names[i]
		o.known = append(o.known, o.n.names[i])
	}
	switch {
	case utf8.RuneCountInString(s) > most:
		o.r.bad(n, fmt.Sprintf("is longer than %d characters", most), "shorten it")
	case strings.ContainsFunc(s, unseen):
		o.r.bad(n, "has control or direction characters", "write one line of visible characters")
	}
	return s
}

func (o *object) flag(name string, otherwise bool) bool {
	if n := o.get(name); n != nil {
		return o.r.flag(n)
	}
	return otherwise
}

func (o *object) int(name string, otherwise, least, most int64) int64 {
	if n := o.get(name); n != nil {
		return o.r.int(n, least, most)
	}
	return otherwise
}

func (o *object) duration(name string, otherwise Duration) Duration {
	if n := o.get(name); n != nil {
		return o.r.duration(n)
	}
	return otherwise
}

func (o *object) choice(name, otherwise string, choices ...string) string {
	n := o.get(name)
	if n == nil {
		return otherwise
	}
	s := o.r.string(n)
	if message, fix := oneOfThese(choices...)(s); n.shape == isString && message != "" {
		o.r.bad(n, message, fix)
		return otherwise
	}
	return s
}

func (r *reader) string(n *node) string {
	if n.shape != isString {
		r.expected(n, isString)
		return ""
	}
	return n.text
}

func (r *reader) word(n *node, form *regexp.Regexp, fix string) string {
	s := r.string(n)
	if n.shape == isString && !form.MatchString(s) {
		r.bad(n, fmt.Sprintf("%q is not well-formed", clip(s)), fix)
	}
	return s
}

func (r *reader) flag(n *node) bool {
	if n.shape != isBool {
		r.expected(n, isBool)
	}
	return n.shape == isBool && n.text == "true"
}

func (r *reader) int(n *node, least, most int64) int64 {
	if n.shape != isNumber {
		fix := fmt.Sprintf("write a whole number from %d to %d", least, most)
		if _, err := strconv.ParseInt(n.text, 10, 64); n.shape == isString && err == nil {
			fix = "write " + n.text + " without quotes"
		}
		r.bad(n, "is "+n.shape.String(), fix)
		return least
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil || i < least || i > most {
		r.bad(n, clip(n.text)+" is out of range", fmt.Sprintf("a whole number from %d to %d", least, most))
		return least
	}
	return i
}

func (r *reader) duration(n *node) Duration {
	if n.shape != isString {
		r.bad(n, "is "+n.shape.String(), "a duration with its unit, such as 24h")
		return 0
	}
	d, err := ParseDuration(n.text)
	if err != nil {
		r.bad(n, fmt.Sprintf("%q is not a duration", clip(n.text)), "write 30d, 24h or 90s")
	}
	return d
}

func (r *reader) items(n *node) []*node {
	if n == nil {
		return nil
	}
	if n.shape != isList {
		r.expected(n, isList)
		return nil
	}
	return n.values
}

// list reads strings that check finds nothing wrong with, each once. Absent is
// nil, an empty list is not.
func (r *reader) list(n *node, check func(string) (message, fix string)) []string {
	if n == nil || n.shape != isList {
		r.items(n)
		return nil
	}
	if len(n.values) > maxList {
		r.bad(n, fmt.Sprintf("has more than %d entries", maxList), "shorten it")
		return nil
	}
	list := make([]string, 0, len(n.values))
	for _, v := range n.values {
		s := r.string(v)
		if v.shape != isString {
			continue
		}
		if message, fix := check(s); message != "" {
			r.bad(v, message, fix)
		}
		if slices.Contains(list, s) {
			r.bad(v, fmt.Sprintf("%q is there twice", clip(s)), "remove one")
		}
		list = append(list, s)
	}
	return list
}

// each reads an object whose names are the author's own, of the given form; nil
// is any one-line text.
func (r *reader) each(n *node, form *regexp.Regexp, fix string, read func(name string, n *node)) {
	if n == nil {
		return
	}
	if n.shape != isObject {
		r.expected(n, isObject)
		return
	}
	for i, name := range n.names {
		v := n.values[i]
		switch {
		case form != nil && !form.MatchString(name):
			r.bad(v, fmt.Sprintf("the name %q is not well-formed", clip(name)), fix)
		case form == nil && (name == "" || utf8.RuneCountInString(name) > 64 || strings.ContainsFunc(name, unseen)):
			r.bad(v, "has a name that is empty, too long or has control characters", "at most 64 visible characters")
		case v.shape == isNull:
			r.bad(v, "has no value", "write {} or remove the line")
		default:
			read(name, v)
		}
	}
}

func oneOfThese(choices ...string) func(string) (string, string) {
	return func(s string) (message, fix string) {
		if slices.Contains(choices, s) {
			return "", ""
		}
		fix = "one of " + strings.Join(choices, ", ")
		if near := nearest(s, choices); near != "" {
			fix = "did you mean " + near + "?"
		}
		return fmt.Sprintf("%q is not known here", clip(s)), fix
	}
}

// nearest is the name that somebody probably meant, or empty.
func nearest(s string, names []string) string {
	best, found := 3, "" // more than two slips are another word
	for _, name := range names {
		if d := distance(s, name); d < best && d < max(2, (len(name)+1)/2) {
			best, found = d, name
		}
	}
	return found
}

// distance counts the letters to insert, remove or change (Levenshtein), where
// case and the difference between - and _ count nothing.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	a, b = fold(a), fold(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
