package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyledger/keyledger/internal/testenv"
	invariant "github.com/keyledger/keyledger/internal/testenv/check"
)

// The whole program from outside: everything that `keyledger dev` starts is the
// real thing, and a script reads like what a person types.
func TestDev(t *testing.T) {
	cloudEvents := testenv.CloudEvents(t)
	decide := filepath.Join(t.TempDir(), "decide")
	if out, err := exec.Command("go", "build", "-o", decide, "../../examples/decide").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/dev",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("KEYLEDGER_CONTEXT", filepath.Join(env.WorkDir, "context.json"))
			env.Setenv("HOME", env.WorkDir)
			tools, err := filepath.Abs("../../tools")
			if err != nil {
				return err
			}
			env.Setenv("TOOLS", tools)
			env.Setenv("DECIDE", decide)
			env.Setenv("VERIFY", filepath.Join(filepath.Dir(tools), "deploy/verify/verify.sh"))
			env.Setenv("CLOUDEVENTS", cloudEvents)
			d := &devProcess{env: env}
			env.Values[devKey{}] = d
			env.Defer(d.kill)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": exitCode, "dev": devStart, "stop": devStop, "http": httpRequest,
			"cutting": cutting, "eventually": eventually, "subscribe": subscribe, "received": received, "remember": remember, "invariants": invariants, "damage": damage,
		},
	})
}

type devKey struct{}

// devProcess is the server of one script.
type devProcess struct {
	env   *testscript.Env
	cmd   *exec.Cmd
	ended chan error
	log   *lockedBuffer
	conn  *nats.Conn // a plain subscriber
	mu    sync.Mutex // guards inbox
	inbox []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func process(ts *testscript.TestScript) *devProcess { return ts.Value(devKey{}).(*devProcess) }

// devStart starts the server with a state directory in the script's, on free
// ports, and waits until it says that it is running.
func devStart(ts *testscript.TestScript, neg bool, args []string) {
	d := process(ts)
	if d.cmd != nil {
		ts.Fatalf("dev is running already")
	}
	exe, err := os.Executable()
	ts.Check(err)
	args = append([]string{"dev", "--state-dir", ts.MkAbs("state dir"), "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0"}, args...)
	d.cmd = exec.Command(exe, args...)
	d.cmd.Args[0] = "keyledger"
	d.cmd.Path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "keyledger")
	d.cmd.Dir = ts.MkAbs(".")
	d.cmd.Env = append(os.Environ(), "KEYLEDGER_CONTEXT="+ts.Getenv("KEYLEDGER_CONTEXT"), "HOME="+ts.Getenv("HOME"))
	d.log = &lockedBuffer{}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	ts.Check(d.cmd.Start())
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.cmd.Wait() }()
	for end := time.Now().Add(60 * time.Second); ; {
		if strings.Contains(d.log.String(), "Ctrl-C stops it.") {
			break
		}
		select {
		case err := <-d.ended:
			d.cmd = nil
			ts.Check(os.WriteFile(ts.MkAbs("dev.log"), []byte(d.log.String()), 0o600))
			if neg && err != nil {
				return
			}
			ts.Fatalf("dev ended: %v\n%s", err, d.log)
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(end) {
				ts.Fatalf("dev does not start:\n%s", d.log)
			}
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs("dev.log"), []byte(d.log.String()), 0o600))
	c, err := ReadContext(ts.Getenv("KEYLEDGER_CONTEXT"))
	ts.Check(err)
	ts.Setenv("API", c.URL)
	ts.Setenv("ADDR", strings.TrimPrefix(c.URL, "http://"))
	ts.Setenv("GATEWAY", c.GatewayURL)
	ts.Setenv("NATS", c.NATSURL)
}

// devStop ends it as Ctrl-C does.
func devStop(ts *testscript.TestScript, _ bool, _ []string) {
	d := process(ts)
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
	ts.Check(d.cmd.Process.Signal(os.Interrupt))
	select {
	case err := <-d.ended:
		if err != nil {
			ts.Fatalf("dev ended with %v:\n%s", err, d.log)
		}
	case <-time.After(30 * time.Second):
		ts.Fatalf("dev does not end:\n%s", d.log)
	}
	d.cmd = nil
	ts.Check(os.WriteFile(ts.MkAbs("dev.log"), []byte(d.log.String()), 0o600))
}

