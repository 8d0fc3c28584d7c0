package testenv_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/internal/testenv"
)

// Both are there, or are got.
func TestProxies(t *testing.T) {
	path, env := testenv.Nginx(t)
	v := exec.Command(path, "-V")
	v.Env = append(os.Environ(), env...)
	if out, err := v.CombinedOutput(); err != nil || !strings.Contains(string(out), "http_auth_request_module") {
		t.Errorf("%s: %v\n%s", path, err, out)
	}
	if out, err := exec.Command(testenv.Caddy(t), "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "v2.") {
		t.Errorf("%v\n%s", err, out)
	}
}
