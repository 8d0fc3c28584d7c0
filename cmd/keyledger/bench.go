package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/internal/bench"
)

// benchFlags are the settings of `keyledger bench verify`.
type benchFlags struct {
	mode                      string
	seconds                   float64
	rounds, connections, keys int
	many, revocations         int
	profile                   string
	without                   []string
}

func (a *app) benchCommand() *cobra.Command {
	var f benchFlags
	verify := &cobra.Command{
		Use: "verify", Short: "Measure verification beside what the same would cost without keyledger", Args: takes(),
		Long: `Measures verification on this machine, every figure beside its floor: the same
work by the same server library, without keyledger. Nothing needs to run: it
starts NATS, keyledger and the floors in processes and a temporary directory of
its own (TMPDIR, up to 1 GB for each minute). On Linux with two cores, the
server has one and the load the other.

Modes:
  verify     POST /v1/verify, three windows, a use recorded for each
  strict     the same, answered when the use is on disk
  gateway    the gateway, beside a bare reverse proxy in Go
  inprocess  the verifier as a library, with 1,000 keys and with many
  revoke     from the answer of a revocation to the refusal elsewhere, and from its
             request to subscribers: live, FEED, Server-Sent Events, a webhook
  all        all of them

After the rounds it reads what was recorded, and fails unless that is as much
as was answered.`,
		Example: `  keyledger bench verify
  keyledger bench verify --mode all --json > figures.json
  keyledger bench verify --mode strict --seconds 3 --rounds 3 --profile profiles`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.validate(); err != nil {
				return err
			}
			return a.benchVerify(cmd.Context(), f)
		},
	}
	fl := verify.Flags()
	fl.StringVar(&f.mode, "mode", "verify", "verify, strict, gateway, inprocess, revoke, all")
	fl.Float64Var(&f.seconds, "seconds", 10, "length of a round")
	fl.IntVar(&f.rounds, "rounds", 5, "rounds, of which the median counts")
	fl.IntVar(&f.connections, "connections", 64, "connections, kept open")
	fl.IntVar(&f.keys, "keys", 1000, "keys that are used in turn")
	fl.IntVar(&f.many, "many", 1_000_000, "keys of the second run in process")
	fl.IntVar(&f.revocations, "revocations", 200, "keys to revoke")
	fl.StringSliceVar(&f.without, "without", nil, "what keyledger is to run without: wal, its write-ahead log")
	fl.StringVar(&f.profile, "profile", "", "directory for CPU profiles of the servers")
	c := group("bench", "Measure keyledger on this machine", verify, a.contenderCommand())
	return c
}

var benchModes = []string{"verify", "strict", "gateway", "inprocess", "revoke"}

func (f *benchFlags) validate() error {
	switch {
	case f.mode != "all" && !slices.Contains(benchModes, f.mode):
		return usageError("--mode is one of %s, all", strings.Join(benchModes, ", "))
	case slices.ContainsFunc(f.without, func(s string) bool { return s != "wal" }):
		return usageError("--without takes wal, and nothing else")
	case f.seconds <= 0 || f.seconds > 3600:
		return usageError("--seconds is more than 0 and at most 3600")
	case f.rounds < 1 || f.connections < 1 || f.keys < 1 || f.many < 1 || f.revocations < 1:
		return usageError("--rounds, --connections, --keys, --many and --revocations are at least 1")
	case f.keys < f.connections:
		return usageError("--keys must be at least --connections, so that every connection has one of its own")
	}
	return nil
}

func (f *benchFlags) has(mode string) bool { return f.mode == "all" || f.mode == mode }

func (f *benchFlags) round() time.Duration { return time.Duration(f.seconds * float64(time.Second)) }

