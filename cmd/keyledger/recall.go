package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Whoever creates a key and lists keys expects to see it. A list shows own
// writes only when it is asked with Min-Sequence, so the program remembers,
// beside the context file, what its last change to an address answered.
// Nothing depends on it: without the file, lists are a moment older.

// recalled is the place in LEDGER of the last change.
type recalled struct {
	URL      string    `json:"url"`
	Sequence uint64    `json:"sequence"`
	At       time.Time `json:"at"`
}

// recallFor is how long a projection may be behind before it is better to see
// an old list than to wait.
const recallFor = 10 * time.Second

func (c *client) recallPath() string {
	return filepath.Join(filepath.Dir(c.target.path), "last-change.json")
}

// remember notes the Ledger-Sequence of a change that was answered.
func (c *client) remember(r *answer, now time.Time) {
	n, err := strconv.ParseUint(r.header.Get("Ledger-Sequence"), 10, 64)
	if err != nil || c.target.path == "" {
		return
	}
	if os.MkdirAll(filepath.Dir(c.target.path), 0o700) == nil {
		_ = replaceFile(c.recallPath(), jsonBody(recalled{c.target.URL, n, now}))
	}
}

// recall adds Min-Sequence for a change of the last seconds, unless the caller
// has set one. It reports whether it did.
func (c *client) recall(q *call, now time.Time) bool {
	b, err := os.ReadFile(c.recallPath())
	if err != nil || c.target.path == "" || q.header.Get("Min-Sequence") != "" {
		return false
	}
	var last recalled
	if json.Unmarshal(b, &last) != nil || last.URL != c.target.URL || now.Sub(last.At).Abs() > recallFor {
		return false
	}
	if q.header == nil {
		q.header = http.Header{}
	}
	q.header.Set("Min-Sequence", strconv.FormatUint(last.Sequence, 10))
	return true
}
