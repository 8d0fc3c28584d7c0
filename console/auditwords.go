package console

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/console/chart"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// eventKind is a type of event as people call it.
type eventKind struct {
	Type, Word string
	Stream     string
	Icon       string // of parts.html, or of audit.html
	Tone       string // good, bad, warn or none
	words      string // by which it is searched for, besides those of Word
}

// eventKinds are all types there are, in the order in which they are offered.
var eventKinds = []eventKind{
	{"key.created", "Key created", events.Ledger, "plus", "good", "new"},
	{"key.updated", "Key changed", events.Ledger, "document", "", "updated edited"},
	{"key.rotated", "Key rotated", events.Ledger, "key", "", "rotation"},
	{"key.grace_ended", "Grace ended", events.Ledger, "clock", "", ""},
	{"key.revoked", "Key revoked", events.Ledger, "revoked", "bad", "revocation"},
	{"key.deleted", "Key deleted", events.Ledger, "revoked", "bad", "removed"},
	{"owner.registered", "Owner registered", events.Ledger, "people", "", ""},
	{"owner.plan_changed", "Plan changed", events.Ledger, "people", "", "plan"},
	{"owner.key_admitted", "Key counted against the cap", events.Ledger, "people", "", "cap"},
	{"keyspace.configured", "Keyspace configured", events.Ledger, "document", "", "configuration document"},

	{"key.used", "Request admitted", events.Usage, "check", "good", "used use uses"},
	{"key.use_reported", "Outcome reported", events.Usage, "check", "", "outcome"},
	{"key.denied", "Request refused", events.Usage, "revoked", "bad", "denied refusal"},
	{"key.rate_limited", "Over a limit", events.Usage, "rate_limited", "warn", "limited limits throttled"},
	{"credential.rejected", "No known key", events.Usage, "revoked", "bad", "rejected unknown"},
	{"limit.taken", "Limit drawn from", events.Usage, "pulse", "", "taken"},
	{"usage.gap", "Uses not recorded", events.Usage, "rate_limited", "warn", "gap lost"},

	{"alert.raised", "Alert raised", events.Ops, "bell", "warn", "alerts"},
	{"alert.resolved", "Alert resolved", events.Ops, "bell", "good", "alerts"},
	{"alert_rules.set", "Alert rules set", events.Ops, "bell", "", "rules"},
	{"audit.read", "Log read", events.Ops, "log", "", "read export exported"},
	{"signin.failed", "Sign-in failed", events.Ops, "revoked", "bad", "signin"},
	{"revocation.measured", "Revocation measured", events.Ops, "pulse", "", ""},
	{"root_key.reset", "Root keys reset", events.Ops, "key", "warn", ""},
	{"log.key_rotated", "Log key rotated", events.Ops, "seal", "", ""},
	{"privacy.erased", "Personal data erased", events.Ops, "revoked", "", "privacy"},
	{"usage.pruned", "Old uses pruned", events.Ops, "document", "", ""},
	{"hold.set", "Hold set", events.Ops, "seal", "", ""},
	{"webhook.registered", "Webhook registered", events.Ops, "broadcast", "", "webhooks"},
	{"webhook.removed", "Webhook removed", events.Ops, "broadcast", "", "webhooks"},
	{"webhook.secret_rotated", "Webhook secret rotated", events.Ops, "broadcast", "", "webhooks"},
	{"webhook.disabled", "Webhook disabled", events.Ops, "broadcast", "warn", "webhooks"},
	{"webhook.enabled", "Webhook enabled", events.Ops, "broadcast", "good", "webhooks"},
	{"subscriber.added", "Subscriber added", events.Ops, "broadcast", "", "subscribers"},
	{"subscriber.removed", "Subscriber removed", events.Ops, "broadcast", "", "subscribers"},
	{"service.started", "Program started", events.Ops, "pulse", "", "service"},
	{"backup.restored", "Backup restored", events.Ops, "rate_limited", "warn", ""},
	{"loss.accepted", "Loss accepted", events.Ops, "rate_limited", "bad", ""},
}

func kindOf(eventType string) eventKind {
	if i := slices.IndexFunc(eventKinds, func(k eventKind) bool { return k.Type == eventType }); i >= 0 {
		return eventKinds[i]
	}
	return eventKind{Type: eventType, Word: eventType, Icon: "log"}
}

// facts are the data of an event, read by name.
type facts map[string]any

func dataOf(e *api.AuditEvent) facts {
	d, _ := e.Data.(map[string]any)
	return d
}

func (f facts) text(name string) string {
	s, _ := f[name].(string)
	return s
}

func (f facts) number(name string) int64 {
	n, _ := f[name].(float64)
	return int64(n)
}

// person is what a personal datum is shown as.
func (f facts) person(name string) string {
	switch v := f[name].(type) {
	case string:
		return v
	case map[string]any:
		switch {
		case v["erased"] == true:
			return "erased"
		case v["damaged"] == true:
			return "damaged"
		}
		return "sealed: for operators and auditors"
	}
	return ""
}

func quoted(name string) string { return "“" + name + "”" }

