package queries

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

// Exports answers what exports that prove themselves are made of: see package bundle.
type Exports struct {
	ledger  *ledger.Ledger
	log     *merkle.Log
	runner  *projections.Runner // of the parts
	pool    *pgxpool.Pool
	version string             // of the program
	index   *projections.Index // nil: none
}

// Exports of what a log proves.
func (q *Queries) Exports(l *ledger.Ledger, log *merkle.Log, runner *projections.Runner, version string) *Exports {
	return &Exports{ledger: l, log: log, runner: runner, pool: q.pool, version: version}
}

// Indexed is for the events of a part what [Audit.Indexed] is. What the index missed
// would be missing from the part's chain, which is signed: no export can pass without it.
func (x *Exports) Indexed(index *projections.Index) *Exports {
	with := *x
	with.index = index
	return &with
}

// countWait is how long an export waits for what was just recorded to be counted and
// signed.
const countWait = 30 * time.Second

// Begin records an export on OPS and answers everything of it but its leaves and
// events. It is complete as of now: everything that was recorded before it began is in
// it. Times are From and To of the manifest; by fills in who asks. It takes about a
// second, and for a part as long as reading how many events each key has.
func (x *Exports) Begin(ctx context.Context, scope bundle.Scope, from, to events.Time, now time.Time, by func(*events.Envelope)) (bundle.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, countWait)
	defer cancel()
	h := x.head(scope, from, to)
	m := &h.Manifest
	ops := 0
	for i, stream := range audit.Streams {
		if stream == events.Ops {
			ops, m.Streams[i].Stream = i, stream // it is to hold the export's own event
			continue
		}
		head, err := x.ledger.Head(ctx, stream)
		if err == nil {
			m.Streams[i], h.Proofs[i], err = x.stream(ctx, stream, scope, head)
		}
		if err != nil {
			return h, fmt.Errorf("export of %s: %w", stream, err)
		}
	}
	sequence, err := x.record(ctx, &h, now, by)
	if err != nil {
		return h, err
	}
	if m.Streams[ops], h.Proofs[ops], err = x.stream(ctx, events.Ops, scope, sequence); err != nil {
		return h, fmt.Errorf("export of %s: %w", events.Ops, err)
	}
	return h, nil
}

func (x *Exports) head(scope bundle.Scope, from, to events.Time) bundle.Head {
	h := bundle.Head{Proofs: make([]bundle.StreamProof, len(audit.Streams)), Policy: string(x.log.Policy())}
	h.Manifest = bundle.Manifest{Format: bundle.Format, Log: x.log.Name(), Scope: scope, From: from, To: to, Program: x.version, Streams: make([]bundle.Stream, len(audit.Streams))}
	for _, key := range x.log.Keys() {
		h.Keys = append(h.Keys, key.Verifier)
	}
	return h
}

// record writes the export's own event down, and in the head.
func (x *Exports) record(ctx context.Context, h *bundle.Head, now time.Time, by func(*events.Envelope)) (sequence uint64, err error) {
	m := &h.Manifest
	e := events.New(events.AuditRead{What: bundle.What, Filter: m.Filter()}, now)
	e.Keyspace, e.Owner, e.Key = m.Scope.Keyspace, m.Scope.Owner, m.Scope.Key
	by(&e)
	if sequence, err = x.ledger.AppendOps(ctx, e); err != nil {
		return 0, err
	}
	stored, err := x.ledger.At(ctx, events.Ops, sequence)
	if err != nil {
		return 0, err
	}
	h.Event = string(stored[0].Body)
	m.Exported = bundle.Exported{Sequence: sequence, Time: e.Time, Actor: e.Actor}
	return sequence, nil
}

// BeginWitnessed is [Exports.Begin] of everything, but of each stream as far as
// witnesses have signed it: what came later is counted in the manifest and not in the
// export. It fails with [merkle.ErrNotSealed] where they have not signed all streams. A
// part cannot end there: its tree of parts is made as of now.
func (x *Exports) BeginWitnessed(ctx context.Context, from, to events.Time, now time.Time, by func(*events.Envelope)) (bundle.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, countWait)
	defer cancel()
	h := x.head(bundle.Scope{}, from, to)
	for i, stream := range audit.Streams {
		signed, _, err := x.log.Witnessed(ctx, stream, 0)
		if err != nil {
			return h, err
		}
		newest, err := x.log.Checkpoint(stream)
		if err != nil {
			return h, err
		}
		s := bundle.Stream{Stream: stream, First: 1, Leaves: signed.Size}
		if err := x.place(ctx, &s, bundle.Scope{}, signed.Tree); err != nil {
			return h, fmt.Errorf("export of %s: %w", stream, err)
		}
		s.Later = newest.Size - signed.Size
		h.Manifest.Streams[i], h.Proofs[i].Checkpoint = s, string(signed.Note)
	}
	sequence, err := x.record(ctx, &h, now, by)
	if err != nil {
		return h, err
	}
	if _, err := x.log.Sealed(ctx, events.Ops, sequence); err != nil {
		return h, err
	}
	p, err := x.log.Prove(ctx, audit.Place{Stream: events.Ops, Sequence: sequence})
	if err != nil {
		return h, err
	}
	h.Proof = string(p.TLogProof())
	return h, nil
}

