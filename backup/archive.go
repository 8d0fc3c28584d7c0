package backup

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The file is a zip archive without compression (snapshots are compressed already),
// so that any unzip shows what is in it. Its comment, which is its last bytes, is the
// SHA-256 of all bytes before the digits.
const sumPrefix = "sha256:"

const manifestMember = "manifest.json"

const readme = `This is a backup of a keyledger installation, made by ` + "`keyledger backup`" + `.
Restore it with ` + "`keyledger restore FILE`" + `, check it with ` + "`keyledger restore --check FILE`" + `.

manifest.json   what is in it, with hashes and where each stream ended
streams/        JetStream snapshots
postgres/       tables that cannot be built again from the streams, as COPY writes them

The master key is not in it. Without that file no source address or user agent in
it can be opened again, and the audit log cannot be signed on with its key.
`

// archive is a file being written. Members can be read as soon as they are added.
type archive struct {
	path    string // where it will be
	file    *os.File
	zip     *zip.Writer
	members map[string][2]int64 // offset and length of the content
}

func createArchive(path string) (*archive, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("the backup cannot be written: %w", err)
	}
	a := &archive{path: path, file: f, zip: zip.NewWriter(f), members: map[string][2]int64{}}
	if _, _, err := a.add("README.txt", func(w io.Writer) error { _, err := io.WriteString(w, readme); return err }); err != nil {
		a.abandon()
		return nil, err
	}
	return a, nil
}

// abandon removes what is not finished.
func (a *archive) abandon() {
	if a.file != nil {
		_ = a.file.Close()
		_ = os.Remove(a.file.Name())
	}
}

// add writes a member and answers its length and SHA-256.
func (a *archive) add(name string, write func(io.Writer) error) (int64, string, error) {
	w, err := a.zip.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: time.Now()})
	if err == nil {
		err = a.zip.Flush()
	}
	if err != nil {
		return 0, "", err
	}
	begin, err := a.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	if err := write(io.MultiWriter(w, sum)); err != nil {
		return 0, "", err
	}
	if err := a.zip.Flush(); err != nil {
		return 0, "", err
	}
	end, err := a.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, "", err
	}
	a.members[name] = [2]int64{begin, end - begin}
	return end - begin, hex.EncodeToString(sum.Sum(nil)), nil
}

// read reads a member again, from the file.
func (a *archive) read(name string) (io.Reader, error) {
	at, ok := a.members[name]
	if !ok {
		return nil, fmt.Errorf("there is no member %s", name)
	}
	return io.NewSectionReader(a.file, at[0], at[1]), nil
}

