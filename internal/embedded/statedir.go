package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// StateVersion is the format of a state directory as this program writes it. It
// grows when an older program could not read what a newer one wrote.
const StateVersion = 1

// minFree is the disk space below which nothing is started: PostgreSQL alone
// takes 50 MB, and a full disk stops every append.
const minFree = 200 << 20

// StateDir is the directory that holds everything a keyledger on one machine
// keeps. This process alone has it open until Close.
type StateDir struct {
	path string
	lock *flock.Flock
}

// NewerStateError says that a newer program wrote a state directory.
type NewerStateError struct {
	Dir       string
	Has, Know int
}

func (e *NewerStateError) Error() string {
	return fmt.Sprintf("state directory %q was written by a newer keyledger (state version %d, this program knows %d); nothing was changed: run the newer program, or choose another directory with --state-dir", e.Dir, e.Has, e.Know)
}

// OpenStateDir opens the directory at path, making it where there is none. The
// directory may be passed through by other users (0711: PostgreSQL may run as
// one) and what is in it is private. Errors: *LockedError, *NewerStateError, a directory
// that holds something else, one that another user made, too little disk space.
func OpenStateDir(path string) (*StateDir, error) { return openStateDir(path, freeBytes) }

func openStateDir(path string, free func(dir string) (uint64, error)) (*StateDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o711); err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("state directory %q: %w: a file is in the way, choose another directory with --state-dir", path, err)
		}
		return nil, fmt.Errorf("cannot make the state directory: %w: choose another with --state-dir", err)
	}
	// Before anything is written into it: it may be somebody's home.
	if err := ours(path); err != nil {
		return nil, err
	}
	if err := makeRoot(path); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, fmt.Errorf("state %w", err)
	}
	d := &StateDir{path: path, lock: lock}
	if err := d.checkVersion(); err != nil {
		d.Close()
		return nil, err
	}
	n, err := free(path)
	if err == nil && n < minFree {
		err = fmt.Errorf("%d MB are free on the disk of state directory %q and at least %d MB are needed: make room, or choose a directory on another disk with --state-dir", n>>20, path, minFree>>20)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// ours refuses a directory that holds other things, or that another user made.
func ours(path string) error {
	info, err := os.Stat(filepath.Join(path, "version"))
	if err == nil {
		if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
			return fmt.Errorf("state directory %q was made by user %s, and this is user %s: run as that one, or choose another directory with --state-dir", path, userName(owner), userName(os.Geteuid()))
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		// What an interrupted first start or an empty disk leaves.
		case "lock", "version.new", "lost+found":
		default:
			return fmt.Errorf("directory %q is not a state directory of keyledger and not empty (it holds %q); nothing was changed: choose another with --state-dir", path, e.Name())
		}
	}
	return nil
}

// checkVersion reads the version of the directory and writes it into a new one.
func (d *StateDir) checkVersion() error {
	file := d.File("version")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFileSynced(file, []byte(strconv.Itoa(StateVersion)+"\n"))
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("state directory %q: file version does not hold a version but %.20q; nothing was changed: restore it (this program writes %d)", d.path, b, StateVersion)
	case v > StateVersion:
		return &NewerStateError{Dir: d.path, Has: v, Know: StateVersion}
	}
	return nil
}

// writeFileSynced makes a file that is either absent or whole, mode 0600.
func writeFileSynced(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %q: %w", dir, err)
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

// Path is the directory itself, absolute.
func (d *StateDir) Path() string { return d.path }

// NATS is where the NATS server keeps its streams.
func (d *StateDir) NATS() string { return filepath.Join(d.path, "nats") }

// Postgres is where the private PostgreSQL lives.
func (d *StateDir) Postgres() string { return filepath.Join(d.path, "postgres") }

// File is the path of a file of this name. Its writer MUST use mode 0600.
func (d *StateDir) File(name string) string { return filepath.Join(d.path, name) }

// Close unlocks the directory. Everything started in it MUST have ended.
func (d *StateDir) Close() error { return d.lock.Close() }
