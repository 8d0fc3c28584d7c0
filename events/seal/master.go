package seal

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Master is the key that wraps the data keys. It never shows itself in a log.
type Master [32]byte

// String hides the key.
func (Master) String() string { return "master key (hidden)" }

// Format hides the key from every verb.
func (m Master) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(m.String())) }

// MarshalText hides the key from encoders.
func (m Master) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// ParseMaster reads a master key, 32 bytes in hex or base64, as it stands in a
// file or an environment variable.
func ParseMaster(s string) (m Master, err error) {
	s = strings.TrimSpace(s)
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
		base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	} {
		if b, err := decode(s); err == nil && len(b) == len(m) {
			copy(m[:], b)
			return m, nil
		}
	}
	return m, errors.New("a master key is 32 bytes in hex or base64: make one with `openssl rand -hex 32`")
}

// LoadOrCreateMaster reads the master key in the file at path, and makes it with
// mode 0600 where there is none. A file that anybody but its owner may read is
// refused.
func LoadOrCreateMaster(path string) (Master, error) {
	m, err := LoadMaster(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	_, _ = rand.Read(m[:]) // never fails
	if err := createMaster(path, m); err != nil && !errors.Is(err, fs.ErrExist) {
		return Master{}, fmt.Errorf("write the master key: %w", err)
	}
	return LoadMaster(path) // the winner's, where two processes started at once
}

// LoadMaster reads the master key in the file at path.
func LoadMaster(path string) (Master, error) {
	f, err := os.Open(path)
	if err != nil {
		return Master{}, fmt.Errorf("read the master key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Master{}, fmt.Errorf("read the master key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return Master{}, fmt.Errorf("the master key %s has mode %04o, so that others may read it: chmod 600 it, and replace it if somebody could have", path, mode)
	}
	b := make([]byte, 1024)
	n, _ := f.Read(b)
	m, err := ParseMaster(string(b[:n]))
	if err != nil {
		return m, fmt.Errorf("the master key %s is not readable: %w", path, err)
	}
	return m, nil
}

// createMaster leaves the whole file or none at path, on disk, and never
// overwrites one.
func createMaster(path string, m Master) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".master-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(hex.EncodeToString(m[:]) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
