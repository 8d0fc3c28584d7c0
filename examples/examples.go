// Package examples holds the programs below this directory as text, for the
// console: they are built and run by their tests, so that what is shown works.
package examples

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed inprocess/main.go decide/main.go
var files embed.FS

// The programs.
const (
	Middleware = "inprocess/main.go" // an API behind the middleware
	Decide     = "decide/main.go"    // one decision, without HTTP
)

// For is a program with its keyspace replaced by another.
func For(name, keyspace string) (string, error) {
	b, err := files.ReadFile(name)
	if err != nil {
		return "", err
	}
	const shipped = `"parcelbird"`
	if !strings.Contains(string(b), shipped) {
		return "", fmt.Errorf("%s does not hold %s any more", name, shipped)
	}
	return strings.ReplaceAll(string(b), shipped, fmt.Sprintf("%q", keyspace)), nil
}
