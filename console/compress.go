package console

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"sync"
)

// uncompressed is what pages say that hold a secret: whoever can see how long an
// answer is, and have words of theirs in it, learns from compressed ones what else
// is there (BREACH). It tells proxies in front of the console the same.
const uncompressed = "no-store, no-transform"

// worthZipping is the length in bytes from which on a page is compressed: below, it
// fits into one packet either way.
const worthZipping = 1400

var zippers = sync.Pool{New: func() any {
	// The level that takes a millisecond for the longest pages.
	z, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is one that there is
	}
	return z
}}

// zipping compresses an answer where it is HTML and no secret is in it. Answers to
// forms are left alone: secrets are shown in those.
type zipping struct {
	http.ResponseWriter
	zip     *gzip.Writer // nil: not compressed, or not decided
	decided bool
}

func zips(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	for e := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, quality, _ := strings.Cut(strings.TrimSpace(e), ";")
		if name == "gzip" {
			q := strings.ReplaceAll(quality, " ", "")
			return q != "q=0" && !strings.HasPrefix(q, "q=0.000")
		}
	}
	return false
}

// decide looks at the headers, which stand when the first byte comes.
func (z *zipping) decide(first []byte) {
	if z.decided {
		return
	}
	z.decided = true
	h := z.Header()
	if !strings.HasPrefix(h.Get("Content-Type"), "text/html") || h.Get("Content-Encoding") != "" || h.Get("Cache-Control") == uncompressed {
		return
	}
	h.Add("Vary", "Accept-Encoding")
	if first != nil && len(first) < worthZipping {
		return
	}
	h.Del("Content-Length")
	h.Set("Content-Encoding", "gzip")
	z.zip = zippers.Get().(*gzip.Writer)
	z.zip.Reset(z.ResponseWriter)
}

// WriteHeader is called before the first byte of a page that is no success.
func (z *zipping) WriteHeader(status int) {
	if status < 200 || status == http.StatusNoContent || status == http.StatusNotModified || z.Header().Get("Content-Type") == "" {
		z.decided = true // nothing comes, or nobody has said what
	}
	z.decide(nil)
	z.ResponseWriter.WriteHeader(status)
}

func (z *zipping) Write(b []byte) (int, error) {
	z.decide(b)
	if z.zip != nil {
		return z.zip.Write(b)
	}
	return z.ResponseWriter.Write(b)
}

// FlushError sends what there is; see [http.ResponseController].
func (z *zipping) FlushError() error {
	if z.zip != nil {
		if err := z.zip.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(z.ResponseWriter).Flush()
}

// Unwrap is for [http.ResponseController].
func (z *zipping) Unwrap() http.ResponseWriter { return z.ResponseWriter }

// close ends what was compressed.
func (z *zipping) close() {
	if z.zip == nil {
		return
	}
	_ = z.zip.Close() // the connection says so to whoever reads
	z.zip.Reset(nil)
	zippers.Put(z.zip)
	z.zip = nil
}

// zipped is an asset, compressed as far as it goes; nil where that does not help.
func zipped(b []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is one that there is
	}
	_, _ = z.Write(b) // to memory
	_ = z.Close()
	if out.Len() >= len(b) {
		return nil
	}
	return out.Bytes()
}
