package embedded

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func startNATS(t *testing.T, cfg NATSConfig) *NATS {
	t.Helper()
	n, err := StartNATS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Shutdown)
	return n
}

func TestNATS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space", "nats")
	n := startNATS(t, NATSConfig{Dir: dir})
	if !n.SyncAlways() {
		t.Error("the server does not sync before it acknowledges")
	}
	if got := n.ClientURL(); got != "" {
		t.Errorf("ClientURL() = %q without a listener", got)
	}
	js := jetStream(t, n)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}

	// A second server on the directory would acknowledge what the first never sees.
	var locked *LockedError
	if _, err := StartNATS(NATSConfig{Dir: dir}); !errors.As(err, &locked) || locked.Dir != dir || locked.PID != os.Getpid() {
		t.Errorf("a second server: %v, want *LockedError for %s", err, dir)
	}

	n.Shutdown()
	n.Shutdown()
	n = startNATS(t, NATSConfig{Dir: dir, Listen: "127.0.0.1:0"})
	nc, err := nats.Connect(n.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	s, err := jetStream(t, n).Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetMsg(t.Context(), 1); err != nil || string(m.Data) != "kept" {
		t.Errorf("after a restart, message 1 = %v, %v", m, err)
	}
}

func jetStream(t *testing.T, n *NATS) jetstream.JetStream {
	t.Helper()
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestNATSRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	alone := t.TempDir()
	startNATS(t, NATSConfig{Dir: alone}).Shutdown()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name string
		cfg  NATSConfig
		want []string
	}{
		{"port taken", NATSConfig{Dir: t.TempDir(), Listen: taken.Addr().String()}, []string{taken.Addr().String(), "address already in use"}},
		{"no port", NATSConfig{Dir: t.TempDir(), Listen: "localhost"}, []string{`"localhost"`, "host:port"}},
		{"port not a number", NATSConfig{Dir: t.TempDir(), Listen: "localhost:nats"}, []string{"number"}},
		{"store is a file", NATSConfig{Dir: file}, []string{file}},
		{"store is damaged", NATSConfig{Dir: damaged}, []string{damaged, "JetStream"}},
		// JetStream would delete the streams after half a minute.
		{"alone, then in a cluster", NATSConfig{Dir: alone, Listen: "127.0.0.1:0", Cluster: &NATSCluster{Name: "c", Listen: "127.0.0.1:0"}}, []string{alone, `"alone"`, "cluster c"}},
		{"cluster without listener", NATSConfig{Dir: t.TempDir(), Cluster: &NATSCluster{Name: "c", Listen: "127.0.0.1:0"}}, []string{"listen address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := StartNATS(c.cfg)
			if err == nil {
				n.Shutdown()
				t.Fatal("it started")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	// A refusal leaves no lock behind.
	startNATS(t, NATSConfig{Dir: alone})
}

// A bit of a record's sequence number flips, and the server counts all that
// would be missing before it. The start ends with what to do; the directory is
// not free for a second server while the first still reads.
func TestNATSRecoveryIsBounded(t *testing.T) {
	dir := t.TempDir()
	n := startNATS(t, NATSConfig{Dir: dir})
	js := jetStream(t, n)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := js.Publish(t.Context(), "s", []byte("fact")); err != nil {
			t.Fatal(err)
		}
	}
	n.Shutdown()
	block := filepath.Join(dir, "jetstream", "$G", "streams", "S", "msgs", "1.blk")
	b, err := os.ReadFile(block)
	if err != nil {
		t.Fatal(err)
	}
	// A record is its length in 4 bytes, its sequence in 8, and the rest.
	b[len(b)/3+4+4] ^= 1
	if err := os.WriteFile(block, b, 0o600); err != nil {
		t.Fatal(err)
	}

	// Another process, since nothing stops the server.
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), recoverEnv+"="+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, second, _ := strings.Cut(string(out), "\n")
	for _, w := range []string{dir, "within 1s", "damaged", "restore", "docs/runbooks/restore.md"} {
		if !strings.Contains(first, w) {
			t.Errorf("the error %q does not say %q", first, w)
		}
	}
	if want := (&LockedError{Dir: dir, PID: child.Process.Pid}).Error(); strings.TrimSpace(second) != "NATS: "+want {
		t.Errorf("a second start: %q, want %q", second, want)
	}
}
