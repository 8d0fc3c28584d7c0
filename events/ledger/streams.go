package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
)

// streamNames in the order in which they are created and reported.
var streamNames = []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ}

const typeHeader = "Ledger-Type" // on every message that holds one fact

// Config is the configuration of a stream as this program writes it.
func Config(stream string, replicas int) jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name:              stream,
		Retention:         jetstream.LimitsPolicy,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxConsumers:      -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Duplicates:        duplicates,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		Metadata:          map[string]string{"keyledger.stream": "1"},
	}
	switch stream {
	case events.Ledger:
		c.Description = "keyledger: facts about keys, owners and keyspaces"
		c.Subjects = []string{"ledger.*.*.*"}
		c.AllowAtomicPublish = true
	case events.Usage:
		c.Description = "keyledger: what was done with keys, in pages"
		c.Subjects = []string{"usage.*.*"}
		c.DenyPurge = false // for the recorded retention command
	case events.Feed:
		c.Description = "keyledger: facts in their public form, for subscribers"
		c.Subjects = []string{"feed.>"}
		c.AllowAtomicPublish = true
		c.RePublish = &jetstream.RePublish{Source: "feed.>", Destination: "live.>"}
	case events.Ops:
		c.Description = "keyledger: acts around the ledger"
		c.Subjects = []string{"ops.*.*.*"}
	case events.DLQ:
		c.Description = "keyledger: what a reactor could not deliver"
		c.Subjects = []string{"dlq.>"}
	}
	return c
}

// duplicates is the window in which the server recognises a repeated
// Nats-Msg-Id.
const duplicates = 2 * time.Minute

// streamInfo is what the server says about a stream. The configuration is kept
// as written, so that a setting which this program's client library does not
// know is seen as well.
type streamInfo struct {
	Created time.Time       `json:"created"`
	Config  json.RawMessage `json:"config"`
	State   struct {
		Msgs       uint64          `json:"messages"`
		Bytes      uint64          `json:"bytes"`
		FirstSeq   uint64          `json:"first_seq"`
		LastSeq    uint64          `json:"last_seq"`
		NumDeleted int             `json:"num_deleted"`
		Lost       json.RawMessage `json:"lost"`
	} `json:"state"`
	Cluster struct {
		Replicas []json.RawMessage `json:"replicas"` // but the leader
	} `json:"cluster"`
}

// replicated says whether others than its leader hold the stream.
func (i *streamInfo) replicated() bool { return len(i.Cluster.Replicas) > 0 }

func (l *Ledger) info(ctx context.Context, stream string) (*streamInfo, error) {
	var info streamInfo
	if err := l.api(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return nil, err
	}
	return &info, nil
}

// wait is false when the context ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Settings that do not touch what is kept or in which order.
var immaterial = []string{"description", "placement", "consumer_limits", "metadata", "mirror_direct", "allow_direct"}

// configFindings compares a stream's configuration with the one written here.
func configFindings(stream string, stored json.RawMessage, replicas int) []Finding {
	var found, want map[string]any
	written, err := json.Marshal(Config(stream, replicas))
	if err == nil {
		err = errors.Join(json.Unmarshal(written, &want), json.Unmarshal(stored, &found))
	}
	if err != nil {
		return []Finding{{stream, "its configuration cannot be read: " + err.Error(), "The server is not one this program knows.", "Run nats-server 2.12 or later."}}
	}
	names := map[string]bool{}
	for n := range found {
		names[n] = true
	}
	for n := range want {
		names[n] = true
	}
	var differ []string
	for n := range names {
		f, w := found[n], want[n]
		if slices.Contains(immaterial, n) || reflect.DeepEqual(f, w) || unset(f) && unset(w) {
			continue
		}
		differ = append(differ, fmt.Sprintf("%s is %s instead of %s", n, asJSON(f), asJSON(w)))
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return []Finding{{stream, "its configuration was changed: " + strings.Join(differ, ", "),
		meansSettings,
		"Find out who changed it. Set it back (`nats stream edit " + stream + "`), take that right from their user, then verify the log before you start again."}}
}

func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case float64:
		return v == 0
	case string:
		return v == "" || v == "default" // of persist_mode
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}

func asJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
