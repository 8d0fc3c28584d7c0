package console_test

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// hostile is a name that would be markup and a formula.
const hostile = "<img src=x onerror=alert(1)>=cmd()"

// through sends a request through the gateway and answers its status.
func (s *site) through(secret, method, path string) int {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.gate+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// until waits for something that the read models have to follow first.
func (s *site) until(what string, enough func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !enough(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

type madeKey struct {
	Key    struct{ ID string }
	Secret string
}

// busy makes a key and sends requests with it: through the gateway some that succeed, are
// denied and are refused by a limit, and reported ones that failed, with latency and cost.
func (s *site) busy(owner string) madeKey {
	s.t.Helper()
	s.call("PUT", "/v1/keyspaces/promptick/owners/"+owner, map[string]any{"name": "Shop"}, nil)
	var k madeKey
	s.call("POST", "/v1/keys", map[string]any{"keyspace": "promptick", "owner": owner, "name": hostile, "resources": []string{"agent_1"},
		"limits": map[string]any{"minute": 500, "hour": 12, "day": 10000}, "meta": map[string]string{"team": "<b>checkout"}}, &k)
	for i, path := range []string{"execute", "execute", "execute", "execute", "runs", "runs"} {
		if got := s.through(k.Secret, []string{"POST", "GET"}[i/4], "/promptick/api/v1/agents/agent_1/"+path); got != 200 {
			s.t.Fatalf("a request was answered with %d", got)
		}
	}
	for range 3 {
		if got := s.through(k.Secret, "POST", "/promptick/api/v1/agents/agent_2/execute"); got != 401 {
			s.t.Fatalf("a request to another agent was answered with %d", got)
		}
	}
	var outcomes []map[string]any
	for i := range 6 {
		var d struct {
			Decision string `json:"decision_id"`
			Valid    bool
		}
		s.call("POST", "/v1/verify", map[string]any{"keyspace": "promptick", "authorization": "Bearer " + k.Secret, "method": "POST", "path": "/api/v1/agents/agent_1/execute", "ip": fmt.Sprintf("203.0.113.%d", i%3), "report": true}, &d)
		if !d.Valid {
			s.t.Fatal("a request was refused")
		}
		outcomes = append(outcomes, map[string]any{"decision_id": d.Decision, "status": []int{500, 200, 404}[i%3], "latency_ms": 20 * (i + 1), "cost_micros": 1_250_000})
	}
	s.call("POST", "/v1/uses", outcomes, nil)
	for range 2 {
		if got := s.through(k.Secret, "GET", "/promptick/api/v1/agents/agent_1/runs"); got != 429 {
			s.t.Fatalf("a request too many was answered with %d", got)
		}
	}
	s.until("the figures of a key", func() bool {
		var list struct {
			Usage []struct{ Requests, Errors, Unknown int64 }
		}
		s.call("GET", "/v1/analytics/usage?keyspace=promptick&owner="+owner+"&key="+k.Key.ID, nil, &list)
		return len(list.Usage) == 1 && list.Usage[0].Requests == 17 && list.Usage[0].Errors == 4 && list.Usage[0].Unknown == 0
	})
	s.until("an alert", func() bool {
		var list struct{ Alerts []struct{ When string } }
		s.call("GET", "/v1/alerts?state=raised&key="+k.Key.ID, nil, &list)
		return len(list.Alerts) > 0
	})
	return k
}

// chartTells adds up what the keys of the first chart tell of its last bars: an hour may
// have begun since something was used.
func chartTells(b *tab, bars int) map[string]int {
	sums := map[string]int{}
	for i := range bars {
		key := []string{"End", "ArrowLeft"}[min(i, 1)]
		told := eval[string](b, `document.querySelector('.plot').dispatchEvent(new KeyboardEvent('keydown', {key: '`+key+`', bubbles: true})); document.querySelector('.plot').getAttribute('aria-valuetext')`)
		when, figures, _ := strings.Cut(told, " UTC, ")
		if figures == "" {
			b.t.Errorf("%q has no figures: %q", when, told)
		}
		for figure := range strings.SplitSeq(figures, ", ") {
			name, n, _ := strings.Cut(figure, ": ")
			count, _ := strconv.Atoi(n) // of nothing there is none
			sums[name] += count
		}
	}
	return sums
}

// A key's page tells what was done with it: how requests ended, how long they took, what
// they cost, where they went, what is left of its limits, and which alerts are raised.
func TestKeyPage(t *testing.T) {
	s := newSite(t)
	k := s.busy("shop")
	page := "/keys/" + k.Key.ID
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			b := s.tab(t, look.theme, look.width)
			b.signIn(s.root)
			b.open(page)
			if got := b.text("h1"); !strings.HasPrefix(got, hostile) {
				t.Errorf("the key is called %q", got)
			}
			sums := strings.Join(strings.Fields(b.text(".sums")), " ")
			for _, want := range []string{"Requests 17", "Succeeded 47.1 % 8", "Failed 23.5 % 4", "Refused 29.4 % 2 by a limit, 3 denied", "Cost 7.50", "Average latency"} {
				if !strings.Contains(sums, want) {
					t.Errorf("%s: %s is missing", sums, want)
				}
			}
			if n := eval[int](b, "document.querySelectorAll('.chart .plot').length"); n != 4 {
				t.Errorf("%d charts", n)
			}
			about := b.text("aside") + b.text("[aria-labelledby=limits]")
			for _, want := range []string{"of 500", "12 of 12", "12 of 10,000", "agent_1", "Used up", "<b>checkout", "High usage"} {
				if !strings.Contains(about, want) {
					t.Errorf("%s: %s is missing", about, want)
				}
			}
			lines := b.text(".main")
			for _, want := range []string{"POST /api/v1/agents/agent_1/execute", "404 Not Found", "500 Internal Server Error", "Rate limited", "Wrong resource"} {
				if !strings.Contains(lines, want) {
					t.Errorf("%s is missing in %s", want, lines)
				}
			}
			b.check("keypage")

			// The arrow keys tell the figures, and the table behind has them.
			b.do(chromedp.Focus(chromedp.CSS(".plot")))
			if told := chartTells(b, 2); told["succeeded"] != 8 || told["failed"] != 4 || told["rate limited"] != 2 || told["denied"] != 3 {
				t.Errorf("the chart tells %v", told)
			}
			b.press(".chart summary")
			b.check("keypage-figures")

			// Reading the log is recorded, and waits until somebody asks for it.
			b.press("a[href*='/addresses']")
			b.wait("#by-address table")
			if got := b.text("#by-address"); !strings.Contains(got, "203.0.113.1") || !strings.Contains(got, "Not told apart") {
				t.Errorf("addresses: %s", got)
			}
			b.press("a[href$='/timeline']")
			b.wait("ol.timeline")
			b.press("a[href$='uses=true']")
			b.wait("ol.timeline .uses")
			past := b.text("ol.timeline")
			for _, want := range []string{"Used 12 times", "Refused: wrong resource 3 times", "Created", "Limit per hour: 12", "LEDGER ", "(you)"} {
				if !strings.Contains(past, want) {
					t.Errorf("%s is missing in %s", want, past)
				}
			}
			b.check("keypage-timeline")
			b.open(page + "/timeline")
			b.wait("ol.timeline .fact")
			b.check("timeline")
			for _, span := range []string{"1h", "7d", "30d", "1y"} {
				b.open(page + "?span=" + span)
				b.wait(".spans a[href='?span=" + span + "'][aria-current]")
				if span != "1h" { // they follow the page
					b.wait(".later[data-loaded] .chart .plot")
				}
				if eval[int](b, `document.querySelectorAll(".chart .plot").length - document.querySelectorAll(".chart .plot .tip").length`) != 0 {
					t.Errorf("%s: there are charts that no pointer or key walks over", span)
				}
				b.check("keypage-" + span)
			}
			b.open(page + "/timeline?uses=true")
			b.wait(".page-timeline .later[data-loaded] .uses")
			b.check("timeline-uses")
			// Opened behind another page it comes when it is looked at.
			b.behind(page + "/timeline?uses=true")
			b.wait(".later[aria-busy]")
			b.lookedAt()
			b.wait(".page-timeline .later[data-loaded] .uses")
		})
	}
}

