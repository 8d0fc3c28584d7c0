package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/internal/bench"
	"github.com/keyledger/keyledger/projections/keyring"
	"github.com/keyledger/keyledger/verify"
)

// library is the verifier without a network, beside the floor that knows the
// same secrets.
type library struct {
	secrets  []string
	floor    *bench.Floor
	recorder *verify.Recorder
	verifier *verify.Verifier
	recorded int64 // calls that were recorded
}

// inProcess is what one round measured of one way to decide.
type inProcess struct {
	What       string  `json:"what"` // floor, decide, record
	Goroutines int     `json:"goroutines"`
	Nanos      float64 `json:"ns"`          // that a call takes its caller
	PerSecond  float64 `json:"per_second"`  // of all goroutines, writing of the pages included
	Allocs     float64 `json:"allocations"` // of a call, on the heap
	Written    float64 `json:"ns_all"`      // of a call, until its use is in the stream
}

// newLibrary makes a ring of so many keys by hand, a thousand for each owner at
// most.
func newLibrary(recorder *verify.Recorder, keys int) (*library, error) {
	l := &library{secrets: make([]string, keys), recorder: recorder}
	ring := keyring.New()
	var sequence uint64
	apply := func(owner, key string, data events.Payload) {
		sequence++
		e := events.New(data, time.Now())
		e.Keyspace, e.Owner, e.Key, e.KeyVersion = "bench", owner, key, 1
		ring.Apply(events.Record{Stream: events.Ledger, Sequence: sequence, Subject: events.Subject("bench", owner, key), Event: e})
	}
	doc, err := domain.ParseDocument([]byte(benchKeyspace))
	if err != nil {
		return nil, err
	}
	document, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	apply("", "", events.KeyspaceConfigured{DocumentVersion: 1, Document: document})
	limits := events.Limits{"minute": bench.Limit, "hour": bench.Limit, "day": bench.Limit}
	perOwner := max(keys/1000, 1)
	for i := range l.secrets {
		owner := fmt.Sprintf("org_%d", i/perOwner)
		if i%perOwner == 0 {
			apply(owner, "", events.OwnerRegistered{Name: owner})
		}
		l.secrets[i] = "kb_live_" + rand.Text() + rand.Text()[:14]
		hash := sha256.Sum256([]byte(l.secrets[i]))
		apply(owner, events.NewID("key", time.Now()), events.KeyCreated{
			Environment: "live", Scopes: []string{"parcels:read"}, Limits: limits, Secret: events.Secret{SHA256: hex.EncodeToString(hash[:])},
		})
	}
	l.floor = bench.NewFloor(l.secrets)
	l.verifier = verify.New(ring, recorder, verify.Options{})
	// Every key is in use before anything is measured, and every owner's data
	// key is there.
	for i, s := range l.secrets {
		req := benchRequest(s)
		d := l.verifier.Verify(req)
		if !d.Valid {
			return nil, fmt.Errorf("a key of the benchmark is refused: %s", d.Code)
		}
		l.floor.Verify(s)
		if i%perOwner == 0 {
			l.recorded++
			l.verifier.Record(&d, &req, benchUse)
		}
	}
	return l, recorder.Flush(context.Background())
}

func benchRequest(secret string) domain.Request {
	return domain.Request{Keyspace: "bench", Key: secret, Method: "GET", Path: "/v1/parcels/17", IP: "203.0.113.7"}
}

var benchUse = verify.Use{Via: "library", RequestID: "req_0123456789", UserAgent: "curl/8.5.0", Status: 200}

// run measures every way for a while: in bursts that fit into memory, after
// each of which it waits until they are written.
func (l *library) run(ctx context.Context, during time.Duration) ([]inProcess, error) {
	refused := errors.New("a key of the benchmark was refused")
	ways := []struct {
		what string
		call func(secret string) error
	}{
		{"floor", func(secret string) error {
			if valid, _ := l.floor.Verify(secret); !valid {
				return refused
			}
			return nil
		}},
		{"decide", func(secret string) error {
			req := benchRequest(secret)
			if d := l.verifier.Verify(req); !d.Valid {
				return refused
			}
			return nil
		}},
		{"record", func(secret string) error {
			req := benchRequest(secret)
			d := l.verifier.Verify(req)
			if !d.Valid || !l.verifier.Record(&d, &req, benchUse) {
				return refused
			}
			return nil
		}},
	}
	goroutines := []int{1}
	if runtime.GOMAXPROCS(0) > 1 {
		goroutines = append(goroutines, 2)
	}
	var all []inProcess
	for _, n := range goroutines {
		for _, way := range ways {
			m, err := l.measure(ctx, way.what, n, during, way.call)
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// burst is how many calls are made before what they recorded is waited for.
const burst = 20_000

func (l *library) measure(ctx context.Context, what string, goroutines int, during time.Duration, call func(string) error) (inProcess, error) {
	var calls int64
	var calling, writing time.Duration
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	errs := make([]error, goroutines)
	for calling+writing < during && ctx.Err() == nil {
		begin := time.Now()
		var running sync.WaitGroup
		for g := range goroutines {
			running.Go(func() {
				order := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), uint64(g)))
				for range burst / goroutines {
					if err := call(l.secrets[order.IntN(len(l.secrets))]); err != nil {
						errs[g] = err
						return
					}
				}
			})
		}
		running.Wait()
		calling += time.Since(begin)
		calls += burst / int64(goroutines) * int64(goroutines)
		if err := errors.Join(errs...); err != nil {
			return inProcess{}, err
		}
		if what == "record" {
			begin = time.Now()
			if err := l.recorder.Flush(ctx); err != nil {
				return inProcess{}, err
			}
			writing += time.Since(begin)
		}
	}
	runtime.ReadMemStats(&after)
	if what == "record" {
		l.recorded += calls
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(calls) }
	return inProcess{
		What: what, Goroutines: goroutines, Nanos: each(calling) * float64(goroutines), Written: each(calling + writing),
		PerSecond: float64(calls) / (calling + writing).Seconds(), Allocs: float64(after.Mallocs-before.Mallocs) / float64(calls),
	}, ctx.Err()
}
