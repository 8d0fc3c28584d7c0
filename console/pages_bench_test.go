package console_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/embedded"
)

// BenchmarkPages asks `keyledger dev` for every page of the console, as an operator and as
// the manager of the largest owner, and prints how long the first byte takes, and in
// Chromium how long until a page is whole. The pages are those of the menu, what they link
// to (one of each kind), and typical ones. With KEYLEDGER_PAGES=full there are 100,000
// keys and 10 million uses of a month, written to the streams and followed by the read
// models, which takes most of the time:
//
//	KEYLEDGER_PAGES=full go test -run '^$' -bench Pages -benchtime 1x -timeout 60m ./console
//
// KEYLEDGER_PAGES_STATE names a state directory that is kept, so that the next run needs
// not make it again (some 15 GB); KEYLEDGER_PAGES_JSON a file for the figures;
// KEYLEDGER_PAGES_TIMES how often each page is asked for.
func BenchmarkPages(b *testing.B) {
	size := extent{keys: 2000, uses: 40_000, times: 5}
	if testing.Short() {
		size = extent{keys: 500, uses: 5000, times: 2}
	}
	if os.Getenv("KEYLEDGER_PAGES") == "full" {
		size = extent{keys: 100_000, uses: 10_000_000, times: 40}
	}
	if n, err := strconv.Atoi(os.Getenv("KEYLEDGER_PAGES_TIMES")); err == nil {
		size.times = n
	}
	dir := os.Getenv("KEYLEDGER_PAGES_STATE")
	if dir == "" {
		dir = filepath.Join(b.TempDir(), "state")
	}
	x := &crowd{site: newSite(b, "--state-dir", dir), extent: size, b: b, dir: dir}
	began := time.Now()
	x.make()
	s := x.site
	b.Logf("%d keys and %d uses are there after %s", size.keys, size.uses, time.Since(began).Round(time.Second))
	var manager struct{ Secret string }
	s.call("POST", "/v1/root-keys", map[string]any{"name": "bench", "role": "manager", "keyspace": crowded, "owner": owner(0)}, &manager)
	people := []struct{ role, secret string }{{"operator", s.root}, {"manager", manager.Secret}}
	type figures struct {
		Load  string                 `json:"load"`
		Pages map[string][]pageSpeed `json:"pages"`
	}
	f := figures{Pages: map[string][]pageSpeed{}}
	load, _ := os.ReadFile("/proc/loadavg")
	f.Load = strings.TrimSpace(string(load))
	for b.Loop() {
		x.idle()
		for _, p := range people {
			c := s.client(b, p.secret)
			pages := x.pages(c, p.role)
			for _, page := range pages {
				f.Pages[p.role] = append(f.Pages[p.role], x.ask(c, page))
			}
			fmt.Fprintf(os.Stderr, "as %s:\n%s", p.role, table(f.Pages[p.role])) // what Chromium sees takes a while
			if p.role == "operator" {
				x.look(p.secret, pages, f.Pages[p.role])
			}
		}
	}
	for _, p := range people {
		fmt.Printf("as %s, load %s:\n%s", p.role, f.Load, table(f.Pages[p.role])) // a log is cut short
		for _, page := range f.Pages[p.role] {
			if page.FirstP99 > 100 || page.Whole > 1000 {
				fmt.Printf("✗ %s %s: first byte %.0f ms at p99, whole after %.0f ms\n", p.role, page.Path, page.FirstP99, page.Whole)
			}
		}
		worst := slices.MaxFunc(f.Pages[p.role], func(a, b pageSpeed) int { return cmp.Compare(a.FirstP99, b.FirstP99) })
		b.ReportMetric(worst.FirstP99, p.role+"-worst-p99-ms")
	}
	b.ReportMetric(0, "ns/op")
	if to := os.Getenv("KEYLEDGER_PAGES_JSON"); to != "" {
		out, err := json.MarshalIndent(f, "", " ")
		if err == nil {
			err = os.WriteFile(to, append(out, '\n'), 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

type extent struct{ keys, uses, times int }

// pageSpeed is what was measured of one page. Times are milliseconds, of the clock.
type pageSpeed struct {
	Path     string  `json:"path"` // of the first time it was asked for
	Status   int     `json:"status"`
	FirstP50 float64 `json:"first_byte_p50_ms"`
	FirstP99 float64 `json:"first_byte_p99_ms"`
	TotalP50 float64 `json:"total_p50_ms"`
	CPU      float64 `json:"processor_ms"` // of the program and its PostgreSQL, for one; 0: not known here
	KB       float64 `json:"kb"`           // as sent
	PlainKB  float64 `json:"plain_kb"`     // uncompressed

	// In Chromium, medians; 0: not looked at.
	Usable   float64 `json:"usable_ms,omitempty"` // the document and its scripts: DOMContentLoaded
	Loaded   float64 `json:"loaded_ms,omitempty"` // the load event
	Whole    float64 `json:"whole_ms,omitempty"`  // what scripts fetched has come too
	Requests int     `json:"requests,omitempty"`
	FetchKB  float64 `json:"fetched_kb,omitempty"` // all requests of a first visit
	Shift    float64 `json:"shift,omitempty"`      // cumulative layout shift

	part bool // no document: what a script asks for
}

func table(pages []pageSpeed) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-78s %3s %7s %7s %7s %6s %6s %6s | %6s %6s %6s %4s %6s %5s\n", "page", "", "first", "p99", "total", "cpu", "kB", "plain", "usable", "loaded", "whole", "reqs", "kB", "shift")
	for _, p := range pages {
		path := p.Path
		if len(path) > 78 {
			path = path[:77] + "…"
		}
		fmt.Fprintf(&b, "%-78s %3d %7.1f %7.1f %7.1f %6.1f %6.1f %6.1f | %6.0f %6.0f %6.0f %4d %6.1f %5.3f\n", path, p.Status, p.FirstP50, p.FirstP99, p.TotalP50, p.CPU, p.KB, p.PlainKB,
			p.Usable, p.Loaded, p.Whole, p.Requests, p.FetchKB, p.Shift)
	}
	return b.String()
}

// crowd is a site with many keys.
type crowd struct {
	*site
	extent
	b   *testing.B
	dir string
}

const crowded = "freight" // the keyspace with all the keys

// Half of the keys are used. Of the used ones a few are used most: the n-th about as
// often as 1/n.
func (x *crowd) key(n int) string { return fmt.Sprintf("key_%08d-0000-7000-8000-000000000000", n) }

func owner(n int) string { return fmt.Sprintf("org_%05d", n) }

// ownerOf gives a twentieth of the keys to the first owner, some hundreds to a few more,
// and five to everybody else.
func (x *crowd) ownerOf(key int) int {
	if key%20 == 0 {
		return 0
	}
	if key%10 == 1 {
		return 1 + key/10%max(x.keys/5000, 1)
	}
	return 100 + key/5
}

// make fills the streams, unless that was done before, and returns when every read model
// has read them.
func (x *crowd) make() {
	b := x.b
	done := filepath.Join(x.dir, "crowd")
	if _, err := os.Stat(done); err == nil {
		x.caughtUp()
		return
	} else if !errors.Is(err, fs.ErrNotExist) {
		b.Fatal(err)
	}
	x.call("PUT", "/v1/keyspaces/"+crowded, json.RawMessage(`{"keyspace":"freight","about":"Freight API","format":{"prefixes":{"live":"fr_live_","test":"fr_test_"},"default_environment":"live","length":32},
		"display":{"first":12,"last":4},"scopes":{"loads:read":{"about":"Read loads"},"loads:write":{"about":"Write loads"},"invoices":{"about":"Invoices"}},
		"plans":{"large":{"limits":{"minute":6000}},"capped":{"max_keys":20000}},"default_plan":"large","alerts":[{"when":"expiring","within":"1d"},{"when":"error_rate","above":0.3,"over":"5m","min_requests":20}],
		"console":{"columns":["name","display","status","environment","scopes","last_used","use_count","expires_at"]}}`), nil)
	if err := x.process.Interrupt(time.Minute); err != nil {
		b.Fatal(err)
	}
	x.write()
	x.site = newSite(b, "--state-dir", x.dir)
	x.caughtUp()
	// What autovacuum has done in an installation that did not begin a minute ago.
	conn, err := pgx.Connect(b.Context(), x.postgres)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(b.Context())
	for _, sql := range []string{`vacuum analyze`, `checkpoint`} {
		if _, err := conn.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		b.Fatal(err)
	}
}

// write writes to the streams of a program that does not run: a server that does not sync
// takes them as fast as they are made.
func (x *crowd) write() {
	b := x.b
	state, err := embedded.OpenStateDir(x.dir)
	if err != nil {
		b.Fatal(err)
	}
	defer state.Close()
	server, err := embedded.StartNATS(embedded.NATSConfig{Dir: state.NATS(), NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Shutdown()
	nc, err := server.Conn()
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	l, err := ledger.Open(b.Context(), nc, ledger.Options{AllowUnverifiedSync: true, ReadOnly: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	master, err := seal.LoadMaster(state.File("master.key"))
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	keys, err := seal.Open(b.Context(), js, master, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer keys.Close()
	began := time.Now()
	x.facts(l)
	b.Logf("facts: %s", time.Since(began).Round(time.Second/10))
	x.recorded(l, keys)
	b.Logf("uses: %s", time.Since(began).Round(time.Second/10))
}

// caughtUp waits until every read model has read everything. While they do, the program
// may be too busy to say.
func (x *crowd) caughtUp() {
	why := ""
	for end := time.Now().Add(time.Hour); time.Now().Before(end); <-time.After(200 * time.Millisecond) {
		r, err := http.NewRequestWithContext(x.b.Context(), "GET", x.url+"/v1/projections", nil)
		if err != nil {
			x.b.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+x.root)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			x.b.Fatal(err)
		}
		var s struct {
			Projections []struct {
				Name, State, Error string
				Lag                uint64
			}
		}
		err = json.NewDecoder(resp.Body).Decode(&s)
		resp.Body.Close()
		if why = resp.Status; err != nil || resp.StatusCode != http.StatusOK || len(s.Projections) == 0 {
			continue
		}
		behind := false
		for _, p := range s.Projections {
			if p.State == "stopped" {
				x.b.Fatalf("%s stopped: %s", p.Name, p.Error)
			}
			behind = behind || p.Lag > 0
		}
		if why = fmt.Sprintf("%+v", s); !behind {
			return
		}
	}
	x.b.Fatalf("still behind after an hour: %s", why)
}

// idle waits, though not for long, until the program has done what it does after its
// start, such as to count again what was used of limits.
func (x *crowd) idle() {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		used := processors(x.process.PID())
		<-time.After(3 * time.Second)
		if processors(x.process.PID())-used < 300*time.Millisecond {
			return
		}
	}
	x.b.Log("the program did not come to rest")
}

var callings = strings.Fields("Production Staging Backend Billing Nightly Deploy Mobile Partner Importer Reporting Webhook Warehouse Sandbox Monitoring Checkout")

// facts appends owners and keys, made one after the other in the last 400 days.
func (x *crowd) facts(l *ledger.Ledger) {
	b := x.b
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	begin := now.AddDate(0, 0, -400)
	known := map[int]bool{}
	var batch []ledger.Expect
	flush := func() {
		if len(batch) > 0 {
			if _, err := l.AppendBatch(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	add := func(o int, key string, at time.Time, version uint64, expected uint64, data events.Payload) {
		e := events.New(data, at)
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = crowded, owner(o), key, version
		e.Actor, e.Via = events.Actor{Type: "root_key", ID: "key_operator"}, "api"
		batch = append(batch, ledger.Expect{Expected: expected, Event: e})
	}
	for n := range x.keys {
		at := begin.Add(time.Duration(float64(now.Sub(begin)) * float64(n) / float64(x.keys)))
		o := x.ownerOf(n)
		if !known[o] {
			known[o] = true
			add(o, "", at, 1, 0, events.OwnerRegistered{Name: fmt.Sprintf("%s %d GmbH", callings[o%len(callings)], o), Plan: []string{"large", "capped"}[o%2]})
		}
		k := events.KeyCreated{Name: fmt.Sprintf("%s %d", callings[random.IntN(len(callings))], n), Environment: []string{"live", "live", "live", "test"}[random.IntN(4)],
			Scopes: [][]string{{"loads:read"}, {"loads:read", "loads:write"}, {"invoices"}}[random.IntN(3)],
			Secret: events.Secret{SHA256: fmt.Sprintf("%064x", n+1), First: fmt.Sprintf("fr_live_%04x", n&0xffff), Last: fmt.Sprintf("%04d", n%10000)}}
		switch {
		case n%30 == 7:
			k.ExpiresAt = events.At(at.AddDate(0, 0, 30))
		case n%10 == 3:
			k.ExpiresAt = events.At(now.AddDate(0, 0, 1+n%300))
		}
		add(o, x.key(n), at, 1, 0, k)
		if len(batch) >= 450 {
			flush()
		}
	}
	flush()
	// A fortieth is revoked. Each is a plain append, whose place must be known.
	for n := 11; n < x.keys; n += 40 {
		add(x.ownerOf(n), x.key(n), now.AddDate(0, 0, -n%100), 2, 0, events.KeyRevoked{Reason: "no longer needed"})
	}
	x.placed(l, batch)
}

// placed appends facts behind the last of their keys.
func (x *crowd) placed(l *ledger.Ledger, batch []ledger.Expect) {
	places := map[string]uint64{}
	head, err := l.Head(x.b.Context(), events.Ledger)
	if err != nil {
		x.b.Fatal(err)
	}
	for r, err := range l.Read(x.b.Context(), events.Ledger, 1, head) {
		if err != nil {
			x.b.Fatal(err)
		}
		places[r.Event.Key] = r.Sequence
	}
	for part := range slices.Chunk(batch, 400) {
		for i := range part {
			part[i].Expected = places[part[i].Event.Key]
		}
		if _, err := l.AppendBatch(x.b.Context(), part); err != nil {
			x.b.Fatal(err)
		}
	}
}

// recorded appends the uses of the last 30 days, in pages of 250: each is of one minute
// and a few keys, as when programs do their work in bursts. Two write at once, for two
// nodes.
func (x *crowd) recorded(l *ledger.Ledger, keys *seal.Keys) {
	const size, burst = 250, 25
	b := x.b
	begin := time.Now().AddDate(0, 0, -30)
	step := 30 * 24 * time.Hour / time.Duration(x.uses/size+1)
	var writing sync.WaitGroup
	for node := range 2 {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(node)))
			often := rand.NewZipf(random, 1.15, 8, uint64(x.keys/2-1))
			for page := node; page*size < x.uses; page += 2 {
				at := begin.Add(time.Duration(page) * step)
				list := make([]events.Envelope, 0, size)
				for len(list) < size {
					n := int(often.Uint64()) * 2 // the others are never used
					o := x.ownerOf(n)
					for i := range min(burst, size-len(list)) {
						u := events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: fmt.Sprint("/v1/loads/", (n+i/15)%20), Status: new(200), LatencyMS: new(random.Int64N(90) + int64(n%200)),
							CostMicros: 120, Environment: "live", Secret: "current", Node: "edge-1", LedgerSequence: 10, DocumentVersion: 1}
						switch random.IntN(60) {
						case 0:
							u.Status = new(404)
						case 1:
							u.Status, u.Method = new(201), "POST"
						case 2:
							u.Status = new(500)
						}
						var e events.Envelope
						if random.IntN(150) == 0 {
							e = events.New(events.KeyRateLimited{Window: "minute", Limit: 6000, Node: "edge-1", Fold: events.Fold{Count: 20, First: events.At(at), Last: events.At(at)}}, at)
						} else {
							// One data key for all owners: making ten thousand takes minutes.
							var err error
							if u.SourceIP, err = keys.Seal(b.Context(), crowded, "all", at, fmt.Sprintf("192.0.%d.%d", n/250%250, (n+i/12)%250)); err != nil {
								b.Error(err)
								return
							}
							e = events.New(u, at)
						}
						e.Keyspace, e.Owner, e.Key, e.Actor, e.Via = crowded, owner(o), x.key(n), events.Actor{Type: "key", ID: x.key(n)}, "gateway"
						list = append(list, e)
						at = at.Add(time.Millisecond)
					}
				}
				bodies := make([][]byte, len(list))
				for i, e := range list {
					var err error
					if bodies[i], err = events.Encode(e); err != nil {
						b.Error(err)
						return
					}
				}
				if _, err := l.AppendPage(b.Context(), crowded, fmt.Sprint("edge-", node+1), bodies); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	writing.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// client is somebody's browser, without the browser.
func (s *site) client(b *testing.B, secret string) *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	c := &http.Client{Jar: jar, Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 4}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := http.NewRequestWithContext(b.Context(), "POST", s.url+"/signin", strings.NewReader(url.Values{"credential": {secret}}.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", s.url)
	resp, err := c.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	resp.Body.Close()
	if u, _ := url.Parse(s.url); len(jar.Cookies(u)) == 0 {
		b.Fatalf("not signed in: %s", resp.Status)
	}
	return c
}

type asked struct {
	status       int
	body         []byte
	first, total time.Duration
	sent         int
}

// get asks as a browser does, and says when the first byte came.
func (x *crowd) get(c *http.Client, path, encoding string) asked {
	r, err := http.NewRequestWithContext(x.b.Context(), "GET", x.url+path, nil)
	if err != nil {
		x.b.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", encoding)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	var a asked
	began := time.Now()
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotFirstResponseByte: func() { a.first = time.Since(began) }}))
	resp, err := c.Do(r)
	if err != nil {
		x.b.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(resp.Body)
	if err != nil {
		x.b.Fatalf("%s: %v", path, err)
	}
	a.status, a.sent, a.total = resp.StatusCode, len(a.body), time.Since(began)
	return a
}

// page is one kind of page: its address, by the number of the time that it is asked for.
type page func(i int) string

func always(path string) page { return func(int) string { return path } }

// typical are pages that no menu links to, at addresses that the benchmark knows.
func (x *crowd) typical() []page {
	list := "/keys?keyspace=" + crowded
	some := func(i int) int { return (i*7919 + 10) % x.keys }
	pages := []page{always("/"), always(list)}
	for _, filter := range []string{"status=active", "status=expired", "status=revoked", "status=rate_limited", "environment=test", "scope=invoices", "q=production", "q=zzzz", "q=GmbH+%3F", "resource=none"} {
		pages = append(pages, always(list+"&"+filter))
	}
	for _, sort := range []string{"name", "created_at", "expires_at", "-last_used_at", "last_used_at", "-use_count", "use_count", "name&status=expired", "-last_used_at&status=expired"} {
		pages = append(pages, always(list+"&sort="+sort))
	}
	return append(pages,
		func(i int) string { return list + "&q=" + fmt.Sprintf("fr_live_%04x", some(i)&0xffff) },
		func(i int) string { return list + "&q=" + fmt.Sprintf("%04d", some(i)%10000) },
		func(i int) string { return list + "&owner=" + owner(i%2) },
		func(i int) string { return list + "&owner=" + owner(x.ownerOf(some(i))) },
		func(i int) string { return list + "&status=revoked&q=nightly&owner=" + owner(x.ownerOf(some(i))) },
		func(int) string { return "/keys/new?keyspace=" + crowded + "&owner=" + owner(0) },
		func(int) string { return "/keys/" + x.key(0) },
		func(int) string { return "/keys/" + x.key(0) + "?span=1h" },
		func(int) string { return "/keys/" + x.key(0) + "?span=7d" },
		func(int) string { return "/keys/" + x.key(0) + "?span=30d" },
		func(int) string { return "/keys/" + x.key(0) + "?span=1y" },
		func(i int) string { return "/keys/" + x.key(i*40) + "?span=30d" },
		func(i int) string { return "/keys/" + x.key(i*40+20+x.keys/2/40*40) },
		func(int) string { return "/keys/" + x.key(0) + "/rotate" },
		func(int) string { return "/keys/" + x.key(0) + "/revoke" },
		func(int) string { return "/signin" },
	)
}

var (
	links = regexp.MustCompile(`(?:href|data-src|data-fragment|data-href)="(/[^"#]*)"`)
	ids   = regexp.MustCompile(`(key|evt|req|org|dec|alert)_[A-Za-z0-9_-]+`)
	times = regexp.MustCompile(`^[0-9]+$|^[0-9]{4}-[0-9T:.Z-]+$`)
)

// kind is what pages that differ only in what they are about have in common.
func kind(path string) string {
	u, err := url.Parse(path)
	if err != nil {
		return path
	}
	var parts []string
	for p := range strings.SplitSeq(u.Path, "/") {
		if times.MatchString(p) {
			p = "{number}"
		}
		parts = append(parts, ids.ReplaceAllString(p, "{$1}"))
	}
	var query []string
	for name := range u.Query() {
		query = append(query, name)
	}
	slices.Sort(query)
	return strings.Join(parts, "/") + "?" + strings.Join(query, "&")
}

// pages are those that somebody sees: the typical ones that are there, the menu, and one of
// each kind that these link to.
func (x *crowd) pages(c *http.Client, role string) []page {
	var found []page
	seen := map[string]bool{}
	var frontier []string
	take := func(p page) {
		path := p(0)
		a := x.get(c, path, "identity")
		if a.status >= 400 && a.status != http.StatusInternalServerError && a.status != http.StatusServiceUnavailable {
			return
		}
		if a.status >= 500 {
			x.b.Errorf("%s: %s answers %d", role, path, a.status)
		}
		found = append(found, p)
		for _, m := range links.FindAllStringSubmatch(string(a.body), -1) {
			frontier = append(frontier, strings.ReplaceAll(m[1], "&amp;", "&"))
		}
	}
	for _, p := range x.typical() {
		seen[kind(p(0))] = true
		take(p)
	}
	for depth := 0; depth < 3 && len(frontier) > 0; depth++ {
		next := frontier
		frontier = nil
		for _, path := range next {
			k := kind(path)
			// Exports and tails have no end that is waited for.
			if seen[k] || strings.HasPrefix(path, "/assets/") || strings.Contains(path, "tail") || strings.Contains(path, "export") || strings.Contains(path, "bundle") || strings.Contains(path, "download") || strings.Contains(path, "live") {
				continue
			}
			seen[k] = true
			take(always(path))
		}
	}
	return found
}

// processors is the processor time of a process and of those that it has started, as
// Linux counts it, in hundredths of a second; 0 elsewhere.
func processors(pid int) (used time.Duration) {
	children := map[int][]int{}
	spent := map[int]time.Duration{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, _ := os.ReadFile(f) // gone: it has ended
		head, rest, _ := strings.Cut(string(b), " (")
		_, rest, _ = strings.Cut(rest, ") ")
		fields := strings.Fields(rest)
		id, err := strconv.Atoi(head)
		if err != nil || len(fields) < 13 {
			continue
		}
		var parent, user, system int
		if _, err := fmt.Sscan(fields[1]+" "+fields[11]+" "+fields[12], &parent, &user, &system); err != nil {
			continue
		}
		children[parent] = append(children[parent], id)
		spent[id] = time.Duration(user+system) * 10 * time.Millisecond
	}
	for list := []int{pid}; len(list) > 0; list = list[1:] {
		used += spent[list[0]]
		list = append(list, children[list[0]]...)
	}
	return used
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (x *crowd) ask(c *http.Client, p page) pageSpeed {
	var first, total []time.Duration
	s := pageSpeed{Path: p(0)}
	used := processors(x.process.PID())
	for i, began := 0, time.Now(); i < x.times && (i < 5 || time.Since(began) < 10*time.Second); i++ {
		a := x.get(c, p(i), "gzip")
		s.Status, s.KB = a.status, float64(a.sent)/1000
		first, total = append(first, a.first), append(total, a.total)
	}
	s.CPU = ms(processors(x.process.PID())-used) / float64(len(first))
	plain := x.get(c, p(0), "identity")
	s.PlainKB, s.part = float64(plain.sent)/1000, !bytes.HasPrefix(plain.body, []byte("<!doctype html>"))
	slices.Sort(first)
	slices.Sort(total)
	s.FirstP50, s.FirstP99, s.TotalP50 = ms(first[len(first)/2]), ms(first[len(first)*99/100]), ms(total[len(total)/2])
	return s
}

// look opens pages in Chromium, each some times, and adds what that saw.
func (x *crowd) look(secret string, pages []page, speeds []pageSpeed) {
	if testing.Short() {
		pages = pages[:3]
	}
	v := x.tab(x.b, "light", 1440)
	v.signIn(secret)
	for i, p := range pages {
		if speeds[i].Status != http.StatusOK || speeds[i].part || strings.HasPrefix(p(0), "/signin") {
			continue
		}
		var all []seenPage
		for n, began := 0, time.Now(); n < min(x.times, 5) && time.Since(began) < 10*time.Second; n++ {
			v.open(p(n))
			all = append(all, eval[seenPage](v, settle))
		}
		median := func(of func(*seenPage) float64) float64 {
			var list []float64
			for i := range all {
				list = append(list, of(&all[i]))
			}
			slices.Sort(list)
			return list[len(list)/2]
		}
		s := &speeds[i]
		s.Usable, s.Loaded, s.Whole = median(func(p *seenPage) float64 { return p.Usable }), median(func(p *seenPage) float64 { return p.Loaded }), median(func(p *seenPage) float64 { return p.Whole })
		s.Requests, s.FetchKB = all[0].Requests, median(func(p *seenPage) float64 { return p.Bytes })/1000
		s.Shift = median(func(p *seenPage) float64 { return p.Shift })
	}
}

type seenPage struct {
	Usable   float64 `json:"usable"`
	Loaded   float64 `json:"loaded"`
	Whole    float64 `json:"whole"`
	Requests int     `json:"requests"`
	Bytes    float64 `json:"bytes"`
	Shift    float64 `json:"shift"`
}

// settle waits for the load event, and until nothing that a script asked for has come for
// 200 ms and nothing on the page says that it is busy.
const settle = `new Promise(done => {
	let shift = 0
	new PerformanceObserver(l => { for (const e of l.getEntries()) if (!e.hadRecentInput) shift += e.value }).observe({type: "layout-shift", buffered: true})
	const look = () => {
		const n = performance.getEntriesByType("navigation")[0], rest = performance.getEntriesByType("resource")
		const whole = Math.max(n.loadEventEnd, ...rest.map(r => r.responseEnd))
		if (!n.loadEventEnd || (performance.now() - whole < 200 || document.querySelector("main [aria-busy=true]")) && performance.now() < 15000) return setTimeout(look, 20)
		done({usable: n.domContentLoadedEventEnd, loaded: n.loadEventEnd, whole, requests: rest.length + 1, bytes: n.transferSize + rest.reduce((s, r) => s + r.transferSize, 0), shift})
	}
	look()
})`
