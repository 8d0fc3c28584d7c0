package endings

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/events"
)

func all(*Ending) bool { return true }

// told is what stands behind a place, in short.
func told(x *Index, after uint64) (list []string) {
	found, _, _ := x.After(after, 1000, all)
	for _, e := range found {
		s := fmt.Sprintf("%d %s %s", e.Sequence, e.Key, e.Why)
		if e.Secret > 0 {
			s += fmt.Sprintf(" %d", e.Secret)
		}
		list = append(list, fmt.Sprintf("%s since %d %s", s, e.Since, e.Reason))
	}
	return list
}

// The newest word stands alone, behind all others; every fact is at the time of its
// sequence.
func TestEndings(t *testing.T) {
	x := New()
	for i, f := range []struct {
		key  string
		data events.Payload
		want []string // all that is told then
	}{
		{"a", events.KeyCreated{}, nil},
		{"b", events.KeyCreated{ExpiresAt: 100}, []string{"2 b expired since 100 "}},
		{"a", events.KeyUpdated{Name: new("x")}, []string{"2 b expired since 100 "}},
		{"a", events.KeyUpdated{ExpiresAt: &events.Expiry{}}, []string{"2 b expired since 100 "}},
		{"a", events.KeyRotated{Reason: "r", GraceUntil: 50}, []string{"2 b expired since 100 ", "5 a superseded 1 since 50 r"}},
		{"a", events.KeyRotated{}, []string{"2 b expired since 100 ", "5 a superseded 1 since 50 r", "6 a superseded 2 since 6 "}},
		{"b", events.KeyUpdated{ExpiresAt: &events.Expiry{At: 200}}, []string{"5 a superseded 1 since 50 r", "6 a superseded 2 since 6 ", "7 b expired since 200 "}},
		{"a", events.KeyGraceEnded{Reason: "g"}, []string{"6 a superseded 2 since 6 ", "7 b expired since 200 ", "8 a superseded 1 since 8 g"}},
		{"b", events.KeyUpdated{ExpiresAt: &events.Expiry{}}, []string{"6 a superseded 2 since 6 ", "8 a superseded 1 since 8 g", "9 b expired since 0 "}},
		{"b", events.KeyRotated{GraceUntil: 90}, []string{"6 a superseded 2 since 6 ", "8 a superseded 1 since 8 g", "9 b expired since 0 ", "10 b superseded 1 since 90 "}},
		{"b", events.KeyRotated{EndGrace: true, GraceUntil: 95, Reason: "e"}, []string{"6 a superseded 2 since 6 ", "8 a superseded 1 since 8 g", "9 b expired since 0 ", "11 b superseded 1 since 11 e", "11 b superseded 2 since 95 e"}},
		{"a", events.KeyRevoked{Reason: "leaked"}, []string{"9 b expired since 0 ", "11 b superseded 1 since 11 e", "11 b superseded 2 since 95 e", "12 a revoked since 12 leaked"}},
		{"a", events.KeyDeleted{}, []string{"9 b expired since 0 ", "11 b superseded 1 since 11 e", "11 b superseded 2 since 95 e", "13 a deleted since 12 leaked"}},
		{"", events.OwnerRegistered{}, []string{"9 b expired since 0 ", "11 b superseded 1 since 11 e", "11 b superseded 2 since 95 e", "13 a deleted since 12 leaked"}},
	} {
		sequence := uint64(i + 1)
		e := events.Envelope{Key: f.key, Time: events.Time(sequence), Data: f.data}
		if err := x.apply(Fact{sequence, 10 * sequence, e}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f.want, told(x, 0)); diff != "" {
			t.Errorf("after %d, %T: %s", sequence, f.data, diff)
		}
	}
	// What one fact ended is not torn apart, and a full page says where to go on.
	page, to, whole := x.After(0, 2, all)
	if len(page) != 3 || to != (Place{11, 110}) || whole {
		t.Errorf("a page of 2 has %d, to %v, whole %v", len(page), to, whole)
	}
	if page, to, whole = x.After(11, 2, all); len(page) != 1 || to != (Place{14, 140}) || !whole {
		t.Errorf("the last page has %d, to %v, whole %v", len(page), to, whole)
	}
	if err := x.apply(Fact{16, 160, events.Envelope{}}); err == nil {
		t.Error("a missing fact is not noticed")
	}
}

// What was replaced leaves memory, and no reader notices.
func TestReplacedGoes(t *testing.T) {
	x := New()
	const n = 10000
	for i := range uint64(n) {
		e := events.Envelope{Key: fmt.Sprint("key_", i%10), Time: 1, Data: events.KeyUpdated{ExpiresAt: &events.Expiry{At: 5}}}
		if err := x.apply(Fact{i + 1, i + 1, e}); err != nil {
			t.Fatal(err)
		}
	}
	if len(x.list) > 3000 {
		t.Errorf("%d stand in memory of 10", len(x.list))
	}
	if list := told(x, 0); len(list) != 10 || list[0] != "9991 key_0 expired since 5 " {
		t.Error(list)
	}
	if list := told(x, n-1); len(list) != 1 {
		t.Error(list)
	}
}

// Nothing is read before somebody asks; the end of the facts is told to who waits.
func TestRunWaitsToBeAsked(t *testing.T) {
	x, broken := New(), fmt.Errorf("broken")
	began := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- x.Run(t.Context(), func(yield func(Fact, error) bool) {
			close(began)
			_ = yield(Fact{1, 1, events.Envelope{Data: events.KeyDeleted{}, Key: "k"}}, nil) && yield(Fact{}, broken)
		})
	}()
	select {
	case <-began:
		t.Fatal("read for nobody")
	default:
	}
	// That one is there may be seen, or that no second will come.
	_, err := x.Reach(t.Context(), func(p Place) bool { return p.Feed >= 2 })
	if err == nil || <-ended != broken {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New().Reach(ctx, func(Place) bool { return false }); err == nil {
		t.Error("waits for ever")
	}
	if !slices.Equal(told(x, 0), []string{"1 k deleted since 0 "}) {
		t.Error(told(x, 0))
	}
}
