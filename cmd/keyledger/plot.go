package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
)

// plotter draws figures over time, and beside each other, with characters. Columns
// of the drawing are columns of the terminal, so it never writes a longer line than
// width. Without colours what is told apart by colour is told apart by characters.
type plotter struct {
	width int // of the terminal; at least 40 is drawn for
	color bool
}

const (
	plotLabels = 8 // columns left of a plot, the axis included
	plotHeight = 8 // lines of a plot
)

// layer is one part of a stack: its name, its colour as a parameter of SGR, and the
// character that stands for it where there are no colours.
type layer struct {
	name  string
	sgr   int
	plain rune
}

// outcomes are the parts of all requests, from the bottom of a stack to its top.
var outcomes = []layer{
	{"ok", 32, '█'}, {"unknown", 90, '▒'}, {"errors", 31, '#'}, {"limited", 33, '='}, {"denied", 35, '%'},
}

func (p plotter) columns() int { return max(p.width, 40) - plotLabels }

func (p plotter) paint(sgr int, s string) string {
	if !p.color || s == "" {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", sgr, s)
}

// glyph is a character with its colours as parameters of SGR; empty: the terminal's
// own.
type glyph struct {
	style string
	char  rune
}

func (p plotter) glyph(sgr int, char rune) glyph {
	if !p.color {
		return glyph{"", char}
	}
	return glyph{strconv.Itoa(sgr), char}
}

// row writes characters, those of the same colour together, without blanks at the end.
func row(b *strings.Builder, glyphs []glyph) {
	for len(glyphs) > 0 && glyphs[len(glyphs)-1].char == ' ' {
		glyphs = glyphs[:len(glyphs)-1]
	}
	style := ""
	for _, g := range glyphs {
		if g.char == ' ' && !strings.Contains(style, ";") { // has no colour to be seen
			g.style = style
		}
		if g.style != style {
			if style != "" {
				b.WriteString("\x1b[0m")
			}
			if style = g.style; style != "" {
				b.WriteString("\x1b[" + style + "m")
			}
		}
		b.WriteRune(g.char)
	}
	if style != "" {
		b.WriteString("\x1b[0m")
	}
	b.WriteByte('\n')
}

// spread says how buckets become columns: so many buckets in one column, or so many
// columns for one bucket.
func (p plotter) spread(buckets int) (merged, wide int) {
	if buckets > p.columns() {
		return (buckets + p.columns() - 1) / p.columns(), 1
	}
	return 1, max(p.columns()/max(buckets, 1), 1)
}

// stacks draws a stack for every bucket: values has one list per bucket, of a number
// per layer. begin is when the first bucket begins, each how long one is.
func (p plotter) stacks(b *strings.Builder, title string, layers []layer, values [][]int64, begin time.Time, each time.Duration) {
	merged, wide := p.spread(len(values))
	var most int64
	var columns [][]int64
	for at := 0; at < len(values); at += merged {
		sum := make([]int64, len(layers))
		var total int64
		for _, v := range values[at:min(at+merged, len(values))] {
			for i, n := range v {
				sum[i] += n
				total += n
			}
		}
		most = max(most, total)
		columns = append(columns, sum)
	}
	fmt.Fprintf(b, "%s", p.paint(1, title))
	if merged > 1 {
		fmt.Fprintf(b, ", per %s", short(each*time.Duration(merged)))
	} else {
		fmt.Fprintf(b, ", per %s", short(each))
	}
	b.WriteByte('\n')
	var legend []string
	for i, l := range layers {
		var sum int64
		for _, c := range columns {
			sum += c[i]
		}
		if sum > 0 {
			mark := string(l.plain)
			if p.color {
				mark = "█"
			}
			legend = append(legend, p.paint(l.sgr, mark)+" "+l.name+" "+inShort(float64(sum)))
		}
	}
	p.wrapped(b, legend)
	heights := make([][]int, len(columns)) // in eighths of a line, of each layer
	for i, c := range columns {
		heights[i] = stackHeights(c, most)
	}
	for line := plotHeight - 1; line >= 0; line-- {
		p.label(b, line, float64(most), inShort)
		var drawn []glyph
		for _, h := range heights {
			cell := p.cell(layers, h, 8*line)
			for range max(wide-1, 1) {
				drawn = append(drawn, cell)
			}
			if wide > 1 { // a gap between bars that are wider than a column
				drawn = append(drawn, glyph{"", ' '})
			}
		}
		row(b, drawn)
	}
	p.axis(b, len(columns)*wide, begin, each*time.Duration(merged), wide)
}

// stackHeights are the heights of one stack's parts in eighths of a line. What is
// there is seen: no part that is not zero has no height.
func stackHeights(parts []int64, most int64) []int {
	h := make([]int, len(parts))
	room := plotHeight * 8
	for i, n := range parts {
		if n > 0 {
			h[i] = max(int(math.Round(float64(n)*plotHeight*8/float64(most))), 1)
			room -= h[i]
		}
	}
	for ; room < 0; room++ { // the largest gives what the small ones took
		h[slices.Index(h, slices.Max(h))]--
	}
	return h
}

const eighths = " ▁▂▃▄▅▆▇█"

// cell is the character of a stack between from and from+8 eighths.
func (p plotter) cell(layers []layer, heights []int, from int) glyph {
	type piece struct {
		layer, size int
		whole       bool // nothing of the part is in another cell
	}
	var in []piece
	bottom, full := 0, 0
	for i, h := range heights {
		if size := min(bottom+h, from+8) - max(bottom, from); size > 0 {
			in = append(in, piece{i, size, size == h})
			full += size
		}
		bottom += h
	}
	if len(in) == 0 {
		return glyph{"", ' '}
	}
	// Where there is one colour for several, it is that of what is seen nowhere else.
	one := in[0]
	for _, x := range in[1:] {
		if x.whole || !one.whole && x.size > one.size {
			one = x
		}
	}
	if !p.color {
		if plain := layers[one.layer].plain; plain != '█' {
			return glyph{"", plain}
		}
		return glyph{"", []rune(eighths)[full]}
	}
	if len(in) == 1 || full < 8 { // above the end of the stack is the terminal's own colour
		return p.glyph(layers[one.layer].sgr, []rune(eighths)[full])
	}
	for len(in) > 2 { // a character has two colours
		least := 0
		for i, x := range in {
			if y := in[least]; y.whole && !x.whole || x.whole == y.whole && x.size < y.size {
				least = i
			}
		}
		into := least - 1
		if least == 0 {
			into = 1
		}
		in[into].size += in[least].size
		in = slices.Delete(in, least, least+1)
	}
	return glyph{fmt.Sprintf("%d;%d", layers[in[0].layer].sgr, layers[in[1].layer].sgr+10), []rune(eighths)[in[0].size]}
}

// line is one line of a plot; NaN: nothing was measured in that bucket.
type line struct {
	layer
	values []float64
}

// Dots of a braille character, by column and line of its two by four.
var braille = [2][4]rune{{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}}

// lines draws values over time, later lines over earlier ones. Of several buckets in
// one column the largest value is drawn.
func (p plotter) lines(b *strings.Builder, title string, lines []line, begin time.Time, each time.Duration) {
	buckets := len(lines[0].values)
	merged, wide := p.spread(buckets)
	columns := (buckets + merged - 1) / merged
	most := 0.0
	for _, l := range lines {
		for _, v := range l.values {
			if !math.IsNaN(v) {
				most = max(most, v)
			}
		}
	}
	fmt.Fprintf(b, "%s", p.paint(1, title))
	if merged > 1 {
		fmt.Fprintf(b, ", the worst of each %s", short(each*time.Duration(merged)))
	}
	b.WriteByte('\n')
	var legend []string
	for _, l := range lines {
		mark := string(l.plain)
		if p.color {
			mark = "─"
		}
		legend = append(legend, p.paint(l.sgr, mark)+" "+l.name)
	}
	p.wrapped(b, legend)
	if most == 0 {
		b.WriteString("  nothing was measured\n")
		return
	}
	cells := make([][]struct {
		dots  rune
		layer int
	}, plotHeight)
	width := columns * wide
	for i := range cells {
		cells[i] = make([]struct {
			dots  rune
			layer int
		}, width)
	}
	dot := func(layer, x, y int) {
		c := &cells[plotHeight-1-y/4][x/2]
		c.dots |= braille[x%2][3-y%4]
		c.layer = layer
	}
	for i, l := range lines {
		lastX, lastY := -1, 0
		for column := range columns {
			v := math.NaN()
			for _, n := range l.values[column*merged : min((column+1)*merged, buckets)] {
				if !math.IsNaN(n) && !(n <= v) {
					v = n
				}
			}
			if math.IsNaN(v) {
				lastX = -1
				continue
			}
			x, y := column*wide*2+wide-1, int(math.Round(v*float64(4*plotHeight-1)/most))
			if lastX < 0 {
				lastX, lastY = x, y
			}
			for at := lastX; at <= x; at++ { // and up or down to the next
				from, to := lastY, y
				if x > lastX {
					from = lastY + (y-lastY)*(at-lastX)/(x-lastX)
					to = lastY + (y-lastY)*min(at+1-lastX, x-lastX)/(x-lastX)
				}
				for at2 := min(from, to); at2 <= max(from, to); at2++ {
					dot(i, at, at2)
				}
			}
			lastX, lastY = x, y
		}
	}
	for i, of := range cells {
		p.label(b, plotHeight-1-i, most, inShort)
		drawn := make([]glyph, width)
		for x, c := range of {
			switch {
			case c.dots == 0:
				drawn[x].char = ' '
			case p.color:
				drawn[x] = p.glyph(lines[c.layer].sgr, 0x2800+c.dots)
			default:
				drawn[x].char = lines[c.layer].plain
			}
		}
		row(b, drawn)
	}
	p.axis(b, width, begin, each*time.Duration(merged), wide)
}

// label begins a line: how much its top stands for, at the top, in the middle and at
// the bottom.
func (p plotter) label(b *strings.Builder, line int, most float64, write func(float64) string) {
	mark := ""
	switch line {
	case plotHeight - 1:
		mark = write(most)
	case plotHeight/2 - 1:
		mark = write(most / 2)
	case 0:
		mark = "0"
	}
	fmt.Fprintf(b, "%*s%s", plotLabels-1, mark+" ", p.paint(90, "┤"))
}

// axis writes times below a plot of so many columns: when the bucket above the first
// character of each began.
func (p plotter) axis(b *strings.Builder, width int, begin time.Time, each time.Duration, wide int) {
	b.WriteString(strings.Repeat(" ", plotLabels-1) + p.paint(90, "└"+strings.Repeat("─", width)) + "\n")
	whole := each * time.Duration(width/max(wide, 1))
	layout := "15:04"
	switch {
	case whole > 8*24*time.Hour:
		layout = "Jan 2"
	case whole > 30*time.Hour:
		layout = "Mon 15:04"
	}
	line := []byte(strings.Repeat(" ", plotLabels+width+12))
	free := 0
	for column := 0; column < width/max(wide, 1); column++ {
		at := plotLabels + column*wide
		s := begin.Add(each * time.Duration(column)).UTC().Format(layout)
		if at < free || at+len(s) > plotLabels+width {
			continue
		}
		copy(line[at:], s)
		free = at + max(len(s)+4, 12)
	}
	s := strings.TrimRight(string(line), " ")
	if len(s)+4 <= max(p.width, 40) {
		s += " UTC"
	}
	b.WriteString(s + "\n")
}

// bar is one row of bars: what it is about, its parts, and words behind it.
type bar struct {
	label string
	parts []int64
	note  string
}

// bars draws rows below each other, the longest as long as there is room.
func (p plotter) bars(b *strings.Builder, title string, layers []layer, rows []bar) {
	fmt.Fprintln(b, p.paint(1, title))
	width := max(p.width, 40)
	labels, notes := 0, 0
	var most int64
	for i := range rows {
		rows[i].label = clean(rows[i].label)
		labels, notes = max(labels, text.StringWidth(rows[i].label)), max(notes, text.StringWidth(rows[i].note))
		var total int64
		for _, n := range rows[i].parts {
			total += n
		}
		most = max(most, total)
	}
	labels = min(labels, width/3)
	room := max(width-labels-notes-4, 8)
	for _, r := range rows {
		label := r.label
		if text.StringWidth(label) > labels {
			label = text.Trim(label, labels-1) + "…"
		}
		b.WriteString("  " + text.Pad(label, labels, ' ') + " ")
		left, drawn := room, 0
		for i, n := range r.parts {
			if n == 0 || most == 0 {
				continue
			}
			cells := min(max(int(math.Round(float64(n)*float64(room)/float64(most))), 1), left)
			mark := string(layers[i].plain)
			if p.color {
				mark = "█"
			}
			b.WriteString(p.paint(layers[i].sgr, strings.Repeat(mark, cells)))
			left, drawn = left-cells, drawn+cells
		}
		b.WriteString(strings.Repeat(" ", room-drawn) + " " + r.note)
		b.WriteByte('\n')
	}
}

// wrapped writes words on as few lines as they fit.
func (p plotter) wrapped(b *strings.Builder, words []string) {
	at := 0
	for _, w := range words {
		size := text.StringWidthWithoutEscSequences(w) + 2
		if at > 0 && at+size > max(p.width, 40) {
			b.WriteByte('\n')
			at = 0
		}
		b.WriteString("  " + w)
		at += size
	}
	b.WriteByte('\n')
}

// inShort is a number in at most five characters.
func inShort(n float64) string {
	for _, u := range []struct {
		from float64
		name string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "k"}} {
		if n < u.from {
			continue
		}
		if u.from == 1e4 {
			u.from = 1e3
		}
		if n/u.from < 10 {
			return fmt.Sprintf("%.1f%s", n/u.from, u.name)
		}
		return fmt.Sprintf("%.0f%s", n/u.from, u.name)
	}
	if n != math.Trunc(n) && n < 10 {
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

// short is a duration without what is zero in it.
func short(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0:
		if d == 24*time.Hour {
			return "day"
		}
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d%time.Hour == 0:
		if d == time.Hour {
			return "hour"
		}
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d == time.Minute:
		return "minute"
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}
