package bundle_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// driver runs the second verifier over a directory in one process: an interpreter's
// start costs more than most of these bundles.
const driver = `
import json, os, sys
sys.path.insert(0, sys.argv[1])
import verify_bundle
keys = [verify_bundle.verifier_key(k) for k in sys.argv[3:]]
print(json.dumps({f: verify_bundle.check(os.path.join(sys.argv[2], f), keys)[0] or "" for f in os.listdir(sys.argv[2])}))
`

// python fails the test where tools/verify_bundle.py judges a bundle otherwise than
// it should: pass says which must pass.
func python(t testing.TB, l *log, bundles map[string][]byte, pass func(name, reason string) bool) {
	t.Helper()
	dir := t.TempDir()
	for name, b := range bundles {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tools, err := filepath.Abs("../../tools")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-B", "-c", driver, tools, dir, l.key)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tools/verify_bundle.py: %v", err)
	}
	var reasons map[string]string
	if err := json.Unmarshal(out, &reasons); err != nil {
		t.Fatal(err)
	}
	for name := range bundles {
		reason, judged := reasons[name]
		if !judged || (reason == "") != pass(name, reason) {
			t.Errorf("tools/verify_bundle.py says of %s: %q", name, reason)
		}
	}
}
