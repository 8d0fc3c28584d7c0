package webhooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors/delivery"
	"github.com/keyledger/keyledger/reactors/lease"
)

var (
	master   = seal.Master{7}
	operator = commands.Request{Authority: domain.System("test"), Via: "api"}
)

// place is a registry and what sends to its endpoints, on loopback too.
type place struct {
	t      testing.TB
	ledger *ledger.Ledger
	hooks  *Webhooks
	fed    uint64
	last   map[string]uint64
}

func newPlace(t testing.TB, policy webhooks.Policy, o Options) *place {
	t.Helper()
	server := testenv.NATS(t)
	nc := testenv.Conn(t, server)
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), js, master, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	store, err := delivery.Open(t.Context(), l, js, 1)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := lease.Open(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	o.Master, o.Policy = master, policy
	p := &place{t: t, ledger: l, last: map[string]uint64{}, hooks: &Webhooks{
		Registry: &webhooks.Registry{Ledger: l, Master: master, Seal: keys, Policy: policy},
		Sender:   NewSender(o), Store: store,
	}}
	if err := p.hooks.Engine(delivery.Options{Ledger: l, Leases: leases, MinBackoff: 5 * time.Millisecond, SaveEvery: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.hooks.Run(ctx); ctx.Err() == nil {
			p.t.Errorf("Run ended: %v", err)
		}
	})
	p.t.Cleanup(func() {
		cancel()
		running.Wait()
		p.hooks.Sender.Close()
	})
}

func (p *place) register(x webhooks.Registration) webhooks.Result {
	p.t.Helper()
	out, err := p.hooks.Registry.Register(p.t.Context(), operator, x)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *place) revoke(owner, key string) events.Envelope {
	p.t.Helper()
	e := events.New(events.KeyRevoked{Reason: "leaked & <published>"}, time.Now())
	e.Keyspace, e.Owner, e.Key = "parcelbird", owner, key
	sequence, err := p.ledger.Append(p.t.Context(), p.last[key], e)
	if err != nil {
		p.t.Fatal(err)
	}
	p.last[key] = sequence
	if p.fed, err = p.ledger.AppendFeed(p.t.Context(), p.fed, ledger.FeedEntry{Ledger: sequence, Event: e}); err != nil {
		p.t.Fatal(err)
	}
	return e
}

// got is one request that a receiver had.
type got struct {
	header http.Header
	body   string
}

// receiver answers what answer says, and tells what it got.
func receiver(t testing.TB, answer func(n int, w http.ResponseWriter)) (address string, requests <-chan got) {
	t.Helper()
	ch := make(chan got, 1000)
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.Method != http.MethodPost {
			t.Errorf("method %s", r.Method)
		}
		if answer != nil {
			answer(int(n.Add(1)), w)
		}
		ch <- got{r.Header, string(b)}
	}))
	t.Cleanup(s.Close)
	return s.URL, ch
}

func next(t testing.TB, ch <-chan got) got {
	t.Helper()
	select {
	case g := <-ch:
		return g
	case <-time.After(20 * time.Second):
		t.Fatal("nothing arrives")
		return got{}
	}
}

