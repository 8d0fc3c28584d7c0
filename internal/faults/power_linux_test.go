package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/internal/testenv/check"
)

// disk is a directory that can lose what was written and not synced.
type disk interface {
	dir() string
	// between says that the power can only be cut between two commands.
	between() bool
	// cut is the power failing. The server is dead when it returns.
	cut(*broker)
}

// The power fails. Nothing that was answered is lost; without the disk's part in
// the answer, which is the control, it is, and the service says so at its next
// start, and that the server is set up wrong before anything was lost.
//
// A real file system that is shut down as a power cut does needs root and a loop
// device, which not every container has; the long run insists on it. Elsewhere
// the kernel tells what of a file is in memory alone, and that is taken away.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	unverified(t, startBroker(t, t.TempDir(), false))
	disks := map[string]func(*testing.T) disk{}
	if err := mountable(t); err == nil {
		disks["file system"] = newExt4
	} else if times(0, 1) == 1 {
		t.Errorf("The power of a file system cannot be cut here: %v. Run this as root on a machine with loop devices and mkfs.ext4.", err)
	} else {
		t.Logf("no file system can be shut down here: %v", err)
	}
	if err := cached(t); err == nil {
		disks["page cache"] = func(t *testing.T) disk { return &pageCache{t, t.TempDir()} }
	} else {
		t.Logf("it cannot be told here what is in memory alone: %v", err)
	}
	for name, make := range disks {
		t.Run(name, func(t *testing.T) {
			for range times(1, 10) {
				if lost, refused := powerCut(t, make(t), true); lost > 0 || refused != "" {
					t.Errorf("%d answered keys were lost; the service says: %s", lost, refused)
				}
			}
			lost, refused := powerCut(t, make(t), false)
			if lost == 0 {
				t.Error("Nothing was lost without syncing: the cut proves nothing.")
			}
			if !strings.Contains(refused, "LEDGER") || !strings.Contains(refused, "What to do:") {
				t.Errorf("The service starts on a ledger that lost its end, or does not say so: %s", refused)
			}
		})
	}
}

// powerCut lets clients create keys until the power fails, and answers how many
// of those that were answered are gone, and what the service says when it then
// refuses to start.
func powerCut(t *testing.T, d disk, synced bool) (lost int, refused string) {
	t.Helper()
	b := startBroker(t, filepath.Join(d.dir(), "nats"), synced)
	settings := fmt.Sprintf("monitor: [%q]", b.monitor)
	if !synced {
		settings = "allow_unverified_sync: true"
	}
	s := newStage(t, b.url, testenv.Postgres(t), settings)
	one := s.service()
	one.start()
	s.client(one).prepare()

	var mu sync.Mutex
	var keys []string
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	enough, end := make(chan struct{}), make(chan struct{})
	for i := range 40 { // enough that appends go together
		wg.Go(func() {
			c := s.client(one)
			for n := 0; ctx.Err() == nil; n++ {
				select {
				case <-end:
					return
				default:
				}
				a, err := c.once(ctx, http.MethodPost, "/v1/keys", fmt.Sprintf("power-%d-%d", i, n), map[string]string{"keyspace": "parcelbird", "owner": "birdwatch", "name": "CI"})
				if err != nil || a.status != http.StatusCreated {
					continue // nobody was told that it took effect
				}
				var m made
				a.decode(t, &m)
				mu.Lock()
				if keys = append(keys, m.Key.ID); len(keys) == 400 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(patience):
		t.Fatal("400 keys were not made in time")
	}
	if d.between() {
		close(end)
		wg.Wait()
	}
	d.cut(b)
	stop()
	wg.Wait()
	one.process.Kill()
	b.start()
	lost = len(keys) - stored(t, b, keys)
	broken := unheld(t, b, s.postgres)
	t.Logf("synced %t: %d of %d answered keys lost, %d signed checkpoints no longer held", synced, lost, len(keys), len(broken))
	if synced && len(broken) > 0 {
		t.Errorf("What was signed does not hold: %s", strings.Join(broken, "\n"))
	}
	if !synced && len(broken) == 0 {
		t.Error("All that was signed holds without syncing: the cut proves nothing about it.")
	}
	one.launch()
	select {
	case <-one.process.Done():
		return lost, one.process.Output()
	case <-ready(one):
	}
	invariants(t, b.url, s.postgres, 1, s.seen)
	if a, err := s.client(one).once(t.Context(), http.MethodGet, "/readyz", "", nil); err != nil || !strings.Contains(string(a.body), `"audit log":{"ok":true}`) {
		t.Errorf("The audit log is in doubt after the cut: %v %s", err, a.body)
	}
	one.process.Kill()
	b.process.Kill()
	return lost, ""
}

// unheld are the checkpoints which PostgreSQL remembers and the streams do not give
// any more.
func unheld(t *testing.T, b *broker, postgres string) []string {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var signed bool
	if err := pool.QueryRow(t.Context(), `select exists (select from keyledger.log_checkpoints where size > 0)`).Scan(&signed); err != nil || !signed {
		t.Fatalf("Nothing was signed before the cut: %v", err)
	}
	l, err := ledger.Open(t.Context(), b.connect(t), ledger.Options{ReadOnly: true, AllowUnverifiedSync: true})
	if err != nil {
		return []string{err.Error()}
	}
	defer l.Close()
	wrong, err := check.Signed(t.Context(), l, pool)
	if err != nil {
		t.Fatal(err)
	}
	return wrong
}

// ready is closed when the service answers.
func ready(s *service) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if resp, err := transport.Get(s.url + "/readyz"); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					close(c)
					return
				}
			}
		}
	}()
	return c
}

