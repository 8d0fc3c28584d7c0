package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// The parts of Grafana's dashboard model (@grafana/schema 12.0, Dashboard and the
// Options of the panels that Grafana ships) that the dashboards use. A field that is
// not here is refused: it is a slip, or belongs here after a look into the schema.
type (
	board struct {
		UID, Title, Description string
		Tags                    []string
		Timezone, WeekStart     string
		Editable                bool
		GraphTooltip            int
		SchemaVersion, Version  int
		FiscalYearStartMonth    int
		Refresh                 string
		Time                    struct{ From, To string }
		Timepicker              struct{}
		Links                   []boardLink
		Annotations             struct{ List []struct{} }
		Templating              struct{ List []variable }
		Panels                  []panel
	}
	boardLink struct {
		Title, Type, Icon, Tooltip, URL                string
		Tags                                           []string
		AsDropdown, IncludeVars, KeepTime, TargetBlank bool
	}
	variable struct {
		Name, Label, Description, Type, Query, Regex, AllValue string
		Datasource                                             source
		Refresh, Sort, Hide                                    int
		Multi, IncludeAll, SkipURLSync                         bool
		Current                                                struct{ Text, Value any }
		Options                                                []struct {
			Text, Value string
			Selected    bool
		}
	}
	source struct{ Type, UID string }
	panel  struct {
		ID                       int
		Title, Description, Type string
		Datasource               source
		GridPos                  struct{ X, Y, W, H int }
		Interval                 string
		MaxDataPoints            int
		Collapsed                bool
		Panels                   []struct{}
		Targets                  []target
		FieldConfig              struct {
			Defaults struct {
				Unit, NoValue string
				Decimals      *int
				Min, Max      *float64
				Color         struct{ Mode string }
				Thresholds    struct {
					Mode  string
					Steps []struct {
						Color string
						Value *float64
					}
				}
				Custom json.RawMessage
			}
			Overrides []struct {
				Matcher    struct{ ID, Options string }
				Properties []struct {
					ID    string
					Value json.RawMessage
				}
			}
		}
		Options json.RawMessage
	}
	target struct {
		RefID      string
		Datasource source
		Format     string
		RawQuery   bool
		EditorMode string
		RawSQL     string
	}
)

// Panels that Grafana comes with; others are plugins.
var shipped = []string{"timeseries", "stat", "table", "bargauge", "row"}

func boards(t *testing.T) map[string]board {
	t.Helper()
	files, err := filepath.Glob("grafana/dashboards/*.json")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	all := map[string]board{}
	for _, f := range files {
		d := json.NewDecoder(strings.NewReader(read(t, f)))
		d.DisallowUnknownFields()
		var b board
		if err := d.Decode(&b); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if _, twice := all[b.UID]; twice || b.UID == "" {
			t.Errorf("%s: uid %q", f, b.UID)
		}
		all[b.UID] = b
	}
	return all
}

// The dashboards are what Grafana's model knows, made of nothing but its own panels,
// say what they show, and lead only to dashboards that are there.
func TestDashboardModel(t *testing.T) {
	var sources struct {
		Datasources []struct{ UID, Type, User string }
	}
	if err := yaml.Unmarshal([]byte(read(t, "grafana", "provisioning", "datasources", "keyledger.yaml")), &sources); err != nil {
		t.Fatal(err)
	}
	if len(sources.Datasources) != 1 || sources.Datasources[0].User != "grafana" {
		t.Fatalf("data sources %+v", sources)
	}
	provisioned := source{sources.Datasources[0].Type, sources.Datasources[0].UID}
	if !strings.HasSuffix(composed(t).Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"], "/keyledger.json") {
		t.Error("the overview is not what Grafana opens with")
	}
	all := boards(t)
	for uid, b := range all {
		if b.Title == "" || b.Description == "" || b.Time.From == "" || len(b.Links) == 0 || !slices.Contains(b.Tags, b.Links[0].Tags[0]) {
			t.Errorf("%s: title, description, time or links are missing", uid)
		}
		for _, v := range b.Templating.List {
			if v.Type == "query" && v.Datasource != provisioned {
				t.Errorf("%s, $%s: data source %+v", uid, v.Name, v.Datasource)
			}
		}
		taken, ids := map[[2]int]string{}, map[int]bool{}
		for _, p := range b.Panels {
			if ids[p.ID] || !slices.Contains(shipped, p.Type) {
				t.Errorf("%s, %s: id %d, type %s", uid, p.Title, p.ID, p.Type)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %q lies on %q at %d, %d", uid, p.Title, other, x, y)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Type == "row" {
				continue
			}
			if p.Description == "" || p.Datasource != provisioned || len(p.Targets) != 1 || p.Targets[0].Datasource != provisioned || !p.Targets[0].RawQuery {
				t.Errorf("%s, %s: description, data source or query", uid, p.Title)
			}
			for _, link := range regexp.MustCompile(`/d/([a-z-]+)`).FindAllStringSubmatch(fmt.Sprintf("%s", p.FieldConfig.Overrides), -1) {
				if _, ok := all[link[1]]; !ok {
					t.Errorf("%s, %s: leads to %s, which is not there", uid, p.Title, link[1])
				}
			}
		}
	}
	var four []string
	for _, p := range all["keyledger-key"].Panels[:4] {
		four = append(four, p.Title)
	}
	if want := []string{"Requests over time", "Success/error rates", "Average latency", "Cost per key"}; !slices.Equal(four, want) {
		t.Errorf("a key's dashboard begins with %q", four)
	}
}