// benchReport is what `keyledger bench verify` prints.
type benchReport struct {
	Machine struct {
		Processor string `json:"processor"`
		Cores     int    `json:"cores"`
		System    string `json:"system"`
		Pinned    bool   `json:"pinned"`
		Note      string `json:"note,omitempty"`
	} `json:"machine"`
	Versions    map[string]string `json:"versions"`
	Seconds     float64           `json:"seconds"`
	Rounds      int               `json:"rounds"`
	Connections int               `json:"connections"`
	Keys        int               `json:"keys"`
	Without     []string          `json:"without,omitempty"`
	Rows        []benchRow        `json:"rows"`
}

// benchRow is one figure, or its floor.
type benchRow struct {
	Name      string  `json:"name"`
	PerSecond float64 `json:"per_second,omitempty"`
	P50       float64 `json:"p50_ms,omitempty"`
	P99       float64 `json:"p99_ms,omitempty"`
	Processor float64 `json:"processor_us,omitempty"` // of the server, for one request
	Nanos     float64 `json:"ns,omitempty"`           // in process: for the caller
	Allocs    float64 `json:"allocations,omitempty"`
	Floor     string  `json:"floor,omitempty"` // name of the row it is compared with
	OfFloor   float64 `json:"of_floor,omitempty"`
	Goal      string  `json:"goal,omitempty"`
	Reached   bool    `json:"reached,omitempty"`
	Answered  int64   `json:"answered,omitempty"`
	Recorded  int64   `json:"recorded,omitempty"` // uses in USAGE; equal to what was answered
}

func (a *app) benchVerify(ctx context.Context, f benchFlags) (err error) {
	dir, err := os.MkdirTemp("", "keyledger-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if f.profile != "" {
		if err := os.MkdirAll(f.profile, 0o755); err != nil {
			return err
		}
	}
	b := &benchRun{app: a, benchFlags: f, dir: dir}
	defer b.stop()
	b.report.Versions = versions()
	b.report.Seconds, b.report.Rounds, b.report.Connections, b.report.Keys = f.seconds, f.rounds, f.connections, f.keys
	b.report.Without = f.without
	m := &b.report.Machine
	m.Processor, m.Cores, m.System = processorName(), runtime.NumCPU(), runtime.GOOS+"/"+runtime.GOARCH
	b.serverCore, b.loadCore, m.Note = bench.Cores()
	m.Pinned = b.serverCore >= 0

	// Before this process is kept on one core: these need all of them.
	if f.has("inprocess") {
		if err := b.inProcess(ctx); err != nil {
			return err
		}
	}
	if f.has("revoke") {
		if err := b.revoke(ctx); err != nil {
			return err
		}
	}
	if f.has("verify") || f.has("strict") || f.has("gateway") {
		if err := bench.Pin(b.loadCore); err != nil {
			return fmt.Errorf("keep the load on core %d: %w", b.loadCore, err)
		}
		debug.SetGCPercent(800) // of the load, which keeps little
	}
	if f.has("verify") || f.has("strict") {
		names := []string{"verify", "strict"}
		if f.mode != "all" {
			names = []string{f.mode}
		}
		if err := b.side(ctx, "floor", names...); err != nil {
			return err
		}
	}
	if f.has("gateway") {
		if err := b.side(ctx, "proxy", "gateway"); err != nil {
			return err
		}
	}
	return a.printBench(&b.report)
}

// benchRun is one run of the benchmark.
type benchRun struct {
	*app
	benchFlags
	dir                  string
	serverCore, loadCore int
	report               benchReport
	rivals               []*rivalProcess
	started              int // rivals, so that each has a directory of its own
	upstream             net.Listener
}

func (b *benchRun) stop() {
	for _, r := range b.rivals {
		r.stop()
	}
	b.rivals = nil
	if b.upstream != nil {
		b.upstream.Close()
	}
}

// goals are what docs/performance.md sets out for.
var goals = map[string]struct {
	ofFloor, p99 float64
	words        string
}{
	"verify":  {0.85, 0, "≥ 85 %"},
	"strict":  {0.65, 5, "≥ 65 %, p99 ≤ 5 ms"},
	"gateway": {0.80, 0, "≥ 80 %"},
}

