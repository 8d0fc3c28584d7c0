package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Chromium answers where the machine's Chromium is.
func Chromium(t testing.TB) (path string) {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("Chromium is not on this machine: install it (apt-get install chromium)")
	return ""
}

// axeVersion is the release of axe-core that pages are checked with.
const axeVersion = "4.14.1"

// Axe answers with axe-core, which finds in a page what people with a disability
// would stumble over: a script that defines axe.run. npm fetches it once into the
// user's cache.
func Axe(t testing.TB) (script string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(NodeModules(t, "axe-core@"+axeVersion), "axe-core/axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