// finish adds the manifest and puts the file in its place: whole, or not at all.
func (a *archive) finish(m *Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if _, _, err := a.add(manifestMember, func(w io.Writer) error { _, err := w.Write(append(b, '\n')); return err }); err != nil {
		return err
	}
	digits := hex.EncodedLen(sha256.Size)
	if err := a.zip.SetComment(sumPrefix + string(bytes.Repeat([]byte{'0'}, digits))); err != nil {
		return err
	}
	if err := a.zip.Close(); err != nil {
		return err
	}
	size, err := a.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(a.file, 0, size-int64(digits))); err != nil {
		return err
	}
	if _, err := a.file.WriteAt([]byte(hex.EncodeToString(sum.Sum(nil))), size-int64(digits)); err != nil {
		return err
	}
	if err := errors.Join(a.file.Sync(), a.file.Close()); err != nil {
		return err
	}
	// Not over a file that came into being meanwhile.
	if err := os.Link(a.file.Name(), a.path); err != nil {
		return fmt.Errorf("put the backup in its place: %w", err)
	}
	if err := os.Remove(a.file.Name()); err != nil {
		return err
	}
	a.file = nil
	return syncDir(filepath.Dir(a.path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// DamagedError says why a file is not restored.
type DamagedError struct{ Reason string }

func (e *DamagedError) Error() string {
	return "this backup is not restored: " + e.Reason + ". Nothing was changed. Take another copy of it, or an earlier backup"
}

func damaged(format string, args ...any) error { return &DamagedError{fmt.Sprintf(format, args...)} }

// File is a backup that is open, and whole.
type File struct {
	Manifest Manifest
	file     *os.File
	members  map[string]*zip.File
}

// Open reads a file to its end and compares every hash in it. It fails with a
// [*DamagedError]. Close MUST be called.
func Open(path string) (_ *File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	digits := int64(hex.EncodedLen(sha256.Size))
	if info.Size() < digits+int64(len(sumPrefix)) {
		return nil, damaged("it is %d bytes long, too short for a backup", info.Size())
	}
	end := make([]byte, digits+int64(len(sumPrefix)))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return nil, err
	}
	want, ok := bytes.CutPrefix(end, []byte(sumPrefix))
	if !ok {
		return nil, damaged("it does not end with its hash: it was cut off or added to, or is no backup of keyledger")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, info.Size()-digits)); err != nil {
		return nil, err
	}
	if have := hex.EncodeToString(sum.Sum(nil)); have != string(want) {
		return nil, damaged("its bytes have the SHA-256 %s and it ends with %q: it was changed or damaged", have, want)
	}
	z, err := zip.NewReader(f, info.Size())
	if err != nil {
		return nil, damaged("it is not an archive that can be read: %v", err)
	}
	b := &File{file: f, members: map[string]*zip.File{}}
	for _, m := range z.File {
		if b.members[m.Name] != nil {
			return nil, damaged("its member %q is there twice", m.Name)
		}
		b.members[m.Name] = m
	}
	if err := b.readManifest(); err != nil {
		return nil, err
	}
	return b, b.check()
}

func (b *File) readManifest() error {
	m := b.members[manifestMember]
	if m == nil {
		return damaged("it has no member %s", manifestMember)
	}
	r, err := m.Open()
	if err != nil {
		return damaged("its manifest cannot be read: %v", err)
	}
	defer r.Close()
	d := json.NewDecoder(io.LimitReader(r, 64<<20))
	if err := d.Decode(&b.Manifest); err != nil {
		return damaged("its manifest cannot be read: %v", err)
	}
	if b.Manifest.Format != format {
		return fmt.Errorf("this backup has format %d, this program knows %d: it was made by a newer program, run that", b.Manifest.Format, format)
	}
	return nil
}

// check compares every member with the manifest, which names them all.
func (b *File) check() error {
	seen := map[string]bool{manifestMember: true, "README.txt": true}
	one := func(name string, size int64, sum string) error {
		m := b.members[name]
		if m == nil || seen[name] {
			return damaged("its member %q is missing, or named twice", name)
		}
		seen[name] = true
		r, err := m.Open()
		if err != nil {
			return damaged("its member %q cannot be read: %v", name, err)
		}
		defer r.Close()
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err != nil {
			return damaged("its member %q cannot be read: %v", name, err)
		}
		if have := hex.EncodeToString(h.Sum(nil)); n != size || have != sum {
			return damaged("its member %q is %d bytes long with SHA-256 %s; the manifest says %d and %s", name, n, have, size, sum)
		}
		return nil
	}
	var names []string
	for _, s := range b.Manifest.Streams {
		if err := one(s.Member, s.Bytes, s.SHA256); err != nil {
			return err
		}
		names = append(names, s.Name)
	}
	for _, t := range b.Manifest.Postgres {
		if err := one(t.Member, t.Bytes, t.SHA256); err != nil {
			return err
		}
		if err := t.valid(); err != nil {
			return err
		}
	}
	for name := range b.members {
		if !seen[name] {
			return damaged("it has a member %q that its manifest does not name", name)
		}
	}
	if _, err := order(names); err != nil {
		return damaged("%v", err)
	}
	return nil
}

func (b *File) open(member string) (io.ReadCloser, error) { return b.members[member].Open() }

// Close closes the file.
func (b *File) Close() error { return b.file.Close() }
