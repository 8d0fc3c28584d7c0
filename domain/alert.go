package domain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Where an alert rule comes from, the most specific first. For each condition the
// rules of the most specific of these count that has any about it.
const (
	AlertOfKey      = "key"
	AlertOfResource = "resource"
	AlertOfOwner    = "owner"
	AlertOfKeyspace = "keyspace"
	AlertOfDocument = "document"
	AlertBuiltIn    = "built-in"
)

// AlertConditions are all that a rule may name in when, sorted.
func AlertConditions() []string {
	list := make([]string, 0, len(alertFields))
	for when := range alertFields {
		list = append(list, when)
	}
	slices.Sort(list)
	return list
}

// Name is what a rule says, in words: two rules with the same name are one.
func (a AlertRule) Name() string {
	var b strings.Builder
	b.WriteString(a.When)
	if a.Above != nil {
		b.WriteString(" above " + strconv.FormatFloat(*a.Above, 'f', -1, 64))
	}
	for _, d := range []struct {
		word string
		of   Duration
	}{{"over", a.Over}, {"within", a.Within}, {"for", a.For}} {
		if d.of != 0 {
			b.WriteString(" " + d.word + " " + d.of.String())
		}
	}
	if a.MinRequests > 0 {
		fmt.Fprintf(&b, " of at least %d", a.MinRequests)
	}
	if a.Off {
		b.WriteString(" off")
	}
	return b.String()
}

// BuiltInAlerts are the rules that count for every key of a keyspace where nobody
// has said anything else about their condition.
func BuiltInAlerts(d *Document) []AlertRule {
	list := []AlertRule{
		{When: "expiring", Within: Duration(7 * 24 * time.Hour)},
		{When: "expired"},
		{When: "unused", For: Duration(90 * 24 * time.Hour)},
		{When: "previous_secret", Within: Duration(24 * time.Hour)},
		{When: "denied", Above: new(100.0), Over: Duration(10 * time.Minute)},
	}
	if d.Lifecycle.Rotation.MaxAge > 0 {
		list = append(list, AlertRule{When: "rotation_overdue"})
	}
	return list
}

// AlertLayer are the rules of one place.
type AlertLayer struct {
	From  string
	Rules []AlertRule
}

// AlertInForce is a rule that counts, and where it comes from.
type AlertInForce struct {
	AlertRule
	From string `json:"from"`
}

// AlertsInForce are the rules that count of layers, the most specific first: for
// each condition those of the first layer that names it, none where that says off.
// Several layers of one From next to each other, as of a key's resources, count
// together, and one that does not say off wins over one that does. Sorted by name.
func AlertsInForce(layers ...AlertLayer) []AlertInForce {
	decided := map[string]string{} // by condition: From
	var list []AlertInForce
	for _, l := range layers {
		for _, r := range l.Rules {
			if from, ok := decided[r.When]; ok && from != l.From {
				continue
			}
			decided[r.When] = l.From
			if !r.Off {
				list = append(list, AlertInForce{r, l.From})
			}
		}
	}
	slices.SortFunc(list, func(a, b AlertInForce) int { return cmp.Compare(a.Name(), b.Name()) })
	return slices.CompactFunc(list, func(a, b AlertInForce) bool { return a.Name() == b.Name() })
}

// AlertsFor are the rules that count for a key, or for what an owner's keys share where
// the key is empty. set are those that were set for what it is given, where the owner, the
// key or the resource is empty if all of them are meant.
func AlertsFor(d *Document, owner, key string, resources []string, set func(owner, key, resource string) []AlertRule) []AlertInForce {
	var layers []AlertLayer
	if key != "" {
		layers = append(layers, AlertLayer{AlertOfKey, set(owner, key, "")})
	}
	for _, r := range resources {
		layers = append(layers, AlertLayer{AlertOfResource, set("", "", r)})
	}
	if owner != "" {
		layers = append(layers, AlertLayer{AlertOfOwner, set(owner, "", "")})
	}
	return AlertsInForce(append(layers, AlertLayer{AlertOfKeyspace, set("", "", "")}, AlertLayer{AlertOfDocument, d.Alerts}, AlertLayer{AlertBuiltIn, BuiltInAlerts(d)})...)
}

// ParseAlertRules reads and checks rules as a keyspace document has them under
// alerts, for keys of a keyspace with this document. source is {"rules": […]}, in
// YAML or JSON. The error is a [*DocumentError] with everything that is wrong.
func ParseAlertRules(source []byte, d *Document) ([]AlertRule, error) {
	root, problems, readable := readTree(source)
	if root == nil {
		return nil, &DocumentError{Problems: problems, Unreadable: !readable}
	}
	r := &reader{problems: problems}
	r.doc.Lifecycle = d.Lifecycle
	o := r.object(root)
	r.alerts(o.required("rules"))
	o.done()
	if len(r.problems) > 0 {
		return nil, &DocumentError{Problems: slices.Compact(r.problems)}
	}
	return r.doc.Alerts, nil
}

// AlertRulesJSON is how alert_rules.set records rules.
func AlertRulesJSON(rules []AlertRule) json.RawMessage {
	if len(rules) == 0 {
		return json.RawMessage("[]")
	}
	b, err := json.Marshal(rules)
	if err != nil {
		panic("alert rules: " + err.Error()) // numbers and texts
	}
	return b
}
