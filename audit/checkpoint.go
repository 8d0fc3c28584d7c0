package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Tree is a tree of a certain size.
type Tree struct {
	Size int64 // leaves
	Root tlog.Hash
}

// Checkpoint says how a tree stood.
type Checkpoint struct {
	Origin string
	Tree
	Of *Tree // of a tree of parts: the stream's tree whose events they are; else nil
}

// Origin names a stream's tree: log is the name in the log's key.
func Origin(log, stream string) string { return log + "/" + strings.ToLower(stream) }

// PartsOrigin names the tree of a stream's parts.
func PartsOrigin(log, stream string) string { return Origin(log, stream) + "/parts" }

// Text is the checkpoint before it is signed, as C2SP tlog-checkpoint has it: origin,
// size and root, a line each, and for a tree of parts a line "of <size> <root>".
func (c *Checkpoint) Text() string {
	b := fmt.Appendf(nil, "%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
	if c.Of != nil {
		b = fmt.Appendf(b, "of %d %s\n", c.Of.Size, c.Of.Root)
	}
	return string(b)
}

// ErrNoCheckpoint says that a text is no checkpoint.
var ErrNoCheckpoint = errors.New("not a checkpoint")

// ParseCheckpoint reads what [Checkpoint.Text] wrote, and nothing else. It fails
// with [ErrNoCheckpoint].
func ParseCheckpoint(text string) (Checkpoint, error) {
	var c Checkpoint
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || len(lines) > 5 || lines[len(lines)-1] != "" {
		return c, fmt.Errorf("%w: it has not the lines of one", ErrNoCheckpoint)
	}
	c.Origin = lines[0]
	err := c.Tree.parse(lines[1], lines[2])
	if err == nil && len(lines) == 5 {
		words := strings.Split(lines[3], " ")
		if c.Of = new(Tree); len(words) != 3 || words[0] != "of" {
			err = errors.New("its fourth line is not that of a tree of parts")
		} else {
			err = c.Of.parse(words[1], words[2])
		}
	}
	if err == nil && c.Text() != text {
		err = errors.New("it is not written as one is")
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrNoCheckpoint, err)
	}
	return c, nil
}

func (t *Tree) parse(size, root string) (err error) {
	if t.Size, err = strconv.ParseInt(size, 10, 64); err != nil || t.Size < 0 {
		return fmt.Errorf("%q is no size", size)
	}
	b, err := base64.StdEncoding.DecodeString(root)
	if err != nil || len(b) != tlog.HashSize {
		return fmt.Errorf("%q is no root", root)
	}
	copy(t.Root[:], b)
	return nil
}

// Sign signs a checkpoint.
func Sign(c Checkpoint, by note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.Text()}, by)
}

// Open reads a signed checkpoint of an origin. It fails where none of the keys has
// signed it; signatures by others are left alone.
func Open(signed []byte, origin string, keys ...note.Verifier) (Checkpoint, *note.Note, error) {
	n, err := note.Open(signed, note.VerifierList(keys...))
	if err != nil {
		return Checkpoint{}, nil, err
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if c.Origin != origin {
		return Checkpoint{}, nil, fmt.Errorf("it is a checkpoint of %q, not of %q", c.Origin, origin)
	}
	return c, n, nil
}
