package queries

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/migrations"
	"github.com/keyledger/keyledger/projections"
)

// indexed is a log whose index is moved by the test.
type indexed struct {
	*log
	pool *pgxpool.Pool
	conn *pgx.Conn
	at   map[string]uint64
}

func newIndexed(t testing.TB) *indexed {
	t.Helper()
	return newIndexedOn(t, testenv.Conn(t, testenv.NATS(t)))
}

func newIndexedOn(t testing.TB, nc *nats.Conn) *indexed {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	c := pool.Config().ConnConfig.Copy()
	c.RuntimeParams["search_path"] = "keyledger"
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return &indexed{newLogOn(t, nc), pool, conn, map[string]uint64{}}
}

func (x *indexed) projections() []projections.Projection {
	return []projections.Projection{projections.Uses{}, projections.Addresses{Keys: x.keys}}
}

// move applies USAGE up to a sequence, in batches of messages as cut says.
func (x *indexed) move(to uint64, cut func() int) {
	x.t.Helper()
	for _, p := range x.projections() {
		x.follow(p, to, cut)
	}
}

// follow applies USAGE to one index.
func (x *indexed) follow(p projections.Projection, to uint64, cut func() int) {
	x.t.Helper()
	ctx := x.t.Context()
	var batch []events.Record
	left := cut()
	flush := func() {
		if len(batch) == 0 {
			return
		}
		last := batch[len(batch)-1].Sequence
		if err := pgx.BeginFunc(ctx, x.conn, func(tx pgx.Tx) error {
			if err := p.Apply(ctx, tx, batch); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `insert into positions (name, stream, sequence, event_id) values ($1, 'USAGE', $2, '')
					on conflict (name) do update set sequence = excluded.sequence`, p.Name(), int64(last))
			return err
		}); err != nil {
			x.t.Fatal(err)
		}
		x.at[p.Name()] = last
		batch, left = nil, cut()
	}
	for r, err := range x.l.Read(ctx, events.Usage, x.at[p.Name()]+1, to) {
		if err != nil {
			x.t.Fatal(err)
		}
		if len(batch) > 0 && batch[len(batch)-1].Sequence != r.Sequence {
			if left--; left <= 0 {
				flush()
			}
		}
		batch = append(batch, r)
	}
	flush()
}

// traffic appends pages of random events of all kinds by two nodes whose clocks
// differ. Some addresses, keys and endpoints are rare.
func (x *indexed) traffic(pages int, random *rand.Rand) {
	x.t.Helper()
	ctx := x.t.Context()
	few := func(n int) int { return int(float64(n) * random.Float64() * random.Float64() * random.Float64()) }
	begin := time.Now().Add(-50 * time.Minute).Truncate(time.Millisecond)
	for i := range pages {
		keyspace := []string{"parcelbird", "wind"}[random.IntN(5)/4]
		var bodies [][]byte
		for range 1 + random.IntN(4) {
			at := begin.Add(time.Duration(i) * 500 * time.Millisecond)
			if random.IntN(3) == 0 {
				at = at.Add(time.Duration(random.IntN(600)-300) * time.Second)
			}
			owner := fmt.Sprint("o", few(40))
			key := fmt.Sprintf("key_%s_%d", owner, few(30))
			endpoint := []string{"/v1/parcels", "/v1/parcels/7", "/v1/<b>\"ü", "/v1/\u2028\xff", "/health"}[few(5)]
			source := fmt.Sprintf("203.0.113.%d", few(200))
			if random.IntN(4) == 0 {
				source = []string{"2001:db8::1", "2001:DB8:0:0::2", "2001:db8:1::1", "::ffff:203.0.113.7", "unknown", ""}[random.IntN(6)]
			}
			fold := events.Fold{Count: 2, First: events.At(at), Last: events.At(at)}
			var data events.Payload
			switch random.IntN(8) {
			case 7:
				if random.IntN(100) == 0 {
					data, owner, key = events.UsageGap{Count: 3, Reason: "away"}, "", ""
					break
				}
				fallthrough
			case 0:
				data = events.KeyDenied{Code: "EXPIRED", Endpoint: endpoint, Fold: fold}
			case 1:
				data = events.KeyUseReported{Decision: events.NewID("dec", at), Status: 200}
			case 2:
				data = seal.Rejected{CredentialRejected: events.CredentialRejected{Code: "UNKNOWN_KEY", Fold: fold}, ClearIP: []string{source, "2001:db8::/64"}[random.IntN(2)]}
				owner, key = "", ""
			case 3:
				data = events.LimitTaken{Fold: fold}
				key = ""
			default:
				data = seal.Use{KeyUsed: events.KeyUsed{Decision: events.NewID("dec", at), Method: "GET", Endpoint: endpoint, Status: new(200), Secret: "current"}, ClearIP: source}
			}
			e := []events.Envelope{events.New(data, at)}
			e[0].Keyspace, e[0].Owner, e[0].Key = keyspace, owner, key
			if err := x.keys.Prepare(ctx, e); err != nil {
				x.t.Fatal(err)
			}
			b, err := events.Encode(e[0])
			if err != nil {
				x.t.Fatal(err)
			}
			bodies = append(bodies, b)
		}
		if _, err := x.l.AppendPage(ctx, keyspace, []string{"n1", "n2"}[random.IntN(2)], bodies); err != nil {
			x.t.Fatal(err)
		}
	}
}

