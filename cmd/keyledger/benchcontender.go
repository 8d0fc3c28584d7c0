package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/internal/bench"
	"github.com/keyledger/keyledger/internal/embedded"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/projections/recent"
	"github.com/keyledger/keyledger/reactors"
	"github.com/keyledger/keyledger/verify"
)

// contender is what one server process of `keyledger bench` is told, as a line
// of JSON on its standard input.
type contender struct {
	Name     string        `json:"name"`
	Dir      string        `json:"dir"`      // of its own
	Keys     int           `json:"keys"`     // that it is to know
	Upstream string        `json:"upstream"` // of a proxy
	NATS     string        `json:"nats"`     // of another contender whose ledger this one follows; empty: its own
	Master   []byte        `json:"master"`
	Profile  string        `json:"profile"` // file for a CPU profile; empty: none
	Listen   bool          `json:"listen"`  // let others follow its ledger
	Feed     bool          `json:"feed"`    // write FEED, for subscribers
	During   time.Duration `json:"during"`  // in process: of one round
	Without  []string      `json:"without"` // of "wal": no write-ahead log
}

// contenderReady is what it answers once it serves.
type contenderReady struct {
	Address string   `json:"address"`
	NATS    string   `json:"nats,omitempty"`
	Root    string   `json:"root,omitempty"`
	Secrets []string `json:"secrets,omitempty"`
	IDs     []string `json:"ids,omitempty"` // of the keys with these secrets
	Master  []byte   `json:"master"`
	Node    string   `json:"node,omitempty"` // under which it records
	Error   string   `json:"error,omitempty"`
}

// tally is what it answers to a question: how much of the processor it has used
// and, after "check", how many uses are in its USAGE.
type tally struct {
	CPU      time.Duration `json:"cpu"`
	Recorded int64         `json:"recorded"`
	Gaps     int64         `json:"gaps"` // uses declared as lost

	InProcess []inProcess `json:"in_process,omitempty"`

	// After "measured": microseconds until each node refused a revoked key, by key and
	// node, as keyledger reports it.
	Measured map[string]map[string]int64 `json:"measured,omitempty"`
	Error    string                      `json:"error,omitempty"`
}

// The documents of the benchmark: three windows, everything that a product
// usually has.
const benchKeyspace = `
keyspace: bench
about: keyledger bench
credential: {header: Authorization, scheme: Bearer}
format: {prefixes: {live: kb_live_}, alphabet: base62, length: 40, checksum: crc32}
display: {first: 12, last: 4}
owner: {kind: organization}
resource: {kind: depot, mode: optional, path: "/v1/depots/{resource}/**"}
scopes:
  parcels:read: {about: Read, routes: ["GET /v1/parcels/**"]}
  parcels:write: {about: Write, routes: ["POST,PUT,DELETE /v1/parcels/**"]}
limits: {from: key, count_by: key, default: {minute: 1000000000000, hour: 1000000000000, day: 1000000000000}}
rate_headers: [x-ratelimit, retry-after]
answers:
  default: {status: 401, message: Invalid key, body: {problem: "${message}", code: "${code}"}}
`

func (a *app) contenderCommand() *cobra.Command {
	return &cobra.Command{
		Use: "contender", Hidden: true, Args: takes(), Short: "One server of a benchmark, told by standard input what to be",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.contend(cmd.Context()) },
	}
}

// contend runs one contender until its standard input ends.
func (a *app) contend(ctx context.Context) error {
	in := bufio.NewReader(a.stdin)
	out := json.NewEncoder(a.stdout)
	var c contender
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &c)
	}
	if err != nil {
		return usageError("`keyledger bench contender` is started by `keyledger bench`")
	}
	r := &rival{contender: c, log: a.logger(false)}
	defer r.close(context.WithoutCancel(ctx))
	ready, err := r.start(ctx)
	if err != nil {
		return out.Encode(contenderReady{Error: err.Error()})
	}
	if err := out.Encode(ready); err != nil {
		return err
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil // whoever started it has ended, or is done
		}
		var t tally
		switch line {
		case "profile\n":
			err = r.profile()
		case "check\n":
			t, err = r.check(ctx)
		case "measured\n":
			t.Measured = r.measured()
		case "run\n":
			t.InProcess, err = r.library.run(ctx, r.During)
		}
		if err != nil {
			t.Error = err.Error()
		}
		t.CPU = processorTime()
		if err := out.Encode(t); err != nil {
			return err
		}
	}
}

// rival is a running contender.
type rival struct {
	contender
	log      *slog.Logger
	server   *embedded.NATS
	conn     *nats.Conn
	node     *node
	library  *library // in process
	many     int      // keys of that
	profiled *os.File
	last     []func(context.Context)
}

