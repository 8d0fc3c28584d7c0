package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// binaries are a PostgreSQL that can make and serve a data directory.
type binaries struct {
	dir            string // holds postgres and initdb
	version, major string // e.g. "15.13" and "15"
}

// oldestMajor is the oldest version keyledger's SQL is written for.
const oldestMajor = 14

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[^\s]*)`)

// readBinaries checks that dir holds programs that run here.
func readBinaries(dir string) (binaries, error) {
	postgres, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return binaries{}, err
	}
	// A link in a directory of programs: initdb wants its neighbours and finds
	// its share directory from where it really is.
	dir = filepath.Dir(postgres)
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return binaries{}, err
	}
	out, err := exec.Command(postgres, "--version").Output()
	if err != nil {
		return binaries{}, fmt.Errorf("%s --version: %w", postgres, err)
	}
	m := versionPattern.FindStringSubmatch(string(out))
	if m == nil {
		return binaries{}, fmt.Errorf("%s --version answers %q", postgres, strings.TrimSpace(string(out)))
	}
	if n, _ := strconv.Atoi(m[2]); n < oldestMajor {
		return binaries{}, fmt.Errorf("%s is PostgreSQL %s, at least %d is needed", postgres, m[1], oldestMajor)
	}
	return binaries{dir: dir, version: m[1], major: m[2]}, nil
}

// findOrDownload finds binaries of the given major version ("" is any) that who
// can run. Those named by a person are taken or refused, never passed over.
func findOrDownload(ctx context.Context, cfg PostgresConfig, major string, who *osUser) (binaries, error) {
	named, by := cfg.BinDir, "the configured directory"
	if named == "" {
		named, by = os.Getenv("PG_BIN_DIR"), "PG_BIN_DIR"
	}
	if named != "" {
		b, err := readBinaries(named)
		switch {
		case err != nil:
			return binaries{}, fmt.Errorf("no usable PostgreSQL in %s %q: %w: name the directory that holds postgres and initdb", by, named, err)
		case who.blocked(b.dir) != "":
			return binaries{}, fmt.Errorf("PostgreSQL runs as user %s, who cannot enter %q on the way to %s %q: move the binaries, or run as an ordinary user", who.name, who.blocked(b.dir), by, named)
		case major != "" && b.major != major:
			return binaries{}, &VersionError{Dir: cfg.Dir, Data: major, Binaries: b.major}
		}
		return b, nil
	}

	candidates := cfg.candidates
	if candidates == nil {
		candidates = machineDirs
	}
	var others []string
	for _, dir := range candidates() {
		b, err := readBinaries(dir)
		if err != nil {
			continue
		}
		if closed := who.blocked(b.dir); closed != "" {
			cfg.Log.Debug("passing over PostgreSQL binaries", "dir", b.dir, "user", who.name, "closed", closed)
			continue
		}
		if major == "" || b.major == major {
			return b, nil
		}
		others = append(others, b.major)
	}
	b, err := download(ctx, cfg, major, who)
	if err == nil {
		return b, nil
	}
	if len(others) > 0 || errors.Is(err, errNoSuchVersion) {
		return binaries{}, fmt.Errorf("%w (and it could not be downloaded: %v)", &VersionError{Dir: cfg.Dir, Data: major, Binaries: strings.Join(slices.Compact(others), ", ")}, err)
	}
	return binaries{}, err
}

// machineDirs lists where this machine may keep the binaries, best first.
func machineDirs() []string {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/usr/libexec/postgresql*",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		slices.SortStableFunc(found, func(a, b string) int { return cmp.Compare(numberIn(b), numberIn(a)) })
		dirs = append(dirs, found...)
	}
	return append(dirs, "/opt/homebrew/opt/postgresql/bin", "/usr/local/opt/postgresql/bin", "/usr/local/pgsql/bin")
}

// numberIn is the version in a path such as /usr/lib/postgresql/15/bin.
func numberIn(path string) int {
	n, _ := strconv.Atoi(strings.Trim(lastDigits.FindString(path), "."))
	return n
}

var lastDigits = regexp.MustCompile(`\d+`)
