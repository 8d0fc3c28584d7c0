package api

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// moment is a time that may be absent, or null, which means never.
type moment struct {
	given bool
	at    events.Time
}

func (m *moment) UnmarshalJSON(b []byte) error {
	m.given = true
	return m.at.UnmarshalJSON(b)
}

func (m moment) pointer() *events.Time {
	if !m.given {
		return nil
	}
	return &m.at
}

func (moment) Schema(huma.Registry) *huma.Schema { return timeSchema() }

func timeSchema() *huma.Schema {
	return &huma.Schema{Type: "string", Nullable: true, Format: "date-time", Examples: []any{"2026-01-18T12:00:00.000Z"}}
}

// wireTime stands for events.Time in the OpenAPI document.
type wireTime struct{}

func (wireTime) Schema(huma.Registry) *huma.Schema { return timeSchema() }

// text is a string that may be absent, or null, which means none.
type text struct {
	given bool
	text  string
}

func (t *text) UnmarshalJSON(b []byte) error {
	t.given = true
	return json.Unmarshal(b, &t.text) // null leaves it empty
}

func (t text) pointer() *string {
	if !t.given {
		return nil
	}
	return &t.text
}

func (text) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: "string", Nullable: true}
}

// grace is a duration; the number 0 is one too, since it needs no unit.
type grace string

func (g *grace) UnmarshalJSON(b []byte) error {
	if string(b) == "0" {
		*g = "0s"
		return nil
	}
	return json.Unmarshal(b, (*string)(g))
}

func (grace) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{{Type: "string"}, {Type: "integer", Minimum: new(0.0), Maximum: new(0.0)}}, Examples: []any{"24h"}}
}

func duration(path, s string) (domain.Duration, error) {
	d, err := domain.ParseDuration(s)
	if err != nil {
		return 0, unprocessable(Detail{Path: path, Message: "is not a duration", Fix: "such as 30d, 24h or 90s"})
	}
	return d, nil
}

// checkQuery refuses a query that cannot be read, or has what the call does not
// know, or twice what it knows.
func checkQuery(r *http.Request, params []string) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem(http.StatusBadRequest, "UNREADABLE", "The query cannot be read: escape it as RFC 3986 says.")
	}
	var wrong []Detail
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(params, name) {
			wrong = append(wrong, Detail{Path: shown(name), Message: "is not a parameter of this call", Fix: "leave it out, or correct its name"})
		} else if len(values[name]) > 1 {
			wrong = append(wrong, Detail{Path: name, Message: "is there twice", Fix: "send it once"})
		}
	}
	if len(wrong) > 0 {
		return unprocessable(wrong...)
	}
	return nil
}

func strictBool(r *http.Request, name string) (bool, error) {
	switch r.URL.Query().Get(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, unprocessable(Detail{Path: name, Message: "is not true or false", Fix: "true or false"})
}

// writeCursor makes a place in a list opaque: it may change with any release,
// and is good for the same list only.
func writeCursor(list, after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(list + "\x00" + after))
}

func readCursor(list, cursor string) (after string, err error) {
	if cursor == "" {
		return "", nil
	}
	b, decodeErr := base64.RawURLEncoding.Strict().DecodeString(cursor)
	after, ok := strings.CutPrefix(string(b), list+"\x00")
	if decodeErr != nil || !ok {
		return "", badCursor()
	}
	return after, nil
}

func badCursor() *Problem {
	return unprocessable(Detail{Path: "cursor", Message: "is not a cursor of this list", Fix: "the next_cursor as it was answered, with the same filters"})
}
