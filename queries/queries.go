// Package queries is the read side: lists, figures and places from the read
// models in PostgreSQL, and the audit log from the streams themselves.
//
// Lists are as far as their projection is; whoever needs their own write waits
// for it first (projections.Runner.Wait). The audit log has no such delay, and
// needs no PostgreSQL.
//
// Cursors are opaque and bound to the filter they were made for. They carry no
// authority: a page is filtered anew, whatever cursor comes. One that was not
// made here, or for another filter, is refused with a [*domain.Refusal].
//
// How it can disappoint: a page of the audit log that is filtered by what no
// index knows (an actor, a type) may end before it is full, with a cursor to go
// on from, because the work of one page is bounded.
package queries

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Queries reads the read models. It is safe for concurrent use.
type Queries struct{ pool *pgxpool.Pool }

// New reads from a database that the migrations have been applied to.
func New(pool *pgxpool.Pool) *Queries { return &Queries{pool} }

// Limits of the pages of lists.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

func invalid(path, message, fix string) *domain.Refusal {
	return &domain.Refusal{Kind: domain.Invalid, Code: "INVALID", Detail: "The input is not valid.",
		Problems: []domain.Problem{{Path: path, Message: message, Fix: fix}}}
}

func pageSize(limit int) (int, error) {
	switch {
	case limit == 0:
		return DefaultLimit, nil
	case limit < 1 || limit > MaxLimit:
		return 0, invalid("limit", fmt.Sprintf("%d is not a page size", limit), fmt.Sprintf("send 1 to %d", MaxLimit))
	}
	return limit, nil
}

// cursorVersion is the first byte of every cursor, so that a later form can be told from this one.
const cursorVersion = 1

// cursor seals a place in a list: version, 12 bytes that bind it to its filter
// and find damage, and the place.
func cursor(filter string, place []byte) string {
	b := append([]byte{cursorVersion}, bind(filter, place)...)
	return base64.RawURLEncoding.EncodeToString(append(b, place...))
}

func bind(filter string, place []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "keyledger cursor %d\n%q\n", cursorVersion, filter)
	h.Write(place)
	return h.Sum(nil)[:12]
}

func openCursor(path, filter, s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(s) > 4096 || len(b) < 13 || b[0] != cursorVersion || string(b[1:13]) != string(bind(filter, b[13:])) {
		return nil, invalid(path, "is not a cursor of this list and filter", "send next_cursor of the page before unchanged, with the same filter, or leave it out")
	}
	return b[13:], nil
}

// momentBytes writes a moment and a text, the place in a list sorted by both.
func momentBytes(t time.Time, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli())), id...)
}

func bytesMoment(b []byte) (time.Time, string, bool) {
	if len(b) < 8 || !utf8.Valid(b[8:]) || slices.Contains(b[8:], 0) {
		return time.Time{}, "", false
	}
	t := time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC()
	return t, string(b[8:]), t.Year() >= 1970 && t.Year() < 10_000 // PostgreSQL knows no later ones
}

func moment(t *time.Time) events.Time {
	if t == nil {
		return 0
	}
	return events.At(*t)
}
