// Package chart draws figures as SVG: bars that stack, lines, a share of a limit, and
// small bars beside a row of a table. It is pure, and its output needs no script: every
// column tells its figures in a tooltip, and a table behind each chart holds all of
// them for those who cannot see it. Where scripts run, arrow keys walk over the columns.
//
// It promises that nothing is drawn outside of the plot, that the highest line is not
// below the highest figure, that times are UTC and say so, and that a title or name is
// text whatever stands in it. Series are told apart by their texture or dashes as well
// as by colour.
//
// Colours come from the stylesheet, by the class of a series; a chart is drawn twice,
// for wide pages and for narrow ones, and the stylesheet shows one.
//
// How it can disappoint. A figure that is not a number, or endless, is not known and
// not drawn. A bar of a column that is narrower than a pixel is hard to see: whoever
// draws a year should add up weeks.
package chart

import (
	"fmt"
	"hash/fnv"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Series is one figure over time.
type Series struct {
	Name   string
	Class  string    // of the stylesheet: success, error, denied, limited, unknown, average, p50, p95, p99, cost
	Values []float64 // one for each time; NaN, or none: not known
}

// Chart is what is drawn.
type Chart struct {
	Title     string
	Unit      string        // such as ms or %; empty: a number of things
	Fractions bool          // there is no unit, and figures need not be whole
	Whole     float64       // the most that a figure can be, such as 100 of %; 0: there is no such
	Times     []time.Time   // starts of the buckets, in order
	Step      time.Duration // length of a bucket
	Series    []Series      // for bars from the bottom up
	Empty     string        // said where there is nothing to draw; empty: that nothing was recorded
}

// The room around the plot, in units of the drawing: figures on the left, times below.
const (
	left, right, top, bottom = 46, 10, 10, 24
)

// Bars draws series stacked on each other.
func Bars(c Chart) template.HTML { return draw(c, true, bars) }

// Lines draws a line for each series.
func Lines(c Chart) template.HTML { return draw(c, false, lines) }

func draw(c Chart, stacked bool, plot func(*strings.Builder, Chart, frame)) template.HTML {
	var b strings.Builder
	b.WriteString(`<figure class="chart">`)
	empty := c.empty(stacked)
	fmt.Fprintf(&b, `<figcaption><span>%s%s</span>`, esc(c.Title), unitOf(c.Unit))
	if !empty {
		legend(&b, c, stacked)
	}
	b.WriteString(`</figcaption>`)
	if empty {
		said := c.Empty
		if said == "" {
			said = "Nothing was recorded in this time."
		}
		fmt.Fprintf(&b, `<p class="nothing">%s</p></figure>`, esc(said))
		return template.HTML(b.String())
	}
	fmt.Fprintf(&b, `<div class="plot" data-label="%s">`, esc(c.Title))
	for _, size := range []struct {
		class         string
		width, height float64
		apart         float64 // between two times below
	}{{"wide", 720, 200, 76}, {"narrow", 340, 180, 72}} {
		f := frame{width: size.width, height: size.height, apart: size.apart, ticks: ticks(c.highest(stacked), c.Unit == "" && !c.Fractions, c.Whole), id: c.id() + size.class[:1]}
		// What the picture tells is in the table: a reader aloud skips the picture.
		fmt.Fprintf(&b, `<svg class="%s" viewBox="0 0 %g %g" aria-hidden="true" focusable="false">`, size.class, f.width, f.height)
		f.axes(&b, c)
		plot(&b, c, f)
		b.WriteString(`</svg>`)
	}
	b.WriteString(`</div>`)
	table(&b, c)
	b.WriteString(`</figure>`)
	return template.HTML(b.String())
}

func unitOf(unit string) string {
	if unit == "" {
		return ""
	}
	return `<span class="unit">, ` + esc(unit) + `</span>`
}

// endless is more than there is of anything, and little enough to be added up.
const endless = 1e200

// at is a series' figure of a bucket; false: it is not known.
func (s *Series) at(i int) (float64, bool) {
	if i < 0 || i >= len(s.Values) || !(math.Abs(s.Values[i]) < endless) {
		return 0, false
	}
	return s.Values[i], true
}

// drawn is what a bar shows of a figure: there is nothing below zero.
func (s *Series) drawn(i int) float64 {
	v, _ := s.at(i)
	return max(v, 0)
}

// empty says that there is nothing to draw: no figure at all, or, of bars, only zeros.
func (c *Chart) empty(stacked bool) bool {
	for i := range c.Times {
		for k := range c.Series {
			if v, ok := c.Series[k].at(i); ok && (v > 0 || !stacked) {
				return false
			}
		}
	}
	return true
}

func (c *Chart) highest(stacked bool) float64 {
	high := 0.0
	for i := range c.Times {
		sum := 0.0
		for k := range c.Series {
			if v := c.Series[k].drawn(i); stacked {
				sum += v
			} else {
				sum = max(sum, v)
			}
		}
		high = max(high, sum)
	}
	return high
}

// id is a name for what a drawing refers to in itself, the same for the same title:
// a page holds no two charts of one title.
func (c *Chart) id() string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(c.Title))
	return "c" + strconv.FormatUint(uint64(h.Sum32()), 36)
}

