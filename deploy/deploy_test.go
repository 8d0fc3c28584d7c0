// Package deploy holds what runs keyledger in production, as files; its tests
// hold those files against the programs that read them.
//
// What they cannot show: that the images exist under their pinned versions, and
// that a container engine starts them.
package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/commands/claims"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections/merkle"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/limit"
	"github.com/keyledger/keyledger/verify/peers"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// secrets runs make-secrets, as an operator does.
func secrets(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "se crets")
	if out, err := exec.Command("sh", "make-secrets", dir).CombinedOutput(); err != nil {
		t.Fatalf("make-secrets: %v\n%s", err, out)
	}
	return dir
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A second run keeps what is there; nobody else may read any of it; the master
// key is one that the program takes.
func TestSecrets(t *testing.T) {
	dir := secrets(t)
	before := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", e.Name(), info.Mode().Perm())
		}
		before[e.Name()] = read(t, dir, e.Name())
		if len(before[e.Name()]) < 24 {
			t.Errorf("%s holds %d bytes", e.Name(), len(before[e.Name()]))
		}
	}
	if out, err := exec.Command("sh", "make-secrets", dir).CombinedOutput(); err != nil {
		t.Fatalf("the second run: %v\n%s", err, out)
	}
	for name, was := range before {
		if read(t, dir, name) != was {
			t.Errorf("the second run changed %s", name)
		}
	}
	if _, err := seal.LoadMaster(filepath.Join(dir, "master_key")); err != nil {
		t.Error(err)
	}
}

