package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
)

const (
	// A batch is as many records, or what arrived in so long after its first.
	// Little, because somebody may be waiting for their own write; under load a
	// batch fills while the one before is written.
	batchRecords = 20_000
	batchWithin  = 2 * time.Millisecond

	// After a batch of so many, the next one waits so long, unless somebody in this
	// process waits for it: transactions of a few milliseconds would take all the
	// processor time there is, and would write the row of a key again and again.
	busyRecords = 100
	busyWithin  = 100 * time.Millisecond

	pauseLeast   = 50 * time.Millisecond // before a connection is tried again
	pauseMost    = 5 * time.Second
	standbyPause = time.Second           // before a standby tries to take over
	stoppedPause = time.Second           // before a stopped one looks whether it was rebuilt
	pollPause    = 20 * time.Millisecond // of a waiter whose projector is another process
	headPause    = 5 * time.Second
	connPause    = time.Second // before a connection that is not used is looked at
)

// The states of a projection.
const (
	Starting = "starting" // has not applied anything yet
	Running  = "running"
	Standby  = "standby" // another process does it
	Waiting  = "waiting" // cannot reach PostgreSQL or NATS, tries again
	Stopped  = "stopped" // on a record it cannot apply; needs somebody
)

// StoppedError says why a projection stopped and what to do.
type StoppedError struct {
	Name     string
	Stream   string
	Sequence uint64 // that could not be applied
	EventID  string // empty: it could not even be read
	Err      error
}

func (e *StoppedError) Error() string {
	id := ""
	if e.EventID != "" {
		id = " (" + e.EventID + ")"
	}
	return fmt.Sprintf("projection %s stopped before %s sequence %d%s, nothing was skipped: %v. Run a program that can read this record; if the tables were changed by hand, run `keyledger projections rebuild %s`",
		e.Name, e.Stream, e.Sequence, id, e.Err, e.Name)
}

func (e *StoppedError) Unwrap() error { return e.Err }

// Runner keeps projections following their streams. It is safe for concurrent use.
type Runner struct {
	ledger    *ledger.Ledger
	pool      *pgxpool.Pool
	log       *slog.Logger
	followers []*follower
	busy      time.Duration // see busyWithin
	sources   map[string]*shared
}

// New makes a runner of all projections. It does nothing until [Runner.Run];
// rebuilding and waiting work without it. The pool is used for short reads;
// each projection has a connection of its own besides. More are those that not
// every process can write, such as [Addresses].
func New(l *ledger.Ledger, pool *pgxpool.Pool, log *slog.Logger, more ...Projection) *Runner {
	return newRunner(l, pool, log, append(All(), more...))
}

func newRunner(l *ledger.Ledger, pool *pgxpool.Pool, log *slog.Logger, all []Projection) *Runner {
	if log == nil {
		log = slog.Default()
	}
	r := &Runner{ledger: l, pool: pool, log: log, busy: busyWithin}
	sources := map[string]*shared{}
	r.sources = sources
	for _, p := range all {
		if sources[p.Stream()] == nil {
			sources[p.Stream()] = newShared(l, p.Stream())
		}
		f := r.newFollower(p, sources[p.Stream()])
		if s, ok := p.(successor); ok {
			f.before = r.newFollower(s.predecessor(), f.source)
		}
		r.followers = append(r.followers, f)
	}
	return r
}

func (r *Runner) newFollower(p Projection, source *shared) *follower {
	return &follower{Runner: r, p: p, source: source, hurry: make(chan struct{}, 1), state: Starting, moved: make(chan struct{})}
}

// follower is one projection and what this process knows about it.
type follower struct {
	*Runner
	p      Projection
	source *shared       // of its stream
	hurry  chan struct{} // has room for one: wanted was raised

	before *follower   // of the projection that this one replaces; nil: none
	serves atomic.Bool // the one before: it still does

	// mu guards what follows: the last place seen, the furthest that somebody has
	// waited for, whether this process moves it, and a channel that is closed and
	// replaced at each change.
	mu      sync.Mutex
	at      uint64
	wanted  uint64
	leading bool
	state   string
	err     error
	moved   chan struct{}
}

