package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/gateway"
	"github.com/keyledger/keyledger/gateway/authz"
	"github.com/keyledger/keyledger/verify/inbound"
)

// authzSettings are where forward-auth answers besides the API's own listener.
type authzSettings struct {
	// AuthzListen is an address that answers forward-auth and nothing else, to
	// proxies that send X-Authz-Token. A gateway has no other; serve answers it
	// at listen as well.
	AuthzListen string `yaml:"authz_listen"`

	// AuthzSocket is a Unix socket that answers forward-auth without a token: who
	// can open it is a proxy. AuthzSocketMode are its permissions, in octal;
	// default 0660, for the user and the group that the process runs as.
	AuthzSocket     string     `yaml:"authz_socket"`
	AuthzSocketMode socketMode `yaml:"authz_socket_mode"`
}

// socketMode are the permissions of a file; zero is 0660.
type socketMode uint32

// UnmarshalYAML reads 0660, which YAML has made a decimal number of by the time it
// gets here, or the same in quotes, from flags and the environment too.
func (m *socketMode) UnmarshalYAML(n *yaml.Node) error {
	base := 10
	if n.ShortTag() == "!!str" {
		base = 8
	}
	v, err := strconv.ParseUint(n.Value, base, 32)
	if err != nil || v == 0 || v > 0o777 {
		return fmt.Errorf("authz_socket_mode: %q are no permissions: write them in octal, such as 0660", n.Value)
	}
	*m = socketMode(v)
	return nil
}

// forwardAuth is a node's forward-auth, with the gateway's settings for auditing
// and for the proxies in front.
func forwardAuth(n *node, c gateway.Config) (*authz.Handler, error) {
	before, err := inbound.ParseProxies(c.TrustedProxies)
	if err != nil {
		return nil, err
	}
	durable, err := c.DurableTime()
	if err != nil {
		return nil, err
	}
	return authz.New(n.verifier, authz.Options{Durable: durable > 0, DurableTime: durable, Before: before}), nil
}

// endpoints are those of the settings.
func (s *authzSettings) endpoints(z *authz.Handler, log *slog.Logger) (endpoints []*endpoint, err error) {
	defer func() {
		if err != nil {
			for _, e := range endpoints {
				e.plain.Close()
			}
		}
	}()
	if s.AuthzListen != "" {
		l, err := listen("forward-auth", "authz-listen", s.AuthzListen)
		if err != nil {
			return endpoints, err
		}
		endpoints = append(endpoints, plainly("forward-auth", l, z, log))
	}
	if s.AuthzSocket != "" {
		mode := os.FileMode(s.AuthzSocketMode)
		if mode == 0 {
			mode = 0o660
		}
		l, err := listenSocket(s.AuthzSocket, mode)
		if err != nil {
			return endpoints, err
		}
		endpoints = append(endpoints, plainly("forward-auth's socket", l, z.Proven(), log))
	}
	return endpoints, nil
}

// socket is a listener that removes its file, unless another has its place.
type socket struct {
	net.Listener
	path string
	made os.FileInfo
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	if now, e := os.Lstat(s.path); e == nil && os.SameFile(now, s.made) {
		_ = os.Remove(s.path)
	}
	return err
}

// listenSocket listens on a Unix socket. The file gets its permissions before it
// has its name, so that nobody comes in before; it replaces one that was left
// behind, and not one that somebody listens on.
func listenSocket(path string, mode os.FileMode) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, fmt.Errorf("authz_socket %s: %w", path, err) }
	if old, err := os.Lstat(path); err == nil {
		if old.Mode()&os.ModeSocket == 0 {
			return fail(fmt.Errorf("there is a file of this name that is no socket: choose another name"))
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return fail(fmt.Errorf("another process listens on it: stop that one, or choose another name"))
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".authz-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return fail(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove the name that it was made under
	made, err := os.Lstat(filepath.Join(dir, "s"))
	if err == nil {
		err = os.Chmod(filepath.Join(dir, "s"), mode)
	}
	if err == nil {
		err = os.Rename(filepath.Join(dir, "s"), path)
	}
	if err != nil {
		l.Close()
		return fail(err)
	}
	return &socket{Listener: l, path: path, made: made}, nil
}
