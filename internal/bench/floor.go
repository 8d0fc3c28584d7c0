package bench

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Floor is what is left of verification without keyledger: the hash of a secret
// is looked up in a map and counted in three fixed windows. It has no scopes, no
// states, no exact windows, and records nothing.
type Floor struct{ keys map[[32]byte]*floorKey }

type floorKey struct {
	mu      sync.Mutex
	windows [3]struct{ begin, count int64 }
}

var floorWindows = [3]int64{int64(time.Minute), int64(time.Hour), int64(24 * time.Hour)}

// NewFloor knows these secrets.
func NewFloor(secrets []string) *Floor {
	f := &Floor{keys: make(map[[32]byte]*floorKey, len(secrets))}
	for _, s := range secrets {
		f.keys[sha256.Sum256([]byte(s))] = new(floorKey)
	}
	return f
}

// Verify says whether a secret is known and has room in all windows, and how
// much is left in the first.
func (f *Floor) Verify(secret string) (valid bool, left int64) {
	k := f.keys[sha256.Sum256([]byte(secret))]
	if k == nil {
		return false, 0
	}
	now := time.Now().UnixNano()
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.windows {
		w := &k.windows[i]
		if now-w.begin >= floorWindows[i] {
			w.begin, w.count = now, 0
		}
		if w.count >= Limit {
			return false, 0
		}
	}
	for i := range k.windows {
		k.windows[i].count++
	}
	return true, Limit - k.windows[0].count
}

// Limit is what every window of every contender has room for: never used up.
const Limit = 1_000_000_000_000

type floorRequest struct {
	Keyspace string `json:"keyspace"`
	Key      string `json:"key"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	IP       string `json:"ip"`
}

// ServeHTTP is the bare handler: JSON in with encoding/json, JSON out by hand.
func (f *Floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "unreadable", http.StatusBadRequest)
		return
	}
	var in floorRequest
	if err := json.Unmarshal(body, &in); err != nil {
		http.Error(w, "unreadable", http.StatusBadRequest)
		return
	}
	valid, left := f.Verify(in.Key)
	b := strconv.AppendBool(append(make([]byte, 0, 64), `{"valid":`...), valid)
	b = strconv.AppendInt(append(b, `,"remaining":`...), left, 10)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '}'))
}

// Proxy is a bare [httputil.ReverseProxy], with as many connections to the
// upstream kept as it uses.
func Proxy(upstream string) http.Handler {
	to := &url.URL{Scheme: "http", Host: upstream}
	return &httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}
}
