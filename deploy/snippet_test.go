package deploy

import (
	"strings"
	"testing"
)

// Every snippet asks about the keyspace that it is filled in for, and takes its
// credential off, whatever header that is in.
func TestSnippets(t *testing.T) {
	for _, header := range []string{"Authorization", "X-API-Key"} {
		v := Values{Keyspace: "some-api", Header: header, Scheme: "", Service: "keys.example:7070", URL: "http://keys.example:7070", Upstream: "127.0.0.1:9"}
		for _, name := range []string{Nginx, Caddy, Traefik, Envoy, Gateway, Verify} {
			text, err := Snippet(name, v)
			if err != nil {
				t.Error(err)
				continue
			}
			if strings.Contains(text, "parcelbird") || !strings.Contains(text, "some-api") {
				t.Errorf("%s asks about another keyspace:\n%s", name, text)
			}
			if name != Gateway && !strings.Contains(strings.ToLower(text), strings.ToLower(header)) {
				t.Errorf("%s says nothing of %s", name, header)
			}
			if name != Gateway && name != Envoy && !strings.Contains(text, "keys.example:7070") {
				t.Errorf("%s does not ask where it should", name)
			}
		}
	}
}
