package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/backup"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/projections/merkle"
)

// loss is what somebody remembers of history that the streams do not have. What
// remembers facts themselves is the copy of LEDGER in PostgreSQL; positions, signed
// checkpoints and head files remember how far a stream was.
type loss struct {
	Backup   events.Time          `json:"backup"`   // when the backup began that the streams were restored from; null: none was
	Restored events.Time          `json:"restored"` // when
	Missing  []events.StreamRange `json:"missing"`
	Says     []string             `json:"remembered_by"` // who says so
	Since    events.Time          `json:"since"`         // of the first missing fact; null: not known
	Until    events.Time          `json:"until"`         // of the last
	Facts    int64                `json:"facts"`         // missing ones of LEDGER that PostgreSQL has
	Returned []returnedKey        `json:"returned"`      // keys that would come back to life
	Changed  []changedKey         `json:"changed"`       // keys that would be as they were before a change
	Unknown  []string             `json:"unknown"`       // keys that would not be known any more
	Others   int64                `json:"others"`        // missing facts about owners and keyspaces
	NewLog   bool                 `json:"new_log"`       // the audit log signed what is missing

	lost []lostFact
	ring *keyring.Ring // as the streams have it
}

// returnedKey is a key that would be accepted again.
type returnedKey struct {
	Key      string      `json:"key"`
	Keyspace string      `json:"keyspace"`
	Owner    string      `json:"owner"`
	Name     string      `json:"name"`
	Display  string      `json:"display"`
	Was      []string    `json:"was"` // revoked, deleted, rotated, grace ended, expiry changed
	At       events.Time `json:"at"`  // of the first of these facts
}

// changedKey is a key whose missing changes are none of these.
type changedKey struct {
	Key      string   `json:"key"`
	Keyspace string   `json:"keyspace"`
	Fields   []string `json:"fields"`
}

// lostFact is a fact that PostgreSQL has and LEDGER has not.
type lostFact struct {
	sequence uint64
	subject  string
	body     []byte
	event    events.Envelope
}

// lossError is a refusal at start that says what would come of going on.
type lossError struct {
	refusal error
	loss    *loss
}

func (e *lossError) Error() string { return e.refusal.Error() + "\n\n" + e.loss.String() }

func (e *lossError) Unwrap() error { return e.refusal }

// explained adds to a refusal at start what the missing history means for keys.
func explained(ctx context.Context, c nodeConfig, refusal error) error {
	if _, ok := errors.AsType[*ledger.RefusalError](refusal); !ok || c.Pool == nil {
		return refusal
	}
	var heads []string
	if c.HeadFile != "" {
		heads = []string{c.HeadFile}
	}
	l, err := assess(ctx, c.Conn, c.Pool, c.Replicas, heads, c.LogDir)
	if err != nil || l == nil {
		return refusal // it is about something else
	}
	return &lossError{refusal, l}
}

// sayRestored says of streams that were restored how old they are, where nobody here
// remembers more.
func sayRestored(ctx context.Context, c nodeConfig) {
	if c.Program == "gateway" {
		return
	}
	var l loss
	if err := l.readLabel(ctx, c.Conn); err == nil && l.Backup != 0 {
		c.Log.Warn("the streams were restored from a backup: what was acknowledged after it began is missing, as far as there was anything, and nobody here remembers it",
			"backup", l.Backup.String(), "restored", l.Restored.String())
	}
}

