package bundle

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"
)

// Member is a file of a bundle.
type Member struct {
	Name string
	Data []byte
}

// Repack writes members as a bundle, whatever they are.
func Repack(members []Member) []byte {
	var b bytes.Buffer
	var f framer
	for i, m := range members {
		head, err := tarHead(m.Name, int64(len(m.Data)), time.Unix(0, 0))
		if err != nil {
			panic(err)
		}
		end := zeros[:0]
		if i == len(members)-1 {
			end = zeros[:]
		}
		if err := f.write(&b, head, m.Data, padding(len(m.Data)), end); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// Sums are the lines of SHA256SUMS.
func Sums(members []Member) (b []byte) {
	for _, m := range members {
		if m.Name != sumsName {
			b = fmt.Appendf(b, "%x  %s\n", sha256.Sum256(m.Data), m.Name)
		}
	}
	return b
}
