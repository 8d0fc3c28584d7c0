package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/alertrules"
	"github.com/keyledger/keyledger/commands/claims"
	"github.com/keyledger/keyledger/commands/retention"
	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/gateway/front"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/endings"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/projections/recent"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/reactors"
	"github.com/keyledger/keyledger/reactors/pubsub"
	"github.com/keyledger/keyledger/reactors/sinks"
	sender "github.com/keyledger/keyledger/reactors/webhooks"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/applied"
)

// nodeConfig is what a node is started with: connections that are open already,
// and what it is called.
type nodeConfig struct {
	Program    string // dev, serve, gateway: what service.started records
	Name       string // of this process, a subject token that no other running one has
	Conn       *nats.Conn
	Pool       *pgxpool.Pool // nil: a gateway, which needs no PostgreSQL
	Replicas   int
	SyncAlways func(context.Context) (bool, error)
	Unverified bool   // start although nobody says whether NATS syncs every write
	HeadFile   string // remembers how far the streams were
	WAL        string // directory of the write-ahead logs; empty: there are none
	Master     seal.Master
	Signs      bool          // it signs the audit log
	Measures   bool          // it measures revocations, also without PostgreSQL
	LogPolicy  *audit.Policy // whose cosignatures the audit log takes; nil: nobody's
	LogDir     string        // where the audit log is published; empty: nowhere
	// LogHashesOnly publishes it without the texts of leaves.
	LogHashesOnly bool
	ScrubRate     int64 // bytes a second that it reads again; 0: as many as is usual
	OnKeyspace    func(*domain.Keyspace)
	Stale         time.Duration

	AlertHold time.Duration // between two changes of one alert, at least; 0: as is usual

	UsageRetention time.Duration // how long uses stay in USAGE; 0: for ever
	KeepFigures    figuresKept

	Sinks []*sinks.Sink // closed with the node

	Webhooks webhooks.Policy // where facts may be sent to

	Accounts func(string) error // puts the configuration of subscribers into the NATS server; nil: people do

	Log *slog.Logger
}

// node is one running process: the ledger, what follows it, and what decides
// with it. Its parts start in the order in which they need each other and end
// in the opposite one.
type node struct {
	config   nodeConfig
	ledger   *ledger.Ledger
	seal     *seal.Keys
	ring     *keyring.Ring
	recorder *verify.Recorder
	verifier *verify.Verifier
	runner   *projections.Runner
	log      *merkle.Log // nil: it does not sign
	commands *commands.Commands
	endings  *endings.Index // nil: a gateway
	recent   *recent.Facts  // nil: a gateway

	verifiers   *applied.Watcher         // nil: a gateway
	subscribers *subscribers.Subscribers // nil: a gateway
	claims      *claims.Claims           // nil: a gateway

	retention *retention.Retention // nil: a gateway
	sinks     *api.Sinks           // nil: a gateway
	webhooks  *sender.Webhooks     // nil: a gateway

	certificates *front.Certificates // nil: no TLS is spoken here
	draining     atomic.Bool         // it takes no more requests

	stop    context.CancelFunc // of the followers
	done    sync.WaitGroup
	failed  chan error  // the first follower that ended by itself
	serving atomic.Bool // it has started: a doubt about the streams ends commands, and no process
}

