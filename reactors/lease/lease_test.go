package lease

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/internal/testenv"
)

// paused is set in the process that TestPausedHolder stops.
const paused = "KEYLEDGER_TEST_LEASE"

func TestMain(m *testing.M) {
	if url := os.Getenv(paused); url != "" {
		os.Exit(act(url))
	}
	os.Exit(m.Run())
}

const short = 300 * time.Millisecond

func bucket(t testing.TB, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := Open(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// Of many who want it, whose connections break, one at a time is inside; each is at
// some time, and tokens grow.
func TestOneAtATime(t *testing.T) {
	server := testenv.NATS(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var inside, turns atomic.Int64
	var last atomic.Uint64
	var all sync.WaitGroup
	enough := make(chan struct{})
	for range 4 {
		nc := testenv.Conn(t, server)
		kv := bucket(t, nc)
		all.Go(func() {
			for ctx.Err() == nil {
				_ = Options{TTL: short}.Run(ctx, kv, "one", func(ctx context.Context) error {
					if n := inside.Add(1); n != 1 {
						t.Errorf("%d are inside", n)
					}
					defer inside.Add(-1)
					if before := last.Swap(Token(ctx)); before >= Token(ctx) {
						t.Errorf("token %d after %d", Token(ctx), before)
					}
					if err := Check(ctx); err != nil {
						return err
					}
					if turns.Add(1) == 24 {
						close(enough)
					}
					if turns.Load()%4 == 0 {
						_ = nc.ForceReconnect()
					}
					return nil
				})
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(time.Minute):
		t.Errorf("%d turns in a minute", turns.Load())
	}
	cancel()
	all.Wait()
}

// A process whose connection is gone stops by its own clock, before the next one
// begins; and it asks again when the connection is back.
func TestLost(t *testing.T) {
	server := testenv.NATS(t)
	first, second := testenv.Conn(t, server), testenv.Conn(t, server)
	held, lost := make(chan context.Context, 1), make(chan error, 1)
	var working atomic.Bool
	go func() {
		_ = Options{TTL: short}.Run(t.Context(), bucket(t, first), "one", func(ctx context.Context) error {
			working.Store(true)
			held <- ctx
			<-ctx.Done()
			working.Store(false)
			lost <- context.Cause(ctx)
			return ctx.Err()
		})
	}()
	<-held
	kv := bucket(t, second)
	if h, err := Holder(t.Context(), kv, "one"); err != nil || h.Holder == "" || h.Since == 0 {
		t.Errorf("held by %+v, %v", h, err)
	}
	first.Close()
	if err := (Options{TTL: short}).Run(t.Context(), kv, "one", func(ctx context.Context) error {
		if working.Load() {
			t.Error("the one before is still at work")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-lost; !errors.Is(err, ErrLost) {
		t.Errorf("ended because %v", err)
	}
	if h, err := Holder(t.Context(), kv, "one"); err != nil || h != (Holding{}) {
		t.Errorf("held by %+v, %v", h, err)
	}
}

// Whoever takes the value away ends the context, and a process with the holder's own
// name goes on at once.
func TestTakenBack(t *testing.T) {
	server := testenv.NATS(t)
	kv := bucket(t, testenv.Conn(t, server))
	o := Options{Holder: "node-1", TTL: time.Hour}
	begun, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		ended <- o.Run(ctx, kv, "one", func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return nil
		})
	}()
	<-begun
	failed := errors.New("what fn says")
	o.TTL = short
	if err := o.Run(t.Context(), kv, "one", func(ctx context.Context) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Run says %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run says %v", err)
	}
	if err := Run(t.Context(), kv, "no name", nil); err == nil || !strings.Contains(err.Error(), "no name of a lease") {
		t.Errorf("Run says %v", err)
	}
}

// A holder that was stopped (SIGSTOP) until another one has the lease does nothing
// more after it goes on.
func TestPausedHolder(t *testing.T) {
	server := testenv.NATS(t, testenv.Listening())
	nc := testenv.Conn(t, server)
	kv := bucket(t, nc)
	var mu sync.Mutex
	var other bool // this process holds the lease
	// No answer before it is stopped: then it is not between looking whether it holds
	// the lease and acting, when nothing could keep it from that.
	acting := make(chan *nats.Msg, 1000)
	if _, err := nc.Subscribe("act", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if other {
			t.Error("the one that was stopped acts while another one has the lease")
		}
		select {
		case acting <- m:
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), paused+"="+server.ClientURL())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	lines := bufio.NewScanner(out)
	for range 3 {
		<-acting
		if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		err := Options{TTL: short}.Run(t.Context(), kv, "one", func(ctx context.Context) error {
			mu.Lock()
			other = true
			mu.Unlock()
			if err := child.Process.Signal(syscall.SIGCONT); err != nil {
				return err
			}
			// It says that it has found out, which is when it did nothing any more.
			if !lines.Scan() || lines.Text() != ErrLost.Error() {
				return fmt.Errorf("the one that was stopped says %q, %v", lines.Text(), lines.Err())
			}
			if err := nc.Flush(); err != nil {
				return err
			}
			mu.Lock()
			other = false
			mu.Unlock()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for len(acting) > 0 {
			<-acting
		}
	}
}

// act does something again and again while it holds the lease, and says when it does not.
func act(url string) int {
	nc, err := nats.Connect(url)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	js, err := jetstream.New(nc)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	kv, err := Open(context.Background(), js, 1)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	err = Options{TTL: short}.Run(context.Background(), kv, "one", func(ctx context.Context) error {
		for {
			if err := Check(ctx); err != nil {
				fmt.Println(ErrLost)
				<-ctx.Done()
				return ctx.Err()
			}
			_, _ = nc.Request("act", nil, 2*short)
		}
	})
	fmt.Println(err)
	return 1
}
