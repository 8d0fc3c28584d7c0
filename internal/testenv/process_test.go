package testenv_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/internal/testenv"
)

func TestProcess(t *testing.T) {
	p := testenv.Start(t, []string{"WORD=ready"}, "/bin/sh", "-c", `trap 'exit 3' INT; echo "now $WORD"; while :; do sleep 0.01; done`)
	if got := p.WaitOutput("ready", 10*time.Second); got != "now ready" {
		t.Errorf("WaitOutput = %q, want %q", got, "now ready")
	}
	var exit *exec.ExitError
	if err := p.Interrupt(10 * time.Second); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("Interrupt = %v, want exit status 3", err)
	}

	p = testenv.Start(t, nil, "/bin/sh", "-c", `echo up; exec sleep 60`)
	p.WaitOutput("up", 10*time.Second)
	p.Kill()
	if err := p.Wait(10 * time.Second); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after Kill, Wait = %v, want signal: killed", err)
	}
}