// frame is where the plot is, and what its height stands for.
type frame struct {
	width, height, apart float64
	ticks                []float64 // figures with a line across, from 0 up to what the height stands for
	id                   string
}

func (f *frame) high() float64 { return f.ticks[len(f.ticks)-1] }

func (f *frame) x(i, n int) float64 {
	return left + (f.width-left-right)*float64(i)/float64(max(n, 1))
}

func (f *frame) y(v float64) float64 {
	v = min(max(v, 0), f.high())
	return f.height - bottom - (f.height-top-bottom)*v/f.high()
}

// axes draws lines across at round figures, and times below.
func (f *frame) axes(b *strings.Builder, c Chart) {
	for i, v := range f.ticks {
		class := "grid"
		if i == 0 {
			class = "base"
		}
		fmt.Fprintf(b, `<line class="%s" x1="%d" x2="%g" y1="%.1f" y2="%.1f"/>`, class, left, f.width-right, f.y(v), f.y(v))
		fmt.Fprintf(b, `<text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`, left-7, f.y(v)+4, esc(Count(v)))
	}
	n := len(c.Times)
	for _, i := range moments(c.Times, c.Step, int((f.width-left-right)/f.apart)) {
		x := f.x(i, n)
		anchor := "middle"
		if x < left+24 {
			anchor = "start"
		} else if x > f.width-right-24 {
			anchor = "end"
		}
		fmt.Fprintf(b, `<line class="mark" x1="%.1f" x2="%.1f" y1="%g" y2="%g"/>`, x, x, f.height-bottom, f.height-bottom+4)
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%g" text-anchor="%s">%s</text>`, x, f.height-5, anchor, esc(label(c.Times[i], c.Step)))
	}
}

// textures are what tells the series of bars apart without their colours: marks on a
// square of six by six. A class without one is plain.
var textures = map[string]string{
	"error":   "M-1 1L1 -1M-1 7L7 -1M5 7L7 5",      // lines up
	"denied":  "M-1 5L1 7M-1 -1L7 7M5 -1L7 1",      // lines down
	"limited": "M0 1.5H6M0 4.5H6",                  // lines across
	"unknown": "M1.500 0V.8M4.500 3V3.8M1.500 6V6", // dots
}

// fill is how a series of bars is filled in a drawing that has [patterns] of this id.
func fill(id, class string) string {
	if textures[class] == "" {
		return fmt.Sprintf(`class="%s"`, esc(class))
	}
	return fmt.Sprintf(`fill="url(#%s-%s)"`, id, esc(class))
}

func patterns(b *strings.Builder, id string, series []Series) {
	b.WriteString(`<defs>`)
	for _, s := range series {
		if marks := textures[s.Class]; marks != "" {
			fmt.Fprintf(b, `<pattern id="%s-%s" width="6" height="6" patternUnits="userSpaceOnUse"><rect class="%s" width="6" height="6"/><path class="texture" d="%s"/></pattern>`, id, s.Class, s.Class, marks)
		}
	}
	b.WriteString(`</defs>`)
}