// expand is what Grafana makes of a query before PostgreSQL sees it: variables, then
// the macros of its PostgreSQL data source.
func expand(t *testing.T, sql string, variables map[string][]string, from, to time.Time) string {
	t.Helper()
	minutes := int64(1)
	switch length := to.Sub(from); {
	case length > 32*24*time.Hour:
		minutes = 24 * 60
	case length > 25*time.Hour:
		minutes = 60
	}
	sql = regexp.MustCompile(`\$\{([a-z_]+):sqlstring\}`).ReplaceAllStringFunc(sql, func(m string) string {
		values, ok := variables[strings.TrimSuffix(m[2:], ":sqlstring}")]
		if !ok {
			t.Errorf("%s is no variable of the dashboard", m)
		}
		if len(values) == 1 && strings.HasPrefix(values[0], "'") { // the value of All is taken as it is
			return values[0]
		}
		quoted := make([]string, len(values))
		for i, v := range values {
			quoted[i] = "'" + strings.ReplaceAll(v, "'", "''") + "'"
		}
		return strings.Join(quoted, ",")
	})
	for name, values := range variables {
		sql = strings.ReplaceAll(sql, "$"+name, values[0])
	}
	sql = strings.ReplaceAll(sql, "$__range_s", strconv.FormatInt(int64(to.Sub(from).Seconds()), 10))
	sql = strings.ReplaceAll(sql, "$__interval", strconv.FormatInt(minutes, 10)+"m")
	between := "$1 BETWEEN '" + from.UTC().Format(time.RFC3339Nano) + "' AND '" + to.UTC().Format(time.RFC3339Nano) + "'"
	sql = regexp.MustCompile(`\$__timeFilter\(([^)]*)\)`).ReplaceAllString(sql, between)
	group := fmt.Sprintf("floor(extract(epoch from $1)/%d)*%d", 60*minutes, 60*minutes)
	sql = regexp.MustCompile(`\$__timeGroupAlias\(([^,)]*), \d+m\)`).ReplaceAllString(sql, group+` AS "time"`)
	sql = regexp.MustCompile(`\$__timeGroup\(([^,)]*), \d+m\)`).ReplaceAllString(sql, group)
	sql = strings.ReplaceAll(sql, "$__timeFrom()", "'"+from.UTC().Format(time.RFC3339Nano)+"'")
	sql = strings.ReplaceAll(sql, "$__timeTo()", "'"+to.UTC().Format(time.RFC3339Nano)+"'")
	if strings.Contains(sql, "$") {
		t.Errorf("not expanded: %s", sql)
	}
	return sql
}

// A product whose secrets are overdue after a second, and whose only plan is soon
// used up.
const sampled = `{
	"keyspace": "dash", "format": {"prefixes": {"live": "da_live_"}, "default_environment": "live", "alphabet": "base62", "length": 32},
	"display": {"first": 8, "last": 4}, "scopes": {"things:read": {"routes": ["GET /things/**"]}, "things:write": {"routes": ["POST /things/**"]}},
	"plans": {"small": {"limits": {"minute": 6}, "max_keys": 5}}, "default_plan": "small", "limits": {"from": "plan", "count_by": "key"},
	"lifecycle": {"rotation": {"enabled": true, "max_age": "1s"}}, "cost": {"per_request": 25},
	"alerts": [{"when": "denied", "above": 1, "over": "10m"}]}`