// A key is changed in a form; who changes it meanwhile is not overwritten unseen. During a
// grace both secrets are told apart.
func TestEditKey(t *testing.T) {
	s := newSite(t)
	s.call("PUT", "/v1/keyspaces/promptick/owners/shop", map[string]any{"name": "Shop"}, nil)
	s.call("PUT", "/v1/keyspaces/parcelbird/owners/acme", map[string]any{"name": "Acme Ltd", "plan": "large"}, nil)
	for _, look := range looks {
		t.Run(look.theme, func(t *testing.T) {
			var k madeKey
			s.call("POST", "/v1/keys", map[string]any{"keyspace": "promptick", "owner": "shop", "name": "Checkout", "resources": []string{"agent_1"}}, &k)
			page := "/keys/" + k.Key.ID
			b := s.tab(t, look.theme, look.width)
			b.refused.Store(true) // conflicts and mistakes are part of it
			b.signIn(s.root)
			b.open(page)
			b.check("keypage-unused")
			b.click("a[href='" + page + "/edit']")
			b.check("edit")
			b.press(".presets button[data-minute='10']")
			b.fill("#name", "Checkout 2")
			b.fill("#allowed_origins", "https://shop.example\nhttps://pay.example")
			b.press("input[name=expiry][value='30d']")
			b.click("form.sheet .primary")
			if got := b.text("[aria-labelledby=limits]") + b.text("aside"); b.location() != page+"?done=changed" || !strings.Contains(got, "0 of 10\n") || !strings.Contains(got, "https://pay.example") || !strings.Contains(got, "in 29 days") {
				t.Fatalf("at %s: %s", b.location(), got)
			}
			b.wait(".done")

			b.open(page + "/edit")
			b.fill("#name", "Mine")
			s.call("PATCH", "/v1"+page, map[string]any{"name": "Theirs", "limits": map[string]any{"hour": 7}}, nil)
			b.click("form.sheet .primary")
			if got := b.text("[role=alert]"); !strings.Contains(got, "Theirs") || !strings.Contains(got, "You wrote") || !strings.Contains(got, "Mine") {
				t.Errorf("the conflict says %q", got)
			}
			if got := eval[string](b, "document.querySelector('[name=limit_hour]').value + document.getElementById('name').value"); got != "7Mine" {
				t.Errorf("the form holds %s", got)
			}
			b.check("edit-conflict")
			b.click("form.sheet .primary")
			var now struct {
				Name   string
				Limits map[string]int64
			}
			s.call("GET", "/v1"+page, nil, &now)
			if now.Name != "Mine" || now.Limits["hour"] != 7 {
				t.Errorf("it is %+v", now)
			}
			b.open(page + "/edit")
			b.fill("#allowed_ips", "elsewhere")
			b.click("form.sheet .primary")
			if got := b.text("[role=alert]"); !strings.Contains(got, "allowed_ips") {
				t.Errorf("what is wrong: %q", got)
			}
			b.check("edit-wrong")

			s.call("POST", "/v1"+page+"/rotate", map[string]any{"grace": "24h"}, nil)
			b.open(page)
			if got := b.text(".secrets"); !strings.Contains(got, "Current") || !strings.Contains(got, "Previous, still works") {
				t.Errorf("secrets: %s", got)
			}
			b.check("keypage-grace")
		})
	}
}

