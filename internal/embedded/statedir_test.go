package embedded

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStateDir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "not there", "state")
	d, err := OpenStateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("mode of the directory: %v, %v, want 0711", info.Mode(), err)
	}
	for _, name := range []string{"version", "lock"} {
		if info, err := os.Stat(d.File(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s: %v, %v, want 0600", name, info, err)
		}
	}
	if d.NATS() == d.Postgres() || filepath.Dir(d.NATS()) != d.Path() || filepath.Dir(d.Postgres()) != d.Path() {
		t.Errorf("NATS() = %q, Postgres() = %q, want two directories in %q", d.NATS(), d.Postgres(), d.Path())
	}
	var locked *LockedError
	if _, err := OpenStateDir(path); !errors.As(err, &locked) || !strings.Contains(err.Error(), path) {
		t.Errorf("opened twice: %v, want *LockedError", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenStateDir(path); err != nil {
		t.Fatalf("open again after Close: %v", err)
	}
	d.Close()
}

func TestStateDirRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		free  uint64
		want  []string
	}{
		{"newer", map[string]string{"version": "2\n"}, minFree, []string{"newer keyledger", "state version 2", "--state-dir"}},
		{"damaged version", map[string]string{"version": "\x00\x00"}, minFree, []string{"does not hold a version"}},
		{"somebody's home", map[string]string{".bashrc": ""}, minFree, []string{".bashrc", "not a state directory", "--state-dir"}},
		{"disk full", nil, 7 << 20, []string{"7 MB are free", "200 MB", "--state-dir"}},
		// An interrupted first start is continued.
		{"unfinished", map[string]string{"lock": "", "version.new": ""}, minFree, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, content := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			free := func(string) (uint64, error) { return c.free, nil }
			d, err := openStateDir(dir, free)
			if len(c.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				d.Close()
				return
			}
			if err == nil {
				d.Close()
				t.Fatal("it opened")
			}
			for _, w := range append(c.want, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			for name, content := range c.files {
				if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != content {
					t.Errorf("%s was changed: %q, %v", name, b, err)
				}
			}
			// What can be put right outside can be put right without a restart of anything else.
			os.Remove(filepath.Join(dir, "version"))
			os.Remove(filepath.Join(dir, ".bashrc"))
			d, err = openStateDir(dir, freeBytes)
			if err != nil {
				t.Fatalf("the refusal left something behind: %v", err)
			}
			d.Close()
		})
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if _, err := OpenStateDir(path); err == nil || !strings.Contains(err.Error(), "--state-dir") {
			t.Errorf("OpenStateDir of a file: %v", err)
		}
	}
}
