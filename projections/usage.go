package projections

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Usage folds USAGE into requests per minute, hour and day and the last use of each
// key.
//
// A use whose status was not known is counted with status 0 until its outcome
// is reported, and is then moved, once: the two halves meet in outcomes_v2 in
// whichever order they come, and stay there as long as a repetition is likely.
// A report later than [OutcomeWindow] after its use is left alone; of several
// reports of a use the first counts.
//
// Batches write minutes. A minute is added to its hour when it is two minutes old by
// the clock of the facts, and an hour to its day likewise: a minute's row is written
// ten times a second, an hour's once a minute. What comes later than that is added to
// all of them. So the hours before folded and the days before days_folded hold
// exactly what the minutes and hours do, and what is missing there is at most two
// minutes and one hour: see migrations/views.sql. A fact from the future (a clock that
// is wrong) makes the clock go ahead, by an hour at most; figures stay right, they only
// cost more until the time is reached.
//
// Where rows are removed by age ([Runner.Forget]), what comes late is added to the
// resolutions that are still there.
type Usage struct{}

// usageV1 is the one before, without hours and days. It goes on in an installation
// that has it until Usage has read as far, see succession.go.
type usageV1 struct{}

// OutcomeWindow is how long after a use its outcome may be reported, by the
// times in the two facts.
const OutcomeWindow = 24 * time.Hour

// What is kept of texts that a caller of the API chooses, in bytes: they are
// part of an index.
const (
	maxEndpoint = 256
	maxMethod   = 32
)

// Bounds are the upper bounds of the latency classes in milliseconds; a last
// class holds what is above.
var Bounds = [...]int64{1, 2, 3, 5, 7, 10, 15, 25, 40, 65, 100, 150, 250, 400, 650, 1000, 1500, 2500, 4000, 6500, 10000, 30000}

const (
	// foldedAfter is how old a minute is before it is added to its hour: most outcomes
	// are reported by then, and most of what nodes wrote at the same time has come.
	foldedAfter = 2 * time.Minute

	// outcomesKept is twice the window, so that what is dropped can no longer be settled.
	outcomesKept = 2 * OutcomeWindow

	// clockStep is how far one fact may set the clock forward.
	clockStep = time.Hour
)

// Name is usage_v2.
func (Usage) Name() string { return "usage_v2" }

// Stream is USAGE.
func (Usage) Stream() string { return events.Usage }

// Tables are those of outcomes, of minutes, hours and days, of last uses, and the state.
func (Usage) Tables() []Table {
	return []Table{{"usage_state_v2", true}, {"outcomes_v2", false}, {"usage_v2", true}, {"usage_hours_v2", true}, {"usage_days_v2", true}, {"last_used_v2", true}}
}

func (usageV1) Name() string   { return "usage_v1" }
func (usageV1) Stream() string { return events.Usage }
func (usageV1) Tables() []Table {
	return []Table{{"outcomes_v1", false}, {"usage_v1", true}, {"last_used_v1", true}}
}

type minuteKey struct {
	keyspace, owner, key          string
	minute                        int64 // since 1970
	code                          string
	status                        int16
	environment, method, endpoint string
}

func (a minuteKey) compare(b minuteKey) int {
	return cmp.Or(
		strings.Compare(a.key, b.key), cmp.Compare(a.minute, b.minute), strings.Compare(a.keyspace, b.keyspace), strings.Compare(a.owner, b.owner),
		strings.Compare(a.code, b.code), cmp.Compare(a.status, b.status),
		strings.Compare(a.environment, b.environment), strings.Compare(a.method, b.method), strings.Compare(a.endpoint, b.endpoint))
}

type figures struct {
	requests, measured, latency, cost int64
	classes                           [len(Bounds) + 1]int32
}

func (f *figures) add(requests int64, latency *int64, cost int64) {
	f.requests += requests
	f.cost += cost
	if latency != nil {
		ms := max(*latency, 0)
		f.measured++
		f.latency += ms
		class, _ := slices.BinarySearch(Bounds[:], ms)
		f.classes[class]++
	}
}

type lastUse struct {
	key, keyspace, owner  string
	uses, successes       int64
	at, success, previous events.Time
	secret                string
}

// outcome is a row of outcomes_v1: the two halves of a use.
type outcome struct {
	decision [16]byte
	used     events.Time // 0: the use has not come
	reported events.Time // 0: the report has not come

	minuteKey
	cost int64

	reportedEndpoint string // empty: as recorded with the use
	status           int16
	latency          *int64
	reportedCost     *int64 // nil: as recorded with the use
}

