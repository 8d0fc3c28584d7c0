package verify_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/verifytest"
)

// TestMain is also the verifier in a process of its own that TestPaused stops.
func TestMain(m *testing.M) {
	if url := os.Getenv("KEYLEDGER_TEST_VERIFIER"); url != "" {
		if err := verifier(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// verifier answers every line on its input, a secret, with the decision's code.
func verifier(url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	l, err := ledger.Open(context.Background(), nc, ledger.Options{AllowUnverifiedSync: true, ReadOnly: true})
	if err != nil {
		return err
	}
	ring := keyring.New()
	go ring.Run(context.Background(), l)
	<-ring.Ready()
	v := verify.New(ring, nil, verify.Options{Head: func(ctx context.Context) (uint64, error) { return l.Head(ctx, events.Ledger) }})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(v.Verify(request(lines.Text())).Code)
	}
	return nil
}

// A verifier that was stopped while a key was revoked does not accept the key
// when it goes on, not even for the first request.
func TestPaused(t *testing.T) {
	w := verifytest.New(t, verify.Options{}, testenv.Listening())
	w.Configure(verifytest.Birds)
	created := events.KeyCreated{Environment: "live", Scopes: []string{"birds:read"}}
	keys := map[string]string{}
	for i := range 3 {
		s := fmt.Sprintf("bd_live_%032d", i)
		keys[s] = w.Key("birds", "org_1", s, created)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "KEYLEDGER_TEST_VERIFIER="+w.NATS.ClientURL())
	child.Stderr = t.Output()
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	answers := bufio.NewReader(out)
	answer := func() domain.Code {
		t.Helper()
		line, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return domain.Code(strings.TrimSpace(line))
	}
	for s, key := range keys {
		for deadline := time.Now().Add(20 * time.Second); ; { // it starts as one that knows nothing
			fmt.Fprintln(in, s)
			code := answer()
			if code == domain.CodeValid {
				break
			}
			if code != domain.CodeStateTooStale || time.Now().After(deadline) {
				t.Fatal(code)
			}
		}
		if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var state syscall.WaitStatus // the signal was only sent so far
		if _, err := syscall.Wait4(child.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
			t.Fatal(state, err)
		}
		w.Append("birds", "org_1", key, events.KeyRevoked{Reason: "leaked"})
		fmt.Fprintln(in, s)
		time.Sleep(1100 * time.Millisecond) // the pause itself: below a second it is none
		if err := child.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if code := answer(); code != domain.CodeRevoked && code != domain.CodeStateTooStale {
			t.Errorf("after a pause: %s", code)
		}
	}
}
