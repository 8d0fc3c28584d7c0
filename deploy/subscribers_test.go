package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/keyledger/keyledger/commands/subscribers"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections/merkle"
)

// outsider is a service with the credentials of a subscriber.
type outsider struct {
	subscribers.Subscriber
	pair nkeys.KeyPair
	nc   *nats.Conn
	js   jetstream.JetStream

	mu   sync.Mutex // guards what follows
	told []error    // by the server, about what was not allowed
}

func (o *outsider) connect(t *testing.T, urls string) error {
	t.Helper()
	nc, err := nats.Connect(urls, nats.Nkey(o.PublicKey, o.pair.Sign), nats.NoReconnect(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.told = append(o.told, err)
	}))
	if err != nil {
		return err
	}
	t.Cleanup(nc.Close)
	o.nc = nc
	o.js, err = jetstream.New(nc)
	return err
}

// next are the facts that the consumer holds, acknowledged, until there are n of them.
func (o *outsider) next(t *testing.T, ctx context.Context, n int) (subjects []string) {
	t.Helper()
	c, err := o.js.Consumer(ctx, events.Feed, o.Consumer)
	if err != nil {
		t.Fatalf("%s: %v", o.Name, err)
	}
	for len(subjects) < n {
		m, err := c.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("%s: after %q: %v", o.Name, subjects, err)
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Errorf("%s: %v", o.Name, err)
		}
		subjects = append(subjects, m.Subject())
	}
	return subjects
}

