package projections

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
)

// Index locates messages of USAGE by what [Uses] and [Addresses] hold. It is safe
// for concurrent use.
type Index struct {
	pool *pgxpool.Pool
	keys *seal.Keys
}

// NewIndex reads a database. Without keys, nothing is found by address.
func NewIndex(pool *pgxpool.Pool, keys *seal.Keys) *Index { return &Index{pool, keys} }

// Wanted is what is looked for; empty fields do not count.
type Wanted struct {
	Keyspace string
	Owner    string
	Key      string
	Endpoint string
	IP       string // an address, or the /64 that refusals of IPv6 are folded by
	Gaps     bool   // usage.gap alone

	From events.Time // inclusive
	To   events.Time // exclusive; 0: no end
}

// Helps says whether the index knows anything about what is wanted.
func (w *Wanted) Helps() bool {
	return w.Owner != "" || w.Key != "" || w.Endpoint != "" || w.IP != "" || w.Gaps
}

// Forms are the texts under which an address is recorded: its own and, of IPv6,
// its network.
func Forms(ip string) []string {
	forms := []string{Address(ip)}
	if a, err := netip.ParseAddr(forms[0]); err == nil && a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			forms = append(forms, p.String())
		}
	}
	return forms
}

// Located are messages that may hold what is wanted.
type Located struct {
	Sequences []uint64 // in order
	Through   uint64   // up to here no other message holds any of it; 0: the index has nothing from there on
	Last      bool     // the index ends at Through; of [Index.LocateBefore]: at From it has nothing left

	From uint64 // of [Index.LocateBefore]: from here to Through no other message holds any of it
}

// lookBlocks is how many blocks are looked through in one question.
const lookBlocks = 256

// Locate looks from a sequence on. It answers for a bounded part of the stream; the
// caller goes on behind Through, and reads what is behind the last one itself.
func (x *Index) Locate(ctx context.Context, w Wanted, from uint64) (Located, error) {
	l, err := x.locate(ctx, w, from, false)
	if err != nil {
		return l, fmt.Errorf("find uses in the index: %w", err)
	}
	return l, nil
}

// LocateBefore looks from a sequence back: Sequences descend. It answers for a bounded
// part of the stream, from From to Through, which may be before that sequence and is
// how far the index is; the caller reads what is behind it itself, and goes on before
// From unless it is the Last.
func (x *Index) LocateBefore(ctx context.Context, w Wanted, to uint64) (Located, error) {
	l, err := x.locate(ctx, w, to, true)
	if err != nil {
		return l, fmt.Errorf("find uses in the index: %w", err)
	}
	return l, nil
}

func (x *Index) locate(ctx context.Context, w Wanted, from uint64, back bool) (l Located, err error) {
	p, projection := usesIndex, Uses{}.Name()
	if w.Key == "" && w.IP != "" && !w.Gaps {
		if x.keys == nil {
			return Located{Last: true}, nil
		}
		p, projection = addressesIndex, Addresses{}.Name()
	}
	keyspaces := []string{w.Keyspace}
	if w.Keyspace == "" {
		rows, err := x.pool.Query(ctx, fmt.Sprintf(`select keyspace from keyledger.%s_keyspaces_v1`, p.name))
		if err != nil {
			return l, err
		}
		if keyspaces, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return l, err
		}
	}
	// A message is of one keyspace, so that what is wanted together has hashes with
	// the same number.
	var hashes []int64
	terms := 0
	add := func(hash func(keyspace string) uint64) {
		terms++
		for _, k := range keyspaces {
			hashes = append(hashes, int64(hash(k)))
		}
	}
	either := false // a term is enough
	switch {
	case w.Gaps:
		add(func(k string) uint64 { return hashed(ofGap, k, "") })
	case w.Key != "":
		add(func(k string) uint64 { return hashed(ofKey, k, w.Key) })
	case w.IP != "":
		either = true
		for _, form := range Forms(w.IP) {
			add(func(k string) uint64 { return x.keys.Blind(k, form) >> (64 - hashBits) })
		}
	case w.Owner != "":
		add(func(k string) uint64 { return hashed(ofOwner, k, w.Owner) })
	}
	if w.Endpoint != "" && !either {
		add(func(k string) uint64 { return hashed(ofEndpoint, k, w.Endpoint) })
	}
	return x.look(ctx, p, projection, w, from, back, hashes, len(keyspaces), terms, either)
}