// sample is what a real service has in PostgreSQL after some traffic, with two
// things that only faults make: a void fact and a gap. It returns the key that had
// all of it.
func sample(t *testing.T, postgres string) (key string) {
	dir := t.TempDir()
	contextFile := filepath.Join(dir, "context.json")
	p := testenv.Start(t, []string{"KEYLEDGER_CONTEXT=" + contextFile, "HOME=" + dir, "KEYLEDGER_POSTGRES_URL=" + postgres}, testenv.Build(t), "dev", "--no-sample",
		"--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0")
	p.WaitOutput("Ctrl-C stops it.", 2*time.Minute)
	var c struct {
		URL       string `json:"url"`
		TokenFile string `json:"token_file"`
		NATS      string `json:"nats_url"`
	}
	if err := json.Unmarshal([]byte(read(t, contextFile)), &c); err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(c.TokenFile) {
		c.TokenFile = filepath.Join(dir, c.TokenFile)
	}
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string) (answer map[string]any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, c.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, b, err)
		}
		if bytes.HasPrefix(b, []byte("{")) {
			if err := json.Unmarshal(b, &answer); err != nil {
				t.Fatal(err)
			}
		}
		return answer
	}
	call("PUT", "/v1/keyspaces/dash", sampled)
	call("PUT", "/v1/keyspaces/dash/owners/org_1", `{"name": "Acme Ltd"}`)
	create := func(name, more string) (id, secret string) {
		a := call("POST", "/v1/keys", `{"keyspace": "dash", "owner": "org_1", "name": "`+name+`", "scopes": ["things:read"]`+more+`}`)
		return a["key"].(map[string]any)["id"].(string), a["secret"].(string)
	}
	key, secret := create("Production server", `, "expires_in": "7d"`)
	gone, _ := create("Lost laptop", "")
	call("POST", "/v1/keys/"+gone+"/revoke", `{"reason": "left in a train"}`)
	verify := func(secret, method, path string) (decision, code string) {
		a := call("POST", "/v1/verify", fmt.Sprintf(`{"keyspace": "dash", "key": %q, "method": %q, "path": %q, "report": true}`, secret, method, path))
		return a["decision_id"].(string), a["code"].(string)
	}
	var outcomes []string
	for i := range 8 { // two more than the limit
		if id, code := verify(secret, "GET", "/things/1"); code == "VALID" {
			outcomes = append(outcomes, fmt.Sprintf(`{"decision_id": %q, "status": %d, "latency_ms": %d}`, id, 200+300*(i%3/2), 10+20*i))
		}
	}
	call("POST", "/v1/uses", "["+strings.Join(outcomes, ",")+"]")
	for range 3 { // more than the alert allows
		if _, code := verify(secret, "POST", "/things"); code != "INSUFFICIENT_SCOPE" {
			t.Fatal(code)
		}
	}
	if _, code := verify("da_live_"+strings.Repeat("a", 32), "GET", "/things"); code != "UNKNOWN_KEY" {
		t.Fatal(code)
	}
	call("GET", "/v1/audit/events?keyspace=dash&type=key.revoked", "")
	call("POST", "/v1/audit/holds", `{"keyspace": "dash", "reason": "a case"}`)

	nc, err := nats.Connect(c.NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	last, _, err := l.Last(t.Context(), events.Subject("dash", "org_1", gone))
	if err != nil {
		t.Fatal(err)
	}
	void := events.New(events.KeyRevoked{Reason: "at the same time"}, time.Now())
	void.Keyspace, void.Owner, void.Key, void.KeyVersion, void.Actor = "dash", "org_1", gone, last.Event.KeyVersion, events.Actor{Type: "system", ID: "test"}
	if _, err := l.Append(t.Context(), last.Sequence, void); err != nil {
		t.Fatal(err)
	}
	gap := events.New(events.UsageGap{Node: "gw-2", Count: 3, Reason: "NATS was away", From: events.At(time.Now()), To: events.At(time.Now())}, time.Now())
	gap.Keyspace = "dash"
	body, err := events.Encode(gap)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.AppendPage(t.Context(), "dash", "gw-2", [][]byte{body}); err != nil {
		t.Fatal(err)
	}
	return key
}

