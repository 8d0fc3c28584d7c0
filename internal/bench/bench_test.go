package bench

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A quantile is never below what was counted, and at most a 64th above it.
func TestLatencies(t *testing.T) {
	for _, want := range []time.Duration{0, 1, 63, 64, 127, 128, 1000, 123456, time.Millisecond, 3 * time.Second, time.Hour} {
		var l Latencies
		l.Add(want)
		if got := l.Quantile(0.5); got < want || got > want+want/64 {
			t.Errorf("%s was counted as %s", want, got)
		}
	}
	var l Latencies
	for i := range 1000 {
		l.Add(time.Duration(i) * time.Millisecond)
	}
	if got := l.Quantile(0.99); got < 990*time.Millisecond || got > 1010*time.Millisecond {
		t.Errorf("the 99th of a hundred is %s", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2}} {
		if got := Median(c.of); got != c.want {
			t.Errorf("the median of %v is %v", c.of, got)
		}
	}
}

func floorServer(t testing.TB) (*Load, []string) {
	secrets := []string{"a", "b", "c", "d"}
	s := httptest.NewServer(NewFloor(secrets))
	t.Cleanup(s.Close)
	address := strings.TrimPrefix(s.URL, "http://")
	l := &Load{Address: address, Connections: 2, Begin: `{"valid":true`}
	for _, secret := range secrets {
		l.Requests = append(l.Requests, Request("POST", address, "/", []byte(`{"key":"`+secret+`"}`)))
	}
	return l, secrets
}

// What a load says was answered was answered.
func TestLoad(t *testing.T) {
	l, _ := floorServer(t)
	r, err := l.Run(t.Context(), 50*time.Millisecond, 0)
	if err != nil || r.Answered == 0 || r.Wrong != 0 || r.Latencies.total != r.Answered {
		t.Fatalf("%+v %v", r, err)
	}
	// The floor counts the first window from the limit down.
	left, total := int64(0), int64(0)
	f := NewFloor([]string{"x"})
	for range 3 {
		_, left = f.Verify("x")
		total++
	}
	if left != Limit-total {
		t.Errorf("%d are left after %d", left, total)
	}
}

// A wrong answer is counted apart and shown; an answer without an end is an error.
func TestLoadWrong(t *testing.T) {
	l, _ := floorServer(t)
	l.Requests = [][]byte{Request("POST", l.Address, "/", []byte(`{"key":"unknown"}`))}
	r, err := l.Run(t.Context(), 20*time.Millisecond, 0)
	if err != nil || r.Answered != 0 || r.Wrong == 0 || !strings.Contains(r.Example, `"valid":false`) {
		t.Errorf("%+v %v", r, err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }))
	defer s.Close()
	l.Address = strings.TrimPrefix(s.URL, "http://")
	if _, err := l.Run(t.Context(), 20*time.Millisecond, 0); err == nil || !strings.Contains(err.Error(), "Content-Length") {
		t.Errorf("an answer in chunks: %v", err)
	}
}

// A pace is kept, and the context ends a run before its time.
func TestLoadPaced(t *testing.T) {
	l, _ := floorServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := l.Run(ctx, time.Hour, 10*time.Millisecond)
	if err != nil || r.Answered == 0 || r.Answered > 2*12 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestUpstream(t *testing.T) {
	u, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go Upstream(u)
	defer u.Close()
	p := httptest.NewServer(Proxy(u.Addr().String()))
	defer p.Close()
	address := strings.TrimPrefix(p.URL, "http://")
	l := &Load{Address: address, Connections: 2, Requests: [][]byte{Request("GET", address, "/x", nil)}, Begin: `{"ok":true}`}
	if r, err := l.Run(t.Context(), 20*time.Millisecond, 0); err != nil || r.Answered == 0 || r.Wrong != 0 {
		t.Errorf("%+v %v", r, err)
	}
}

// The floors: in process, and by net/http with a socket for each goroutine.
func BenchmarkFloor(b *testing.B) {
	b.Run("inprocess", func(b *testing.B) {
		secrets := make([]string, 1000)
		for i := range secrets {
			secrets[i] = "kb_live_" + strconv.Itoa(i)
		}
		f := NewFloor(secrets)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if ok, _ := f.Verify(secrets[i%len(secrets)]); !ok {
				b.Fatal("refused")
			}
		}
	})
	b.Run("http", func(b *testing.B) {
		l, _ := floorServer(b)
		b.RunParallel(func(p *testing.PB) {
			c, err := Open(b.Context(), l.Address, l.Begin)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Time{})
			for p.Next() {
				if ok, err := c.Ask(l.Requests[0]); !ok || err != nil {
					b.Error(ok, err)
					return
				}
			}
		})
	})
}