func (f *follower) set(change func()) {
	f.mu.Lock()
	change()
	close(f.moved)
	f.moved = make(chan struct{})
	f.mu.Unlock()
}

// Run follows until ctx ends, and returns when every transaction has ended.
func (r *Runner) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, f := range r.followers {
		all.Go(func() {
			pprof.Do(ctx, pprof.Labels("projection", f.p.Name()), f.run)
		})
		if f.before != nil {
			all.Go(func() { f.succeed(ctx) })
		}
	}
	all.Go(func() { r.keepHeads(ctx) })
	all.Wait()
}

var errStandby = errors.New("another process writes this projection")

func (f *follower) run(ctx context.Context) {
	pause := pauseLeast
	for {
		before := f.position()
		err := f.follow(ctx)
		if ctx.Err() != nil {
			f.set(func() { f.leading, f.state = false, Starting })
			return
		}
		if f.position() > before {
			pause = pauseLeast
		}
		stopped, isStopped := errors.AsType[*StoppedError](err)
		switch {
		case errors.Is(err, errStandby):
			f.set(func() { f.leading, f.state, f.err = false, Standby, nil })
			wait(ctx, standbyPause)
		case isStopped:
			f.set(func() { f.leading, f.state, f.err = false, Stopped, stopped })
			f.log.Error("projection stopped", "projection", f.p.Name(), "stream", f.p.Stream(), "sequence", stopped.Sequence, "event", stopped.EventID, "error", stopped.Err)
			f.tell(ctx, Stopped, stopped, stopped.Sequence)
			f.untilRebuilt(ctx)
		default:
			f.set(func() { f.leading, f.state, f.err = false, Waiting, err })
			f.log.Warn("projection waits", "projection", f.p.Name(), "error", err, "again_in", pause)
			f.tell(ctx, Waiting, err, 0)
			wait(ctx, pause)
			pause = min(2*pause, pauseMost)
		}
	}
}

func (f *follower) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

// connect opens a connection whose unqualified names are tables in a schema.
func (r *Runner) connect(ctx context.Context, schema string) (*pgx.Conn, error) {
	c := r.pool.Config().ConnConfig.Copy()
	c.RuntimeParams["search_path"] = schema
	c.RuntimeParams["timezone"] = "UTC"
	// What a crash of PostgreSQL takes back is read again from the stream.
	c.RuntimeParams["synchronous_commit"] = "off"
	c.RuntimeParams["work_mem"] = "64MB" // a batch is one sort or hash
	c.RuntimeParams["application_name"] = "keyledger projections"
	return pgx.ConnectConfig(ctx, c)
}

