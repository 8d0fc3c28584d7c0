package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyledger/keyledger/internal/bench"
)

const (
	revokeVerifiers = 3    // processes, one of which takes the commands
	revokeLoad      = 5000 // verifications a second, all verifiers together
	revokeRate      = 20   // revocations a second
	revokePoll      = 250 * time.Microsecond
)

// revoke measures how long after the answer of a revocation another verifier
// still accepts the key, while all of them are at work.
func (b *benchRun) revoke(ctx context.Context) error {
	b.keys += b.revocations
	first, err := b.start(ctx, contender{Name: "verify", Keys: b.keys, Listen: true, Feed: true}, -1)
	b.keys -= b.revocations
	if err != nil {
		return err
	}
	nodes := []*rivalProcess{first}
	for range revokeVerifiers - 1 {
		r, err := b.start(ctx, contender{Name: "verify", NATS: first.NATS, Master: first.Master}, -1)
		if err != nil {
			return err
		}
		r.Root = first.Root
		nodes = append(nodes, r)
	}
	doomed, ids := first.Secrets[b.keys:], first.IDs[b.keys:]
	working, rest := context.WithCancel(ctx)
	defer rest()
	load, _ := errgroup.WithContext(working)
	counts := make([]int64, len(nodes))
	each := max(b.connections/len(nodes), 1)
	for i, r := range nodes {
		load.Go(func() error {
			var requests [][]byte
			for _, s := range first.Secrets[:b.keys] {
				requests = append(requests, r.request(s))
			}
			l := bench.Load{Address: r.Address, Connections: each, Requests: requests, Begin: `{"valid":true`}
			res, err := l.Run(working, time.Hour, time.Second*time.Duration(each*len(nodes))/revokeLoad)
			if err != nil {
				return err
			}
			if res.Wrong > 0 {
				return fmt.Errorf("%d answers are not as expected, such as %s", res.Wrong, clean(res.Example))
			}
			counts[i] = res.Answered
			return nil
		})
	}
	told, end, err := followAll(working, first)
	if err != nil {
		return err
	}
	defer end()
	began := time.Now()
	progress := b.progress("revoke")
	var late []time.Duration
	var polled int64
	sent := map[string]time.Time{}
	lasts := make(map[string][]time.Duration, len(doomed))
	pace := time.NewTicker(time.Second / revokeRate)
	defer pace.Stop()
	for i, secret := range doomed {
		<-pace.C
		at, waited, last, accepted, err := revokeOnce(ctx, nodes, secret, ids[i])
		if err != nil {
			progress.end(false)
			return err
		}
		sent[ids[i]], lasts[ids[i]] = at, last
		late, polled = append(late, waited...), polled+accepted
		progress.set(int64(i+1), int64(len(doomed)))
	}
	took := time.Since(began)
	for _, f := range told {
		if err := f.whole(ctx, len(sent)); err != nil {
			progress.end(false)
			return err
		}
	}
	rest()
	if err := load.Wait(); err != nil {
		progress.end(false)
		return err
	}
	progress.end(true)
	answered := polled
	for _, n := range counts {
		answered += n
	}
	reported, err := first.reported(nodes[1:], lasts)
	if err != nil {
		return err
	}
	var t tally
	for _, r := range slices.Backward(nodes) { // the first counts, when the others have written
		if t, err = r.ask("check", 10*time.Minute); err != nil {
			return err
		}
	}
	if t.Recorded != answered || t.Gaps != 0 {
		return fmt.Errorf("revoke: %d requests were admitted, but %d uses are recorded and %d declared as lost", answered, t.Recorded, t.Gaps)
	}
	slices.Sort(late)
	p99 := milliseconds(late[(len(late)*99-1)/100])
	b.report.Rows = append(b.report.Rows, benchRow{
		Name:      fmt.Sprintf("revoke answered → refused by %d others", len(nodes)-1),
		PerSecond: float64(answered) / took.Seconds(),
		P50:       milliseconds(late[(len(late)-1)/2]), P99: p99, Goal: "p99 ≤ 5 ms", Reached: p99 <= 5,
		Answered: answered, Recorded: t.Recorded,
	})
	p99 = milliseconds(reported[(len(reported)*99-1)/100])
	b.report.Rows = append(b.report.Rows, benchRow{
		Name:      "the same, as keyledger reports it",
		PerSecond: float64(answered) / took.Seconds(), // verifications meanwhile
		P50:       milliseconds(reported[(len(reported)-1)/2]), P99: p99, Goal: "p99 ≤ 5 ms", Reached: p99 <= 5,
	})
	for _, f := range told {
		row := f.row(sent)
		row.PerSecond = float64(answered) / took.Seconds() // verifications meanwhile
		b.report.Rows = append(b.report.Rows, row)
	}
	b.stop()
	return nil
}