func bars(b *strings.Builder, c Chart, f frame) {
	patterns(b, f.id, c.Series)
	n := len(c.Times)
	column := (f.width - left - right) / float64(max(n, 1))
	gap := min(column*0.22, 4)
	for i, t := range c.Times {
		x, w := f.x(i, n), column-gap
		fmt.Fprintf(b, `<g class="at"><title>%s</title><rect class="room" x="%.2f" y="%d" width="%.2f" height="%g"/>`, esc(told(c, i, t)), x, top, column, f.height-top-bottom)
		sum := 0.0
		for k := range c.Series {
			v := c.Series[k].drawn(i)
			if v == 0 {
				continue
			}
			low := f.y(sum)
			sum += v
			high := f.y(sum)
			// Something that happened is seen, however much else did.
			if sum == v && low-high < 1 {
				high = low - 1
			}
			fmt.Fprintf(b, `<rect %s x="%.2f" y="%.2f" width="%.2f" height="%.2f"/>`, fill(f.id, c.Series[k].Class), x+gap/2, high, w, low-high)
		}
		b.WriteString(`</g>`)
	}
}

func lines(b *strings.Builder, c Chart, f frame) {
	n := len(c.Times)
	for k := range c.Series {
		s := &c.Series[k]
		var path strings.Builder
		down := false
		known := func(i int) bool {
			_, ok := s.at(i)
			return ok
		}
		for i := range c.Times {
			v, ok := s.at(i)
			if !ok {
				down = false
				continue
			}
			x := (f.x(i, n) + f.x(i+1, n)) / 2
			switch {
			case down:
				fmt.Fprintf(&path, "L%.1f %.1f", x, f.y(v))
			case i+1 < n && known(i+1):
				fmt.Fprintf(&path, "M%.1f %.1f", x, f.y(v))
			default: // no line leads to it, and none away
				fmt.Fprintf(b, `<circle class="point %s" cx="%.1f" cy="%.1f" r="3"/>`, esc(s.Class), x, f.y(v))
			}
			down = true
		}
		fmt.Fprintf(b, `<path class="line %s" d="%s"/>`, esc(s.Class), path.String())
	}
	for i, t := range c.Times {
		fmt.Fprintf(b, `<g class="at"><title>%s</title><rect class="room" x="%.2f" y="%d" width="%.2f" height="%g"/></g>`,
			esc(told(c, i, t)), f.x(i, n), top, f.x(i+1, n)-f.x(i, n), f.height-top-bottom)
	}
}

// told is a bucket's tooltip.
func told(c Chart, i int, t time.Time) string {
	s, none := span(t, c.Step), true
	for k := range c.Series {
		if v, ok := c.Series[k].at(i); ok && (v != 0 || c.Unit != "") {
			s += "\n" + c.Series[k].Name + ": " + figure(v, c.Unit)
			none = false
		}
	}
	if none {
		s += "\nnothing"
	}
	return s
}

// span is a bucket's time in words.
func span(t time.Time, step time.Duration) string {
	t = t.UTC()
	switch {
	case step >= 2*day:
		return t.Format("2 Jan") + " to " + t.Add(step-time.Second).Format("2 Jan 2006") + ", UTC"
	case step >= day:
		return t.Format("2 Jan 2006") + ", UTC"
	}
	return t.Format("2 Jan 2006 15:04") + " UTC"
}

func legend(b *strings.Builder, c Chart, stacked bool) {
	if len(c.Series) < 2 {
		return
	}
	id := c.id() + "l"
	b.WriteString(`<span class="legend">`)
	for _, s := range c.Series {
		b.WriteString(`<span><svg viewBox="0 0 14 10" aria-hidden="true" focusable="false">`)
		if stacked {
			patterns(b, id, []Series{s})
			fmt.Fprintf(b, `<rect %s x="1" width="12" height="10" rx="2"/>`, fill(id, s.Class))
		} else {
			fmt.Fprintf(b, `<path class="line %s" d="M1 5H13"/>`, esc(s.Class))
		}
		fmt.Fprintf(b, `</svg>%s</span>`, esc(s.Name))
	}
	b.WriteString(`</span>`)
}