var benchNames = map[string]string{
	"floor":   "floor: net/http, JSON, SHA-256, three windows",
	"verify":  "POST /v1/verify",
	"strict":  "POST /v1/verify, strict",
	"proxy":   "floor: httputil.ReverseProxy",
	"gateway": "gateway",
}

// side measures contenders and their floor, alternating.
func (b *benchRun) side(ctx context.Context, floor string, names ...string) error {
	all := append([]string{floor}, names...)
	rivals := make([]*rivalProcess, len(all))
	loads := make([]*bench.Load, len(all))
	if floor == "proxy" {
		var err error
		if b.upstream, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		go bench.Upstream(b.upstream)
	}
	for i, name := range all {
		c := contender{Name: name, Keys: b.keys}
		if b.upstream != nil {
			c.Upstream = b.upstream.Addr().String()
		}
		var err error
		if rivals[i], err = b.start(ctx, c, b.serverCore); err != nil {
			return err
		}
		loads[i] = b.load(rivals[i])
	}
	progress := b.progress(strings.Join(all, ", "))
	steps := int64(len(all) * (b.rounds + 1))
	rounds := make([][]*bench.Result, len(all))
	spent := make([]time.Duration, len(all))
	answered := make([]int64, len(all))
	run := func(i int, during time.Duration) (*bench.Result, error) {
		before, err := rivals[i].ask("cpu", time.Minute)
		if err != nil {
			return nil, err
		}
		r, err := loads[i].Run(ctx, during, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", all[i], err)
		}
		if r.Wrong > 0 {
			return nil, fmt.Errorf("%s: %d of %d answers are not as expected, such as %s", all[i], r.Wrong, r.Wrong+r.Answered, clean(r.Example))
		}
		after, err := rivals[i].ask("cpu", time.Minute)
		if err != nil {
			return nil, err
		}
		answered[i] += r.Answered
		if ctx.Err() == nil {
			spent[i] += after.CPU - before.CPU
		}
		return r, ctx.Err()
	}
	done := int64(0)
	step := func() { done++; progress.set(done, steps) }
	for i := range all {
		if _, err := run(i, min(b.round(), 2*time.Second)); err != nil { // to warm up
			progress.end(false)
			return err
		}
		spent[i] = 0
		if _, err := rivals[i].ask("profile", time.Minute); err != nil {
			return err
		}
		step()
	}
	for range b.rounds {
		for i := range all {
			r, err := run(i, b.round())
			if err != nil {
				progress.end(false)
				return err
			}
			rounds[i] = append(rounds[i], r)
			step()
		}
	}
	progress.end(true)
	rows := make([]benchRow, len(all))
	for i, name := range all {
		t, err := rivals[i].ask("check", 10*time.Minute)
		if err != nil {
			return err
		}
		row := &rows[i]
		row.Name, row.Answered = benchNames[name], answered[i]
		var perSecond, p50, p99 []float64
		var measured int64
		for _, r := range rounds[i] {
			perSecond = append(perSecond, r.PerSecond())
			p50 = append(p50, milliseconds(r.Latencies.Quantile(0.5)))
			p99 = append(p99, milliseconds(r.Latencies.Quantile(0.99)))
			measured += r.Answered
		}
		row.PerSecond, row.P50, row.P99 = bench.Median(perSecond), bench.Median(p50), bench.Median(p99)
		row.Processor = float64(spent[i].Microseconds()) / float64(measured)
		if i == 0 {
			continue
		}
		row.Recorded = t.Recorded
		row.Floor, row.OfFloor = rows[0].Name, row.PerSecond/rows[0].PerSecond
		g := goals[name]
		row.Goal, row.Reached = g.words, row.OfFloor >= g.ofFloor && (g.p99 == 0 || row.P99 <= g.p99)
		if t.Recorded != answered[i] || t.Gaps != 0 {
			return fmt.Errorf("%s: %d requests were answered, but %d uses are recorded and %d declared as lost", all[i], answered[i], t.Recorded, t.Gaps)
		}
	}
	b.report.Rows = append(b.report.Rows, rows...)
	b.stop()
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// load is what a contender is asked, as it takes it.
func (b *benchRun) load(r *rivalProcess) *bench.Load {
	requests := [][]byte{bench.Request("GET", r.Address, "/v1/parcels/17", nil)}
	begin := ""
	if len(r.Secrets) > 0 {
		requests = make([][]byte, len(r.Secrets))
		for i, secret := range r.Secrets {
			requests[i] = r.request(secret)
		}
	}
	if r.Name == "floor" || r.Name == "verify" || r.Name == "strict" {
		begin = `{"valid":true`
	}
	return &bench.Load{Address: r.Address, Connections: b.connections, Requests: requests, Begin: begin}
}

func (r *rivalProcess) request(secret string) []byte {
	if r.Name == "gateway" {
		return bench.Request("GET", r.Address, "/bench/v1/parcels/17", nil, "Authorization", "Bearer "+secret)
	}
	body := fmt.Sprintf(`{"keyspace":"bench","key":%q,"method":"GET","path":"/v1/parcels/17","ip":"203.0.113.7"}`, secret)
	return bench.Request("POST", r.Address, "/v1/verify", []byte(body), "Authorization", "Bearer "+cmp.Or(r.Root, "none"))
}

// rivalProcess is a contender as the one who started it sees it.
type rivalProcess struct {
	Name string
	contenderReady
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan []byte
}

// start starts a contender and waits until it serves.
func (b *benchRun) start(ctx context.Context, c contender, core int) (*rivalProcess, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b.started++
	c.Dir, c.Without = filepath.Join(b.dir, c.Name+strconv.Itoa(b.started)), b.without
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if b.profile != "" && c.Profile == "" {
		c.Profile = filepath.Join(b.profile, c.Name+".pprof")
	}
	r := &rivalProcess{Name: c.Name, cmd: exec.Command(program, "bench", "contender"), answers: make(chan []byte)}
	r.cmd.Stderr = b.stderr
	// Ctrl-C is for the one process that has started the others.
	r.cmd.SysProcAttr = apart()
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := bench.Start(r.cmd, core); err != nil {
		return nil, err
	}
	b.rivals = append(b.rivals, r)
	go func() {
		defer close(r.answers)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			r.answers <- line
		}
	}()
	told, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if err := r.say(string(told), 5*time.Minute, &r.contenderReady); err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, fmt.Errorf("%s: %s", c.Name, r.Error)
	}
	return r, ctx.Err()
}