// Witness looks for checkpoints that witnesses have cosigned as the policy asks and that
// contain an export's trees, of so many events each, in the order of [audit.Streams]. Of
// a stream that has none yet the proof is empty. It fails with [ErrNoExport].
func (x *Exports) Witness(ctx context.Context, export uint64, sizes []int64) ([]bundle.StreamProof, error) {
	if _, err := x.recorded(ctx, export); err != nil {
		return nil, err
	}
	proofs := make([]bundle.StreamProof, len(audit.Streams))
	for i, stream := range audit.Streams {
		signed, consistency, err := x.log.Witnessed(ctx, stream, sizes[i])
		if errors.Is(err, merkle.ErrNotSealed) {
			continue
		}
		if err != nil {
			return nil, err
		}
		proofs[i] = bundle.StreamProof{Checkpoint: string(signed.Note), Consistency: bundle.ConsistencyText(consistency)}
	}
	return proofs, nil
}

// Cosigners are the witnesses of the policy, with what each has signed last.
func (x *Exports) Cosigners(ctx context.Context) ([]merkle.Cosigner, error) {
	return x.log.Cosigners(ctx)
}

// stream is what is signed about a stream that holds at least so much.
func (x *Exports) stream(ctx context.Context, stream string, scope bundle.Scope, sequence uint64) (s bundle.Stream, p bundle.StreamProof, err error) {
	s = bundle.Stream{Stream: stream, First: 1}
	part, isPart := scope.Part()
	var tree audit.Tree
	if isPart {
		if err := x.runner.Wait(ctx, merkle.Parts{Stream: stream}.Table(), sequence); err != nil {
			return s, p, err
		}
		c, err := x.log.Parts(ctx, stream)
		if err != nil {
			return s, p, err
		}
		found, between, err := c.Prove(part)
		if err != nil {
			return s, p, err
		}
		if found != nil {
			between, s.Leaves = []merkle.PartProof{*found}, found.Part.Count
		}
		var proofs []bundle.PartProof
		for _, n := range between {
			proofs = append(proofs, bundle.PartProof(n))
		}
		tree = c.Of
		p = bundle.StreamProof{Checkpoint: string(c.Log.Note), Consistency: bundle.ConsistencyText(c.Consistency), Parts: string(c.Note), Part: bundle.PartText(proofs...)}
	} else {
		signed, err := x.log.Sealed(ctx, stream, sequence)
		if err != nil {
			return s, p, err
		}
		tree, s.Leaves = signed.Tree, signed.Size
		p.Checkpoint = string(signed.Note)
	}
	return s, p, x.place(ctx, &s, scope, tree)
}

// place says where a stream's tree ends, and what of it is gone.
func (x *Exports) place(ctx context.Context, s *bundle.Stream, scope bundle.Scope, tree audit.Tree) (err error) {
	s.Size, s.Root = tree.Size, tree.Root.String()
	if s.Size > 0 {
		last, err := x.log.Place(ctx, s.Stream, s.Size-1)
		if err != nil {
			return err
		}
		s.Last = last.Sequence
	}
	if s.Stream == events.Usage {
		err = x.pruned(ctx, s, scope, tree)
	}
	s.Leaves -= s.Pruned
	return err
}

// pruned says what of USAGE is gone.
func (x *Exports) pruned(ctx context.Context, s *bundle.Stream, scope bundle.Scope, tree audit.Tree) error {
	first, err := x.ledger.First(ctx, s.Stream)
	if err != nil || first <= 1 {
		return err
	}
	part, isPart := scope.Part()
	if isPart {
		return x.prunedPart(ctx, s, part, first)
	}
	gone := s.Size
	if first <= s.Last {
		if gone, err = x.log.Index(ctx, audit.Place{Stream: s.Stream, Sequence: first}); err != nil {
			return err
		}
	}
	var indexes []int64
	for at, rest := int64(0), gone; rest > 0; {
		level := bits.Len64(uint64(rest)) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, at>>level))
		at, rest = at+1<<level, rest-1<<level
	}
	state, err := x.log.HashReader(ctx, s.Stream, tree).ReadHashes(indexes)
	if err == nil {
		s.Prune(first, gone, state...)
	}
	return err
}

