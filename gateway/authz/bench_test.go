package authz_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/gateway/authz"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// nowhere takes an answer and keeps nothing of it.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// Forward-auth without the network: from the parsed question to the last header,
// with three windows and a recorded use.
func BenchmarkAuthz(b *testing.B) {
	w := verifytest.New(b, verify.Options{})
	w.Configure(strings.NewReplacer(`"from": "plan"`, `"from": "key"`, `"cost"`, `"rate_headers": ["x-ratelimit", "retry-after"], "cost"`).Replace(verifytest.Birds))
	limits := events.Limits{"minute": 1 << 40, "hour": 1 << 40, "day": 1 << 40}
	w.Key("birds", "org_1", secret, events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}, Limits: limits})
	w.Append(events.RootKeyspace, "", events.NewID("key", time.Now()), events.KeyCreated{Name: "v", Role: domain.Verifier, Secret: verifytest.Secret(token)})
	z := authz.New(w.Verifier, authz.Options{})
	for _, c := range []struct {
		name, method string
	}{{"admitted", "GET"}, {"refused", "DELETE"}} {
		b.Run(c.name, func(b *testing.B) {
			r, err := http.NewRequestWithContext(b.Context(), "GET", "/v1/authz/birds?for=nginx", nil)
			if err != nil {
				b.Fatal(err)
			}
			r.RequestURI, r.RemoteAddr = "/v1/authz/birds?for=nginx", "127.0.0.1:4711"
			r.Header = http.Header{
				"Authorization": {"Bearer " + secret}, "X-Authz-Token": {token}, "X-Original-Method": {c.method}, "X-Original-Uri": {"/v1/birds/7"},
				"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Proto": {"https"}, "User-Agent": {"curl/8.5.0"},
			}
			to := &nowhere{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(to.header)
				z.ServeHTTP(to, r)
			}
		})
	}
}
