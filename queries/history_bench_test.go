package queries

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/projections"
)

// BenchmarkHistory is the history, with uses, of a key with one in fifty of all uses:
// so every message of the log has one.
//
//	KEYLEDGER_USES=10000000 go test -run '^$' -bench History -benchtime 1x -timeout 60m ./queries
func BenchmarkHistory(b *testing.B) {
	uses, err := strconv.Atoi(os.Getenv("KEYLEDGER_USES"))
	if err != nil {
		uses = 20_000
	}
	x := newIndexed(b)
	x.uses(uses, 1000)
	head, err := x.l.Head(b.Context(), events.Usage)
	if err != nil {
		b.Fatal(err)
	}
	x.follow(projections.Uses{}, head, func() int { return 80 })
	audit := x.Indexed(projections.NewIndex(x.pool, x.keys))
	before, begun, runs := processorTime(b), time.Now(), 0
	for b.Loop() {
		entries, _, err := audit.History(b.Context(), "parcelbird", "obusy", busyKey, true, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if len(entries) != 1 || entries[0].Count == 0 {
			b.Fatalf("%d entries", len(entries))
		}
		runs++
	}
	b.ReportMetric(float64(time.Since(begun).Microseconds())/float64(runs)/float64(uses), "µs/use-in-log")
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(runs)/float64(uses), "cpu-µs/use-in-log")
}
