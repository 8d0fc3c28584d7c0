package api_test

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/queries"
)

// The document is written where the linter of the project finds it, when asked.
func TestOpenAPI(t *testing.T) {
	spec, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(spec, &doc); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/v1/keyspaces", "/v1/keyspaces/{ks}", "/v1/keyspaces/{ks}/owners", "/v1/keyspaces/{ks}/owners/{owner}",
		"/v1/keys", "/v1/keys/{id}", "/v1/keys/{id}/limits", "/v1/keys/{id}/secrets", "/v1/keys/{id}/rotate", "/v1/keys/{id}/end-grace", "/v1/keys/{id}/revoke", "/v1/keys/import", "/v1/keys/lookup", "/v1/root-keys", "/v1/verify", "/v1/limits/take", "/v1/limits/simulate", "/v1/uses", "/v1/keys/{id}/claim", "/v1/claims/open", "/v1/keys/{id}/previous-uses",
		"/v1/authz/{keyspace}", "/v1/authz-answers/{decision_id}",
		"/v1/audit/events", "/v1/audit/events/{stream}/{sequence}", "/v1/audit/tail", "/v1/audit/diff", "/v1/audit/keys/{id}/history", "/v1/audit/decisions/{decision_id}", "/v1/audit/leaked", "/v1/feeds/revocations", "/v1/feeds/latest", "/v1/feeds/events", "/v1/subscribers", "/v1/subscribers/{name}",
		"/v1/audit/who-could", "/v1/audit/moments",
		"/v1/webhooks", "/v1/webhooks/{id}", "/v1/webhooks/{id}/test", "/v1/webhooks/{id}/rotate-secret", "/v1/webhooks/{id}/enable", "/v1/webhooks/{id}/deliveries", "/v1/dead-letters", "/v1/dead-letters/{sequence}", "/v1/dead-letters/replay", "/v1/analytics/usage", "/v1/analytics/keys", "/v1/alerts/counts", "/v1/status", "/v1/projections",
	} {
		if doc.Paths[path] == nil {
			t.Errorf("the document has no %s", path)
		}
	}
	// The orders of a list are those that it can be had in.
	var list struct {
		Parameters []struct {
			Name   string
			Schema struct{ Enum []string }
		}
	}
	if err := json.Unmarshal(doc.Paths["/v1/keys"]["get"], &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Parameters {
		if p.Name == "sort" && !slices.Equal(p.Schema.Enum, queries.Sorts) {
			t.Errorf("the document has the orders %q", p.Schema.Enum)
		}
	}
	if to := os.Getenv("KEYLEDGER_OPENAPI_OUT"); to != "" {
		if err := os.WriteFile(to, spec, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
