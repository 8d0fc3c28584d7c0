package api_test

import (
	"testing"
)

// A root key that verified a moment ago and was revoked verifies no more, and one
// that was narrowed is judged anew.
func TestVerifyRootKeyChanged(t *testing.T) {
	s := start(t)
	s.configure("pb")
	_, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	made := s.must("POST", "/v1/root-keys", s.root, `{"name":"a verifier","role":"verifier"}`)
	id, verifier := made.key()["id"].(string), made.json["secret"].(string)
	ask := `{"keyspace":"pb","key":"` + secret + `"}`
	for range 3 {
		s.must("POST", "/v1/verify", verifier, ask)
	}
	s.must("PATCH", "/v1/keys/"+id, s.root, `{"allowed_ips":["192.0.2.1"]}`)
	s.refused(s.do("POST", "/v1/verify", verifier, ask), 403, "IP_DENIED")
	s.must("PATCH", "/v1/keys/"+id, s.root, `{"allowed_ips":[]}`)
	s.must("POST", "/v1/verify", verifier, ask)
	s.must("POST", "/v1/keys/"+id+"/revoke", s.root, `{"reason":"over"}`)
	s.refused(s.do("POST", "/v1/verify", verifier, ask), 401, "REVOKED")
	s.refused(s.do("POST", "/v1/verify", verifier+"x", ask), 401, "UNKNOWN_KEY")
}
