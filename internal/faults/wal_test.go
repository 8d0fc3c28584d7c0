package faults

import "testing"

// The program is killed in the middle of mixed load and started again. What was
// answered is recorded, once, to the last request: uses, refusals and what other
// traffic drew. Nothing is declared as lost, because nothing is.
func TestAccountsOverKills(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for range times(1, 20) {
		for _, audit := range []string{"async", "strict", ""} {
			name := audit + " gateway"
			if audit == "" {
				name = "verify"
			}
			t.Run(name, func(t *testing.T) {
				before := readUsage(t, s.b.url)
				p, questions := s.one, s.verified()
				if audit != "" {
					p, questions = s.gateway(audit, t.TempDir()), s.proxied()
					p.t = t
					p.start()
				}
				b := asked(t, p, questions, func() {
					p.process.Kill()
					p.start()
				})
				if len(b.used) == 0 {
					t.Error("nothing was asked")
				}
				b.exact(t, readUsage(t, s.b.url).since(before))
			})
		}
	}
	s.one.start()
	invariants(t, s.b.url, s.postgres, 1, s.seen)
}

// The same without a write-ahead log loses: so the test above can fail.
func TestAccountsOverKillsNeedTheLog(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	p := s.gateway("async", "none")
	p.start()
	b := asked(t, p, s.proxied(), func() {
		p.process.Kill()
		p.start()
	})
	if d := b.compare(readUsage(t, s.b.url)); len(d.missing) == 0 && d.refused == 0 {
		t.Error("Without a write-ahead log nothing is lost by a kill.")
	}
}
