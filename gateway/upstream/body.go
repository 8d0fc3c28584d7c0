package upstream

import (
	"bytes"
	"io"
)

// body is where the reading of a body has got to.
type body struct {
	left    int64 // of the body, or of the chunk; or untilClose
	chunks  chunks
	trailer []Line
}

// chunks is what stands next in a chunked body.
type chunks uint8

const (
	noChunks   chunks = iota // not a chunked body
	chunkSize                // a line with the size of a chunk
	chunkData                // left bytes of a chunk
	chunkEnd                 // the line's end behind a chunk
	trailers                 // trailer fields and a blank line
	chunksRead               // nothing any more
)

// next takes the next piece of a body off the front of b. It returns the piece,
// how much of b is used up with it, and io.EOF at the end, where nothing is left
// to take; ErrMore when b is too short to say. ended says that nothing follows b.
func (s *body) next(b []byte, ended bool) (piece []byte, used int, err error) {
	for {
		switch s.chunks {
		case noChunks:
			switch {
			case s.left == 0:
				return nil, used, io.EOF
			case len(b) > 0:
				if s.left > 0 && int64(len(b)) > s.left {
					b = b[:s.left]
				}
				if s.left > 0 {
					s.left -= int64(len(b))
				}
				return b, len(b), nil
			case ended && s.left == untilClose:
				s.left = 0
				return nil, used, io.EOF
			}
			return nil, used, ErrMore
		case chunkSize:
			end := bytes.IndexByte(b, '\n')
			if end < 0 && len(b) < maxChunkLine {
				return nil, used, ErrMore
			}
			if end < 1 || end > maxChunkLine || b[end-1] != '\r' {
				return nil, used, malformed("a chunk's line is too long, or does not end in CR LF")
			}
			if s.left, err = parseSize(b[:end-1]); err != nil {
				return nil, used, err
			}
			b, used = b[end+1:], used+end+1
			s.chunks = chunkData
			if s.left == 0 {
				s.chunks = trailers
			}
		case chunkData:
			if len(b) == 0 {
				return nil, used, ErrMore
			}
			piece = b[:min(int64(len(b)), s.left)]
			if s.left -= int64(len(piece)); s.left == 0 {
				s.chunks = chunkEnd
			}
			return piece, used + len(piece), nil
		case chunkEnd:
			if len(b) < 2 {
				return nil, used, ErrMore
			}
			if b[0] != '\r' || b[1] != '\n' {
				return nil, used, malformed("a chunk is longer than its size")
			}
			b, used = b[2:], used+2
			s.chunks = chunkSize
		case trailers:
			end := 0
			if bytes.HasPrefix(b, []byte("\r\n")) {
				end = 2
			} else if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
				end = i + 4
			}
			if end > maxTrailer || end == 0 && len(b) > maxTrailer {
				return nil, used, malformed("its trailers are too long")
			}
			if end == 0 {
				return nil, used, ErrMore
			}
			if s.trailer, err = parseLines(string(b[:end]), nil); err != nil {
				return nil, used, err
			}
			s.chunks = chunksRead
			return nil, used + end, io.EOF
		case chunksRead:
			return nil, used, io.EOF
		}
	}
}

// parseSize reads a chunk's size; extensions are dropped.
func parseSize(line []byte) (int64, error) {
	line, extension, _ := bytes.Cut(line, []byte(";"))
	line = bytes.TrimRight(line, " \t")
	if len(line) == 0 || len(line) > 15 || !isValue(string(extension)) {
		return 0, malformed("a chunk's size is missing or impossible")
	}
	var n int64
	for _, c := range line {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, malformed("a chunk's size is no hexadecimal number")
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}
