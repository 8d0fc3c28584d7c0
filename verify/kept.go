package verify

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// A fact in the write-ahead log is a letter and
//
//	u  a use: its stamp, numbers and texts, so that the hot path makes no JSON
//	e  any other: a source in clear, and the event as JSON
//
// Texts stand behind their length. The program that reads it may be a newer one:
// what a letter means is never changed.
const (
	keptUse   = 'u'
	keptEvent = 'e'
)

// keep appends a fact to dst as [unkeep] reads it.
func keep(dst []byte, e events.Envelope) []byte {
	if p, ok := e.Data.(*pendingUse); ok {
		return p.keep(dst)
	}
	source := ""
	if d, ok := e.Data.(seal.Rejected); ok {
		e.Data, source = d.CredentialRejected, d.ClearIP
	}
	dst = appendText(append(dst, keptEvent), source)
	dst, _ = events.AppendEncode(dst, e) // what cannot be encoded is declared when its page is written
	return dst
}

func (p *pendingUse) keep(b []byte) []byte {
	b = append(append(b, keptUse), p.stamp[:]...)
	b = binary.AppendVarint(b, p.time.UnixNano())
	b = binary.AppendVarint(b, int64(p.document))
	b = binary.AppendUvarint(b, p.sequence)
	b = binary.AppendVarint(b, int64(p.status))
	b = binary.AppendVarint(b, int64(p.latency))
	b = binary.AppendVarint(b, p.cost)
	previous := byte(0)
	if p.previous {
		previous = 1
	}
	b = append(b, previous)
	for _, s := range [...]string{p.key.ID, p.key.Keyspace, p.key.Owner, p.key.Environment, p.via} {
		b = appendText(b, s)
	}
	for _, end := range p.ends {
		b = binary.AppendUvarint(b, uint64(end))
	}
	return append(b, p.text...)
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

func (r *keptReader) use() *pendingUse {
	u := &pendingUse{key: &domain.Key{Grant: &domain.Grant{}}}
	copy(u.stamp[:], r.take(16))
	u.time = time.Unix(0, r.int())
	u.document = int(r.int())
	u.sequence = r.uint()
	u.status = int(r.int())
	u.latency = time.Duration(r.int())
	u.cost = r.int()
	u.previous = r.byte() == 1
	u.key.ID, u.key.Keyspace, u.key.Owner, u.key.Environment, u.via = r.text(), r.text(), r.text(), r.text(), r.text()
	last := uint64(0)
	for i := range u.ends {
		end := r.uint()
		if end < last {
			r.bad = true
		}
		u.ends[i], last = int(end), end
	}
	u.text = r.take(last)
	r.bad = r.bad || len(r.b) > 0
	return u
}