// openNode starts a node and returns when its keyring holds all that was in
// the ledger. It refuses on any doubt about the ledger, with a message that
// says what was found.
func openNode(ctx context.Context, c nodeConfig) (_ *node, err error) {
	makeRoom()
	n := &node{config: c, failed: make(chan error, 1), ring: keyring.New()}
	defer func() {
		if err != nil {
			n.close(context.WithoutCancel(ctx))
		}
	}()
	var known []ledger.Position
	if c.Pool != nil {
		if _, err := migrations.Up(ctx, c.Pool); err != nil {
			return nil, fmt.Errorf("PostgreSQL: %w", err)
		}
		if known, err = projections.Positions(ctx, c.Pool); err != nil {
			return nil, fmt.Errorf("PostgreSQL: %w", err)
		}
		signed, err := merkle.Known(ctx, c.Pool)
		if err != nil {
			return nil, fmt.Errorf("PostgreSQL: %w", err)
		}
		known = append(known, signed...)
		known = append(known, publishedHeads(c.LogDir)...)
	}
	n.ledger, err = ledger.Open(ctx, c.Conn, ledger.Options{
		Replicas: c.Replicas, Known: known, SyncAlways: c.SyncAlways, AllowUnverifiedSync: c.Unverified,
		ReadOnly: c.Pool == nil, HeadFile: c.HeadFile, Log: c.Log,
	})
	if err != nil {
		return nil, explained(ctx, c, err)
	}
	sayRestored(ctx, c)
	js, err := jetstream.New(c.Conn)
	if err != nil {
		return nil, err
	}
	if n.seal, err = seal.Open(ctx, js, c.Master, max(c.Replicas, 1)); err != nil {
		return nil, err
	}
	followers, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.ring.OnKeyspace = c.OnKeyspace
	// Almost all that is read now stays: collecting less often until then
	// saves a fifth of the start.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	n.follow("keyring", func() error { return n.ring.Run(followers, n.ledger) })
	select {
	case <-n.ring.Ready():
	case err := <-n.failed:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	go debug.FreeOSMemory() // what reading a long history took
	if n.recorder, err = openRecorder(ctx, n); err != nil {
		return nil, err
	}
	n.verifier = verify.New(n.ring, n.recorder, verify.Options{
		Head:        func(ctx context.Context) (uint64, error) { return n.ledger.Head(ctx, events.Ledger) },
		StaleWindow: c.Stale,
	})
	if err := n.verifier.Share(ctx, c.Conn, c.Name, c.Log); err != nil {
		return nil, err
	}
	teller := n.verifier.Tell(c.Conn, c.Name, c.Program)
	// What is limited counts on; a log that cannot be read says so elsewhere, and
	// keeps nobody from verifying.
	if err := n.verifier.Recount(ctx, n.ledger, recountTime, c.Log); err != nil {
		c.Log.Warn("limits begin empty, as if nothing had been used before this start", "error", err)
	}
	if c.Pool != nil || c.Measures {
		if err := n.watchVerifiers(followers, teller); err != nil {
			return nil, err
		}
	}
	if c.Pool != nil {
		n.commands = &commands.Commands{Ledger: n.ledger, Ring: n.ring, Appended: n.verifiers.Appended}
		n.runner = projections.New(n.ledger, c.Pool, c.Log, projections.Addresses{Keys: n.seal})
		n.done.Go(func() { n.runner.Run(followers) })
		n.retention = &retention.Retention{Ledger: n.ledger, Seal: n.seal, Models: n.runner, Log: c.Log}
		feed, err := reactors.NewFeed(reactors.FeedOptions{Ledger: n.ledger, Conn: c.Conn, Void: n.ring.Void, Log: c.Log})
		if err != nil {
			return nil, err
		}
		n.follow("feed", func() error { return feed.Run(followers) })
		n.endings = endings.New()
		n.done.Go(func() { n.followEndings(followers) })
		var feedAt, ledgerAt uint64
		err = cluster.AskToStart(ctx, func(ctx context.Context) (err error) {
			feedAt, ledgerAt, err = n.ledger.LastFed(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
		n.recent = recent.New(recent.Place{Feed: feedAt, Ledger: ledgerAt})
		n.done.Go(func() { n.followRecent(followers, feedAt) })
		n.subscribers = &subscribers.Subscribers{Ledger: n.ledger, JetStream: js, Apply: c.Accounts, Log: c.Log}
		n.done.Go(func() { n.subscribers.Run(followers) })
		waiting, err := claims.OpenBucket(ctx, js, c.Replicas)
		if err != nil {
			return nil, err
		}
		n.claims = &claims.Claims{Ledger: n.ledger, KV: waiting, Conn: c.Conn, Seal: n.seal}
		if err := n.deliverToSinks(followers, js); err != nil {
			return nil, err
		}
		if err := n.sendToWebhooks(followers, js); err != nil {
			return nil, err
		}
		if c.Signs {
			if n.log, err = merkle.Open(ctx, merkle.Options{Ledger: n.ledger, Pool: c.Pool, JetStream: js, Master: c.Master,
				Replicas: c.Replicas, Dir: c.LogDir, NoEntries: c.LogHashesOnly, Policy: c.LogPolicy, Node: c.Name, ScrubRate: c.ScrubRate, Log: c.Log}); err != nil {
				return nil, err
			}
			n.follow("audit log", func() error { return n.log.Run(followers) })
			n.follow("scrub", func() error { return n.log.Scrub(followers) })
			n.retention.Tree = n.signedTree
			n.done.Go(func() { n.tidy(followers) })
			n.done.Go(func() { n.alert(followers, js) })
		}
	}
	if err := n.started(ctx); err != nil {
		return nil, err
	}
	n.serving.Store(true)
	return n, nil
}

// watchVerifiers measures how long every verifier still accepts what is revoked, and
// returns when this node listens.
func (n *node) watchVerifiers(followers context.Context, teller *applied.Teller) error {
	n.verifiers = applied.NewWatcher(applied.WatchOptions{Teller: teller, Record: applied.Once(n.ledger), Log: n.config.Log})
	listens, ended := make(chan struct{}), make(chan error, 1)
	n.done.Go(func() { ended <- n.verifiers.Run(followers, n.config.Conn, func() { close(listens) }) })
	select {
	case <-listens:
		return nil
	case err := <-ended:
		return err
	}
}

func openRecorder(ctx context.Context, n *node) (*verify.Recorder, error) {
	o := verify.RecorderOptions{Log: n.config.Log, Dir: n.config.WAL, Master: n.config.Master}
	if o.Dir == "" {
		return verify.NewRecorder(n.ledger, n.seal, n.config.Name, o), nil
	}
	for _, k := range n.ring.Keyspaces() {
		o.Keyspaces = append(o.Keyspaces, k.Document.Keyspace)
	}
	return verify.OpenRecorder(ctx, n.ledger, n.seal, n.config.Name, o)
}

// recountTime is how long a start waits at most for the limits to be recounted.
const recountTime = 5 * time.Second

// follow runs something that must not end before the node does. Where it ends over a
// doubt about the streams while the node serves, keys are verified on by what is in
// memory: as long as the stream has no more than that, or for the stale window.
func (n *node) follow(what string, run func() error) {
	n.done.Go(func() {
		err := run()
		if errors.Is(err, context.Canceled) {
			return
		}
		if n.serving.Load() && n.doubted(err) {
			n.config.Log.Error("a follower of the ledger ended over a doubt: keys are verified by what is known, commands are refused until somebody has looked at it and started again", "follower", what, "error", err)
			return
		}
		n.config.Log.Error("a follower of the ledger ended: the node can no longer be trusted to be up to date", "follower", what, "error", err)
		select {
		case n.failed <- err:
		default:
		}
	})
}

// doubted says whether an error comes of a stream that is refused, or will be when the
// ledger next looks at it: one that is gone, or no longer holds what was read.
func (n *node) doubted(err error) bool {
	if _, ok := errors.AsType[*ledger.RefusalError](err); ok {
		return true
	}
	_, gap := errors.AsType[*pubsub.GapError](err)
	if api, ok := errors.AsType[*jetstream.APIError](err); !gap && (!ok || api.ErrorCode != jetstream.JSErrCodeStreamNotFound) {
		return false
	}
	for end := time.Now().Add(3 * ledger.WatchEvery); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		if len(n.ledger.Doubts()) > 0 {
			return true
		}
	}
	return false
}

// followEndings reads FEED for those who ask who no longer verifies. Its end keeps
// nobody from verifying: they are told, and the others go on.
func (n *node) followEndings(ctx context.Context) {
	err := n.endings.Run(ctx, func(yield func(endings.Fact, error) bool) {
		for f, err := range reactors.Watch(ctx, n.config.Conn, reactors.WatchFilter{After: new(uint64(0))}) {
			if !yield(endings.Fact{Sequence: f.Sequence, Ledger: f.LedgerSequence, Event: f.Event}, err) {
				return
			}
		}
	})
	if ctx.Err() == nil {
		n.config.Log.Error("FEED is not followed any more: /v1/feeds/revocations answers 503 until a restart", "error", err)
	}
}

// followRecent reads what comes to FEED for those who follow it over HTTP.
func (n *node) followRecent(ctx context.Context, after uint64) {
	if err := n.recent.Run(ctx, n.ledger.Follow(ctx, events.Feed, after)); ctx.Err() == nil {
		n.config.Log.Error("FEED is not followed any more: /v1/feeds/events answers 503 until a restart", "error", err)
	}
}

func (n *node) started(ctx context.Context) error {
	var head uint64
	err := cluster.AskToStart(ctx, func(ctx context.Context) (err error) {
		head, err = n.ledger.Head(ctx, events.Ledger)
		return err
	})
	if err != nil {
		return err
	}
	e := events.New(events.ServiceStarted{Program: n.config.Program, Build: build().Version, Node: n.config.Name, Head: head}, time.Now())
	e.Actor, e.Via = events.Actor{Type: "system", ID: n.config.Name}, n.config.Program
	_, err = n.ledger.AppendOps(ctx, e)
	return err
}

// close ends a node with nothing unrecorded, as far as ctx allows.
func (n *node) close(ctx context.Context) error {
	var errs []error
	if n.verifier != nil {
		n.verifier.Close()
	}
	if n.recorder != nil {
		if err := n.recorder.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("record the last uses: %w", err))
		}
	}
	if n.stop != nil {
		n.stop()
	}
	n.done.Wait()
	for _, s := range n.config.Sinks {
		errs = append(errs, s.Close())
	}
	if n.seal != nil {
		n.seal.Close()
	}
	if n.ledger != nil {
		errs = append(errs, n.ledger.Close())
	}
	return errors.Join(errs...)
}

// listen opens an address or says in plain words why it cannot.
func listen(what, flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l, nil
	}
	if strings.Contains(err.Error(), "address already in use") {
		return nil, fmt.Errorf("%s is to listen on %s, which another program has taken: stop that one, or choose another address with --%s (port 0 is any free one)", what, addr, flag)
	}
	return nil, fmt.Errorf("%s cannot listen on %s: %w; choose another address with --%s", what, addr, err, flag)
}

