package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

// An auditor checks a bundle with the program alone: no context, no service.
func TestAuditVerify(t *testing.T) {
	t.Setenv("KEYLEDGER_CONTEXT", filepath.Join(t.TempDir(), "none.json"))
	t.Setenv("KEYLEDGER_URL", "http://127.0.0.1:1")
	t.Setenv("XDG_STATE_HOME", t.TempDir()) // where there is no installation to check
	dir := "../../audit/bundle/testdata/"
	good, keyFile := dir+"v1-owner.tar.gz", dir+"v1-owner.key"
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	keyText := string(bytes.TrimSpace(key))

	passed := invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", keyText).want(t, exitOK)
	contains(t, "the report", passed.stdout, "PASS", "owner org_1 in keyspace space-0", "recorded as OPS", "USAGE", "of the stream's")
	invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", keyFile, "--keyspace", "space-0", "--owner", "org_1").want(t, exitOK)

	var r bundle.Report
	out := invoke(t, "", "audit", "verify", "--json", "--bundle", good, "--log-key", keyFile).want(t, exitOK)
	if err := json.Unmarshal([]byte(out.stdout), &r); err != nil || !r.Pass || r.Scope.Owner != "org_1" || len(r.Streams) != 4 {
		t.Errorf("the report in JSON is %s, %v", out.stdout, err)
	}

	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 4
	bad := write(t, filepath.Join(t.TempDir(), "bad.tar.gz"), string(b))
	failed := invoke(t, "", "audit", "verify", "--bundle", bad, "--log-key", keyFile).want(t, exitProof)
	contains(t, "the report", failed.stdout, "FAIL", "a bit of the archive was changed")
	failed = invoke(t, "", "audit", "verify", "--json", "--bundle", bad, "--log-key", keyFile).want(t, exitProof)
	if err := json.Unmarshal([]byte(failed.stdout), &r); err != nil || r.Pass || r.Reason == "" {
		t.Errorf("the report in JSON is %s, %v", failed.stdout, err)
	}
	failed = invoke(t, "", "audit", "verify", "--bundle", good, "--log-key", dir+"v1-all.key", "--keyspace", "space-1").want(t, exitProof)
	contains(t, "the report", failed.stdout, "something else than what was to be checked")

	for _, args := range [][]string{
		{"--bundle", good},
		{"--log-key", keyFile},
		{"--log-key", keyFile, "--owner", "org_1"},
		{"--bundle", good, "--log-key", keyFile, "--earlier", good},
		{"--bundle", good, "--log-key", keyFile, "--streams-only"},
		{"--log-key", keyFile, "--earlier", "no such file"},
		{"--bundle", good, "--log-key", "no such file"},
		{"--bundle", good, "--log-key", good},
		{"--bundle", good, "--log-key", "a+b+c"},
		{"--bundle", good, "--log-key", keyFile, "--owner", "org_1"},
		{"--bundle", good, "--log-key", keyFile, "--policy", good},
	} {
		invoke(t, "", append([]string{"audit", "verify"}, args...)...).want(t, exitUsage)
	}
	missing := invoke(t, "", "audit", "verify", "--bundle", "no such file", "--log-key", keyFile).want(t, exitFailed)
	contains(t, "the error", missing.stderr, "no such file")
}

// proven is a tree of seven events, signed, and the proof of one of them as it is saved.
type proven struct {
	t      *testing.T
	keys   string // file of the log's key
	signer note.Signer
	leaves []audit.Leaf
}

func newProven(t *testing.T) *proven {
	t.Helper()
	secret, key, err := note.GenerateKey(nil, "keyledger-test")
	if err != nil {
		t.Fatal(err)
	}
	p := &proven{t: t, keys: write(t, filepath.Join(t.TempDir(), "log.key"), key+"\n")}
	if p.signer, err = note.NewSigner(secret); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		p.leaves = append(p.leaves, audit.Leaf{Place: audit.Place{Stream: "LEDGER", Sequence: uint64(i) + 1}, Subject: "ledger.parcelbird.org_1.key_1",
			Keyspace: "parcelbird", Owner: "org_1", Key: "key_1", Time: events.Time(1768737600000 + i), Digest: sha256.Sum256([]byte{byte(i)})})
	}
	return p
}

