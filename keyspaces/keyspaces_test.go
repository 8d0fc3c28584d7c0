package keyspaces_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/keyspaces"
)

// Every document that comes with the program is valid, and its file is named
// after its keyspace.
func TestDocumentsAreValid(t *testing.T) {
	all := keyspaces.All()
	if len(all) == 0 {
		t.Fatal("no documents are embedded")
	}
	for _, doc := range all {
		d, err := domain.ParseDocument(doc.Source)
		if err != nil {
			t.Errorf("%s: %v", doc.Name, err)
			continue
		}
		if d.Keyspace != doc.Name {
			t.Errorf("%s.yaml configures the keyspace %s", doc.Name, d.Keyspace)
		}
	}
}

func compiled(t *testing.T, name string) *domain.Keyspace {
	t.Helper()
	for _, doc := range keyspaces.All() {
		if doc.Name == name {
			d, err := domain.ParseDocument(doc.Source)
			if err != nil {
				t.Fatal(err)
			}
			return domain.Compile(d, 1)
		}
	}
	t.Fatalf("there is no document %s", name)
	return nil
}

// Refusals look as the products' own pages show them, byte for byte where a
// page shows a body.
func TestRefusalsAsThePagesShowThem(t *testing.T) {
	ctx := domain.AnswerContext{
		RequestID: "req_1kn5f2a_a3b4c5d6e7f8", Time: events.At(time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)), RetryAfter: 45,
		Limits: events.Limits{"minute": 100, "hour": 5000, "day": 100000}, Plan: "starter", ScopesRequired: []string{"companies:read"},
	}
	const (
		invalidLogtalk = `{"success":false,"error":{"code":"INVALID_API_KEY","message":"Invalid API key","documentation_url":"https://docs.logtalk.io/errors/authentication#invalid-key"},"request_id":"req_1kn5f2a_a3b4c5d6e7f8","timestamp":"2026-01-18T12:00:00.000Z"}`
		deniedLogtalk  = `{"success":false,"error":{"code":"API_ACCESS_DENIED","message":"API access requires Growth tier or higher","details":{"current_tier":"starter","upgrade_url":"https://logtalk.io/pricing"},"documentation_url":"https://docs.logtalk.io/errors/authorization#api-access"},"request_id":"req_1kn5f2a_a3b4c5d6e7f8","timestamp":"2026-01-18T12:00:00.000Z"}`
		invalidTick    = `{"error":"Invalid or revoked API key","message":"The provided API key is not valid for this agent"}`
		headerTick     = `{"error":"Unauthorized","message":"Missing or invalid Authorization header"}`
		limitedTick    = `{"error":"Rate limit exceeded","message":"Too many requests. Please try again later.","retryAfter":45,"rateLimits":{"requestsPerMinute":100,"requestsPerHour":5000,"requestsPerDay":100000}}`
		invalidOpen    = `{"error":"UNAUTHORIZED","message":"Invalid API key"}`
		scopesOpen     = `{"error":"FORBIDDEN","message":"Insufficient scopes. Required: companies:read"}`
	)
	for _, test := range []struct {
		keyspace string
		codes    []domain.Code
		status   int
		body     string // empty: the page shows none
	}{
		{"ltprophecy", []domain.Code{domain.CodeRateLimited}, 429, ""},
		{"ltprophecy", []domain.Code{domain.CodeUnknownKey, domain.CodeRevoked, domain.CodeSuperseded, domain.CodeExpired}, 401, ""},
		{"chemolytic", []domain.Code{domain.CodeRevoked}, 403, ""},
		{"chemolytic", []domain.Code{domain.CodeWrongResource}, 403, `{"detail":"API key is not authorized for this deployment."}`},
		{"chemolytic", []domain.Code{domain.CodePlanDenied}, 403, ""},
		{"logtalk", []domain.Code{domain.CodeMalformedCredential, domain.CodeMalformedKey, domain.CodeUnknownKey, domain.CodeRevoked, domain.CodeSuperseded}, 401, invalidLogtalk},
		{"logtalk", []domain.Code{domain.CodePlanDenied}, 403, deniedLogtalk},
		{"promptick", []domain.Code{domain.CodeMalformedKey, domain.CodeUnknownKey, domain.CodeRevoked, domain.CodeSuperseded, domain.CodeExpired, domain.CodeWrongResource}, 401, invalidTick},
		{"promptick", []domain.Code{domain.CodeMissingCredential, domain.CodeMalformedCredential}, 401, headerTick},
		{"promptick", []domain.Code{domain.CodeRateLimited}, 429, limitedTick},
		{"openprospect", []domain.Code{domain.CodeMissingCredential, domain.CodeMalformedCredential, domain.CodeMalformedKey, domain.CodeUnknownKey, domain.CodeRevoked, domain.CodeExpired}, 401, invalidOpen},
		{"openprospect", []domain.Code{domain.CodeInsufficientScope}, 403, scopesOpen},
		{"openprospect", []domain.Code{domain.CodeWrongOwner, domain.CodePlanDenied, domain.CodeInsecureTransport}, 403, ""},
	} {
		k := compiled(t, test.keyspace)
		for _, code := range test.codes {
			a := k.Answer(code, ctx)
			if a.Status != test.status || test.body != "" && string(a.Body) != test.body {
				t.Errorf("%s, %s: %d %s\nwant %d %s", test.keyspace, code, a.Status, a.Body, test.status, test.body)
			}
		}
	}
	for code, want := range map[domain.Code]string{domain.CodeMissingCredential: "MISSING_API_KEY", domain.CodeExpired: "EXPIRED_API_KEY"} {
		if a := compiled(t, "logtalk").Answer(code, ctx); a.Status != 401 || !strings.Contains(string(a.Body), `"code":"`+want+`"`) {
			t.Errorf("logtalk, %s: %d %s", code, a.Status, a.Body)
		}
	}
}