// prunedPart takes what was counted of a part before the stream was pruned from the
// baseline of that pruning, which may be ahead of it.
func (x *Exports) prunedPart(ctx context.Context, s *bundle.Stream, part audit.Scope, first uint64) error {
	table := merkle.Parts{Stream: s.Stream}.Table()
	tx, err := x.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var through int64
	err = tx.QueryRow(ctx, `select sequence from keyledger.baselines where name = $1`, table).Scan(&through)
	if err == nil && uint64(through)+1 < first || errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s begins at sequence %d, and what the parts held before was not kept: export everything instead", s.Stream, first)
	}
	if err != nil {
		return err
	}
	id := part.ID()
	var count int64
	var chain []byte
	err = tx.QueryRow(ctx, `select events, chain from keyledger_baseline.`+table+` where scope = $1`, id[:]).Scan(&count, &chain)
	if errors.Is(err, pgx.ErrNoRows) {
		s.Prune(uint64(through)+1, 0)
		return nil
	}
	if err == nil {
		s.Prune(uint64(through)+1, count, tlog.Hash(chain))
	}
	return err
}

// ErrNoExport says that OPS has no export at a sequence.
var ErrNoExport = errors.New("no export was recorded there")

// Records yields the leaves of one stream of an export with their bodies, in order,
// from behind a place up to a sequence, as an export recorded at a sequence of OPS asks
// for them. It fails with [ErrNoExport].
func (x *Exports) Records(ctx context.Context, export uint64, stream string, after audit.Place, last uint64) (bundle.Manifest, iter.Seq2[events.Record, error], error) {
	m, err := x.recorded(ctx, export)
	if err != nil {
		return m, nil, err
	}
	part, isPart := m.Scope.Part()
	q := query{Audit: NewAudit(x.ledger).Indexed(x.index), f: AuditFilter{Keyspace: m.Scope.Keyspace, Owner: m.Scope.Owner, Key: m.Scope.Key}, left: -1}
	first := max(after.Sequence, 1)
	for _, s := range m.Streams {
		if s.Stream == stream {
			first = max(first, s.First)
		}
	}
	return m, func(yield func(events.Record, error) bool) {
		if last < first {
			return
		}
		for r, err := range q.records(ctx, stream, first, last) {
			if err == nil {
				if r.Sequence == after.Sequence && r.Line <= after.Line {
					continue
				}
				leaf := audit.Leaf{Keyspace: r.Event.Keyspace, Owner: r.Event.Owner, Key: r.Event.Key}
				if isPart && !part.Holds(&leaf) {
					continue
				}
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}, nil
}

// records takes from a stream what may be of an export: all that its subjects hold, but
// of USAGE, whose subjects name a keyspace alone, what the index names.
func (q *query) records(ctx context.Context, stream string, first, last uint64) iter.Seq2[events.Record, error] {
	w := q.wanted()
	if stream != events.Usage || q.index == nil || !w.Helps() {
		return q.ledger.Read(ctx, stream, first, last, q.exported(stream)...)
	}
	return func(yield func(events.Record, error) bool) {
		for s, err := range q.located(ctx, w, first, last) {
			if (err != nil || s.record.Sequence > 0) && !yield(s.record, err) {
				return
			}
		}
	}
}

// exported are the subjects of a stream that can hold anything of an export; none: all.
func (q *query) exported(stream string) []string {
	if stream == events.Feed {
		if q.f.Keyspace == "" {
			return nil
		}
		return []string{"feed.*.*." + q.f.Keyspace + "." + cmpOr(q.f.Owner, "*") + "." + cmpOr(q.f.Key, "*")}
	}
	return q.subjects(stream)
}

// recorded is what the event of an export says of its scope, its times and where
// streams began.
func (x *Exports) recorded(ctx context.Context, sequence uint64) (m bundle.Manifest, err error) {
	records, err := x.ledger.At(ctx, events.Ops, sequence)
	if errors.Is(err, ledger.ErrNotFound) {
		return m, ErrNoExport
	}
	if err != nil {
		return m, err
	}
	read, ok := records[0].Event.Data.(events.AuditRead)
	if !ok || read.What != bundle.What {
		return m, ErrNoExport
	}
	m.Scope = bundle.Scope{Keyspace: read.Filter["keyspace"], Owner: read.Filter["owner"], Key: read.Filter["key"]}
	for name, to := range map[string]*events.Time{"from": &m.From, "to": &m.To} {
		if s := read.Filter[name]; s != "" {
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return m, err
			}
			*to = events.At(t)
		}
	}
	for _, stream := range audit.Streams {
		s := bundle.Stream{Stream: stream, First: 1}
		// <size> <root> <last sequence> <first sequence> …
		if words := strings.Fields(read.Filter[bundle.TreePrefix+stream]); len(words) > 3 {
			if s.First, err = strconv.ParseUint(words[3], 10, 64); err != nil {
				return m, err
			}
		}
		m.Streams = append(m.Streams, s)
	}
	return m, nil
}
