package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/keyledger/keyledger/events"
)

var update = flag.Bool("update", false, "write testdata/plots anew")

// hours is a day of figures: little by night, an hour in which the upstream failed,
// one in which a limit was reached, and one in which nothing happened.
func hours(begin time.Time) []usageFigures {
	random := rand.New(rand.NewPCG(1, 2))
	var rows []usageFigures
	for i := range 24 {
		if i == 4 {
			continue
		}
		n := int64(100 + 40*(12-max(i-12, 12-i)) + random.IntN(60))
		r := usageFigures{Time: events.At(begin.Add(time.Duration(i) * time.Hour)), Successes: n, Errors: n / 50, Denied: int64(i % 3), CostMicros: n * 150}
		p50 := 12 + random.Float64()*3
		switch i {
		case 15:
			r.Errors, r.Successes, p50 = n/2, n/2, 90
		case 18:
			r.RateLimited = 2 * n
		}
		r.Requests = r.Successes + r.Errors + r.Denied + r.RateLimited
		if i != 5 { // nothing of it was measured
			r.P50MS, r.P95MS, r.P99MS = new(p50), new(3*p50), new(7*p50)
		}
		rows = append(rows, r)
	}
	return rows
}

// What is drawn stays what it is, at several widths, with colours and without; and no
// line is longer than the terminal is wide.
func TestPlots(t *testing.T) {
	begin := time.Date(2026, 1, 18, 0, 0, 0, 0, time.UTC)
	rows := hours(begin)
	var total usageFigures
	for _, r := range rows {
		total.Requests += r.Requests
		total.Successes += r.Successes
		total.Errors += r.Errors
		total.Denied += r.Denied
		total.RateLimited += r.RateLimited
		total.CostMicros += r.CostMicros
	}
	total.P50MS, total.P95MS, total.P99MS = new(13.2), new(44.0), new(101.5)
	var minutes []usageFigures
	for i := range 360 {
		minutes = append(minutes, usageFigures{Time: events.At(begin.Add(time.Duration(i) * time.Minute)), Requests: int64(i%60 + 1), Successes: int64(i%60 + 1), P50MS: new(1.0), P95MS: new(2.0), P99MS: new(float64(i % 40))})
	}
	endpoints := []usageFigures{
		{Method: new("GET"), Endpoint: new("/v1/parcels"), Requests: 4200, Successes: 4100, Errors: 60, RateLimited: 40},
		{Method: new("GET"), Endpoint: new("/v1/parcels/a-very-long-identifier-that-nobody-can-read\x1b[31m"), Requests: 800, Successes: 795, Denied: 5},
		{Endpoint: new(""), Requests: 3, Denied: 3},
	}
	for _, width := range []int{40, 80, 120} {
		for _, color := range []bool{false, true} {
			p := plotter{width, color}
			var b strings.Builder
			p.heading(&b, usageAsked{keyspace: "parcelbird", owner: "acme"}, begin, begin.Add(24*time.Hour), []usageFigures{total})
			p.overTime(&b, rows, begin, begin.Add(24*time.Hour), time.Hour)
			b.WriteString("\n")
			p.group(&b, "endpoint", endpoints, 2)
			b.WriteString("\n")
			p.overTime(&b, minutes, begin, begin.Add(6*time.Hour), time.Minute)
			for line := range strings.Lines(b.String()) {
				if n := text.StringWidthWithoutEscSequences(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%d columns in a terminal of %d: %s", n, width, line)
				}
				if !color && strings.Contains(line, "\x1b") {
					t.Errorf("a colour: %q", line)
				}
			}
			name := filepath.Join("testdata", "plots", fmt.Sprintf("%d%s.txt", width, map[bool]string{true: "-color"}[color]))
			if *update {
				if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil || string(want) != b.String() {
				t.Errorf("%s (%v): drawn is\n%s", name, err, b.String())
			}
		}
	}
}

// Every part of a stack that is not zero is seen, and a stack is never higher than
// the plot.
func TestSmallPartsAreSeen(t *testing.T) {
	h := stackHeights([]int64{1_000_000, 0, 1, 1, 0}, 1_000_002)
	sum := 0
	for _, n := range h {
		sum += n
	}
	if h[2] != 1 || h[3] != 1 || h[1] != 0 || sum != 8*plotHeight {
		t.Errorf("heights %v", h)
	}
}