type usageFold struct {
	first    bool // usageV1
	minutes  map[minuteKey]*figures
	uses     map[string]*lastUse
	outcomes map[[16]byte]*outcome
	was, now usageState
}

// usageState is the row of usage_state_v2; times in milliseconds since 1970.
type usageState struct {
	clock, folded, daysFolded events.Time

	// What is before was removed; 0: nothing was.
	minutesFrom, hoursFrom, daysFrom events.Time
}

// Apply folds a batch.
func (Usage) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	return applyUsage(ctx, tx, batch, false)
}

func (usageV1) Apply(ctx context.Context, tx pgx.Tx, batch []events.Record) error {
	return applyUsage(ctx, tx, batch, true)
}

func applyUsage(ctx context.Context, tx pgx.Tx, batch []events.Record, first bool) error {
	f := usageFold{first: first, minutes: map[minuteKey]*figures{}, uses: map[string]*lastUse{}, outcomes: map[[16]byte]*outcome{}}
	for _, r := range batch {
		switch d := r.Event.Data.(type) {
		case events.KeyUsed:
			if d.Status == nil {
				f.outcomes[decisionID(d.Decision)] = nil
			}
		case events.KeyUseReported:
			f.outcomes[decisionID(d.Decision)] = nil
		}
	}
	if err := f.load(ctx, tx); err != nil {
		return err
	}
	f.now = f.was
	for _, r := range batch {
		f.now.tick(r.Event.Time)
		if err := f.apply(r); err != nil {
			return err
		}
	}
	f.now.fold()
	return f.store(ctx, tx)
}

// tick sets the clock to the time of a fact. It MUST depend on the facts and their
// order alone.
func (s *usageState) tick(t events.Time) {
	switch step := events.Time(clockStep.Milliseconds()); {
	case s.clock == 0:
		s.clock = t
	case t > s.clock:
		s.clock = min(t, s.clock+step)
	}
}

// fold sets how far minutes and hours are to be added up: at least as far as they are
// removed.
func (s *usageState) fold() {
	const minute, hour = 60_000, 3_600_000
	s.folded = max(s.folded, (s.clock-events.Time(foldedAfter.Milliseconds()))/minute*minute, s.minutesFrom, s.hoursFrom, s.daysFrom)
	s.daysFolded = max(s.daysFolded, s.folded/hour*hour)
}

func (f *usageFold) apply(r events.Record) error {
	e := r.Event
	at := minuteKey{keyspace: e.Keyspace, owner: e.Owner, key: e.Key, minute: minute(e.Time)}
	switch d := e.Data.(type) {
	case events.KeyUsed:
		at.code, at.environment = string(domain.CodeValid), clean(d.Environment)
		at.method, at.endpoint = short(d.Method, maxMethod), short(d.Endpoint, maxEndpoint)
		status := int16(0)
		if d.Status != nil {
			status = httpStatus(*d.Status)
		} else {
			o := f.outcome(d.Decision)
			if o.used != 0 {
				return nil // recorded before
			}
			o.used, o.minuteKey, o.cost = e.Time, at, d.CostMicros
			f.used(e, d.Secret, 0)
			f.minute(at).add(1, nil, d.CostMicros)
			f.settle(o)
			return nil
		}
		at.status = status
		f.used(e, d.Secret, status)
		f.minute(at).add(1, d.LatencyMS, d.CostMicros)
	case events.KeyUseReported:
		o := f.outcome(d.Decision)
		if o.reported != 0 {
			return nil // said before
		}
		o.reported, o.reportedEndpoint, o.status = e.Time, short(d.Endpoint, maxEndpoint), httpStatus(d.Status)
		o.latency, o.reportedCost = new(d.LatencyMS), d.CostMicros
		f.settle(o)
	case events.KeyRateLimited:
		at.code, at.minute = string(domain.CodeRateLimited), minute(cmp.Or(d.First, e.Time))
		f.minute(at).add(d.Count, nil, 0)
	case events.KeyDenied:
		at.code, at.endpoint, at.minute = clean(d.Code), short(d.Endpoint, maxEndpoint), minute(cmp.Or(d.First, e.Time))
		f.minute(at).add(d.Count, nil, 0)
	case events.CredentialRejected:
		at.code, at.minute = clean(d.Code), minute(cmp.Or(d.First, e.Time))
		f.minute(at).add(d.Count, nil, 0)
	case events.LimitTaken, events.UsageGap:
		// Other traffic and what was lost are no requests with a key.
	default:
		return fmt.Errorf("%s does not belong in %s", e.Type, r.Stream)
	}
	return nil
}