func loopback(t testing.TB) webhooks.Policy {
	t.Helper()
	p, err := webhooks.ParsePolicy(true, []string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A receiver verifies what it gets with the official library; the body is the event's,
// byte for byte, and the id is the event's. With two secrets either one verifies.
func TestSigned(t *testing.T) {
	p := newPlace(t, loopback(t), Options{})
	address, requests := receiver(t, nil)
	out := p.register(webhooks.Registration{URL: address, Keyspace: "parcelbird", Owner: "org_1"})
	p.run()
	p.revoke("org_2", "key_2")
	e := p.revoke("org_1", "key_1")
	g := next(t, requests)
	verify := func(secret string, g got) error {
		t.Helper()
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		return w.Verify([]byte(g.body), g.header)
	}
	if err := verify(out.Secret, g); err != nil {
		t.Errorf("%v: %v", err, g)
	}
	fed, err := p.ledger.At(t.Context(), events.Feed, p.fed)
	if err != nil {
		t.Fatal(err)
	}
	if g.body != string(fed[0].Body) || g.header.Get("webhook-id") != e.ID || g.header.Get("ce-id") != e.ID || g.header.Get("ce-type") != "key.revoked" ||
		g.header.Get("ce-subject") != "org_1/key_1" || g.header.Get("content-type") != "application/json" || !strings.HasPrefix(g.header.Get("User-Agent"), "keyledger-webhooks/") {
		t.Errorf("%v\n%s", g.header, g.body)
	}
	tampered := g
	tampered.body = strings.Replace(g.body, "key_1", "key_9", 1)
	if verify(out.Secret, tampered) == nil {
		t.Error("a body that was changed verifies")
	}
	rotated, err := p.hooks.Registry.Rotate(t.Context(), operator, out.Webhook.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// The sender may have read the old secret for what is under way.
	for range 100 {
		p.revoke("org_1", "key_1")
		if g = next(t, requests); strings.Contains(g.header.Get("webhook-signature"), " ") {
			break
		}
	}
	for _, secret := range []string{out.Secret, rotated.Secret} {
		if err := verify(secret, g); err != nil {
			t.Errorf("during the grace: %v", err)
		}
	}
}

// What is answered decides what follows: 410 disables, and is told; enabled again, what
// was missed comes. The log says what happened.
func TestGone(t *testing.T) {
	p := newPlace(t, loopback(t), Options{})
	address, requests := receiver(t, func(n int, w http.ResponseWriter) {
		switch n {
		case 1:
			http.Error(w, "not today", http.StatusInternalServerError)
		case 2:
			w.WriteHeader(http.StatusGone)
		}
	})
	id := p.register(webhooks.Registration{URL: address}).Webhook.ID
	p.run()
	e := p.revoke("org_1", "key_1")
	next(t, requests)
	next(t, requests)
	for {
		all, changed := p.hooks.Registry.Known()
		if all[0].Disabled != "" {
			if all[0].Disabled != "it answered 410 Gone" {
				t.Errorf("disabled because %q", all[0].Disabled)
			}
			break
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Fatal("it is not disabled")
		}
	}
	if _, err := p.hooks.Registry.Enable(t.Context(), operator, id); err != nil {
		t.Fatal(err)
	}
	if g := next(t, requests); g.header.Get("webhook-id") != e.ID {
		t.Errorf("%v", g)
	}
	for {
		log, err := p.hooks.Store.Attempts(t.Context(), Reactor, id, time.Time{}, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(log) < 3 {
			continue
		}
		var what []string
		for _, a := range slices.Backward(log) {
			what = append(what, fmt.Sprint(a.Outcome, a.Status, a.Class, strings.TrimSpace(a.Response)))
		}
		if want := []string{"failed500statusnot today", "disabled410status", "delivered200"}; !slices.Equal(what, want) {
			t.Errorf("%q", what)
		}
		break
	}
}

// A redirect is a failure, and nothing is sent to where it leads; nor through a proxy
// that the environment names.
func TestNotFollowed(t *testing.T) {
	elsewhere, leaked := receiver(t, nil)
	address, _ := receiver(t, func(_ int, w http.ResponseWriter) {
		w.Header().Set("Location", elsewhere)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, elsewhere)
	}
	p := newPlace(t, loopback(t), Options{})
	out := p.register(webhooks.Registration{URL: address})
	a, err := p.hooks.Test(t.Context(), &out.Webhook)
	if err != nil || a.Outcome != delivery.Failed || a.Class != "redirect" || a.Status != 307 {
		t.Errorf("%+v, %v", a, err)
	}
	if len(leaked) > 0 {
		t.Errorf("elsewhere arrives %v", <-leaked)
	}
}

// names is a DNS server that answers what it is told, whatever is asked.
func names(t testing.TB, answer func() []netip.Addr) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			// A header of 12 bytes, one name in labels, type and class (RFC 1035, 4.1); what
			// else was asked (EDNS) is left out.
			end := 12
			for end < n && b[end] != 0 {
				end += int(b[end]) + 1
			}
			if end += 5; end > n {
				continue
			}
			kind := b[end-3]
			out := append([]byte{b[0], b[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, b[12:end]...)
			for _, a := range answer() {
				if kind == 1 && a.Is4() || kind == 28 && a.Is6() {
					out[7]++
					out = append(out, 0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, byte(a.BitLen()/8))
					out = append(out, a.AsSlice()...)
				}
			}
			_, _ = c.WriteTo(out, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

// A name that has an address which is not public is refused when it is connected to,
// whatever address it had before; one that the operator allows is not.
func TestRebinding(t *testing.T) {
	address, arrived := receiver(t, nil)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var now []netip.Addr
	resolver := names(t, func() []netip.Addr {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	strict, err := webhooks.ParsePolicy(true, []string{"allowed.example"})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t, strict, Options{Resolver: resolver, Timeout: 2 * time.Second})
	hook := p.register(webhooks.Registration{URL: "http://rebinding.example:" + u.Port() + "/"}).Webhook
	for _, a := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "10.0.0.1", "224.0.0.1", "0.0.0.0", "::"} {
		mu.Lock()
		now = []netip.Addr{netip.MustParseAddr(a)}
		mu.Unlock()
		got, err := p.hooks.Test(t.Context(), &hook)
		if err != nil || got.Outcome != delivery.Failed || got.Class != "not_allowed" {
			t.Errorf("%s: %+v, %v", a, got, err)
		}
		if strings.Contains(got.Error, a) {
			t.Errorf("%q tells the address", got.Error)
		}
	}
	if len(arrived) > 0 {
		t.Errorf("arrived %v", <-arrived)
	}
	mu.Lock()
	now = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	mu.Unlock()
	allowed := p.register(webhooks.Registration{URL: "http://allowed.example:" + u.Port() + "/"}).Webhook
	if got, err := p.hooks.Test(t.Context(), &allowed); err != nil || got.Outcome != delivery.Delivered {
		t.Errorf("%+v, %v", got, err)
	}
	// What is sent is refused by a policy that has become stricter since.
	p.hooks.Sender.Policy = webhooks.Policy{}
	if got, err := p.hooks.Test(t.Context(), &allowed); err != nil || got.Class != "not_allowed" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Of an answer that does not end little is read, and one that does not come is given up.
func TestBounded(t *testing.T) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that nobody waits any more
		if r.URL.Path == "/silent" {
			<-r.Context().Done()
			return
		}
		b := []byte(strings.Repeat("x", 4096))
		for r.Context().Err() == nil {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}))
	defer endless.Close()
	p := newPlace(t, loopback(t), Options{Timeout: 300 * time.Millisecond})
	for path, class := range map[string]string{"/": "", "/silent": "timeout"} {
		hook := p.register(webhooks.Registration{URL: endless.URL + path}).Webhook
		got, err := p.hooks.Test(t.Context(), &hook)
		if err != nil || got.Class != class || len(got.Response) > 1024 {
			t.Errorf("%+v, %v", got, err)
		}
		p.hooks.Sender.Close()
	}
}

// Nothing that is said of a failure holds the address that a secret may be part of.
func TestFailures(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	closed := gone.URL
	gone.Close()
	self := httptest.NewTLSServer(http.NotFoundHandler())
	defer self.Close()
	self.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	p := newPlace(t, loopback(t), Options{Resolver: names(t, func() []netip.Addr { return nil }), Timeout: 5 * time.Second})
	plain, _ := receiver(t, nil)
	for address, class := range map[string]string{
		closed: "refused", self.URL: "tls", "http://nothing.example": "dns", strings.Replace(plain, "http:", "https:", 1): "tls",
	} {
		hook := p.register(webhooks.Registration{URL: address + "/T0KEN?token=T0KEN"}).Webhook
		got, err := p.hooks.Test(t.Context(), &hook)
		if err != nil || got.Class != class || strings.Contains(fmt.Sprint(got), "T0KEN") {
			t.Errorf("%s: %+v, %v", address, got, err)
		}
	}
	if f := failed(fmt.Errorf("x: %w", errors.New("T0KEN"))); strings.Contains(f.Error(), "T0KEN") {
		t.Errorf("%v", f)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 18, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, "-1": 0, "Sun, 18 Jan 2026 12:01:00 GMT": time.Minute, "Sun, 18 Jan 2026 11:00:00 GMT": 0, "soon": 0, "99999999999999": 0,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}
