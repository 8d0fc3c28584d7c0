package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
)

// followed is one way of being told, and when it told of which key.
type followed struct {
	name string
	goal float64 // milliseconds, of p99 from the command to the subscriber

	mu    sync.Mutex // guards what follows
	at    map[string]time.Time
	moved chan struct{} // closed and replaced when there is one more
	err   error
}

// heard takes an event's body.
func (f *followed) heard(body []byte) {
	now := time.Now()
	var fact struct{ Key string }
	err := json.Unmarshal(body, &fact)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, again := f.at[fact.Key]; !again {
		f.at[fact.Key] = now
	}
	if err != nil {
		f.err = err
	}
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *followed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	close(f.moved)
	f.moved = make(chan struct{})
}

// whole waits until it told of so many keys.
func (f *followed) whole(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		f.mu.Lock()
		told, moved, err := len(f.at), f.moved, f.err
		f.mu.Unlock()
		switch {
		case told >= n:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", f.name, err)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%s told of %d revocations, not %d", f.name, told, n)
		}
	}
}

// row says how long after the command was sent it told.
func (f *followed) row(sent map[string]time.Time) benchRow {
	f.mu.Lock()
	defer f.mu.Unlock()
	var late []time.Duration
	for key, at := range sent {
		late = append(late, max(f.at[key].Sub(at), 0))
	}
	slices.Sort(late)
	p99 := milliseconds(late[(len(late)*99-1)/100])
	return benchRow{Name: "revoke sent → " + f.name, P50: milliseconds(late[(len(late)-1)/2]), P99: p99,
		Goal: fmt.Sprintf("p99 < %g ms", f.goal), Reached: p99 < f.goal, Answered: int64(len(late))}
}

// followAll begins every way of being told of revocations that the first node offers.
func followAll(ctx context.Context, first *rivalProcess) (all []*followed, end func(), err error) {
	ctx, stop := context.WithCancel(ctx)
	var ends []func()
	end = func() {
		stop()
		for _, end := range slices.Backward(ends) {
			end()
		}
	}
	// A way is a line here: what it is called, its goal, and what begins it.
	for _, way := range []struct {
		name   string
		goal   float64
		follow func(context.Context, *rivalProcess, *followed) (func(), error)
	}{
		{"subscriber of live, plain NATS", 10, followLive},
		{"durable consumer on FEED", 10, followFeed},
		{"Server-Sent Events, /v1/feeds/events", 10, followEvents},
		{"webhook, received", 100, followWebhook},
	} {
		f := &followed{name: way.name, goal: way.goal, at: map[string]time.Time{}, moved: make(chan struct{})}
		ended, err := way.follow(ctx, first, f)
		if err != nil {
			end()
			return nil, nil, fmt.Errorf("%s: %w", way.name, err)
		}
		ends, all = append(ends, ended), append(all, f)
	}
	return all, end, nil
}

func followLive(_ context.Context, first *rivalProcess, f *followed) (func(), error) {
	nc, err := nats.Connect(first.NATS)
	if err != nil {
		return nil, err
	}
	if _, err = nc.Subscribe("live.key.revoked.>", func(m *nats.Msg) { f.heard(m.Data) }); err == nil {
		err = nc.Flush()
	}
	return nc.Close, err
}

func followFeed(ctx context.Context, first *rivalProcess, f *followed) (func(), error) {
	nc, err := nats.Connect(first.NATS)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nc.Close, err
	}
	c, err := js.CreateConsumer(ctx, events.Feed, jetstream.ConsumerConfig{Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "feed.key.revoked.>"})
	if err != nil {
		return nc.Close, err
	}
	running, err := c.Consume(func(m jetstream.Msg) {
		f.heard(m.Data())
		if err := m.Ack(); err != nil {
			f.end(err)
		}
	})
	if err != nil {
		return nc.Close, err
	}
	return func() { running.Stop(); nc.Close() }, nil
}

func followEvents(ctx context.Context, first *rivalProcess, f *followed) (func(), error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+first.Address+"/v1/feeds/events?type=key.revoked", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+first.Root)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, errors.New(resp.Status)
	}
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, 1<<20)
	for in.Scan() && in.Text() != "event: reached" { // what there was is told
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for in.Scan() {
			data, ok := bytes.CutPrefix(in.Bytes(), []byte("data: "))
			if !ok {
				continue
			}
			var sent struct{ Event json.RawMessage }
			if err := json.Unmarshal(data, &sent); err != nil {
				f.end(err)
			} else if sent.Event != nil {
				f.heard(sent.Event)
			}
		}
		f.end(errors.Join(errors.New("the connection ended"), in.Err()))
	})
	return func() { resp.Body.Close(); reading.Wait() }, nil
}

// followWebhook registers a receiver that checks no signature: that is its own time.
func followWebhook(ctx context.Context, first *rivalProcess, f *followed) (func(), error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	receiver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			f.end(err)
			return
		}
		f.heard(body)
		w.WriteHeader(http.StatusNoContent)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = receiver.Serve(l) })
	end := func() { _ = receiver.Close(); serving.Wait() }
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+first.Address+"/v1/webhooks", bytes.NewReader(fmt.Appendf(nil, `{"url":"http://%s/","types":["key.revoked"]}`, l.Addr())))
	if err != nil {
		end()
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+first.Root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		end()
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		end()
		return nil, errors.New(resp.Status)
	}
	return end, nil
}
