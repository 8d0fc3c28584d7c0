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

// What docs/subscribe.md says to run sees a revocation, and none of another owner's: the
// shell's lines, and the examples, whose source the page shows.
func TestSubscribe(t *testing.T) {
	page, err := os.ReadFile("../../docs/subscribe.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, pattern := range []string{"../../examples/revocations/*", "../../examples/feed/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources = append(sources, string(source))
		}
	}
	shown := regexp.MustCompile("(?s)```(go|js|python)\n(.*?)```").FindAllSubmatch(page, -1)
	if len(shown) < 6 {
		t.Errorf("the page shows %d parts of the examples", len(shown))
	}
	for _, block := range shown {
		if !slices.ContainsFunc(sources, func(source string) bool { return strings.Contains(source, string(block[2])) }) {
			t.Errorf("the page shows what no example has:\n%s", block[2])
		}
	}
	built := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", built, "../../examples/revocations", "../../examples/feed").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	example, consumer := filepath.Join(built, "revocations"), filepath.Join(built, "feed")
	// Node looks for its packages beside the program.
	if err := os.Symlink(testenv.NodeModules(t, "@nats-io/transport-node@3.4.0", "@nats-io/jetstream@3.4.0"), filepath.Join(built, "node_modules")); err != nil {
		t.Fatal(err)
	}
	script := func(name string) string {
		source, err := os.ReadFile("../../examples/feed/" + name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(built, name)
		if err := os.WriteFile(path, source, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// Its client comes from where only Python's packages are, so it is only read.
	if out, err := exec.CommandContext(t.Context(), "python3", "-m", "py_compile", script("consumer.py")).CombinedOutput(); err != nil {
		t.Errorf("consumer.py: %v\n%s", err, out)
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
	if len(blocks) != 4 {
		t.Fatalf("the page has %d blocks for the shell, of which 4 are known here", len(blocks))
	}
	theirs := func() (key string) {
		t.Helper()
		made := sh("rm -f other.key; keyledger owners set other --keyspace parcelbird --name Other --plan large; keyledger keys create --keyspace parcelbird --owner other --name CI --secret-file other.key --json")
		key = regexp.MustCompile(`key_[0-9a-f-]{36}`).FindString(made[strings.Index(made, "{"):])
		sh("keyledger keys revoke " + key + " --reason 'of another'")
		return key
	}
	other := theirs()
	added := sh("keyledger subscribers add billing --keyspace parcelbird --owner acme --seed-file billing.nk; keyledger subscribers add node --keyspace parcelbird --owner acme --seed-file node.nk")
	if !strings.Contains(added, "nats url\t"+c.NATSURL) {
		t.Errorf("subscribers add printed %s", added)
	}
	subscriber := func(name string) []string {
		return slices.Concat(tr.env, []string{"NATS_URL=" + c.NATSURL, "SEED_FILE=" + filepath.Join(tr.dir, name+".nk"), "CONSUMER=subscriber-" + name, "LIVE=live.key.revoked.parcelbird.acme.*"})
	}
	var following []*testenv.Process
	for _, f := range []struct {
		env    []string
		run    []string
		begins string
	}{
		{env, []string{"sh", "-c", "exec " + string(blocks[1][1])}, "event: reached"},
		{env, []string{"sh", "-c", "exec " + string(blocks[3][1])}, "event: reached"},
		{env, []string{example}, "what was known is told"},
		{env, []string{"node", script("events.mjs")}, "what there was is told"},
		{env, []string{"python3", script("events.py")}, "what there was is told"},
		{subscriber("billing"), []string{consumer}, "following"},
		{subscriber("node"), []string{"node", script("consumer.mjs")}, "following"},
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
	for _, p := range following[:7] {
		p.WaitOutput(before, 20*time.Second)
	}
	others := []string{other, theirs()}
	after := revoke()
	following[6].WaitOutput("live key.revoked "+after, 20*time.Second)
	for i, p := range following {
		p.WaitOutput(after, 20*time.Second)
		p.Kill()
		for _, key := range others {
			if i < 7 && strings.Contains(p.Output(), key) {
				t.Errorf("%d is told of a key of another owner: %s", i, p.Output())
			}
		}
	}
	tr.env = env
	for _, block := range [][]byte{blocks[0][1], blocks[2][1]} {
		if page := sh(string(block)); !strings.Contains(page, before) || !strings.Contains(page, after) || strings.Contains(page, other) {
			t.Errorf("%s lacks %s or %s, or has %s: %s", block, before, after, other, page)
		}
	}
}
