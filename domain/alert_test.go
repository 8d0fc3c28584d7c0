package domain

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAlertsInForce(t *testing.T) {
	denied := func(n float64) AlertRule {
		return AlertRule{When: "denied", Above: &n, Over: Duration(10 * time.Minute)}
	}
	unused := AlertRule{When: "unused", For: Duration(90 * 24 * time.Hour)}
	off := func(when string) AlertRule { return AlertRule{When: when, Off: true} }
	for name, x := range map[string]struct {
		layers []AlertLayer
		want   string
	}{
		"the more specific one counts, for its condition alone": {
			[]AlertLayer{{AlertOfKey, []AlertRule{denied(1)}}, {AlertOfDocument, []AlertRule{denied(10), unused}}},
			"denied above 1 over 10m of key; unused for 90d of document"},
		"two of one place count both": {
			[]AlertLayer{{AlertOfDocument, []AlertRule{denied(1), denied(10)}}, {AlertBuiltIn, []AlertRule{denied(100)}}},
			"denied above 1 over 10m of document; denied above 10 over 10m of document"},
		"off silences what is more general": {
			[]AlertLayer{{AlertOfOwner, []AlertRule{off("denied")}}, {AlertBuiltIn, []AlertRule{denied(100), unused}}},
			"unused for 90d of built-in"},
		"what is more specific counts although it is off further out": {
			[]AlertLayer{{AlertOfKey, []AlertRule{denied(1)}}, {AlertOfKeyspace, []AlertRule{off("denied")}}},
			"denied above 1 over 10m of key"},
		"of two resources both count, and on wins over off": {
			[]AlertLayer{{AlertOfResource, []AlertRule{off("denied")}}, {AlertOfResource, []AlertRule{denied(3)}}, {AlertOfKeyspace, []AlertRule{denied(5)}}},
			"denied above 3 over 10m of resource"},
		"the same said twice is one rule": {
			[]AlertLayer{{AlertOfResource, []AlertRule{denied(3)}}, {AlertOfResource, []AlertRule{denied(3)}}},
			"denied above 3 over 10m of resource"},
	} {
		var got []string
		for _, r := range AlertsInForce(x.layers...) {
			got = append(got, r.Name()+" of "+r.From)
		}
		if diff := cmp.Diff(x.want, strings.Join(got, "; ")); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

// Rules are read as in a document, and written so that they are read back equal.
func TestParseAlertRules(t *testing.T) {
	d := &Document{Lifecycle: Lifecycle{Rotation: Rotation{MaxAge: Duration(time.Hour)}}}
	rules, err := ParseAlertRules([]byte(`{"rules":[{"when":"expired","off":true},{"when":"error_rate","above":0.05,"over":"5m","min_requests":20},{"when":"rotation_overdue"},{"when":"previous_secret","within":"1h"}]}`), d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseAlertRules([]byte(`{"rules":`+string(AlertRulesJSON(rules))+`}`), d)
	if diff := cmp.Diff(rules, again); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for source, want := range map[string]string{
		`{"rules":[{"when":"denied","above":1}]}`:                                          "rules[0].over",
		`{"rules":[{"when":"denied","off":true},{"when":"denied","above":1,"over":"1m"}]}`: "contradicts",
		`{"rules":[{"when":"denied","off":true,"above":1}]}`:                               "rules[0].above",
		`{"rules":[{"when":"nothing"}]}`:                                                   "is not an alert",
		`{"rule":[]}`:                                                                      "rules",
		`{"rules":[{"when":"cost","above":1,"over":"1m"},{"when":"cost","above":1,"over":"1m","no":1}]}`: "rules[1].no",
	} {
		if _, err := ParseAlertRules([]byte(source), d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := ParseAlertRules([]byte(`{"rules":[{"when":"rotation_overdue"}]}`), &Document{}); err == nil {
		t.Error("rotation_overdue without max_age was taken")
	}
}
