package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/internal/testenv"
)

// A flipped bit anywhere in a young stream's only data file is found, whether
// the server was stopped in order or not; an untouched file is not refused.
func TestAnyFlippedBit(t *testing.T) {
	for _, index := range []bool{true, false} {
		t.Run(fmt.Sprintf("index=%v", index), func(t *testing.T) {
			t.Parallel()
			dir, heads := t.TempDir(), filepath.Join(t.TempDir(), "head.json")
			n := testenv.NATS(t, testenv.InDir(dir))
			nc := testenv.Conn(t, n)
			l := open(t, nc, ledger.Options{HeadFile: heads})
			for i := range 10 {
				if _, err := l.Append(t.Context(), uint64(i), revoked("org_1", "key_1", uint64(i)+1)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			nc.Close()
			n.Shutdown()
			block := blocks(t, dir, events.Ledger)[0]
			b, err := os.ReadFile(block)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(dir, block)
			if err != nil {
				t.Fatal(err)
			}
			// -1 is the control.
			for at := -1; at < len(b); at += 211 {
				copied := t.TempDir()
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				if at >= 0 {
					damaged := append([]byte(nil), b...)
					damaged[at] ^= 1 << (at % 8)
					if err := os.WriteFile(filepath.Join(copied, rel), damaged, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if !index {
					if err := os.Remove(filepath.Join(copied, filepath.Dir(rel), "index.db")); err != nil {
						t.Fatal(err)
					}
				}
				n := testenv.NATS(t, testenv.InDir(copied))
				nc := testenv.Conn(t, n)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				l, err := ledger.Open(ctx, nc, ledger.Options{HeadFile: heads, AllowUnverifiedSync: true})
				if err == nil {
					err = l.Check(ctx)
					l.Close()
				}
				cancel()
				nc.Close()
				n.Shutdown()
				if _, refused := errors.AsType[*ledger.RefusalError](err); refused != (at >= 0) {
					t.Errorf("byte %d of %d, bit %d: %v", at, len(b), at%8, err)
				}
			}
		})
	}
}
