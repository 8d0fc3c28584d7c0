package faults

import (
	"strings"
	"testing"
	"time"
)

// The process is killed again and again under mixed load. Nothing that was
// answered is missing, nothing is recorded twice, and no gap is declared.
func TestAccountsOverKills(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			before := readUsage(t, s.b.url)
			p, questions, codes := s.open(t, way, t.TempDir())
			b := askedOver(t, p, questions, times(3, 30), func() {
				p.process.Kill()
				p.start()
			})
			b.every(t, codes...)
			b.exact(t, readUsage(t, s.b.url).since(before))
		})
	}
	s.one.start()
	invariants(t, s.b.url, s.postgres, 1, s.seen)
}

// The control: with state_dir: none there is no write-ahead log, and kills lose what was
// answered, and the test above would see it.
func TestAccountsOverKillsWithoutALog(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	p, questions, _ := s.open(t, ways[0], "none")
	b, end := newBooks(), make(chan struct{})
	done := b.clients(t, 12, strings.TrimPrefix(p.url, "http://"), questions, end)
	for range 20 {
		<-time.After(200 * time.Millisecond)
		p.process.Kill()
		p.start()
	}
	close(end)
	done()
	p.terminate()
	if d := b.compare(readUsage(t, s.b.url)); len(d.missing) == 0 || d.refused == 0 {
		t.Errorf("%d uses and %d refusals are missing: 20 kills would not show that the log is broken.", len(d.missing), d.refused)
	}
}
