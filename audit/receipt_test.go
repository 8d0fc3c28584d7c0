package audit_test

import (
	"bytes"
	"crypto/rand"
	"testing"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
)

// A receipt says which event it is for, the same every time, and a changed byte is
// refused. Several stand in one file.
func TestReceipt(t *testing.T) {
	secret, public, err := note.GenerateKey(rand.Reader, "audit.example")
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := note.NewSigner(secret)
	key, _ := note.NewVerifier(public)
	rapid.Check(t, func(t *rapid.T) {
		var file []byte
		var leaves []audit.Leaf
		for range rapid.IntRange(1, 4).Draw(t, "events") {
			l := leaf(t)
			r, err := audit.SignReceipt(l, signer)
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := audit.SignReceipt(l, signer); !bytes.Equal(again, r) {
				t.Fatal("the same event has two receipts")
			}
			file, leaves = append(file, r...), append(leaves, l)
		}
		notes := audit.SplitNotes(file)
		if len(notes) != len(leaves) {
			t.Fatalf("%d notes of %d", len(notes), len(leaves))
		}
		for i, n := range notes {
			if got, _, err := audit.OpenReceipt(n, key); err != nil || got != leaves[i] {
				t.Fatalf("%+v, %v", got, err)
			}
			n[rapid.IntRange(0, len(n)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
			if got, _, err := audit.OpenReceipt(n, key); err == nil && got != leaves[i] {
				t.Fatalf("a changed receipt is one of %+v", got)
			}
		}
	})
	c, err := audit.Sign(audit.Checkpoint{Origin: audit.Origin("audit.example", events.Ledger)}, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := audit.OpenReceipt(c, key); err == nil {
		t.Error("a checkpoint is taken for a receipt")
	}
}

// A policy counts keys, not names, and needs no URL.
func TestPolicy(t *testing.T) {
	keys := map[string]string{}
	signers := map[string]note.Signer{}
	for _, name := range []string{"a", "b"} {
		secret, public, err := note.GenerateKey(rand.Reader, name+".example")
		if err != nil {
			t.Fatal(err)
		}
		if signers[name], err = fnote.NewSignerForCosignatureV1(secret); err != nil {
			t.Fatal(err)
		}
		if keys[name], err = fnote.VKeyToCosignatureV1(public); err != nil {
			t.Fatal(err)
		}
	}
	two := "# both\nlog x+1+1\nwitness A " + keys["a"] + "\nwitness B " + keys["b"] + " https://b.example/ # with a URL\ngroup g 2 A B\nquorum g\n"
	p, err := audit.ParsePolicy([]byte(two))
	if err != nil || len(p.Witnesses) != 2 || len(p.Logs) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	c := audit.Checkpoint{Origin: "o"}
	one, _ := note.Sign(&note.Note{Text: c.Text()}, signers["a"])
	both, _ := note.Sign(&note.Note{Text: c.Text()}, signers["a"], signers["b"])
	if p.Satisfied(one) || !p.Satisfied(both) {
		t.Error("two of two are not asked for")
	}
	changed := []byte(keys["a"])
	changed[len(changed)-5] ^= 1
	for _, bad := range []string{
		"", "witness A", "witness A " + keys["a"] + "\nwitness B " + keys["a"] + "\nquorum A\n", "log\nquorum none\n",
		"witness A " + string(changed) + "\nquorum A\n", "quorum A\n", "witness A " + keys["a"] + "\ngroup g 2 A\nquorum g\n",
	} {
		if _, err := audit.ParsePolicy([]byte(bad)); err == nil {
			t.Errorf("%q is a policy", bad)
		}
	}
}
