package audit

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// successorKind is the first line of what a key of the log says of the next one.
const successorKind = "keyledger log key v1"

// SignSuccessor is a signed note in which a key of a log names the next one:
//
//	keyledger log key v1
//	<verifier key>
//
// Whoever trusts a key trusts what it names.
func SignSuccessor(verifierKey string, by note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: successorKind + "\n" + verifierKey + "\n"}, by)
}

// SuccessorPath is where a published log shows what a key of it says of the next one,
// below the streams' directories: successor/<the key's hash, hexadecimal>.
func SuccessorPath(key note.Verifier) string { return fmt.Sprintf("successor/%08x", key.KeyHash()) }

// OpenSuccessor reads what [SignSuccessor] wrote. It fails where none of the keys
// signed it, and where the key that it names is not of their log.
func OpenSuccessor(statement []byte, keys ...note.Verifier) (string, note.Verifier, error) {
	n, err := note.Open(statement, note.VerifierList(keys...))
	if err != nil {
		return "", nil, err
	}
	kind, rest, _ := strings.Cut(n.Text, "\n")
	text, ok := strings.CutSuffix(rest, "\n")
	if kind != successorKind || !ok || strings.Contains(text, "\n") {
		return "", nil, errors.New("it is not the statement of a log's key about the next one")
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return "", nil, fmt.Errorf("the key that it names: %w", err)
	}
	if v.Name() != n.Sigs[0].Name {
		return "", nil, fmt.Errorf("it is a key of %q, named by one of %q", v.Name(), n.Sigs[0].Name)
	}
	return text, v, nil
}
