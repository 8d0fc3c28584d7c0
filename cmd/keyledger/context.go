package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Context is where the command line finds a running keyledger. `keyledger dev`
// writes one, so that another terminal just works. It holds paths of secrets,
// never a secret; its file has mode 0600 all the same, because a Postgres URL
// may carry a password.
type Context struct {
	URL         string `json:"url"`                    // of the management API, such as http://127.0.0.1:7070
	TokenFile   string `json:"token_file,omitempty"`   // holds the root key; relative to the context file
	NATSURL     string `json:"nats_url,omitempty"`     // for watch
	NATSCreds   string `json:"nats_creds,omitempty"`   // credentials file
	GatewayURL  string `json:"gateway_url,omitempty"`  //
	PostgresURL string `json:"postgres_url,omitempty"` //
	StateDir    string `json:"state_dir,omitempty"`    // of `keyledger dev`, for what looks at the installation itself
}

// ContextPath is KEYLEDGER_CONTEXT, or keyledger/context.json in the user's
// configuration directory. It fails where there is no such directory.
func ContextPath() (string, error) {
	if p := os.Getenv("KEYLEDGER_CONTEXT"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("no place for the context file: %w; set KEYLEDGER_CONTEXT to a path", err)
	}
	return filepath.Join(dir, "keyledger", "context.json"), nil
}

// WriteContext replaces the context file in one step, mode 0600, and makes its
// directory (0700) where there is none.
func WriteContext(path string, c Context) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	if err := replaceFile(path, append(b, '\n')); err != nil {
		return fmt.Errorf("context file: %w", err)
	}
	return nil
}

// ReadContext reads a context file. A missing one is an error that
// errors.Is(err, fs.ErrNotExist).
func ReadContext(path string) (Context, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Context{}, fmt.Errorf("context file: %w", err)
	}
	var c Context
	if err := json.Unmarshal(b, &c); err != nil {
		return Context{}, fmt.Errorf("context file %s is not readable (%w): remove it, or start `keyledger dev`, which writes it anew", path, err)
	}
	return c, nil
}

// replaceFile writes a file of mode 0600 beside its place and moves it there,
// so that a reader sees the old content or the new, and no other mode ever.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".keyledger-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// target is what flags, environment and context file come to, in this order
// of precedence.
type target struct {
	Context
	path      string // of the context file
	found     bool   // there is one
	urlFrom   string
	token     string // empty: none; a secret, never printed
	tokenFrom string
	tokenMiss error // why the context's token could not be read
}

const defaultURL = "http://127.0.0.1:7070"

// target is read anew for each command: a context may appear while one waits.
func (a *app) target() (target, error) {
	path, err := ContextPath()
	var t target
	if err == nil {
		t.path = path
		t.Context, err = ReadContext(path)
		switch {
		case err == nil:
			t.found = true
		case !errors.Is(err, fs.ErrNotExist):
			return t, err
		}
	}
	contextURL := t.URL
	switch {
	case a.urlFlag != "":
		t.URL, t.urlFrom = a.urlFlag, "--url"
	case os.Getenv("KEYLEDGER_URL") != "":
		t.URL, t.urlFrom = os.Getenv("KEYLEDGER_URL"), "KEYLEDGER_URL"
	case t.URL != "":
		t.urlFrom = "the context file " + t.path
	default:
		t.URL, t.urlFrom = defaultURL, "the default"
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return t, usageError("the address from %s is no URL of the form http://host:port", t.urlFrom)
	}
	if u.User != nil {
		return t, usageError("the address from %s has a name or password in it: give the root key with --token-file or KEYLEDGER_TOKEN", t.urlFrom)
	}
	return t, t.findToken(a.tokenFlag, contextURL)
}

// findToken takes the root key from the flag, the environment or the context.
// The context's key is sent to the context's own address only: another address
// may be another's machine.
func (t *target) findToken(flag, contextURL string) error {
	env := os.Getenv("KEYLEDGER_TOKEN")
	file := ""
	switch {
	case flag != "":
		file, t.tokenFrom = flag, "--token-file"
	case strings.ContainsRune(env, os.PathSeparator):
		// No root key has a path separator in it, so this can only be a file.
		file, t.tokenFrom = env, "KEYLEDGER_TOKEN"
	case env != "":
		t.token, t.tokenFrom = strings.TrimSpace(env), "KEYLEDGER_TOKEN"
		return nil
	case t.TokenFile != "" && samePlace(t.URL, contextURL):
		if !filepath.IsAbs(t.TokenFile) {
			t.TokenFile = filepath.Join(filepath.Dir(t.path), t.TokenFile)
		}
		t.tokenFrom = "the context file " + t.path
		t.token, t.tokenMiss = readTokenFile(t.TokenFile)
		return nil
	default:
		return nil
	}
	t.TokenFile = file
	var err error
	t.token, err = readTokenFile(file)
	if err != nil {
		return fmt.Errorf("token file from %s: %w", t.tokenFrom, err)
	}
	return nil
}

func readTokenFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s does not hold a root key on one line", path)
	}
	return token, nil
}

// samePlace compares two addresses; all names of this machine are one.
func samePlace(a, b string) bool {
	x, errX := url.Parse(a)
	y, errY := url.Parse(b)
	if errX != nil || errY != nil {
		return false
	}
	return x.Scheme == y.Scheme && x.Port() == y.Port() &&
		(strings.EqualFold(x.Hostname(), y.Hostname()) || loopback(x.Hostname()) && loopback(y.Hostname()))
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
