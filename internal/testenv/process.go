package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// built builds a main package once per test process.
func built(name, pkg string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "keyledger-test-")
		if err != nil {
			return "", err
		}
		if err := removeAfter(dir); err != nil {
			return "", err
		}
		path := filepath.Join(dir, name)
		out, err := exec.Command("go", "build", "-o", path, pkg).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return path, nil
	})
}

var (
	program = built("keyledger", "github.com/keyledger/keyledger/cmd/keyledger")
	server  = built("nats-server", "github.com/nats-io/nats-server/v2")
)

// Build builds the program once per test process and answers where it is.
func Build(t testing.TB) (path string) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// BuildNATS builds nats-server, of the version that go.mod names, once per test
// process and answers where it is: for a server that may be killed.
func BuildNATS(t testing.TB) (path string) {
	t.Helper()
	path, err := server()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Process is a program started by a test. It is killed when the test ends, and by
// the kernel (Linux) when the test process does.
type Process struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err may be read then
	err  error

	mu  sync.Mutex // guards out and more
	out bytes.Buffer
	// more is closed and replaced whenever out grows.
	more chan struct{}
}

// Start starts path with args in an environment of the test's own with env
// ("NAME=value") added. Standard output and error are kept together; see Output.
func Start(t testing.TB, env []string, path string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: exec.Command(path, args...), done: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = (*output)(p), (*output)(p)
	// Children of a killed process may hold the output open.
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = processAttr()
	started := make(chan error, 1)
	go func() {
		// The kernel ties the child's life to the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("output of %s:\n%s", filepath.Base(path), p.Output())
		}
	})
	return p
}

type output Process

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.out.Write(b)
}

// Output is what the process has written so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// WaitOutput waits until the process has written text and answers the whole line
// that holds it. It fails the test after limit, or when the process ends before.
func (p *Process) WaitOutput(text string, limit time.Duration) string {
	p.t.Helper()
	timeout := time.After(limit)
	for {
		// Whether it has ended must be known before its output is read.
		ended := false
		select {
		case <-p.done:
			ended = true
		default:
		}
		p.mu.Lock()
		out, more := p.out.String(), p.more
		p.mu.Unlock()
		for line := range strings.Lines(out) {
			if strings.Contains(line, text) {
				return strings.TrimSuffix(line, "\n")
			}
		}
		if ended {
			p.t.Fatalf("%s ended (%v) before it wrote %q", p.cmd, p.err, text)
		}
		select {
		case <-more:
		case <-p.done:
		case <-timeout:
			p.t.Fatalf("%s did not write %q within %s", p.cmd, text, limit)
		}
	}
}

// PID is the process number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends sig; a process that has ended is left alone.
func (p *Process) Signal(sig os.Signal) { p.cmd.Process.Signal(sig) }

// Kill ends the process as kill -9 does and waits for its end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Interrupt asks the process to end as Ctrl-C does and answers how it ended: nil
// for exit code 0. It fails the test after limit.
func (p *Process) Interrupt(limit time.Duration) error {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGINT)
	return p.Wait(limit)
}

// Wait waits for the end and answers how it ended. It fails the test after limit.
func (p *Process) Wait(limit time.Duration) error {
	p.t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.t.Fatalf("%s did not end within %s", p.cmd, limit)
		return nil
	}
}
