// Package ledger is the only door to JetStream. It opens the streams of
// section 4 of the contract, appends facts to them and follows them.
//
// It promises:
//
//   - [Open] refuses with a [*RefusalError] on any doubt about history: a stream
//     that is gone, trimmed, shorter than what somebody has already read, or
//     configured otherwise. The message says what was found and what to do.
//   - An append that returned a sequence is on the server's disk. One that
//     returned [ErrConflict] stored nothing. A lost answer is resolved by reading
//     the subject back; only when the context ends first is the outcome unknown
//     ([ErrUnknownOutcome]).
//   - A follower yields every record of a stream in order, without a gap, over
//     reconnects and restarts of the server, or ends with an error.
//   - [Pages] keeps uses in bounded memory while the server is away, and
//     declares those it could not keep.
//
// How it can disappoint: a server that does not sync every write loses
// acknowledged facts when the power fails, and nothing here can see that
// afterwards unless somebody remembers how far the stream was; that is what
// [Options.Known] and [Options.HeadFile] are for. Damage inside a block file is
// found by whoever reads through it, not by Open: call [Ledger.Check], or fold
// the stream from its start, before trusting it. Once any reader has found
// damage, the ledger refuses to append to that stream.
package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
)

var (
	// ErrConflict says that the subject is not at the expected sequence and
	// that nothing was stored. On three replicas it can be spurious: reload,
	// decide again, and only then tell anybody.
	ErrConflict = errors.New("somebody else wrote first")

	// ErrUnknownOutcome says that the context ended before it was known whether
	// the fact was stored.
	ErrUnknownOutcome = errors.New("it is not known whether this was stored: no answer from the server in time; read before repeating it")

	// ErrUnavailable says that no server took the fact. Nothing was stored.
	ErrUnavailable = errors.New("the event store cannot be reached; nothing was stored")

	// ErrTooLarge says that a fact or page exceeds what the server takes in one
	// message.
	ErrTooLarge = errors.New("larger than the server's max_payload")

	// ErrPruned says that a part of USAGE was pruned while it was being read. It
	// was recorded before; what is left can be read.
	ErrPruned = errors.New("pruned while it was being read: begin again, at what is left")

	// ErrClosed says that the ledger or the page writer was closed.
	ErrClosed = errors.New("closed")
)

// Position is how far somebody has read or appended, and what stood there.
type Position struct {
	Name     string // whose: a projection, a checkpoint, …; for messages
	Stream   string
	Sequence uint64 // 0: nothing yet
	EventID  string // of the fact at Sequence (of the last line of a page); empty: not compared
}

// WatchEvery is how often the streams are looked at again, unless Options say otherwise.
const WatchEvery = 5 * time.Second

// Options of [Open]. The zero value is for one server that syncs every write,
// except that somebody must say so in SyncAlways.
type Options struct {
	// Replicas of each stream: 1 (also for 0) or 3.
	Replicas int

	// Known is what others have stored. A stream that ends before a known
	// position, or holds another fact there, is refused.
	Known []Position

	// SyncAlways reads back whether the server syncs every write to disk. Open
	// refuses when it says no, fails, or is nil, unless AllowUnverifiedSync.
	SyncAlways          func(context.Context) (bool, error)
	AllowUnverifiedSync bool

	// ReadOnly never creates a stream. For verifiers and gateways, which start
	// after the service did.
	ReadOnly bool

	// HeadFile is where this process remembers the head of each stream, as one
	// more known position. It is written at most once a second, by rename.
	// Empty: not kept.
	HeadFile string

	// WatchEvery is how often the streams are looked at again while open;
	// 0 is 5 s. What Open would refuse then stops appends and followers too.
	WatchEvery time.Duration

	Log *slog.Logger // nil: slog.Default()
}

// Ledger is an open set of streams. It is safe for concurrent use.
type Ledger struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	o   Options
	log *slog.Logger

	// created is when each stream came to be, as seen by Open. A stream with
	// another time was replaced behind our back.
	created map[string]time.Time

	batches chan struct{} // a slot per atomic batch in flight; the server allows 50 per stream, for all processes

	group group // of appends to LEDGER

	pages sync.Map // subject of USAGE -> *pageHead

	lanes lanes // for reading single messages

	because atomic.Pointer[func() error] // see Hold

	mu       sync.Mutex      // guards what follows
	link     context.Context // ends when the connection is lost; then another one begins
	unlink   context.CancelFunc
	heads    map[string]head          // the furthest place seen in each stream
	moved    bool                     // since the head file was written
	refused  map[string]*RefusalError // streams in doubt
	doubt    chan struct{}            // closed, and replaced, when refused grows
	begins   uint64                   // where USAGE may begin at the latest, as OPS was last read
	behind   map[string]int           // consecutive looks at which a stream was shorter than its head
	stop     context.CancelFunc
	finished sync.WaitGroup
}

type head struct {
	Sequence uint64 `json:"sequence"`
	EventID  string `json:"event_id"`
}

// Open checks the streams and creates those that are missing where nothing is
// known to have been in them. It fails with a [*RefusalError] that lists
// everything found. Close MUST be called.
func Open(ctx context.Context, nc *nats.Conn, o Options) (*Ledger, error) {
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.WatchEvery == 0 {
		o.WatchEvery = WatchEvery
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		nc: nc, js: js, o: o, log: o.Log,
		created: map[string]time.Time{},
		batches: make(chan struct{}, 12),
		heads:   map[string]head{},
		refused: map[string]*RefusalError{},
		behind:  map[string]int{},
		doubt:   make(chan struct{}),
	}
	l.relink()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	if err := l.open(ctx); err != nil {
		return nil, err
	}
	background, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.finished.Go(func() { l.watch(background) })
	return l, nil
}