// Whatever is asked for and however far the index is, a page through it is the page
// that reading everything gives, and either goes on from the cursors of the other.
func TestLocatedIsEverything(t *testing.T) {
	x := newIndexed(t)
	const pages = 2200
	x.traffic(pages, rand.New(rand.NewPCG(1, 2)))
	x.fact(time.Now().Add(-20*time.Minute), "parcelbird", "o1", "key_o1_1", events.KeyCreated{Name: "n"})
	x.act(time.Now().Add(-10*time.Minute), events.ServiceStarted{Program: "serve"})
	random := rand.New(rand.NewPCG(3, 4))
	x.remember()
	through := x.Indexed(projections.NewIndex(x.pool, x.keys))
	for _, to := range []uint64{0, 40, 1024, 1100, pages - 3} {
		if to > 0 {
			x.move(to, func() int { return 1 + random.IntN(200)*random.IntN(2) })
		}
		if to >= 1024 {
			through.reading = x.l.Read // what is left to read is not much
		}
		rapid.Check(t, func(rt *rapid.T) {
			f := AuditFilter{Limit: rapid.SampledFrom([]int{1, 7, 100, 1000}).Draw(rt, "limit")}
			maybe := func(name string, of ...string) string {
				return rapid.SampledFrom(append([]string{"", ""}, of...)).Draw(rt, name)
			}
			f.Keyspace = maybe("keyspace", "parcelbird", "wind")
			switch rapid.IntRange(0, 6).Draw(rt, "by") {
			case 6:
				f.Types = []string{"usage.gap"}
			case 0:
				f.Key = fmt.Sprintf("key_o%d_%d", rapid.IntRange(0, 5).Draw(rt, "o"), rapid.IntRange(0, 12).Draw(rt, "k"))
				f.Endpoint = maybe("endpoint", "/v1/parcels")
				f.IP = maybe("ip", "203.0.113.3")
			case 1:
				f.Owner = fmt.Sprint("o", rapid.IntRange(0, 39).Draw(rt, "o"))
				f.Endpoint = maybe("endpoint", "/v1/parcels", "/v1/<b>\"ü")
			case 2, 3:
				f.IP = rapid.SampledFrom([]string{"203.0.113.0", "203.0.113.7", "203.0.113.150", "2001:db8::1", "2001:db8::3", "2001:db8::/64", "::ffff:203.0.113.1", "198.51.100.1"}).Draw(rt, "ip")
				f.Owner = maybe("owner", "o0", "o9")
			default:
				f.Endpoint = rapid.SampledFrom([]string{"/v1/parcels", "/v1/parcels/7", "/v1/<b>\"ü", "/v1/\u2028\ufffd", "/health", "/nowhere"}).Draw(rt, "endpoint")
			}
			if kind := maybe("type", "key.used", "key.denied", "credential.rejected", "key.created", "usage.gap"); kind != "" {
				f.Types = []string{kind}
			}
			moment := func() events.Time {
				return events.At(time.Now().Add(-time.Duration(rapid.IntRange(0, 60*60).Draw(rt, "ago")) * time.Second))
			}
			if rapid.Bool().Draw(rt, "from") {
				f.From = moment()
			}
			if rapid.Bool().Draw(rt, "to") {
				f.To = moment()
				if f.To <= f.From {
					f.To = f.From + 60_000
				}
			}
			for n := range 3 {
				plain, err := x.Events(t.Context(), f, x.keys)
				if err != nil {
					rt.Fatal(err)
				}
				found, err := through.Events(t.Context(), f, x.keys)
				if err != nil {
					rt.Fatal(err)
				}
				if got, want := places(found), places(plain); !slices.Equal(got, want) {
					rt.Fatalf("index at %d, %+v, page %d:\n got %v\nwant %v", to, f, n, got, want)
				}
				if (plain.NextCursor == "") != (found.NextCursor == "") {
					rt.Fatalf("index at %d, %+v: the next page begins at %q, %q by reading", to, f, found.NextCursor, plain.NextCursor)
				}
				if plain.NextCursor == "" {
					break
				}
				f.After = rapid.SampledFrom([]string{plain.NextCursor, found.NextCursor}).Draw(rt, "after")
			}
		})
	}
}

