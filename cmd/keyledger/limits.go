package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

func (a *app) limitsCommand() *cobra.Command {
	return group("limits", "Ask what other limits would do", a.simulateCommand())
}

func (a *app) simulateCommand() *cobra.Command {
	var in simulationAsked
	var windows []string
	var file string
	var unlimited bool
	cmd := &cobra.Command{
		Use: "simulate", Short: "Replay recorded traffic against other limits, and show who would have been refused", Args: takes(),
		Long: `Replay recorded traffic against other limits, with the limiter that verifiers use,
and show who would have been refused when. Nothing is recorded or changed.

--limit names the whole set: a window that is not named is unlimited. Without --limit
and without -f the limits in force now are replayed, which refuse what was refused
where nothing changed since. Keys and owners count with the plan they have now.

Requests that a limit refused are recorded as a count per key, window and second, and
replayed at the first of them. Callers who are refused come back or stay away; the
traffic that is replayed does neither.`,
		Example: `  keyledger limits simulate --keyspace parcelbird --plan basic --limit minute=20 --limit day=1000
  keyledger limits simulate --keyspace parcelbird --key key_… --limit minute=5 --from 7d
  keyledger limits simulate --keyspace parcelbird -f parcelbird.yaml --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if in.From, err = a.past("--from", in.From); err != nil {
				return err
			}
			if in.To, err = a.past("--to", in.To); err != nil {
				return err
			}
			if unlimited && len(windows) > 0 {
				return usageError("--unlimited and --limit contradict each other: give one of them")
			}
			if in.Limits, err = limitSet(windows); err != nil {
				return err
			}
			if unlimited {
				in.Limits = &map[string]int64{}
			}
			if file != "" {
				b, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				in.Document = string(b)
			}
			body, err := a.work(cmd, "/v1/limits/simulate", in, "replaying")
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			return a.printSimulation(body, in)
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Keyspace, "keyspace", "", "replay the traffic of this keyspace")
	f.StringVar(&in.Owner, "owner", "", "of this owner alone")
	f.StringVar(&in.Key, "key", "", "of this key id alone")
	f.StringVar(&in.Plan, "plan", "", "of those alone whose plan is this one")
	f.StringArrayVar(&windows, "limit", nil, "a limit, such as minute=20; once for each of minute, hour and day")
	f.BoolVar(&unlimited, "unlimited", false, "no limits at all")
	f.StringVarP(&file, "file", "f", "", "a keyspace document whose plans and limits count instead of those in force")
	f.StringVar(&in.From, "from", "", "not before this time, date or distance; 24h where absent; also --since")
	f.StringVar(&in.To, "to", "", "before this time, date or distance; now where absent")
	f.IntVar(&in.Top, "top", 20, "show so many keys and owners")
	also(cmd, "since", "from", "limits", "limit")
	a.completeFlags(cmd)
	return cmd
}

// simulationAsked is the body of POST /v1/limits/simulate.
type simulationAsked struct {
	Keyspace string            `json:"keyspace,omitempty"`
	Owner    string            `json:"owner,omitempty"`
	Key      string            `json:"key,omitempty"`
	Plan     string            `json:"plan,omitempty"`
	Limits   *map[string]int64 `json:"limits,omitempty"` // nil: those in force
	Document string            `json:"document,omitempty"`
	From     string            `json:"from,omitempty"`
	To       string            `json:"to,omitempty"`
	Top      int               `json:"top,omitempty"`
}

// limitSet reads minute=20, several with commas too; nil where there is none.
func limitSet(given []string) (*map[string]int64, error) {
	if len(given) == 0 {
		return nil, nil
	}
	limits := map[string]int64{}
	for _, list := range given {
		for one := range strings.SplitSeq(list, ",") {
			window, text, ok := strings.Cut(strings.TrimSpace(one), "=")
			n, err := strconv.ParseInt(text, 10, 64)
			if !ok || err != nil || n < 1 || !slices.Contains([]string{"minute", "hour", "day"}, window) {
				return nil, usageError("--limit: write a window and a whole number above 0, such as minute=20; windows are minute, hour and day, and one that is not named is unlimited")
			}
			if _, twice := limits[window]; twice {
				return nil, usageError("--limit: %s is there twice", window)
			}
			limits[window] = n
		}
	}
	return &limits, nil
}

// simulated is what is shown of the answer.
type simulated struct {
	Keyspace, Bucket                  string
	From, To                          events.Time
	Total                             simulatedFigures
	Seen                              int
	KeysHit                           int `json:"keys_hit"`
	Keys, Owners                      []simulatedWho
	Timeline                          []simulatedSlice
	Folded, Unknown, Late, Unrecorded int64
}

type simulatedSlice struct {
	Time events.Time
	simulatedFigures
}

type simulatedFigures struct {
	Requests        int64
	RefusedThen     int64 `json:"refused_then"`
	Refused         int64
	NewlyRefused    int64 `json:"newly_refused"`
	NoLongerRefused int64 `json:"no_longer_refused"`
}

type simulatedWho struct {
	Key, Name, Owner string
	simulatedFigures
	First, Last events.Time
	WorstMinute events.Time `json:"worst_minute"`
	WorstCount  int64       `json:"worst_count"`
	Windows     map[string]int64
	Share       float64
}

// simulatedParts are the parts of all requests, as they were and would be.
var simulatedParts = []layer{
	{"admitted", 32, '█'}, {"refused then, admitted here", 36, '+'}, {"refused as then", 33, '='}, {"newly refused", 31, '#'},
}

func (f *simulatedFigures) parts() []int64 {
	return []int64{f.Requests - f.RefusedThen - f.NewlyRefused, f.NoLongerRefused, f.Refused - f.NewlyRefused, f.NewlyRefused}
}

func (a *app) printSimulation(body []byte, in simulationAsked) error {
	var s simulated
	if err := json.Unmarshal(body, &s); err != nil {
		return err
	}
	if !a.tty {
		rows := make([][]string, 0, len(s.Keys)+1)
		rows = append(rows, []string{"key", "owner", "name", "requests", "refused_then", "refused", "newly_refused", "no_longer_refused", "first", "last", "worst_minute", "worst_count", "window"})
		for _, w := range s.Keys {
			n := func(n int64) string { return strconv.FormatInt(n, 10) }
			rows = append(rows, []string{w.Key, w.Owner, orDash(w.Name), n(w.Requests), n(w.RefusedThen), n(w.Refused), n(w.NewlyRefused), n(w.NoLongerRefused),
				orDash(w.First.String()), orDash(w.Last.String()), orDash(w.WorstMinute.String()), n(w.WorstCount), orDash(w.window())})
		}
		return a.rows(nil, rows)
	}
	p := plotter{width: cmp.Or(a.width, columnsOf(80)), color: a.color}
	var b bytes.Buffer
	text := p.simulation(&s, in)
	b.WriteString(text)
	if _, err := a.stdout.Write(b.Bytes()); err != nil {
		return err
	}
	if len(s.Keys) > 0 {
		rows := make([][]string, len(s.Keys))
		for i, w := range s.Keys {
			at := func(t events.Time) string {
				if t == 0 {
					return "-"
				}
				return t.Time().Format("Jan 2 15:04")
			}
			rows[i] = []string{cmp.Or(w.Name, w.Key), w.Owner, inShort(float64(w.Requests)), inShort(float64(w.RefusedThen)), inShort(float64(w.Refused)),
				fmt.Sprintf("%.1f %%", 100*w.Share), orDash(w.window()), fmt.Sprintf("%d at %s", w.WorstCount, at(w.WorstMinute)), at(w.First), at(w.Last), w.Key}
			if w.WorstCount == 0 {
				rows[i][7] = "-"
			}
		}
		if err := a.rows([]string{"key", "owner", "requests", "refused then", "refused", "share", "limit hit", "worst minute", "first", "last", "id"}, rows); err != nil {
			return err
		}
	}
	_, err := io.WriteString(a.stdout, s.remarks())
	return err
}

// simulation draws what would have been refused over time, with the sums in words.
func (p plotter) simulation(s *simulated, in simulationAsked) string {
	var b strings.Builder
	limits := "the limits in force now"
	switch {
	case in.Document != "":
		limits = "the limits of the document"
	case in.Limits != nil && len(*in.Limits) == 0:
		limits = "no limits"
	case in.Limits != nil:
		var words []string
		for _, window := range []string{"minute", "hour", "day"} {
			if n, ok := (*in.Limits)[window]; ok {
				words = append(words, fmt.Sprintf("%d per %s", n, window))
			}
		}
		limits = strings.Join(words, ", ")
	}
	fmt.Fprintf(&b, "%s under %s\n", p.paint(1, clean(strings.Join(slices.DeleteFunc([]string{s.Keyspace, in.Owner, in.Plan, in.Key}, func(s string) bool { return s == "" }), "/"))), limits)
	fmt.Fprintf(&b, "%s to %s UTC\n", s.From.Time().Format("2006-01-02 15:04"), s.To.Time().Format("2006-01-02 15:04"))
	if s.Total.Requests == 0 {
		return b.String() + "No requests in this time.\n"
	}
	p.wrapped(&b, []string{
		fmt.Sprintf("%d requests", s.Total.Requests),
		fmt.Sprintf("%s refused (then %s)", share(s.Total.Refused, s.Total.Requests), share(s.Total.RefusedThen, s.Total.Requests)),
		fmt.Sprintf("%d newly, %d no longer", s.Total.NewlyRefused, s.Total.NoLongerRefused),
		fmt.Sprintf("%d of %d keys", s.KeysHit, s.Seen),
	})
	b.WriteByte('\n')
	each := bucketWidth[s.Bucket]
	begin := s.From.Time().Truncate(each)
	stacks := make([][]int64, max(int((s.To.Time().Sub(begin)+each-1)/each), 1))
	for i := range stacks {
		stacks[i] = make([]int64, len(simulatedParts))
	}
	for i := range s.Timeline {
		if at := int(s.Timeline[i].Time.Time().Sub(begin) / each); at >= 0 && at < len(stacks) {
			stacks[at] = s.Timeline[i].parts()
		}
	}
	p.stacks(&b, "Requests", simulatedParts, stacks, begin, each)
	b.WriteByte('\n')
	return b.String()
}

// window is the one whose limit was hit most.
func (w *simulatedWho) window() string {
	most := ""
	for _, window := range []string{"minute", "hour", "day"} {
		if n := w.Windows[window]; n > 0 && n > w.Windows[most] {
			most = window
		}
	}
	return most
}

// remarks say what the figures cannot.
func (s *simulated) remarks() string {
	var b strings.Builder
	say := func(n int64, format string) {
		if n > 0 {
			fmt.Fprintf(&b, format+"\n", n)
		}
	}
	say(s.Folded, "%d requests that were refused then are known by the second alone.")
	say(s.Unknown, "%d requests with keys that are not known any more are left out.")
	say(s.Late, "%d requests were recorded too late to be replayed in their turn.")
	say(s.Unrecorded, "%d uses of this time could not be recorded, as verifiers declared.")
	if s.Total.Requests > 0 {
		b.WriteString("Callers would have behaved otherwise: who is refused comes back or stays away.\n")
	}
	return b.String()
}
