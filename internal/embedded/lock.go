package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
)

// LockedError says that another process, or another part of this one, has a
// directory open.
type LockedError struct {
	Dir string
	PID int // of the process that holds the lock, 0 when unknown
}

func (e *LockedError) Error() string {
	who := "another keyledger"
	if e.PID != 0 {
		who = fmt.Sprintf("another keyledger (process %d)", e.PID)
	}
	return fmt.Sprintf("directory %q is in use by %s: stop that one, or choose another directory", e.Dir, who)
}

// lockDir takes the lock of dir, which must exist, without waiting. The lock goes
// with the process, so a killed one leaves nothing to clean up; the file stays,
// because removing it would let two processes hold locks on two files of one name.
func lockDir(dir string) (*flock.Flock, error) {
	path := filepath.Join(dir, "lock")
	l := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("cannot lock directory %q: %w: it belongs to another user, run as that one or choose another directory", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock directory %q: %w", dir, err)
	}
	if !ok {
		held, _ := os.ReadFile(path)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(held)))
		return nil, &LockedError{Dir: dir, PID: pid}
	}
	// The content only serves the message above; the lock does not depend on it.
	_ = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600)
	return l, nil
}
