package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Finding is one reason to doubt a stream.
type Finding struct {
	Stream  string
	Problem string // what was found, and what was expected
	Means   string // what that says about the history
	Fix     string // what to do
}

// What a finding means also tells its kind.
const (
	meansGone     = "It was deleted, its data directory was lost, or this is another server or account than before."
	meansEnds     = "Its newest messages were lost: by a power failure on a server that does not sync every write, by a restore from an older backup, or because the stream was made anew."
	meansBegins   = "Its beginning was removed outside of the recorded retention: by a limit, a purge, or the loss of a data file."
	meansOther    = "This is another history: the stream was made anew and filled again, or another server's or environment's stream."
	meansSettings = "Such a setting can drop or rewrite facts without a trace. Whether it already did shows in the other findings, or in `keyledger audit verify`."
)

// Kind is what was done to a stream, as far as a finding tells.
type Kind string

// The kinds of findings.
const (
	KindGone     Kind = "gone"     // the stream does not exist
	KindBegins   Kind = "begins"   // its beginning is gone
	KindEnds     Kind = "ends"     // its end is gone
	KindOther    Kind = "other"    // another history stands in it
	KindSettings Kind = "settings" // it is configured otherwise
	KindDamaged  Kind = "damaged"  // anything else: messages are missing or cannot be read
)

// Kind of a finding.
func (f Finding) Kind() Kind {
	switch f.Means {
	case meansGone:
		return KindGone
	case meansBegins:
		return KindBegins
	case meansEnds:
		return KindEnds
	case meansOther:
		return KindOther
	case meansSettings:
		return KindSettings
	}
	return KindDamaged
}

// RefusalError says why the ledger was not opened, or is no longer appended to
// and followed. It lists everything that was found at once.
type RefusalError struct{ Findings []Finding }

func (e *RefusalError) Error() string {
	var b strings.Builder
	b.WriteString("the event streams are not as they must be; nothing was changed")
	for i, f := range e.Findings {
		fmt.Fprintf(&b, "\n%s: %s", f.Stream, f.Problem)
		// Many remember the same loss: what it means is said once.
		if i+1 < len(e.Findings) && e.Findings[i+1].Means == f.Means && e.Findings[i+1].Fix == f.Fix {
			continue
		}
		fmt.Fprintf(&b, "\n  What it means: %s\n  What to do: %s", f.Means, f.Fix)
	}
	return b.String()
}

const restore = "Keep a copy of the server's data directory as it is now. Then restore from a backup (`keyledger restore`) or from an intact replica, and start again."

func goneFinding(stream string, sequence uint64, who string) Finding {
	return Finding{stream, fmt.Sprintf("the stream does not exist, although %s has seen %d of its messages", who, sequence),
		meansGone,
		"Check that the server's address, account and data directory are the right ones. If they are: " + restore}
}

func behindFinding(stream string, last uint64, p Position) Finding {
	return Finding{stream, fmt.Sprintf("it ends at sequence %d, but %s stands at %d", last, p.Name, p.Sequence),
		meansEnds,
		restore}
}

