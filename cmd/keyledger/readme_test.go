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
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	contextFile := filepath.Join(dir, "context.json")
	exe, err := exec.LookPath("keyledger")
	if err != nil {
		t.Fatal(err)
	}
	server := testenv.Start(t, []string{"KEYLEDGER_CONTEXT=" + contextFile, "HOME=" + dir}, exe, "dev",
		"--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0")
	server.WaitOutput("Ctrl-C stops it.", time.Minute)
	c, err := ReadContext(contextFile)
	if err != nil {
		t.Fatal(err)
	}
	var script, want strings.Builder
	for _, block := range regexp.MustCompile("(?s)<!-- tour -->\n```console\n(.*?)```").FindAllSubmatch(readme, -1) {
		want.Write(block[1])
		for line := range strings.Lines(string(block[1])) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				// Each command is echoed as the README shows it.
				// An answer may lack its last newline; the next command does not.
				fmt.Fprintf(&script, "cat <<'TOUR'\n%sTOUR\n{ %s; } > out; cat out; [ -z \"$(tail -c 1 out)\" ] || echo\n", line, strings.TrimSuffix(command, "\n"))
			}
		}
	}
	if want.Len() == 0 {
		t.Fatal("the README has no tour")
	}
	sh := exec.CommandContext(t.Context(), "sh", "-e")
	sh.Stdin = strings.NewReader(script.String())
	sh.Dir = dir
	sh.Env = append(os.Environ(), "KEYLEDGER_CONTEXT="+contextFile, "GATEWAY="+c.GatewayURL, "HOME="+dir)
	var said bytes.Buffer
	sh.Stderr = &said
	out, err := sh.Output()
	if err != nil {
		t.Fatalf("the tour ends with %v: %s\n%s", err, said.String(), out)
	}
	if d := cmp.Diff(plain(want.String()), plain(string(out))); d != "" {
		t.Errorf("the README shows something else than is printed (-README +now):\n%s", d)
	}
	if err := server.Interrupt(20 * time.Second); err != nil {
		t.Error(err)
	}
}

// plain replaces what differs from run to run, and what the README leaves out.
func plain(s string) string {
	for _, r := range [][2]string{
		{`\d{4}-\d\d-\d\dT[\d:.]+Z`, "…"},
		{`(key|req|dec|evt)_[0-9a-f-]{36}`, "${1}_…"},
		{`127\.0\.0\.1:\d+`, "127.0.0.1:…"},
		{`(LEDGER|USAGE|FEED) [\d/]+`, "$1 …"},
		{`[0-9a-f]{64}`, "…"},
	} {
		s = regexp.MustCompile(r[0]).ReplaceAllString(s, r[1])
	}
	return s
}

// curlMain is as much of curl as the README uses, for machines without it.
func curlMain() {
	fs := flag.NewFlagSet("curl", flag.ExitOnError)
	header := fs.String("H", "", "")
	output := fs.String("o", "", "")
	format := fs.String("w", "", "")
	_ = fs.Parse(os.Args[1:])
	req, err := http.NewRequest(http.MethodGet, fs.Arg(0), nil)
	if err == nil {
		req.Header.Set("User-Agent", "curl/8.0")
		req.Header.Set("Accept", "*/*")
		if name, value, ok := strings.Cut(*header, ": "); ok {
			req.Header.Set(name, value)
		}
		var resp *http.Response
		if resp, err = (&http.Client{Transport: &http.Transport{DisableCompression: true}}).Do(req); err == nil {
			defer resp.Body.Close()
			w := bufio.NewWriter(os.Stdout)
			defer w.Flush()
			var to io.Writer = w
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