func (f *usageFold) minute(at minuteKey) *figures {
	m := f.minutes[at]
	if m == nil {
		m = new(figures)
		f.minutes[at] = m
	}
	return m
}

func (f *usageFold) outcome(decision string) *outcome {
	id := decisionID(decision)
	o := f.outcomes[id]
	if o == nil || !f.first && f.isOld(o) {
		o = &outcome{decision: id}
		f.outcomes[id] = o
	}
	return o
}

// isOld says whether a row of outcomes_v2 counts no more, which MUST NOT depend on
// when it is deleted.
func (f *usageFold) isOld(o *outcome) bool {
	return max(o.used, o.reported) < f.now.clock-events.Time(outcomesKept.Milliseconds())
}

// used counts an admitted request for its key; status 0: not known.
func (f *usageFold) used(e events.Envelope, secret string, status int16) {
	u := f.use(e.Key, e.Keyspace, e.Owner)
	u.uses++
	if e.Time >= u.at {
		u.at, u.secret = e.Time, clean(secret)
	}
	if secret == "previous" {
		u.previous = max(u.previous, e.Time)
	}
	if succeeded(status) {
		u.successes++
		u.success = max(u.success, e.Time)
	}
}

func (f *usageFold) use(key, keyspace, owner string) *lastUse {
	u := f.uses[key]
	if u == nil {
		u = &lastUse{key: key, keyspace: keyspace, owner: owner}
		f.uses[key] = u
	}
	return u
}

// settle moves a use to its outcome when both are there.
func (f *usageFold) settle(o *outcome) {
	if o.used == 0 || o.reported == 0 || o.reported.Time().Sub(o.used.Time()) > OutcomeWindow {
		return
	}
	f.minute(o.minuteKey).add(-1, nil, -o.cost)
	to, cost := o.minuteKey, o.cost
	to.status = o.status
	if o.reportedEndpoint != "" {
		to.endpoint = o.reportedEndpoint
	}
	if o.reportedCost != nil {
		cost = *o.reportedCost
	}
	f.minute(to).add(1, o.latency, cost)
	if succeeded(o.status) {
		u := f.use(o.key, o.keyspace, o.owner)
		u.successes++
		u.success = max(u.success, o.used)
	}
}

func succeeded(status int16) bool { return status > 0 && status < 400 }

func minute(t events.Time) int64 { return int64(t) / 60_000 }

// httpStatus keeps whatever was reported within a smallint.
func httpStatus(s int) int16 { return int16(min(max(s, 0), 999)) }

// KeptEndpoint is what figures keep of an endpoint.
func KeptEndpoint(s string) string { return short(s, maxEndpoint) }

// KeptMethod is what figures keep of a method.
func KeptMethod(s string) string { return short(s, maxMethod) }

// KeptStatus is what figures keep of a status; 0: not known.
func KeptStatus(s int) int { return int(httpStatus(s)) }

// decisionID is dec_<uuid> in 16 bytes; a decision id of another form is hashed.
func decisionID(s string) [16]byte {
	if u, err := events.ParseID("dec", s); err == nil {
		return u
	}
	h := sha256.Sum256([]byte(s))
	return [16]byte(h[:16])
}

