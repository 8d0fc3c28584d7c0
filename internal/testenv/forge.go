package testenv

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/highwayhash"
)

// FlipBit flips a bit in the middle of a stored message, in the directory of a server
// that is stopped.
func FlipBit(t testing.TB, dir, stream string, sequence uint64) {
	t.Helper()
	rewrite(t, dir, stream, sequence, false, func(body []byte) { body[len(body)/2] ^= 4 })
}

// Forge replaces the last old in a stored message by new, of the same length, and the
// server's checksum with it: what somebody can do who has read nats-server's source.
func Forge(t testing.TB, dir, stream string, sequence uint64, old, new string) {
	t.Helper()
	rewrite(t, dir, stream, sequence, true, func(body []byte) {
		i := bytes.LastIndex(body, []byte(old))
		if i < 0 || len(old) != len(new) {
			t.Fatalf("%q cannot take the place of %q in %s", new, old, body)
		}
		copy(body[i:], new)
	})
}

// rewrite changes headers and body of a stored message. A record of nats-server is length
// (4 bytes, the highest bit for headers), sequence (8), time (8), length of the subject
// (2), subject, length of the headers (4, where there are any), headers, body, and a
// checksum (8) of all but the three lengths, keyed with the names of stream and file.
func rewrite(t testing.TB, dir, stream string, sequence uint64, checksum bool, change func([]byte)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", stream, "msgs", "*.blk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no data files of %s in %s: %v", stream, dir, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%s", stream, strings.TrimSuffix(filepath.Base(file), ".blk")))
		for at := 0; at < len(data); {
			length := binary.LittleEndian.Uint32(data[at:])
			record := data[at : at+int(length&^(1<<31))]
			at += len(record)
			if binary.LittleEndian.Uint64(record[4:]) != sequence {
				continue
			}
			subject := 22 + int(binary.LittleEndian.Uint16(record[20:]))
			rest := subject
			if length&(1<<31) != 0 {
				rest += 4
			}
			sum := func() []byte {
				h, err := highwayhash.NewDigest64(key[:])
				if err != nil {
					t.Fatal(err)
				}
				for _, part := range [][]byte{record[4:20], record[22:subject], record[rest : len(record)-8]} {
					_, _ = h.Write(part)
				}
				return h.Sum(nil)
			}
			if !bytes.Equal(record[len(record)-8:], sum()) {
				t.Fatal("nats-server computes its checksums otherwise than is known here")
			}
			change(record[rest : len(record)-8])
			if checksum {
				copy(record[len(record)-8:], sum())
			}
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s in %s has no message %d", stream, dir, sequence)
}