// cluster starts the three nodes from nats.conf, each on free loopback ports, and
// returns where clients connect, and what puts another subscribers.conf in place.
func cluster(t *testing.T, secrets string) (urls string, nodes []*server.Server, subscribe func(config string)) {
	t.Helper()
	etc := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("nats.conf", read(t, "nats", "nats.conf"))
	put("passwords.conf", read(t, secrets, "nats_passwords.conf"))
	put("subscribers.conf", read(t, "nats", "subscribers.conf"))
	configured := func(name string) *server.Options {
		t.Setenv("SERVER_NAME", name)
		o, err := server.ProcessConfigFile(filepath.Join(etc, "nats.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	var all []*server.Options
	var clients []string
	routes := map[string]string{} // by host in the file
	for i := range 3 {
		name := fmt.Sprintf("nats-%d", i+1)
		o := configured(name)
		if !o.JetStream || !o.SyncAlways || o.JetStreamDomain != "keyledger" || o.ServerName != name || o.Cluster.Name != "keyledger" || len(o.Routes) != 3 || o.HTTPPort != 8222 {
			t.Errorf("node %s: JetStream %v, sync always %v, domain %q, name %q, cluster %q, %d routes, monitoring on %d",
				name, o.JetStream, o.SyncAlways, o.JetStreamDomain, o.ServerName, o.Cluster.Name, len(o.Routes), o.HTTPPort)
		}
		o.NoSigs, o.StoreDir = true, t.TempDir()
		o.Host, o.Port = "127.0.0.1", testenv.FreePort(t)
		o.HTTPHost, o.HTTPPort = "127.0.0.1", -1
		o.Cluster.Host, o.Cluster.Port = "127.0.0.1", testenv.FreePort(t)
		routes[name+":6222"] = fmt.Sprintf("127.0.0.1:%d", o.Cluster.Port)
		clients = append(clients, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
		all = append(all, o)
	}
	for _, o := range all {
		for i, r := range o.Routes {
			to, ok := routes[r.Host]
			if !ok {
				t.Fatalf("a route to %s, which is none of the nodes", r.Host)
			}
			o.Routes[i] = &url.URL{Scheme: r.Scheme, User: r.User, Host: to}
		}
		started := o.Clone()
		s, err := server.NewServer(started)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		nodes = append(nodes, s)
	}
	subscribe = func(config string) {
		put("subscribers.conf", config)
		for i, s := range nodes {
			for range 2 { // as the file says
				o, again := all[i].Clone(), configured(all[i].ServerName)
				o.Accounts, o.Users, o.Nkeys = again.Accounts, again.Users, again.Nkeys
				if err := s.ReloadOptions(o); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// Nothing signals an election.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		leaders, current := 0, 0
		for _, s := range nodes {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == 3 {
				leaders++
			}
			if s.JetStreamIsCurrent() {
				current++
			}
		}
		if leaders == 1 && current == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute the cluster has %d leaders, and %d of 3 nodes follow", leaders, current)
		}
	}
	return strings.Join(clients, ","), nodes, subscribe
}

func connect(t *testing.T, urls, user, password string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	// Violations come asynchronously; the requests that hit one are waited for by
	// their own means.
	nc, err := nats.Connect(urls, append([]nats.Option{nats.UserInfo(user, password), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)...)
	if err != nil {
		t.Fatalf("connect as %s: %v", user, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// denied reports whether the server refuses a user to publish on a subject: the
// refusal is on its way before the answer to the flush is.
func denied(t *testing.T, urls, user, password, subject string) bool {
	t.Helper()
	refused := make(chan error, 1)
	nc := connect(t, urls, user, password, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case refused <- err:
		default:
		}
	}))
	if err := nc.Publish(subject, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-refused:
		return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), subject)
	case <-time.After(200 * time.Millisecond): // longer than the callback takes
		return false
	}
}

// The three nodes as configured take the service's work and refuse every way of
// changing history behind its back.
func TestCluster(t *testing.T) {
	dir := secrets(t)
	urls, nodes, _ := cluster(t, dir)
	user := func(file string) (string, string) {
		name, password, ok := strings.Cut(strings.TrimSpace(read(t, dir, file)), ":")
		if !ok {
			t.Fatalf("%s holds no user:password", file)
		}
		return name, password
	}
	password := func(variable string) string {
		m := regexp.MustCompile(variable + `: "([^"]+)"`).FindStringSubmatch(read(t, dir, "nats_passwords.conf"))
		if m == nil {
			t.Fatalf("there is no %s", variable)
		}
		return m[1]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	master, err := seal.LoadMaster(filepath.Join(dir, "master_key"))
	if err != nil {
		t.Fatal(err)
	}
	// As the program asks: each node's own word, over its monitoring address.
	synced := func(ctx context.Context) (bool, error) {
		for _, s := range nodes {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.MonitorAddr().String()+"/jsz?config=true", nil)
			if err != nil {
				return false, err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false, err
			}
			defer resp.Body.Close()
			var jsz struct {
				Config struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&jsz); err != nil || !jsz.Config.SyncAlways {
				return false, err
			}
		}
		return true, nil
	}
	node := func(name, password string, readOnly bool) (*ledger.Ledger, *seal.Keys) {
		nc := connect(t, urls, name, password)
		l, err := ledger.Open(ctx, nc, ledger.Options{Replicas: 3, ReadOnly: readOnly, SyncAlways: synced})
		if err != nil {
			t.Fatalf("as %s: %v", name, err)
		}
		t.Cleanup(func() { l.Close() })
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := seal.Open(ctx, js, master, 3)
		if err != nil {
			t.Fatalf("as %s: %v", name, err)
		}
		t.Cleanup(keys.Close)
		return l, keys
	}
	service, servicePassword := user("nats_service")
	gateway, gatewayPassword := user("nats_gateway")

	// The service: creates, appends one and several, reads back, seals, erases.
	l, keys := node(service, servicePassword, false)
	fact := func(key string) events.Envelope {
		e := events.New(events.KeyRevoked{Reason: "test"}, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "org_1", key, 1
		return e
	}
	if _, err := l.Append(ctx, 0, fact("key_1")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AppendBatch(ctx, []ledger.Expect{{Event: fact("key_2")}, {Event: fact("key_3")}}); err != nil {
		t.Fatal(err)
	}
	started := events.New(events.ServiceStarted{Program: "serve", Node: "n"}, time.Now())
	if _, err := l.AppendOps(ctx, started); err != nil {
		t.Fatal(err)
	}
	gap := events.New(events.UsageGap{Node: "n", Count: 1, Reason: "test"}, time.Now())
	gap.Keyspace = "parcelbird"
	body, err := events.Encode(gap)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.AppendPage(ctx, "parcelbird", "n", [][]byte{body}); err != nil {
		t.Fatal(err)
	}
	follow := func(l *ledger.Ledger, who string) {
		n := 0
		for _, err := range l.Follow(ctx, events.Ledger, 0) {
			if err != nil {
				t.Fatalf("as %s: %v", who, err)
			}
			if n++; n == 3 {
				break
			}
		}
	}
	follow(l, service)
	box, err := keys.Seal(ctx, "parcelbird", "org_1", time.Now(), "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}

	// A gateway: reads the same, opens what the service sealed, records uses.
	g, gatewayKeys := node(gateway, gatewayPassword, true)
	follow(g, gateway)
	if plain, err := gatewayKeys.Open(ctx, box); err != nil || plain != "192.0.2.1" {
		t.Errorf("as %s: opened %q, %v", gateway, plain, err)
	}
	if _, err := g.AppendPage(ctx, "parcelbird", "g", [][]byte{body}); err != nil {
		t.Errorf("as %s: %v", gateway, err)
	}
	pruned := events.New(events.UsagePruned{Stream: events.Usage, Through: 1}, time.Now())
	if _, err := l.AppendOps(ctx, pruned); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Prune(ctx, 1); err != nil || n != 1 {
		t.Errorf("as %s: purged %d messages of USAGE, %v", service, n, err)
	}
	at := time.Now()
	if err := keys.Destroy(ctx, at, box.Key); err != nil {
		t.Error(err)
	}
	if done, err := gatewayKeys.IsDestroyed(ctx, box.Key, at); err != nil || !done {
		t.Errorf("as %s: the data key is destroyed: %v, %v", gateway, done, err)
	}

	// It signs the audit log; the wrapped key and what was signed are in a bucket that
	// nobody else writes.
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.Up(ctx, pool); err != nil {
		t.Fatal(err)
	}
	signing, err := jetstream.New(connect(t, urls, service, servicePassword))
	if err != nil {
		t.Fatal(err)
	}
	log, err := merkle.Open(ctx, merkle.Options{Ledger: l, Pool: pool, JetStream: signing, Master: master, Replicas: 3})
	if err != nil {
		t.Fatalf("as %s: %v", service, err)
	}
	signs, ended := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { _ = log.Run(signs); close(done) }()
	if _, err := log.Sealed(ctx, events.Feed, 0); err != nil {
		t.Errorf("as %s: %v", service, err)
	}
	if _, err := log.Rotate(ctx, "", nil); err != nil {
		t.Errorf("as %s: %v", service, err)
	}
	ended()
	<-done

	// A Go service that verifies in process: follows, counts limits on, decides,
	// records with personal data sealed.
	const plain = "bd_live_0123456789abcdefABCDEFxyzXYZ0000"
	for _, f := range []struct {
		owner, key string
		data       events.Payload
	}{
		{"", "", events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(strings.Replace(verifytest.Birds, `"limits": {"from": "plan"`, `"limits": {"from": "key"`, 1))}},
		{"org_1", "", events.OwnerRegistered{Name: "One"}},
		{"org_1", "key_4", events.KeyCreated{Name: "a", Environment: "live", Scopes: []string{"birds:read"}, Limits: events.Limits{"day": 10}, Secret: verifytest.Secret(plain)}},
	} {
		e := events.New(f.data, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "birds", f.owner, f.key, 1
		if _, err := l.Append(ctx, 0, e); err != nil {
			t.Fatal(err)
		}
	}
	verifier, verifierPassword := user("nats_verifier")
	for remaining := int64(9); remaining > 7; remaining-- { // the second counts on from what the first recorded
		violated := func(_ *nats.Conn, _ *nats.Subscription, err error) { t.Errorf("as %s: %v", verifier, err) }
		inProcess, err := verify.Connect(ctx, verify.Config{
			URL: urls, Options: []nats.Option{nats.UserInfo(verifier, verifierPassword), nats.CustomInboxPrefix("_INBOX_verifier"), nats.ErrorHandler(violated)},
			MasterKeyFile: filepath.Join(dir, "master_key"), StateDir: t.TempDir(), Replicas: 3,
		})
		if err != nil {
			t.Fatalf("as %s: %v", verifier, err)
		}
		if err := inProcess.Ready(); err != nil {
			t.Errorf("as %s: %v", verifier, err)
		}
		n := 0
		for _, err := range inProcess.Ledger.Read(ctx, events.Ops, 1, 0, events.OpsSubject(events.Envelope{})) { // as it does where USAGE was pruned
			if n++; err != nil {
				t.Errorf("as %s: %v", verifier, err)
			}
		}
		if n == 0 {
			t.Errorf("%s reads nothing of OPS", verifier)
		}
		req := domain.Request{Keyspace: "birds", Key: plain, Method: "GET", Path: "/v1/birds", IP: "192.0.2.1"}
		d := inProcess.Verify(req)
		if !d.Valid || len(d.Limits()) != 1 || d.Limits()[0].Remaining != remaining {
			t.Errorf("as %s: %s, %+v", verifier, d.Code, d.Limits())
		}
		inProcess.Record(&d, &req, verify.Use{Via: "middleware", Status: 200})
		if err := inProcess.Close(ctx); err != nil {
			t.Errorf("as %s: %v", verifier, err)
		}
	}

	// A backup, of three replicas; it needs no more than its own user may.
	backupUser, backupPassword := user("nats_backup")
	saved := filepath.Join(t.TempDir(), "backup.zip")
	reader := connect(t, urls, backupUser, backupPassword)
	copied, err := backup.Write(ctx, saved, backup.Options{Conn: reader, Program: "test"})
	if err != nil {
		t.Fatalf("as %s: %v", backupUser, err)
	}
	asked, err := ledger.Open(ctx, reader, ledger.Options{Replicas: 3, ReadOnly: true, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatalf("as %s: %v", backupUser, err)
	}
	if _, err := asked.AppendOps(ctx, events.New(events.AuditRead{What: "backup", Filter: map[string]string{}}, time.Now())); err != nil {
		t.Errorf("as %s: %v", backupUser, err)
	}
	asked.Close()

	feed := connect(t, urls, service, servicePassword)
	fjs, err := jetstream.New(feed)
	if err != nil {
		t.Fatal(err)
	}

	// Verifiers tell each other what they admitted; nobody else may.
	share := func(name, password string) *peers.Peers {
		p := peers.New(limit.New(time.Now()), peers.Options{Node: name, Start: time.Now(), Quota: func(p domain.Pool) (*domain.Quota, domain.Pool) { return nil, p }})
		listens := make(chan struct{})
		go func() { _ = p.Run(ctx, connect(t, urls, name, password), func() { close(listens) }) }()
		<-listens
		return p
	}
	both := []*peers.Peers{share(service, servicePassword), share(gateway, gatewayPassword)}
	for both[0].Heard(time.Minute, time.Now()) == 0 || both[1].Heard(time.Minute, time.Now()) == 0 {
		if ctx.Err() != nil {
			t.Fatal("the service and the gateway do not hear each other's limits")
		}
		time.Sleep(10 * time.Millisecond)
	}

	handsOver(t, connect(t, urls, service, servicePassword))

	// What nobody of them may.
	snapshots := func(name, subject string) bool {
		return name == backupUser && strings.HasPrefix(subject, "$JS.API.STREAM.SNAPSHOT.")
	}
	may := []string{"$JS.API.STREAM.PURGE." + events.Usage, "$JS.API.STREAM.MSG.DELETE.KV_" + seal.Bucket} // of the service alone
	passwords := map[string]string{service: servicePassword, gateway: gatewayPassword, verifier: verifierPassword, backupUser: backupPassword}
	for name, password := range passwords {
		subjects := []string{"$JS.API.STREAM.CREATE.OTHER", "$JS.API.SERVER.REMOVE", "$JS.API.ACCOUNT.PURGE.KEYLEDGER"}
		for _, stream := range []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ, "KV_" + seal.Bucket, "KV_" + merkle.Bucket, "KV_" + claims.Bucket} {
			for _, verb := range []string{"STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.RESTORE", "STREAM.SNAPSHOT"} {
				subject := "$JS.API." + verb + "." + stream
				if !snapshots(name, subject) && (name != service || !slices.Contains(may, subject)) {
					subjects = append(subjects, subject)
				}
			}
			if name != service {
				subjects = append(subjects, "$JS.API.STREAM.CREATE."+stream)
			}
		}
		if name != service {
			subjects = append(subjects, "$KV."+claims.Bucket+".key.key_1", "$KV."+merkle.Bucket+".key", "$KV."+merkle.Bucket+".checkpoint.ledger")
			subjects = append(subjects, "ledger.parcelbird.org_1.key_1", "feed.key.revoked.parcelbird.org_1.key_1", "dlq.feed")
		}
		if name == verifier {
			subjects = append(subjects, "ops.parcelbird._._", "ops.parcelbird.org_1.key_1", "$JS.API.CONSUMER.CREATE.FEED.x", "$JS.API.CONSUMER.CREATE.OPS.x", "$JS.API.CONSUMER.CREATE.OPS.x.ops.parcelbird.>",
				"$JS.API.CONSUMER.CREATE.DLQ.x", "$JS.API.STREAM.MSG.GET.FEED", "$JS.API.STREAM.MSG.GET.OPS", "$JS.API.STREAM.MSG.GET.DLQ", "$JS.API.DIRECT.GET.OPS")
		}
		for _, subject := range subjects {
			if !denied(t, urls, name, password, subject) {
				t.Errorf("%s may publish %s", name, subject)
			}
		}
	}
	for _, subject := range []string{"$KV." + seal.Bucket + ".x", "usage.parcelbird.n", "ops.parcelbird._._", "limits.counts.n", "keyledger.verifiers.n"} {
		if !denied(t, urls, backupUser, backupPassword, subject) {
			t.Errorf("%s may publish %s", backupUser, subject)
		}
	}
	// The check above can fail.
	if denied(t, urls, service, servicePassword, "ops.parcelbird._._") {
		t.Error("the service may not record its own acts")
	}
	// Creating is no way of changing: a stream that is there stays as it is.
	small := ledger.Config(events.Ledger, 3)
	small.MaxMsgs = 1
	if _, err := fjs.CreateStream(ctx, small); !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		t.Errorf("creating LEDGER with a limit: %v", err)
	}
	if nc, err := nats.Connect(urls); err == nil {
		nc.Close()
		t.Error("somebody without a password was let in")
	}

	// People put the backup back, on all three.
	people := connect(t, urls, "admin", password("ADMIN_PASSWORD"))
	if err := backup.Remove(ctx, people); err != nil {
		t.Fatal(err)
	}
	f, err := backup.Open(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Restore(ctx, people, backup.RestoreOptions{Replicas: 3, Buckets: true}); err != nil {
		t.Fatal(err)
	}
	again, err := ledger.Open(ctx, people, ledger.Options{Replicas: 3, SyncAlways: synced})
	if err != nil {
		t.Fatalf("after the restore: %v", err)
	}
	defer again.Close()
	if head, err := again.Head(ctx, events.Ledger); err != nil || head != copied.Stream(events.Ledger).Last {
		t.Errorf("LEDGER ends at %d, %v", head, err)
	}
}

type composeFile struct {
	Services map[string]struct {
		Image       string
		Build       any
		Command     []string
		Environment map[string]string
		Secrets     []any
		Volumes     []string
		Healthcheck struct{ Test []string }
	}
	Secrets map[string]struct{ File string }
}

func composed(t *testing.T) composeFile {
	t.Helper()
	var c composeFile
	if err := yaml.Unmarshal([]byte(read(t, "..", "docker-compose.yml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Every file that docker-compose.yml mounts is there, or make-secrets makes it;
// every image is pinned; every service says whether it is well.
func TestCompose(t *testing.T) {
	c, dir := composed(t), secrets(t)
	want := []string{"gateway", "grafana", "nats-1", "nats-2", "nats-3", "postgres", "serve"}
	var names []string
	for name, s := range c.Services {
		names = append(names, name)
		if _, version, ok := strings.Cut(s.Image, ":"); !ok || version == "latest" {
			t.Errorf("%s: image %q is not pinned", name, s.Image)
		}
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		for _, v := range s.Volumes {
			from, to, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(from, ".") {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", from)); err != nil {
				t.Errorf("%s mounts %s: %v", name, from, err)
			}
			if i := slices.Index(s.Command, "--config"); strings.HasSuffix(from, name+".yaml") && !strings.HasPrefix(to, s.Command[i+1]) {
				t.Errorf("%s is told to read %s, but the file is at %s", name, s.Command[i+1], to)
			}
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
	for name, s := range c.Secrets {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(s.File))); err != nil {
			t.Errorf("secret %s: make-secrets makes no %s", name, filepath.Base(s.File))
		}
	}
	if len(c.Secrets) != 9 {
		t.Errorf("%d secrets", len(c.Secrets))
	}
}

// handsOver has the service keep a secret for somebody, and take it out again.
func handsOver(t *testing.T, nc *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := claims.OpenBucket(t.Context(), js, 3)
	if err != nil {
		t.Fatal(err)
	}
	at, err := kv.Create(t.Context(), "secret.x", []byte("sealed"), jetstream.KeyTTL(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), "secret.x", jetstream.LastRevision(at), jetstream.PurgeTTL(time.Minute)); err != nil {
		t.Fatal(err)
	}
}
