// Package bench is what keyledger is measured with and against: a load
// generator that costs little, and the floors, which do the same work without
// keyledger.
//
// It promises that a load and its floor are driven alike: the same connections,
// kept open, the same bytes of request, one request at a time on each, every
// answer read to its end and compared with what was expected. What is counted as
// answered was answered; a request that was sent and got no answer ends the run
// with an error, so that answers can be compared with what was recorded.
//
// How it can disappoint. The load is closed: a connection sends its next request
// when it has read the answer, so a slow server is asked less, and latency under
// a fixed rate is not what is measured. The generator and the server share a
// machine: on one core they share that as well. It understands answers with a
// Content-Length only.
package bench

import (
	"fmt"
	"runtime"
	"slices"
)

// Median is the middle of some figures; of an even number, the lower one.
func Median(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(figures))
	return s[(len(s)-1)/2]
}

// Cores says on which cores the server and the load are to run; -1 is any.
// Why is empty when they have one each.
func Cores() (server, load int, why string) {
	allowed, err := affinity()
	switch {
	case err != nil:
		return -1, -1, fmt.Sprintf("not pinned: %v on %s", err, runtime.GOOS)
	case len(allowed) < 2:
		return -1, -1, "not pinned: there is one core, which server and load share"
	}
	return allowed[0], allowed[1], ""
}
