// Package applied measures revocations: every verifier tells how far it has applied
// LEDGER and when it stopped accepting what a fact had ended ([Teller]), and a node
// that takes commands listens, adds up and records it once for each such fact
// ([Watcher]).
//
// What it promises. The delay of a verifier is from the moment the server
// acknowledged the fact, before which nobody can have been told that it happened, to
// the arrival of the verifier's word, both by the clock of the node that appended it.
// No two clocks need to agree, and the verifier had stopped by then: whoever asks it
// later is refused. A verifier tells at once, and repeats in the word that it gives
// every second, so that a lost message makes a delay larger and never smaller. Who
// did not confirm within [Bound] is recorded as unconfirmed, with the time after which
// it answers STATE_TOO_STALE if it runs on: one that has not seen the fact was last
// complete before it. A decision costs nothing of this.
//
// How it can disappoint. The figures are upper bounds: they hold the message's way and
// the work of the node that listens, which is what grows on a busy machine. A request
// that had found the key before the moment of stopping may still be answered after it.
// Where the node that appended a fact dies, another one records it with the clocks of
// two machines, and says so (basis clocks); where all die, it stays unmeasured. A
// verifier that was never heard, or not for longer than its own stale window, is not
// waited for. A node is believed: who may publish on the subjects may say of any
// verifier that it stopped (deploy/nats).
package applied

import (
	"strings"
	"time"
)

const (
	// Every is how often a verifier tells how far it is.
	Every = time.Second

	// Bound is how long a verifier is waited for before it counts as unconfirmed.
	Bound = 60 * time.Second

	// Silent is how long nothing is heard of a running verifier at most while all is
	// well.
	Silent = 3 * Every

	// settle is how long every running verifier has been heard of for sure.
	settle = 2*Every + Every/2

	// takeover is which part of Bound later another node records what nobody has recorded.
	takeover = 4

	between   = time.Millisecond // between two messages of a node at least
	repeatFor = 5 * time.Second  // that a stop is told again, every second
	maxStops  = 256              // in a message
	maxBytes  = 64 << 10         // of a message
	maxName   = 128
	version   = 1

	// prefix of the subjects, which belong to no stream. The last token is the node
	// that tells.
	prefix = "keyledger.verifiers."
)

// message is what a node tells.
type message struct {
	Version  int    `json:"v"`
	Node     string `json:"node"`
	Program  string `json:"program"`
	Start    int64  `json:"start"`     // of its process, nanoseconds since 1970
	Sent     int64  `json:"sent"`      // by its clock, nanoseconds since 1970
	From     uint64 `json:"from"`      // LEDGER sequence that it began with
	Sequence uint64 `json:"sequence"`  // LEDGER sequence that it has applied
	LostMS   int64  `json:"lost_ms"`   // how long ago its state was last known to be complete
	WindowMS int64  `json:"window_ms"` // after how long of that it answers STATE_TOO_STALE
	Held     int    `json:"held"`      // uses that wait to be written
	Stopped  []stop `json:"stopped,omitempty"`

	// Measured are facts whose measurement this node has recorded.
	Measured []uint64 `json:"measured,omitempty"`

	Ends bool `json:"ends,omitempty"` // it verifies no more
}

// stop is a fact, and since when what it ended is refused.
type stop struct {
	Sequence uint64 `json:"sequence"`
	At       int64  `json:"at"` // by its clock, nanoseconds since 1970
}

// valid says whether a message can be used.
func (m *message) valid() bool {
	return m.Version == version && m.Node != "" && len(m.Node) <= maxName && !strings.ContainsAny(m.Node, ".*> \t\r\n") &&
		len(m.Program) <= maxName && m.Start > 0 && m.Sent > 0 && m.WindowMS >= 0 && m.LostMS >= 0
}