// reported are the delays that the service says the others had, sorted. It fails where
// one of them is not told, or is shorter than what was seen from outside: lasts has by
// key when the last request that each of the others admitted was sent, after the
// revocation was answered.
func (r *rivalProcess) reported(others []*rivalProcess, lasts map[string][]time.Duration) (delays []time.Duration, err error) {
	t, err := r.ask("measured", time.Minute)
	if err != nil {
		return nil, err
	}
	for id, last := range lasts {
		for i, other := range others {
			us, ok := t.Measured[id][other.Node]
			delay := time.Duration(us) * time.Microsecond
			switch {
			case !ok:
				return nil, fmt.Errorf("revoke: nobody says when %s stopped accepting %s", other.Node, id)
			case last[i] > delay:
				return nil, fmt.Errorf("revoke: a request that was sent to %s %s after the answer was admitted, which says that it refused after %s", other.Node, last[i], delay)
			}
			delays = append(delays, delay)
		}
	}
	slices.Sort(delays)
	return delays, nil
}

// revokeOnce revokes a key at the first node, and says when that was asked for, how
// long after the answer each of the others took until it was sent a request that it
// refused, when the last was that it admitted, and how many requests of the key were
// admitted.
func revokeOnce(ctx context.Context, nodes []*rivalProcess, secret, id string) (asked time.Time, late, last []time.Duration, accepted int64, err error) {
	type outcome struct {
		refused  time.Time // the request was sent
		admitted time.Time // the last one was sent
		accepted int64
	}
	outcomes := make([]outcome, len(nodes)-1)
	polling, ctx := errgroup.WithContext(ctx)
	for i, r := range nodes[1:] {
		c, err := bench.Open(ctx, r.Address, `{"valid":true`)
		if err != nil {
			return asked, nil, nil, 0, err
		}
		defer c.Close()
		request := r.request(secret)
		polling.Go(func() error {
			for ctx.Err() == nil {
				sent := time.Now()
				ok, err := c.Ask(request)
				if err != nil {
					return err
				}
				if !ok {
					outcomes[i].refused = sent
					return nil
				}
				outcomes[i].admitted = sent
				if outcomes[i].accepted++; time.Since(sent) < revokePoll {
					time.Sleep(revokePoll - time.Since(sent))
				}
			}
			return ctx.Err()
		})
	}
	c, err := bench.Open(ctx, nodes[0].Address, "")
	if err != nil {
		return asked, nil, nil, 0, err
	}
	defer c.Close()
	own, err := bench.Open(ctx, nodes[0].Address, `{"valid":true`)
	if err != nil {
		return asked, nil, nil, 0, err
	}
	defer own.Close()
	time.Sleep(5 * time.Millisecond) // the others are at it
	request := bench.Request("POST", nodes[0].Address, "/v1/keys/"+id+"/revoke", []byte(`{"reason":"bench"}`), "Authorization", "Bearer "+nodes[0].Root)
	asked = time.Now()
	ok, err := c.Ask(request)
	if err == nil && !ok {
		err = errors.New("a revocation was not answered with 200: " + clean(c.Example()))
	}
	answered := time.Now()
	if err != nil {
		return asked, nil, nil, 0, err
	}
	if ok, err = own.Ask(nodes[0].request(secret)); err == nil && ok {
		err = errors.New("the node that answered the revocation still accepts the key")
	}
	if err != nil {
		return asked, nil, nil, 0, err
	}
	if err := polling.Wait(); err != nil {
		return asked, nil, nil, 0, err
	}
	for _, o := range outcomes {
		late, accepted = append(late, max(o.refused.Sub(answered), 0)), accepted+o.accepted
		last = append(last, o.admitted.Sub(answered))
	}
	return asked, late, last, accepted, nil
}