func table(b *strings.Builder, c Chart) {
	fmt.Fprintf(b, `<details><summary>The figures<span class="unseen"> of %s</span></summary><div class="scroll" tabindex="0" role="region" aria-label="The figures of %s"><table><thead><tr><th scope="col">Time (UTC)</th>`, esc(c.Title), esc(c.Title))
	for _, s := range c.Series {
		name := s.Name
		if c.Unit != "" {
			name += ", " + c.Unit
		}
		fmt.Fprintf(b, `<th scope="col" class="number">%s</th>`, esc(name))
	}
	b.WriteString(`</tr></thead><tbody>`)
	layout := "2006-01-02 15:04"
	if c.Step >= day {
		layout = "2006-01-02"
	}
	for i, t := range slices.Backward(c.Times) {
		known := false
		for k := range c.Series {
			v, ok := c.Series[k].at(i)
			known = known || ok && (v != 0 || c.Unit != "")
		}
		if !known {
			continue
		}
		fmt.Fprintf(b, `<tr><th scope="row">%s</th>`, t.UTC().Format(layout))
		for k := range c.Series {
			cell := ""
			if v, ok := c.Series[k].at(i); ok {
				cell = exactly(v)
			}
			fmt.Fprintf(b, `<td class="number">%s</td>`, esc(cell))
		}
		b.WriteString(`</tr>`)
	}
	b.WriteString(`</tbody></table></div></details>`)
}

// Spark draws a small line of bars without axes. What it shows is said in words.
func Spark(values []float64, words string) template.HTML {
	high := 1.0
	for _, v := range values {
		if !math.IsInf(v, 0) && !math.IsNaN(v) {
			high = max(high, v)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="spark" viewBox="0 0 %d 20" preserveAspectRatio="none" role="img" aria-label="%s"><title>%s</title>`, 4*max(len(values), 1), esc(words), esc(words))
	for i, v := range values {
		if math.IsInf(v, 0) || math.IsNaN(v) {
			v = 0
		}
		h := 18 * max(v, 0) / high
		if v > 0 {
			h = max(h, 1.5)
		}
		fmt.Fprintf(&b, `<rect x="%d" y="%.1f" width="3" height="%.1f"/>`, 4*i, 19-h, h+1)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}

// Near is the share of a limit from which on [Meter] warns.
const Near = 0.8

// Meter draws how much of a whole is used, as a bar that is full at all of it. Words say
// the same; what is beside the bar need not repeat it.
func Meter(used, whole int64, words string) template.HTML {
	share := 1.0
	if whole > 0 {
		share = min(max(float64(used)/float64(whole), 0), 1)
	}
	class, marks := "room-left", ""
	switch {
	case share >= 1:
		class, marks = "used-up", textures["error"]
	case share >= Near:
		class, marks = "nearly", textures["limited"]
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="meter %s" viewBox="0 0 200 10" preserveAspectRatio="none" role="img" aria-label="%s"><title>%s</title>`, class, esc(words), esc(words))
	fmt.Fprintf(&b, `<rect class="track" width="200" height="10"/>`)
	if share > 0 {
		width := max(200*share, 2)
		fmt.Fprintf(&b, `<rect class="used" width="%.1f" height="10"/>`, width)
		if marks != "" {
			// As a path and not a pattern: there are many meters on a page.
			fmt.Fprintf(&b, `<path class="texture" d="%s"/>`, hatch(width, class == "used-up"))
		}
	}
	fmt.Fprintf(&b, `<line class="near" x1="%g" x2="%g" y1="0" y2="10"/></svg>`, 200*Near, 200*Near)
	return template.HTML(b.String())
}

// Share draws how much of the most something is, as a small bar beside its figure.
func Share(part, most float64) template.HTML {
	width := 0.0
	if part > 0 && most > 0 {
		width = max(min(100*part/most, 100), 1)
	}
	return template.HTML(fmt.Sprintf(`<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" focusable="false"><rect width="%.1f" height="6" rx="1"/></svg>`, width))
}

// hatch are marks over a bar of a meter: lines up, or dashes.
func hatch(width float64, full bool) string {
	var b strings.Builder
	for x := 4.0; x+6 <= width; x += 8 {
		if full {
			fmt.Fprintf(&b, "M%g 10L%g 0", x, x+6)
		} else {
			fmt.Fprintf(&b, "M%g 5H%g", x, x+4)
		}
	}
	return b.String()
}

// ticks are round figures from 0 on, the last one not below high: three to seven of
// them, whole ones where they are numbers of things.
func ticks(high float64, things bool, whole float64) []float64 {
	if whole > 0 && high > whole/5 && high <= whole {
		high = whole
	}
	if things {
		high = max(high, 4)
	} else if high == 0 {
		high = 1
	}
	step := roundStep(high / 5)
	if things {
		step = math.Ceil(step)
	}
	list := []float64{0}
	for list[len(list)-1] < high {
		list = append(list, float64(len(list))*step)
	}
	return list
}

// roundStep is the least of 1, 2, 2.5 and 5 times a power of ten that is not below at.
func roundStep(at float64) float64 {
	exponent := math.Floor(math.Log10(at))
	power := math.Pow(10, exponent)
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if s := m * power; s >= at && s > 0 {
			return s
		}
	}
	return at // of figures that are too small to be divided
}

