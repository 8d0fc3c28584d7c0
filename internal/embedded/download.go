package embedded

import (
	"archive/tar"
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/xi2/xz"
)

// The archives of zonkyio/embedded-postgres-binaries: a jar that holds one .txz
// with bin, lib and share, published beside its SHA-256. Library
// fergusstrange/embedded-postgres reads the same ones, but passes over a missing
// checksum, follows ../ in the archive, and ties the download to a start that
// wipes data of another version.
const (
	defaultRepository = "https://repo1.maven.org/maven2"
	repositoryEnv     = "KEYLEDGER_POSTGRES_REPOSITORY"
	defaultMajor      = "17"

	maxArchive   = 256 << 20 // published ones are 10 to 25 MB
	maxExtracted = 1 << 30
	downloadWait = 15 * time.Minute
)

// downloads are the published versions by major version.
var downloads = map[string]string{
	"14": "14.18.0",
	"15": "15.13.0",
	"16": "16.9.0",
	"17": "17.5.0",
	"18": "18.3.0",
}

const howToGet = "install PostgreSQL (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql), set PG_BIN_DIR to the directory of its programs, or name a running server with --postgres-url"

var errNoSuchVersion = errors.New("no download of this version is known")

// download answers binaries of the given major version ("" is any) from the
// cache, filling it first where it has none. Every error says how to do without.
func download(ctx context.Context, cfg PostgresConfig, major string, who *osUser) (binaries, error) {
	if major == "" {
		major = defaultMajor
	}
	version, ok := downloads[major]
	if !ok {
		return binaries{}, fmt.Errorf("PostgreSQL %s: %w", major, errNoSuchVersion)
	}
	b, err := downloadVersion(ctx, cfg, version, who)
	if err != nil {
		return binaries{}, fmt.Errorf("no PostgreSQL was found on this machine, and it could not be downloaded: %w: %s", err, howToGet)
	}
	return b, nil
}

func downloadVersion(ctx context.Context, cfg PostgresConfig, version string, who *osUser) (binaries, error) {
	cache, err := cacheDir(cfg.CacheDir, who)
	if err != nil {
		return binaries{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return binaries{}, err
	}
	if closed := who.blocked(cache); closed != "" {
		return binaries{}, fmt.Errorf("PostgreSQL runs as user %s, who cannot enter %q on the way to the cache %q", who.name, closed, cache)
	}
	ctx, cancel := context.WithTimeout(ctx, downloadWait)
	defer cancel()

	// Two programs that start together download once.
	lock := flock.New(filepath.Join(cache, "lock"))
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return binaries{}, fmt.Errorf("wait for another download into %q: %w", cache, err)
	}
	defer lock.Close()

	name := platform()
	dir := filepath.Join(cache, "postgres-"+version+"-"+name)
	if b, err := readBinaries(filepath.Join(dir, "bin")); err == nil {
		return b, nil
	}
	repository := cfg.Repository
	if repository == "" {
		repository = os.Getenv(repositoryEnv)
	}
	if repository == "" {
		repository = defaultRepository
	}
	artifact := "embedded-postgres-binaries-" + name
	from, err := url.Parse(repository)
	if err != nil || from.Host == "" {
		return binaries{}, fmt.Errorf("%s is not a URL: write it as https://host/path", repositoryEnv)
	}
	from = from.JoinPath("io/zonky/test/postgres", artifact, version, artifact+"-"+version+".jar")
	cfg.Log.Info("no PostgreSQL on this machine: downloading it once", "version", version, "from", from.Redacted(), "to", dir)

	jar, err := os.CreateTemp(cache, "download-")
	if err != nil {
		return binaries{}, err
	}
	defer os.Remove(jar.Name())
	defer jar.Close()
	sum, size, err := fetch(ctx, from, jar)
	if err != nil {
		return binaries{}, err
	}
	want, err := fetchChecksum(ctx, from)
	if err != nil {
		return binaries{}, err
	}
	if sum != want {
		return binaries{}, fmt.Errorf("%s has SHA-256 %s, but %s is published for it; the archive was thrown away", from.Redacted(), sum, want)
	}
	tmp, err := os.MkdirTemp(cache, "extract-")
	if err != nil {
		return binaries{}, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return binaries{}, err
	}
	if err := extractJar(jar, size, tmp); err != nil {
		return binaries{}, fmt.Errorf("extract %s: %w", from.Redacted(), err)
	}
	if _, err := readBinaries(filepath.Join(tmp, "bin")); err != nil {
		return binaries{}, fmt.Errorf("the programs in %s do not run here: %w", from.Redacted(), err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return binaries{}, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return binaries{}, err
	}
	cfg.Log.Info("PostgreSQL is downloaded", "version", version, "sha256", sum, "dir", dir)
	return readBinaries(filepath.Join(dir, "bin"))
}

// cacheDir is where downloads are kept. Root's own cache directory is closed to
// the user whom PostgreSQL runs as.
func cacheDir(configured string, who *osUser) (string, error) {
	if configured != "" {
		return filepath.Abs(configured)
	}
	if who.switched {
		return "/var/cache/keyledger", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "keyledger"), nil
}

// platform names this machine as the archives do.
func platform() string {
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch = "arm64v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil {
		arch += "-alpine"
	}
	return runtime.GOOS + "-" + arch
}

