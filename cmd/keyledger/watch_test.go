package main

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/reactors"
)

// A watch prints the facts it was asked for and no others, from a place in FEED
// or from now.
func TestWatch(t *testing.T) {
	server := testenv.NATS(t, testenv.Listening())
	nc := testenv.Conn(t, server)
	l, err := ledger.Open(t.Context(), nc, ledger.Options{AllowUnverifiedSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	sequence := 0
	publish := func(data events.Payload, keyspace, owner, key string) string {
		e := events.New(data, time.Date(2026, 1, 18, 11, 57, 0, 0, time.UTC))
		e.Keyspace, e.Owner, e.Key, e.Actor = keyspace, owner, key, events.Actor{Type: "root_key", ID: "key_0"}
		body, err := events.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		sequence++
		m := &nats.Msg{Subject: events.FeedSubject(e), Data: body, Header: nats.Header{reactors.HeaderLedgerSequence: {strconv.Itoa(sequence)}}}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	publish(events.OwnerRegistered{Name: "One"}, "parcelbird", "org_1", "")
	first := publish(events.KeyRevoked{Reason: "leaked"}, "parcelbird", "org_1", "key_1")
	publish(events.KeyRevoked{Reason: "leaked"}, "other", "org_1", "key_2")
	second := publish(events.KeyRevoked{Reason: "old"}, "parcelbird", "org_2", "key_3")

	t.Setenv("KEYLEDGER_CONTEXT", t.TempDir()+"/context.json")
	t.Setenv("KEYLEDGER_NATS_URL", server.ClientURL())
	r := invoke(t, "", "watch", "--type", "key.revoked", "--keyspace", "parcelbird", "--from-sequence", "1", "--count", "2", "--json").want(t, 0)
	if r.stdout != first+"\n"+second+"\n" {
		t.Errorf("stdout %s", r.stdout)
	}
	r = invoke(t, "", "watch", "--from-sequence", "1", "--count", "1").want(t, 0)
	if want := "2026-01-18T11:57:00.000Z\towner.registered\tparcelbird\torg_1\t-\tFEED 1\tkey_0\n"; r.stdout != want {
		t.Errorf("stdout %q, want %q", r.stdout, want)
	}

	// From now: what was there before is not printed.
	watching := &signalWriter{text: "watching stream FEED after sequence 4", seen: make(chan struct{})}
	done := make(chan said, 1)
	go func() {
		done <- invokeApp(t, "", func(a *app) { a.stderr = watching }, "watch", "--count", "1")
	}()
	<-watching.seen
	publish(events.KeyRevoked{}, "parcelbird", "org_1", "key_9")
	r = (<-done).want(t, 0)
	contains(t, "stdout", r.stdout, "\tkey_9\t", "\tFEED 5\t")
}

// signalWriter closes seen when the text is written.
type signalWriter struct {
	text string
	seen chan struct{}
}

func (w *signalWriter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.text) {
		close(w.seen)
	}
	return len(b), nil
}

func TestWatchArguments(t *testing.T) {
	t.Setenv("KEYLEDGER_CONTEXT", t.TempDir()+"/context.json")
	invoke(t, "", "watch").want(t, exitUsage)
	invoke(t, "", "watch", "--type", "key.revokd", "--nats-url", "nats://127.0.0.1:1").want(t, exitUsage)
	contains(t, "stderr", invoke(t, "", "watch", "--nats-url", "nats://127.0.0.1:1").want(t, exitUnreachable).stderr, "NATS does not answer")
}