// A manager is shown no address, and nothing of another owner; an auditor may not change
// anything. Reading a key's page reads no log.
func TestWhoSeesAKeyPage(t *testing.T) {
	s := newSite(t)
	k := s.busy("shop")
	s.call("PUT", "/v1/keyspaces/promptick/owners/other", map[string]any{"name": "Other"}, nil)
	page := "/keys/" + k.Key.ID
	role := func(in map[string]any) string {
		var made madeKey
		in["name"] = "somebody"
		s.call("POST", "/v1/root-keys", in, &made)
		return made.Secret
	}
	reads := func() (n int) {
		var list struct{ Events []struct{ Type string } }
		s.call("GET", "/v1/audit/events?type=audit.read&limit=1000&key="+k.Key.ID, nil, &list)
		return len(list.Events)
	}
	b := s.tab(t, "light", 1440)
	b.refused.Store(true)
	b.signIn(role(map[string]any{"role": "auditor"}))
	before := reads()
	b.open(page)
	if eval[bool](b, "!!document.querySelector('.head .acts a, a[href$=\"/edit\"]')") || !eval[bool](b, "!!document.querySelector('a[href*=\"/addresses\"]')") {
		t.Error("an auditor may change keys, or sees no addresses")
	}
	b.check("keypage-auditor")
	b.open(page + "/edit")
	if got := b.text("h1"); got != "Not for this sign-in" {
		t.Errorf("an auditor who edits is told %q", got)
	}
	if got := reads() - before; got > 1 { // the question itself
		t.Errorf("a look at the page read the log %d times", got)
	}

	manager := s.tab(t, "light", 1440)
	manager.refused.Store(true)
	manager.signIn(role(map[string]any{"role": "manager", "keyspace": "promptick", "owner": "shop"}))
	manager.open(page)
	if got := manager.text(".main"); !strings.Contains(got, "only operators and auditors see them") {
		t.Errorf("a manager: %s", got)
	}
	manager.open(page + "/addresses")
	if got := manager.text("main"); strings.Contains(got, "203.0.113") || !strings.Contains(got, "only operators and auditors") {
		t.Errorf("a manager who asks for addresses: %s", got)
	}

	other := s.tab(t, "light", 1440)
	other.refused.Store(true)
	other.signIn(role(map[string]any{"role": "manager", "keyspace": "promptick", "owner": "other"}))
	for _, path := range []string{page, page + "/edit", page + "/timeline", page + "/timeline?part=1", page + "/addresses", page + "/addresses?part=1"} {
		other.open(path)
		if got := other.text("main"); !strings.Contains(got, "There is nothing here") || strings.Contains(got, "cmd()") {
			t.Errorf("%s shows another owner's manager %s", path, got)
		}
	}
}

