package peers_test

import (
	"flag"
	"strconv"
	"testing"
)

// schedules makes rapid try n schedules, a tenth of them in a short run.
func schedules(t *testing.T, n int) {
	if testing.Short() {
		n /= 10
	}
	was := flag.Lookup("rapid.checks").Value.String()
	_ = flag.Set("rapid.checks", strconv.Itoa(n))
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
}
