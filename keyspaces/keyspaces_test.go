package keyspaces_test

import (
	"testing"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/keyspaces"
)

// Every document that comes with the program is valid, and its file is named
// after its keyspace.
func TestDocumentsAreValid(t *testing.T) {
	all := keyspaces.All()
	if len(all) == 0 {
		t.Fatal("no documents are embedded")
	}
	for _, doc := range all {
		d, err := domain.ParseDocument(doc.Source)
		if err != nil {
			t.Errorf("%s: %v", doc.Name, err)
			continue
		}
		if d.Keyspace != doc.Name {
			t.Errorf("%s.yaml configures the keyspace %s", doc.Name, d.Keyspace)
		}
	}
}
