package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// OpenRecorder starts a recorder with a write-ahead log in o.Dir. First it records
// what processes that ended left there: exactly what USAGE does not have. What
// nobody can bring back is declared as a usage.gap. It fails where it can do
// neither, with a message that names the log and says what to do; nothing is lost
// by that.
func OpenRecorder(ctx context.Context, l *ledger.Ledger, keys *seal.Keys, node string, o RecorderOptions) (*Recorder, error) {
	if err := recoverLogs(ctx, l, keys, o); err != nil {
		return nil, err
	}
	head, err := l.Head(ctx, events.Usage)
	if err != nil {
		return nil, err
	}
	log, err := wal.Open(o.Dir, wal.Options{Node: node, Master: o.Master, After: head, Log: o.Log})
	if err != nil {
		return nil, err
	}
	return newRecorder(l, keys, node, o, log), nil
}

func recoverLogs(ctx context.Context, l *ledger.Ledger, keys *seal.Keys, o RecorderOptions) error {
	dead, err := wal.Claim(o.Dir)
	if err != nil {
		return err
	}
	for i, d := range dead {
		if err := recoverLog(ctx, l, keys, o, d); err != nil {
			for _, d := range dead[i:] {
				d.Release()
			}
			return err
		}
		if err := d.Remove(); err != nil {
			return fmt.Errorf("the write-ahead log %s is recorded and cannot be removed: %w", d.Dir, err)
		}
	}
	return nil
}

func recoverLog(ctx context.Context, l *ledger.Ledger, keys *seal.Keys, o RecorderOptions, d *wal.Dead) error {
	c, err := d.Read(o.Master)
	if err != nil {
		return err
	}
	lost := &lost{Contents: c, keyspaces: o.Keyspaces}
	var facts []events.Envelope
	for _, e := range c.Entries {
		f, err := unkeep(e, c.Node)
		if err != nil {
			return fmt.Errorf("the write-ahead log %s: %w", d.Dir, err)
		}
		if f.ID == "" {
			c.Damaged++
			continue
		}
		facts = append(facts, f)
	}
	facts = append(facts, lost.gaps(facts)...)
	for {
		n, err := recordMissing(ctx, l, keys, c, facts)
		if errors.Is(err, ledger.ErrConflict) {
			continue // what the process sent before its end has arrived meanwhile
		}
		if err != nil {
			return fmt.Errorf("record what the write-ahead log %s holds: %w", d.Dir, err)
		}
		if o.Log != nil && (n > 0 || c.PowerCut || c.Damaged > 0 || c.Unreadable || c.Loose > 0) {
			o.Log.Warn("a process ended without recording everything; that is done now", "node", c.Node, "facts", n,
				"power_cut", c.PowerCut, "damaged", c.Damaged, "unreadable", c.Unreadable, "in_memory_alone", c.Loose)
		}
		return nil
	}
}

// recoverPage is about how many bytes a page of recovered facts has.
const recoverPage = ledger.DefaultPageBytes