const day = 24 * time.Hour

// steps are how far apart times below a chart may be.
var steps = []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 6 * time.Hour, 12 * time.Hour, day, 2 * day, 3 * day, 5 * day, 7 * day, 14 * day, 28 * day}

// months are how many of them apart, where days are too near.
var months = []int{1, 2, 3, 6, 12}

// moments are the buckets that get a time below, at most so many: those at which a round
// piece of time begins, by UTC.
func moments(times []time.Time, step time.Duration, most int) []int {
	most = max(most, 1)
	pick := func(round func(t time.Time) time.Time) []int {
		var at []int
		for i, t := range times {
			t = t.UTC()
			// A bucket gets the time where its round piece begins in it.
			if begin := round(t.Add(max(step, 1) - 1)); !begin.Before(t) {
				at = append(at, i)
			}
		}
		return at
	}
	if len(times) == 0 {
		return nil
	}
	for _, s := range steps {
		if s < step {
			continue
		}
		round := func(t time.Time) time.Time { return t.Truncate(s) }
		if s > day {
			first := times[0].UTC().Truncate(day) // pieces of days begin with the first one shown
			round = func(t time.Time) time.Time { return first.Add(t.Sub(first) / s * s) }
		}
		if at := pick(round); len(at) <= most && len(at) > 0 {
			return at
		}
	}
	for _, m := range months {
		at := pick(func(t time.Time) time.Time {
			month := int(t.Month()) - 1
			return time.Date(t.Year(), time.Month(month-month%m+1), 1, 0, 0, 0, 0, time.UTC)
		})
		if len(at) <= most && len(at) > 0 {
			return at
		}
	}
	every := (len(times) + most - 1) / most
	var at []int
	for i := 0; i < len(times); i += every {
		at = append(at, i)
	}
	return at
}

func label(t time.Time, step time.Duration) string {
	t = t.UTC()
	if step >= day || t.Hour() == 0 && t.Minute() == 0 {
		return t.Format("2 Jan")
	}
	return t.Format("15:04")
}

func figure(v float64, unit string) string {
	s := Count(v)
	if unit != "" {
		s += " " + unit
	}
	return s
}

// exactly is a figure for a table: all of its digits before the point, and two behind it.
func exactly(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return grouped(int64(v))
	}
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', 2, 64), "0"), ".")
}

func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Count is a number as people read it: 12,345 or 1.2M.
func Count(n any) string {
	var v float64
	switch n := n.(type) {
	case int:
		v = float64(n)
	case int64:
		v = float64(n)
	case uint64:
		v = float64(n)
	case float64:
		v = n
	case *int64:
		if n == nil {
			return ""
		}
		v = float64(*n)
	default:
		return fmt.Sprint(n)
	}
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return ""
	case a >= 999.95e6:
		return trim(v/1e9) + "B"
	case a >= 999.95e3:
		return trim(v/1e6) + "M"
	case a >= 99_950:
		return trim(v/1e3) + "k"
	case a >= 1e3:
		return grouped(int64(math.Round(v)))
	case a > 0 && a < 0.1:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
	return trim(v)
}

func trim(v float64) string {
	s := fmt.Sprintf("%.1f", v)
	return strings.TrimSuffix(s, ".0")
}

func esc(s string) string { return template.HTMLEscapeString(s) }
