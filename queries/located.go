package queries

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/projections"
)

const (
	indexTime = 2 * time.Second // after which the stream is read instead

	// fewBehind is how many messages that the index does not know are read one by
	// one: for so few it is not worth having the server begin to deliver.
	fewBehind = 256

	// The server reads as much to find a message that lies alone, and a page of the
	// audit log makes it read so much at most.
	aloneBytes = 8 << 20
	pageBytes  = 12 * aloneBytes

	// goneFor is how long a data key that was not there is not asked for again, in
	// one query: each time is a question to NATS.
	goneFor = time.Second
)

func (q *query) wanted() projections.Wanted {
	f := &q.f
	return projections.Wanted{Keyspace: f.Keyspace, Owner: f.Owner, Key: f.Key, Endpoint: f.Endpoint, IP: f.IP, From: f.From, To: f.To,
		Gaps: len(q.types) == 1 && q.types["usage.gap"]}
}

// located takes from USAGE the messages that the index names, and those that it does
// not know yet.
func (q *query) located(ctx context.Context, w projections.Wanted, from, to uint64) iter.Seq2[step, error] {
	return func(yield func(step, error) bool) {
		rest := from // not known to the index
		sequences := func(yield func(uint64, error) bool) {
			for last := false; !last && rest <= to; {
				ctx, cancel := context.WithTimeout(ctx, indexTime)
				found, err := q.index.Locate(ctx, w, rest)
				cancel()
				if err != nil {
					break // PostgreSQL is away: the log needs none
				}
				for _, s := range found.Sequences {
					if s > to {
						break
					}
					if !yield(s, nil) {
						return
					}
				}
				rest, last = max(rest, found.Through+1), found.Last
			}
			if rest <= to && to-rest < fewBehind {
				for ; rest <= to; rest++ {
					if !yield(rest, nil) {
						return
					}
				}
			}
		}
		needle, choose := q.chooser(ctx)
		var before uint64 // sequence of the message before
		var bytes, messages, found, work int
		// What is asked for in vain costs as much as what is not.
		ahead := func() int {
			n := whole
			if messages > 0 && q.left >= 0 {
				n = (scanned-work)*messages/work + 1
			}
			if found > 0 && found < q.page {
				n = min(n, (q.page-found)*messages/found+1)
			}
			return n
		}
		for p, err := range q.ledger.Pick(ctx, events.Usage, sequences, needle, choose, ahead) {
			if err != nil {
				yield(step{}, err)
				return
			}
			for _, r := range p.Records {
				if !yield(step{record: r}, nil) {
					return
				}
			}
			messages++
			bytes += p.Bytes
			reach := min(aloneBytes, int(min(p.Sequence-before, aloneBytes))*bytes/messages)
			before = p.Sequence
			cost := max(p.Lines, reach*scanned/pageBytes)
			work += cost
			found += len(p.Records)
			if !yield(step{passed: spot{p.Sequence, whole}, work: cost}, nil) {
				return
			}
		}
		if rest <= to {
			q.read(ctx, events.Usage, rest, to)(yield)
		}
	}
}

// chooser looks for what is asked for in the bytes of a line, which is much cheaper
// than to decode it. It may let others through.
func (q *query) chooser(ctx context.Context) (needle []byte, choose ledger.Chooser) {
	var parts [][]byte
	for _, s := range []string{q.f.Key, q.f.Endpoint, q.f.Owner} {
		if s != "" && literal(s) {
			parts = append(parts, []byte(s))
		}
	}
	if len(q.f.Types) == 1 {
		parts = append(parts, []byte(q.f.Types[0]))
	}
	if len(parts) > 0 {
		needle, parts = parts[0], parts[1:]
	}
	return needle, func(line []byte) (bool, error) {
		for _, p := range parts {
			if !bytes.Contains(line, p) {
				return false, nil
			}
		}
		if q.f.IP == "" {
			return true, nil
		}
		if !bytes.Contains(line, []byte(`source_ip`)) || bytes.Contains(line, []byte(`"source_ip":null`)) {
			return false, nil
		}
		box, ok := sourceIn(line)
		if !ok {
			return true, nil // decoding tells
		}
		return q.from(ctx, box)
	}
}

// literal says that every encoder of JSON leaves a text as it is.
func literal(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.' {
			continue
		}
		if c != '/' && c != ':' && c != '~' && c != '@' && c != '=' && c != ',' {
			return false
		}
	}
	return true
}

// sourceIn finds the sealed source of a line as events.Encode writes it; false: the
// line has none, or not in that form.
func sourceIn(line []byte) (*events.Sealed, bool) {
	_, rest, ok := bytes.Cut(line, []byte(`"source_ip":{"key":"`))
	if !ok {
		return nil, false
	}
	key, rest, ok := bytes.Cut(rest, []byte(`","box":"`))
	if !ok {
		return nil, false
	}
	box, _, ok := bytes.Cut(rest, []byte(`"}`))
	if !ok || bytes.ContainsAny(key, `"\`) || bytes.ContainsAny(box, `"\`) {
		return nil, false
	}
	return &events.Sealed{Key: string(key), Box: string(box)}, true
}

// from says whether a sealed source is the address that is asked for. What cannot be
// opened any more is nobody's.
func (q *query) from(ctx context.Context, s *events.Sealed) (bool, error) {
	if s == nil {
		return false, nil
	}
	if since, gone := q.erased.Load(s.Key); gone && time.Since(since.(time.Time)) < goneFor {
		return false, nil
	}
	plain, err := q.open.Open(ctx, s)
	switch {
	case errors.Is(err, seal.ErrTampered):
		return false, nil
	case errors.Is(err, seal.ErrErased):
		if keys, ok := q.open.(*seal.Keys); ok {
			if _, ok, err := keys.Mark(ctx, s.Key); err == nil && !ok {
				q.erased.Store(s.Key, time.Now())
			}
		}
		return false, nil
	case err != nil:
		return false, fmt.Errorf("open a source address: %w", err)
	}
	return slices.Contains(q.forms, projections.Address(plain)), nil
}
