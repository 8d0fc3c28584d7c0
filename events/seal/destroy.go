package seal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Destroy destroys data keys as of a moment: nothing sealed with them can be
// opened again, by anybody. An id without a data key is none that could fail; it
// is closed all the same: what happened before the moment and is sealed later, by
// a process that had to wait for NATS, is sealed with a key that nobody keeps.
// What happens later is sealed with a new key. It may be repeated.
//
// The wrapped key is overwritten in the bucket's files, where the bucket lets
// messages be deleted, as those made by this package do.
func (k *Keys) Destroy(ctx context.Context, at time.Time, ids ...string) error {
	stream, err := k.js.Stream(ctx, streamName)
	if err != nil {
		return fmt.Errorf("open the bucket %s: %w", Bucket, err)
	}
	for _, id := range ids {
		if err := k.destroy(ctx, stream, id, at); err != nil {
			return fmt.Errorf("destroy the data key %s: %w", id, err)
		}
	}
	return nil
}

func (k *Keys) destroy(ctx context.Context, stream jetstream.Stream, id string, at time.Time) error {
	for try := range attempts {
		if try > 0 && !settle(ctx, try) {
			return ctx.Err()
		}
		mark := stored{Again: true, ErasedAt: at.UnixMilli()}
		var revision uint64
		e, err := k.kv.Get(ctx, id)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound): // never used, or its mark is no value
			revision, err = k.kv.Create(ctx, id, mark.value())
		case err != nil:
			return err
		default:
			found, bad := k.unwrap(id, e.Value(), e.Revision())
			if bad == nil {
				mark.ErasedAt = max(mark.ErasedAt, found.erased.UnixMilli())
			}
			last := e.Revision()
			// Nothing stands on the subject for a moment. A key that somebody makes
			// in it is found by the next attempt, and destroyed too.
			if err := stream.SecureDeleteMsg(ctx, last); err == nil {
				last = 0
			} else if !undeletable(err) {
				return err
			}
			revision, err = k.kv.Update(ctx, id, mark.value(), last)
		}
		if err == nil {
			k.forget(id, revision)
			return nil
		}
		if !cluster.Conflict(err) {
			return err
		}
	}
	return fmt.Errorf("somebody else writes it again and again: try again")
}

// undeletable is for a bucket that was made without leave to delete messages, for
// a user without it, and for a message that is gone already.
func undeletable(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.Code < 500
}

// Held are the ids of the data keys that exist, sorted, of those that match:
// empty fields match all, Owner [events.None] those of no owner. Months are
// yyyy-mm, From and Through inclusive.
type Held struct{ Keyspace, Owner, From, Through string }

// Held lists data keys that are not destroyed.
func (k *Keys) Held(ctx context.Context, f Held) (ids []string, err error) {
	orAny := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	watch, err := k.kv.Watch(ctx, orAny(f.Keyspace)+"."+orAny(f.Owner)+".*", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("list the data keys: %w", err)
	}
	defer func() { _ = watch.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list the data keys: %w", ctx.Err())
		case e, ok := <-watch.Updates():
			if !ok {
				return nil, errors.New("list the data keys: the connection was lost")
			}
			if e == nil { // the end of what is there
				slices.Sort(ids)
				return ids, nil
			}
			month := Month(e.Key())
			if destroyed(e) || f.From != "" && month < f.From || f.Through != "" && month > f.Through {
				continue
			}
			ids = append(ids, e.Key())
		}
	}
}

// IsDestroyed says whether an id was destroyed as of a moment or later. A key that
// was made for later uses changes nothing in that.
func (k *Keys) IsDestroyed(ctx context.Context, id string, at time.Time) (bool, error) {
	e, err := k.kv.Get(ctx, id)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the data key %s: %w", id, err)
	}
	key, err := k.unwrap(id, e.Value(), e.Revision())
	if err != nil {
		return false, err
	}
	return key.lost != nil && key.erased.UnixMilli() >= at.UnixMilli(), nil
}

// ParseID reads what [KeyID] wrote; the owner is empty where there is none.
func ParseID(id string) (keyspace, owner, month string, ok bool) {
	parts := strings.Split(id, ".")
	if len(parts) != 3 {
		return "", "", "", false
	}
	if parts[1] == events.None {
		parts[1] = ""
	}
	return parts[0], parts[1], parts[2], true
}

// Month is that of a data key's id, yyyy-mm.
func Month(id string) string { return id[strings.LastIndexByte(id, '.')+1:] }

// Note writes a mark into the bucket, beside the data keys: something that concerns
// them is done.
func (k *Keys) Note(ctx context.Context, what string) error {
	if _, err := k.kv.Put(ctx, notePlace(what), []byte("{}")); err != nil {
		return fmt.Errorf("note in the bucket %s that %s: %w", Bucket, what, err)
	}
	return nil
}

// Noted says whether a mark was written.
func (k *Keys) Noted(ctx context.Context, what string) (bool, error) {
	_, err := k.kv.Get(ctx, notePlace(what))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read from the bucket %s whether %s: %w", Bucket, what, err)
	}
	return true, nil
}

// Remember keeps in the bucket, sealed under the master key, what a process has
// worked out of a stream, so that the next one need not read all of it again. What
// was kept before under that name is replaced.
func (k *Keys) Remember(ctx context.Context, what string, plain []byte) error {
	if _, err := k.kv.Put(ctx, notePlace(what), sealBytes(k.master, plain, notePlace(what))); err != nil {
		return fmt.Errorf("keep %s in the bucket %s: %w", what, Bucket, err)
	}
	return nil
}

// Remembered is what was kept last, or nil. It may be older than what was kept last
// in truth, and the stream may be another one since: the reader MUST look whether it
// fits. It fails with [ErrTampered] where somebody else wrote it.
func (k *Keys) Remembered(ctx context.Context, what string) ([]byte, error) {
	e, err := k.kv.Get(ctx, notePlace(what))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s from the bucket %s: %w", what, Bucket, err)
	}
	return unseal(k.master, e.Value(), notePlace(what))
}

// notePlace has one dot, so that it is no data key's.
func notePlace(what string) string { return "note." + strings.ReplaceAll(what, " ", "-") }