// Every query of every panel and variable answers rows, for a time of minutes, one of
// hours and one of days, with the rights that Grafana has. Grafana itself is not started.
func TestDashboards(t *testing.T) {
	ctx := t.Context()
	postgres := testenv.Postgres(t)
	key := sample(t, postgres)
	pool, err := pgxpool.New(ctx, postgres)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	// Refusals are written when their second is over; nothing here signals that rows
	// have come.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var there bool
		err := pool.QueryRow(ctx, `select (select sum(successes) > 0 and sum(errors) > 0 and sum(denied) > 1 and sum(rate_limited) > 0 from analytics.usage_minute where keyspace = 'dash')
			and exists (select from analytics.usage_gaps) and exists (select from analytics.lifecycle_events where void)
			and exists (select from analytics.acts where type = 'hold.set') and exists (select from analytics.rotation_age where overdue)
			and exists (select from analytics.usage_minute where keyspace = 'dash' and measured > 0) and exists (select from analytics.alerts where keyspace = 'dash')
			and exists (select from analytics.revocation_verifiers where keyspace = 'dash')`).Scan(&there)
		if err == nil && there {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute the rows are not there: %v", err)
		}
	}
	// What reader.sh does, but given up again: roles belong to the whole server.
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	script := read(t, "postgres", "reader.sh")
	_, sql, ok := strings.Cut(script, "<<'END'\n")
	sql, _, ended := strings.Cut(sql, "END\n")
	if !ok || !ended {
		t.Fatal("reader.sh holds no SQL between END and END")
	}
	sql = strings.ReplaceAll(strings.Replace(sql, "create role keyledger_reader nologin;\n", "", 1), ":'password'", "'x'")
	if _, err := tx.Exec(ctx, sql); err != nil {
		t.Fatalf("reader.sh: %v", err)
	}
	for _, role := range []string{"grafana", "keyledger_reader"} {
		if _, err := tx.Exec(ctx, "set local role "+role); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{"select * from keyledger.keys_v1", "select * from keyledger.ledger_v1", "delete from analytics.keys"} {
			if _, _, err := answers(ctx, tx, sql); err == nil {
				t.Errorf("%s may %s", role, sql)
			}
		}
	}
	chosen := map[string][]string{"keyspace": {"dash", "parcelbird"}, "owner": {"org_1"}, "key": {key}, "unused_days": {"0"}, "expiring_days": {"14"}}
	now := time.Now()
	for uid, b := range boards(t) {
		variables := map[string][]string{}
		for _, v := range b.Templating.List {
			variables[v.Name] = chosen[v.Name]
			if !v.Multi {
				variables[v.Name] = variables[v.Name][:1]
			}
			if v.Type != "query" {
				continue
			}
			columns, rows, err := answers(ctx, tx, expand(t, v.Query, variables, now.Add(-time.Hour), now))
			if err != nil {
				t.Errorf("%s, $%s: %v", uid, v.Name, err)
				continue
			}
			value := max(slices.Index(columns, "__value"), 0)
			if !slices.ContainsFunc(rows, func(r []any) bool { return r[value] == chosen[v.Name][0] }) {
				t.Errorf("%s, $%s does not offer %q: %v", uid, v.Name, chosen[v.Name][0], rows)
			}
		}
		all := map[string][]string{}
		for _, v := range b.Templating.List {
			if all[v.Name] = variables[v.Name]; v.AllValue != "" {
				all[v.Name] = []string{v.AllValue}
			}
		}
		for _, p := range b.Panels {
			for _, target := range p.Targets {
				for _, x := range []struct {
					variables map[string][]string
					back      time.Duration
				}{{variables, 6 * time.Hour}, {all, 7 * 24 * time.Hour}, {variables, 60 * 24 * time.Hour}} {
					sql := expand(t, target.RawSQL, x.variables, now.Add(-x.back), now.Add(time.Minute))
					columns, rows, err := answers(ctx, tx, sql)
					if err != nil {
						t.Errorf("%s, %s: %v\n%s", uid, p.Title, err, sql)
						break
					}
					if len(rows) == 0 || !slices.ContainsFunc(rows[0], func(v any) bool { return v != nil }) {
						t.Errorf("%s, %s, %s: no rows\n%s", uid, p.Title, x.back, sql)
					}
					p.named(t, uid, columns, target.Format)
				}
			}
		}
	}
}

// named checks that what a panel says of columns is said of columns that its query
// has, and that a series is something that Grafana can draw.
func (p *panel) named(t *testing.T, uid string, columns []string, format string) {
	t.Helper()
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.ID != "byName" || !slices.Contains(columns, o.Matcher.Options) {
			t.Errorf("%s, %s: an override for %q, but the columns are %q", uid, p.Title, o.Matcher.Options, columns)
		}
		for _, property := range o.Properties {
			for _, m := range regexp.MustCompile(`__data\.fields\.([a-z]+)`).FindAllStringSubmatch(string(property.Value), -1) {
				if !slices.Contains(columns, m[1]) {
					t.Errorf("%s, %s: a link with %q, but the columns are %q", uid, p.Title, m[1], columns)
				}
			}
		}
	}
	if format == "time_series" && (p.Type != "timeseries" || columns[0] != "time" || len(columns) < 2 || p.Interval == "") {
		t.Errorf("%s, %s: a series of %q", uid, p.Title, columns)
	}
}

// answers leaves tx usable where sql fails.
func answers(ctx context.Context, tx pgx.Tx, sql string) (columns []string, all [][]any, err error) {
	inner, err := tx.Begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer inner.Rollback(ctx)
	rows, err := inner.Query(ctx, sql)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range rows.FieldDescriptions() {
		columns = append(columns, f.Name)
	}
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
	return columns, all, err
}
