package merkle

import (
	"bytes"
	"context"
	"fmt"
	"sort"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
)

// Closing is the tree of the parts of a stream: how many events each scope had
// when the stream's tree was Of, signed. It holds all parts in memory.
type Closing struct {
	Stream      string
	Parts       []audit.Part // by scope id
	Of          audit.Tree
	Signed                     // checkpoint of the tree of parts
	Log         Signed         // checkpoint of the stream, of Of or a larger tree
	Consistency tlog.TreeProof // that Log contains Of; none where they are the same or Of is empty

	hashes memoryTree
}

// PartProof is that a part stands in the tree of parts.
type PartProof struct {
	Part   audit.Part
	Index  int64
	Hashes tlog.RecordProof
}

// Closing of a stream as it stands now, as far as the parts are counted. It waits
// for a checkpoint of the stream that holds so much.
func (l *Log) Parts(ctx context.Context, stream string) (*Closing, error) {
	if err := l.Doubt(); err != nil {
		return nil, err
	}
	c := &Closing{Stream: stream}
	rows, err := l.o.Pool.Query(ctx, `select scope, events, chain from keyledger.`+Parts{stream}.Table())
	if err != nil {
		return nil, err
	}
	var scope, chain []byte
	var count int64
	if _, err := pgx.ForEachRow(rows, []any{&scope, &count, &chain}, func() error {
		switch {
		case len(scope) == 0:
			c.Of.Size = count
		case len(scope) != len(audit.ScopeID{}) || len(chain) != tlog.HashSize:
			return fmt.Errorf("a row of %s is no part: scope %x, chain %x", Parts{stream}.Table(), scope, chain)
		default:
			c.Parts = append(c.Parts, audit.Part{Scope: audit.ScopeID(scope), Count: count, Chain: tlog.Hash(chain)})
		}
		return nil
	}); err != nil {
		return nil, err
	}
	audit.SortParts(c.Parts)
	if err := c.hashes.fill(c.Parts); err != nil {
		return nil, err
	}
	if c.Log, err = l.sealedSize(ctx, stream, c.Of.Size); err != nil {
		return nil, err
	}
	reader := l.HashReader(ctx, stream, c.Log.Tree)
	if c.Of.Root, err = tlog.TreeHash(c.Of.Size, reader); err != nil {
		return nil, fmt.Errorf("the tree over %s at %d of %d: %w", stream, c.Of.Size, c.Log.Size, altered(err))
	}
	if c.Of.Size > 0 && c.Of.Size < c.Log.Size {
		if c.Consistency, err = tlog.ProveTree(c.Log.Size, c.Of.Size, reader); err == nil {
			err = tlog.CheckTree(c.Consistency, c.Log.Size, c.Log.Root, c.Of.Size, c.Of.Root)
		}
		if err != nil {
			return nil, fmt.Errorf("the tree over %s at %d of %d: %w", stream, c.Of.Size, c.Log.Size, altered(err))
		}
	}
	if err := l.Doubt(); err != nil {
		return nil, err
	}
	signer := l.signing()
	c.Checkpoint = audit.Checkpoint{Origin: audit.PartsOrigin(signer.Name(), stream), Of: &c.Of}
	c.Size = int64(len(c.Parts))
	if c.Root, err = tlog.TreeHash(c.Size, &c.hashes); err != nil {
		return nil, err
	}
	c.Note, err = audit.Sign(c.Checkpoint, signer)
	return c, err
}

// sealedSize waits for a checkpoint of a size or more.
func (l *Log) sealedSize(ctx context.Context, stream string, size int64) (Signed, error) {
	for {
		l.mu.Lock()
		s, moved := l.shown[stream], l.moved
		e := s.entry
		l.mu.Unlock()
		if e != nil && e.Size >= size {
			return e.Signed, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return Signed{}, fmt.Errorf("%s with %d events: %w", stream, size, ErrNotSealed)
		}
	}
}

// Prove answers the part of a scope with its proof or, where there is none, the one
// or two neighbours between which it would stand.
func (c *Closing) Prove(s audit.Scope) (found *PartProof, between []PartProof, err error) {
	id := s.ID()
	i := sort.Search(len(c.Parts), func(i int) bool { return bytes.Compare(c.Parts[i].Scope[:], id[:]) >= 0 })
	if i < len(c.Parts) && c.Parts[i].Scope == id {
		p, err := c.prove(i)
		return &p, nil, err
	}
	for _, n := range []int{i - 1, i} {
		if n < 0 || n >= len(c.Parts) {
			continue
		}
		p, err := c.prove(n)
		if err != nil {
			return nil, nil, err
		}
		between = append(between, p)
	}
	return nil, between, nil
}

func (c *Closing) prove(i int) (p PartProof, err error) {
	p.Part, p.Index = c.Parts[i], int64(i)
	p.Hashes, err = tlog.ProveRecord(c.Size, p.Index, &c.hashes)
	return p, err
}

// memoryTree holds the hashes of a tree, by tlog's index.
type memoryTree struct{ hashes []tlog.Hash }

func (m *memoryTree) fill(parts []audit.Part) error {
	m.hashes = make([]tlog.Hash, 0, tlog.StoredHashCount(int64(len(parts))))
	for i := range parts {
		// Every second leaf completes nothing: no need to ask for what it would hash.
		h := parts[i].Hash()
		if i%2 == 0 {
			m.hashes = append(m.hashes, h)
			continue
		}
		more, err := tlog.StoredHashesForRecordHash(int64(i), h, m)
		if err != nil {
			return err
		}
		m.hashes = append(m.hashes, more...)
	}
	return nil
}

// ReadHashes makes it a tlog.HashReader.
func (m *memoryTree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("no hash %d of %d", index, len(m.hashes))
		}
		list[i] = m.hashes[index]
	}
	return list, nil
}
