package api_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/keyledger/keyledger/api"
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
		"/v1/keys", "/v1/keys/{id}", "/v1/keys/{id}/rotate", "/v1/keys/{id}/end-grace", "/v1/keys/{id}/revoke",
		"/v1/keys/import", "/v1/keys/lookup", "/v1/root-keys", "/v1/verify", "/v1/limits/take", "/v1/uses",
		"/v1/authz/{keyspace}", "/v1/authz-answers/{decision_id}",
		"/v1/audit/events", "/v1/audit/tail", "/v1/audit/diff", "/v1/audit/keys/{id}/history", "/v1/audit/decisions/{decision_id}", "/v1/audit/leaked", "/v1/feeds/revocations", "/v1/analytics/usage", "/v1/status", "/v1/projections",
	} {
		if doc.Paths[path] == nil {
			t.Errorf("the document has no %s", path)
		}
	}
	if to := os.Getenv("KEYLEDGER_OPENAPI_OUT"); to != "" {
		if err := os.WriteFile(to, spec, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
