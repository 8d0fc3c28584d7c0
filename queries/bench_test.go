package queries

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

// BenchmarkAuditPage reads first pages of 100 out of half a million uses and a
// thousand facts.
func BenchmarkAuditPage(b *testing.B) {
	l := newLog(b)
	begin := after(0)
	for i := range 1000 {
		l.fact(begin, "parcelbird", "o1", fmt.Sprintf("key_%04d", i), events.KeyCreated{Name: "n"})
	}
	for i := range 2000 {
		var moments []time.Time
		for j := range 256 {
			moments = append(moments, begin.Add(time.Duration(i*256+j)*time.Millisecond))
		}
		l.page("parcelbird", "o1", fmt.Sprintf("key_%04d", i%1000), moments...)
	}
	for _, c := range []struct {
		name string
		f    AuditFilter
	}{
		{"everything", AuditFilter{}},
		{"facts of one key", AuditFilter{Keyspace: "parcelbird", Owner: "o1", Key: "key_0500", Types: []string{"key.created", "key.revoked"}}},
		{"uses of one key by reading", AuditFilter{Keyspace: "parcelbird", Owner: "o1", Key: "key_0500"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if page, err := l.Events(b.Context(), c.f, l.keys); err != nil || len(page.Events) == 0 {
					b.Fatal(len(page.Events), err)
				}
			}
		})
	}
}
