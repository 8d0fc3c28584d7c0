package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a started process. err may be read once done is closed.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// startChild starts cmd from a thread that lives as long as the child: the
// kernel sends the parent death signal when the thread that forked ends, not
// the process.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			defer watchParent(cmd.Process.Pid)()
		}
		started <- err
		if err != nil {
			return
		}
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, <-started
}

// childLog passes a PostgreSQL program's lines on to slog by their severity,
// keeps the last ones for an error message and signals when the server is ready.
type childLog struct {
	log   *slog.Logger
	ready chan struct{}

	mu      sync.Mutex // guards what follows
	partial []byte
	last    []string
	isReady bool
}

func newChildLog(log *slog.Logger) *childLog {
	return &childLog{log: log, ready: make(chan struct{})}
}

const tailLines = 12

func (l *childLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, b...)
	for {
		line, rest, ok := bytes.Cut(l.partial, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.line(strings.TrimRight(string(line), "\r"))
		l.partial = rest
	}
}

func (l *childLog) line(s string) {
	if strings.TrimSpace(s) == "" {
		return
	}
	if l.last = append(l.last, s); len(l.last) > tailLines {
		l.last = l.last[1:]
	}
	level := slog.LevelDebug
	switch severity, _, _ := strings.Cut(s, ":"); severity {
	case "WARNING":
		level = slog.LevelWarn
	case "PANIC":
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, s, "from", "postgres")
	if !l.isReady && strings.Contains(s, "database system is ready to accept connections") {
		l.isReady = true
		close(l.ready)
	}
}

func (l *childLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == 0 {
		return ""
	}
	return "; it said:\n\t" + strings.Join(l.last, "\n\t")
}

// processState is what has the process number in an old postmaster.pid now.
type processState int

const (
	processGone     processState = iota
	processZombie                // dead, but its parent has not asked for it
	processServer                // the server of this very data directory
	processStranger              // something else that was given the number since
)

// clearPostmaster makes way for a new server. The directory is locked by us, so a
// server that still runs on it belongs to a keyledger that died: it is ending by
// itself, or is told to. PostgreSQL would refuse to start because of a zombie,
// or of a stranger that has the old number.
func clearPostmaster(ctx context.Context, data string, patience time.Duration, log *slog.Logger) error {
	path := filepath.Join(data, "postmaster.pid")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		log.Warn("removing a damaged postmaster.pid", "file", path)
		return os.Remove(path)
	}

	if patience == 0 {
		patience = 3 * time.Second
	}
	const limit = 40 * time.Second
	start, told := time.Now(), false
	for {
		switch inspect(pid, data) {
		case processGone:
			// PostgreSQL looks for backends left behind by what the file says.
			return nil
		case processZombie, processStranger:
			log.Debug("removing a stale postmaster.pid", "file", path, "pid", pid)
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("PostgreSQL: %w", err)
			}
			return nil
		}
		switch waited := time.Since(start); {
		case waited > limit:
			return fmt.Errorf("PostgreSQL: process %d still serves %q and does not end: end it (kill -QUIT %d) and start again", pid, data, pid)
		case waited > patience && !told:
			log.Warn("ending the PostgreSQL that a killed keyledger left behind", "pid", pid)
			if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("PostgreSQL: process %d still serves %q and cannot be ended: %w", pid, data, err)
			}
			told = true
		}
		// Nothing signals the end of a process that is not our child.
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL: process %d still serves %q: %w", pid, data, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