func (r *rivalProcess) say(line string, within time.Duration, answer any) error {
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		return fmt.Errorf("%s has ended: %w", r.Name, err)
	}
	select {
	case line, ok := <-r.answers:
		if !ok {
			return fmt.Errorf("%s has ended", r.Name)
		}
		return json.Unmarshal(line, answer)
	case <-time.After(within):
		return fmt.Errorf("%s does not answer within %s", r.Name, within)
	}
}

// ask sends a question and reads the answer.
func (r *rivalProcess) ask(question string, within time.Duration) (t tally, err error) {
	if err := r.say(question, within, &t); err != nil {
		return t, err
	}
	if t.Error != "" {
		return t, fmt.Errorf("%s: %s", r.Name, t.Error)
	}
	return t, nil
}

// stop ends the process and waits for it.
func (r *rivalProcess) stop() {
	r.in.Close()
	kill := time.AfterFunc(drainWithin, func() { _ = r.cmd.Process.Kill() })
	defer kill.Stop()
	for range r.answers { // until it has closed them
	}
	_ = r.cmd.Wait()
}

func versions() map[string]string {
	v := map[string]string{"keyledger": build().Version, "go": runtime.Version()}
	if build().Revision != "" {
		v["keyledger"] = build().Revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "github.com/nats-io/nats-server/v2" {
				v["nats-server"] = d.Version
			}
		}
	}
	return v
}

