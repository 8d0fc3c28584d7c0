package backup

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
)

// Keys that [File.Restore] adds to the metadata of LEDGER.
const (
	MetaBackup   = "keyledger.backup"   // when the backup began that it was restored from
	MetaRestored = "keyledger.restored" // when
)

// Try restores a backup into an empty server of its own beside a directory, opens it
// there as the service does and compares all that can be read with the manifest.
// inside, which may be nil, gets that server before it ends.
func (b *File) Try(ctx context.Context, beside string, log *slog.Logger, progress func(done, total int64), inside func(*nats.Conn) error) error {
	t, err := startTrial(beside, log)
	if err != nil {
		return err
	}
	defer t.close()
	if err := b.restore(ctx, t.conn, 1, nil, nil, progress); err != nil {
		return damaged("%v", err)
	}
	if err := t.open(ctx); err != nil {
		return damaged("%v", err)
	}
	if inside == nil {
		return nil
	}
	return inside(t.conn)
}

// RestoreOptions of [File.Restore].
type RestoreOptions struct {
	Replicas int               // of each stream
	Buckets  bool              // data keys and the key of the audit log too
	Label    map[string]string // added to the metadata of LEDGER
	Progress func(done, total int64)
}

// Restore makes the streams on a server that has none of them, reads each to its end
// and compares it with the manifest. LEDGER is the last: a restore that was cut off
// leaves streams that the service refuses.
func (b *File) Restore(ctx context.Context, nc *nats.Conn, o RestoreOptions) error {
	skip := func(s *Stream) bool { return !o.Buckets && strings.HasPrefix(s.Name, buckets) }
	return b.restore(ctx, nc, o.Replicas, o.Label, skip, o.Progress)
}

func (b *File) restore(ctx context.Context, nc *nats.Conn, replicas int, label map[string]string, skip func(*Stream) bool, progress func(done, total int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var done, total int64
	for _, s := range b.Manifest.Streams {
		total += int64(s.Messages)
	}
	for i := range b.Manifest.Streams {
		s := &b.Manifest.Streams[i]
		if skip != nil && skip(s) {
			continue
		}
		if err := b.restoreOne(ctx, nc, s, replicas, label); err != nil {
			return fmt.Errorf("restore stream %s: %w", s.Name, err)
		}
		read, err := readThrough(ctx, nc, s.Name, func(n int64) { progress(done+n, total) })
		if err != nil {
			return fmt.Errorf("read the restored stream %s: %w", s.Name, err)
		}
		if err := s.differs(read); err != nil {
			return err
		}
		if err := rewind(ctx, nc, s); err != nil {
			return err
		}
		done += int64(s.Messages)
	}
	progress(total, total)
	return nil
}

func (b *File) restoreOne(ctx context.Context, nc *nats.Conn, s *Stream, replicas int, label map[string]string) error {
	r, err := b.open(s.Member)
	if err != nil {
		return err
	}
	defer r.Close()
	if s.Name != "LEDGER" {
		label = nil
	}
	return restoreStream(ctx, nc, s, r, max(replicas, 1), label)
}

// rewind sets back the durable consumers that were further than the copy of their
// stream: it went on while it was copied. Without it they would skip what comes next.
func rewind(ctx context.Context, nc *nats.Conn, s *Stream) error {
	type state struct {
		Name      string `json:"name"`
		Delivered struct {
			Stream uint64 `json:"stream_seq"`
		} `json:"delivered"`
	}
	var all []state
	for {
		var page struct {
			Total     int     `json:"total"`
			Consumers []state `json:"consumers"`
		}
		if err := call(ctx, nc, "CONSUMER.LIST."+s.Name, map[string]int{"offset": len(all)}, &page); err != nil {
			return fmt.Errorf("list the consumers of %s: %w", s.Name, err)
		}
		all = append(all, page.Consumers...)
		if len(page.Consumers) == 0 || len(all) >= page.Total {
			break
		}
	}
	for _, c := range all {
		if c.Delivered.Stream > s.Last {
			if err := call(ctx, nc, "CONSUMER.RESET."+s.Name+"."+c.Name, map[string]uint64{"seq": s.Last + 1}, nil); err != nil {
				return fmt.Errorf("set consumer %s of %s back to sequence %d: %w", c.Name, s.Name, s.Last+1, err)
			}
		}
	}
	return nil
}

// Remove deletes the streams that are in the way of a restore.
func Remove(ctx context.Context, nc *nats.Conn) error {
	names, err := Names(ctx, nc)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := call(ctx, nc, "STREAM.DELETE."+n, nil, nil); err != nil {
			return fmt.Errorf("delete stream %s: %w", n, err)
		}
	}
	return nil
}
