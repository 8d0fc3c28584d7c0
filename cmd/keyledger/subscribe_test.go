package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

// What docs/subscribe.md says to run sees a revocation: the shell's lines, and the
// example, whose source the page shows, by Server-Sent Events and by NATS.
func TestSubscribe(t *testing.T) {
	page, err := os.ReadFile("../../docs/subscribe.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../../examples/revocations/main.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(page, -1)
	if len(shown) == 0 {
		t.Error("the page shows no Go")
	}
	for _, block := range shown {
		if !strings.Contains(string(source), string(block[1])) {
			t.Errorf("the page shows what examples/revocations/main.go has not:\n%s", block[1])
		}
	}
	example := filepath.Join(t.TempDir(), "revocations")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", example, "../../examples/revocations").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tr := newTour(t)
	c, err := ReadContext(filepath.Join(tr.dir, "context.json"))
	if err != nil {
		t.Fatal(err)
	}
	sh := func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir, cmd.Env = tr.dir, tr.env
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	revoke := func() (key string) {
		t.Helper()
		made := sh("rm -f ci.key; keyledger keys create --keyspace parcelbird --owner acme --name CI --secret-file ci.key --json")
		key = regexp.MustCompile(`key_[0-9a-f-]{36}`).FindString(made)
		sh("keyledger keys revoke " + key + " --reason 'laptop stolen'")
		return key
	}
	before := revoke()
	sh("keyledger root-key create --name subscriber --role manager --keyspace parcelbird --owner acme --secret-file subscriber.key")
	token := sh("cat subscriber.key")
	env := slices.Concat(tr.env, []string{"KEYLEDGER_URL=" + c.URL, "KEYLEDGER_TOKEN=" + token})

	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(page, -1)
	if len(blocks) != 2 {
		t.Fatalf("the page has %d blocks for the shell, of which 2 are known here", len(blocks))
	}
	var following []*testenv.Process
	for _, f := range []struct {
		env    []string
		run    []string
		begins string
	}{
		{env, []string{"sh", "-c", "exec " + string(blocks[1][1])}, "event: reached"},
		{env, []string{example}, "what was known is told"},
		{slices.Concat(tr.env, []string{"NATS_URL=" + c.NATSURL}), []string{example}, "subscribed"},
	} {
		path, err := exec.LookPath(f.run[0])
		if err != nil {
			t.Fatal(err)
		}
		p := testenv.Start(t, f.env, path, f.run[1:]...)
		p.WaitOutput(f.begins, 20*time.Second)
		following = append(following, p)
	}
	for _, p := range following[:2] {
		p.WaitOutput(before, 20*time.Second)
	}
	after := revoke()
	for _, p := range following {
		p.WaitOutput(after, 20*time.Second)
		p.Kill()
	}
	tr.env = env
	if page := sh(string(blocks[0][1])); !strings.Contains(page, before) || !strings.Contains(page, after) {
		t.Errorf("the page of revocations lacks %s or %s: %s", before, after, page)
	}
}
