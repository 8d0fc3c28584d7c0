//go:build !linux

package bench

import (
	"errors"
	"os/exec"
)

func affinity() ([]int, error) {
	return nil, errors.New("a process cannot be kept on a core")
}

// Pin does nothing here.
func Pin(int) error { return nil }

// Start starts a program.
func Start(c *exec.Cmd, _ int) error { return c.Start() }
