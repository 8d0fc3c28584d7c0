package ledger_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// Every type of fact, as it comes out of FEED, is an event to the SDK of CloudEvents, with
// its attributes and its body; one whose attributes are spoiled is not.
func TestCloudEvents(t *testing.T) {
	sdk := testenv.CloudEvents(t)
	nc := testenv.Conn(t, testenv.NATS(t))
	l := open(t, nc, ledger.Options{})
	live, err := nc.SubscribeSync("live.>")
	if err != nil {
		t.Fatal(err)
	}
	var fed []events.Envelope
	for _, kind := range events.FedTypes() {
		paths, err := filepath.Glob("../testdata/golden/" + kind + ".v*.json")
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s has no golden event: %v", kind, err)
		}
		body, err := os.ReadFile(paths[len(paths)-1])
		if err != nil {
			t.Fatal(err)
		}
		e, err := events.Decode(bytes.TrimSpace(body))
		if err != nil {
			t.Fatal(err)
		}
		if kind == "keyspace.configured" {
			e.Owner, e.Key = "", ""
		}
		fed = append(fed, e)
	}
	type message struct {
		Header map[string][]string
		Body   []byte
	}
	var in bytes.Buffer
	var first message
	for i, e := range fed {
		if _, err := l.AppendFeed(t.Context(), uint64(i), ledger.FeedEntry{Ledger: uint64(i) + 1, Event: e}); err != nil {
			t.Fatal(err)
		}
		m, err := live.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		line := message{m.Header, m.Data}
		if i == 0 {
			first = line
		}
		if err := json.NewEncoder(&in).Encode(line); err != nil {
			t.Fatal(err)
		}
	}
	read := func(in *bytes.Buffer) (string, error) {
		cmd := exec.CommandContext(t.Context(), sdk)
		var told bytes.Buffer
		cmd.Stdin, cmd.Stderr = in, &told
		out, err := cmd.Output()
		return string(out) + told.String(), err
	}
	out, err := read(&in)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(fed) {
		t.Fatalf("%d events of %d: %s", len(lines), len(fed), out)
	}
	for i, line := range lines {
		var e struct {
			SpecVersion, ID, Type, Source, Subject, DataContentType, DataSchema string
			Time                                                                time.Time
			Data                                                                events.Envelope
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		want := fed[i]
		subject := "org_1/key_019b-1"
		if want.Owner == "" {
			subject = "parcelbird"
		}
		if e.SpecVersion != "1.0" || e.ID != want.ID || e.Type != want.Type || e.Source != "/keyledger/parcelbird" || e.Subject != subject ||
			e.DataContentType != "application/json" || e.DataSchema != events.SchemaID(want.Type, want.Version) || !e.Time.Equal(want.Time.Time()) || e.Data.ID != want.ID {
			t.Errorf("%s is to the SDK %s", want.Type, line)
		}
	}
	for name, value := range map[string]string{"ce-id": "", "ce-specversion": "0.0", "ce-time": "yesterday", "ce-source": "", "ce-type": "", "ce-dataschema": "%zz"} {
		spoiled := message{map[string][]string{}, first.Body}
		for name, values := range first.Header {
			spoiled.Header[name] = values
		}
		spoiled.Header[name] = []string{value}
		var in bytes.Buffer
		if err := json.NewEncoder(&in).Encode(spoiled); err != nil {
			t.Fatal(err)
		}
		if out, err := read(&in); err == nil {
			t.Errorf("with %s %q it is an event: %s", name, value, out)
		}
	}
}