// times is a count of requests.
func times(n int64) string {
	if n == 1 {
		return "1 request"
	}
	return chart.Count(n) + " requests"
}

// reason is what follows when one was given.
func (f facts) reason() string {
	if r := f.text("reason"); r != "" {
		return ": " + r
	}
	return ""
}

// eventSentence is an event in words.
func eventSentence(e *api.AuditEvent) string {
	d := dataOf(e)
	word := kindOf(e.Type).Word
	switch e.Type {
	case "key.created":
		what := "Key "
		if role := d.text("role"); role != "" {
			what = "Root key (" + role + ") "
		}
		if d["imported"] == true {
			return what + quoted(d.text("name")) + " imported"
		}
		return what + quoted(d.text("name")) + " created"
	case "key.updated":
		return word + ": " + strings.ReplaceAll(strings.Join(namesOf(d), ", "), "_", " ")
	case "key.rotated":
		if t := d.text("grace_until"); t != "" {
			return word + d.reason() + "; the previous secret works until " + moments(t)
		}
		return word + d.reason() + "; the previous secret ended at once"
	case "key.grace_ended", "key.revoked", "usage.pruned", "webhook.disabled", "loss.accepted":
		return word + d.reason()
	case "owner.registered":
		return "Owner " + quoted(d.text("name")) + " registered" + onPlan(d.text("plan"))
	case "owner.plan_changed":
		return "Plan changed from " + cmp.Or(d.text("previous"), "none") + " to " + cmp.Or(d.text("plan"), "none")
	case "owner.key_admitted":
		return fmt.Sprintf("%d of %d keys taken", d.number("active_keys"), d.number("max_keys"))
	case "keyspace.configured":
		return fmt.Sprintf("Keyspace document, version %d, recorded", d.number("document_version"))
	case "key.used":
		s := strings.TrimSpace(d.text("method") + " " + cmp.Or(d.text("endpoint"), "(path not told)"))
		if status := d.number("status"); status > 0 {
			return s + " → " + strconv.FormatInt(status, 10)
		}
		return s + " admitted"
	case "key.use_reported":
		return fmt.Sprintf("Outcome reported: %d in %d ms", d.number("status"), d.number("latency_ms"))
	case "key.denied":
		return times(d.number("count")) + " refused: " + inCode(d.text("code")) + at(d.text("endpoint"))
	case "key.rate_limited":
		return times(d.number("count")) + " over " + chart.Count(d.number("limit")) + " per " + d.text("window")
	case "credential.rejected":
		return times(d.number("count")) + " without a known key: " + inCode(d.text("code"))
	case "limit.taken":
		return times(d.number("count")) + " of other traffic drew from the limit"
	case "usage.gap":
		if n := d.number("count"); n > 0 {
			return chart.Count(n) + " uses could not be recorded" + d.reason()
		}
		return "Uses could not be recorded" + d.reason()
	case "alert.raised":
		return "Alert: " + cmp.Or(d.text("detail"), d.text("rule"), d.text("when"))
	case "alert.resolved":
		return "Alert resolved: " + cmp.Or(d.text("rule"), d.text("when"))
	case "audit.read":
		s := "The log was read: " + strings.ReplaceAll(d.text("what"), ".", " ")
		if n := d.number("count"); n > 0 {
			s += ", " + chart.Count(n) + " shown"
		}
		return s
	case "signin.failed":
		return word + d.reason()
	case "service.started":
		return strings.TrimSpace("Program started: " + d.text("program") + " " + d.text("build"))
	case "hold.set":
		if d["active"] == true {
			return "Hold set" + d.reason()
		}
		return "Hold lifted" + d.reason()
	case "webhook.registered":
		return "Webhook to " + d.text("url") + " registered"
	case "subscriber.added", "subscriber.removed":
		return word + ": " + d.text("name")
	case "revocation.measured":
		stopped, _ := d["stopped"].([]any)
		return fmt.Sprintf("Measured how soon %s stopped it", plural(len(stopped), "verifier"))
	}
	return word
}