// A subscriber's credentials, on the three nodes as configured, read its own part of FEED
// and of live, and nothing else; whatever is tried with them changes nothing.
func TestOutsider(t *testing.T) {
	dir := secrets(t)
	urls, _, configure := cluster(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	as := func(file string) *nats.Conn {
		name, password, _ := strings.Cut(strings.TrimSpace(read(t, dir, file)), ":")
		return connect(t, urls, name, password)
	}
	service, admin := as("nats_service"), as("nats_admin")
	l, err := ledger.Open(ctx, service, ledger.Options{Replicas: 3, AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	js, err := jetstream.New(service)
	if err != nil {
		t.Fatal(err)
	}
	master, err := seal.LoadMaster(filepath.Join(dir, "master_key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(ctx, js, master, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	ajs, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ajs.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: merkle.Bucket, Replicas: 3}); err != nil {
		t.Fatal(err)
	}

	// Facts of two owners and of a keyspace beside it.
	fed := uint64(0)
	feed := func(keyspace, owner, key string) (subject string) {
		t.Helper()
		e := events.New(events.KeyRevoked{Reason: "test"}, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = keyspace, owner, key, 1
		at, err := l.Append(ctx, 0, e)
		if err != nil {
			t.Fatal(err)
		}
		if fed, err = l.AppendFeed(ctx, fed, ledger.FeedEntry{Ledger: at, Event: e}); err != nil {
			t.Fatal(err)
		}
		return events.FeedSubject(e)
	}
	mineBefore := feed("parcelbird", "org_1", "key_1")
	theirsBefore := feed("parcelbird", "org_2", "key_2")
	feed("shipbird", "org_1", "key_3")

	s := &subscribers.Subscribers{Ledger: l, JetStream: js}
	by := subscribers.By{Actor: events.Actor{Type: "system", ID: "test"}, Via: "test"}
	add := func(name, keyspace, owner string) *outsider {
		t.Helper()
		o := &outsider{}
		if o.pair, err = nkeys.CreateUser(); err != nil {
			t.Fatal(err)
		}
		public, err := o.pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		var applied bool
		if o.Subscriber, applied, err = s.Add(ctx, by, name, keyspace, owner, public, 0); err != nil || applied {
			t.Fatalf("applied %v, %v", applied, err)
		}
		if _, _, err := s.Add(ctx, by, name, keyspace, owner, public, 0); err != nil { // as somebody whose answer was lost
			t.Errorf("the same again: %v", err)
		}
		return o
	}
	mine, theirs, wide, all := add("mine", "parcelbird", "org_1"), add("their-s", "parcelbird", "org_2"), add("wide", "parcelbird", ""), add("all", "", "")
	list, err := s.List(ctx)
	if err != nil || len(list) != 4 {
		t.Fatalf("%d subscribers, %v", len(list), err)
	}
	if err := mine.connect(t, urls); err == nil {
		t.Error("a subscriber is let in before the server was told")
	}
	configure(subscribers.Config(list))
	for _, o := range []*outsider{mine, theirs, wide, all} {
		if err := o.connect(t, urls); err != nil {
			t.Fatalf("%s: %v", o.Name, err)
		}
	}

	// What is there already, each its own.
	for o, want := range map[*outsider][]string{
		mine: {mineBefore}, theirs: {theirsBefore}, wide: {mineBefore, theirsBefore}, all: {mineBefore, theirsBefore, "feed.key.revoked.shipbird.org_1.key_3"},
	} {
		if got := o.next(t, ctx, len(want)); !slices.Equal(got, want) {
			t.Errorf("%s was given %q, want %q", o.Name, got, want)
		}
	}

	// Subscribing to everything there is, one by one.
	var heard []*nats.Subscription
	listening := []string{">", "*.>", "*", "ledger.>", "usage.>", "feed.>", "ops.>", "dlq.>", "live.>", "live.*.*.*.*.*", "live.key.revoked.>", "live.*.*.parcelbird.>", theirs.Live, wide.Live, mine.Live,
		"$SYS.>", "$SYS.REQ.>", "$SYS.ACCOUNT.>", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$JS.EVENT.>", "$KV.>", "$KV." + seal.Bucket + ".>", "limits.>", "limits.counts.*", "limits.ask.*", "keyledger.>",
		"_R_.>", "_GR_.>", "_INBOX.>", "_INBOX_verifier.>", "subscribers.none", "$JS.API.CONSUMER.MSG.NEXT.FEED.>"}
	for _, subject := range listening {
		for _, queue := range []string{"", "workers"} {
			sub, err := mine.nc.QueueSubscribeSync(subject, queue)
			if err != nil {
				t.Fatal(err)
			}
			heard = append(heard, sub)
		}
	}
	if err := mine.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	theirLive, err := theirs.nc.SubscribeSync(">")
	if err == nil {
		theirLive, err = theirs.nc.SubscribeSync(theirs.Live)
	}
	if err != nil || theirs.nc.Flush() != nil {
		t.Fatal(err)
	}
	theirInbox, err := theirs.nc.SubscribeSync("_INBOX.theirs.>")
	if err != nil || theirs.nc.Flush() != nil {
		t.Fatal(err)
	}

	streams := []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ, "KV_" + seal.Bucket, "KV_" + merkle.Bucket}
	type state struct {
		jetstream.StreamState
		consumers []string
	}
	look := func() map[string]state {
		t.Helper()
		found := map[string]state{}
		for _, name := range streams {
			stream, err := ajs.Stream(ctx, name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			now := state{StreamState: stream.CachedInfo().State}
			now.Consumers = 0 // readers come and go
			if name == events.Feed {
				for c := range stream.ListConsumers(ctx).Info() {
					if c.Config.Durable != "" {
						now.consumers = append(now.consumers, fmt.Sprintf("%s %s %v %d", c.Name, c.Config.FilterSubject, c.Config.DeliverSubject, c.AckFloor.Stream))
					}
				}
				slices.Sort(now.consumers)
			}
			found[name] = now
		}
		return found
	}
	waiting := feed("parcelbird", "org_2", "key_20") // not acknowledged by anybody
	before := look()

	// Publishing wherever a stream, a verifier or a peer listens; and asking JetStream for
	// everything, with the answers to its own inbox.
	targets := []string{"ledger.parcelbird.org_1.key_1", "ledger.parcelbird.org_2.key_2", "ledger.keyledger._._", "usage.parcelbird.n", "feed.key.revoked.parcelbird.org_1.key_1", "feed.key.revoked.parcelbird.org_2.key_2",
		"ops._._._", "ops.parcelbird.org_1._", "dlq.feed", "live.key.revoked.parcelbird.org_1.key_1", "live.key.revoked.parcelbird.org_2.key_2", "limits.counts.n", "limits.ask.n", "keyledger.verifiers.n", "$KV." + seal.Bucket + ".x", "$KV." + merkle.Bucket + ".key",
		"$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.KEYLEDGER.CONNZ", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING.JSZ", "_INBOX.theirs.1", "subscribers.none", "$JS.FC.FEED.x"}
	answers, err := mine.nc.SubscribeSync("_INBOX.attack.>")
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	try := func(subject, reply string, body any) {
		t.Helper()
		data, _ := json.Marshal(body)
		if text, ok := body.(string); ok {
			data = []byte(text)
		}
		if err := mine.nc.PublishRequest(subject, reply, data); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		tried++
	}
	inbox := func(subject string) string {
		return fmt.Sprintf("_INBOX.attack.%d.%s", tried, strings.NewReplacer("$", "", ">", "all", "*", "any").Replace(subject))
	}
	for _, subject := range targets {
		try(subject, inbox(subject), "{}")
	}
	push := func(stream, name, deliver string) any {
		return map[string]any{"stream_name": stream, "action": "", "config": map[string]any{"name": name, "durable_name": name, "deliver_policy": "all", "ack_policy": "none", "deliver_subject": deliver, "replay_policy": "instant"}}
	}
	for _, api := range []string{"$JS.API.", "$JS.keyledger.API."} {
		for _, verb := range []string{"INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.TEMPLATE.NAMES", "SERVER.REMOVE", "ACCOUNT.PURGE.KEYLEDGER", "META.LEADER.STEPDOWN"} {
			try(api+verb, inbox(api+verb), "")
		}
		for _, stream := range append(slices.Clone(streams), "OTHER") {
			for _, verb := range []string{"STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.SNAPSHOT", "STREAM.RESTORE", "STREAM.PEER.REMOVE", "STREAM.LEADER.STEPDOWN", "CONSUMER.NAMES", "CONSUMER.LIST"} {
				try(api+verb+"."+stream, inbox(verb+"."+stream), ledger.Config(stream, 1))
			}
			for _, verb := range []string{"STREAM.MSG.GET", "STREAM.MSG.DELETE", "DIRECT.GET"} {
				try(api+verb+"."+stream, inbox(verb+"."+stream), `{"seq":1}`)
			}
			try(api+"DIRECT.GET."+stream+".ledger.parcelbird.org_2.key_2", inbox("direct."+stream), "")
			for _, name := range []string{"x", mine.Consumer, theirs.Consumer} {
				for _, deliver := range []string{"_INBOX.attack.push", "ledger.parcelbird.org_1.key_1", ""} {
					for _, verb := range []string{"CONSUMER.CREATE." + stream, "CONSUMER.CREATE." + stream + "." + name, "CONSUMER.CREATE." + stream + "." + name + ".feed.>", "CONSUMER.DURABLE.CREATE." + stream + "." + name} {
						try(api+verb, inbox(verb), push(stream, name, deliver))
					}
				}
				for _, verb := range []string{"CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT", "CONSUMER.PAUSE", "CONSUMER.UNPIN", "CONSUMER.RESET", "CONSUMER.LEADER.STEPDOWN"} {
					if stream == events.Feed && name == mine.Consumer && (verb == "CONSUMER.INFO" || verb == "CONSUMER.MSG.NEXT") && api == "$JS.API." {
						continue // its own
					}
					at := api + verb + "." + stream + "." + name
					try(at, inbox(at), `{"batch":10}`)
				}
				if stream != events.Feed || name != mine.Consumer {
					try("$JS.ACK."+stream+"."+name+".1.4.2.1.0", inbox("ack"), "+ACK")
					try("$JS.ACK.keyledger.x."+stream+"."+name+".1.4.2.1.0", inbox("ack"), "+TERM")
				}
			}
		}
	}
	// What it may ask for, with the answers to somebody else.
	for _, reply := range append(slices.Clone(targets), "_INBOX.theirs.reply", "$JS.API.STREAM.DELETE.LEDGER", "$JS.API.STREAM.PURGE.USAGE", "$JS.ACK.FEED."+theirs.Consumer+".1.4.2.1.0", "_R_.x") {
		try("$JS.API.CONSUMER.INFO.FEED."+mine.Consumer, reply, "")
		try("$JS.ACK.FEED."+mine.Consumer+".1.1.1.1.0", reply, "+ACK")
		try("$JS.API.CONSUMER.MSG.NEXT.FEED."+mine.Consumer, reply, `{"batch":1,"no_wait":true}`)
		feed("parcelbird", "org_1", fmt.Sprintf("key_r%d", tried))
		try("$JS.API.CONSUMER.MSG.NEXT.FEED."+mine.Consumer, reply, `{"batch":1,"no_wait":true}`)
		feed("parcelbird", "org_1", fmt.Sprintf("key_s%d", tried))
		try("$JS.ACK.FEED."+mine.Consumer+".1.1.1.1.0", reply, `+NXT {"batch":1,"no_wait":true}`)
	}
	// Its own way works beside all that; what came before it has been dealt with.
	last := feed("parcelbird", "org_1", "key_last")
	own, err := mine.js.Consumer(ctx, events.Feed, mine.Consumer)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := own.Messages()
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Ack(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(m.Subject(), ".parcelbird.org_1.") {
			t.Errorf("mine was given %s", m.Subject())
		}
		if m.Subject() == last {
			break
		}
	}
	messages.Stop()
	told := func() int { mine.mu.Lock(); defer mine.mu.Unlock(); return len(mine.told) }()
	if told < 500 {
		t.Errorf("of %d tries the server refused %d by permission", tried, told)
	}

	// What was heard is its own.
	live, err := regexp.Compile(`^(live\.key\.revoked\.parcelbird\.org_1\.[a-z0-9_]+|feed\.key\.revoked\.parcelbird\.org_1\.[a-z0-9_]+|_INBOX\..*)$`)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, sub := range append(heard, answers) {
		for {
			m, err := sub.NextMsg(time.Millisecond)
			if err != nil {
				break
			}
			n++
			if !live.MatchString(m.Subject) || sub == answers {
				t.Errorf("by %s mine heard %s: %s %q", sub.Subject, m.Subject, m.Data, m.Header)
			}
		}
	}
	if n == 0 {
		t.Error("mine heard nothing of its own")
	}
	// Nothing came to another, but what the service said.
	if m, err := theirLive.NextMsgWithContext(ctx); err != nil || m.Subject != "live"+strings.TrimPrefix(waiting, "feed") {
		t.Errorf("another heard %v, %v", m, err)
	}
	if m, err := theirLive.NextMsg(10 * time.Millisecond); err == nil {
		t.Errorf("another heard %s: %s", m.Subject, m.Data)
	}
	if m, err := theirInbox.NextMsg(10 * time.Millisecond); err == nil {
		t.Errorf("another was answered %s: %s", m.Subject, m.Data)
	}
	if got := theirs.next(t, ctx, 1); got[0] != waiting {
		t.Errorf("another is given %q", got)
	}
	// Nothing was changed, but by the service.
	after := look()
	for _, name := range streams {
		was, is := before[name], after[name]
		switch name {
		case events.Ledger, events.Feed:
			if is.Msgs-was.Msgs != uint64(strings.Count(strings.Join(allFacts(t, ctx, l, name, was.LastSeq), " "), "org_1")) || is.FirstSeq != 1 {
				t.Errorf("%s: %+v, was %+v", name, is, was)
			}
		default:
			if is.Msgs != was.Msgs || is.LastSeq != was.LastSeq || is.FirstSeq != was.FirstSeq {
				t.Errorf("%s: %+v, was %+v", name, is, was)
			}
		}
		for i, c := range was.consumers {
			if len(is.consumers) != len(was.consumers) || strings.Contains(c, "wide") && is.consumers[i] != c || strings.Contains(c, "all") && is.consumers[i] != c {
				t.Errorf("consumers: %q, were %q", is.consumers, was.consumers)
				break
			}
		}
	}
	if err := l.Check(ctx); err != nil {
		t.Error(err)
	}

	// Removed, it is gone: its consumer at once, its way in with the configuration.
	if _, _, err := s.Remove(ctx, by, "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := ajs.Consumer(ctx, events.Feed, mine.Consumer); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("its consumer is there: %v", err)
	}
	if list, err = s.List(ctx); err != nil || len(list) != 3 {
		t.Fatalf("%d subscribers, %v", len(list), err)
	}
	closed := make(chan struct{})
	mine.nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	configure(subscribers.Config(list))
	select {
	case <-closed:
	case <-ctx.Done():
		t.Error("it is still connected")
	}
	if err := mine.connect(t, urls); err == nil {
		t.Error("it is let in")
	}
	// A process makes up what was lost before it began, and while it runs.
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	// What is asked about a consumer that comes or goes may be left unanswered.
	soon := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return do(ctx)
	}
	made := func() (at time.Time, err error) {
		err = soon(func(ctx context.Context) error {
			c, err := ajs.Consumer(ctx, events.Feed, wide.Consumer)
			if err == nil {
				at = c.CachedInfo().Created
			}
			return err
		})
		return at, err
	}
	for try := range 2 {
		was, err := made()
		for ; err != nil; was, err = made() {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		_ = soon(func(ctx context.Context) error { return ajs.DeleteConsumer(ctx, events.Feed, wide.Consumer) })
		if try == 0 {
			again := &subscribers.Subscribers{Ledger: l, JetStream: js, Every: 50 * time.Millisecond}
			go func() { again.Run(running); close(ended) }()
		}
		for { // nothing signals it
			is, err := made()
			if err == nil && is.After(was) {
				break
			}
			if err == nil { // nobody has answered, and done it
				_ = soon(func(ctx context.Context) error { return ajs.DeleteConsumer(ctx, events.Feed, wide.Consumer) })
			}
			if ctx.Err() != nil {
				t.Fatal("the lost consumer was not made again")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	stop()
	<-ended

	// The control: in the account of the streams, the same trick writes into one.
	gateway := as("nats_gateway")
	for was := look()[events.DLQ].Msgs; look()[events.DLQ].Msgs == was; time.Sleep(10 * time.Millisecond) {
		if err := gateway.PublishRequest("$JS.API.INFO", "dlq.control", nil); err != nil || ctx.Err() != nil {
			t.Fatalf("an answer cannot be sent into a stream any more (%v): accounts of their own may not be needed", err)
		}
	}
}

// allFacts are the owners of the facts behind a sequence.
func allFacts(t *testing.T, ctx context.Context, l *ledger.Ledger, stream string, after uint64) (owners []string) {
	t.Helper()
	for r, err := range l.Read(ctx, stream, after+1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		owners = append(owners, r.Event.Owner)
	}
	return owners
}
