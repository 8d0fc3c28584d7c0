package console

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections/merkle"
)

// operating are the functions of the pages about owners, alerts, subscribers and the service.
var operating = template.FuncMap{
	"whole": func(n *int) int {
		if n == nil {
			return 0
		}
		return *n
	},
	"grouped":     groupedAny,
	"size":        size,
	"ms":          func(f *float64) string { return milliseconds(*f) },
	"ms64":        func(n int64) string { return milliseconds(float64(n)) },
	"streamabout": streamAbout,
	"trouble":     lagging,
	"readmodels":  readModels,
	"healthclass": healthClass,
	"lessdead":    func(dead, replayed uint64) uint64 { return dead - min(replayed, dead) },
	"states":      func() []statusWord { return alertStates },
	"alertquery":  alertQuery,
}

func (c *Console) systemPages() {
	c.page("GET /system", (*visit).system)
	c.page("GET /system/now", func(v *visit) error {
		now, err := v.systemNow()
		if err != nil {
			return err
		}
		return v.fragment("system", "now", now)
	})
	c.page("GET /system/revocations", func(v *visit) error {
		r, err := v.revocationPart()
		if err != nil {
			return err
		}
		return v.fragment("system", "revocations", r)
	})
}

// readyCheck is one thing that readiness depends on.
type readyCheck struct {
	Name, Detail string
	State        string // well, note, wrong
}

// systemNow is how the service is doing at a moment.
type systemNow struct {
	At       events.Time
	Ready    bool
	Checks   []readyCheck
	Status   *api.Status
	Unknown  *api.Problem // why there is no Status
	Findings []merkle.Finding
}

// readiness asks /readyz, whose answer is the same kind of document, well or not.
func (v *visit) readiness() (ready bool, checks []readyCheck, err error) {
	r, err := v.request(v.r.Context(), http.MethodGet, "/readyz", nil, nil)
	if err != nil {
		return false, nil, err
	}
	a := &answer{header: http.Header{}}
	v.API.ServeHTTP(a, r)
	var said struct {
		Ready  bool
		Checks map[string]struct {
			OK     bool
			Detail string
		}
	}
	if err := json.Unmarshal(a.body.Bytes(), &said); err != nil {
		return false, nil, fmt.Errorf("the answer to /readyz: %w", err)
	}
	for name, c := range said.Checks {
		state := "well"
		switch {
		case !c.OK:
			state = "wrong"
		case c.Detail != "":
			state = "note"
		}
		checks = append(checks, readyCheck{name, c.Detail, state})
	}
	slices.SortFunc(checks, func(a, b readyCheck) int { return cmp.Compare(a.Name, b.Name) })
	return said.Ready, checks, nil
}

// checkWords say what a check is about.
var checkWords = map[string]string{"keyring": "Keys in memory", "ledger": "Ledger", "stream": "NATS", "write-ahead log": "Write-ahead log", "audit log": "Signed audit log", "scrub": "Scrub", "certificates": "Certificates", "serving": "Serving"}

func (v *visit) systemNow() (*systemNow, error) {
	now := &systemNow{At: events.At(v.Now())}
	var err error
	if now.Ready, now.Checks, err = v.readiness(); err != nil {
		return nil, err
	}
	for i := range now.Checks {
		now.Checks[i].Name = cmp.Or(checkWords[now.Checks[i].Name], now.Checks[i].Name)
	}
	var status api.Status
	err = v.get("/v1/status", nil, &status)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status >= 500 {
		now.Unknown = p
		return now, nil
	}
	if err != nil {
		return nil, err
	}
	now.Status = &status
	now.Checks = append(now.Checks, postgresCheck(status.Projections))
	if status.Scrub != nil {
		for _, s := range status.Scrub.Streams {
			now.Findings = append(now.Findings, s.Findings...)
		}
	}
	return now, nil
}

// postgresCheck tells from the read models whether PostgreSQL answers: those that wait,
// wait for it.
func postgresCheck(list []api.ProjectionStatus) readyCheck {
	c := readyCheck{Name: "PostgreSQL", State: "well"}
	if len(list) == 0 {
		c.State, c.Detail = "note", "this program has none: lists and figures answer 503, keys are verified"
		return c
	}
	for _, p := range list {
		if p.State == "waiting" || p.State == "stopped" {
			c.State, c.Detail = "note", p.Name+": "+p.Error
			return c
		}
	}
	return c
}

// revocationPart is how fast revocations were over a time.
type revocationPart struct {
	Report      *api.RevocationReport
	Classes     []delayClass
	Most        int64
	Unavailable *api.Problem
}

type delayClass struct {
	Words string
	Count int64
}

var reportSpans = []struct {
	Name   string
	Length time.Duration
}{{"24h", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}, {"30d", 30 * 24 * time.Hour}, {"1y", 365 * 24 * time.Hour}}

