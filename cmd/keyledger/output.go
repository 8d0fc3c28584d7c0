package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"github.com/keyledger/keyledger/audit/inspect"
	"github.com/keyledger/keyledger/events"
)

// terminal says whether w is one that a person reads and that understands
// cursor movements.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// widthOf is the number of columns of a terminal; 0: not known.
func widthOf(w any) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 0
}

// clean makes foreign text safe to print on one line: control characters and
// marks that change the direction of writing are shown as escapes, because a
// key's name must not be able to move the cursor or to hide what follows it.
func clean(s string) string {
	bad := func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func trimNewline(b []byte) []byte { return bytes.TrimRight(b, "\r\n") }

// printJSON prints an answer of the API: its bytes as they came, indented only
// for a person.
func (a *app) printJSON(body []byte) error {
	body = trimNewline(body)
	if a.tty {
		var b bytes.Buffer
		if json.Indent(&b, body, "", "  ") == nil {
			body = b.Bytes()
		}
	}
	_, err := fmt.Fprintf(a.stdout, "%s\n", body)
	return err
}

// printValue prints as JSON what the program itself has made.
func (a *app) printValue(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return a.printJSON(b.Bytes())
}

// rows prints records: a table on a terminal, elsewhere one line each with tabs
// between the fields and no heading, for cut and awk.
func (a *app) rows(heading []string, rows [][]string) error {
	if !a.tty {
		var b strings.Builder
		for _, r := range rows {
			for i := range r {
				if i > 0 {
					b.WriteByte('\t')
				}
				b.WriteString(clean(r[i]))
			}
			b.WriteByte('\n')
		}
		_, err := io.WriteString(a.stdout, b.String())
		return err
	}
	// What nobody has needs no column.
	cells := make([][]string, len(rows))
	var shown []int
	for i := range heading {
		if len(rows) == 0 || slices.ContainsFunc(rows, func(r []string) bool { return r[i] != "-" }) {
			shown = append(shown, i)
		}
	}
	widths := make([]int, len(heading))
	for _, i := range shown {
		widths[i] = text.StringWidth(heading[i])
	}
	for n, r := range rows {
		cells[n] = make([]string, len(r))
		for _, i := range shown {
			cells[n][i] = clean(r[i])
			widths[i] = max(widths[i], text.StringWidth(cells[n][i]))
		}
	}
	fits, left := a.fitting(shown, widths, heading)
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	t.Style().Format.Header = text.FormatDefault
	var head table.Row
	for _, i := range fits {
		head = append(head, heading[i])
	}
	t.AppendHeader(head)
	for _, r := range cells {
		var row table.Row
		for _, i := range fits {
			row = append(row, a.paint(r[i]))
		}
		t.AppendRow(row)
	}
	if _, err := fmt.Fprintln(a.stdout, t.Render()); err != nil {
		return err
	}
	if len(left) > 0 {
		a.note("the terminal is too narrow for: %s; --json has all", strings.Join(left, ", "))
	}
	return nil
}

// fitting are the columns that the terminal is wide enough for: the first ones,
// because columns stand in the order of their importance. The first always is.
func (a *app) fitting(shown, widths []int, heading []string) (fits []int, left []string) {
	total := 1
	for at, i := range shown {
		total += widths[i] + 3 // a line and two blanks
		if a.width > 0 && total > a.width && at > 0 {
			for _, i := range shown[at:] {
				left = append(left, heading[i])
			}
			return fits, left
		}
		fits = append(fits, i)
	}
	return fits, nil
}

// fields prints one record: a name and a value on each line.
func (a *app) fields(fields [][2]string) error {
	if !a.tty {
		rows := make([][]string, len(fields))
		for i := range fields {
			rows[i] = fields[i][:]
		}
		return a.rows(nil, rows)
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	names := 0
	for _, f := range fields {
		names = max(names, text.StringWidth(f[0]))
		t.AppendRow(table.Row{f[0], a.paint(clean(f[1]))})
	}
	if a.width > 0 {
		t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, WidthMax: max(a.width-names-7, 10)}})
	}
	_, err := fmt.Fprintln(a.stdout, t.Render())
	return err
}

// paint colours the few words whose colour helps to find them.
func (a *app) paint(s string) string {
	if !a.color {
		return s
	}
	switch s {
	case "active", "valid", "VALID", "ok", "ready", inspect.Pass:
		return text.FgGreen.Sprint(s)
	case "revoked", "fail", "refused", "stopped", inspect.Fail:
		return text.FgRed.Sprint(s)
	case "expired", "rate_limited", "warn", "rebuilding", inspect.Unknown:
		return text.FgYellow.Sprint(s)
	}
	return s
}

// note tells a person something beside the result, on stderr.
func (a *app) note(format string, args ...any) {
	if !a.asJSON {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// when writes a moment: from now on a terminal, exact elsewhere, - for none.
func (a *app) when(t events.Time) string {
	if t == 0 {
		return "-"
	}
	if !a.tty {
		return t.String()
	}
	return relative(t.Time().Sub(a.now()))
}

// relative writes a distance in time with its largest unit: 3m ago, in 12d. What
// is to come is rounded up, so that a key made for 30 days expires in 30d.
func relative(d time.Duration) string {
	past := d < 0
	if past {
		d = -d
	}
	if d < time.Second {
		return "now"
	}
	unit, name := 24*time.Hour, "d"
	switch {
	case d < time.Minute:
		unit, name = time.Second, "s"
	case d < time.Hour:
		unit, name = time.Minute, "m"
	case d < 48*time.Hour:
		unit, name = time.Hour, "h"
	}
	if past {
		return fmt.Sprintf("%d%s ago", d/unit, name)
	}
	return fmt.Sprintf("in %d%s", (d+unit-1)/unit, name)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func joined(s []string) string { return orDash(strings.Join(s, ", ")) }

// progressBar shows how far something long is: a bar on a terminal, elsewhere a
// line for each tenth.
type progressBar struct {
	app     *app
	message string
	writer  progress.Writer
	tracker *progress.Tracker
	drawn   sync.WaitGroup
	tenth   int64
}

func (a *app) progress(message string) *progressBar {
	p := &progressBar{app: a, message: message, tenth: -1}
	if !a.errTTY || a.asJSON {
		return p
	}
	p.writer = progress.NewWriter()
	p.writer.SetOutputWriter(a.stderr)
	p.writer.SetUpdateFrequency(100 * time.Millisecond)
	p.writer.SetStyle(progress.StyleBlocks)
	p.writer.Style().Visibility.Value = true
	p.writer.Style().Visibility.ETA = true
	p.tracker = &progress.Tracker{Message: message}
	p.writer.SetAutoStop(true) // when the tracker is marked; Stop before the first drawing would be lost
	p.writer.AppendTracker(p.tracker)
	p.drawn.Go(p.writer.Render)
	return p
}

func (p *progressBar) set(done, total int64) {
	if p.tracker != nil {
		p.tracker.UpdateTotal(total)
		p.tracker.SetValue(done)
		return
	}
	if p.app.asJSON || total <= 0 {
		return
	}
	if tenth := done * 10 / total; tenth > p.tenth {
		p.tenth = tenth
		fmt.Fprintf(p.app.stderr, "%s: %d of %d\n", p.message, done, total)
	}
}

// end leaves the bar as it stands and waits until it is drawn.
func (p *progressBar) end(ok bool) {
	if p.tracker == nil {
		return
	}
	if ok {
		p.tracker.MarkAsDone()
	} else {
		p.tracker.MarkAsErrored()
	}
	p.drawn.Wait()
}
