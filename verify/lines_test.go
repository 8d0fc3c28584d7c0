package verify

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
)

// The facts that a page makes together are those that each use would have made
// alone, whoever the uses are of and whatever their texts hold, and their personal
// data opens to what it was.
func TestPreparedTogether(t *testing.T) {
	js, err := jetstream.New(testenv.Conn(t, testenv.NATS(t)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), js, seal.Master{1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	r := &Recorder{node: "n", keys: keys}
	owners := []string{"a", "b", ""}
	text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	month := rapid.SampledFrom([]time.Time{time.Date(2026, 1, 31, 23, 59, 59, 0, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)})
	rapid.Check(t, func(rt *rapid.T) {
		var page [][]byte
		var alone []events.Envelope
		for range rapid.IntRange(1, 20).Draw(rt, "uses") {
			u := use{
				document: 3, sequence: rapid.Uint64().Draw(rt, "sequence"), time: month.Draw(rt, "time").UnixNano(),
				previous: rapid.Bool().Draw(rt, "previous"), status: rapid.IntRange(0, 999).Draw(rt, "status"),
				latency: time.Duration(rapid.Int64Range(0, 1<<40).Draw(rt, "latency")), cost: rapid.Int64().Draw(rt, "cost"),
			}
			copy(u.stamp[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "stamp"))
			for i := range u.text {
				u.text[i] = text.Draw(rt, "text")
			}
			u.text[textKey] = events.NewID("key", time.Unix(int64(rapid.IntRange(0, 9).Draw(rt, "key")), 0))
			u.text[textKeyspace], u.text[textOwner], u.text[textEnvironment], u.text[textVia] = "ks", rapid.SampledFrom(owners).Draw(rt, "owner"), "live", "api"
			alone = append(alone, u.event("n"))
			page = append(page, u.append(nil))
		}
		line, err := r.uses(t.Context(), "ks", slices.Values(page))
		if err != nil {
			rt.Fatal(err)
		}
		for i, u := range page {
			body, err := line([]byte("before"), u)
			if err != nil {
				rt.Fatal(err)
			}
			clear(u) // it is not kept
			body = bytes.TrimPrefix(body, []byte("before"))
			got, err := events.Decode(body)
			if err != nil {
				rt.Fatal(err)
			}
			used := got.Data.(events.KeyUsed)
			want := alone[i].Data.(seal.Use)
			for _, x := range []struct {
				sealed *events.Sealed
				clear  string
			}{{used.SourceIP, want.ClearIP}, {used.UserAgent, want.ClearUserAgent}} {
				if plain, err := keys.Open(t.Context(), x.sealed); err != nil || plain != x.clear || (x.sealed == nil) != (x.clear == "") {
					rt.Fatalf("%+v opens to %q, want %q: %v", x.sealed, plain, x.clear, err)
				}
				if x.clear != "" && len(x.clear) > 8 && strings.Contains(string(body), x.clear) {
					rt.Fatalf("%q stands in clear in %s", x.clear, body)
				}
			}
			used.SourceIP, used.UserAgent = nil, nil
			got.Data, alone[i].Data = used, want.KeyUsed
			if diff := cmp.Diff(alone[i], got); diff != "" {
				rt.Fatal(diff)
			}
		}
	})
}
