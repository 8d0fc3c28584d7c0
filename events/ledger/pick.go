package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/keyledger/keyledger/events"
)

// Picked is what was chosen of one message.
type Picked struct {
	Sequence uint64
	Lines    int             // of the message
	Bytes    int             // likewise
	Records  []events.Record // those that were chosen, in order
}

// Chooser says whether a line is wanted. It is called from several goroutines, with
// a line as it is stored, before it is decoded.
type Chooser func(line []byte) (bool, error)

// pickWidth is how many messages are asked for ahead at most. More would be faster
// where they lie side by side, but the server reads 8 MiB for one that lies alone,
// and the last ones asked for may not be wanted any more.
const pickWidth = 4

// Pick reads the messages at these sequences, in their order, and decodes the
// lines that are chosen; lines without needle in them are not asked about, where
// there is one. It reads ahead, by little at first, and never by more messages than
// ahead says, where it is given: counting the one that is waited for, and asked
// before each. Messages that were pruned are passed over. An error ends it; those of [Ledger.At], and of sequences.
func (l *Ledger) Pick(ctx context.Context, stream string, sequences iter.Seq2[uint64, error], needle []byte, choose Chooser, ahead func() int) iter.Seq2[Picked, error] {
	return func(yield func(Picked, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var readers sync.WaitGroup
		defer readers.Wait()
		defer cancel()
		next, stop := iter.Pull2(sequences)
		defer stop()
		type slot chan func() (Picked, error)
		var asked []slot
		width, ended := 2, false
		var failed error // of sequences, after what was asked for
		for {
			for limit := 0; !ended && len(asked) < width; {
				if ahead != nil && limit == 0 {
					limit = max(ahead(), 1)
				}
				if ahead != nil && len(asked) >= limit {
					break
				}
				sequence, err, ok := next()
				if !ok || err != nil {
					ended, failed = true, err
					break
				}
				s := make(slot, 1)
				asked = append(asked, s)
				readers.Go(func() {
					p, err := l.pick(ctx, stream, sequence, needle, choose)
					s <- func() (Picked, error) { return p, err }
				})
			}
			if len(asked) == 0 {
				if failed != nil {
					yield(Picked{}, failed)
				}
				return
			}
			p, err := (<-asked[0])()
			asked = asked[1:]
			if errors.Is(err, ErrNotFound) {
				var first uint64
				if first, err = l.First(ctx, stream); err == nil && p.Sequence < first {
					continue
				}
				if err == nil {
					err = l.refuse(stream, &RefusalError{[]Finding{{stream, fmt.Sprintf("the message at sequence %d is missing or cannot be read", p.Sequence),
						"A data file is damaged, or messages were deleted.", restore}}})
				}
			}
			if !yield(p, err) || err != nil {
				return
			}
			width = min(2*width, pickWidth)
		}
	}
}

// pick reads one message.
func (l *Ledger) pick(ctx context.Context, stream string, sequence uint64, needle []byte, choose Chooser) (Picked, error) {
	p := Picked{Sequence: sequence}
	m, err := l.stored(ctx, stream, sequence)
	if err != nil {
		return p, err
	}
	p.Bytes = len(m.body)
	for line, body := range lines(m.body, needle, &p.Lines) {
		if choose != nil {
			if wanted, err := choose(body); err != nil || !wanted {
				if err != nil {
					return p, err
				}
				continue
			}
		}
		e, err := decodeOne(stream, sequence, line, m.subject, body)
		if refusal, ok := errors.AsType[*RefusalError](err); ok {
			return p, l.refuse(stream, refusal)
		}
		if err != nil {
			return p, err
		}
		p.Records = append(p.Records, events.Record{Stream: stream, Sequence: sequence, Line: line, Subject: m.subject, Body: body, Event: e})
	}
	return p, nil
}

// lines yields the lines of a page that contain needle, with their numbers, and
// counts them all.
func lines(page, needle []byte, count *int) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		*count = bytes.Count(page, []byte("\n")) + 1
		number := 0
		for len(page) > 0 {
			at := bytes.Index(page, needle)
			if at < 0 {
				return
			}
			begin := bytes.LastIndexByte(page[:at], '\n') + 1
			number += bytes.Count(page[:begin], []byte("\n"))
			line, rest, _ := bytes.Cut(page[begin:], []byte("\n"))
			if !yield(number, line) {
				return
			}
			number++
			page = rest
		}
	}
}
