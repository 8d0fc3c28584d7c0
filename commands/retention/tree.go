package retention

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier is the right edge of a tree by RFC 6962: the roots of the complete
// subtrees that it consists of, largest first. Leaves can be added to it without
// those that are in it.
type frontier struct {
	size  uint64
	roots []tlog.Hash
}

func (f *frontier) add(leaf tlog.Hash) {
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.roots) - 1
		leaf = tlog.NodeHash(f.roots[last], leaf)
		f.roots = f.roots[:last]
	}
	f.roots = append(f.roots, leaf)
	f.size++
}

func (f *frontier) root() tlog.Hash {
	if len(f.roots) == 0 {
		return sha256.Sum256(nil)
	}
	h := f.roots[len(f.roots)-1]
	for i := len(f.roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.roots[i], h)
	}
	return h
}

func (f *frontier) clone() frontier {
	return frontier{f.size, append([]tlog.Hash(nil), f.roots...)}
}

func text(h tlog.Hash) string { return base64.StdEncoding.EncodeToString(h[:]) }

func (f *frontier) texts() []string {
	list := make([]string, len(f.roots))
	for i, h := range f.roots {
		list[i] = text(h)
	}
	return list
}

// readFrontier is what a usage.pruned says, checked against its own root.
func readFrontier(size uint64, root string, texts []string) (f frontier, err error) {
	f.size = size
	for _, s := range texts {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != tlog.HashSize {
			return f, fmt.Errorf("%q is not a hash", s)
		}
		f.roots = append(f.roots, tlog.Hash(b))
	}
	if len(f.roots) != bits.OnesCount64(size) || text(f.root()) != root {
		return f, fmt.Errorf("a tree of %d leaves with %d subtrees does not have the root %s", size, len(f.roots), root)
	}
	return f, nil
}