func get(ctx context.Context, from *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: bad URL", from.Redacted())
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err // names method and URL, without a password
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("get %s: %s", from.Redacted(), res.Status)
	}
	return res, nil
}

// fetch writes what from answers to w and tells its SHA-256 in hex.
func fetch(ctx context.Context, from *url.URL, w io.Writer) (sum string, size int64, err error) {
	res, err := get(ctx, from)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(w, hash), io.LimitReader(res.Body, maxArchive+1))
	if err != nil {
		return "", 0, fmt.Errorf("get %s: %w", from.Redacted(), err)
	}
	if size > maxArchive {
		return "", 0, fmt.Errorf("get %s: more than %d MB", from.Redacted(), maxArchive>>20)
	}
	return hex.EncodeToString(hash.Sum(nil)), size, nil
}

// fetchChecksum reads the SHA-256 that is published beside from. An archive
// without one is not used.
func fetchChecksum(ctx context.Context, from *url.URL) (string, error) {
	at := *from
	at.Path += ".sha256"
	res, err := get(ctx, &at)
	if err != nil {
		return "", fmt.Errorf("the archive's checksum: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1024))
	if err != nil {
		return "", fmt.Errorf("the archive's checksum: get %s: %w", at.Redacted(), err)
	}
	// Some repositories write the file's name after the digits.
	fields := strings.Fields(string(b))
	if len(fields) > 0 {
		if raw, err := hex.DecodeString(fields[0]); err == nil && len(raw) == sha256.Size {
			return strings.ToLower(fields[0]), nil
		}
	}
	return "", fmt.Errorf("the archive's checksum: %s does not hold a SHA-256", at.Redacted())
}

// extractJar writes what the .txz in the jar holds into dir and nowhere else.
func extractJar(jar io.ReaderAt, size int64, dir string) error {
	z, err := zip.NewReader(jar, size)
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if path.Ext(f.Name) != ".txz" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		x, err := xz.NewReader(r, 0)
		if err != nil {
			return err
		}
		return extractTar(tar.NewReader(io.LimitReader(x, maxExtracted)), dir)
	}
	return errors.New("it holds no .txz")
}

func extractTar(t *tar.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if name == "." {
			continue
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			// Root keeps our own writes inside; a link of an archive whose checksum
			// holds is as good as its programs.
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = extractFile(root, name, h.FileInfo().Mode().Perm(), t)
		}
		if err != nil {
			return err
		}
	}
}

// extractFile makes the file readable to everybody: the server may run as another user.
func extractFile(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode|0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Chmod(mode | 0o644); err == nil {
		err = cerr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
