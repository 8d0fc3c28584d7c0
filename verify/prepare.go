package verify

import (
	"context"
	"slices"
	"time"
	"unsafe"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// prepare is called with a page before it is written, and again with what it
// left when it failed.
func (r *Recorder) prepare(ctx context.Context, page []events.Envelope) error {
	if err := r.prepareUses(ctx, page); err != nil {
		return err
	}
	return r.keys.Prepare(ctx, page)
}

// prepareUses makes the facts of the uses in a page, all of which a page's worth
// of memory holds together: a use by itself costs some twenty pieces of it.
func (r *Recorder) prepareUses(ctx context.Context, page []events.Envelope) error {
	uses := 0
	var missing []string // data keys, which are read several at a time
	sealer := r.keys.Sealer()
	for i := range page {
		p, ok := page[i].Data.(*pendingUse)
		if !ok {
			continue
		}
		uses++
		if p.personal() && !sealer.Has(p.key.Keyspace, p.key.Owner, p.time) {
			if id := seal.KeyID(p.key.Keyspace, p.key.Owner, p.time); !slices.Contains(missing, id) {
				missing = append(missing, id)
			}
		}
	}
	if uses == 0 {
		return nil
	}
	if len(missing) > 0 {
		if err := r.keys.Prime(ctx, missing...); err != nil {
			return err
		}
	}
	made := &madeUses{
		text: make([]byte, 0, uses*usedText), used: make([]events.KeyUsed, 0, uses), sealed: make([]events.Sealed, 0, 2*uses),
		status: make([]int, 0, uses), latency: make([]int64, 0, uses),
	}
	for i := range page {
		if p, ok := page[i].Data.(*pendingUse); ok {
			e, err := made.event(ctx, p, r.node, sealer)
			if err != nil {
				return err
			}
			page[i] = e
			*p = pendingUse{text: p.text[:0]}
			r.pool.Put(p)
		}
	}
	return nil
}

// usedText is about how many bytes of text one use brings.
const usedText = 448

// madeUses is the memory of a page's uses. What is in it is not changed any more:
// it is shared by the facts.
type madeUses struct {
	text    []byte
	used    []events.KeyUsed
	sealed  []events.Sealed
	status  []int
	latency []int64
}

// since is the text from a place on, as a string that shares it.
func (m *madeUses) since(from int) string {
	return unsafe.String(unsafe.SliceData(m.text[from:]), len(m.text)-from)
}

func (m *madeUses) event(ctx context.Context, p *pendingUse, node string, sealer *seal.Sealer) (events.Envelope, error) {
	at := len(m.text)
	m.text = append(m.text, p.text...)
	p.copied = m.since(at)
	sourceIP, err := m.box(ctx, p, p.part(partIP), sealer)
	if err != nil {
		return events.Envelope{}, err
	}
	userAgent, err := m.box(ctx, p, p.part(partUserAgent), sealer)
	if err != nil {
		return events.Envelope{}, err
	}
	at = len(m.text)
	m.text = events.AppendID(m.text, "evt", p.stamp)
	id := m.since(at)
	at = len(m.text)
	m.text = appendDecisionID(m.text, p.stamp, p.key.ID)
	decision := m.since(at)
	m.used = append(m.used, events.KeyUsed{
		Decision: decision, Method: p.part(partMethod), Endpoint: p.part(partPath), Origin: p.part(partOrigin),
		SourceIP: sourceIP, UserAgent: userAgent,
		CostMicros: p.cost, Environment: p.key.Environment, Secret: p.which(), Node: node,
		LedgerSequence: p.sequence, DocumentVersion: p.document,
	})
	used := &m.used[len(m.used)-1]
	if p.status != 0 {
		m.status = append(m.status, p.status)
		used.Status = &m.status[len(m.status)-1]
	}
	if p.latency > 0 {
		m.latency = append(m.latency, p.latency.Round(time.Millisecond).Milliseconds())
		used.LatencyMS = &m.latency[len(m.latency)-1]
	}
	return p.envelope(id, used, p.part(partRequestID)), nil
}

// box seals a datum of a use; an empty one is none.
func (m *madeUses) box(ctx context.Context, p *pendingUse, plain string, sealer *seal.Sealer) (*events.Sealed, error) {
	if plain == "" {
		return nil, nil
	}
	id, err := sealer.Find(ctx, p.key.Keyspace, p.key.Owner, p.time)
	if err != nil {
		return nil, err
	}
	at := len(m.text)
	m.text = sealer.AppendBox(m.text, plain)
	m.sealed = append(m.sealed, events.Sealed{Key: id, Box: m.since(at)})
	return &m.sealed[len(m.sealed)-1], nil
}
