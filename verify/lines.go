package verify

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"
	"unsafe"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// lines makes the facts of a page's uses, one after the other, with the same
// memory: a use by itself would cost some twenty pieces of it.
type lines struct {
	r      *Recorder
	sealer *seal.Sealer
	keys   []*seal.DataKey // of each use that has something to be sealed, in turn
	use    use
	used   events.KeyUsed
	boxes  [2]events.Sealed
	status int
	ms     int64
	text   []byte
}

func newLines(r *Recorder) *lines { return &lines{r: r, sealer: r.keys.Sealer()} }

var errUse = errors.New("these bytes are no use")

// uses gets the data keys of a page's uses ready, all that are missing together,
// and answers what makes their lines.
func (r *Recorder) uses(ctx context.Context, keyspace string, uses iter.Seq[[]byte]) (func(dst, use []byte) ([]byte, error), error) {
	made, ok := r.lines.Load(keyspace)
	if !ok {
		made, _ = r.lines.LoadOrStore(keyspace, newLines(r))
	}
	l := made.(*lines) // of the one goroutine that writes the keyspace's pages
	l.sealer.Begin()
	for {
		l.keys = l.keys[:0]
		var missing []string
		for b := range uses {
			if !l.use.read(b) || !l.use.personal() {
				continue
			}
			at := time.Unix(0, l.use.time)
			key := l.sealer.Find(l.use.text[textKeyspace], l.use.text[textOwner], at)
			if key == nil {
				if id := seal.KeyID(l.use.text[textKeyspace], l.use.text[textOwner], at); !slices.Contains(missing, id) {
					missing = append(missing, id)
				}
			}
			l.keys = append(l.keys, key)
		}
		if len(missing) == 0 {
			break
		}
		// Once more after that: a key may have been destroyed meanwhile.
		if err := r.keys.Prime(ctx, missing...); err != nil {
			return nil, err
		}
	}
	turn := 0
	return func(dst, b []byte) ([]byte, error) {
		if !l.use.read(b) {
			return dst, errUse
		}
		var key *seal.DataKey
		if l.use.personal() {
			key = l.keys[turn]
			turn++
		}
		return l.append(dst, key)
	}, nil
}

// append appends the fact of l.use.
func (l *lines) append(dst []byte, key *seal.DataKey) ([]byte, error) {
	u := &l.use
	l.text = l.text[:0]
	l.used = events.KeyUsed{
		Method: u.told(textMethod), Endpoint: u.told(textPath), Origin: u.told(textOrigin),
		SourceIP: l.box(0, key, u.told(textIP)), UserAgent: l.box(1, key, u.told(textUserAgent)),
		CostMicros: u.cost, Environment: u.text[textEnvironment], Secret: u.which(), Node: l.r.node,
		LedgerSequence: u.sequence, DocumentVersion: u.document,
	}
	at := len(l.text)
	l.text = events.AppendID(l.text, "evt", u.stamp)
	id := l.since(at)
	at = len(l.text)
	l.text = appendDecisionID(l.text, u.stamp, u.text[textKey])
	l.used.Decision = l.since(at)
	if l.status = u.status; l.status != 0 {
		l.used.Status = &l.status
	}
	if u.latency > 0 {
		l.ms = u.latency.Round(time.Millisecond).Milliseconds()
		l.used.LatencyMS = &l.ms
	}
	return events.AppendEncode(dst, u.envelope(id, &l.used))
}

// since is the text from a place on, as a string that shares it.
func (l *lines) since(from int) string {
	return unsafe.String(unsafe.SliceData(l.text[from:]), len(l.text)-from)
}

// box seals a datum; an empty one is none.
func (l *lines) box(i int, key *seal.DataKey, plain string) *events.Sealed {
	if plain == "" {
		return nil
	}
	at := len(l.text)
	l.text = l.sealer.AppendBox(l.text, key, time.Unix(0, l.use.time), plain)
	l.boxes[i] = events.Sealed{Key: key.ID, Box: l.since(at)}
	return &l.boxes[i]
}
