package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

// The receivers that docs/webhooks.md shows take what they are sent, with the secret that
// was told once, and refuse what somebody else signed.
func TestWebhookReceivers(t *testing.T) {
	page, err := os.ReadFile("../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, name := range []string{"main.go", "receiver.mjs", "receiver.py"} {
		source, err := os.ReadFile("../../examples/webhooks/" + name)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, string(source))
	}
	shown := regexp.MustCompile("(?s)```(go|js|python)\n(.*?)```").FindAllSubmatch(page, -1)
	if len(shown) != 3 {
		t.Errorf("the page shows %d receivers", len(shown))
	}
	for _, block := range shown {
		if !slices.ContainsFunc(sources, func(source string) bool { return strings.Contains(source, string(block[2])) }) {
			t.Errorf("the page shows what no example has:\n%s", block[2])
		}
	}
	built := t.TempDir()
	receiver := filepath.Join(built, "receiver")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", receiver, "../../examples/webhooks").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Node looks for its packages beside the program.
	if err := os.Symlink(testenv.NodeModules(t, "standardwebhooks@1.1.1"), filepath.Join(built, "node_modules")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"receiver.mjs", "receiver.py"} {
		source, err := os.ReadFile("../../examples/webhooks/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(built, name), source, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr := newTour(t)
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
	sh("keyledger owners set acme --keyspace parcelbird --name Acme --plan large")
	for _, run := range [][]string{{receiver, "127.0.0.1:PORT"}, {"node", filepath.Join(built, "receiver.mjs"), "PORT"}, {"python3", filepath.Join(built, "receiver.py"), "PORT"}} {
		path, err := exec.LookPath(run[0])
		if err != nil {
			t.Fatal(err)
		}
		l, err := listen("a receiver", "listen", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		for i := range run {
			run[i] = strings.ReplaceAll(run[i], "PORT", strings.TrimPrefix(address, "127.0.0.1:"))
		}
		added := sh("rm -f hook.secret; keyledger webhooks add http://" + address + "/ --keyspace parcelbird --owner acme --type key.revoked --secret-file hook.secret --json")
		id := regexp.MustCompile(`whk_[0-9a-f-]{36}`).FindString(added)
		if strings.Contains(added, "whsec_") {
			t.Errorf("the secret is printed beside its file: %s", added)
		}
		p := testenv.Start(t, slices.Concat(tr.env, []string{"WEBHOOK_SECRET=" + sh("cat hook.secret")}), path, run[1:]...)
		p.WaitOutput("listening", 20*time.Second)
		sh("keyledger webhooks test " + id)
		made := sh("rm -f ci.key; keyledger keys create --keyspace parcelbird --owner acme --name CI --secret-file ci.key --json")
		key := regexp.MustCompile(`key_[0-9a-f-]{36}`).FindString(made)
		sh("keyledger keys revoke " + key + " --reason 'laptop stolen'")
		p.WaitOutput("key.revoked "+key, 20*time.Second)
		forged, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address, strings.NewReader(`{"id":"evt_x","type":"key.revoked","key":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"webhook-id": "evt_x", "webhook-timestamp": strconv.FormatInt(time.Now().Unix(), 10), "webhook-signature": "v1,AAAA"} {
			forged.Header.Set(name, value)
		}
		answer, err := http.DefaultClient.Do(forged)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s answers %d to what nobody signed", run[0], answer.StatusCode)
		}
		sh("keyledger webhooks remove " + id)
	}
}
