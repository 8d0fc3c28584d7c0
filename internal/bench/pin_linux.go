package bench

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// affinity are the cores that this process may use.
func affinity() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	var cores []int
	for i := 0; len(cores) < set.Count(); i++ {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores, nil
}

func one(core int) *unix.CPUSet {
	var set unix.CPUSet
	set.Set(core)
	return &set
}

// Pin keeps this process on one core from now on; -1 does nothing.
func Pin(core int) error {
	if core < 0 {
		return nil
	}
	runtime.GOMAXPROCS(1)
	// A thread takes its core from the one that starts it, so a second look
	// finds those that were started during the first.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if err := unix.SchedSetaffinity(id, one(core)); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	return nil
}

// Start starts a program on one core; -1 is any that this process may use.
func Start(c *exec.Cmd, core int) error {
	if core < 0 {
		return c.Start()
	}
	// The child takes its core from the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, one(core)); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &before)
	return c.Start()
}
