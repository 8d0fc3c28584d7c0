package verify

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// A fact in the write-ahead log is a letter and
//
//	v  a use, so that the hot path makes no JSON: see [use]
//	e  any other: a source in clear, and the event as JSON
//	u  a use as programs before the first release wrote it, and none does now
//
// Texts stand behind their length. The program that reads it may be a newer one:
// what a letter means is never changed.
const (
	keptUse   = 'v'
	keptEvent = 'e'
	keptUse1  = 'u'
)

// keep appends a fact to dst as [unkeep] reads it.
func keep(dst []byte, e events.Envelope) []byte {
	source := ""
	if d, ok := e.Data.(seal.Rejected); ok {
		e.Data, source = d.CredentialRejected, d.ClearIP
	}
	dst = appendText(append(dst, keptEvent), source)
	dst, _ = events.AppendEncode(dst, e) // what cannot be encoded is declared when its page is written
	return dst
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errKept = errors.New("a fact in the write-ahead log is not one that this program wrote: start the program that did")

// unkeep reads a fact of a dead node's log. Its personal data is still in clear.
func unkeep(e wal.Entry, node string) (events.Envelope, error) {
	r := &keptReader{b: e.Plain}
	switch r.byte() {
	case keptUse:
		var u use
		if !u.read(e.Plain) {
			return events.Envelope{}, errKept
		}
		return u.event(node), nil
	case keptUse1:
		u := r.use()
		if r.bad {
			return events.Envelope{}, errKept
		}
		return u.event(node), nil
	case keptEvent:
		source := r.text()
		if r.bad {
			return events.Envelope{}, errKept
		}
		if len(r.b) == 0 {
			return events.Envelope{}, nil // it could not be encoded
		}
		f, err := events.Decode(r.b)
		if err != nil {
			return f, err
		}
		f.Data = withNumbers(f.Data, e, source)
		if f.Actor.ID == "" { // a count: the rest was to be said when its second was over
			f = (&Recorder{node: node}).fold(f)
		}
		return f, nil
	}
	return events.Envelope{}, errKept
}

// withNumbers completes what was counted in the log.
func withNumbers(p events.Payload, e wal.Entry, source string) events.Payload {
	fold := events.Fold{Count: e.Count, First: events.Time(e.First), Last: events.Time(e.Last)}
	if !e.Tally {
		return p
	}
	switch d := p.(type) {
	case events.KeyDenied:
		d.Fold = fold
		return d
	case events.KeyRateLimited:
		d.Fold, d.Limit = fold, e.Value
		return d
	case events.LimitTaken:
		d.Fold = fold
		return d
	case events.CredentialRejected:
		d.Fold = fold
		return seal.Rejected{CredentialRejected: d, ClearIP: source}
	case events.UsageGap:
		d.Count, d.From, d.To = fold.Count, fold.First, fold.Last
		return d
	}
	return p
}

// keptReader reads b. What it cannot read makes it bad, for good.
type keptReader struct {
	b   []byte
	bad bool
}

func (r *keptReader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *keptReader) byte() byte {
	if b := r.take(1); !r.bad {
		return b[0]
	}
	return 0
}

func (r *keptReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *keptReader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *keptReader) text() string { return string(r.take(r.uint())) }

func (r *keptReader) use() (u use) {
	copy(u.stamp[:], r.take(16))
	u.time = r.int()
	u.document = int(r.int())
	u.sequence = r.uint()
	u.status = int(r.int())
	u.latency = time.Duration(r.int())
	u.cost = r.int()
	u.previous = r.byte() == 1
	for _, i := range [...]int{textKey, textKeyspace, textOwner, textEnvironment, textVia} {
		u.text[i] = r.text()
	}
	var ends [texts]uint64 // where the caller's texts end, which stand one after the other
	for i := textRequestID; i < texts; i++ {
		ends[i] = r.uint()
	}
	for i := textRequestID; i < texts; i++ {
		before := ends[i-1] // none before the first
		if ends[i] < before {
			r.bad = true
		}
		u.text[i] = string(r.take(ends[i] - before))
	}
	r.bad = r.bad || len(r.b) > 0
	return u
}
