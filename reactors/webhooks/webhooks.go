// Package webhooks sends facts to the endpoints that were registered for them, signed
// as Standard Webhooks says (https://www.standardwebhooks.com): a POST whose body is the
// fact's public envelope, byte for byte, with webhook-id (the fact's id, the same in
// every attempt), webhook-timestamp (of the attempt) and webhook-signature, and the
// attributes of CloudEvents as headers.
//
// That each fact arrives at least once, in order by key, or becomes a dead letter, is
// promised by [github.com/keyledger/keyledger/reactors/delivery]. This package promises
// where nothing is sent: to an address that is not public, unless the operator allows
// it ([webhooks.Policy]), decided on the address that is connected to and not on a name;
// to where an answer redirects; through a proxy of the environment; without TLS, unless
// allowed. Of an answer at most 64 KiB are read.
//
// It can disappoint: an endpoint that answers after [Options.Timeout] may have taken
// what is then sent again.
package webhooks

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/commands/webhooks"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/reactors/delivery"
)

// Reactor is the name that deliveries are kept under, in DLQ too.
const Reactor = "webhooks"

// Options of a [Sender]. Master is required.
type Options struct {
	Master  seal.Master
	Policy  webhooks.Policy
	Version string // of the program, for User-Agent

	Timeout  time.Duration    // for an answer; zero: 15 s
	Resolver *net.Resolver    // nil: the machine's
	Roots    *x509.CertPool   // nil: the machine's
	Now      func() time.Time // nil: time.Now
}

// Sender sends facts to endpoints. It is safe for concurrent use.
type Sender struct {
	Options
	client *http.Client
}

// NewSender returns a sender; it keeps connections until [Sender.Close].
func NewSender(o Options) *Sender {
	o.Timeout = cmp.Or(o.Timeout, 15*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Sender{Options: o}
	s.client = &http.Client{
		Timeout:       o.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil, // whoever sets the environment does not decide where secrets of others go
			DialContext:            s.dial,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
			TLSHandshakeTimeout:    10 * time.Second,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxIdleConns:           1000,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return s
}

// Close ends connections that are not in use.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// errNotAllowed says nothing of the address: a name of somebody's may have it that may
// not know it.
var errNotAllowed = errors.New("its address is not a public one, and the operator does not allow it (webhooks.allow_private)")

// dial decides on the address that is connected to, when it is: whatever a name said
// when the endpoint was registered, or says the next time.
func (s *Sender) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{
		Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Resolver: s.Resolver,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil || !s.Policy.Allows(host, to.Addr()) {
				return errNotAllowed
			}
			return nil
		},
	}
	return d.DialContext(ctx, network, address)
}

// Message is what is sent.
type Message struct {
	ID     string
	Header map[string][]string // attributes of CloudEvents
	Body   []byte
}

const (
	mostRead  = 64 << 10 // of an answer, so that its connection can be used again
	mostShown = 1 << 10
)