// follow applies records until something is in the way. The advisory lock lets
// a second process wait instead of working for nothing; that nothing is applied
// twice rests on the position alone.
func (f *follower) follow(ctx context.Context) error {
	conn, err := f.connect(ctx, "keyledger")
	if err != nil {
		return err
	}
	defer closeConn(conn)
	var free bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtext('keyledger.projection'), hashtext($1))`, f.p.Name()).Scan(&free); err != nil {
		return err
	}
	if !free {
		return errStandby
	}
	at, err := openPosition(ctx, conn, f.p)
	if err != nil {
		return err
	}
	if at == 0 {
		if at, err = f.beginLate(ctx, conn); err != nil {
			return err
		}
	}
	f.set(func() { f.leading, f.state, f.err, f.at = true, Running, nil, at })
	following, lost := context.WithCancelCause(ctx)
	var using sync.Mutex
	var watching sync.WaitGroup
	watching.Go(func() { watchConn(following, conn, &using, lost) })
	defer watching.Wait()
	defer lost(nil)
	for batch, err := range f.records(following, at) {
		if err != nil {
			return f.readError(err, at)
		}
		using.Lock()
		at, err = f.apply(ctx, conn, at, batch)
		using.Unlock()
		if err != nil {
			return err
		}
	}
	return context.Cause(following)
}

// watchConn ends the following when the connection is lost while there is nothing to
// write: a PostgreSQL that crashed may have taken back what was written last, which
// must be read again although nothing new comes.
func watchConn(ctx context.Context, conn *pgx.Conn, using *sync.Mutex, lost context.CancelCauseFunc) {
	for wait(ctx, connPause) {
		asking, stop := context.WithTimeout(ctx, pauseMost)
		using.Lock()
		err := conn.Ping(asking)
		using.Unlock()
		stop()
		if err != nil {
			lost(fmt.Errorf("the connection to PostgreSQL was lost: %w", err))
			return
		}
	}
}

// closeConn gives locks back at once; the server would a moment after the
// connection has closed.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if !conn.IsClosed() {
		_, _ = conn.Exec(ctx, `select pg_advisory_unlock_all()`)
	}
	_ = conn.Close(ctx)
}

// openPosition reads how far a projection is and says that it runs.
func openPosition(ctx context.Context, conn *pgx.Conn, p Projection) (uint64, error) {
	var at int64
	err := conn.QueryRow(ctx, `insert into keyledger.positions as p (name, stream, state) values ($1, $2, 'running')
		on conflict (name) do update set state = 'running', error = '', failed_at = null
		returning sequence`, p.Name(), p.Stream()).Scan(&at)
	return uint64(at), err
}

// beginLate is for a projection that has read nothing of a stream whose front is
// gone. It begins with the baseline where there is one, as in a database that was
// lost but for that; else it notes from where it begins, because a rebuild has to
// begin there too.
func (f *follower) beginLate(ctx context.Context, conn *pgx.Conn) (uint64, error) {
	first, err := f.ledger.First(ctx, f.p.Stream())
	if err != nil || first == 1 {
		return 0, err
	}
	at, found, err := baseline(ctx, conn, f.p.Name())
	if err != nil || found && at.sequence+1 < first {
		return 0, err
	}
	if s, ok := f.p.(successor); ok && !found {
		if at, found, err = adoptBaseline(ctx, conn, s); err != nil || found && at.sequence+1 < first {
			return 0, err
		}
	}
	if !found {
		_, err = beginBaseline(ctx, conn, f.p, first-1)
		return 0, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(ctx, `update keyledger.positions set sequence = $2, event_id = $3, moved_at = now() where name = $1 and sequence = 0`, f.p.Name(), int64(at.sequence), at.eventID)
	if err != nil {
		return 0, err
	}
	if tag.RowsAffected() == 0 {
		return 0, errStandby
	}
	for _, t := range f.p.Tables() {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`insert into keyledger.%[1]s select * from keyledger_baseline.%[1]s`, t.Name)); err != nil {
			return 0, err
		}
	}
	return at.sequence, tx.Commit(ctx)
}

// readError tells a record that this program cannot read from a server that
// does not answer.
func (f *follower) readError(err error, at uint64) error {
	_, unknown := errors.AsType[*events.UnknownError](err)
	_, refused := errors.AsType[*ledger.RefusalError](err)
	if unknown || refused {
		return &StoppedError{f.p.Name(), f.p.Stream(), at + 1, "", err}
	}
	return err
}

// apply writes a batch; when it cannot be applied as a whole, message by message up
// to the one that is to blame.
func (f *follower) apply(ctx context.Context, conn *pgx.Conn, at uint64, batch []events.Record) (uint64, error) {
	err := f.step(ctx, conn, at, batch)
	if err == nil {
		return placeOf(batch[len(batch)-1]).sequence, nil
	}
	if ctx.Err() != nil || errors.Is(err, errStandby) || conn.IsClosed() || !permanent(err) {
		return at, err
	}
	for message := range messages(batch) {
		if err := f.step(ctx, conn, at, message); err != nil {
			if ctx.Err() != nil || errors.Is(err, errStandby) || conn.IsClosed() || !permanent(err) {
				return at, err
			}
			return at, &StoppedError{f.p.Name(), f.p.Stream(), message[0].Sequence, message[0].Event.ID, err}
		}
		at = message[0].Sequence
	}
	return at, nil
}

// messages cuts a batch into the records of each message.
func messages(batch []events.Record) func(yield func([]events.Record) bool) {
	return func(yield func([]events.Record) bool) {
		for len(batch) > 0 {
			n := 1
			for n < len(batch) && batch[n].Sequence == batch[0].Sequence {
				n++
			}
			if !yield(batch[:n]) {
				return
			}
			batch = batch[n:]
		}
	}
}

// permanent says whether trying again cannot help: the error is about the data,
// not about the connection, the server's state or another transaction.
func permanent(err error) bool {
	if _, away := errors.AsType[awayError](err); away {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return true
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "54", "P0":
		return true
	}
	return false
}

// step moves the position from at to the end of the batch and writes its rows,
// both or neither. The position comes first: it takes the row's lock, which a
// rebuild that switches tables holds too, before any table is touched.
func (f *follower) step(ctx context.Context, conn *pgx.Conn, at uint64, batch []events.Record) error {
	to := placeOf(batch[len(batch)-1])
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(ctx, `update keyledger.positions set sequence = $3, event_id = $4, moved_at = now(), state = 'running', error = '', failed_at = null
		where name = $1 and sequence = $2`, f.p.Name(), int64(at), int64(to.sequence), to.eventID)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return errStandby
	}
	if err := f.p.Apply(ctx, tx, batch); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	f.set(func() { f.at = to.sequence })
	return nil
}

// tell leaves the state for those who look from other processes; it is lost
// where PostgreSQL is away.
func (f *follower) tell(ctx context.Context, state string, why error, failed uint64) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var at *int64
	if failed > 0 {
		at = new(int64(failed))
	}
	_, _ = f.pool.Exec(ctx, `update keyledger.positions set state = $2, error = $3, failed_at = $4 where name = $1`, f.p.Name(), state, clean(why.Error()), at)
}

// untilRebuilt waits until somebody has rebuilt the stopped projection.
func (f *follower) untilRebuilt(ctx context.Context) {
	read := func() (n int64, err error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = f.pool.QueryRow(ctx, `select rebuilds from keyledger.positions where name = $1`, f.p.Name()).Scan(&n)
		return n, err
	}
	first, err := read()
	for wait(ctx, stoppedPause) {
		n, e := read()
		if e == nil && err == nil && n != first {
			return
		}
		if e == nil && err != nil {
			first, err = n, nil
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (r *Runner) follower(name string) (*follower, error) {
	for _, f := range r.followers {
		if f.p.Name() == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("there is no projection %q: the names are %v", name, r.Names())
}

// Names of the projections.
func (r *Runner) Names() []string {
	var names []string
	for _, f := range r.followers {
		names = append(names, f.p.Name())
	}
	return names
}

// Wait returns when a projection has reached a sequence of its stream, or the one that
// it replaces, as long as that is served. It fails
// with a [*StoppedError] when it will not without help, and with the error of
// ctx.
func (r *Runner) Wait(ctx context.Context, name string, sequence uint64) error {
	asked, err := r.follower(name)
	if err != nil {
		return err
	}
	for {
		f := asked
		if f.before != nil && f.before.serves.Load() { // what is read is the one before
			f, name = f.before, f.before.p.Name()
		} else {
			name = f.p.Name()
		}
		f.mu.Lock()
		at, leading, state, why, moved := f.at, f.leading, f.state, f.err, f.moved
		if at < sequence && f.wanted < sequence {
			f.wanted = sequence
			select {
			case f.hurry <- struct{}{}:
			default:
			}
		}
		f.mu.Unlock()
		if at >= sequence {
			return nil
		}
		if state == Stopped {
			return why
		}
		if leading {
			select {
			case <-moved:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var stored int64
		err := r.pool.QueryRow(ctx, `select sequence from keyledger.positions where name = $1`, name).Scan(&stored)
		if err == nil && uint64(stored) >= sequence {
			return nil
		}
		if !wait(ctx, pollPause) {
			return ctx.Err()
		}
	}
}

// keepHeads writes down where the streams end, for analytics.projection_status.
func (r *Runner) keepHeads(ctx context.Context) {
	for {
		for _, stream := range r.streams() {
			if head, err := r.ledger.Head(ctx, stream); err == nil {
				_, _ = r.pool.Exec(ctx, `insert into keyledger.heads (stream, sequence, seen_at) values ($1, $2, now())
					on conflict (stream) do update set sequence = excluded.sequence, seen_at = excluded.seen_at`, stream, int64(head))
			}
		}
		if !wait(ctx, headPause) {
			return
		}
	}
}

func (r *Runner) streams() []string {
	var names []string
	for _, f := range r.followers {
		if !slices.Contains(names, f.p.Stream()) {
			names = append(names, f.p.Stream())
		}
	}
	return names
}

// Status is how one projection is doing.
type Status struct {
	Name           string    `json:"name"`
	Stream         string    `json:"stream"`
	Position       uint64    `json:"position"`
	Head           uint64    `json:"head"`
	Lag            uint64    `json:"lag"` // messages; a page of uses is one
	State          string    `json:"state"`
	Error          string    `json:"error"`           // why it waits or stopped, and what to do
	FailedSequence uint64    `json:"failed_sequence"` // 0: none
	MovedAt        time.Time `json:"moved_at"`        // zero: not known
	Rebuilds       int64     `json:"rebuilds"`
}

// Status tells of every projection what PostgreSQL says or, where that cannot be
// reached, what this process last knew. It fails where NATS cannot be reached.
func (r *Runner) Status(ctx context.Context) ([]Status, error) {
	heads := map[string]uint64{}
	for _, stream := range r.streams() {
		head, err := r.ledger.Head(ctx, stream)
		if err != nil {
			return nil, err
		}
		heads[stream] = head
	}
	type row struct {
		Name, State, Error string
		Sequence, Rebuilds int64
		FailedAt           *int64
		MovedAt            time.Time
	}
	found := map[string]row{}
	rows, err := r.pool.Query(ctx, `select name, state, error, sequence, rebuilds, failed_at, moved_at from keyledger.positions`)
	if err == nil {
		var list []row
		list, err = pgx.CollectRows(rows, pgx.RowToStructByName[row])
		for _, p := range list {
			found[p.Name] = p
		}
	}
	var all []Status
	followers := slices.Clone(r.followers)
	for _, f := range r.followers {
		if f.before != nil {
			if _, ok := found[f.before.p.Name()]; ok {
				followers = append(followers, f.before)
			}
		}
	}
	for _, f := range followers {
		f.mu.Lock()
		s := Status{Name: f.p.Name(), Stream: f.p.Stream(), Position: f.at, State: f.state}
		if f.err != nil {
			s.Error = f.err.Error()
		}
		f.mu.Unlock()
		if p, ok := found[s.Name]; ok {
			s.Position, s.State, s.Error, s.MovedAt, s.Rebuilds = uint64(p.Sequence), p.State, p.Error, p.MovedAt, p.Rebuilds
			if p.FailedAt != nil {
				s.FailedSequence = uint64(*p.FailedAt)
			}
		} else if err != nil {
			s.State, s.Error = Waiting, "PostgreSQL cannot be reached: "+err.Error()
		}
		s.Head = max(heads[s.Stream], s.Position)
		s.Lag = s.Head - s.Position
		all = append(all, s)
	}
	return all, nil
}

// Positions are how far the projections in a database are, for [ledger.Open],
// which refuses streams that do not reach them. A database without the tables
// has none.
func Positions(ctx context.Context, pool *pgxpool.Pool) ([]ledger.Position, error) {
	rows, err := pool.Query(ctx, `select 'projection ' || name, stream, sequence, event_id from keyledger.positions where sequence > 0 order by name`)
	if err == nil {
		var list []ledger.Position
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p ledger.Position, err error) {
			var at int64
			err = row.Scan(&p.Name, &p.Stream, &at, &p.EventID)
			p.Sequence = uint64(at)
			return p, err
		})
		if err == nil {
			return list, nil
		}
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "3F000") {
		return nil, nil
	}
	return nil, fmt.Errorf("read the positions of the projections: %w", err)
}