func namesOf(d facts) []string {
	var list []string
	for name := range d {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func moments(t string) string {
	when, err := time.Parse(time.RFC3339Nano, t)
	if err != nil {
		return t
	}
	return when.UTC().Format("2 January 2006 15:04 UTC")
}

func onPlan(plan string) string {
	if plan == "" {
		return ""
	}
	return " on the plan " + plan
}

func at(endpoint string) string {
	if endpoint == "" {
		return ""
	}
	return " at " + endpoint
}

// inCode is a code as words.
func inCode(code string) string { return strings.ToLower(strings.ReplaceAll(code, "_", " ")) }

// said is an event of the list.
type said struct {
	Time      events.Time `json:"time"`
	Text      string      `json:"text"`
	Icon      string      `json:"icon"`
	Tone      string      `json:"tone"`
	Word      string      `json:"word"`
	Keyspace  string      `json:"keyspace"`
	Owner     string      `json:"owner"`
	Key       string      `json:"key"`
	ShortKey  string      `json:"short_key"`
	Who       string      `json:"who"`
	WhoExact  string      `json:"who_exact"`
	Place     string      `json:"place"`
	To        string      `json:"to"`
	Exact     string      `json:"exact"`
	IsRootKey bool        `json:"is_root_key"`
}

// eventPath is the address of an event's page, which does not change.
func eventPath(stream string, sequence uint64, line int) string {
	s := fmt.Sprintf("/audit/%s/%d", strings.ToLower(stream), sequence)
	if line > 0 {
		s += "?line=" + strconv.Itoa(line)
	}
	return s
}

func placeWords(stream string, sequence uint64, line int) string {
	s := fmt.Sprintf("%s %d", stream, sequence)
	if stream == events.Usage {
		s += "/" + strconv.Itoa(line)
	}
	return s
}

// shortID is enough of an id for the eye; its title holds it whole.
func shortID(id string) string {
	kind, rest, ok := strings.Cut(id, "_")
	if !ok || len(rest) < 12 {
		return id
	}
	return kind + "_…" + rest[len(rest)-6:]
}

func (v *visit) said(e *api.AuditEvent) said {
	k := kindOf(e.Type)
	s := said{Time: e.Time, Text: eventSentence(e), Icon: k.Icon, Tone: k.Tone, Word: k.Word, Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key, ShortKey: shortID(e.Key),
		WhoExact: e.Actor.Type + ":" + e.Actor.ID, Place: placeWords(e.Stream, e.Sequence, e.Line), To: eventPath(e.Stream, e.Sequence, e.Line),
		Exact: e.Time.Time().UTC().Format("2006-01-02 15:04:05.000") + " UTC", IsRootKey: e.Keyspace == events.RootKeyspace}
	s.Who = v.eventActor(e.Actor, e.Key)
	if ip := dataOf(e).text("source_ip"); ip != "" {
		s.Who += " from " + ip
	}
	return s
}

// eventActor is who did something, as the list says it.
func (v *visit) eventActor(a events.Actor, key string) string {
	switch {
	case a.ID == "":
		return "—"
	case a == v.me.Actor:
		return "you"
	case a.Type == "key" && a.ID == key:
		return "the key itself"
	case a.Type == "root_key":
		return "root key " + shortID(a.ID)
	case a.Type == "system":
		return "keyledger"
	}
	return a.Type + " " + shortID(a.ID)
}

// searched are the filters that the words of a search stand for, and how they were
// understood. The log is not searched for texts inside events: what is found is found
// by what they are about.
func searched(q string, ask *auditAsk) (understood []string) {
	var types []string
	for _, word := range strings.Fields(q) {
		name, value, named := strings.Cut(word, ":")
		switch {
		case named && value != "" && slices.Contains([]string{"owner", "key", "actor", "by", "keyspace", "endpoint", "ip", "code"}, strings.ToLower(name)):
			name = strings.ToLower(name)
			switch name {
			case "owner":
				ask.Owner = value
			case "key":
				ask.Key = value
			case "actor", "by":
				ask.Actor, name = value, "actor"
			case "keyspace":
				ask.Keyspace = value
			case "endpoint":
				ask.Endpoint = value
			case "ip":
				ask.IP, name = value, "address"
			case "code":
				ask.Code = strings.ToUpper(value)
			}
			understood = append(understood, name+" "+value)
		case strings.HasPrefix(word, "key_"):
			ask.Key = word
			understood = append(understood, "key "+word)
		case strings.HasPrefix(word, "/"):
			ask.Endpoint = word
			understood = append(understood, "endpoint "+word)
		case address(word):
			ask.IP = word
			understood = append(understood, "address "+word)
		default:
			if found := typesOf(word); len(found) > 0 {
				types = append(types, found...)
				for _, t := range found {
					understood = append(understood, quoted(kindOf(t).Word))
				}
			} else if code := strings.ToUpper(word); slices.Contains(domain.Codes(), domain.Code(code)) {
				ask.Code = code
				understood = append(understood, "requests decided "+inCode(code))
			} else {
				ask.Owner = word
				understood = append(understood, "owner "+word)
			}
		}
	}
	if len(types) > 0 {
		slices.Sort(types)
		ask.types = slices.Compact(types)
	}
	return understood
}

// typesOf are the types that a word stands for.
func typesOf(word string) (types []string) {
	word = strings.ToLower(word)
	for _, k := range eventKinds {
		first, last, _ := strings.Cut(k.Type, ".")
		known := append(strings.Fields(k.words), strings.Split(last, "_")...)
		if k.Stream != events.Ledger || first != "key" {
			known = append(known, first)
		}
		if word == k.Type || slices.Contains(known, word) && len(word) > 2 {
			types = append(types, k.Type)
		}
	}
	return types
}

// shown is a value of a changed field.
func shown(x any) string {
	switch x := x.(type) {
	case nil:
		return ""
	case string:
		return x
	case []any:
		var list []string
		for _, one := range x {
			list = append(list, shown(one))
		}
		return strings.Join(list, ", ")
	}
	b, err := json.Marshal(x)
	if err != nil {
		return fmt.Sprint(x)
	}
	return string(b)
}