func (d *devProcess) kill() {
	if d.conn != nil {
		d.conn.Close()
	}
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(20 * time.Second):
			_ = d.cmd.Process.Kill()
		}
	}
}

// httpRequest sends one request and compares its status: http STATUS METHOD URL
// [FILE] [HEADER…]. The secret in FILE goes into Authorization, or with
// 'Name: @FILE' into another header. The answer, its header first, is the standard
// output of the command.
func httpRequest(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: http status method url [file] [header…]")
	}
	req, err := http.NewRequest(args[1], args[2], nil)
	ts.Check(err)
	for i, a := range args[3:] {
		if name, value, ok := strings.Cut(a, ": "); ok {
			if file, ok := strings.CutPrefix(value, "@"); ok {
				value = strings.TrimSpace(ts.ReadFile(file))
			}
			req.Header.Set(name, value)
		} else if i == 0 && a != "-" {
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(a)))
		}
	}
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if fmt.Sprint(resp.StatusCode) != args[0] {
		ts.Fatalf("%s %s: %s\n%s", args[1], args[2], resp.Status, body)
	}
	ts.Check(resp.Header.WriteSubset(ts.Stdout(), map[string]bool{"Date": true}))
	_, _ = ts.Stdout().Write(body)
}

// eventually repeats a command of this program until its output matches:
// eventually PATTERN ARG…
func eventually(ts *testscript.TestScript, _ bool, args []string) {
	re, err := regexp.Compile("(?ms)" + args[0])
	ts.Check(err)
	var out []byte
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c := exec.Command("keyledger", args[1:]...)
		c.Path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "keyledger")
		c.Dir = ts.MkAbs(".")
		c.Env = append(os.Environ(), "KEYLEDGER_CONTEXT="+ts.Getenv("KEYLEDGER_CONTEXT"), "HOME="+ts.Getenv("HOME"))
		if out, err = c.CombinedOutput(); err == nil && re.Match(out) {
			_, _ = ts.Stdout().Write(out)
			return
		}
	}
	ts.Fatalf("keyledger %s never says %s; at last:\n%s", strings.Join(args[1:], " "), args[0], out)
}

// subscribe is a plain NATS subscriber, as another service would have.
func subscribe(ts *testscript.TestScript, _ bool, args []string) {
	d := process(ts)
	var err error
	d.conn, err = nats.Connect(ts.Getenv("NATS"))
	ts.Check(err)
	_, err = d.conn.Subscribe(args[0], func(m *nats.Msg) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.inbox = append(d.inbox, m.Subject+" "+string(m.Data))
	})
	ts.Check(err)
	ts.Check(d.conn.Flush())
}

func received(ts *testscript.TestScript, _ bool, args []string) {
	d := process(ts)
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		d.mu.Lock()
		inbox := strings.Join(d.inbox, "\n")
		d.mu.Unlock()
		if re.MatchString(inbox) {
			return
		}
	}
	ts.Fatalf("the subscriber got nothing that matches %s, only %q", args[0], d.inbox)
}

// remember keeps a part of the last output as a variable: remember NAME PATTERN,
// whose first group it is.
func remember(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("the output does not match %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// invariants checks all of them over the running server: invariants FILE…, the
// files being secrets that were answered.
func invariants(ts *testscript.TestScript, _ bool, args []string) {
	d := process(ts)
	c, err := ReadContext(ts.Getenv("KEYLEDGER_CONTEXT"))
	ts.Check(err)
	conn, err := nats.Connect(c.NATSURL)
	ts.Check(err)
	defer conn.Close()
	pool, err := pgxpool.New(context.Background(), c.PostgresURL)
	ts.Check(err)
	defer pool.Close()
	s := invariant.Subject{Conn: conn, Pool: pool, Feed: true, Log: d.log.String()}
	for _, file := range append(args, filepath.Join(ts.MkAbs("state dir"), "root.key")) {
		s.Secrets = append(s.Secrets, strings.TrimSpace(ts.ReadFile(file)))
	}
	t, ok := d.env.T().(testing.TB)
	if !ok {
		ts.Check(errors.New("no test to report to"))
	}
	invariant.Ledger(t, s)
}

// damage flips a bit in the middle of a file.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}
