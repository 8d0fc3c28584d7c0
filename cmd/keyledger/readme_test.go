package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/internal/testenv"
)

// The README's tour is run line by line against a server of its own. Its
// output is what is printed, with … for what differs from run to run.
func TestReadme(t *testing.T) {
	newTour(t).follow("../../README.md")
}

// tour is a shell beside a server of its own, as somebody who reads a page has it.
type tour struct {
	t   *testing.T
	dir string
	env []string
}

func newTour(t *testing.T) *tour {
	t.Helper()
	tr := &tour{t: t, dir: t.TempDir()}
	contextFile := filepath.Join(tr.dir, "context.json")
	exe, err := exec.LookPath("keyledger")
	if err != nil {
		t.Fatal(err)
	}
	home := []string{"KEYLEDGER_CONTEXT=" + contextFile, "HOME=" + tr.dir, "XDG_STATE_HOME="}
	server := testenv.Start(t, home, exe, "dev", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0")
	server.WaitOutput("Ctrl-C stops it.", time.Minute)
	t.Cleanup(func() {
		if err := server.Interrupt(20 * time.Second); err != nil {
			t.Error(err)
		}
	})
	c, err := ReadContext(contextFile)
	if err != nil {
		t.Fatal(err)
	}
	tools, err := filepath.Abs("../../tools")
	if err == nil {
		err = os.Symlink(tools, filepath.Join(tr.dir, "tools"))
	}
	if err != nil {
		t.Fatal(err)
	}
	tr.env = append(append(os.Environ(), home...), "GATEWAY="+c.GatewayURL, "PYTHONDONTWRITEBYTECODE=1")
	return tr
}

// follow runs all commands of a page's tour in one shell, and then more, and compares
// what the tour prints with the page. What follows answers for more is the second result.
func (tr *tour) follow(page string, more ...string) (rest string) {
	t := tr.t
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var script, want strings.Builder
	for _, block := range regexp.MustCompile("(?s)<!-- tour -->\n```console\n(.*?)```").FindAllSubmatch(text, -1) {
		want.Write(block[1])
		for line := range strings.Lines(string(block[1])) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				// Each command is echoed as the page shows it.
				// An answer may lack its last newline; the next command does not.
				fmt.Fprintf(&script, "cat <<'TOUR'\n%sTOUR\n{ %s; } > out; cat out; [ -z \"$(tail -c 1 out)\" ] || echo\n", line, strings.TrimSuffix(command, "\n"))
			}
		}
	}
	if want.Len() == 0 {
		t.Fatalf("%s has no tour", page)
	}
	const end = "The tour is over.\n"
	fmt.Fprintf(&script, "printf '%s'\n", end)
	for _, line := range more {
		script.WriteString(line + "\n")
	}
	sh := exec.CommandContext(t.Context(), "sh", "-e")
	sh.Stdin = strings.NewReader(script.String())
	sh.Dir = tr.dir
	sh.Env = tr.env
	var said bytes.Buffer
	sh.Stderr = &said
	out, err := sh.Output()
	if err != nil {
		t.Fatalf("the tour ends with %v: %s\n%s", err, said.String(), out)
	}
	got, rest, _ := strings.Cut(string(out), end)
	if d := cmp.Diff(plain(want.String()), plain(got)); d != "" {
		t.Errorf("%s shows something else than is printed (-page +now):\n%s", page, d)
	}
	return rest
}

// plain replaces what differs from run to run, and what the README leaves out.
func plain(s string) string {
	for _, r := range [][2]string{
		{`\d{4}-\d\d-\d\dT[\d:.]+Z`, "…"},
		{`(key|req|dec|evt)_[0-9a-f-]{36}`, "${1}_…"},
		{`127\.0\.0\.1:\d+`, "127.0.0.1:…"},
		{`(LEDGER|USAGE|FEED|OPS)( sequence)? [\d/]+(, \d+)*`, "$1$2 …"},
		{`(USAGE|OPS)\t\d+\t`, "$1\t…\t"},
		// Refusals are recorded by the second, revocations measured a while after: what is
		// listed then may show them or not yet.
		{`(USAGE|OPS)\t\d+ of`, "$1\t… of"},
		{`…\tkey\.denied\t.*\n`, ""},
		{`dec_[0-9a-v]{52}`, "dec_…"},
		{`keyledger-[0-9a-f]{16}(\+[0-9a-f]{8})?`, "keyledger-…"},
		{`(pb_live_)\w{4}\.\.\.\w{4}`, "$1…"},
		{`[0-9a-f]{64}|[A-Za-z0-9+/]{43}=`, "…"},
		{`node\t.*`, "node\t…"},
		{`dev-\S+\tstopped\t[0-9.]+ ms`, "dev-…\tstopped\t… ms"},
		{`of (the stream's )?\d+ events`, "of ${1}… events"},
	} {
		s = regexp.MustCompile(r[0]).ReplaceAllString(s, r[1])
	}
	return s
}

// curlMain is as much of curl as the pages use, for machines without it.
func curlMain() {
	fs := flag.NewFlagSet("curl", flag.ExitOnError)
	var headers []string
	fs.Func("H", "", func(h string) error { headers = append(headers, h); return nil })
	unbuffered := fs.Bool("N", false, "")
	output := fs.String("o", "", "")
	format := fs.String("w", "", "")
	_ = fs.Parse(os.Args[1:])
	req, err := http.NewRequest(http.MethodGet, fs.Arg(0), nil)
	if err == nil {
		req.Header.Set("User-Agent", "curl/8.0")
		req.Header.Set("Accept", "*/*")
		for _, header := range headers {
			name, value, _ := strings.Cut(header, ": ")
			req.Header.Set(name, value)
		}
		var resp *http.Response
		if resp, err = (&http.Client{Transport: &http.Transport{DisableCompression: true}}).Do(req); err == nil {
			defer resp.Body.Close()
			w := bufio.NewWriter(os.Stdout)
			defer w.Flush()
			var to io.Writer = w
			if *unbuffered {
				to = os.Stdout
			}
			if *output != "" {
				to = io.Discard
			}
			_, err = io.Copy(to, resp.Body)
			fmt.Fprint(w, strings.NewReplacer("%{http_code}", fmt.Sprint(resp.StatusCode), `\n`, "\n").Replace(*format))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
