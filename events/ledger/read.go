package ledger

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// message is one stored message.
type message struct {
	subject  string
	sequence uint64
	header   nats.Header
	body     []byte
}

func (m *message) number(header string) uint64 {
	n, _ := strconv.ParseUint(m.header.Get(header), 10, 64)
	return n
}

type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
}

// get reads one message from the stream's leader, so it sees every acknowledged
// write. It fails with an error for which isNotFound holds.
func (l *Ledger) get(ctx context.Context, stream string, r getRequest) (*message, error) {
	var answer struct {
		Message struct {
			Subject  string    `json:"subject"`
			Sequence uint64    `json:"seq"`
			Header   []byte    `json:"hdrs"`
			Data     string    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := l.api(ctx, "STREAM.MSG.GET."+stream, r, &answer); err != nil {
		return nil, err
	}
	m := &message{subject: answer.Message.Subject, sequence: answer.Message.Sequence}
	var err error
	if m.body, err = base64.StdEncoding.DecodeString(answer.Message.Data); err != nil {
		return nil, err
	}
	if len(answer.Message.Header) > 0 {
		if m.header, err = nats.DecodeHeadersMsg(answer.Message.Header); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ErrNotFound says that there is no message at a place.
var ErrNotFound = errors.New("no message there")

// At reads the records of one message: one, or the lines of a page. It fails
// with [ErrNotFound].
func (l *Ledger) At(ctx context.Context, stream string, sequence uint64) ([]events.Record, error) {
	m, err := l.stored(ctx, stream, sequence)
	if err != nil {
		return nil, err
	}
	records, err := decode(nil, stream, sequence, m.subject, m.body)
	if refusal, ok := errors.AsType[*RefusalError](err); ok {
		return nil, l.refuse(stream, refusal)
	}
	return records, err
}

// Line reads the record at one line of a message, and decodes no other. It fails
// with [ErrNotFound], also where the message has not so many lines.
func (l *Ledger) Line(ctx context.Context, stream string, sequence uint64, line int) (events.Record, error) {
	m, err := l.stored(ctx, stream, sequence)
	if err != nil {
		return events.Record{}, err
	}
	body, rest, more := m.body, []byte(nil), line >= 0 && (line == 0 || stream == events.Usage)
	if stream == events.Usage {
		body, rest, _ = bytes.Cut(m.body, []byte("\n"))
	}
	for n := 0; n < line && more; n++ {
		more = len(rest) > 0
		body, rest, _ = bytes.Cut(rest, []byte("\n"))
	}
	if !more {
		return events.Record{}, fmt.Errorf("%s at %d, line %d: %w", stream, sequence, line, ErrNotFound)
	}
	e, err := decodeOne(stream, sequence, line, m.subject, body)
	if refusal, ok := errors.AsType[*RefusalError](err); ok {
		return events.Record{}, l.refuse(stream, refusal)
	}
	return events.Record{Stream: stream, Sequence: sequence, Line: line, Subject: m.subject, Body: body, Event: e}, err
}

// stored reads one message. It fails with [ErrNotFound].
func (l *Ledger) stored(ctx context.Context, stream string, sequence uint64) (*message, error) {
	m, err := l.direct(ctx, stream, fmt.Appendf(nil, `{"seq":%d}`, sequence))
	if err == nil && m.sequence != sequence {
		err = ErrNotFound
	}
	if err != nil {
		// A replica may be behind; the leader is not.
		m, err = l.get(ctx, stream, getRequest{Seq: sequence})
	}
	if isNotFound(err) {
		return nil, fmt.Errorf("%s at %d: %w", stream, sequence, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", stream, sequence, err)
	}
	return m, nil
}

// direct reads one message from any replica, without base64.
func (l *Ledger) direct(ctx context.Context, stream string, request []byte) (*message, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := l.lane().RequestWithContext(ctx, "$JS.API.DIRECT.GET."+stream, request)
	if err != nil {
		return nil, err
	}
	sequence, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if m.Header.Get("Status") != "" || err != nil {
		return nil, ErrNotFound
	}
	return &message{m.Header.Get(jetstream.SubjectHeader), sequence, m.Header, m.Data}, nil
}

// Last reads the last fact on a LEDGER subject, as of every acknowledged write.
func (l *Ledger) Last(ctx context.Context, subject string) (events.Record, bool, error) {
	m, err := l.get(ctx, events.Ledger, getRequest{LastFor: subject})
	if isNotFound(err) {
		return events.Record{}, false, nil
	}
	if err != nil {
		return events.Record{}, false, fmt.Errorf("read the last fact on %s: %w", subject, err)
	}
	records, err := decode(nil, events.Ledger, m.sequence, m.subject, m.body)
	if err != nil {
		return events.Record{}, false, err
	}
	return records[0], true, nil
}

// LastOn is the sequence of the last message on an exact subject of a stream, as of
// every acknowledged write; 0: there is none.
func (l *Ledger) LastOn(ctx context.Context, stream, subject string) (uint64, error) {
	m, err := l.get(ctx, stream, getRequest{LastFor: subject})
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the last message on %s: %w", subject, err)
	}
	return m.sequence, nil
}

// LastFed is how far FEED is: its own last sequence and the LEDGER sequence of
// the fact there; both 0 when it is empty.
func (l *Ledger) LastFed(ctx context.Context) (feed, ledger uint64, err error) {
	feed, err = l.Head(ctx, events.Feed)
	if err != nil || feed == 0 {
		return 0, 0, err
	}
	m, err := l.get(ctx, events.Feed, getRequest{Seq: feed})
	if err != nil {
		return 0, 0, fmt.Errorf("read the last message of %s: %w", events.Feed, err)
	}
	return feed, m.number(sequenceHeader), nil
}

// Head is the last sequence of a stream, 0 for an empty one, as its leader knows it.
func (l *Ledger) Head(ctx context.Context, stream string) (uint64, error) {
	info, err := l.timelyInfo(ctx, stream)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// First is the first sequence of a stream, also when it is empty.
func (l *Ledger) First(ctx context.Context, stream string) (uint64, error) {
	info, err := l.timelyInfo(ctx, stream)
	if err != nil {
		return 0, err
	}
	return max(info.State.FirstSeq, 1), nil
}

// Extent is how much a stream holds, as its leader knows it.
type Extent struct {
	First, Last uint64 // sequences; First is behind Last where it is empty
	Messages    uint64
	Bytes       uint64 // with what the server stores around them
}

// Extent answers how much a stream holds.
func (l *Ledger) Extent(ctx context.Context, stream string) (Extent, error) {
	info, err := l.timelyInfo(ctx, stream)
	if err != nil {
		return Extent{}, err
	}
	return Extent{max(info.State.FirstSeq, 1), info.State.LastSeq, info.State.Msgs, info.State.Bytes}, nil
}

func (l *Ledger) timelyInfo(ctx context.Context, stream string) (*streamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, cluster.AskTime)
	defer cancel()
	info, err := l.info(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("ask the server about stream %s: %w", stream, err)
	}
	return info, nil
}

// Read yields the records from sequence from to sequence to (0: the head as it
// is now), inclusive, of the given subjects only where there are any, and ends.
func (l *Ledger) Read(ctx context.Context, stream string, from, to uint64, subjects ...string) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		var info *streamInfo
		err := cluster.Ask(ctx, func(ctx context.Context) (err error) { info, err = l.timelyInfo(ctx, stream); return err })
		if err != nil {
			yield(events.Record{}, err)
			return
		}
		if last := info.State.LastSeq; to == 0 || to > last {
			to = last
		}
		from = max(from, info.State.FirstSeq, 1)
		if from > to {
			return
		}
		r := &reader{l: l, stream: stream, next: from, to: to, subjects: subjects}
		for records, err := range r.batches(ctx, 1024, 0) {
			for _, rec := range records {
				if !yield(rec, nil) {
					return
				}
			}
			if err != nil {
				yield(events.Record{}, err)
				return
			}
		}
	}
}

// decode appends the records of one message to dst, after checking that each
// fact belongs on the subject it is stored on. The error is a [*RefusalError],
// or an [*events.UnknownError] with its place.
func decode(dst []events.Record, stream string, sequence uint64, subject string, body []byte) ([]events.Record, error) {
	if stream == events.DLQ {
		return append(dst, events.Record{Stream: stream, Sequence: sequence, Subject: subject, Body: body}), nil
	}
	if stream != events.Usage {
		e, err := decodeOne(stream, sequence, 0, subject, body)
		if err != nil {
			return dst, err
		}
		return append(dst, events.Record{Stream: stream, Sequence: sequence, Subject: subject, Body: body, Event: e}), nil
	}
	for i, line := range events.Lines(body) {
		e, err := decodeOne(stream, sequence, i, subject, line)
		if err != nil {
			return dst, err
		}
		dst = append(dst, events.Record{Stream: stream, Sequence: sequence, Line: i, Subject: subject, Body: line, Event: e})
	}
	return dst, nil
}

func decodeOne(stream string, sequence uint64, line int, subject string, body []byte) (events.Envelope, error) {
	e, err := events.DecodeInPlace(body) // a message is nobody else's
	if _, ok := errors.AsType[*events.UnknownError](err); ok {
		return e, fmt.Errorf("%s at sequence %d, line %d: %w", stream, sequence, line, err)
	}
	if err != nil {
		return e, &RefusalError{[]Finding{{stream, fmt.Sprintf("the message at sequence %d, line %d, is not a fact: %v", sequence, line, err),
			"Its bytes are damaged, or something else than keyledger wrote to the stream.", restore}}}
	}
	if !belongs(stream, subject, e) {
		return e, &RefusalError{[]Finding{{stream, fmt.Sprintf("the fact at sequence %d, line %d, is about another keyspace, owner or key than its subject %s says", sequence, line, subject),
			"Something else than keyledger wrote to the stream, or a data file was edited.", restore}}}
	}
	return e, nil
}

func belongs(stream, subject string, e events.Envelope) bool {
	switch stream {
	case events.Ledger:
		return subject == events.Subject(e.Keyspace, e.Owner, e.Key)
	case events.Feed:
		return subject == events.FeedSubject(e)
	case events.Ops:
		return subject == events.OpsSubject(e)
	case events.Usage:
		return strings.HasPrefix(subject, pageSubject(e.Keyspace, ""))
	}
	return false
}
