package chart

import (
	"encoding/xml"
	"errors"
	"html/template"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"
)

var begin = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func times(n int, step time.Duration) []time.Time {
	var list []time.Time
	for i := range n {
		list = append(list, begin.Add(time.Duration(i)*step))
	}
	return list
}

// element is one of a drawing, with the text in it.
type element struct {
	name  string
	attrs map[string]string
	text  string
	in    []string // names with classes of what it is in
}

func (e element) number(t rapid.TB, attr string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(e.attrs[attr], 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		t.Fatalf("%s of a %s is %q", attr, e.name, e.attrs[attr])
	}
	return v
}

// read takes a drawing apart, as strictly as XML is.
func read(t rapid.TB, drawn template.HTML) []element {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(string(drawn)))
	var list []element
	var open []int
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%v in %s", err, drawn)
		}
		switch x := token.(type) {
		case xml.StartElement:
			e := element{name: x.Name.Local, attrs: map[string]string{}}
			for _, a := range x.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			for _, i := range open {
				e.in = append(e.in, list[i].name+"."+list[i].attrs["class"])
			}
			open = append(open, len(list))
			list = append(list, e)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			for _, i := range open {
				list[i].text += string(x)
			}
		}
	}
}

// What is drawn is what was drawn before, element by element: testdata is never edited,
// only made anew with KEYLEDGER_GOLDEN=1 when a drawing is meant to change.
func TestGolden(t *testing.T) {
	counts := Chart{Title: "Requests", Times: times(6, time.Hour), Step: time.Hour, Series: []Series{
		{"succeeded", "success", []float64{10, 0, 30, 40, 0, 9}}, {"failed", "error", []float64{0, 0, 3, 0, 0, 1}},
		{"rate limited", "limited", []float64{0, 0, 0, 8, 0, 0}}, {"denied", "denied", []float64{0, 0, 0, 0, 0, 90}}}}
	nan := math.NaN()
	latency := Chart{Title: "Latency", Unit: "ms", Times: times(5, 24*time.Hour), Step: 24 * time.Hour, Series: []Series{
		{"average", "average", []float64{12, 13.5, nan, 12, nan}}, {"p99", "p99", []float64{80, 130, nan, 91.25, nan}}}}
	for name, drawn := range map[string]template.HTML{
		"bars": Bars(counts), "lines": Lines(latency), "empty": Bars(Chart{Title: "Requests", Times: times(3, time.Hour), Step: time.Hour, Series: []Series{{"all", "success", []float64{0, 0, 0}}}}),
		"spark": Spark([]float64{0, 3, 9}, "12 requests"), "meter": Meter(17, 20, "17 of 20 used per minute") + Meter(20, 20, "20 of 20") + Meter(1, 20, "1 of 20"), "share": Share(1, 3),
	} {
		got := strings.ReplaceAll(string(drawn), "><", ">\n<") + "\n"
		file := filepath.Join("testdata", name+".html")
		if os.Getenv("KEYLEDGER_GOLDEN") != "" {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is drawn as\n%s\nand not as %s has it", name, got, file)
		}
	}
}

// Whatever the figures, nothing is drawn outside of the plot, bars stand on each other,
// and the highest line is not below the highest figure.
func TestNothingOutside(t *testing.T) {
	written := rapid.StringOf(rapid.RuneFrom(nil, unicode.L, unicode.P, unicode.S)) // what XML takes too
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(t, "columns")
		c := Chart{Title: written.Draw(t, "title"), Unit: rapid.SampledFrom([]string{"", "ms", "%"}).Draw(t, "unit"), Step: rapid.SampledFrom(steps).Draw(t, "step"), Fractions: rapid.Bool().Draw(t, "fractions")}
		if c.Unit == "%" {
			c.Whole = 100
		}
		c.Times = times(n, c.Step)
		figures := rapid.OneOf(rapid.Float64Range(0, 100), rapid.SampledFrom([]float64{0, 0, 1, 1e-9, 1e18, math.MaxFloat64, -5, math.NaN(), math.Inf(1)}), rapid.Map(rapid.IntRange(0, 5000), func(n int) float64 { return float64(n) }))
		for _, class := range []string{"success", "unknown", "error"} {
			known := rapid.IntRange(0, n).Draw(t, "known") // a series may end early
			c.Series = append(c.Series, Series{written.Draw(t, "name"), class, rapid.SliceOfN(figures, known, known).Draw(t, "figures")})
		}
		stacked := rapid.Bool().Draw(t, "stacked")
		drawn := Lines(c)
		if stacked {
			drawn = Bars(c)
		}
		list := ticks(c.highest(stacked), c.Unit == "" && !c.Fractions, c.Whole)
		if high := c.highest(stacked); list[0] != 0 || list[len(list)-1] < high || len(list) > 8 || !slices.IsSorted(list) {
			t.Fatalf("lines at %v for at most %g", list, high)
		}
		width, height := 0.0, 0.0
		within := func(x, y float64) {
			t.Helper()
			if x < left-0.1 || x > width-right+0.1 || y < top-0.1 || y > height-bottom+0.1 {
				t.Fatalf("something is drawn at %g, %g of %g by %g", x, y, width, height)
			}
		}
		var low map[float64]float64 // of the bar below, by where it begins
		for _, e := range read(t, drawn) {
			class := e.attrs["class"]
			switch {
			case e.name == "svg" && (class == "wide" || class == "narrow"):
				box := strings.Fields(e.attrs["viewBox"])
				width, _ = strconv.ParseFloat(box[2], 64)
				height, _ = strconv.ParseFloat(box[3], 64)
				low = map[float64]float64{}
			case e.name == "rect" && slices.Contains(e.in, "g.at"):
				x, y, w, h := e.number(t, "x"), e.number(t, "y"), e.number(t, "width"), e.number(t, "height")
				if w < 0 || h < 0 {
					t.Fatalf("a bar of %g by %g", w, h)
				}
				within(x, y)
				within(x+w, y+h)
				if class == "room" {
					continue
				}
				if base, ok := low[x]; ok && math.Abs(base-(y+h)) > 1.1 {
					t.Fatalf("a bar stands at %g, and the one below ends at %g", y+h, base)
				}
				low[x] = y
			case e.name == "path" && strings.HasPrefix(class, "line") && slices.Contains(e.in, "div.plot"):
				for _, at := range strings.FieldsFunc(e.attrs["d"], func(r rune) bool { return r == 'M' || r == 'L' }) {
					var x, y float64
					at, _, _ = strings.Cut(at, "h")
					if i := strings.IndexByte(at, ' '); i > 0 {
						x, _ = strconv.ParseFloat(at[:i], 64)
						y, _ = strconv.ParseFloat(at[i+1:], 64)
					}
					within(x, y)
				}
			case e.name == "circle" && slices.Contains(e.in, "div.plot"):
				within(e.number(t, "cx"), e.number(t, "cy"))
			case e.name == "text":
				if x := e.number(t, "x"); x < 0 || x > width {
					t.Fatalf("%s is written at %g of %g", e.text, x, width)
				}
			}
		}
	})
}

