package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// A bundle is written in frames. Each is a gzip member of its own that holds one
// member of the tar, so that frames can be unpacked side by side, and a download
// can go on where one ends. Its header has an extra field "KL" with the length and
// the SHA-256 of what is compressed, because a few bits of a deflate stream mean
// nothing and no checksum of gzip covers them. Any gzip and any tar read it.
const (
	frameHead  = 10 + 2 + 4 + 4 + sha256.Size
	frameLimit = memberBytes + memberBytes/1000 + 4096 // what does not compress grows a little
)

var frameStart = []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 4 + 4 + sha256.Size, 0, 'K', 'L', 4 + sha256.Size, 0}

// frame compresses content into a frame.
type framer struct {
	flate *flate.Writer
	buf   bytes.Buffer
}

func (f *framer) write(w io.Writer, parts ...[]byte) error {
	f.buf.Reset()
	if f.flate == nil {
		f.flate, _ = flate.NewWriter(&f.buf, flate.DefaultCompression)
	} else {
		f.flate.Reset(&f.buf)
	}
	crc, size := uint32(0), 0
	for _, p := range parts {
		if _, err := f.flate.Write(p); err != nil {
			return err
		}
		crc = crc32.Update(crc, crc32.IEEETable, p)
		size += len(p)
	}
	if err := f.flate.Close(); err != nil {
		return err
	}
	packed := f.buf.Bytes()
	sum := sha256.Sum256(packed)
	head := append(bytes.Clone(frameStart), make([]byte, 4)...)
	binary.LittleEndian.PutUint32(head[len(frameStart):], uint32(len(packed)))
	head = append(head, sum[:]...)
	tail := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, crc), uint32(size))
	for _, p := range [][]byte{head, packed, tail} {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// tarHead is the header of a member as a bundle has it.
func tarHead(name string, size int64, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: at, Format: tar.FormatUSTAR})
	return b.Bytes(), err
}

const block = 512

var zeros [2 * block]byte

func padding(size int) []byte { return zeros[:(block-size%block)%block] }

// entry is one member as it is read.
type entry struct {
	name string
	data []byte
	sum  [sha256.Size]byte
	err  error
}

// wrong is what is the matter with a bundle, as against with reading it.
type wrong struct{ reason string }

func (w *wrong) Error() string { return w.reason }

func wrongf(format string, args ...any) error { return &wrong{fmt.Sprintf(format, args...)} }

const truncated = "the archive is truncated: it ends in the middle"

// members hands on, in order, functions that unpack one member each. They may run
// side by side. An error of the reader itself is one that is not a [*wrong].
func members(r io.Reader, emit func(func() entry) bool) error {
	in := &measured{r: r}
	b := bufio.NewReaderSize(in, 1<<20)
	start, err := b.Peek(len(frameStart))
	if err != nil && err != io.EOF {
		return err
	}
	if len(start) < 2 || start[0] != 0x1f || start[1] != 0x8b {
		return wrongf("it is not a gzip archive, or an empty one")
	}
	// Nobody else's gzip has an extra field.
	if len(start) > 3 && start[3]&4 != 0 {
		return framed(b, emit)
	}
	return plain(b, in, emit)
}

type measured struct {
	r io.Reader
	n int64
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	return n, err
}

// framed reads a bundle as it was written.
func framed(b *bufio.Reader, emit func(func() entry) bool) error {
	for {
		head := make([]byte, frameHead)
		if n, err := io.ReadFull(b, head); n == 0 && err == io.EOF {
			return nil
		} else if errors.Is(err, io.ErrUnexpectedEOF) {
			return wrongf(truncated + ", or something follows its end")
		} else if err != nil {
			return err
		}
		if !bytes.Equal(head[:len(frameStart)], frameStart) {
			return wrongf("a gzip header is not as a bundle has it, or something follows the archive's end")
		}
		size := binary.LittleEndian.Uint32(head[len(frameStart):])
		if size > frameLimit {
			return wrongf("a compressed member is longer than %d bytes", frameLimit)
		}
		packed := make([]byte, size+8)
		if _, err := io.ReadFull(b, packed); err == io.EOF || err == io.ErrUnexpectedEOF {
			return wrongf(truncated)
		} else if err != nil {
			return err
		}
		if !emit(func() entry { return unframe(head, packed) }) {
			return nil
		}
	}
}

