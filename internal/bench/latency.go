package bench

import (
	"math/bits"
	"time"
)

// parts is how many buckets a doubling of the latency has: 64 are 1.6 % apart.
const parts = 64

// Latencies counts how long answers took.
type Latencies struct {
	counts [40 * parts]int64 // by bucket; the last ones are hours
	total  int64
}

// Add counts one.
func (l *Latencies) Add(d time.Duration) {
	l.counts[bucket(uint64(max(d, 0)))]++
	l.total++
}

// Merge adds what another one counted.
func (l *Latencies) Merge(o *Latencies) {
	for i, n := range o.counts {
		l.counts[i] += n
	}
	l.total += o.total
}

// Quantile is how long the share q (0 to 1) of all took at most, at 1.6 %.
func (l *Latencies) Quantile(q float64) time.Duration {
	rank := int64(q * float64(l.total))
	for i, n := range l.counts {
		if rank -= n; rank < 0 {
			return time.Duration(upper(i))
		}
	}
	return 0
}

func bucket(ns uint64) int {
	if ns < parts {
		return int(ns)
	}
	shift := bits.Len64(ns) - 7 // parts is 1<<6: what remains has seven bits
	return min((shift+1)*parts+int(ns>>shift)-parts, len(Latencies{}.counts)-1)
}

// upper is the largest latency of a bucket.
func upper(i int) uint64 {
	if i < parts {
		return uint64(i)
	}
	shift := i/parts - 1
	return (uint64(i%parts)+parts+1)<<shift - 1
}
