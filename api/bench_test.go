package api_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
)

// nowhere takes an answer and keeps nothing of it.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// POST /v1/verify without the network: from the parsed request to the last byte.
func BenchmarkVerify(b *testing.B) {
	s := start(b)
	s.deps.Log = slog.New(slog.DiscardHandler)
	s.configure("pb")
	_, secret := s.create(map[string]any{"scopes": []string{"parcels:read"}})
	body := fmt.Sprintf(`{"keyspace":"pb","key":%q,"method":"GET","path":"/v1/parcels/17","ip":"203.0.113.7"}`, secret)
	r, err := http.NewRequestWithContext(b.Context(), "POST", s.url+"/v1/verify", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.root)
	r.Header.Set("Content-Type", "application/json")
	s.deps.Metrics = nil
	handler := api.New(s.deps)
	w := &nowhere{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		r.ContentLength = int64(len(body))
		r.Body = io.NopCloser(strings.NewReader(body))
		handler.ServeHTTP(w, r)
	}
}
