package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyledger/keyledger/events/seal"
)

// A state directory is one that can be written, of this ledger alone where nobody
// named it, or none.
func TestStateDir(t *testing.T) {
	base := t.TempDir()
	t.Setenv("STATE_DIRECTORY", base+":"+t.TempDir())
	one, err := (&settings{}).openStateDir("serve", seal.Master{1})
	if err != nil || filepath.Dir(one) != base {
		t.Fatalf("%q, %v", one, err)
	}
	again, err := (&settings{}).openStateDir("serve", seal.Master{1})
	if err != nil || again != one {
		t.Errorf("the second start has %q, %v, the first had %q", again, err, one)
	}
	if other, err := (&settings{}).openStateDir("serve", seal.Master{2}); err != nil || other == one {
		t.Errorf("another ledger has the same directory %q, %v", other, err)
	}
	if info, err := os.Stat(one); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if dir, err := (&settings{StateDir: noState}).openStateDir("serve", seal.Master{1}); dir != "" || err != nil {
		t.Errorf("none is %q, %v", dir, err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = (&settings{StateDir: filepath.Join(file, "state")}).openStateDir("serve", seal.Master{1})
	for _, part := range []string{file, "KEYLEDGER_STATE_DIR", "volume", "state_dir: none"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("a directory that cannot be made: %v, want %q in it", err, part)
		}
	}
}
