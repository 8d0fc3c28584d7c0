package ledger_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

func sequencesOf(list ...uint64) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		for _, s := range list {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// The messages that are asked for come in order, of each the lines that are chosen,
// with their numbers; where one is missing, that is a refusal.
func TestPick(t *testing.T) {
	l := open(t, testenv.Conn(t, testenv.NATS(t)), ledger.Options{})
	for i := range 40 {
		var bodies [][]byte
		for _, key := range []string{"key_a", fmt.Sprint("key_b", i%3), "key_a", "key_c"} {
			b, err := events.Encode(used(key))
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, b)
		}
		if _, err := l.AppendPage(t.Context(), "ks", "n", bodies); err != nil {
			t.Fatal(err)
		}
	}
	var all []uint64
	for s := uint64(2); s <= 40; s += 2 {
		all = append(all, s)
	}
	for _, c := range []struct {
		needle string
		choose ledger.Chooser
		each   string // places in message 2
	}{
		{"key_a", nil, "2.0 2.2"},
		{"key_b1", nil, "2.1"},
		{"key_nobody", nil, ""},
		{"", nil, "2.0 2.1 2.2 2.3"},
		{"key_", func(line []byte) (bool, error) { return strings.Contains(string(line), "key_c"), nil }, "2.3"},
	} {
		var got []uint64
		for p, err := range l.Pick(t.Context(), events.Usage, sequencesOf(all...), []byte(c.needle), c.choose, nil) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p.Sequence)
			var places []string
			for _, r := range p.Records {
				places = append(places, fmt.Sprintf("%d.%d", r.Sequence, r.Line))
			}
			if p.Sequence == 2 && (strings.Join(places, " ") != c.each || p.Lines != 4) {
				t.Errorf("%q: of 2 are chosen %v of %d lines", c.needle, places, p.Lines)
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("%q: %v", c.needle, got)
		}
	}
	stop := errors.New("stop")
	for _, err := range l.Pick(t.Context(), events.Usage, sequencesOf(1), nil, func([]byte) (bool, error) { return false, stop }, nil) {
		if !errors.Is(err, stop) {
			t.Errorf("the chooser's error is %v", err)
		}
	}
	for _, err := range l.Pick(t.Context(), events.Usage, sequencesOf(99), nil, nil, nil) {
		if _, refused := errors.AsType[*ledger.RefusalError](err); !refused {
			t.Errorf("a message that is not there: %v", err)
		}
	}
}
