package main

import (
	"bytes"
	"strings"
	"testing"
)

// What dev suggests to type works: without the sample there is no owner yet.
func TestAnnounce(t *testing.T) {
	for _, sample := range []bool{true, false} {
		var out bytes.Buffer
		(&app{stdout: &out}).announce(devPlaces{sample: sample})
		if strings.Contains(out.String(), "owners set acme") == sample {
			t.Errorf("sample %v: %s", sample, out.String())
		}
	}
}