// endpoint is one handler of this process and where it is served.
type endpoint struct {
	name   string
	server *front.Server
	plain  net.Listener // nil: over TLS alone
	tls    net.Listener // nil: in plain alone
}

// plainly serves a handler on one listener without TLS.
func plainly(name string, l net.Listener, h http.Handler, log *slog.Logger) *endpoint {
	return &endpoint{name: name, plain: l, server: front.New(front.Config{}, h, nil, log)}
}

// serve runs endpoints until ctx ends or something fails, then lets requests
// under way finish. health, which may be nil, answers until all others have ended,
// and says from the first moment on that this node is not ready any more.
func (n *node) serve(ctx context.Context, health *endpoint, endpoints ...*endpoint) error {
	all := endpoints
	if health != nil {
		all = append(slices.Clip(endpoints), health)
	}
	ended := make(chan error, 2*len(all))
	run := func(name string, serve func(net.Listener) error, l net.Listener) {
		if l != nil {
			go func() {
				if err := serve(l); err != nil {
					ended <- fmt.Errorf("%s: %w", name, err)
				}
			}()
		}
	}
	for _, e := range all {
		run(e.name, e.server.Serve, e.plain)
		run(e.name, e.server.ServeTLS, e.tls)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-n.failed:
	case err = <-ended:
	}
	n.draining.Store(true)
	var wg sync.WaitGroup
	for _, e := range endpoints {
		wg.Go(func() { e.server.Drain(context.WithoutCancel(ctx)) })
	}
	wg.Wait()
	if health != nil {
		health.server.Drain(context.WithoutCancel(ctx))
	}
	return err
}

