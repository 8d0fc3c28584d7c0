package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/formats/witness"
	"golang.org/x/mod/sumdb/note"
)

// Policy says whose signatures a checkpoint must have beside the log's, in the
// format of Sigsum's policies with C2SP verifier keys:
//
//	log <verifier key>
//	witness <name> <verifier key> [<URL>]
//	group <name> <all, any or a number> <name>…
//	quorum <name, or none>
type Policy struct {
	Text      []byte
	Logs      []string        // verifier keys of the log that it names
	Witnesses []note.Verifier // of C2SP tlog-cosignature, all that it names
	quorum    witness.Group
}

// ParsePolicy reads a policy. One key under two names is refused: it would count
// twice.
func ParsePolicy(text []byte) (*Policy, error) {
	p := &Policy{Text: text}
	var lines strings.Builder
	names := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "log":
			if len(words) < 2 {
				return nil, errors.New("policy: a line log has no verifier key")
			}
			p.Logs = append(p.Logs, words[1])
		case "witness":
			if len(words) < 3 || len(words) > 4 {
				return nil, errors.New("policy: a line of a witness is: witness NAME KEY")
			}
			v, err := WitnessVerifier(words[2])
			if err != nil {
				return nil, fmt.Errorf("policy: the key of the witness %.80q: %w", words[1], err)
			}
			id := fmt.Sprintf("%s %08x", v.Name(), v.KeyHash())
			if other, ok := names[id]; ok {
				return nil, fmt.Errorf("policy: the witnesses %.80q and %.80q are one key", other, words[1])
			}
			names[id] = words[1]
			p.Witnesses = append(p.Witnesses, v)
			if len(words) == 3 { // nobody asks a witness here: it comes by itself
				words = append(words, "https://witness.invalid/")
			}
		}
		lines.WriteString(strings.Join(words, " ") + "\n")
	}
	var err error
	if p.quorum, err = witness.ParsePolicy([]byte(lines.String())); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return p, nil
}

// Satisfied says whether a signed checkpoint has the cosignatures that the policy
// asks for. That the log signed it is not asked here.
func (p *Policy) Satisfied(signed []byte) bool { return p.quorum.Satisfied(signed) }

// Asks says whether the policy asks for anybody's signature beside the log's.
func (p *Policy) Asks() bool { return p.quorum.N > 0 }

// Signers are the names of the witnesses that have signed a checkpoint, and of those
// that have not, in the policy's order.
func (p *Policy) Signers(signed []byte) (have, lack []string) {
	for _, v := range p.Witnesses {
		if _, err := note.Open(signed, note.VerifierList(v)); err == nil {
			have = append(have, v.Name())
		} else {
			lack = append(lack, v.Name())
		}
	}
	return have, lack
}

// Lacking says whose signatures a checkpoint has that is not [Policy.Satisfied].
func (p *Policy) Lacking(signed []byte) string {
	have, lack := p.Signers(signed)
	list := func(names []string) string {
		if len(names) == 0 {
			return "nobody"
		}
		return strings.Join(names, ", ")
	}
	return "it does not have the signatures that the policy asks for: signed by " + list(have) + "; not by " + list(lack)
}

// cosignatureKey is the type of a key of C2SP tlog-cosignature with Ed25519.
const cosignatureKey = 4

// WitnessVerifier reads a witness's verifier key, of C2SP tlog-cosignature or a plain
// Ed25519 one, whose hash must be right.
func WitnessVerifier(text string) (note.Verifier, error) {
	v, err := fnote.NewVerifierForCosignatureV1(text)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(text, "+")
	hash, key64, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(key64)
	if err != nil || len(key) == 0 {
		return nil, errors.New("it is no verifier key")
	}
	if key[0] != cosignatureKey {
		if _, err := fnote.VKeyToCosignatureV1(text); err != nil {
			return nil, err
		}
		return v, nil
	}
	if said, err := strconv.ParseUint(hash, 16, 32); err != nil || uint32(said) != v.KeyHash() {
		return nil, errors.New("its hash is not that of name and key: a character of it was changed")
	}
	return v, nil
}
