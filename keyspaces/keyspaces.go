// Package keyspaces holds the keyspace documents that come with the program:
// the products that it was made for, and one that does not exist and uses every
// field there is.
//
// They are only data. A development server configures them where they are not
// there yet; nothing in the program knows any of them by name. The package does
// not check them: whoever configures one parses it, and a test parses all.
package keyspaces

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.yaml
var files embed.FS

// Document is one keyspace document as it was written, with its comments.
type Document struct {
	Name   string // of the keyspace, and of the file without .yaml
	Source []byte // YAML
}

// All lists the documents by name.
func All() []Document {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic(fmt.Sprintf("embedded keyspace documents: %v", err)) // they are part of the program
	}
	documents := make([]Document, 0, len(entries))
	for _, entry := range entries {
		source, err := files.ReadFile(entry.Name())
		if err != nil {
			panic(fmt.Sprintf("embedded keyspace documents: %v", err))
		}
		documents = append(documents, Document{strings.TrimSuffix(entry.Name(), ".yaml"), source})
	}
	return documents
}
