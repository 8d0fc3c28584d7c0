package testenv

import (
	"fmt"
	"testing"
	"time"
)

// RedisServer is a Redis of a test's own at one address over all its lives. It keeps
// what it took on disk, and syncs every write.
type RedisServer struct {
	Address string // host:port
	*Process

	t    testing.TB
	path string
	env  []string
	args []string
}

// Redis starts the machine's Redis, or the one of Debian's package (see [Nginx]), until
// the test ends. password may be empty.
func Redis(t testing.TB, password string) *RedisServer {
	t.Helper()
	path, env := ofDebian(t, unpackedRedis, "redis-server", "usr/bin/redis-server", "redis-server", "/usr/bin/redis-server", "/opt/homebrew/bin/redis-server")
	port := FreePort(t)
	r := &RedisServer{Address: fmt.Sprintf("127.0.0.1:%d", port), t: t, path: path, env: env, args: []string{
		"--bind", "127.0.0.1", "--port", fmt.Sprint(port), "--dir", t.TempDir(), "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no",
	}}
	if password != "" {
		r.args = append(r.args, "--requirepass", password)
	}
	r.Start()
	return r
}

// Start starts it again after it has ended.
func (r *RedisServer) Start() {
	r.t.Helper()
	r.Process = Start(r.t, r.env, r.path, r.args...)
	r.WaitOutput("Ready to accept connections", 30*time.Second)
}
