package delivery

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
)

// Attempt is a line of the delivery log: one attempt to deliver a fact.
type Attempt struct {
	Time     events.Time `json:"time"` // when it began
	Target   string      `json:"target"`
	ID       string      `json:"id"` // of the event
	Type     string      `json:"type"`
	Key      string      `json:"key"`      // empty: the event is about no key
	Stream   string      `json:"stream"`   // empty: a test
	Sequence uint64      `json:"sequence"` // in Stream
	Attempt  int         `json:"attempt"`  // from 1
	Outcome  string      `json:"outcome"`  // delivered, failed (it is tried again), dead, disabled
	Status   int         `json:"status"`   // as answered; 0: no answer
	MS       int64       `json:"ms"`
	Class    string      `json:"class"`    // of the error
	Error    string      `json:"error"`    // without addresses of ours and secrets
	Response string      `json:"response"` // at most 1 KiB of what was answered
	Omitted  int         `json:"omitted"`  // deliveries just before this one that have no line of their own
}

// Outcomes of an attempt.
const (
	Delivered = "delivered"
	Failed    = "failed"
	GivenUp   = "dead"
	Disabled  = "disabled"
)

// successes of a target that are logged in a second; more are counted.
const successes = 20

const longestText = 1 << 10

// printable is text that may be shown to people: valid, without control characters,
// of at most 1 KiB.
func printable(b []byte) string {
	b = b[:min(len(b), longestText)]
	for len(b) > 0 && !utf8.Valid(b[max(0, len(b)-utf8.UTFMax):]) && !utf8.FullRune(b[lastRune(b):]) {
		b = b[:lastRune(b)]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "\uFFFD"))
}

// lastRune is where the last rune begins.
func lastRune(b []byte) int {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			return i
		}
	}
	return len(b) - 1
}

// attempts gathers the log of one process and writes it in pages. What was gathered
// for less than flushEvery is lost with the process.
type attempts struct {
	store   *Store
	reactor string
	logger  *slog.Logger

	mu     sync.Mutex // guards what follows
	pages  map[string][]Attempt
	second map[string]*perSecond
	full   chan struct{}
}

type perSecond struct {
	at      int64
	n       int
	omitted int
}

const (
	flushEvery = 250 * time.Millisecond
	pageLines  = 200
)

func (s *Store) newLog(reactor string, log *slog.Logger) *attempts {
	return &attempts{store: s, reactor: reactor, logger: log, pages: map[string][]Attempt{}, second: map[string]*perSecond{}, full: make(chan struct{}, 1)}
}

func (l *attempts) add(a Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.second[a.Target]
	if s == nil {
		s = &perSecond{}
		l.second[a.Target] = s
	}
	if second := int64(a.Time) / 1000; s.at != second {
		s.at, s.n = second, 0
	}
	if s.n++; a.Outcome == Delivered && s.n > successes || len(l.pages[a.Target]) >= 10*pageLines {
		s.omitted++
		return
	}
	a.Omitted, s.omitted = s.omitted, 0
	l.pages[a.Target] = append(l.pages[a.Target], a)
	if len(l.pages[a.Target]) == pageLines {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

func (l *attempts) run(ctx context.Context) {
	for ended := false; !ended; {
		select {
		case <-time.After(flushEvery):
		case <-l.full:
		case <-ctx.Done():
			ended = true
		}
		l.mu.Lock()
		pages := l.pages
		l.pages = map[string][]Attempt{}
		l.mu.Unlock()
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		for _, page := range pages {
			if err := l.store.Log(within, l.reactor, page...); err != nil {
				l.logger.Warn("delivery: attempts are missing in the delivery log", "reactor", l.reactor, "attempts", len(page), "error", err)
			}
		}
		cancel()
	}
}

// Log adds attempts of one target to its log.
func (s *Store) Log(ctx context.Context, reactor string, page ...Attempt) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, a := range page {
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
	key := fmt.Sprintf("%s.%s.%s-%s", reactor, page[0].Target, strconv.FormatInt(time.Now().UnixNano(), 16), events.NewID("p", time.Now())[24:])
	_, err := s.log.Put(ctx, key, b.Bytes())
	return err
}

// Attempts are the newest of a target's log before a time (zero: now), newest first: at
// most most, and what else began in the millisecond of the last of them, so that asking
// for what was before that goes on behind them.
func (s *Store) Attempts(ctx context.Context, reactor, target string, before time.Time, most int) ([]Attempt, error) {
	if before.IsZero() {
		before = time.Now().Add(time.Minute)
	}
	subject := "$KV." + LogBucket + "." + reactor + "." + target + ".*"
	for _, back := range []time.Duration{10 * time.Minute, 6 * time.Hour, LogKept} {
		all := []Attempt{}
		err := s.scan(ctx, "KV_"+LogBucket, subject, 0, before.Add(-back), func(m jetstream.Msg, _ *jetstream.MsgMetadata) (bool, error) {
			for line := range bytes.Lines(m.Data()) {
				var a Attempt
				if err := json.Unmarshal(line, &a); err != nil {
					return false, fmt.Errorf("the delivery log of %s: %w", target, err)
				}
				if a.Time.Time().Before(before) {
					all = append(all, a)
				}
			}
			if len(all) > 4*most {
				all = slices.Clone(all[len(all)-2*most:])
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
		if len(all) >= most || back == LogKept {
			slices.Reverse(all) // of one millisecond, too, the newest is first
			slices.SortStableFunc(all, func(a, b Attempt) int { return cmp.Compare(b.Time, a.Time) })
			n := min(len(all), most)
			for n > 0 && n < len(all) && all[n].Time == all[n-1].Time {
				n++
			}
			return all[:n], nil
		}
	}
	return nil, nil
}