// remember makes whoever reads the log as it is read it from memory: a log that no
// longer changes would be read a thousand times. What is picked still comes from it.
func (x *indexed) remember() {
	x.t.Helper()
	all := map[string][]events.Record{}
	for _, stream := range auditStreams {
		for r, err := range x.l.Read(x.t.Context(), stream, 1, 0) {
			if err != nil {
				x.t.Fatal(err)
			}
			all[stream] = append(all[stream], r)
		}
	}
	x.reading = func(_ context.Context, stream string, from, to uint64, _ ...string) iter.Seq2[events.Record, error] {
		return func(yield func(events.Record, error) bool) {
			for _, r := range all[stream] {
				if r.Sequence >= from && r.Sequence <= to && !yield(r, nil) {
					return
				}
			}
		}
	}
}

func places(p AuditPage) (list []string) {
	for _, e := range p.Events {
		list = append(list, fmt.Sprintf("%s:%d.%d", e.Stream[:1], e.Sequence, e.Line))
	}
	return list
}

// An export of a part holds the same bytes through the index as by reading all of
// USAGE, wherever the index is and wherever a reading is taken up again.
func TestExportsThroughTheIndex(t *testing.T) {
	x := newIndexed(t)
	const pages = 1300
	x.traffic(pages, rand.New(rand.NewPCG(5, 6)))
	random := rand.New(rand.NewPCG(7, 8))
	plain := &Exports{ledger: x.l}
	through := plain.Indexed(projections.NewIndex(x.pool, x.keys))
	for _, to := range []uint64{0, 700, pages - 3, pages} {
		if to > 0 {
			x.move(to, func() int { return 1 + random.IntN(200) })
		}
		for _, scope := range []bundle.Scope{
			{}, {Keyspace: "parcelbird"}, {Keyspace: "parcelbird", Owner: "o1"}, {Keyspace: "wind", Owner: "o30"}, {Keyspace: "wind", Owner: "nobody"},
			{Keyspace: "parcelbird", Owner: "o0", Key: "key_o0_0"}, {Keyspace: "wind", Owner: "o2", Key: "key_o2_5"},
		} {
			m := bundle.Manifest{Scope: scope}
			export, err := x.l.AppendOps(t.Context(), events.New(events.AuditRead{What: bundle.What, Filter: m.Filter()}, time.Now()))
			if err != nil {
				t.Fatal(err)
			}
			for _, after := range []audit.Place{{}, {Sequence: 650, Line: 1}} {
				var got [2][]string
				for i, e := range []*Exports{plain, through} {
					_, records, err := e.Records(t.Context(), export, events.Usage, after, pages)
					if err != nil {
						t.Fatal(err)
					}
					for r, err := range records {
						if err != nil {
							t.Fatal(err)
						}
						leaf := audit.LeafOf(&r)
						got[i] = append(got[i], fmt.Sprintf("%s%s", bundle.AppendLine(nil, &leaf), r.Body))
					}
				}
				if !slices.Equal(got[0], got[1]) {
					t.Errorf("index at %d, %+v behind %s: %d events through it, %d by reading", to, scope, after, len(got[1]), len(got[0]))
				}
				if scope.Owner == "o1" && len(got[0]) == 0 {
					t.Error("there is nothing to compare")
				}
			}
		}
	}
}