// assess compares the streams with all that remembers them. It is nil where nothing
// is missing, and fails where the streams themselves are in doubt.
func assess(ctx context.Context, conn *nats.Conn, pool *pgxpool.Pool, replicas int, headFiles []string, published string) (*loss, error) {
	led, err := ledger.Open(ctx, conn, ledger.Options{ReadOnly: true, Replicas: replicas, AllowUnverifiedSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer led.Close()
	known, err := remembered(ctx, pool, headFiles, published)
	if err != nil {
		return nil, err
	}
	l := &loss{Missing: []events.StreamRange{}, Returned: []returnedKey{}, Changed: []changedKey{}, Unknown: []string{}}
	if err := l.readLabel(ctx, conn); err != nil {
		return nil, err
	}
	ranges := map[string]*events.StreamRange{}
	for _, p := range known {
		from, err := missingFrom(ctx, led, p)
		if err != nil {
			return nil, err
		}
		if from == 0 {
			continue
		}
		r := ranges[p.Stream]
		if r == nil {
			r = &events.StreamRange{Stream: p.Stream, From: from, To: p.Sequence}
			ranges[p.Stream] = r
		}
		r.From, r.To = min(r.From, from), max(r.To, p.Sequence)
		l.Says = append(l.Says, fmt.Sprintf("%s, at %s %d", p.Name, p.Stream, p.Sequence))
	}
	if len(ranges) == 0 {
		return nil, nil
	}
	if err := l.compare(ctx, led, pool, ranges); err != nil {
		return nil, err
	}
	for _, s := range slices.Sorted(maps.Keys(ranges)) {
		l.Missing = append(l.Missing, *ranges[s])
	}
	for _, p := range known {
		l.NewLog = l.NewLog || strings.Contains(p.Name, "signed checkpoint") && ranges[p.Stream] != nil && p.Sequence >= ranges[p.Stream].From
	}
	return l, nil
}

// remembered are the positions of all that remembers how far the streams were.
func remembered(ctx context.Context, pool *pgxpool.Pool, headFiles []string, published string) ([]ledger.Position, error) {
	known, err := projections.Positions(ctx, pool)
	if err != nil {
		return nil, err
	}
	signed, err := merkle.Known(ctx, pool)
	if err != nil {
		return nil, err
	}
	known = append(known, signed...)
	known = append(known, publishedHeads(published)...)
	for _, file := range headFiles {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var heads struct {
			Streams map[string]struct {
				Sequence uint64 `json:"sequence"`
				EventID  string `json:"event_id"`
			} `json:"streams"`
		}
		if err == nil {
			err = json.Unmarshal(b, &heads)
		}
		if err != nil {
			return nil, fmt.Errorf("head file %s: %w", file, err)
		}
		for stream, h := range heads.Streams {
			if h.Sequence > 0 {
				known = append(known, ledger.Position{Name: "head file " + file, Stream: stream, Sequence: h.Sequence, EventID: h.EventID})
			}
		}
	}
	return known, nil
}

// publishedHeads are the sizes of the published checkpoints of the streams whose
// messages are one event each and begin with the first. Their signatures are the
// audit log's business: here too much caution does no harm.
func publishedHeads(dir string) []ledger.Position {
	var known []ledger.Position
	if dir == "" {
		return nil
	}
	for _, stream := range []string{events.Ledger, events.Ops, events.Feed} {
		b, err := os.ReadFile(filepath.Join(dir, strings.ToLower(stream), "checkpoint"))
		if err != nil {
			continue // there is none, or the audit log says what is wrong with it
		}
		if lines := strings.SplitN(string(b), "\n", 3); len(lines) == 3 {
			if size, err := strconv.ParseUint(lines[1], 10, 64); err == nil && size > 0 {
				known = append(known, ledger.Position{Name: "the signed checkpoint published in " + dir, Stream: stream, Sequence: size})
			}
		}
	}
	return known
}

// missingFrom is the first sequence that is not as a position has it; 0: all is.
func missingFrom(ctx context.Context, l *ledger.Ledger, p ledger.Position) (uint64, error) {
	if p.Sequence == 0 {
		return 0, nil
	}
	head, err := l.Head(ctx, p.Stream)
	if err != nil {
		return 0, err
	}
	if p.Sequence > head {
		return head + 1, nil
	}
	first, err := l.First(ctx, p.Stream)
	if err != nil || p.EventID == "" || p.Sequence < first {
		return 0, err
	}
	records, err := l.At(ctx, p.Stream, p.Sequence)
	if err != nil {
		return 0, err
	}
	if len(records) > 0 && records[len(records)-1].Event.ID == p.EventID {
		return 0, nil
	}
	return p.Sequence, nil
}

func (l *loss) readLabel(ctx context.Context, conn *nats.Conn) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	s, err := js.Stream(ctx, events.Ledger)
	if err != nil {
		return err
	}
	meta := s.CachedInfo().Config.Metadata
	for key, at := range map[string]*events.Time{backup.MetaBackup: &l.Backup, backup.MetaRestored: &l.Restored} {
		if t, err := time.Parse(time.RFC3339, meta[key]); err == nil {
			*at = events.At(t)
		}
	}
	return nil
}

// compare folds LEDGER as it is, and goes on from where the copy in PostgreSQL
// differs with what the copy has.
func (l *loss) compare(ctx context.Context, led *ledger.Ledger, pool *pgxpool.Pool, ranges map[string]*events.StreamRange) error {
	head, err := led.Head(ctx, events.Ledger)
	if err != nil {
		return err
	}
	fork, err := forkOf(ctx, led, pool, head)
	if err != nil {
		return err
	}
	if r := ranges[events.Ledger]; fork <= head && (r == nil || fork < r.From) {
		if r == nil {
			r = &events.StreamRange{Stream: events.Ledger, From: fork, To: head}
			ranges[events.Ledger] = r
		}
		r.From = fork
	}
	if l.lost, err = lostFrom(ctx, pool, fork); err != nil {
		return err
	}
	l.ring = keyring.New()
	before := map[string]*domain.Key{} // at the fork, of keys that the lost facts are about
	about := map[string]bool{}
	for _, f := range l.lost {
		about[f.event.Key] = true
	}
	remember := func() {
		for id := range about {
			before[id] = l.ring.Key(id)
		}
	}
	if fork == 1 {
		remember()
	}
	if head > 0 {
		for r, err := range led.Read(ctx, events.Ledger, 1, head) {
			if err != nil {
				return err
			}
			l.ring.Apply(r)
			if r.Sequence+1 == fork {
				remember()
			}
		}
	}
	if len(l.lost) > 0 {
		l.Facts, l.Since, l.Until = int64(len(l.lost)), l.lost[0].event.Time, l.lost[len(l.lost)-1].event.Time
		if r := ranges[events.Ledger]; r != nil {
			r.To = max(r.To, l.lost[len(l.lost)-1].sequence)
		}
	}
	l.judge(before, events.At(time.Now()))
	return nil
}

// forkOf is the first sequence at which the copy of LEDGER in PostgreSQL holds
// something else than LEDGER; behind its end where it holds nothing else.
func forkOf(ctx context.Context, led *ledger.Ledger, pool *pgxpool.Pool, head uint64) (uint64, error) {
	if head == 0 {
		return 1, nil
	}
	rows, err := pool.Query(ctx, `select sequence, event_id from keyledger.ledger_v1 where sequence <= $1 order by sequence`, int64(head))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var sequence int64
	var id string
	more := rows.Next()
	for r, err := range led.Read(ctx, events.Ledger, 1, head) {
		if err != nil {
			return 0, err
		}
		if !more {
			break
		}
		if err := rows.Scan(&sequence, &id); err != nil {
			return 0, err
		}
		if uint64(sequence) > r.Sequence {
			continue
		}
		if id != r.Event.ID {
			return r.Sequence, nil
		}
		more = rows.Next()
	}
	return head + 1, rows.Err()
}

func lostFrom(ctx context.Context, pool *pgxpool.Pool, fork uint64) ([]lostFact, error) {
	rows, err := pool.Query(ctx, `select sequence, subject, body from keyledger.ledger_v1 where sequence >= $1 order by sequence`, int64(fork))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f lostFact, err error) {
		var sequence int64
		if err := row.Scan(&sequence, &f.subject, &f.body); err != nil {
			return f, err
		}
		f.sequence = uint64(sequence)
		f.event, err = events.Decode(f.body)
		return f, err
	})
}

