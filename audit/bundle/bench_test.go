package bundle_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

// use is the i-th use in pages of 100, made when it is asked for.
func use(tb testing.TB, i int) (audit.Leaf, []byte) {
	at := begin.Add(time.Duration(i) * time.Millisecond)
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<16)
	binary.BigEndian.PutUint64(id[8:], uint64(i)*0x9e3779b97f4a7c15)
	owner := fmt.Sprintf("org_%d", i%1000)
	e := events.Envelope{ID: events.FormatID("evt", id), Type: "key.used", Version: 1, Time: events.At(at), Keyspace: "parcelbird", Owner: owner, Key: events.FormatID("key", id),
		Actor: events.Actor{Type: "key", ID: events.FormatID("key", id)}, Via: "gateway", RequestID: events.FormatID("req", id),
		Data: events.KeyUsed{Decision: events.FormatID("dec", id), Method: "GET", Endpoint: fmt.Sprint("/v1/parcels/", i), Status: new(200), Environment: "live", Secret: "current", Node: "gateway-1",
			SourceIP: &events.Sealed{Key: "parcelbird." + owner + ".2026-01", Box: base64.StdEncoding.EncodeToString(append(id[:], id[:]...))}, LatencyMS: new(int64(i % 100))}}
	body, err := events.Encode(e)
	if err != nil {
		tb.Fatal(err)
	}
	r := events.Record{Stream: events.Usage, Sequence: uint64(i/100) + 1, Line: i % 100, Subject: "usage.parcelbird.gateway-1", Body: body, Event: e}
	return audit.LeafOf(&r), body
}

// processorTime is what this process, or its children, have used of all processors, which a machine that
// has other things to do does not change much.
func processorTime(tb testing.TB, of int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(of, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A bundle of uses, read from disk by both verifiers: -bundle.events says how many.
func BenchmarkVerify(b *testing.B) {
	l := newLog(b, "keyledger-test")
	f, raw := uses(b, l)
	b.Run("go", func(b *testing.B) {
		b.SetBytes(raw)
		used := processorTime(b, syscall.RUSAGE_SELF)
		for b.Loop() {
			if _, err := f.Seek(0, 0); err != nil {
				b.Fatal(err)
			}
			r, err := bundle.Verify(f, bundle.Options{Keys: []note.Verifier{l.verifier}})
			if err != nil || !r.Pass {
				b.Fatalf("%+v, %v", r, err)
			}
		}
		b.ReportMetric((processorTime(b, syscall.RUSAGE_SELF)-used).Seconds()/float64(b.N), "cpu-s/op")
		b.ReportMetric(float64(b.N)*float64(*many)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("python", func(b *testing.B) {
		b.SetBytes(raw)
		used := processorTime(b, syscall.RUSAGE_CHILDREN)
		for b.Loop() {
			if out, err := exec.CommandContext(b.Context(), "python3", "-B", "../../tools/verify_bundle.py", f.Name(), l.key).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		b.ReportMetric((processorTime(b, syscall.RUSAGE_CHILDREN)-used).Seconds()/float64(b.N), "cpu-s/op")
		b.ReportMetric(float64(b.N)*float64(*many)/b.Elapsed().Seconds(), "events/s")
	})
}

// uses writes a bundle of them, and answers its length unpacked.
func uses(b *testing.B, l *log) (*os.File, int64) {
	var leaves []tlog.Hash
	for i := range *many {
		leaf, _ := use(b, i)
		leaves = append(leaves, leaf.Hash())
	}
	_, tree := grow(b, leaves)
	l.add(b, events.Ledger, "ledger.a._._", l.event(events.KeyspaceConfigured{}, "a", "", ""))
	head := l.headOver(b, map[string]bundle.Stream{events.Usage: {Stream: events.Usage, Size: tree.Size, Root: tree.Root.String(), First: 1, Last: uint64((*many-1)/100) + 1}})
	f, err := os.Create(filepath.Join(b.TempDir(), "bundle.tar.gz"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	began := time.Now()
	w, err := bundle.NewWriter(f, head)
	if err != nil {
		b.Fatal(err)
	}
	raw := int64(0)
	for s := w.Stream(); s != ""; s = w.Stream() {
		for i := range w.Left() {
			var leaf audit.Leaf
			var body []byte
			if s == events.Usage {
				leaf, body = use(b, int(i))
			} else {
				leaf, body = audit.LeafOf(&l.records[s][i]), l.records[s][i].Body
			}
			raw += int64(len(body)) + 1
			if err := w.Leaf(&leaf, body); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	size, _ := f.Seek(0, 1)
	b.Logf("%d events, %d MB, packed %d MB, written in %s", *many, raw>>20, size>>20, time.Since(began).Round(time.Millisecond))
	return f, raw
}