// Titles, names and words are text, whatever stands in them.
func TestHostileNames(t *testing.T) {
	for _, name := range []string{`<img src=x onerror="alert(1)">`, `"><script>alert(1)</script>`, `' onload='x`, `</svg><b>`, "&amp;", "\u202eedoc"} {
		c := Chart{Title: name, Unit: name, Times: times(2, time.Hour), Step: time.Hour, Empty: name, Series: []Series{{name, "success", []float64{1, 2}}, {name, "error", []float64{1, 2}}}}
		empty := c
		empty.Series = nil
		for _, drawn := range []template.HTML{Bars(c), Lines(c), Bars(empty), Spark([]float64{1}, name), Meter(1, 2, name)} {
			said := false
			for _, e := range read(t, drawn) {
				for attr, value := range e.attrs {
					if strings.HasPrefix(attr, "on") || attr == "style" || attr == "href" {
						t.Errorf("%s has the attribute %s=%s", e.name, attr, value)
					}
				}
				if slices.Contains([]string{"img", "script", "b", "a", "style"}, e.name) {
					t.Errorf("%q made a %s", name, e.name)
				}
				said = said || strings.Contains(e.text, name)
			}
			if !said {
				t.Errorf("%q is not said in %s", name, drawn)
			}
		}
	}
}

// Times below a chart are round ones, by UTC, and never more than there is room for.
func TestMoments(t *testing.T) {
	for _, c := range []struct {
		from time.Time
		n    int
		step time.Duration
		most int
		want string
	}{
		{begin.Add(15*time.Hour + 7*time.Minute), 60, time.Minute, 8, "15:10 15:20 15:30 15:40 15:50 16:00"},
		{begin.Add(16 * time.Hour), 24, time.Hour, 8, "18:00 21:00 23 Nov 03:00 06:00 09:00 12:00 15:00"},
		{begin.Add(3 * time.Hour), 168, time.Hour, 8, "23 Nov 24 Nov 25 Nov 26 Nov 27 Nov 28 Nov 29 Nov"},
		{begin, 30, 24 * time.Hour, 8, "22 Nov 27 Nov 2 Dec 7 Dec 12 Dec 17 Dec"},
		{begin, 52, 7 * 24 * time.Hour, 5, "27 Dec 28 Mar 27 Jun 26 Sep"},
		{begin.In(time.FixedZone("far", 9*3600)), 24, time.Hour, 4, "22 Nov 06:00 12:00 18:00"},
		{begin, 0, time.Hour, 4, ""},
	} {
		var at []time.Time
		for i := range c.n {
			at = append(at, c.from.Add(time.Duration(i)*c.step))
		}
		picked := moments(at, c.step, c.most)
		var labels []string
		for _, i := range picked {
			labels = append(labels, label(at[i], c.step))
		}
		if got := strings.Join(labels, " "); got != c.want || len(picked) > c.most {
			t.Errorf("%d steps of %s from %s: %s, want %s", c.n, c.step, c.from, got, c.want)
		}
	}
}

// However many columns there are, some get a time, and not more than there is room for.
func TestMomentsAreFew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		step := rapid.SampledFrom(steps).Draw(t, "step")
		n := rapid.IntRange(1, 500).Draw(t, "n")
		most := rapid.IntRange(1, 10).Draw(t, "most")
		list := moments(times(n, step), step, most)
		if len(list) == 0 || len(list) > most || !slices.IsSorted(list) || list[0] < 0 || list[len(list)-1] >= n {
			t.Fatalf("%d steps of %s, at most %d: %v", n, step, most, list)
		}
	})
}

func TestCount(t *testing.T) {
	for want, n := range map[string]any{
		"0": 0, "7": int64(7), "999": 999, "1,000": 1000, "12,345": uint64(12345), "99,949": 99_949, "100k": 99_950, "123.5k": 123_456, "1M": 999_950, "1.2M": 1_234_567,
		"2.5B": 2.5e9, "-1,234": -1234, "0.5": 0.5, "0.012": 0.0123, "12.3": 12.34, "": (*int64)(nil),
	} {
		if got := Count(n); got != want {
			t.Errorf("%v is %q, want %q", n, got, want)
		}
	}
}