// judge goes on with the lost facts and says of each key what would be different.
func (l *loss) judge(before map[string]*domain.Key, now events.Time) {
	after := maps.Clone(before)
	first := map[string]events.Time{}
	var keys []string
	for _, f := range l.lost {
		id := f.event.Key
		if id == "" {
			l.Others++
			continue
		}
		if first[id] == 0 {
			first[id] = f.event.Time
			keys = append(keys, id)
		}
		s := domain.Evolve(domain.State{Key: after[id]}, events.Record{Stream: events.Ledger, Sequence: f.sequence, Subject: f.subject, Body: f.body, Event: f.event})
		after[id] = s.Key
	}
	for _, id := range keys {
		was, is := after[id], l.ring.Key(id)
		switch {
		case was == nil:
		case is == nil:
			l.Unknown = append(l.Unknown, id)
		default:
			if why := returns(is, was, now); len(why) > 0 {
				l.Returned = append(l.Returned, returnedKey{id, is.Keyspace, is.Owner, is.Name, is.Display(), why, first[id]})
			}
			if fields := changes(is, was); len(fields) > 0 {
				l.Changed = append(l.Changed, changedKey{id, is.Keyspace, fields})
			}
		}
	}
}

// returns says why a key that is accepted would not have been.
func returns(is, was *domain.Key, now events.Time) []string {
	if !is.Active(now) {
		return nil
	}
	var why []string
	switch {
	case was.Deleted():
		why = append(why, "deleted")
	case was.Revoked():
		why = append(why, "revoked")
	}
	if is.Hash != was.Hash {
		why = append(why, "rotated")
	}
	if is.More != nil {
		for _, e := range is.Earlier {
			if _, code := was.SecretState(e.Hash, now); now < e.Until && code != "" {
				why = append(why, "grace ended")
				break
			}
		}
	}
	if was.ExpiresAt != 0 && (is.ExpiresAt == 0 || is.ExpiresAt > was.ExpiresAt) {
		why = append(why, "expiry changed")
	}
	return why
}

