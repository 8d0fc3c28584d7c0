package testenv

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Nginx answers where the machine's nginx is, and what its environment needs
// besides. Where there is none, Debian's package is unpacked once into the user's
// cache, which takes apt and a mirror, but no root.
func Nginx(t testing.TB) (path string, env []string) {
	t.Helper()
	return ofDebian(t, unpackedNginx, "nginx", "usr/sbin/nginx", "nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx", "/opt/homebrew/bin/nginx")
}

// ofDebian answers where a program of the machine is, else the one of Debian's package.
func ofDebian(t testing.TB, unpacked func() (string, error), pkg, inside string, names ...string) (path string, env []string) {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	root, err := unpacked()
	if err != nil {
		t.Fatalf("%s is not on this machine and cannot be fetched: %v\ninstall it (apt-get install %s)", names[0], err, pkg)
	}
	if dirs := libraries(root); len(dirs) > 0 {
		env = []string{"LD_LIBRARY_PATH=" + strings.Join(dirs, ":")}
	}
	return filepath.Join(root, inside), env
}

// Caddy builds Caddy, of the version that caddy/go.mod names, once into the user's
// cache, and answers where it is. The first time takes minutes.
func Caddy(t testing.TB) (path string) {
	t.Helper()
	path, err := builtCaddy()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TLogTiles builds a client of C2SP tlog-tiles that other people wrote, of the version
// that tlogtiles/go.mod names, once into the user's cache, and answers where it is.
func TLogTiles(t testing.TB) (path string) {
	t.Helper()
	path, err := builtTLogTiles()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// CloudEvents builds a reader of messages with the SDK of CloudEvents, of the version that
// cloudevents/go.mod names, once into the user's cache, and answers where it is.
func CloudEvents(t testing.TB) (path string) {
	t.Helper()
	path, err := builtCloudEvents()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// OpenID builds an identity provider, of the version that openid/go.mod names, once into
// the user's cache, and answers where it is.
func OpenID(t testing.TB) (path string) {
	t.Helper()
	path, err := builtOpenID()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	builtCaddy       = sync.OnceValues(func() (string, error) { return builtModule("caddy") })
	builtCloudEvents = sync.OnceValues(func() (string, error) { return builtModule("cloudevents") })
	builtOpenID      = sync.OnceValues(func() (string, error) { return builtModule("openid") })
	builtTLogTiles   = sync.OnceValues(func() (string, error) { return builtModule("tlogtiles") })
)

// NodeModules installs packages of npm, named with their versions, once into the user's
// cache, and answers the directory node_modules. It needs npm.
func NodeModules(t testing.TB, packages ...string) (path string) {
	t.Helper()
	sum := sha256.Sum256([]byte(strings.Join(packages, " ")))
	dir, err := once("npm-"+hex.EncodeToString(sum[:8]), func(dir string) error {
		// Without --prefix, which has npm leave out the machine's own configuration.
		if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte("{}\n"), 0o644); err != nil {
			return err
		}
		install := exec.Command("npm", append([]string{"install", "--loglevel=error", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"}, packages...)...)
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			return fmt.Errorf("npm install %s: %w\n%s", packages, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "node_modules")
}

// builtModule builds the program of a module that stands beside this file.
func builtModule(name string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(here), name)
	version := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		version.Write(b)
	}
	version.Write([]byte(runtime.Version()))
	dir, err := once(name+"-"+hex.EncodeToString(version.Sum(nil)[:8]), func(dir string) error {
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, name), ".")
		build.Dir = source
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", source, err, out)
		}
		return nil
	})
	return filepath.Join(dir, name), err
}

var (
	unpackedNginx = sync.OnceValues(func() (string, error) { return unpack("nginx", "usr/sbin/nginx") })
	unpackedRedis = sync.OnceValues(func() (string, error) { return unpack("redis-server", "usr/bin/redis-server") })
)

// unpack unpacks a package of Debian, with what it needs that the machine lacks, into
// the user's cache.
func unpack(pkg, program string) (string, error) {
	return once(pkg, func(dir string) error {
		lists, cache := filepath.Join(dir, "lists"), filepath.Join(dir, "cache")
		for _, d := range []string{filepath.Join(lists, "partial"), filepath.Join(cache, "archives", "partial")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		run := func(name string, args ...string) (string, error) {
			c := exec.Command(name, args...)
			c.Dir, c.Env = dir, append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
			out, err := c.CombinedOutput()
			if err != nil {
				return "", fmt.Errorf("%s: %w\n%s", c, err, out)
			}
			return string(out), nil
		}
		apt := func(args ...string) (string, error) {
			return run("apt-get", append([]string{
				"-q", "-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + cache,
				"-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=", "-o", "Dir::Log=" + dir,
			}, args...)...)
		}
		if _, err := apt("update"); err != nil {
			return err
		}
		// What it would install beside the package is what this machine lacks.
		plan, err := apt("--simulate", "--no-install-recommends", "install", pkg)
		if err != nil {
			return err
		}
		download := []string{"download", pkg}
		for line := range strings.Lines(plan) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" && f[1] != pkg {
				download = append(download, f[1])
			}
		}
		if _, err := apt(download...); err != nil {
			return err
		}
		packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil {
			return err
		}
		for _, deb := range packages {
			if _, err := run("dpkg", "-x", deb, dir); err != nil {
				return err
			}
			os.Remove(deb)
		}
		os.RemoveAll(lists)
		os.RemoveAll(cache)
		v := exec.Command(filepath.Join(dir, program), "-v")
		v.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries(dir), ":"))
		if out, err := v.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", v, err, out)
		}
		return nil
	})
}

// libraries are the directories below root that hold shared libraries.
func libraries(root string) (dirs []string) {
	for _, pattern := range []string{"lib/*-linux-*", "usr/lib/*-linux-*", "lib", "usr/lib"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern)) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}

// once makes a directory in the user's cache that is kept for later runs. All
// processes that want it wait for the one that makes it; one that was not finished
// is made anew.
func once(name string, fill func(dir string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "keyledger-test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	done := filepath.Join(cache, name)
	if _, err := os.Stat(done); !errors.Is(err, fs.ErrNotExist) {
		return done, err
	}
	making := done + ".part"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := os.Mkdir(making, 0o755); err != nil {
		return "", err
	}
	if err := fill(making); err != nil {
		os.RemoveAll(making)
		return "", err
	}
	return done, os.Rename(making, done)
}
