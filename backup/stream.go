package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
)

const (
	chunk       = 256 << 10       // of a snapshot; below the least max_payload in use
	silence     = 2 * time.Minute // without a word from the server before it is given up
	endWithin   = 10 * time.Minute
	beginWithin = time.Minute     // for a server that can say where all consumers of a stream stand
	interest    = 5 * time.Second // a server that heard nothing of a restore for so long gives it up
	pullAtOnce  = 8 << 20
)

// call asks JetStream's API.
func call(ctx context.Context, nc *nats.Conn, subject string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, "$JS.API."+subject, body)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer from the server to $JS.API.%s: it is away, or this user may not ask that (docs/operators.md, Backup, names the user and its rights)", subject)
	}
	if err != nil {
		return err
	}
	return decoded(m.Data, out)
}

func decoded(answer []byte, out any) error {
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(answer, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// Names are the streams on the server that a backup takes, or that are in the way of
// a restore.
func Names(ctx context.Context, nc *nats.Conn) ([]string, error) {
	var all []string
	for {
		var page struct {
			Total   int      `json:"total"`
			Streams []string `json:"streams"`
		}
		if err := call(ctx, nc, "STREAM.NAMES", map[string]int{"offset": len(all)}, &page); err != nil {
			return nil, fmt.Errorf("list the streams: %w", err)
		}
		all = append(all, page.Streams...)
		if len(page.Streams) == 0 || len(all) >= page.Total {
			break
		}
	}
	var ours []string
	for _, n := range all {
		switch n {
		case events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ:
			ours = append(ours, n)
		default:
			if strings.HasPrefix(n, buckets) {
				ours = append(ours, n)
			}
		}
	}
	return ours, nil
}

// survey says what is to be taken, and how many messages that are now.
func survey(ctx context.Context, nc *nats.Conn) (names []string, messages int64, err error) {
	there, err := Names(ctx, nc)
	if err != nil {
		return nil, 0, err
	}
	if names, err = order(there); err != nil {
		return nil, 0, err
	}
	for _, n := range names {
		var info struct {
			State struct {
				Messages int64 `json:"messages"`
			} `json:"state"`
		}
		if err := call(ctx, nc, "STREAM.INFO."+n, nil, &info); err != nil {
			return nil, 0, fmt.Errorf("ask about stream %s: %w", n, err)
		}
		messages += info.State.Messages
	}
	return names, messages, nil
}

// firstOf is the sequence that a stream begins with.
func firstOf(ctx context.Context, nc *nats.Conn, name string) (uint64, error) {
	var info struct {
		State struct {
			First uint64 `json:"first_seq"`
		} `json:"state"`
	}
	if err := call(ctx, nc, "STREAM.INFO."+name, nil, &info); err != nil {
		return 0, fmt.Errorf("ask about stream %s: %w", name, err)
	}
	return info.State.First, nil
}

// snapshot copies a stream into a member of the archive.
func snapshot(ctx context.Context, nc *nats.Conn, name string, a *archive) (*Stream, error) {
	c, err := begin(ctx, nc, name)
	if err != nil {
		return nil, err
	}
	defer c.end()
	s := &Stream{Name: name, Member: "streams/" + name + ".snapshot", Config: c.Config, State: c.State}
	s.Bytes, s.SHA256, err = a.add(s.Member, func(w io.Writer) error {
		for {
			chunk, err := c.next(ctx)
			if len(chunk) == 0 || err != nil {
				return err
			}
			if _, err := w.Write(chunk); err != nil {
				return err
			}
		}
	})
	return s, err
}

// copying is a snapshot that the server sends.
type copying struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`

	sub  *nats.Subscription
	held [][]byte // chunks that have come and were not asked for
}

// begin has the server send a snapshot, and waits until it is under way. The consumers
// come first, and a cluster's server gives up when it cannot hear of one: readers come
// and go, so it is asked again.
func begin(ctx context.Context, nc *nats.Conn, name string) (*copying, error) {
	for first := time.Now(); ; {
		c, err := ask(ctx, nc, name)
		if err != nil {
			return nil, err
		}
		for err == nil && len(c.held) < 2 { // of which one may hold but consumers
			var chunk []byte
			chunk, err = c.receive(ctx)
			c.held = append(c.held, chunk)
			if len(chunk) == 0 {
				break
			}
		}
		if err == nil {
			return c, nil
		}
		c.end()
		if _, ok := errors.AsType[*gaveUpError](err); !ok || time.Since(first) > beginWithin {
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func ask(ctx context.Context, nc *nats.Conn, name string) (*copying, error) {
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	c := &copying{sub: sub}
	err = sub.SetPendingLimits(-1, -1) // the server sends a window of 8 MiB
	if err == nil {
		// The server checks every message against its hash before it begins.
		err = call(ctx, nc, "STREAM.SNAPSHOT."+name, map[string]any{"deliver_subject": inbox, "jsck": true, "chunk_size": chunk}, c)
	}
	if err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

func (c *copying) end() { _ = c.sub.Unsubscribe() }

// gaveUpError is the server's word that it does not go on.
type gaveUpError struct{ status, why string }

func (e *gaveUpError) Error() string { return fmt.Sprintf("the server says %s %s", e.status, e.why) }

// next is the next chunk; empty: there are no more.
func (c *copying) next(ctx context.Context) ([]byte, error) {
	if len(c.held) > 0 {
		first := c.held[0]
		c.held = c.held[1:]
		return first, nil
	}
	return c.receive(ctx)
}

func (c *copying) receive(ctx context.Context) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := c.sub.NextMsgWithContext(wait)
	if err != nil {
		return nil, fmt.Errorf("the server stopped sending: %w", err)
	}
	if status := m.Header.Get("Status"); status != "" && status != "204" {
		return nil, &gaveUpError{status, m.Header.Get("Description")}
	}
	if len(m.Data) > 0 && m.Reply != "" {
		return m.Data, m.Respond(nil)
	}
	return m.Data, nil
}

// restoreStream makes a stream of a snapshot. label is added to its metadata.
func restoreStream(ctx context.Context, nc *nats.Conn, s *Stream, r io.Reader, replicas int, label map[string]string) error {
	config := map[string]any{}
	if err := json.Unmarshal(s.Config, &config); err != nil {
		return fmt.Errorf("its configuration in the manifest: %w", err)
	}
	config["num_replicas"] = replicas
	if len(label) > 0 {
		meta, _ := config["metadata"].(map[string]any)
		if meta == nil {
			meta = map[string]any{}
		}
		for k, v := range label {
			meta[k] = v
		}
		config["metadata"] = meta
	}
	var begun struct {
		DeliverSubject string `json:"deliver_subject"`
	}
	if err := call(ctx, nc, "STREAM.RESTORE."+s.Name, map[string]any{"config": config, "state": s.State}, &begun); err != nil {
		return err
	}
	send := func(b []byte, within time.Duration) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		for first := time.Now(); ; {
			m, err := nc.RequestWithContext(ctx, begun.DeliverSubject, b)
			if err == nil {
				return m.Data, nil
			}
			// In a cluster the answer may be here before the other server's subscription
			// is: nobody got the chunk, and it may be sent again.
			if !errors.Is(err, nats.ErrNoResponders) || time.Since(first) > interest {
				return nil, fmt.Errorf("the server stopped answering: %w", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	buf := make([]byte, chunk)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			answer, err := send(buf[:n], silence)
			if err != nil {
				return err
			}
			if len(answer) > 0 {
				if err := decoded(answer, nil); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	answer, err := send(nil, endWithin)
	if err != nil {
		return err
	}
	return decoded(answer, nil)
}

// content is what reading a stream through has found.
type content struct {
	First, Last, Messages, Events uint64
	LastEvent                     string
	LastTime                      events.Time
	Digest                        string
}

func (s *Stream) take(c *content) {
	s.First, s.Last, s.Messages, s.Events = c.First, c.Last, c.Messages, c.Events
	s.LastEvent, s.LastTime, s.Digest = c.LastEvent, c.LastTime, c.Digest
}

func (s *Stream) differs(c *content) error {
	var have Stream
	have.take(c)
	if have.Digest == s.Digest && have.First == s.First && have.Last == s.Last && have.Messages == s.Messages {
		return nil
	}
	return fmt.Errorf("stream %s is not what was backed up: it has %d messages from sequence %d to %d with digest %s, the manifest says %d from %d to %d with %s",
		s.Name, c.Messages, c.First, c.Last, c.Digest, s.Messages, s.First, s.Last, s.Digest)
}

// readThrough reads a stream from its first message to its last and hashes all that
// there is to a message. A stream of events has no gap and holds events.
func readThrough(ctx context.Context, nc *nats.Conn, name string, progress func(int64)) (*content, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	state := stream.CachedInfo().State
	c := &content{First: state.FirstSeq, Last: state.LastSeq}
	all := sha256.New()
	bucket := strings.HasPrefix(name, buckets)
	if !bucket && state.NumDeleted > 0 {
		return nil, fmt.Errorf("%d messages between its first and its last are missing", state.NumDeleted)
	}
	if state.Msgs > 0 {
		consumer, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
		if err != nil {
			return nil, err
		}
		messages, err := consumer.Messages(jetstream.PullMaxBytes(pullAtOnce))
		if err != nil {
			return nil, err
		}
		defer messages.Stop()
		for c.Messages < state.Msgs {
			wait, cancel := context.WithTimeout(ctx, silence)
			m, err := messages.Next(jetstream.NextContext(wait))
			cancel()
			if err != nil {
				return nil, fmt.Errorf("after %d of its %d messages: %w", c.Messages, state.Msgs, err)
			}
			at, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			if want := state.FirstSeq + c.Messages; !bucket && at.Sequence.Stream != want {
				return nil, fmt.Errorf("sequence %d is followed by %d", want-1, at.Sequence.Stream)
			}
			c.Messages++
			hashMessage(all, at.Sequence.Stream, at.Timestamp, m.Subject(), m.Headers(), m.Data())
			c.LastTime = events.At(at.Timestamp)
			if !bucket && name != events.DLQ {
				lines := events.Lines(m.Data())
				c.Events += uint64(len(lines))
				if at.Sequence.Stream == state.LastSeq {
					e, err := events.Decode(lines[len(lines)-1])
					if err != nil {
						return nil, fmt.Errorf("sequence %d: %w", at.Sequence.Stream, err)
					}
					c.LastEvent = e.ID
				}
			}
			if c.Messages%1000 == 0 || c.Messages == state.Msgs {
				progress(int64(c.Messages))
			}
		}
	}
	c.Digest = hex.EncodeToString(all.Sum(nil))
	return c, nil
}

// hashMessage adds a message to a digest, each part with its length before it; the
// names of a header sorted.
func hashMessage(h hash.Hash, sequence uint64, at time.Time, subject string, header nats.Header, data []byte) {
	var n [8]byte
	number := func(v uint64) {
		binary.BigEndian.PutUint64(n[:], v)
		h.Write(n[:])
	}
	text := func(s string) {
		number(uint64(len(s)))
		io.WriteString(h, s)
	}
	number(sequence)
	number(uint64(at.UnixNano()))
	text(subject)
	number(uint64(len(header)))
	for _, name := range slices.Sorted(maps.Keys(header)) {
		text(name)
		number(uint64(len(header[name])))
		for _, v := range header[name] {
			text(v)
		}
	}
	number(uint64(len(data)))
	h.Write(data)
}

// checkpoints are what the audit log's bucket remembers as signed.
func checkpoints(ctx context.Context, nc *nats.Conn, m *Manifest) ([]string, error) {
	all := []string{}
	if m.Stream(logBucket) == nil {
		return all, nil
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, strings.TrimPrefix(logBucket, "KV_"))
	if err != nil {
		return nil, err
	}
	for _, stream := range []string{events.Ledger, events.Usage, events.Ops, events.Feed} {
		v, err := kv.Get(ctx, "checkpoint."+strings.ToLower(stream))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var kept struct {
			Checkpoint string `json:"checkpoint"`
		}
		if err := json.Unmarshal(v.Value(), &kept); err != nil || kept.Checkpoint == "" {
			return nil, fmt.Errorf("the checkpoint of %s in the bucket of the audit log is not as it was written", stream)
		}
		all = append(all, kept.Checkpoint)
	}
	return all, nil
}
