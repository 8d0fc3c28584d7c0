package audit

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ReceiptOrigin is the first line of a log's receipts: log is the name in its key.
func ReceiptOrigin(log string) string { return log + "/receipt" }

// SignReceipt is a signed note in which a log stands by an event before its tree
// holds it:
//
//	<log>/receipt
//	<the six lines of the leaf>
//
// The same leaf and key give the same bytes. A log that has given one and never
// has that leaf in its tree is caught by it.
func SignReceipt(l Leaf, by note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: ReceiptOrigin(by.Name()) + "\n" + string(l.Append(nil))}, by)
}

// OpenReceipt reads what [SignReceipt] wrote. It fails where none of the keys signed
// it, and where it is not a receipt of their log.
func OpenReceipt(receipt []byte, keys ...note.Verifier) (Leaf, *note.Note, error) {
	n, err := note.Open(receipt, note.VerifierList(keys...))
	if err != nil {
		return Leaf{}, nil, err
	}
	origin, text, _ := strings.Cut(n.Text, "\n")
	if origin != ReceiptOrigin(n.Sigs[0].Name) {
		return Leaf{}, nil, errors.New("it is not a receipt of this log")
	}
	l, err := ParseLeaf([]byte(text))
	if err != nil {
		return Leaf{}, nil, fmt.Errorf("it is not a receipt: %w", err)
	}
	return l, n, nil
}

// signaturePrefix begins the lines of a signed note that are signatures.
const signaturePrefix = "— "

// SplitNotes parts signed notes that stand one behind the other.
func SplitNotes(text []byte) (notes [][]byte) {
	var current []byte
	signed := false
	for line := range strings.Lines(string(text)) {
		is := strings.HasPrefix(line, signaturePrefix)
		if signed && !is {
			notes, current, signed = append(notes, current), nil, false
		}
		signed = is
		current = append(current, line...)
	}
	if len(current) > 0 {
		notes = append(notes, current)
	}
	return notes
}