func (f *usageFold) load(ctx context.Context, tx pgx.Tx) error {
	outcomes, b := "outcomes_v2", pgx.Batch{}
	if f.first {
		outcomes = "outcomes_v1"
	} else {
		b.Queue(`select clock, folded, days_folded, minutes_from, hours_from, days_from from usage_state_v2`).Query(f.was.scan)
	}
	if len(f.outcomes) > 0 {
		b.Queue(`select decision, used_at, reported_at, keyspace, owner, key, environment, method, endpoint, cost_micros,
				reported_endpoint, reported_status, reported_latency, reported_cost
			from `+outcomes+` where decision = any($1::uuid[])`, slices.Collect(maps.Keys(f.outcomes))).Query(f.loadOutcomes)
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// scan reads the row, where there is one.
func (s *usageState) scan(rows pgx.Rows) error {
	var clock, folded, days time.Time
	var minutesFrom, hoursFrom, daysFrom *time.Time
	_, err := pgx.ForEachRow(rows, []any{&clock, &folded, &days, &minutesFrom, &hoursFrom, &daysFrom}, func() error {
		*s = usageState{events.At(clock), events.At(folded), events.At(days), moment(minutesFrom), moment(hoursFrom), moment(daysFrom)}
		return nil
	})
	return err
}

func (f *usageFold) loadOutcomes(rows pgx.Rows) error {
	var o outcome
	var used, reported *time.Time
	_, err := pgx.ForEachRow(rows, []any{&o.decision, &used, &reported, &o.keyspace, &o.owner, &o.key, &o.environment, &o.method, &o.endpoint, &o.cost,
		&o.reportedEndpoint, &o.status, &o.latency, &o.reportedCost}, func() error {
		found := o
		found.used, found.reported = moment(used), moment(reported)
		found.minute, found.code = minute(found.used), string(domain.CodeValid)
		found.latency, found.reportedCost = copied(o.latency), copied(o.reportedCost)
		f.outcomes[o.decision] = &found
		return nil
	})
	return err
}

func copied(n *int64) *int64 {
	if n == nil {
		return nil
	}
	return new(*n)
}

// ClassColumns are the columns of usage that count the latency classes: one
// per bound, and a last one for what is above.
func ClassColumns() []string { return slices.Clone(classColumns) }

var classColumns = func() (names []string) {
	for _, b := range Bounds {
		names = append(names, fmt.Sprintf("to_%d", b))
	}
	return append(names, "to_more")
}()

var (
	figureColumns = slices.Concat(strings.Fields("requests measured latency_ms cost_micros"), classColumns)
	restOfKey     = "keyspace, owner, code, status, environment, method, endpoint"
)

// insertUsage adds rows to a table whose column for the time is at.
func insertUsage(table, at string) string {
	columns := slices.Concat([]string{"key", at}, strings.Split(restOfKey, ", "), figureColumns)
	types := strings.Fields("text timestamptz text text text smallint text text text bigint bigint bigint bigint")
	var arrays []string
	for i := range columns {
		kind := "int"
		if i < len(types) {
			kind = types[i]
		}
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", i+1, kind))
	}
	return "insert into " + table + " as u (" + strings.Join(columns, ", ") + ") select * from unnest(" + strings.Join(arrays, ", ") + ")" + addUp(at)
}

// addUp is what an insert does with a row that is there.
func addUp(at string) string {
	var sums []string
	for _, c := range figureColumns {
		sums = append(sums, fmt.Sprintf("%[1]s = u.%[1]s + excluded.%[1]s", c))
	}
	return " on conflict (key, " + at + ", " + restOfKey + ") do update set " + strings.Join(sums, ", ")
}

// foldUsage adds the rows of a table from $1 until $2 to those of a longer time.
func foldUsage(from, fromAt, to, toAt string) string {
	var sums []string
	for _, c := range figureColumns {
		sums = append(sums, "sum("+c+")")
	}
	return fmt.Sprintf(`insert into %s as u (key, %[2]s, %[3]s, %[4]s) select key, date_trunc('%[2]s', %[5]s, 'UTC') as %[2]s, %[3]s, %[6]s
		from %[7]s where %[5]s >= $1 and %[5]s < $2 group by key, 2, %[3]s order by key, 2, %[3]s`,
		to, toAt, restOfKey, strings.Join(figureColumns, ", "), fromAt, strings.Join(sums, ", "), from) + addUp(toAt)
}

// The statements of each table.
var (
	insertMinutesV1 = insertUsage("usage_v1", "minute")
	insertMinutes   = insertUsage("usage_v2", "minute")
	insertHours     = insertUsage("usage_hours_v2", "hour")
	insertDays      = insertUsage("usage_days_v2", "day")
	foldMinutes     = foldUsage("usage_v2", "minute", "usage_hours_v2", "hour")
	foldHours       = foldUsage("usage_hours_v2", "hour", "usage_days_v2", "day")
)

type minuteRow struct {
	minuteKey
	*figures
}

func (f *usageFold) store(ctx context.Context, tx pgx.Tx) error {
	var b pgx.Batch
	rows := sortedRows(f.minutes)
	lastUsed, outcomesTable := "last_used_v2", "outcomes_v2"
	if f.first {
		lastUsed, outcomesTable = "last_used_v1", "outcomes_v1"
		queueUsage(&b, insertMinutesV1, rows)
	} else {
		f.storeUsage(&b, rows)
	}
	if len(f.uses) > 0 {
		uses := slices.SortedFunc(maps.Values(f.uses), func(a, b *lastUse) int { return strings.Compare(a.key, b.key) })
		b.Queue(`insert into `+lastUsed+` as l (key, keyspace, owner, uses, successes, last_used_at, last_success_at, last_secret, previous_used_at)
			select key, keyspace, owner, uses, successes, coalesce(used, '-infinity'), success, secret, previous
			from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[], $7::timestamptz[], $8::text[], $9::timestamptz[])
				as u(key, keyspace, owner, uses, successes, used, success, secret, previous)
			on conflict (key) do update set
				uses = l.uses + excluded.uses,
				successes = l.successes + excluded.successes,
				last_secret = case when excluded.last_used_at >= l.last_used_at then excluded.last_secret else l.last_secret end,
				last_used_at = greatest(l.last_used_at, excluded.last_used_at),
				last_success_at = greatest(l.last_success_at, excluded.last_success_at),
				previous_used_at = greatest(l.previous_used_at, excluded.previous_used_at)`,
			column(uses, func(u **lastUse) string { return (*u).key }),
			column(uses, func(u **lastUse) string { return (*u).keyspace }),
			column(uses, func(u **lastUse) string { return (*u).owner }),
			column(uses, func(u **lastUse) int64 { return (*u).uses }),
			column(uses, func(u **lastUse) int64 { return (*u).successes }),
			column(uses, func(u **lastUse) *time.Time { return nullable((*u).at) }),
			column(uses, func(u **lastUse) *time.Time { return nullable((*u).success) }),
			column(uses, func(u **lastUse) string { return (*u).secret }),
			column(uses, func(u **lastUse) *time.Time { return nullable((*u).previous) }))
	}
	if len(f.outcomes) > 0 {
		outcomes := slices.SortedFunc(maps.Values(f.outcomes), func(a, b *outcome) int { return slices.Compare(a.decision[:], b.decision[:]) })
		b.Queue(`insert into `+outcomesTable+` as o (decision, at, used_at, reported_at, keyspace, owner, key, environment, method, endpoint, cost_micros,
				reported_endpoint, reported_status, reported_latency, reported_cost)
			select decision, greatest(used, reported), used, reported, keyspace, owner, key, environment, method, endpoint, cost,
				reported_endpoint, status, latency, reported_cost
			from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[],
				$11::text[], $12::smallint[], $13::bigint[], $14::bigint[])
				as u(decision, used, reported, keyspace, owner, key, environment, method, endpoint, cost, reported_endpoint, status, latency, reported_cost)
			on conflict (decision) do update set at = excluded.at, used_at = excluded.used_at, reported_at = excluded.reported_at,
				keyspace = excluded.keyspace, owner = excluded.owner, key = excluded.key, environment = excluded.environment,
				method = excluded.method, endpoint = excluded.endpoint, cost_micros = excluded.cost_micros,
				reported_endpoint = excluded.reported_endpoint, reported_status = excluded.reported_status,
				reported_latency = excluded.reported_latency, reported_cost = excluded.reported_cost`,
			column(outcomes, func(o **outcome) [16]byte { return (*o).decision }),
			column(outcomes, func(o **outcome) *time.Time { return nullable((*o).used) }),
			column(outcomes, func(o **outcome) *time.Time { return nullable((*o).reported) }),
			column(outcomes, func(o **outcome) string { return (*o).keyspace }),
			column(outcomes, func(o **outcome) string { return (*o).owner }),
			column(outcomes, func(o **outcome) string { return (*o).key }),
			column(outcomes, func(o **outcome) string { return (*o).environment }),
			column(outcomes, func(o **outcome) string { return (*o).method }),
			column(outcomes, func(o **outcome) string { return (*o).endpoint }),
			column(outcomes, func(o **outcome) int64 { return (*o).cost }),
			column(outcomes, func(o **outcome) string { return (*o).reportedEndpoint }),
			column(outcomes, func(o **outcome) int16 { return (*o).status }),
			column(outcomes, func(o **outcome) *int64 { return (*o).latency }),
			column(outcomes, func(o **outcome) *int64 { return (*o).reportedCost }))
		if f.first {
			b.Queue(`delete from outcomes_v1 where at < (select max(at) from outcomes_v1) - interval '48 hours'`)
		}
	}
	if !f.first {
		b.Queue(`delete from outcomes_v2 where at < $1`, (f.now.clock - events.Time(outcomesKept.Milliseconds())).Time())
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// storeUsage writes what a batch has of minutes to all tables that it belongs to, and
// adds up what has become old enough.
func (f *usageFold) storeUsage(b *pgx.Batch, rows []minuteRow) {
	minutes, hours, days := rows[:0:0], map[minuteKey]*figures{}, map[minuteKey]*figures{}
	for _, r := range rows {
		at := time.Unix(r.minute*60, 0).UTC()
		hour, day := at.Truncate(time.Hour), at.Truncate(24*time.Hour)
		if !isBefore(at, f.was.minutesFrom) {
			minutes = append(minutes, r)
		}
		if isBefore(at, f.was.folded) && !isBefore(hour, f.was.hoursFrom) {
			merge(hours, r, hour)
		}
		if isBefore(at, f.was.daysFolded) && !isBefore(day, f.was.daysFrom) {
			merge(days, r, day)
		}
	}
	queueUsage(b, insertMinutes, minutes)
	queueUsage(b, insertHours, sortedRows(hours))
	queueUsage(b, insertDays, sortedRows(days))
	f.queueFold(b)
}

// isBefore says whether a time is before one that is set.
func isBefore(t time.Time, set events.Time) bool { return set != 0 && t.UnixMilli() < int64(set) }

// queueFold adds minutes to hours and hours to days, and keeps the state.
func (f *usageFold) queueFold(b *pgx.Batch) {
	if f.now == f.was {
		return
	}
	if f.now.folded > f.was.folded {
		b.Queue(foldMinutes, f.was.folded.Time(), f.now.folded.Time())
	}
	if f.now.daysFolded > f.was.daysFolded {
		b.Queue(foldHours, f.was.daysFolded.Time(), f.now.daysFolded.Time())
	}
	s := &f.now
	b.Queue(`insert into usage_state_v2 (one, clock, folded, days_folded, minutes_from, hours_from, days_from) values (true, $1, $2, $3, $4, $5, $6)
		on conflict (one) do update set clock = excluded.clock, folded = excluded.folded, days_folded = excluded.days_folded,
			minutes_from = excluded.minutes_from, hours_from = excluded.hours_from, days_from = excluded.days_from`,
		s.clock.Time(), s.folded.Time(), s.daysFolded.Time(), nullable(s.minutesFrom), nullable(s.hoursFrom), nullable(s.daysFrom))
}

// merge adds a row to that of a longer time.
func merge(all map[minuteKey]*figures, r minuteRow, start time.Time) {
	r.minute = start.Unix() / 60
	sum := all[r.minuteKey]
	if sum == nil {
		sum = new(figures)
		all[r.minuteKey] = sum
	}
	sum.requests += r.requests
	sum.measured += r.measured
	sum.latency += r.latency
	sum.cost += r.cost
	for i, n := range r.classes {
		sum.classes[i] += n
	}
}

func sortedRows(all map[minuteKey]*figures) []minuteRow {
	rows := make([]minuteRow, 0, len(all))
	for k, v := range all {
		rows = append(rows, minuteRow{k, v})
	}
	slices.SortFunc(rows, func(a, b minuteRow) int { return a.compare(b.minuteKey) })
	return rows
}

// queueUsage adds rows to a table, whose statement sql is.
func queueUsage(b *pgx.Batch, sql string, rows []minuteRow) {
	if len(rows) == 0 {
		return
	}
	args := []any{
		column(rows, func(r *minuteRow) string { return r.key }),
		column(rows, func(r *minuteRow) time.Time { return time.Unix(r.minute*60, 0) }),
		column(rows, func(r *minuteRow) string { return r.keyspace }),
		column(rows, func(r *minuteRow) string { return r.owner }),
		column(rows, func(r *minuteRow) string { return r.code }),
		column(rows, func(r *minuteRow) int16 { return r.status }),
		column(rows, func(r *minuteRow) string { return r.environment }),
		column(rows, func(r *minuteRow) string { return r.method }),
		column(rows, func(r *minuteRow) string { return r.endpoint }),
		column(rows, func(r *minuteRow) int64 { return r.requests }),
		column(rows, func(r *minuteRow) int64 { return r.measured }),
		column(rows, func(r *minuteRow) int64 { return r.latency }),
		column(rows, func(r *minuteRow) int64 { return r.cost }),
	}
	for class := range classColumns {
		args = append(args, column(rows, func(r *minuteRow) int32 { return r.classes[class] }))
	}
	b.Queue(sql, args...)
}