// processorName is what Linux calls the processor, else its architecture.
func processorName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				return strings.TrimSpace(strings.TrimLeft(name, " \t:"))
			}
		}
	}
	return runtime.GOARCH
}

// inProcess measures the library with few keys and with many.
func (b *benchRun) inProcess(ctx context.Context) error {
	for _, keys := range []int{1000, b.many} {
		r, err := b.start(ctx, contender{Name: "inprocess", Keys: keys, During: min(b.round(), 2*time.Second)}, -1)
		if err != nil {
			return err
		}
		progress := b.progress(fmt.Sprintf("in process, %d keys", keys))
		if _, err := r.ask("profile", time.Minute); err != nil {
			return err
		}
		var order []string
		figures := map[string][]inProcess{}
		for n := range b.rounds {
			t, err := r.ask("run", 10*time.Minute)
			if err != nil {
				progress.end(false)
				return err
			}
			for _, m := range t.InProcess {
				name := fmt.Sprintf("%s, %d keys, %d goroutines", m.What, keys, m.Goroutines)
				if n == 0 {
					order = append(order, name)
				}
				figures[name] = append(figures[name], m)
			}
			progress.set(int64(n+1), int64(b.rounds))
		}
		progress.end(true)
		if t, err := r.ask("check", 10*time.Minute); err != nil {
			return err
		} else if t.Gaps != 0 {
			return fmt.Errorf("in process: %d uses were declared as lost", t.Gaps)
		}
		for _, name := range order {
			b.report.Rows = append(b.report.Rows, libraryRow(name, figures[name]))
		}
		b.stop()
	}
	return nil
}

func libraryRow(name string, rounds []inProcess) benchRow {
	row := benchRow{Name: name}
	var ns, perSecond, allocs []float64
	for _, m := range rounds {
		ns, perSecond, allocs = append(ns, m.Nanos), append(perSecond, m.PerSecond), append(allocs, m.Allocs)
	}
	row.Nanos, row.PerSecond, row.Allocs = bench.Median(ns), bench.Median(perSecond), bench.Median(allocs)
	return row
}

// printBench prints a table, or JSON.
func (a *app) printBench(r *benchReport) error {
	if a.asJSON {
		return a.printValue(r)
	}
	m := &r.Machine
	a.note("%s, %d cores, %s; keyledger %s, %s, nats-server %s", m.Processor, m.Cores, m.System, r.Versions["keyledger"], r.Versions["go"], r.Versions["nats-server"])
	if m.Note != "" {
		a.note("%s", m.Note)
	}
	a.note("median of %d rounds of %g s, %d connections, %d keys; every use answered was found recorded", r.Rounds, r.Seconds, r.Connections, r.Keys)
	if len(r.Without) > 0 {
		a.note("without: %s", strings.Join(r.Without, ", "))
	}
	figure := func(n float64, digits int) string {
		if n == 0 {
			return "-"
		}
		return strconv.FormatFloat(n, 'f', digits, 64)
	}
	rows := make([][]string, len(r.Rows))
	for i, row := range r.Rows {
		goal := orDash(row.Goal)
		if row.Goal != "" && !row.Reached {
			goal += " ✗"
		}
		ofFloor := "-"
		if row.OfFloor > 0 {
			ofFloor = figure(100*row.OfFloor, 0) + " %"
		}
		count := "-"
		if row.Recorded > 0 {
			count = strconv.FormatInt(row.Recorded, 10)
		}
		rows[i] = []string{
			row.Name, figure(row.PerSecond, 0), ofFloor, goal, figure(row.P50, 2), figure(row.P99, 2),
			figure(row.Processor, 1), figure(row.Nanos, 0), figure(row.Allocs, 1), count,
		}
	}
	return a.rows([]string{"what", "/s", "of floor", "goal", "p50 ms", "p99 ms", "server µs", "ns", "allocs", "recorded"}, rows)
}
