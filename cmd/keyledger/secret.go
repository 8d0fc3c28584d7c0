package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"
)

// readSecret reads one secret from a file, or from stdin where file is - or
// empty. On a terminal it asks and shows nothing of what is typed. One line
// ending after the secret is not part of it; everything else is.
func (a *app) readSecret(file, what string) (string, error) {
	if file != "" && file != "-" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		return oneSecret(b, what)
	}
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.stderr, "%s (not shown): ", what)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", err
		}
		return oneSecret(b, what)
	}
	b, err := io.ReadAll(io.LimitReader(a.stdin, 2<<20))
	if err != nil {
		return "", err
	}
	return oneSecret(b, what)
}

func oneSecret(b []byte, what string) (string, error) {
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return "", usageError("no %s: give it on stdin, or in a file with --secret-file", what)
	}
	return s, nil
}

// secretFile is where the secret of a new or rotated key goes: nowhere (it is
// printed), to stdout alone (-), or to a file of mode 0600. The place is made
// before the API is asked, because the secret is answered only once and must
// not get lost for want of a directory.
type secretFile struct {
	path string
	temp *os.File
}

// openSecretFile prepares the place. An existing file is replaced only where
// replace says so.
func (a *app) openSecretFile(path string, replace bool) (*secretFile, error) {
	s := &secretFile{path: path}
	if path == "" {
		return s, nil
	}
	if path == "-" {
		if a.asJSON {
			return nil, usageError("--secret-file - prints nothing but the secret: leave out --json")
		}
		return s, nil
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return nil, usageError("the file of --secret-file exists: name another, so that no secret is overwritten")
	}
	var err error
	s.temp, err = os.CreateTemp(filepath.Dir(path), ".keyledger-*")
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	return s, nil
}

// printed says whether the secret belongs into the ordinary output.
func (s *secretFile) printed() bool { return s.path == "" }

// write puts the secret into its place.
func (s *secretFile) write(a *app, secret string) error {
	if s.path == "-" {
		_, err := fmt.Fprintln(a.stdout, secret)
		return err
	}
	if s.temp == nil {
		return nil
	}
	_, err := s.temp.WriteString(secret + "\n")
	if err == nil {
		err = s.temp.Sync()
	}
	err = errors.Join(err, s.temp.Close())
	if err == nil {
		err = os.Rename(s.temp.Name(), s.path)
	}
	if err != nil {
		return fmt.Errorf("the key is made but its secret could not be kept: %w; rotate the key to get another", err)
	}
	s.temp = nil
	return nil
}

// discard removes what was prepared and not used.
func (s *secretFile) discard() {
	if s.temp != nil {
		s.temp.Close()
		os.Remove(s.temp.Name())
	}
}