// look reads the rows in which the hashes would be. The position comes with them,
// from the same moment: blocks are joined while the stream goes on.
func (x *Index) look(ctx context.Context, p postings, projection string, w Wanted, from uint64, back bool, hashes []int64, keyspaces, terms int, either bool) (l Located, err error) {
	from = max(from, 1)
	// Blocks do not overlap, so that those in the direction of the search are known by
	// where they start.
	where, order, starting := "starts >= $1 and ends >= $2", "asc", from-from%widest
	if back {
		where, order, starting = "starts <= $1 and $2::bigint > 0", "desc", from
	}
	to := w.To
	if to == 0 {
		to = 1<<63 - 1
	}
	rows, err := x.pool.Query(ctx, fmt.Sprintf(`
		with b as (
			select starts, ends, case when earliest >= $3 and latest < $4 then null else times end as times
			from keyledger.%[1]s_blocks_v1
			where %[3]s and latest >= $3 and earliest < $4
			order by starts %[4]s limit %[2]d)
		select p.sequence, coalesce(b.starts, 0), coalesce(b.ends, 0), b.times, coalesce(c.n, 0), coalesce(c.first, 0), c.postings
		from keyledger.positions p left join b on true left join lateral (
			select h.n, r.first, r.postings
			from unnest($6::bigint[]) with ordinality h(hash, n) cross join lateral (
				select u.first, u.postings from keyledger.%[1]s_v1 u
				where u.starts = b.starts and u.first <= h.hash order by u.first desc limit 1) r) c on true
		where p.name = $5
		order by b.starts %[4]s, c.n`, p.name, lookBlocks, where, order),
		int64(starting), int64(from), int64(w.From), int64(to), projection, hashes)
	if err != nil {
		return l, err
	}
	l.Last = true
	var position, starts, ends, n int64
	var times []byte
	var r row
	at, blocks := int64(-1), 0
	var spans []span
	found := map[uint64]uint64{} // sequence -> terms that it may hold, as bits
	flush := func() {
		for s, of := range found {
			if !back && s < from || back && s > from || !either && of != 1<<terms-1 {
				continue
			}
			if i := s - uint64(at); spans != nil && (i >= uint64(len(spans)) || spans[i].latest < w.From || spans[i].earliest >= to) {
				continue
			}
			l.Sequences = append(l.Sequences, s)
		}
		clear(found)
	}
	_, err = pgx.ForEachRow(rows, []any{&position, &starts, &ends, &times, &n, &r.first, &r.postings}, func() error {
		if starts != at {
			flush()
			at, spans = starts, nil
			if starts == 0 && ends == 0 {
				return nil // no block
			}
			blocks++
			l.Through, l.From = uint64(ends), uint64(starts)
			if times != nil {
				var err error
				if spans, err = parseTimes(times); err != nil {
					return err
				}
			}
		}
		if n == 0 {
			return nil
		}
		wanted := uint64(hashes[n-1])
		term := uint64(1) << (int(n-1) / keyspaces)
		return r.each(p.tags, func(hash, _, offset uint64) bool {
			if hash == wanted {
				found[uint64(starts)+offset] |= term
			}
			return hash <= wanted
		})
	})
	if err != nil {
		return Located{}, err
	}
	flush()
	slices.Sort(l.Sequences)
	if back {
		slices.Reverse(l.Sequences)
		l.Through, l.Last = uint64(position), blocks < lookBlocks
		return l, nil
	}
	l.From = 0
	if blocks == lookBlocks {
		l.Last = false
	} else {
		l.Through = uint64(position)
	}
	return l, nil
}
