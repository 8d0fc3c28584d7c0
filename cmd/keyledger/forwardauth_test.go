package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The socket has its permissions from the first moment, takes the place of one that
// was left behind, and of nothing else.
func TestListenSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "kl") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path, 0o660); err == nil {
		t.Error("it took the place of a socket in use")
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	l, err := listenSocket(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o640 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// Another process has its place by now: its file stays.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	other, err := listenSocket(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("the socket of another was removed")
	}
	other.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left behind")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path, 0o660); err == nil {
		t.Error("it took the place of a file")
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("%v", entries)
	}
}

// Permissions are octal, however they are written.
func TestSocketMode(t *testing.T) {
	for in, want := range map[string]socketMode{`"0660"`: 0o660, `"660"`: 0o660, "432": 0o660, "660": 0, `"0"`: 0, "x": 0, `"1777"`: 0} {
		var s authzSettings
		err := yaml.Unmarshal([]byte("authz_socket_mode: "+in), &s)
		if s.AuthzSocketMode != want || (err == nil) != (want != 0) {
			t.Errorf("%s: %o %v", in, s.AuthzSocketMode, err)
		}
	}
}