// recordMissing appends those of a dead node's facts that USAGE does not have, on
// the subjects of that node: a page that the node sent in its last moment, and
// that has not arrived yet, then conflicts instead of doubling them. It may be
// repeated at any point.
func recordMissing(ctx context.Context, l *ledger.Ledger, keys *seal.Keys, c *wal.Contents, facts []events.Envelope) (n int, err error) {
	// The heads first: what is read after them is all there is up to them.
	heads := map[string]uint64{}
	missing := make(map[string]bool, len(facts))
	for _, f := range facts {
		missing[f.ID] = true
		if _, ok := heads[f.Keyspace]; !ok {
			if heads[f.Keyspace], err = l.PageHead(ctx, f.Keyspace, c.Node); err != nil {
				return 0, err
			}
		}
	}
	if len(facts) == 0 {
		return 0, nil
	}
	for r, err := range l.PagesOf(ctx, c.Node, c.After) {
		if err != nil {
			return 0, err
		}
		delete(missing, r.Event.ID)
	}
	facts = slices.DeleteFunc(slices.Clone(facts), func(f events.Envelope) bool {
		m := missing[f.ID]
		delete(missing, f.ID) // once
		return !m
	})
	slices.SortStableFunc(facts, func(a, b events.Envelope) int {
		switch {
		case a.Keyspace < b.Keyspace:
			return -1
		case a.Keyspace > b.Keyspace:
			return 1
		}
		return 0
	})
	most := recoverPage // bytes
	for len(facts) > 0 {
		page := facts[:min(len(facts), 256)]
		if i := slices.IndexFunc(page, func(f events.Envelope) bool { return f.Keyspace != page[0].Keyspace }); i > 0 {
			page = page[:i]
		}
		if err := keys.Prepare(ctx, page); err != nil {
			return n, err
		}
		var bodies [][]byte
		size := 0
		for _, f := range page {
			b, err := events.Encode(f)
			if err != nil {
				return n, err
			}
			if size += len(b) + 1; size > most && len(bodies) > 0 {
				break
			}
			bodies = append(bodies, b)
		}
		keyspace := page[0].Keyspace
		sequence, err := l.AppendPageAfter(ctx, keyspace, c.Node, heads[keyspace], bodies)
		if errors.Is(err, ledger.ErrTooLarge) && len(bodies) > 1 {
			most = size / 2 // the server takes less than usual
			continue
		}
		if err != nil {
			return n, err
		}
		heads[keyspace] = sequence
		n += len(bodies)
		facts = facts[len(bodies):]
	}
	return n, nil
}

// lost declares what a dead log does not have.
type lost struct {
	*wal.Contents
	keyspaces []string
}

// gaps are the same for the same log, however often it is read. One whose number
// nobody knows says 0, in every keyspace; one with a number stands once.
func (g *lost) gaps(facts []events.Envelope) (all []events.Envelope) {
	keyspaces := g.keyspaces
	if len(keyspaces) == 0 {
		for _, f := range facts {
			if !slices.Contains(keyspaces, f.Keyspace) {
				keyspaces = append(keyspaces, f.Keyspace)
			}
		}
	}
	if len(keyspaces) == 0 {
		keyspaces = []string{""}
	}
	one := ""
	if len(keyspaces) == 1 {
		one = keyspaces[0]
	}
	first, last := g.Created, g.Created
	for _, f := range facts {
		if t := f.Time.Time(); t.After(last) {
			last = t
		}
	}
	if g.Damaged > 0 {
		all = append(all, g.gap("damaged", one, g.Damaged, first, last, "the write-ahead log was damaged on disk"))
	}
	if g.Loose > 0 {
		all = append(all, g.gap("loose", one, g.Loose, g.Since, later(last, g.Since), "the process ended while its write-ahead log could not be written: at most so many were in memory alone"))
	}
	for _, keyspace := range keyspaces {
		if g.Unreadable {
			all = append(all, g.gap("unreadable", keyspace, 0, first, last, "a part of the write-ahead log was damaged on disk: how many uses were in it is not known"))
		}
		if g.PowerCut {
			all = append(all, g.gap("power", keyspace, 0, g.From, later(g.To, last), "the machine stopped: what it had answered since its write-ahead log was last on the disk, usually for less than 50 ms, may be missing; how many uses is not known"))
		}
	}
	return all
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (g *lost) gap(why, keyspace string, count int64, from, to time.Time, reason string) events.Envelope {
	e := events.New(events.UsageGap{Count: count, Reason: reason, From: events.At(from), To: events.At(to), Node: g.Node}, time.Now())
	h := sha256.Sum256(fmt.Appendf(nil, "usage.gap %s %s %d %s", why, g.Node, g.Created.UnixNano(), keyspace))
	u := [16]byte(h[:16])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(from.UnixMilli())) // the end may be that of this start
	copy(u[:6], ms[2:])
	e.ID = events.FormatID("evt", u)
	e.Keyspace, e.Actor, e.Via = keyspace, events.Actor{Type: "system", ID: g.Node}, "verifier"
	return e
}
