package api_test

import (
	"strings"
	"testing"

	"github.com/keyledger/keyledger/gateway/authz"
)

// Forward-auth is answered beside the other calls, with a credential of its own,
// and counted.
func TestForwardAuth(t *testing.T) {
	s := start(t)
	s.configure("pb")
	s.deps.Authz = authz.New(s.deps.Verifier, authz.Options{})
	s.serve()
	id, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	asked := []string{"X-Authz-Token", s.root, "X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/v1/parcels/17"}
	for _, method := range []string{"GET", "POST", "PROPFIND"} {
		a := s.do(method, "/v1/authz/pb", secret, "", asked...)
		if a.status != 200 || len(a.body) != 0 || a.header.Get("X-Key-Id") != id {
			t.Errorf("%s: %d %v %s", method, a.status, a.header, a.body)
		}
	}
	s.refused(s.do("GET", "/v1/authz/pb", secret, "", asked[2:]...), 401, "MISSING_CREDENTIAL")
	s.refused(s.do("GET", "/v1/authz-answers/dec_x", s.root, ""), 401, "MISSING_CREDENTIAL")
	s.refused(s.do("GET", "/v1/authz/none", secret, "", asked...), 404, "NO_KEYSPACE")
	if a := s.do("GET", "/v1/authz/pb/v1/parcels/17", secret, "", asked[:2]...); a.status != 200 {
		t.Errorf("of Envoy: %d %s", a.status, a.body)
	}
	if figures := string(s.must("GET", "/metrics", "", "").body); !strings.Contains(figures, `{method="other",route="/v1/authz/{keyspace}",status="200"} 1`) {
		t.Error("it is not counted")
	}
	if strings.Contains(s.log.String(), secret) {
		t.Error("the log holds the secret")
	}
}