// save is the proof of the leaf at index i, under a checkpoint that may be changed before
// it is signed.
func (p *proven) save(i int64, change func(*audit.Checkpoint)) string {
	p.t.Helper()
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) (list []tlog.Hash, err error) {
		for _, x := range at {
			list = append(list, stored[x])
		}
		return list, nil
	})
	for n, l := range p.leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(n), l.Hash(), read)
		if err != nil {
			p.t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	size := int64(len(p.leaves))
	root, err := tlog.TreeHash(size, read)
	if err != nil {
		p.t.Fatal(err)
	}
	hashes, err := tlog.ProveRecord(size, i, read)
	if err != nil {
		p.t.Fatal(err)
	}
	c := audit.Checkpoint{Origin: audit.Origin("keyledger-test", "LEDGER"), Tree: audit.Tree{Size: size, Root: root}}
	if change != nil {
		change(&c)
	}
	signed, err := audit.Sign(c, p.signer)
	if err != nil {
		p.t.Fatal(err)
	}
	text := fmt.Sprintf("c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n", base64.StdEncoding.EncodeToString(p.leaves[i].Append(nil)), i)
	for _, h := range hashes {
		text += h.String() + "\n"
	}
	return text + "\n" + string(signed)
}

// A proof that somebody has saved is checked without a service: it says which event stands
// in which tree. One of which any character is another fails, and so does one of another
// key, another tree or another event.
func TestAuditVerifyProof(t *testing.T) {
	t.Setenv("KEYLEDGER_CONTEXT", filepath.Join(t.TempDir(), "none.json"))
	t.Setenv("KEYLEDGER_URL", "http://127.0.0.1:1")
	p := newProven(t)
	text := p.save(4, nil)
	file := write(t, filepath.Join(t.TempDir(), "ledger-5.proof"), text)
	passed := invoke(t, "", "audit", "verify", file, "--log-key", p.keys).want(t, exitOK)
	contains(t, "the report", passed.stdout, "PASS  "+file, "event\tLEDGER 5 0", "keyspace\tparcelbird", "owner\torg_1", "key\tkey_1", "time\t2026-01-18T12:00:00.004Z",
		fmt.Sprintf("sha-256\t%x", p.leaves[4].Digest), "stands as\tleaf 4 of 7", "signed by\tkeyledger-test+")
	var v struct {
		Pass          bool
		Reason, About string
		Sequence      uint64
	}
	if err := json.Unmarshal([]byte(invoke(t, "", "audit", "verify", "--bundle", file, "--log-key", p.keys, "--json").want(t, exitOK).stdout), &v); err != nil || !v.Pass || v.Sequence != 5 || v.About != "key_1" {
		t.Errorf("in JSON %+v, %v", v, err)
	}

	keys, err := logKeys([]string{p.keys})
	if err != nil {
		t.Fatal(err)
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for i := range text {
		other := []byte(text)
		// A digit of base64 so that its highest bit changes: the last one of a signature has
		// some that mean nothing.
		if at := strings.IndexByte(digits, text[i]); at >= 0 {
			other[i] = digits[(at+32)%64]
		} else {
			other[i] ^= 1
		}
		if _, err := checkProof(other, audit.Place{}, keys); err == nil {
			t.Errorf("with %q for %q at %d it holds", other[i], text[i], i)
		}
	}
	for i := range len(text) {
		if _, err := checkProof([]byte(text[:i]), audit.Place{}, keys); err == nil {
			t.Errorf("the first %d bytes hold", i)
		}
	}

	stranger := newProven(t)
	head, _, _ := strings.Cut(text, "\n\n")
	_, others, _ := strings.Cut(stranger.save(4, nil), "\n\n")
	for name, bad := range map[string]struct {
		text, key, why string
	}{
		"of another key":              {text, stranger.keys, ""},
		"signed by a stranger":        {head + "\n\n" + others, p.keys, ""},
		"of another stream":           {p.save(4, func(c *audit.Checkpoint) { c.Origin = audit.Origin("keyledger-test", "OPS") }), p.keys, "keyledger-test/ops"},
		"of another log":              {p.save(4, func(c *audit.Checkpoint) { c.Origin = "other/ledger" }), p.keys, "other/ledger"},
		"of a tree of parts":          {p.save(4, func(c *audit.Checkpoint) { c.Of = &audit.Tree{Size: 9} }), p.keys, "not of the tree of a stream"},
		"of a larger tree":            {p.save(4, func(c *audit.Checkpoint) { c.Size = 16 }), p.keys, ""},
		"of a smaller tree":           {p.save(4, func(c *audit.Checkpoint) { c.Size = 4 }), p.keys, "leaf 4 is not in a tree of 4"},
		"of another root":             {p.save(4, func(c *audit.Checkpoint) { c.Root[0] ^= 1 }), p.keys, ""},
		"of another event":            {strings.Replace(text, "index 4", "index 5", 1), p.keys, ""},
		"of an index that is no such": {strings.Replace(text, "index 4", "index +4", 1), p.keys, "its index is no number"},
		"with something behind it":    {text + "more\n", p.keys, ""},
		"without a hash":              {strings.Replace(text, strings.Split(text, "\n")[3]+"\n", "", 1), p.keys, ""},
	} {
		at := write(t, filepath.Join(t.TempDir(), "bad.proof"), bad.text)
		failed := invoke(t, "", "audit", "verify", at, "--log-key", bad.key).want(t, exitProof)
		contains(t, name, failed.stdout, "FAIL  "+at, "why\t", bad.why)
		if err := json.Unmarshal([]byte(invoke(t, "", "audit", "verify", at, "--log-key", bad.key, "--json").want(t, exitProof).stdout), &v); err != nil || v.Pass || v.Reason == "" {
			t.Errorf("%s: in JSON %+v, %v", name, v, err)
		}
	}

	// A checkpoint from elsewhere, of the same tree, of another one, and of another size.
	for i, tree := range []struct {
		change func(*audit.Checkpoint)
		code   int
		says   string
	}{
		{nil, exitOK, "PASS  " + file},
		{func(c *audit.Checkpoint) { c.Root[0] ^= 1 }, exitProof, "signed two trees of 7 events"},
		{func(c *audit.Checkpoint) { c.Origin = audit.Origin("keyledger-test", "OPS") }, exitProof, "the checkpoint is not one of this stream"},
		{func(c *audit.Checkpoint) { c.Size = 6 }, exitFailed, "is of 6 events, and the proof leads to a tree of 7"},
	} {
		_, signed, _ := strings.Cut(p.save(4, tree.change), "\n\n")
		at := write(t, filepath.Join(t.TempDir(), fmt.Sprintf("%d.checkpoint", i)), signed)
		r := invoke(t, "", "audit", "verify", file, "--log-key", p.keys, "--checkpoint", at).want(t, tree.code)
		contains(t, "the report", r.stdout+r.stderr, tree.says)
	}
	invoke(t, "", "audit", "verify", file, "--log-key", p.keys, "--checkpoint", "no such file").want(t, exitUsage)
	invoke(t, "", "audit", "verify", "../../audit/bundle/testdata/v1-owner.tar.gz", "--log-key", p.keys, "--checkpoint", file).want(t, exitUsage)
	invoke(t, "", "audit", "verify", file).want(t, exitUsage)
	invoke(t, "", "audit", "verify", file, "--log-key", p.keys, "--keyspace", "parcelbird").want(t, exitUsage)
	invoke(t, "", "audit", "verify", file, "--log-key", p.keys, "--streams-only").want(t, exitUsage)
}

// cutting starts a proxy in front of the API that breaks the first readings of an
// export off, and sets CUT to its address.
func cutting(ts *testscript.TestScript, _ bool, _ []string) {
	target, err := url.Parse(ts.Getenv("API"))
	ts.Check(err)
	var left atomic.Int32
	left.Store(5)
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			if strings.HasPrefix(r.Request.URL.Path, "/v1/audit/exports/") && left.Add(-1) >= 0 {
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(io.LimitReader(r.Body, 5000), iotest.ErrReader(errors.New("cut"))), r.Body}
			}
			return nil
		},
	}
	s := httptest.NewServer(proxy)
	ts.Defer(s.Close)
	ts.Setenv("CUT", s.URL)
}