// changes are the fields that a key would have otherwise.
func changes(is, was *domain.Key) []string {
	var fields []string
	add := func(name string, same bool) {
		if !same {
			fields = append(fields, name)
		}
	}
	add("plan", is.Plan == was.Plan)
	add("scopes", slices.Equal(is.Scopes, was.Scopes))
	add("resources", slices.Equal(is.Resources, was.Resources))
	add("limits", maps.Equal(is.Limits, was.Limits))
	add("allowed_origins", slices.Equal(is.AllowedOrigins, was.AllowedOrigins))
	add("allowed_ips", slices.Equal(is.AllowedIPs, was.AllowedIPs))
	return fields
}

// shownKeys is how many keys a message names; --json has all.
const shownKeys = 20

// String is the loss as a person reads it.
func (l *loss) String() string {
	var b strings.Builder
	b.WriteString("ACKNOWLEDGED HISTORY IS MISSING.\n")
	if l.Backup != 0 {
		fmt.Fprintf(&b, "The streams were restored at %s from a backup that began at %s.\n", l.Restored, l.Backup)
	}
	for _, r := range l.Missing {
		fmt.Fprintf(&b, "  %s: sequences %d to %d\n", r.Stream, r.From, r.To)
	}
	if l.Since != 0 {
		fmt.Fprintf(&b, "Missing since %s, until %s: %d facts of LEDGER, which PostgreSQL still has.\n", l.Since, l.Until, l.Facts)
	} else {
		b.WriteString("Nobody here has the missing facts of LEDGER themselves, if there are any: which keys they were about is not known.\n")
	}
	if len(l.Returned) > 0 {
		fmt.Fprintf(&b, "%d keys would come back to life:\n", len(l.Returned))
		for _, k := range l.Returned[:min(len(l.Returned), shownKeys)] {
			fmt.Fprintf(&b, "  %s  %s/%s  %s  %s at %s\n", k.Key, k.Keyspace, orDash(k.Owner), k.Display, strings.Join(k.Was, ", "), k.At)
		}
		if more := len(l.Returned) - shownKeys; more > 0 {
			fmt.Fprintf(&b, "  and %d more\n", more)
		}
	} else if l.Since != 0 {
		b.WriteString("No key would come back to life.\n")
	}
	if len(l.Changed) > 0 {
		fmt.Fprintf(&b, "%d keys would be as they were before a change of their scopes, limits or lists.\n", len(l.Changed))
	}
	if len(l.Unknown) > 0 {
		fmt.Fprintf(&b, "%d keys would not be known any more.\n", len(l.Unknown))
	}
	if l.Others > 0 {
		fmt.Fprintf(&b, "%d missing facts are about owners and keyspaces.\n", l.Others)
	}
	if l.NewLog {
		b.WriteString("The audit log has signed what is missing: it begins anew, with another key, when somebody goes on.\n")
	}
	b.WriteString("Look for a newer backup first. To go on without what is missing: `keyledger accept-loss` says all of this (--json too) and how (docs/runbooks/older-backup.md).")
	return b.String()
}
