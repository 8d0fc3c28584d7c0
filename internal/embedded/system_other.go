//go:build !linux

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func (u *osUser) bind(*syscall.SysProcAttr) {}

func searchCapability() []uintptr { return nil }

// watchParent starts a shell that waits for this process to end, which closes
// its standard input, and then ends the child: there is no parent death signal here.
func watchParent(pid int) (stop func()) {
	sh := exec.Command("/bin/sh", "-c", `read -r line; [ "$line" = stop ] || kill -INT "$0"`, strconv.Itoa(pid))
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := sh.StdinPipe()
	if err != nil || sh.Start() != nil {
		return func() {}
	}
	return func() {
		in.Write([]byte("stop\n"))
		in.Close()
		sh.Wait()
	}
}

var syncFilesystem func(dir string) error

func inspect(pid int, data string) processState {
	out, err := exec.Command("ps", "-o", "stat=,command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return processGone
	}
	stat, command, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	switch {
	case strings.HasPrefix(stat, "Z"):
		return processZombie
	case strings.Contains(command, "postgres") && strings.Contains(command, data):
		return processServer
	}
	return processStranger
}
