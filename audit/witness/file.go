package witness

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// replace puts a file in its place, whole or not at all, and returns when it is on
// disk.
func replace(dir, name string, data []byte) error {
	return place(dir, name, data, os.Rename)
}

// create is replace, but fails with fs.ErrExist where there is one.
func create(dir, name string, data []byte) error {
	return place(dir, name, data, os.Link)
}

func place(dir, name string, data []byte, move func(from, to string) error) error {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := move(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	// The directories above may have been made just now.
	for _, d := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		h, err := os.Open(d)
		if err != nil {
			return err
		}
		if err := errors.Join(h.Sync(), h.Close()); err != nil {
			return err
		}
	}
	return nil
}

// plainVerifier is the verifier key of an Ed25519 signer key.
func plainVerifier(signer string) (string, error) {
	words := strings.Split(signer, "+")
	if len(words) < 5 {
		return "", errors.New("no signer key")
	}
	secret, err := base64.StdEncoding.DecodeString(strings.Join(words[4:], "+"))
	if err != nil || len(secret) != 1+ed25519.SeedSize {
		return "", errors.New("no signer key")
	}
	return note.NewEd25519VerifierKey(words[2], ed25519.NewKeyFromSeed(secret[1:]).Public().(ed25519.PublicKey))
}
