package merkle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bucket is the NATS KV bucket of the log: its keys, wrapped by the master key, and
// the newest checkpoint of each stream.
const Bucket = "keyledger_log"

// kept is how many values of each place the bucket keeps: what was signed lately
// can be looked at with `nats kv history`.
const kept = 64

// bucketWait is how long a cluster may take to choose who leads the bucket.
const bucketWait = time.Minute

func openBucket(ctx context.Context, js jetstream.JetStream, replicas int) (jetstream.KeyValue, error) {
	for until := time.Now().Add(bucketWait); ; {
		kv, err := js.KeyValue(ctx, Bucket)
		if errors.Is(err, jetstream.ErrBucketNotFound) {
			kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
				Bucket:      Bucket,
				Description: "keys of the audit log, wrapped by the master key, and its newest checkpoints",
				History:     kept,
				Storage:     jetstream.FileStorage,
				Replicas:    replicas,
			})
			if errors.Is(err, jetstream.ErrBucketExists) { // another process was faster
				kv, err = js.KeyValue(ctx, Bucket)
			}
		}
		if !unanswered(err) || ctx.Err() != nil || time.Now().After(until) {
			if err != nil {
				return nil, fmt.Errorf("open the bucket %s: %w", Bucket, err)
			}
			return kv, nil
		}
	}
}

// unanswered is of a question that may be asked again: a cluster that chooses a leader
// answers nobody.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders)
}

// get reads a value from the bucket's leader, which has every value that was
// acknowledged; nil where there is none, or no bucket.
func (l *Log) get(ctx context.Context, place string) (value []byte, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m, err := l.o.JetStream.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET.KV_"+Bucket, fmt.Appendf(nil, `{"last_by_subj":"$KV.%s.%s"}`, Bucket, place))
	if err != nil {
		return nil, 0, fmt.Errorf("read %s in the bucket %s: %w", place, Bucket, err)
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
		return nil, 0, fmt.Errorf("read %s in the bucket %s: %w", place, Bucket, err)
	}
	if e := answer.Error; e != nil {
		if e.ErrorCode == jetstream.JSErrCodeMessageNotFound || e.ErrorCode == jetstream.JSErrCodeStreamNotFound {
			return nil, 0, nil
		}
		return nil, 0, fmt.Errorf("read %s in the bucket %s: %w", place, Bucket, e)
	}
	if len(answer.Message.Header) > 0 {
		h, err := nats.DecodeHeadersMsg(answer.Message.Header)
		if err != nil {
			return nil, 0, fmt.Errorf("read %s in the bucket %s: %w", place, Bucket, err)
		}
		if h.Get("KV-Operation") != "" { // it was deleted
			return nil, answer.Message.Sequence, nil
		}
	}
	return answer.Message.Data, answer.Message.Sequence, nil
}

// isTaken tells a lost race: 10071, or 10164 from a replicated bucket.
func isTaken(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return errors.Is(err, jetstream.ErrKeyExists) || ok && (api.ErrorCode == 10071 || api.ErrorCode == 10164)
}