// What charts are drawn in stands out from its ground by 3:1 at least, in both themes.
func TestChartColours(t *testing.T) {
	sheet, err := os.ReadFile("static/console.css")
	if err != nil {
		t.Fatal(err)
	}
	brightness := func(hex string) (l float64) {
		if len(hex) == 3 {
			hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
		}
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
			if err != nil {
				t.Fatal(err)
			}
			if c := float64(n) / 255; c <= 0.03928 {
				l += weight * c / 12.92
			} else {
				l += weight * math.Pow((c+0.055)/1.055, 2.4)
			}
		}
		return l
	}
	themes := 0
	for _, block := range strings.Split(string(sheet), "}") {
		colours := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z0-9]+): #([0-9a-f]+);`).FindAllStringSubmatch(block, -1) {
			colours[m[1]] = m[2]
		}
		if colours["sheet"] == "" {
			continue
		}
		themes++
		for _, name := range []string{"success", "error", "denied", "limited", "unknown", "p50", "p95", "p99", "average", "accent"} {
			for _, ground := range []string{"sheet", "hover"} { // hover: a column that is pointed at
				a, b := brightness(colours[name])+0.05, brightness(colours[ground])+0.05
				if contrast := max(a, b) / min(a, b); contrast < 3 {
					t.Errorf("%s on %s: %.2f:1", name, ground, contrast)
				}
			}
		}
	}
	if themes != 3 { // light; dark by the system; dark by choice
		t.Errorf("%d themes", themes)
	}
}
