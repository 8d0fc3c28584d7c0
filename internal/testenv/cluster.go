package testenv

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/internal/embedded"
)

// Nodes are a JetStream cluster in this process, on loopback ports. The methods
// are for the test's goroutine alone.
type Nodes struct {
	t       testing.TB
	configs []embedded.NATSConfig
	nodes   []*embedded.NATS // nil where stopped
}

// clusterWait bounds an election; one after a stopped leader takes up to 9 s.
const clusterWait = 60 * time.Second

// Cluster starts nodes servers and returns when they have a leader that all
// of them follow. They stop when the test ends.
func Cluster(t testing.TB, nodes int, opts ...Option) *Nodes {
	t.Helper()
	c := &Nodes{t: t, nodes: make([]*embedded.NATS, nodes)}
	listen, between := make([]string, nodes), make([]string, nodes)
	for i := range nodes {
		listen[i], between[i] = FreeAddress(t), FreeAddress(t)
	}
	var routes []string
	for i := range nodes {
		routes = append(routes, "nats://"+between[i])
	}
	dir, log := t.TempDir(), warnings(t)
	for i := range nodes {
		cfg := embedded.NATSConfig{NoSync: true, Dir: dir, Log: log}
		for _, o := range opts {
			o(&cfg)
		}
		cfg.Dir = filepath.Join(cfg.Dir, fmt.Sprintf("n%d", i))
		cfg.Listen = listen[i]
		cfg.ServerName = fmt.Sprintf("n%d", i)
		cfg.Cluster = &embedded.NATSCluster{
			Name:   "test",
			Listen: between[i],
			Routes: routes,
		}
		c.configs = append(c.configs, cfg)
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.Stop(i)
		}
	})
	c.await()
	return c
}

func (c *Nodes) start(i int) {
	c.t.Helper()
	n, err := embedded.StartNATS(c.configs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = n
}

// await waits until every running node is part of a cluster with a leader.
// Nothing signals an election.
func (c *Nodes) await() {
	c.t.Helper()
	running := 0
	for _, n := range c.nodes {
		if n != nil {
			running++
		}
	}
	if running <= len(c.nodes)/2 {
		return
	}
	for deadline := time.Now().Add(clusterWait); ; time.Sleep(10 * time.Millisecond) {
		leaders, current, peers := 0, 0, 0
		for _, n := range c.nodes {
			if n == nil {
				continue
			}
			if n.Server().JetStreamIsLeader() {
				leaders++
				// A replica is only placed on a node whose state the leader has seen.
				peers = len(n.Server().JetStreamClusterPeers())
			}
			if n.Server().JetStreamIsCurrent() {
				current++
			}
		}
		if leaders == 1 && current == running && peers >= running {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("after %s the cluster has %d leaders, %d of %d nodes follow and %d are seen", clusterWait, leaders, current, running, peers)
		}
	}
}

// Node is server i, nil while it is stopped.
func (c *Nodes) Node(i int) *embedded.NATS { return c.nodes[i] }

// Conn connects to node i and to no other until the test ends; it reconnects
// when the node is restarted.
func (c *Nodes) Conn(i int, opts ...nats.Option) *nats.Conn {
	c.t.Helper()
	nc, err := nats.Connect("nats://"+c.configs[i].Listen, append([]nats.Option{
		nats.IgnoreDiscoveredServers(), nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond),
	}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// URL names all nodes, separated by commas, for a client that may fail over.
func (c *Nodes) URL() string {
	var urls []string
	for _, cfg := range c.configs {
		urls = append(urls, "nats://"+cfg.Listen)
	}
	return strings.Join(urls, ",")
}

// Stop shuts node i down and keeps its files. Stopping a stopped node does nothing.
func (c *Nodes) Stop(i int) {
	if c.nodes[i] != nil {
		c.nodes[i].Shutdown()
		c.nodes[i] = nil
	}
}

// Restart starts node i again on its files and addresses, stopping it first
// where it runs, and waits until the running nodes, where they are a majority,
// have a leader again.
func (c *Nodes) Restart(i int) {
	c.t.Helper()
	c.Stop(i)
	c.start(i)
	c.await()
}