func (r *rival) start(ctx context.Context) (*contenderReady, error) {
	ready := &contenderReady{}
	var handler http.Handler
	var err error
	if r.Name == "inprocess" {
		r.many, r.Keys = r.Keys, 0 // they are made in memory, not in the ledger
	}
	switch r.Name {
	case "floor":
		ready.Secrets = make([]string, r.Keys)
		for i := range ready.Secrets {
			ready.Secrets[i] = "kb_live_" + rand.Text() + rand.Text()[:14]
		}
		handler = bench.NewFloor(ready.Secrets)
	case "empty":
		handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	case "proxy":
		handler = bench.Proxy(r.Upstream)
	default:
		if err := r.open(ctx, ready); err != nil {
			return nil, err
		}
	}
	switch r.Name {
	case "verify", "strict":
		d := apiDeps(ctx, r.node)
		d.Queries = nil
		if r.Name == "strict" {
			d.DurableTime = 2 * time.Second
		}
		handler = api.New(d)
	case "gateway":
		gw, err := gateway.New(gateway.Config{
			Routes: []gateway.Route{{PathPrefix: "/bench", StripPrefix: gateway.StripAll, Keyspace: "bench", Upstream: "http://" + r.Upstream}},
		}, r.node.verifier, r.node.recorder, r.log)
		if err != nil {
			return nil, err
		}
		handler = gw
		r.last = append(r.last, func(ctx context.Context) { _ = gw.Shutdown(ctx) })
	case "inprocess":
		if r.library, err = newLibrary(r.node.recorder, r.many); err != nil {
			return nil, err
		}
		r.last = append(r.last, func(context.Context) { r.library.verifier.Close() })
	}
	if handler == nil {
		return ready, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ready.Address = l.Addr().String()
	s := front.New(front.Config{}, handler, nil, r.log)
	go s.Serve(l)
	r.last = append(r.last, s.Drain)
	return ready, nil
}

// open starts a node over a NATS of its own, or one that another contender has.
func (r *rival) open(ctx context.Context, ready *contenderReady) error {
	var err error
	if r.NATS == "" {
		cfg := embedded.NATSConfig{Dir: filepath.Join(r.Dir, "nats"), Log: r.log}
		if r.Listen {
			cfg.Listen = "127.0.0.1:0"
		}
		if r.server, err = embedded.StartNATS(cfg); err != nil {
			return err
		}
		if r.conn, err = r.server.Conn(nats.MaxReconnects(-1)); err != nil {
			return err
		}
		r.Master = make([]byte, len(seal.Master{}))
		_, _ = rand.Read(r.Master)
		if err := r.furnish(ctx, ready); err != nil {
			return err
		}
		if r.Listen {
			ready.NATS = r.server.ClientURL()
		}
	} else if r.conn, err = nats.Connect(r.NATS, nats.MaxReconnects(-1)); err != nil {
		return err
	}
	ready.Master = r.Master
	log := filepath.Join(r.Dir, "wal")
	if slices.Contains(r.Without, "wal") {
		log = ""
	}
	r.node, err = openNode(ctx, nodeConfig{
		Program: "bench", Name: verify.NodeName("bench"), Conn: r.conn, Replicas: 1,
		SyncAlways: r.syncs, Unverified: r.server == nil,
		HeadFile: filepath.Join(r.Dir, "head.json"), WAL: log, Master: seal.Master(r.Master), Log: r.log,
		Measures: r.Listen,
	})
	if err != nil {
		return err
	}
	r.node.commands = &commands.Commands{Ledger: r.node.ledger, Ring: r.node.ring}
	if r.node.verifiers != nil {
		r.node.commands.Appended = r.node.verifiers.Appended
	}
	ready.Node = r.node.config.Name
	if r.Feed {
		return r.feed(ctx)
	}
	return nil
}

// measured is what the service says of the revocations that it knows of.
func (r *rival) measured() map[string]map[string]int64 {
	all := map[string]map[string]int64{}
	if r.node == nil || r.node.verifiers == nil {
		return all
	}
	for _, m := range r.node.verifiers.Revocations(time.Now()) {
		all[m.Key] = map[string]int64{}
		for _, s := range m.Stopped {
			all[m.Key][s.Node] = s.DelayUS
		}
	}
	return all
}

// feed writes FEED, follows it and sends to webhooks, as a node with PostgreSQL does.
func (r *rival) feed(ctx context.Context) error {
	feed, err := reactors.NewFeed(reactors.FeedOptions{Ledger: r.node.ledger, Conn: r.conn, Void: r.node.ring.Void, Log: r.log})
	if err != nil {
		return err
	}
	fed, at, err := r.node.ledger.LastFed(ctx)
	if err != nil {
		return err
	}
	r.node.recent = recent.New(recent.Place{Feed: fed, Ledger: at})
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { _ = feed.Run(ctx) })
	running.Go(func() { r.node.followRecent(ctx, fed) })
	js, err := jetstream.New(r.conn)
	if err == nil {
		r.node.config.Webhooks, err = webhookSettings{AllowHTTP: true, AllowPrivate: []string{"127.0.0.0/8"}}.policy()
	}
	if err == nil {
		err = r.node.sendToWebhooks(ctx, js)
	}
	if err != nil {
		stop()
		return err
	}
	r.last = append(r.last, func(context.Context) { stop(); running.Wait() })
	// The keys that were made for this are in FEED before anything is measured.
	head, err := r.node.ledger.Head(ctx, events.Ledger)
	for err == nil && at < head {
		select {
		case <-time.After(10 * time.Millisecond):
			_, at, err = r.node.ledger.LastFed(ctx)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return err
}

// syncs is asked of the contender that runs the server.
func (r *rival) syncs(context.Context) (bool, error) {
	if r.server == nil {
		return false, errors.New("another contender runs the server")
	}
	return r.server.SyncAlways(), nil
}

// furnish makes a keyspace, owners, keys and a root key, as commands do.
func (r *rival) furnish(ctx context.Context, ready *contenderReady) error {
	l, err := ledger.Open(ctx, r.conn, ledger.Options{Replicas: 1, AllowUnverifiedSync: true, HeadFile: filepath.Join(r.Dir, "head.json"), Log: r.log})
	if err != nil {
		return err
	}
	defer l.Close()
	ring := keyring.New()
	follow, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(follow, l) }()
	defer func() { stop(); <-ended }()
	<-ring.Ready()
	c := &commands.Commands{Ledger: l, Ring: ring}
	q := commands.Request{Authority: domain.System("bench"), Via: "bench"}
	root, err := c.CreateRootKey(ctx, q, domain.CreateKey{Name: "bench", Role: domain.Operator})
	if err != nil {
		return err
	}
	ready.Root = root.Secret
	doc, err := domain.ParseDocument([]byte(benchKeyspace))
	if err != nil {
		return err
	}
	if _, err := c.ConfigureKeyspace(ctx, q, doc, false); err != nil {
		return err
	}
	ready.Secrets, ready.IDs = make([]string, r.Keys), make([]string, r.Keys)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := 0; i < r.Keys; i += keysOfAnOwner {
		g.Go(func() error {
			owner := fmt.Sprintf("org_%d", i/keysOfAnOwner)
			if _, err := c.SetOwner(ctx, q, "bench", owner, domain.SetOwner{Name: new(owner)}); err != nil {
				return err
			}
			for i := i; i < min(i+keysOfAnOwner, r.Keys); i++ {
				made, err := c.CreateKey(ctx, q, "bench", owner, domain.CreateKey{Name: fmt.Sprintf("key %d", i), Scopes: new([]string{"parcels:read"})})
				if err != nil {
					return err
				}
				ready.Secrets[i], ready.IDs[i] = made.Secret, made.Key.ID
			}
			return nil
		})
	}
	return g.Wait()
}

const keysOfAnOwner = 10

func (r *rival) profile() error {
	if r.Profile == "" {
		return nil
	}
	f, err := os.Create(r.Profile)
	if err != nil {
		return err
	}
	r.profiled = f
	return pprof.StartCPUProfile(f)
}

// check ends the profile and counts what was recorded.
func (r *rival) check(ctx context.Context) (t tally, err error) {
	if r.profiled != nil {
		pprof.StopCPUProfile()
		if err := r.profiled.Close(); err != nil {
			return t, err
		}
		r.profiled = nil
	}
	if r.node == nil {
		return t, nil
	}
	if err := r.node.recorder.Flush(ctx); err != nil {
		return t, err
	}
	if r.NATS != "" {
		return t, nil // the one whose ledger it is counts for all
	}
	for rec, err := range r.node.ledger.Read(ctx, events.Usage, 1, 0) {
		if err != nil {
			return t, err
		}
		switch d := rec.Event.Data.(type) {
		case events.KeyUsed:
			t.Recorded++
		case events.UsageGap:
			t.Gaps += d.Count
		}
	}
	return t, nil
}

func (r *rival) close(ctx context.Context) {
	for i := len(r.last) - 1; i >= 0; i-- {
		r.last[i](ctx)
	}
	if r.node != nil {
		_ = r.node.close(ctx)
	}
	if r.conn != nil {
		r.conn.Close()
	}
	if r.server != nil {
		r.server.Shutdown()
	}
}