// Close writes the head file a last time. Followers and appends of others go on
// until their context ends; the connection stays the caller's.
func (l *Ledger) Close() error {
	l.stop()
	l.finished.Wait()
	l.lanes.close()
	err := l.saveHeads()
	l.mu.Lock()
	l.unlink()
	l.link = context.Background()
	l.mu.Unlock()
	return err
}

// Err is the [*RefusalError] of a stream in doubt, or nil.
func (l *Ledger) Err(stream string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.refused[stream]; r != nil {
		return r
	}
	return nil
}

// Doubts are the refusals of all streams in doubt, found by a follower or by
// the regular look at the streams.
func (l *Ledger) Doubts() []*RefusalError {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*RefusalError
	for _, s := range streamNames {
		if r := l.refused[s]; r != nil {
			all = append(all, r)
		}
	}
	return all
}

// refuse marks a stream as in doubt, for good, and returns the first refusal.
func (l *Ledger) refuse(stream string, r *RefusalError) *RefusalError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first := l.refused[stream]; first != nil {
		return first
	}
	l.refused[stream] = r
	close(l.doubt)
	l.doubt = make(chan struct{})
	l.log.Error("stream refused", "stream", stream, "error", r)
	return r
}

// doubted is closed when the next stream comes into doubt.
func (l *Ledger) doubted() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.doubt
}

// seen moves the remembered head forward.
func (l *Ledger) seen(stream string, sequence uint64, eventID string) {
	l.mu.Lock()
	if sequence > l.heads[stream].Sequence {
		l.heads[stream] = head{sequence, eventID}
		l.moved = true
	}
	l.mu.Unlock()
}

func (l *Ledger) watch(ctx context.Context) {
	save := time.NewTicker(time.Second)
	defer save.Stop()
	look := time.NewTicker(l.o.WatchEvery)
	defer look.Stop()
	status := l.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer l.nc.RemoveStatusListener(status)
	for {
		select {
		case <-ctx.Done():
			return
		case <-save.C:
			if err := l.saveHeads(); err != nil {
				l.log.Warn("remembering the heads of the streams failed", "file", l.o.HeadFile, "error", err)
			}
		case <-look.C:
			l.look(ctx)
		case <-status:
			l.relink() // answers under way will not come any more
		}
	}
}

func (l *Ledger) relink() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unlink != nil {
		l.unlink()
	}
	l.link, l.unlink = context.WithCancel(context.Background())
}

// linked is ctx that also ends when the connection is lost, and with it every
// answer under way.
func (l *Ledger) linked(ctx context.Context) (context.Context, context.CancelFunc) {
	l.mu.Lock()
	link := l.link
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(link, cancel)
	return ctx, func() { stop(); cancel() }
}

// look repeats the checks of Open that can change while open. A server that
// does not answer is no finding.
func (l *Ledger) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.o.WatchEvery)
	defer cancel()
	l.mu.Lock()
	heads := maps.Clone(l.heads)
	l.mu.Unlock()
	for _, name := range streamNames {
		if l.Err(name) != nil {
			continue
		}
		info, err := l.info(ctx, name)
		if err != nil && !isNotFound(err) {
			continue
		}
		var findings []Finding
		switch {
		case err != nil:
			findings = append(findings, goneFinding(name, heads[name].Sequence, "this process"))
		case !info.Created.Equal(l.created[name]):
			findings = append(findings, Finding{name,
				fmt.Sprintf("the stream was created at %s; the one this process opened was created at %s", info.Created.Format(time.RFC3339), l.created[name].Format(time.RFC3339)),
				"Somebody deleted or replaced it while the service was running.", restore})
		default:
			findings = append(configFindings(name, info.Config, l.o.Replicas), l.stateFindings(ctx, name, info)...)
			// A leader that was just elected may not have applied everything yet.
			if last := info.State.LastSeq; last < heads[name].Sequence {
				if l.behind[name]++; l.behind[name] >= 3 {
					findings = append(findings, behindFinding(name, last, Position{"this process", name, heads[name].Sequence, ""}))
				}
			} else {
				l.behind[name] = 0
			}
		}
		if len(findings) > 0 {
			l.refuse(name, &RefusalError{findings})
		}
	}
}

// api sends a request to JetStream's API and decodes the answer into out. An
// error of the server is a [*jetstream.APIError].
func (l *Ledger) api(ctx context.Context, subject string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	linked, cancel := l.linked(ctx)
	defer cancel()
	m, err := l.nc.RequestWithContext(linked, "$JS.API."+subject, body)
	if err != nil && linked.Err() != nil && ctx.Err() == nil {
		return nats.ErrDisconnected
	}
	if err != nil {
		return err
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &failed); err != nil {
		return fmt.Errorf("answer of $JS.API.%s: %w", subject, err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	return json.Unmarshal(m.Data, out)
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == jetstream.JSErrCodeStreamNotFound || e.ErrorCode == jetstream.JSErrCodeMessageNotFound)
}

// eventID reads the id of a stored body without decoding the rest.
func eventID(body []byte) string {
	if rest, ok := bytes.CutPrefix(body, []byte(`{"id":"`)); ok { // as it is written
		if id, _, ok := bytes.Cut(rest, []byte(`"`)); ok && !bytes.ContainsRune(id, '\\') {
			return string(id)
		}
	}
	var id struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(body, &id) != nil {
		return ""
	}
	return id.ID
}

// lastID is the id of the last fact in a message.
func lastID(stream string, body []byte) string {
	if stream == events.DLQ {
		return ""
	}
	lines := events.Lines(body)
	return eventID(lines[len(lines)-1])
}
