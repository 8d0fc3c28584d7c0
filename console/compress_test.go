package console

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/api"
)

// Pages are compressed, answers to forms and pages that stand alone, which may show a
// secret, are not, and streams pass as they are.
func TestCompressed(t *testing.T) {
	long := strings.Repeat("The key is revoked. ", 500)
	c := &Console{mux: http.NewServeMux(), foreign: http.NewCrossOriginProtection()}
	page := func(alone bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := c.render(w, layout{Title: "Title", Page: "problem", Alone: alone, Data: &api.Problem{Detail: long}}); err != nil {
				t.Error(err)
			}
		}
	}
	c.mux.HandleFunc("/page", page(false))
	c.mux.HandleFunc("/reveal", page(true))
	c.mux.HandleFunc("/tail", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, long)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	})
	c.mux.HandleFunc("/part", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		for range 3 {
			_, _ = io.WriteString(w, long)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}
	})
	c.assets()
	sheet, err := asset("console.css")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c)
	defer server.Close()
	for _, x := range []struct {
		method, path, accepts string
		zipped                bool
		holds                 string
	}{
		{"GET", "/page", "gzip, deflate, br, zstd", true, long},
		{"GET", "/page", "br;q=1.0, gzip;q=0.8", true, long},
		{"GET", "/page", "gzip;q=0", false, long},
		{"GET", "/page", "", false, long},
		{"POST", "/page", "gzip", false, long},
		{"GET", "/reveal", "gzip", false, long},
		{"GET", "/tail", "gzip", false, long},
		{"GET", "/part", "gzip", true, long + long + long},
		{"GET", sheet, "gzip", true, string(assetFiles()["console.css"])},
		{"GET", sheet, "", false, string(assetFiles()["console.css"])},
	} {
		r, err := http.NewRequestWithContext(t.Context(), x.method, server.URL+x.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", x.accepts)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = resp.Body
		zipped := resp.Header.Get("Content-Encoding") == "gzip"
		if zipped {
			if body, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if zipped != x.zipped || !strings.Contains(string(b), x.holds) {
			t.Errorf("%s %s, which takes %q: compressed %v, %d bytes", x.method, x.path, x.accepts, zipped, len(b))
		}
		if kept := resp.Header.Get("Cache-Control"); x.path == "/reveal" && kept != "no-store, no-transform" {
			t.Errorf("a page that may show a secret says Cache-Control: %s", kept)
		}
	}
}