func (v *visit) reportSpan() (here string, length time.Duration, names []span) {
	at := 2
	for i, s := range reportSpans {
		if s.Name == v.r.URL.Query().Get("span") {
			at = i
		}
	}
	for i, s := range reportSpans {
		names = append(names, span{Name: s.Name, Here: i == at})
	}
	return reportSpans[at].Name, reportSpans[at].Length, names
}

func (v *visit) revocationPart() (*revocationPart, error) {
	_, length, _ := v.reportSpan()
	part := &revocationPart{}
	var r api.RevocationReport
	err := v.get("/v1/reports/revocations", url.Values{"from": {v.Now().Add(-length).UTC().Format(time.RFC3339)}}, &r)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		part.Unavailable = p
		return part, nil
	}
	if err != nil {
		return nil, err
	}
	part.Report = &r
	below := ""
	for _, c := range r.Classes {
		words := "longer"
		if c.UpToMS != nil {
			words = "up to " + milliseconds(*c.UpToMS)
			below = milliseconds(*c.UpToMS)
		} else if below != "" {
			words = "longer than " + below
		}
		part.Classes = append(part.Classes, delayClass{words, c.Count})
		part.Most = max(part.Most, c.Count)
	}
	// Classes behind the slowest have nothing to say.
	for len(part.Classes) > 1 && part.Classes[len(part.Classes)-1].Count == 0 {
		part.Classes = part.Classes[:len(part.Classes)-1]
	}
	return part, nil
}

// milliseconds are a short time as people read it.
func milliseconds(ms float64) string {
	switch {
	case ms >= 60_000:
		return plainNumber(ms/60_000) + " min"
	case ms >= 1000:
		return plainNumber(ms/1000) + " s"
	}
	return plainNumber(ms) + " ms"
}

// size is so many bytes as people read it.
func size(n uint64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	if f < 10 && unit != "B" {
		return fmt.Sprintf("%.1f %s", f, unit)
	}
	return fmt.Sprintf("%.0f %s", f, unit)
}

type systemData struct {
	Now         *systemNow
	Revocations *revocationPart // where it is asked for with the page
	Span        string
	Spans       []span
	Holds       []retention.Hold
}

func (v *visit) system() error {
	if !v.may(domain.Operate) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "How the service is doing is for operators."}
	}
	now, err := v.systemNow()
	if err != nil {
		return err
	}
	d := systemData{Now: now}
	d.Span, _, d.Spans = v.reportSpan()
	if v.r.URL.Query().Get("revocations") != "" {
		if d.Revocations, err = v.revocationPart(); err != nil {
			return err
		}
	}
	var holds struct{ Holds []retention.Hold }
	if err := v.get("/v1/audit/holds", nil, &holds); err != nil {
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status < 500 {
			return err
		}
	}
	d.Holds = holds.Holds
	return v.show("system", "System", d)
}

// streamContents say what a stream holds.
var streamContents = map[string]string{events.Ledger: "facts about keys, owners and keyspaces", events.Usage: "pages of uses", events.Feed: "facts for subscribers", events.Ops: "acts and alerts", events.DLQ: "what could not be delivered"}

func streamAbout(name string) string { return streamContents[strings.ToUpper(name)] }

// healthClass is the class of the style sheet for the state of a part of the service.
func healthClass(state string) string {
	switch state {
	case "current", "running", "standby", "active", "as signed", "delivered", "replayed":
		return "active"
	case "starting", "not read yet", "not followed":
		return "expired"
	case "behind", "silent", "waiting", "failing", "failed", "replaying":
		return "rate_limited"
	}
	return "revoked"
}

// groupedAny is a whole number with its thousands set apart.
func groupedAny(n any) (string, error) {
	switch n := n.(type) {
	case int:
		return grouped(int64(n)), nil
	case *int:
		if n != nil {
			return grouped(int64(*n)), nil
		}
		return "", nil
	case int64:
		return grouped(n), nil
	case uint64:
		return grouped(int64(n)), nil
	}
	return "", fmt.Errorf("grouped: %T is no whole number", n)
}

// laggingBy is from how many messages on a read model is behind: fewer are on their way.
const laggingBy = 1000

// lagging are the read models that are behind, or do not run.
func lagging(list []api.ProjectionStatus) (those []api.ProjectionStatus) {
	for _, p := range list {
		if p.Lag >= laggingBy || p.State == "waiting" || p.State == "stopped" {
			those = append(those, p)
		}
	}
	return those
}

// readModels say how read models are, in a sentence.
func readModels(list []api.ProjectionStatus) string {
	if those := lagging(list); len(those) > 0 {
		return fmt.Sprintf("%d of %d are behind", len(those), len(list))
	}
	return fmt.Sprintf("All %d are caught up with their streams", len(list))
}