// open looks at every stream, creates those that may be, and looks again.
func (l *Ledger) open(ctx context.Context) error {
	var findings []Finding
	findings = append(findings, l.syncFindings(ctx)...)
	known := slices.Clone(l.o.Known)
	remembered, err := l.loadHeads()
	if err != nil {
		findings = append(findings, Finding{"head file", err.Error(), "It cannot be told how far the streams were when this process last ran.",
			"If the file is damaged, move it away; the other positions are still compared."})
	}
	known = append(known, remembered...)

	infos := map[string]*streamInfo{}
	var missing []string
	// What speaks of LEDGER is read before LEDGER: others write meanwhile, and a
	// fact that reached both in between is nothing that was lost.
	for _, name := range slices.Backward(streamNames) {
		var info *streamInfo
		err := cluster.Ask(ctx, func(ctx context.Context) (err error) { info, err = l.info(ctx, name); return err })
		switch {
		case isNotFound(err):
			missing = append(missing, name)
		case err != nil:
			return fmt.Errorf("ask the server about stream %s: %w (JetStream is off, has no leader, or is still recovering its files; its log tells. A server that recovers without end has a damaged file: restore its data directory from a backup)", name, err)
		default:
			infos[name] = info
		}
	}
	told, err := l.told(ctx, infos)
	if err != nil {
		return err
	}
	known = append(known, told...)

	for _, name := range missing {
		if i := slices.IndexFunc(known, func(p Position) bool { return p.Stream == name && p.Sequence > 0 }); i >= 0 {
			findings = append(findings, goneFinding(name, known[i].Sequence, known[i].Name))
		} else if l.o.ReadOnly {
			findings = append(findings, Finding{name, "the stream does not exist", "The service, which creates the streams, has not been started on this server and account.",
				"Start `keyledger serve` first, and check that both use the same server and account."})
		}
	}
	for _, name := range streamNames {
		info := infos[name]
		if info == nil {
			continue
		}
		findings = append(findings, configFindings(name, info.Config, l.o.Replicas)...)
		findings = append(findings, l.stateFindings(ctx, name, info)...)
		more, err := l.positionFindings(ctx, name, info, known)
		if err != nil {
			return err
		}
		findings = append(findings, more...)
	}
	if len(findings) > 0 {
		return &RefusalError{findings}
	}

	for _, name := range missing {
		err := cluster.Ask(ctx, func(ctx context.Context) error {
			_, err := l.js.CreateStream(ctx, Config(name, l.o.Replicas))
			return err
		})
		if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return fmt.Errorf("create stream %s: %w", name, err)
		}
		var info *streamInfo
		err = cluster.AskToStart(ctx, func(ctx context.Context) (err error) {
			if info, err = l.info(ctx, name); isNotFound(err) {
				err = cluster.ErrNotYet
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("read back stream %s: %w", name, err)
		}
		if f := configFindings(name, info.Config, l.o.Replicas); len(f) > 0 {
			return &RefusalError{f}
		}
		infos[name] = info
	}
	for name, info := range infos {
		l.created[name] = info.Created
		l.heads[name] = head{Sequence: info.State.LastSeq}
	}
	for _, p := range known {
		if h := l.heads[p.Stream]; p.Sequence == h.Sequence {
			l.heads[p.Stream] = head{p.Sequence, p.EventID}
		}
	}
	return nil
}

func (l *Ledger) syncFindings(ctx context.Context) []Finding {
	const means = "The server acknowledges before the data is on disk, so a power failure would lose facts that were answered as recorded."
	const fix = "Set `jetstream { sync_interval: always }` in the configuration of every server and restart it."
	switch {
	case l.o.AllowUnverifiedSync:
		return nil
	case l.o.SyncAlways == nil:
		return []Finding{{"server", "nobody has checked that it syncs every write", means,
			fix + " Let the service read it back (a monitoring address or a system account), or accept the risk explicitly in its configuration."}}
	}
	ok, err := l.o.SyncAlways(ctx)
	switch {
	case err != nil:
		return []Finding{{"server", "reading back whether it syncs every write failed: " + err.Error(), means, fix}}
	case !ok:
		return []Finding{{"server", "it does not sync every write", means, fix}}
	}
	return nil
}

// stateFindings checks that nothing is missing between first and last.
func (l *Ledger) stateFindings(ctx context.Context, stream string, info *streamInfo) []Finding {
	var findings []Finding
	s := info.State
	if s.FirstSeq > 1 {
		allowed, err := l.mayBegin(ctx, stream, s.FirstSeq)
		if err != nil {
			findings = append(findings, Finding{stream, fmt.Sprintf("it begins at sequence %d, and the record of what was pruned cannot be read: %v", s.FirstSeq, err),
				"Whether the beginning was pruned by the retention command or lost is unknown.", "Repair " + events.Ops + " first."})
		} else if s.FirstSeq > allowed {
			want := "1"
			if allowed > 1 {
				want = fmt.Sprintf("%d at the latest, after the last recorded pruning", allowed)
			}
			findings = append(findings, Finding{stream, fmt.Sprintf("it begins at sequence %d instead of %s", s.FirstSeq, want),
				meansBegins, restore})
		}
	}
	span := uint64(0)
	if s.LastSeq > 0 {
		span = s.LastSeq + 1 - max(s.FirstSeq, 1)
	}
	if s.NumDeleted > 0 || s.Msgs != span {
		findings = append(findings, Finding{stream, fmt.Sprintf("%d messages between its first sequence %d and its last %d are missing", max(span-min(s.Msgs, span), uint64(s.NumDeleted)), s.FirstSeq, s.LastSeq),
			"Messages were deleted, or a data file is damaged and the server dropped what it could not read.", restore})
	}
	if len(s.Lost) > 0 && string(s.Lost) != "null" {
		findings = append(findings, Finding{stream, "the server reports lost data: " + string(s.Lost),
			"A data file is damaged or missing.", restore})
	}
	return findings
}

// positionFindings compares a stream with what others know of it.
func (l *Ledger) positionFindings(ctx context.Context, stream string, info *streamInfo, known []Position) ([]Finding, error) {
	var findings []Finding
	for _, p := range known {
		if p.Stream != stream || p.Sequence == 0 {
			continue
		}
		if p.Sequence > info.State.LastSeq {
			// A leader that was just elected may not have applied everything yet.
			if l.o.Replicas > 1 && l.catchUp(ctx, stream, p.Sequence) {
				continue
			}
			findings = append(findings, behindFinding(stream, info.State.LastSeq, p))
			continue
		}
		if p.EventID == "" || p.Sequence < info.State.FirstSeq {
			continue
		}
		m, err := l.get(ctx, stream, getRequest{Seq: p.Sequence})
		if isNotFound(err) {
			findings = append(findings, Finding{stream, fmt.Sprintf("the message at sequence %d, which %s has read, is gone or cannot be read", p.Sequence, p.Name),
				"A data file is damaged.", restore})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s at %d: %w", stream, p.Sequence, err)
		}
		if id := lastID(stream, m.body); id != p.EventID {
			findings = append(findings, Finding{stream, fmt.Sprintf("at sequence %d it holds event %q, but %s has read event %q there", p.Sequence, id, p.Name, p.EventID),
				meansOther,
				"If " + p.Name + " belongs to another installation, connect it to its own server. Otherwise: " + restore})
		}
	}
	return findings, nil
}

func (l *Ledger) catchUp(ctx context.Context, stream string, sequence uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for wait(ctx, 100*time.Millisecond) {
		if info, err := l.info(ctx, stream); err == nil && info.State.LastSeq >= sequence {
			return true
		}
	}
	return false
}

// told are the places of LEDGER that other streams speak of: the last fact of
// FEED, and the last page of USAGE.
func (l *Ledger) told(ctx context.Context, infos map[string]*streamInfo) ([]Position, error) {
	var known []Position
	for _, stream := range []string{events.Feed, events.Usage} {
		info := infos[stream]
		if info == nil || info.State.Msgs == 0 {
			continue
		}
		m, err := l.get(ctx, stream, getRequest{Seq: info.State.LastSeq})
		if isNotFound(err) {
			continue // stateFindings or the first reader tells
		}
		if err != nil {
			return nil, fmt.Errorf("read the last message of %s: %w", stream, err)
		}
		if stream == events.Feed {
			known = append(known, Position{"the last message of " + stream, events.Ledger, m.number(sequenceHeader), eventID(m.body)})
			continue
		}
		for _, line := range events.Lines(m.body) {
			if e, err := events.Decode(line); err == nil {
				if used, ok := e.Data.(events.KeyUsed); ok {
					known = append(known, Position{"a use in the last page of " + stream, events.Ledger, used.LedgerSequence, ""})
					break
				}
			}
		}
	}
	return known, nil
}

type headFile struct {
	Streams map[string]head `json:"streams"`
}

func (l *Ledger) loadHeads() ([]Position, error) {
	if l.o.HeadFile == "" {
		return nil, nil
	}
	b, err := os.ReadFile(l.o.HeadFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var f headFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", filepath.Base(l.o.HeadFile), err)
	}
	var known []Position
	for _, name := range streamNames {
		if h := f.Streams[name]; h.Sequence > 0 {
			known = append(known, Position{"this process before its last restart (" + filepath.Base(l.o.HeadFile) + ")", name, h.Sequence, h.EventID})
		}
	}
	return known, nil
}

// saveHeads replaces the head file when a head has moved: a crash leaves either
// the old or the new one. A stream in doubt keeps what was last known.
func (l *Ledger) saveHeads() error {
	if l.o.HeadFile == "" {
		return nil
	}
	l.mu.Lock()
	moved := l.moved
	l.moved = false
	f := headFile{Streams: map[string]head{}}
	for name, h := range l.heads {
		f.Streams[name] = h
	}
	l.mu.Unlock()
	if !moved {
		return nil
	}
	err := writeFile(l.o.HeadFile, f)
	if err != nil {
		l.mu.Lock()
		l.moved = true
		l.mu.Unlock()
	}
	return err
}

func writeFile(path string, v any) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	t, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(t.Name())
		}
	}()
	_, err = t.Write(b)
	if err = errors.Join(err, t.Sync(), t.Close()); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
