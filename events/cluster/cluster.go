// Package cluster asks JetStream what may have to be asked again: a server that starts,
// and a cluster that chooses who leads a stream, refuse questions or leave them
// unanswered, and several processes that start at once make the same bucket.
//
// Only questions that may be answered twice belong here: reading, making what is
// missing, writing with an expected revision.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// AskTime is how long one question waits for its answer.
const AskTime = 5 * time.Second

// startTime is how long a cluster may take to choose who leads a bucket.
const startTime = time.Minute

// Ask asks until there is an answer, or an error that another try would not change.
// When ctx ends first the error is the last one with that of ctx.
func Ask(ctx context.Context, question func(context.Context) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		once, cancel := context.WithTimeout(ctx, AskTime)
		err := question(once)
		cancel()
		if err == nil || !transient(err) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// ErrNotYet is of what somebody was told to be there and does not show yet: a stream
// whose making was proposed by another process. [Ask] asks again.
var ErrNotYet = errors.New("it was made this moment, and does not show yet")

func transient(err error) bool {
	if errors.Is(err, ErrNotYet) {
		return true
	}
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		// Such as no suitable peers, no leader, not yet available.
		return e.Code == 503 || e.ErrorCode == 10005
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting)
}

// AskToStart is [Ask] for at most a minute, of what a process needs to start.
func AskToStart(ctx context.Context, question func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	return Ask(ctx, question)
}

// OpenBucket opens a bucket of keys and values, and makes it where there is none. One
// that is there is left as it is.
func OpenBucket(ctx context.Context, js jetstream.JetStream, c jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	return OpenBucketMadeBy(ctx, js, c.Bucket, func(ctx context.Context) error {
		_, err := js.CreateKeyValue(ctx, c)
		return err
	})
}

// OpenBucketMadeBy is [OpenBucket] with what makes the bucket's stream.
func OpenBucketMadeBy(ctx context.Context, js jetstream.JetStream, bucket string, create func(context.Context) error) (jetstream.KeyValue, error) {
	var kv jetstream.KeyValue
	err := AskToStart(ctx, func(ctx context.Context) (err error) {
		if kv, err = js.KeyValue(ctx, bucket); !errors.Is(err, jetstream.ErrBucketNotFound) {
			return err
		}
		// Another process may be faster.
		if err := create(ctx); err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return err
		}
		if kv, err = js.KeyValue(ctx, bucket); errors.Is(err, jetstream.ErrBucketNotFound) {
			err = ErrNotYet
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", bucket, err)
	}
	return kv, nil
}

// Conflict says whether a write was refused because somebody else's came before it.
func Conflict(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Get reads a value from the bucket's leader, which has every value that was
// acknowledged, where a [jetstream.KeyValue] may be answered by a replica that is
// behind. nil: there is none, or no bucket; where one was deleted, revision is of that.
func Get(ctx context.Context, nc *nats.Conn, bucket, key string) (value []byte, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, AskTime)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("read %s in the bucket %s: %w", key, bucket, err)
		}
	}()
	m, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET.KV_"+bucket, fmt.Appendf(nil, `{"last_by_subj":"$KV.%s.%s"}`, bucket, key))
	if err != nil {
		return nil, 0, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Sequence uint64 `json:"seq"`
			Header   []byte `json:"hdrs"`
			Data     []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, 0, err
	}
	if e := answer.Error; e != nil {
		if e.ErrorCode == jetstream.JSErrCodeMessageNotFound || e.ErrorCode == jetstream.JSErrCodeStreamNotFound {
			return nil, 0, nil
		}
		return nil, 0, e
	}
	if len(answer.Message.Header) > 0 {
		h, err := nats.DecodeHeadersMsg(answer.Message.Header)
		if err != nil {
			return nil, 0, err
		}
		if h.Get("KV-Operation") != "" || h.Get(jetstream.MarkerReasonHeader) != "" { // it was deleted, or its time is over
			return nil, answer.Message.Sequence, nil
		}
	}
	return answer.Message.Data, answer.Message.Sequence, nil
}
