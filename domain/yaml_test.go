package domain

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is shown for editing means what was recorded.
func TestYAMLReadsBack(t *testing.T) {
	files, err := filepath.Glob("../keyspaces/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d documents, %v", len(files), err)
	}
	for _, f := range append(files, "testdata/contract.yaml") {
		source, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		d := mustParse(t, string(source))
		out := d.YAML()
		if out[0] == '{' {
			t.Errorf("%s is written as JSON", f)
		}
		if diff := cmp.Diff(string(d.JSON()), string(mustParse(t, string(out)).JSON())); diff != "" {
			t.Errorf("%s: %s", f, diff)
		}
	}
	// Words that YAML would take for something else, and what JSON alone can say.
	d := mustParse(t, `{"keyspace": "a", "about": "no: # \"x\"", "format": {"prefixes": {"live": "a_"}, "length": 40},
		"answers": {"default": {"body": {"on": "1e3", "n": 1e400, "t": "true", "x": "\ud83d\ude00\u0001", "y": null, "z": [[], {}, "- a"]}}}}`)
	if diff := cmp.Diff(string(d.JSON()), string(mustParse(t, string(d.YAML())).JSON())); diff != "" {
		t.Error(diff)
	}
}
