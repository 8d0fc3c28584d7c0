package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bind ties the child's life to that of the thread which starts it, and passes on
// what it needs to reach its directory.
func (u *osUser) bind(attr *syscall.SysProcAttr) {
	attr.Pdeathsig = syscall.SIGINT
	attr.AmbientCaps = u.caps
}

// watchParent has nothing to do: the kernel sends the parent death signal.
func watchParent(int) (stop func()) { return func() {} }

// searchCapability is the weakest capability this process has that lets a child
// of another user walk through closed directories; containers often have the second only.
func searchCapability() []uintptr {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil
	}
	for _, c := range []uintptr{unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE} {
		if data[0].Permitted&(1<<c) != 0 {
			return []uintptr{c}
		}
	}
	return nil
}

// syncFilesystem puts everything under dir on the disk in one call, where initdb
// would sync a thousand files one by one; nil where there is no such call.
var syncFilesystem = func(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func inspect(pid int, data string) processState {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processGone
	}
	// The program's name stands in brackets and may hold anything, brackets too.
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return processStranger
	}
	if s := stat[end+2]; s == 'Z' || s == 'X' {
		return processZombie
	}
	if name := string(stat[open+1 : end]); !strings.HasPrefix(name, "postgres") && name != "postmaster" {
		return processStranger
	}
	want, err := filepath.EvalSymlinks(data)
	if err != nil {
		return processStranger
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || cwd != want {
		return processStranger
	}
	return processServer
}