// apiDeps are a node's parts as the API wants them, until ctx ends.
func apiDeps(ctx context.Context, n *node) api.Deps {
	d := api.Deps{
		Commands: n.commands, Ring: n.ring, Ledger: n.ledger, Verifier: n.verifier, Recorder: n.recorder,
		Seal: n.seal, Queries: queries.New(n.config.Pool), Runner: n.runner, AuditLog: n.log, Retention: n.retention, Index: projections.NewIndex(n.config.Pool, n.seal),
		Sinks:   n.sinks,
		Endings: n.endings, Recent: n.recent, Subscribers: n.subscribers, Claims: n.claims,
		Verifiers:  n.verifiers,
		AlertRules: &alertrules.Rules{Ledger: n.ledger, Pool: n.config.Pool, Models: n.runner},
		Version:    build().Version, Log: n.config.Log, Ready: n.ready, Draining: ctx,
		Metrics: registry(n),
	}
	if n.webhooks != nil {
		d.Webhooks, d.Deliveries, d.TestWebhook = n.webhooks.Registry, n.webhooks.Store, n.webhooks.Test
	}
	return d
}

// ready says what keeps the node from being relied on. PostgreSQL is not part
// of it: without it keys are verified and changed as ever.
func (n *node) ready(context.Context) map[string]error {
	checks := map[string]error{"ledger": nil, "stream": nil, "write-ahead log": nil}
	for _, doubt := range n.ledger.Doubts() {
		checks["ledger"] = api.Commands{Err: doubt}
	}
	if err := n.recorder.Unprotected(); err != nil {
		checks["write-ahead log"] = api.Note{Err: err} // requests are answered and recorded as ever
	}
	if lost := n.verifier.Lost(); lost > 10*time.Second {
		checks["stream"] = fmt.Errorf("LEDGER was last known to be followed to its end %s ago: is NATS reachable?", lost.Round(time.Second))
	}
	if n.log != nil {
		checks["audit log"] = nil
		if err := n.log.Doubt(); err != nil {
			checks["audit log"] = api.Note{Err: err} // keys are verified and changed as ever
		}
		checks["scrub"] = nil
		if err := n.log.Damage(); err != nil {
			checks["scrub"] = api.Commands{Err: err}
		}
	}
	if n.certificates != nil {
		checks["certificates"] = nil
		for _, c := range n.certificates.State() {
			if c.Err != nil {
				checks["certificates"] = api.Note{Err: fmt.Errorf("what is in the files now is not in use, but what was there before: %w", c.Err)}
			} else if time.Until(c.NotAfter) < 0 {
				checks["certificates"] = api.Note{Err: fmt.Errorf("%s has expired on %s", c.File, c.NotAfter.UTC().Format(time.DateOnly))}
			}
		}
	}
	if n.draining.Load() {
		checks["serving"] = errors.New("this process is about to end: it finishes what is under way and takes nothing more")
	}
	return checks
}
