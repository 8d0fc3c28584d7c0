package queries

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"iter"
	"strconv"
	"strings"
)

// CSVHeader names the columns of [WriteCSV].
var CSVHeader = []string{"time", "type", "keyspace", "owner", "key", "key_version", "actor_type", "actor_id", "via", "request_id", "command",
	"source_ip", "user_agent", "id", "version", "stream", "sequence", "line", "data"}

// WriteCSV writes events as a table with a header, the data of an event as JSON
// in the last column. A spreadsheet takes no cell for a formula: see [Cell].
// It ends with the first error of the events or the writer.
func WriteCSV(w io.Writer, list iter.Seq2[AuditEvent, error]) error {
	out := csv.NewWriter(w)
	if err := out.Write(CSVHeader); err != nil {
		return err
	}
	for e, err := range list {
		if err != nil {
			out.Flush()
			return err
		}
		var shown struct {
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(e.json, &shown); err != nil {
			return err
		}
		v := e.Event
		row := []string{v.Time.String(), v.Type, v.Keyspace, v.Owner, v.Key, strconv.FormatUint(v.KeyVersion, 10), v.Actor.Type, v.Actor.ID, v.Via, v.RequestID, v.Command,
			e.SourceIP, e.UserAgent, v.ID, strconv.Itoa(v.Version), e.Stream, strconv.FormatUint(e.Sequence, 10), strconv.Itoa(e.Line), string(shown.Data)}
		for i := range row {
			row[i] = Cell(row[i])
		}
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// Cell makes a text safe to open in a spreadsheet: one that would begin a
// formula gets an apostrophe in front (OWASP, CSV Injection). Carriage returns
// and NULs, which readers of CSV treat differently, become spaces.
func Cell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		s = "'" + s
	}
	return strings.NewReplacer("\r\n", "\n", "\r", " ", "\x00", " ").Replace(s)
}