// unverified shows that a server which does not sync is found out by asking it.
func unverified(t *testing.T, b *broker) {
	t.Helper()
	dir := t.TempDir()
	p := testenv.Start(t, nil, testenv.Build(t), "init", "--root-key-file", filepath.Join(dir, "root.key"), "--master-key-file", filepath.Join(dir, "master.key"),
		"--nats-url", b.url, "--nats-monitor", b.monitor, "--postgres-url-file", postgresFile(t))
	if err := p.Wait(patience); err == nil || !strings.Contains(p.Output(), "does not sync every write") || !strings.Contains(p.Output(), "sync_interval: always") {
		t.Errorf("A server that does not sync every write is not refused: %v\n%s", err, p.Output())
	}
}

func postgresFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postgres.url")
	writeFile(t, path, testenv.Postgres(t))
	return path
}

// stored counts the keys that LEDGER holds a fact of.
func stored(t *testing.T, b *broker, keys []string) (n int) {
	t.Helper()
	js, err := jetstream.New(b.connect(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), events.Ledger)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range keys {
		_, err := stream.GetLastMsgForSubject(t.Context(), events.Subject("parcelbird", "birdwatch", id))
		switch {
		case err == nil:
			n++
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			t.Fatal(err)
		}
	}
	return n
}

// pageCache takes away what of LEDGER's data files is in memory alone. The page
// that a command is just being written to cannot be told from what the page held
// before, so no command may be on its way.
type pageCache struct {
	t    *testing.T
	path string
}

func (d *pageCache) dir() string   { return d.path }
func (d *pageCache) between() bool { return true }

func (d *pageCache) cut(b *broker) {
	b.process.Signal(syscall.SIGSTOP)
	blocks, err := filepath.Glob(filepath.Join(d.path, "nats", "jetstream", "*", "streams", events.Ledger, "msgs", "*.blk"))
	if err != nil || len(blocks) == 0 {
		d.t.Fatalf("no data files of LEDGER: %v", err)
	}
	keep := map[string]int64{}
	for _, path := range blocks {
		info, err := os.Stat(path)
		if err != nil {
			d.t.Fatal(err)
		}
		page := int64(os.Getpagesize())
		for at := int64(0); at < info.Size(); at += page {
			n, err := dirty(path, at, page)
			if err != nil {
				d.t.Fatal(err)
			}
			if n > 0 {
				keep[path] = at
				break
			}
		}
	}
	b.process.Kill()
	for path, size := range keep {
		if err := os.Truncate(path, size); err != nil {
			d.t.Fatal(err)
		}
	}
}