func unframe(head, packed []byte) (e entry) {
	body, tail := packed[:len(packed)-8], packed[len(packed)-8:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], head[len(frameStart)+4:]) {
		e.err = wrongf("a compressed member is not what its header says: a bit of the archive was changed")
		return e
	}
	size := binary.LittleEndian.Uint32(tail[4:])
	if size < block || size > memberBytes+4*block || int64(size) > unpacked*int64(len(packed)+1<<10) {
		e.err = wrongf("a member unpacks to %d bytes, which none does", size)
		return e
	}
	in := bytes.NewReader(body)
	raw := make([]byte, size)
	f := flate.NewReader(in)
	_, err := io.ReadFull(f, raw)
	if more, err2 := f.Read(make([]byte, 1)); err != nil || more > 0 || err2 != io.EOF || in.Len() > 0 ||
		crc32.ChecksumIEEE(raw) != binary.LittleEndian.Uint32(tail) {
		e.err = wrongf("a compressed member does not unpack to what its end says")
		return e
	}
	hdr, err := tar.NewReader(bytes.NewReader(raw)).Next()
	if err != nil {
		e.err = wrongf("the archive holds something that is no member of a tar")
		return e
	}
	if e.err = checkHeader(hdr); e.err != nil {
		return e
	}
	e.name = hdr.Name
	want, err := tarHead(hdr.Name, hdr.Size, hdr.ModTime)
	end := block + int(hdr.Size) + len(padding(int(hdr.Size)))
	last := 0 // the end of the tar is in the frame of its last member
	if e.name == sumsName {
		last = 2 * block
	}
	if err != nil || !bytes.Equal(raw[:block], want) || len(raw) != end+last || !zero(raw[block+int(hdr.Size):]) {
		e.err = wrongf("the member %.60q is not written as a bundle has it", hdr.Name)
		return e
	}
	e.data = raw[block : block+int(hdr.Size)]
	e.sum = sha256.Sum256(e.data)
	return e
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// checkHeader refuses what is no plain file with a plain name.
func checkHeader(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeReg {
		return wrongf("the member %.60q is no plain file: a bundle has no links, folders or devices", hdr.Name)
	}
	for name := range hdr.PAXRecords {
		if name != "mtime" && name != "atime" && name != "ctime" {
			return wrongf("the member %.60q has an extended header, which none has", hdr.Name)
		}
	}
	if hdr.Size < 0 || hdr.Size > memberBytes {
		return wrongf("the member %.60q is longer than %d bytes", hdr.Name, memberBytes)
	}
	return nil
}

// plain reads a bundle that somebody packed again, with the same members in the same
// order. What is proven is in the members.
func plain(b *bufio.Reader, in *measured, emit func(func() entry) bool) error {
	z, err := gzip.NewReader(b)
	if err != nil {
		return unpackError(err)
	}
	out := &measured{r: z}
	t := tar.NewReader(out)
	for {
		hdr, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return unpackError(err)
		}
		if err := checkHeader(hdr); err != nil {
			return err
		}
		data := make([]byte, hdr.Size)
		if _, err := io.ReadFull(t, data); err != nil {
			return unpackError(err)
		}
		if out.n > unpacked*(in.n+1<<20) {
			return wrongf("the archive unpacks to more than %d times its size, as no bundle does", unpacked)
		}
		if !emit(func() entry { return entry{name: hdr.Name, data: data, sum: sha256.Sum256(data)} }) {
			return nil
		}
	}
	rest, err := io.ReadAll(io.LimitReader(out, 64<<10))
	if err != nil {
		return unpackError(err)
	}
	if !zero(rest) || len(rest) == 64<<10 {
		return wrongf("something follows the end of the archive")
	}
	return nil
}

// unpackError tells a bad archive from a reader that failed.
func unpackError(err error) error {
	var corrupt flate.CorruptInputError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return wrongf(truncated)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.As(err, &corrupt):
		return wrongf("the archive is damaged: %v", err)
	}
	return err
}