// Only a limit answers 429, and only our own trouble 503: told otherwise, a
// client would throw a good key away or retry a bad one.
func TestStatusesKeepTheirMeaning(t *testing.T) {
	for _, doc := range keyspaces.All() {
		k := compiled(t, doc.Name)
		for _, code := range domain.Codes() {
			if code == domain.CodeValid {
				continue
			}
			status := k.Answer(code, domain.AnswerContext{}).Status
			if (status == 429) != (code == domain.CodeRateLimited) || (status == 503) != (code.Status() == 503) {
				t.Errorf("%s answers %s with %d", doc.Name, code, status)
			}
		}
	}
}

// Secrets look as the pages show them, and the pages' examples pass for keys
// that are not known.
func TestSecretsAsThePagesShowThem(t *testing.T) {
	for _, test := range []struct{ keyspace, secret, environment, shown string }{
		{"logtalk", "lt_live_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6", "live", "lt_live_a1b2..."},
		{"promptick", "pk_live_abc123def456ghi789jkl012mno345pqr678stu901vwx234yz", "live", "...vwx234yz"},
		{"promptick", "pk_live_stg_abc123def456ghi789jkl012mno345pqr678stu901vwx234yz", "stg", "...vwx234yz"},
		{"openprospect", "lnc_live_abc123def456ghi789jkl012mno345pqr678stu901vwx234yz", "live", "lnc_live...vwx234yz"},
		{"openprospect", "lnc_test_abc123def456ghi789jkl012mno345pqr678stu901vwx234yz", "test", "lnc_test...vwx234yz"},
		{"chemolytic", "sk_3fA9c1b2d" + strings.Repeat("x", 34), "live", "sk_3fA9c1b2d..."},
		{"ltprophecy", "ltpk_live_" + strings.Repeat("x", 43), "live", "ltpk_live_xxxx..."},
	} {
		k := compiled(t, test.keyspace)
		if environment, ok := k.CheckFormat(test.secret); !ok || environment != test.environment {
			t.Errorf("%s: the page's example reads as %q, %v", test.keyspace, environment, ok)
		}
		if kept := k.Keep(test.secret); domain.ShowSecret(kept.First, kept.Last) != test.shown {
			t.Errorf("%s: shown as %s, want %s", test.keyspace, domain.ShowSecret(kept.First, kept.Last), test.shown)
		}
	}
}

// What the pages say about scopes, paths and public routes.
func TestRoutesAsThePagesShowThem(t *testing.T) {
	open := compiled(t, "openprospect")
	for method, want := range map[string]string{"GET": "companies:read", "HEAD": "companies:read", "POST": "companies:write", "PUT": "companies:write", "DELETE": "companies:write"} {
		if got := open.ScopesFor(method, "/api/v1/companies/?prospect_search_id=1"); !slices.Equal(got, []string{want}) {
			t.Errorf("%s companies needs %v, want %s", method, got, want)
		}
	}
	if r := open.PublicRoute("GET", "/health"); r == nil || r.Status != 200 || string(r.Body) != `{"service":"OpenProspect API","status":"healthy"}` {
		t.Errorf("/health is %v", r)
	}
	if got, ok := compiled(t, "promptick").ResourceIn("/api/v1/agents/agent_1/execute"); got != "agent_1" || !ok {
		t.Errorf("the agent is %q", got)
	}
	if got, ok := compiled(t, "chemolytic").ResourceIn("/api/organizations/lab/projects/7/deployments/42/predict/"); got != "42" || !ok {
		t.Errorf("the deployment is %q", got)
	}
	if got := compiled(t, "ltprophecy").ScopesFor("GET", "/api/forecasts"); !slices.Equal(got, []string{"org:forecasts:read"}) {
		t.Errorf("forecasts need %v", got)
	}
}