// dirty counts the pages of a part of a file that the disk does not have
// (cachestat(2), Linux 6.5).
func dirty(path string, at, size int64) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const cachestat = 451
	part := struct{ off, len uint64 }{uint64(at), uint64(size)}
	var stat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }
	if _, _, errno := syscall.Syscall6(cachestat, f.Fd(), uintptr(unsafe.Pointer(&part)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0); errno != 0 {
		return 0, fmt.Errorf("cachestat: %w", errno)
	}
	return stat.dirty + stat.writeback, nil
}

// cached says why it cannot be told what of a file is in memory alone.
func cached(t *testing.T) error {
	path := filepath.Join(t.TempDir(), "probe")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("a fact"); err != nil {
		return err
	}
	n, err := dirty(path, 0, 4096)
	if err == nil && n == 0 {
		err = errors.New("this file system keeps no pages to be written")
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		if n, err = dirty(path, 0, 4096); n > 0 {
			err = errors.New("this file system does not write what is synced")
		}
	}
	return err
}

// ext4 is a file system in a file.
type ext4 struct {
	t            *testing.T
	image, mount string
}

func newExt4(t *testing.T) disk {
	t.Helper()
	d := &ext4{t: t, image: filepath.Join(t.TempDir(), "disk.img"), mount: t.TempDir()}
	if err := d.format(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.mount).Run() })
	return d
}

func (d *ext4) format() error {
	f, err := os.Create(d.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(256<<20), f.Close()); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w %s", err, out)
	}
	return d.attach()
}

func (d *ext4) attach() error {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.mount).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w %s", err, out)
	}
	return nil
}

// mountable says why a file system cannot be mounted here.
func mountable(t *testing.T) error {
	d := &ext4{t: t, image: filepath.Join(t.TempDir(), "probe.img"), mount: t.TempDir()}
	if err := d.format(); err != nil {
		return err
	}
	return exec.Command("umount", d.mount).Run()
}

func (d *ext4) dir() string   { return d.mount }
func (d *ext4) between() bool { return false }

// cut throws away what the file system has not written, journal included. The server
// does not live to see its writes fail: it would show readers what it could not store.
func (d *ext4) cut(b *broker) {
	d.freeze(b)
	d.shutdown()
	b.process.Kill()
	d.remount()
}

// freeze stops the server where it is: at most its threads wait for the disk.
func (d *ext4) freeze(b *broker) {
	b.process.Signal(syscall.SIGSTOP)
	for end := time.Now().Add(patience); ; {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", b.process.PID()))
		if err != nil || len(tasks) == 0 {
			d.t.Fatalf("no threads of the server: %v", err)
		}
		running := slices.ContainsFunc(tasks, func(path string) bool {
			stat, err := os.ReadFile(path)
			_, after, ok := strings.Cut(string(stat), ") ") // its name may hold anything
			return err == nil && (!ok || !strings.HasPrefix(after, "T") && !strings.HasPrefix(after, "D"))
		})
		if !running {
			return
		}
		if time.Now().After(end) {
			d.t.Fatal("the server does not stop")
		}
		runtime.Gosched()
	}
}

// shutdown is the moment of a power cut: nothing more reaches the disk.
func (d *ext4) shutdown() {
	const shutdown, noLogFlush = 0x8004587d, uint32(2) // FS_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	f, err := os.Open(d.mount)
	if err != nil {
		d.t.Fatal(err)
	}
	flag := noLogFlush
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag)))
	f.Close()
	if errno != 0 {
		d.t.Fatalf("FS_IOC_SHUTDOWN: %v", errno)
	}
}

// remount is the power coming back. Nobody has a file open, but a process in a mount
// namespace of its own, of another test perhaps, may hold the file system as it was; then
// it is mounted as it was, until that process has ended.
func (d *ext4) remount() {
	for until := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if out, err := exec.Command("umount", d.mount).CombinedOutput(); err != nil {
			d.t.Fatalf("umount: %v %s", err, out)
		}
		if err := d.attach(); err != nil {
			d.t.Fatal(err)
		}
		probe := filepath.Join(d.mount, "probe")
		err := errors.Join(os.WriteFile(probe, nil, 0o600), os.Remove(probe))
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EIO) || time.Now().After(until) {
			d.t.Fatal(err)
		}
	}
}
