package faults

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/testenv"
)

// span is how much of a node's uses a power cut may take.
const span = 50 * time.Millisecond

// The power of the machine that a gateway runs on fails under load: the file
// system with its write-ahead log loses what was not written, and the machine
// starts again. What is missing of what was answered is declared by a gap around
// it, and is of the last 50 ms. The same when NATS was on that machine too.
//
// It needs root, a loop device and a mount namespace, in which the kernel's boot
// id can be another one after the cut: by it a process knows that the machine was
// started anew. The long run insists on them.
func TestAccountsOverPowerCut(t *testing.T) {
	t.Parallel()
	if err := mountable(t); err != nil {
		if times(0, 1) == 1 {
			t.Errorf("The power of a file system cannot be cut here: %v. Run this as root on a machine with loop devices and mkfs.ext4.", err)
		}
		t.Logf("no file system can be shut down here: %v", err)
		return
	}
	for _, c := range []struct {
		name    string
		natsToo bool
		away    bool
	}{{"gateway", false, false}, {"gateway and NATS", true, false}, {"gateway, NATS away", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			for range times(1, 10) {
				disk := newExt4(t).(*ext4)
				nats := t.TempDir()
				if c.natsToo {
					nats = filepath.Join(disk.dir(), "nats")
				}
				accountsOverPowerCut(t, disk, nats, c.natsToo, c.away)
			}
		})
	}
}

func accountsOverPowerCut(t *testing.T, disk *ext4, nats string, natsToo, away bool) {
	t.Helper()
	s := newSceneAt(t, startBroker(t, nats, true))
	p := s.gateway("async", filepath.Join(disk.dir(), "state"))
	p.t = t
	p.start()
	s.one.process.Kill() // it has no part in what follows

	b, end := newBooks(), make(chan struct{})
	done := b.clients(t, 12, strings.TrimPrefix(p.url, "http://"), s.proxied(), end)
	<-time.After(load() / 4)
	if away { // so that everything depends on the write-ahead log
		s.b.process.Signal(syscall.SIGSTOP)
		<-time.After(load() / 4)
	}
	p.process.Signal(syscall.SIGSTOP) // so that nothing is answered after the cut
	cut := time.Now()
	if natsToo {
		s.b.process.Signal(syscall.SIGSTOP)
	}
	disk.shutdown()
	close(end)
	p.process.Kill()
	if natsToo {
		s.b.process.Kill()
	}
	done()
	disk.remount()
	if away {
		s.b.process.Signal(syscall.SIGCONT)
	}
	if natsToo {
		s.b.start()
	}
	rebooted(t, p)
	p.start()
	p.terminate()

	w := readUsage(t, s.b.url)
	d := b.compare(w)
	if len(d.extra) > 0 {
		t.Errorf("%d differences: %v", len(d.extra), some(d.extra))
	}
	var longest time.Duration
	for _, id := range d.missing {
		at := b.used[id].at
		longest = max(longest, cut.Sub(at))
		if !declared(w.gaps, at) {
			t.Errorf("%s, answered %v before the cut, is missing and in no gap of %+v", id, cut.Sub(at), w.gaps)
		}
	}
	if d.refused > 0 && len(w.gaps) == 0 {
		t.Errorf("%d refusals are missing and no gap is declared", d.refused)
	}
	t.Logf("%s\nmissing: %d uses, answered up to %v before the cut, and %d refusals; declared: %+v", b, len(d.missing), longest, d.refused, w.gaps)
	// How far the disk was behind depends on what else the machine does: the
	// figure is for one that does nothing else.
	if times(0, 1) == 1 && longest > span {
		t.Errorf("uses of %v are missing", longest)
	}
}

// declared says whether a gap covers a moment. Gaps are in milliseconds.
func declared(gaps []events.UsageGap, at time.Time) bool {
	for _, g := range gaps {
		if !at.Before(g.From.Time()) && !at.After(g.To.Time().Add(time.Millisecond)) {
			return true
		}
	}
	return false
}

// rebooted lets the next life of a process see a machine that was started again.
func rebooted(t *testing.T, p *service) {
	t.Helper()
	id := filepath.Join(t.TempDir(), "boot_id")
	writeFile(t, id, "00000000-0000-4000-8000-000000000000\n")
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	p.program = unshare
	p.args = append([]string{"-m", "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, id, testenv.Build(t)}, p.args...)
}
