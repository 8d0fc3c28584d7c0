package embedded

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// repository serves one archive under the path that this machine asks for.
func repository(t *testing.T, jar []byte, checksum string) *httptest.Server {
	version := downloads[defaultMajor]
	name := "embedded-postgres-binaries-" + platform()
	at := "/io/zonky/test/postgres/" + name + "/" + version + "/" + name + "-" + version + ".jar"
	mux := http.NewServeMux()
	mux.HandleFunc(at, func(w http.ResponseWriter, _ *http.Request) { w.Write(jar) })
	if checksum != "" {
		mux.HandleFunc(at+".sha256", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(checksum)) })
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func none() []string { return nil }

// realBinaries packs the PostgreSQL of this machine, with what it looks for
// beside itself; the rest it finds where it was installed.
func realBinaries(t *testing.T) []byte {
	who, err := runAs("")
	if err != nil {
		t.Fatal(err)
	}
	b, err := findOrDownload(t.Context(), PostgresConfig{Log: slog.New(slog.DiscardHandler)}, "", who)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	home := filepath.Dir(b.dir)
	for _, pattern := range []string{"bin/postgres", "bin/initdb", "lib/*.so", "lib/*.dylib", "share/*", "share/*/*", "share/*/*/*"} {
		found, err := filepath.Glob(filepath.Join(home, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			if info, err := os.Stat(file); err != nil || info.IsDir() {
				continue
			}
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(home, file)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = string(content)
		}
	}
	return jarOf(t, files)
}

// A machine without PostgreSQL downloads it once, says so, and runs it.
func TestDownload(t *testing.T) {
	t.Parallel()
	jar := realBinaries(t)
	server := repository(t, jar, sum(jar)+"  name.jar\n")
	dir := openDir(t)
	var log bytes.Buffer
	cfg := PostgresConfig{
		Dir:        filepath.Join(dir, "pg"),
		NoSync:     true,
		Repository: strings.Replace(server.URL, "http://", "http://reader:secret@", 1),
		CacheDir:   filepath.Join(dir, "cache"),
		Log:        slog.New(slog.NewTextHandler(&log, nil)),
		candidates: none,
	}
	p, err := StartPostgres(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := query[int](t, p.URL(), "select 1"); got != 1 {
		t.Errorf("select 1 = %d", got)
	}
	if !strings.HasPrefix(p.BinDir(), cfg.CacheDir) {
		t.Errorf("the binaries are those of %q, want the downloaded ones in %q", p.BinDir(), cfg.CacheDir)
	}
	p.Stop()
	if !strings.Contains(log.String(), "downloading it once") || !strings.Contains(log.String(), sum(jar)) {
		t.Errorf("the log does not tell of the download:\n%s", &log)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log holds the password of the repository:\n%s", &log)
	}
	left, err := filepath.Glob(filepath.Join(globQuote(cfg.CacheDir), "*-[0-9]*"))
	if err != nil || len(left) != 1 {
		t.Errorf("the cache holds %q, want the binaries alone", left)
	}

	server.Close()
	who, err := runAs("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := findOrDownload(t.Context(), cfg, "", who); err != nil {
		t.Errorf("the second time, without the repository: %v", err)
	}
}

func TestDownloadRefuses(t *testing.T) {
	t.Parallel()
	good := jarOf(t, map[string]string{
		"bin/postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) 17.5'\n",
		"bin/initdb":   "#!/bin/sh\n",
	})
	escaping := jarOf(t, map[string]string{"../../escaped": "x"})
	empty := jarOf(t, nil)
	who, err := runAs("")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		jar      []byte
		checksum string
		major    string
		want     string // "" is no refusal
	}{
		{"good", good, sum(good), "", ""},
		{"the data's version", good, sum(good), "17", ""},
		{"wrong checksum", good, sum([]byte("other")), "", "is published for it"},
		{"no checksum", good, "", "", "checksum"},
		{"checksum is a page", good, "<html>", "", "does not hold a SHA-256"},
		{"damaged archive", good[:len(good)/2], sum(good[:len(good)/2]), "", "extract"},
		{"path leads out", escaping, sum(escaping), "", "escapes"},
		{"nothing in it", empty, sum(empty), "", "do not run here"},
		{"version not published", good, sum(good), "16", "404"},
		{"version unknown", good, sum(good), "9", "no download of this version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := openDir(t)
			cfg := PostgresConfig{
				Dir:        dir,
				Repository: repository(t, c.jar, c.checksum).URL,
				CacheDir:   filepath.Join(dir, "a", "b", "cache"),
				Log:        slog.New(slog.DiscardHandler),
				candidates: none,
			}
			b, err := findOrDownload(t.Context(), cfg, c.major, who)
			if c.want == "" {
				if err != nil || b.version != "17.5" {
					t.Fatalf("findOrDownload = %v, %v", b, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("findOrDownload = %v, %v, want an error that says %q", b, err, c.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "a", "escaped")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the archive wrote outside of its directory: %v", err)
			}
			entries, _ := os.ReadDir(cfg.CacheDir) // which may not have been made
			for _, e := range entries {
				if e.Name() != "lock" {
					t.Errorf("%q is left in the cache", e.Name())
				}
			}
		})
	}
}

// Where nothing can be downloaded the error says how to get PostgreSQL.
func TestDownloadUnreachable(t *testing.T) {
	t.Parallel()
	gone := repository(t, nil, "")
	gone.Close()
	never := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer never.Close()
	for _, c := range []struct{ name, repository string }{
		{"gone", gone.URL},
		{"silent", never.URL},
		{"not a URL", "localhost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			dir := openDir(t)
			_, err := StartPostgres(ctx, PostgresConfig{Dir: filepath.Join(dir, "pg"), CacheDir: filepath.Join(dir, "cache"), Repository: c.repository, candidates: none})
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range []string{"apt-get install postgresql", "brew install", "PG_BIN_DIR", "--postgres-url"} {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// Binaries named by a person are taken or refused, never passed over.
func TestNamedBinaries(t *testing.T) {
	who, err := runAs("")
	if err != nil {
		t.Fatal(err)
	}
	cfg := PostgresConfig{Dir: openDir(t), Log: slog.New(slog.DiscardHandler)}
	t.Setenv("PG_BIN_DIR", t.TempDir())
	if _, err := findOrDownload(t.Context(), cfg, "", who); err == nil || !strings.Contains(err.Error(), "PG_BIN_DIR") {
		t.Errorf("an empty PG_BIN_DIR: %v", err)
	}
	old := openDir(t)
	for name, content := range map[string]string{"postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n", "initdb": ""} {
		if err := os.WriteFile(filepath.Join(old, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg.BinDir = old
	if _, err := findOrDownload(t.Context(), cfg, "", who); err == nil || !strings.Contains(err.Error(), "at least 14") {
		t.Errorf("PostgreSQL 9.6: %v", err)
	}
}

func TestNumberIn(t *testing.T) {
	for path, want := range map[string]int{"/usr/lib/postgresql/15/bin": 15, "/usr/pgsql-9/bin": 9, "/opt/homebrew/opt/postgresql@17/bin": 17, "/bin": 0} {
		if got := numberIn(path); got != want {
			t.Errorf("numberIn(%q) = %d, want %d", path, got, want)
		}
	}
}

// jarOf packs files as the archives are packed: a .txz in a zip.
func jarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var tarred bytes.Buffer
	tw := tar.NewWriter(&tarred)
	for name, content := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		tw.Write([]byte(content))
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	zw := zip.NewWriter(&jar)
	if _, err := zw.Create("META-INF/MANIFEST.MF"); err != nil {
		t.Fatal(err)
	}
	w, err := zw.Create("postgres-test.txz")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(xzOf(tarred.Bytes()))
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return jar.Bytes()
}

// xzOf wraps b in the xz format without compressing it (https://tukaani.org/xz/xz-file-format.txt),
// so that the tests need no xz on the machine.
func xzOf(b []byte) []byte {
	crc := func(p []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(p)) }
	pad := func(p []byte) []byte { return append(p, make([]byte, -len(p)&3)...) }
	flags := []byte{0, 1}                        // check: CRC32
	header := []byte{2, 0, 0x21, 1, 22, 0, 0, 0} // one filter: LZMA2 with 8 MiB
	header = append(header, crc(header)...)

	var chunks []byte
	control := byte(1) // resets the dictionary
	for rest := b; len(rest) > 0; control = 2 {
		n := min(len(rest), 1<<16)
		chunks = append(chunks, control)
		chunks = binary.BigEndian.AppendUint16(chunks, uint16(n-1))
		chunks = append(chunks, rest[:n]...)
		rest = rest[n:]
	}
	chunks = append(chunks, 0)

	out := append([]byte("\xfd7zXZ\x00"), flags...)
	out = append(out, crc(flags)...)
	out = append(out, header...)
	out = append(out, pad(chunks)...)
	out = append(out, crc(b)...)

	index := []byte{0, 1}
	index = binary.AppendUvarint(index, uint64(len(header)+len(chunks)+4))
	index = binary.AppendUvarint(index, uint64(len(b)))
	index = pad(index)
	index = append(index, crc(index)...)
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, flags...)
	out = append(out, index...)
	out = append(out, crc(footer)...)
	out = append(out, footer...)
	return append(out, "YZ"...)
}
