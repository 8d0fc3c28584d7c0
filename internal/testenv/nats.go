package testenv

import (
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/internal/embedded"
)

// Option changes what NATS and Cluster start.
type Option func(*embedded.NATSConfig)

// Synced makes every write reach the disk before it is acknowledged, as in
// production. The default is not to, which is several times faster.
func Synced() Option { return func(c *embedded.NATSConfig) { c.NoSync = false } }

// Listening opens a listener on a free loopback port for clients in other processes.
func Listening() Option { return func(c *embedded.NATSConfig) { c.Listen = "127.0.0.1:0" } }

// InDir keeps the server's files in dir instead of a fresh directory, so that a
// later server can continue from them.
func InDir(dir string) Option { return func(c *embedded.NATSConfig) { c.Dir = dir } }

// NATS starts a server of this test's own with JetStream and stops it when the
// test ends. Its log goes to the test's.
func NATS(t testing.TB, opts ...Option) *embedded.NATS {
	t.Helper()
	cfg := embedded.NATSConfig{NoSync: true, Log: warnings(t)}
	for _, o := range opts {
		o(&cfg)
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	n, err := embedded.StartNATS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Shutdown)
	return n
}

// Conn connects to n in process until the test ends.
func Conn(t testing.TB, n *embedded.NATS, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := n.Conn(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// warnings shows warnings and errors in the test's output until the test ends;
// the testing package panics on a line that comes later.
func warnings(t testing.TB) *slog.Logger {
	w := &untilDone{to: t.Output()}
	t.Cleanup(w.stop)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type untilDone struct {
	mu sync.Mutex
	to io.Writer // nil once the test has ended; guarded by mu
}

func (u *untilDone) stop() {
	u.mu.Lock()
	u.to = nil
	u.mu.Unlock()
}

func (u *untilDone) Write(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.to == nil {
		return len(b), nil
	}
	return u.to.Write(b)
}
