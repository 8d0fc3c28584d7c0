package queries

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"iter"
	"slices"
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
		body, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		var shown struct {
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(body, &shown); err != nil {
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

// WriteUsageCSV writes figures as a table with a header: the start of the bucket (empty:
// the whole time), what was grouped by, and the figures, latency in milliseconds.
func WriteUsageCSV(w io.Writer, rows []UsageRow, by []string) error {
	out := csv.NewWriter(w)
	header := []string{"time"}
	var groups []string
	for _, name := range []string{"keyspace", "owner", "key", "endpoint", "status", "code", ByIP} {
		if !slices.Contains(by, name) {
			continue
		}
		if name == "endpoint" {
			header = append(header, "method")
		}
		groups, header = append(groups, name), append(header, name)
	}
	if err := out.Write(append(header, "requests", "successes", "errors", "unknown", "denied", "rate_limited", "average_ms", "p50_ms", "p95_ms", "p99_ms", "cost_micros")); err != nil {
		return err
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return Cell(*s)
	}
	number := func(f *float64) string {
		if f == nil {
			return ""
		}
		return strconv.FormatFloat(*f, 'f', -1, 64)
	}
	for _, r := range rows {
		line := []string{""}
		if r.Time != 0 {
			line[0] = r.Time.String()
		}
		for _, name := range groups {
			switch name {
			case "endpoint":
				line = append(line, text(r.Method), text(r.Endpoint))
			case "status":
				line = append(line, strconv.Itoa(*r.Status))
			default:
				line = append(line, text(map[string]*string{"keyspace": r.Keyspace, "owner": r.Owner, "key": r.Key, "code": r.Code, ByIP: r.IP}[name]))
			}
		}
		for _, n := range []int64{r.Requests, r.Successes, r.Errors, r.Unknown, r.Denied, r.RateLimited} {
			line = append(line, strconv.FormatInt(n, 10))
		}
		for _, f := range []*float64{r.AverageMS, r.P50MS, r.P95MS, r.P99MS} {
			line = append(line, number(f))
		}
		if err := out.Write(append(line, strconv.FormatInt(r.CostMicros, 10))); err != nil {
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
