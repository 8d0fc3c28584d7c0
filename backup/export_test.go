package backup

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"testing"
)

// Repacked is a file with a member taken out, or replaced, and the outer hash right.
func Repacked(t *testing.T, path, member string, content []byte) []byte {
	t.Helper()
	r, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := filepathOf(t)
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	w := zip.NewWriter(f)
	put := func(name string, b []byte) {
		m, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = m.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range r.File {
		if m.Name == member {
			continue
		}
		in, err := m.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		put(m.Name, b)
	}
	if content != nil {
		put(member, content)
	}
	if err := w.SetComment(sumPrefix + string(bytes.Repeat([]byte{'0'}, 64))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b[:len(b)-64])
	return append(b[:len(b)-64], hex.EncodeToString(sum[:])...)
}

func filepathOf(t *testing.T) string { return t.TempDir() + "/repacked" }

// RestoreStream makes a stream of a snapshot.
var RestoreStream = restoreStream
