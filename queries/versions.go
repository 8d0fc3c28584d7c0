package queries

import (
	"context"
	"slices"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// KeyspaceVersion is a document that came into force, and what it changed against
// the one before.
type KeyspaceVersion struct {
	Version int
	Act     Act
}

// KeyspaceVersions are those of a keyspace up to a sequence of LEDGER, the newest
// first. Facts that did not hold are left out.
func (p *Past) KeyspaceVersions(ctx context.Context, id string, upTo uint64) ([]KeyspaceVersion, error) {
	var list []KeyspaceVersion
	var s domain.State
	for r, err := range p.ledger.Read(ctx, events.Ledger, 1, upTo, events.Subject(id, "", "")) {
		if err != nil {
			return nil, err
		}
		before := s.Keyspace
		s = domain.Evolve(s, r)
		if s.Keyspace == nil || before != nil && s.Keyspace.Version == before.Version {
			continue
		}
		v := KeyspaceVersion{s.Keyspace.DocumentVersion, actOf(&r)}
		if before != nil {
			v.Act.Changes = DocumentChanges(before.Document, s.Keyspace.Document)
		}
		list = append(list, v)
	}
	slices.Reverse(list)
	return list, nil
}

// DocumentChanges are the fields that differ between two documents.
func DocumentChanges(before, after *domain.Document) []Change {
	return differences(document(before), document(after))
}