// Send makes one attempt. An error is a [*delivery.Failure], whose text holds neither
// the address's path nor a secret.
func (s *Sender) Send(ctx context.Context, w *webhooks.Webhook, m Message) (status int, text []byte, err error) {
	now := s.Now()
	secrets, err := w.Secrets(s.Master, now)
	if err != nil {
		return 0, nil, &delivery.Failure{Class: "secret", Err: err}
	}
	if p := s.Policy.Check(w.URL); p != nil {
		return 0, nil, &delivery.Failure{Class: "not_allowed", Err: fmt.Errorf("its address %s", p.Message)}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, strings.NewReader(string(m.Body)))
	if err != nil {
		return 0, nil, &delivery.Failure{Class: "address", Permanent: true, Err: errors.New("its address cannot be used")}
	}
	maps.Copy(r.Header, canonical(m.Header))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "keyledger-webhooks/"+cmp.Or(s.Version, "dev"))
	timestamp := strconv.FormatInt(now.Unix(), 10)
	r.Header["Webhook-Id"] = []string{m.ID}
	r.Header["Webhook-Timestamp"] = []string{timestamp}
	r.Header["Webhook-Signature"] = []string{Signature(secrets, m.ID, timestamp, m.Body)}
	answer, err := s.client.Do(r)
	if err != nil {
		return 0, nil, failed(err)
	}
	defer answer.Body.Close()
	text = make([]byte, mostShown)
	n, _ := io.ReadFull(answer.Body, text)
	text = text[:n]
	_, _ = io.CopyN(io.Discard, answer.Body, mostRead-mostShown)
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return answer.StatusCode, text, nil
	}
	f := &delivery.Failure{Class: "status", Err: fmt.Errorf("it answered %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))}
	switch code := answer.StatusCode; {
	case code == http.StatusGone:
		f.Gone = true
	case code >= 300 && code < 400:
		f.Class, f.Err = "redirect", fmt.Errorf("it answered %d, a redirect, which is not followed: register the address that it is to go to", code)
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		f.Everything = true
	}
	f.RetryAfter = retryAfter(answer.Header.Get("Retry-After"), now)
	return answer.StatusCode, text, f
}

func canonical(h map[string][]string) http.Header {
	out := http.Header{}
	for name, values := range h {
		out[http.CanonicalHeaderKey(name)] = values
	}
	return out
}

// Signature is the value of webhook-signature: one for each secret, with a space between.
func Signature(secrets [][]byte, id, timestamp string, body []byte) string {
	all := make([]string, len(secrets))
	for i, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		fmt.Fprintf(mac, "%s.%s.", id, timestamp)
		mac.Write(body)
		all[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(all, " ")
}

// retryAfter reads seconds or a date; 0: it says nothing that can be used.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// failed says why there was no answer, without the address.
func failed(err error) *delivery.Failure {
	f := &delivery.Failure{Class: "connection", Err: errors.New("the connection failed before there was an answer")}
	switch _, unknown := errors.AsType[x509.UnknownAuthorityError](err); {
	case errors.Is(err, errNotAllowed):
		f.Class, f.Err = "not_allowed", errNotAllowed
	case isDNS(err):
		f.Class, f.Err = "dns", errors.New("its host has no address, or that could not be found out")
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Class, f.Err = "refused", errors.New("it takes no connection at its port")
	case unknown || isTLS(err):
		f.Class, f.Err = "tls", errors.New("its certificate is not valid for its host, or it does not speak TLS 1.2 or later")
	case errors.Is(err, context.Canceled):
		f.Class, f.Err = "canceled", err
	case isTimeout(err):
		f.Class, f.Err = "timeout", errors.New("there was no answer in time")
	}
	return f
}

func isDNS(err error) bool {
	_, ok := errors.AsType[*net.DNSError](err)
	return ok
}

func isTLS(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	return certificate || alert || record || strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// target is an endpoint as deliveries see it.
type target struct {
	webhooks.Webhook
	sender *Sender
}

func (t *target) Name() string { return t.ID }

func (t *target) Wants(f delivery.Fact) bool {
	return t.Webhook.Wants(f.Type, f.Keyspace, f.Owner, f.Key)
}

func (t *target) Deliver(ctx context.Context, f delivery.Fact) error {
	status, text, err := t.sender.Send(ctx, &t.Webhook, Message{f.ID, f.Header, f.Body})
	delivery.Answered(ctx, status, text)
	return err
}

// Webhooks sends to all endpoints.
type Webhooks struct {
	Registry *webhooks.Registry
	Sender   *Sender
	Store    *delivery.Store
	Log      *slog.Logger // nil: slog.Default()

	engine *delivery.Engine
}

// Engine makes the engine that [Webhooks.Run] runs, with what o says; Reactor, Store and
// Gone are set here.
func (w *Webhooks) Engine(o delivery.Options) (err error) {
	o.Reactor, o.Store = Reactor, w.Store
	o.Timeout = w.Sender.Timeout + 5*time.Second
	o.Gone = func(ctx context.Context, id, why string) error {
		by := commands.Request{Authority: domain.System("webhooks"), Via: Reactor}
		return w.Registry.Disable(ctx, by, id, why)
	}
	w.engine, err = delivery.New(o)
	return err
}

// Run sends until ctx ends, whose error it then returns. It fails as
// [delivery.Engine.Run] and [webhooks.Registry.Follow] do.
func (w *Webhooks) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Registry.Follow(ctx) })
	g.Go(func() error { return w.engine.Run(ctx) })
	g.Go(func() error {
		// The endpoints as they are, before anything is sent.
		if _, err := w.Registry.All(ctx); err != nil {
			return err
		}
		known := map[string]bool{}
		for {
			all, changed := w.Registry.Known()
			there := map[string]bool{}
			var to []delivery.Registration
			for _, hook := range all {
				there[hook.ID] = true
				to = append(to, delivery.Registration{
					Target: &target{hook, w.Sender}, After: &delivery.Place{Feed: hook.After, Ops: hook.Sequence}, Disabled: hook.Disabled, Epoch: hook.Enabled,
				})
			}
			if err := w.engine.Set(to); err != nil {
				return err
			}
			for id := range known {
				if !there[id] {
					if err := w.Store.Forget(ctx, Reactor, id); err != nil && ctx.Err() == nil {
						cmp.Or(w.Log, slog.Default()).Warn("webhooks: what is kept of one that was removed stays", "webhook", id, "error", err)
					}
				}
			}
			known = there
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return g.Wait()
}

// TestType is the type of what a test sends. It stands in no stream.
const TestType = "webhook.test"

// Test sends an endpoint something that stands in no stream, and answers what came of
// it. It is an attempt in its log.
func (w *Webhooks) Test(ctx context.Context, hook *webhooks.Webhook) (delivery.Attempt, error) {
	now := time.Now()
	id := events.NewID("evt", now)
	body := fmt.Appendf(nil, `{"id":%q,"type":%q,"version":1,"time":%q,"keyspace":%q,"owner":%q,"key":"","key_version":0,"actor":{"type":"system","id":"webhooks"},"via":"webhooks","request_id":"","command":"","data":{"webhook":%q}}`,
		id, TestType, events.At(now), hook.Keyspace, hook.Owner, hook.ID)
	header := map[string][]string{}
	for name, value := range events.CloudEvents(events.Envelope{ID: id, Type: TestType, Time: events.At(now), Keyspace: hook.Keyspace, Owner: hook.Owner}) {
		header[name] = []string{value}
	}
	delete(header, "ce-dataschema") // it has none
	a := delivery.Attempt{Time: events.At(now), Target: hook.ID, ID: id, Type: TestType, Attempt: 1, Outcome: delivery.Delivered}
	ctx, answered := delivery.WithAnswer(ctx)
	status, text, err := w.Sender.Send(ctx, hook, Message{id, header, body})
	delivery.Answered(ctx, status, text)
	a.Status, a.Response = answered()
	a.MS = time.Since(now).Milliseconds()
	if f, ok := errors.AsType[*delivery.Failure](err); ok {
		a.Outcome, a.Class, a.Error = delivery.Failed, f.Class, f.Error()
	}
	return a, w.Store.Log(ctx, Reactor, a)
}
