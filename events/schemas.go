package events

import (
	"cmp"
	"embed"
	"slices"
	"strconv"
	"strings"
)

// The JSON Schema (2020-12) of every version of every type, as schemas/<type>.v<n>.json,
// and the AsyncAPI document that refers to them. A file of a released version is never
// changed.
//
//go:embed schemas/*.json asyncapi.yaml
var published embed.FS

// SchemaFile is one of them.
type SchemaFile struct {
	Type    string `json:"type"`
	Version int    `json:"version"`
	ID      string `json:"id"`     // the schema's own name
	Stream  string `json:"stream"` // LEDGER, whose facts stand in FEED too, USAGE or OPS
	Name    string `json:"name"`   // of the file
}

// SchemaID is the name that the schema of a type and version has for itself.
func SchemaID(kind string, version int) string {
	return "urn:keyledger:event:" + kind + ":v" + strconv.Itoa(version)
}

// Schemas lists what there is a schema of, by type and version.
func Schemas() []SchemaFile {
	entries, err := published.ReadDir("schemas")
	if err != nil {
		panic(err) // it is part of the program
	}
	list := make([]SchemaFile, 0, len(entries))
	for _, e := range entries {
		kind, version, _ := strings.Cut(strings.TrimSuffix(e.Name(), ".json"), ".v")
		n, _ := strconv.Atoi(version)
		list = append(list, SchemaFile{kind, n, SchemaID(kind, n), StreamOf(kind), e.Name()})
	}
	slices.SortFunc(list, func(a, b SchemaFile) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Version, b.Version))
	})
	return list
}

// Schema is a file that [Schemas] names; nil: there is none.
func Schema(name string) []byte {
	b, err := published.ReadFile("schemas/" + name)
	if err != nil {
		return nil
	}
	return b
}

// AsyncAPI is the description of what subscribers get, AsyncAPI 3 in YAML. It refers to
// the schemas as schemas/<name> beside it.
func AsyncAPI() []byte {
	b, err := published.ReadFile("asyncapi.yaml")
	if err != nil {
		panic(err) // it is part of the program
	}
	return b
}
