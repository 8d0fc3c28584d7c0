package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Frontier is the right edge of a tree by RFC 6962: the roots of the complete
// subtrees that it consists of, largest first. Leaves can be added to it without
// those that are in it, and it has the root at each size that it goes through. The
// zero value is the empty tree.
type Frontier struct {
	size  int64
	roots []tlog.Hash
}

// Add appends a leaf.
func (f *Frontier) Add(leaf tlog.Hash) {
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.roots) - 1
		leaf = tlog.NodeHash(f.roots[last], leaf)
		f.roots = f.roots[:last]
	}
	f.roots = append(f.roots, leaf)
	f.size++
}

// Size is how many leaves the tree has.
func (f *Frontier) Size() int64 { return f.size }

// Root is the tree's root.
func (f *Frontier) Root() tlog.Hash {
	if len(f.roots) == 0 {
		return sha256.Sum256(nil)
	}
	h := f.roots[len(f.roots)-1]
	for i := len(f.roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.roots[i], h)
	}
	return h
}

// Clone is a copy that goes its own way.
func (f *Frontier) Clone() Frontier { return Frontier{f.size, slices.Clone(f.roots)} }

// Texts are the roots of the subtrees in base64, as usage.pruned names them.
func (f *Frontier) Texts() []string {
	list := make([]string, len(f.roots))
	for i, h := range f.roots {
		list[i] = h.String()
	}
	return list
}

// ParseFrontier is what a usage.pruned says, checked against its own root.
func ParseFrontier(size uint64, root string, texts []string) (f Frontier, err error) {
	f.size = int64(size)
	for _, s := range texts {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != tlog.HashSize {
			return f, fmt.Errorf("%q is not a hash", s)
		}
		f.roots = append(f.roots, tlog.Hash(b))
	}
	if f.size < 0 || len(f.roots) != bits.OnesCount64(size) || f.Root().String() != root {
		return f, fmt.Errorf("a tree of %d leaves with %d subtrees does not have the root %s", size, len(f.roots), root)
	}
	return f, nil
}
