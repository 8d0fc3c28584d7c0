package api_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/api"
)

// nowhere takes an answer and keeps its beginning.
type nowhere struct {
	header http.Header
	begin  string
}

func (n *nowhere) Header() http.Header { return n.header }
func (n *nowhere) WriteHeader(int)     {}

func (n *nowhere) Write(b []byte) (int, error) {
	n.begin = string(b[:min(len(b), 16)])
	return len(b), nil
}

// POST /v1/verify without the network: from the parsed request to the last byte,
// with three windows; and durable, by as many callers as a page has waiting.
func BenchmarkVerify(b *testing.B) {
	s := start(b)
	s.deps.Log = slog.New(slog.DiscardHandler)
	s.configure("pb")
	const room = 1_000_000_000_000
	_, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}, "limits": map[string]any{"minute": room, "hour": room, "day": room}})
	body := fmt.Sprintf(`{"keyspace":"pb","key":%q,"method":"GET","path":"/v1/parcels/17","ip":"203.0.113.7"}`, secret)
	for _, mode := range []string{"async", "durable"} {
		deps := s.deps
		deps.Metrics = nil
		if mode == "durable" {
			deps.DurableTime = time.Second
		}
		handler := api.New(deps)
		caller := func() func() {
			r, err := http.NewRequestWithContext(b.Context(), "POST", s.url+"/v1/verify", nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+s.root)
			r.Header.Set("Content-Type", "application/json")
			w := &nowhere{header: http.Header{}}
			return func() {
				clear(w.header)
				r.ContentLength = int64(len(body))
				r.Body = io.NopCloser(strings.NewReader(body))
				handler.ServeHTTP(w, r)
				if !strings.HasPrefix(w.begin, `{"valid":true`) {
					b.Errorf("answered %s", w.begin)
				}
			}
		}
		b.Run(mode, func(b *testing.B) {
			b.ReportAllocs()
			if deps.DurableTime > 0 {
				b.SetParallelism(64)
				b.RunParallel(func(p *testing.PB) {
					for call := caller(); p.Next(); {
						call()
					}
				})
				return
			}
			for call := caller(); b.Loop(); {
				call()
			}
		})
	}
}
