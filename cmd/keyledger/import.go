package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"

	"github.com/spf13/cobra"
)

// importCall is the most keys that one call may bring, importBytes the size
// from which the next line goes into another call.
const (
	importCall  = 10_000
	importBytes = 8 << 20
)

// importLine is the answer about one line: a key, or the problem with it.
type importLine struct {
	Line    int            `json:"line"` // from 1, of the call
	Key     *keyRef        `json:"key,omitempty"`
	Problem *importProblem `json:"problem,omitempty"`
	raw     json.RawMessage
}

type importProblem struct {
	Code   string `json:"code"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct {
		Path    string `json:"path"`
		Message string `json:"message"`
	} `json:"errors"`
}

func (p *importProblem) text() string {
	s := p.Detail
	if s == "" {
		s = p.Title
	}
	for _, e := range p.Errors {
		s += "; " + e.Path + ": " + e.Message
	}
	if p.Code != "" {
		s += " (" + p.Code + ")"
	}
	return clean(s)
}

func (a *app) keysImportCommand() *cobra.Command {
	var f commandFlags
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Bring keys of another system, by the SHA-256 of their secrets", Args: takes("FILE"),
		Long: `Create a key for each line of a file (- is stdin): the JSON of ` + "`keys create`" + ` with
"sha256", the hash of the whole secret in hex, instead of a secret. Lines are
sent in calls of 10,000. The good lines stand; the others are listed, and the
exit code is then 1. A hash that is already known is such a problem, so that
the same file may be sent again.`,
		Example: `  keyledger keys import keys.ndjson`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var in io.Reader = a.stdin
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				in = file
			}
			calls, total, err := chunks(in)
			if err != nil {
				return err
			}
			return a.importAll(cmd, &f, calls, total)
		},
	}
	f.add(cmd)
	return cmd
}

// chunk is the body of one call.
type chunk struct {
	body  []byte
	lines []int // place in the file of each line that is not empty
}

// chunks divides lines into calls, and leaves out empty ones.
func chunks(r io.Reader) (calls []chunk, total int, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	var c chunk
	for place := 1; in.Scan(); place++ {
		line := bytes.TrimSpace(in.Bytes())
		if len(line) == 0 {
			continue
		}
		if len(c.lines) == importCall || len(c.body) >= importBytes {
			calls, c = append(calls, c), chunk{}
		}
		c.body = append(append(c.body, line...), '\n')
		c.lines = append(c.lines, place)
		total++
	}
	if err := in.Err(); err != nil {
		return nil, 0, fmt.Errorf("read keys: %w", err)
	}
	if len(c.lines) > 0 {
		calls = append(calls, c)
	}
	if total == 0 {
		return nil, 0, usageError("there is no line to import")
	}
	return calls, total, nil
}

func (a *app) importAll(cmd *cobra.Command, f *commandFlags, calls []chunk, total int) error {
	bar := a.progress("import")
	idem := f.idem
	if idem == "" {
		idem = newIdempotencyKey()
	}
	created, done := 0, 0
	var problems [][]string
	fail := func(err error) error {
		bar.end(false)
		if done > 0 {
			a.note("%d of %d lines were sent, %d keys created", done, total, created)
		}
		return err
	}
	for i, c := range calls {
		q := call{method: http.MethodPost, path: path("keys", "import"), body: c.body, contentType: "application/x-ndjson", idem: idem}
		if i > 0 {
			q.idem += "-" + strconv.Itoa(i)
		}
		r, err := a.send(cmd, q)
		if err != nil {
			return fail(err)
		}
		lines, err := importLines(r)
		if err != nil {
			return fail(err)
		}
		for _, l := range lines {
			place := l.Line
			if l.Line >= 1 && l.Line <= len(c.lines) {
				place = c.lines[l.Line-1]
			}
			if l.Problem != nil {
				problems = append(problems, []string{strconv.Itoa(place), l.Problem.text()})
			} else {
				created++
			}
			if a.asJSON {
				fmt.Fprintf(a.stdout, "%s\n", l.at(place))
			}
		}
		done += len(c.lines)
		bar.set(int64(done), int64(total))
	}
	bar.end(true)
	if !a.asJSON {
		if len(problems) > 0 {
			if err := a.rows([]string{"Line", "Problem"}, problems); err != nil {
				return err
			}
		}
		a.note("created: %d, lines with a problem: %d", created, len(problems))
	}
	if len(problems) > 0 {
		return quietly(exitFailed)
	}
	return nil
}

// at is the line as it was answered, with its place in the file.
func (l importLine) at(place int) []byte {
	var members map[string]json.RawMessage
	if json.Unmarshal(l.raw, &members) != nil {
		return l.raw
	}
	members["line"] = jsonBody(place)
	return jsonBody(members)
}

// importLines reads the answer: {results: […]}, or NDJSON.
func importLines(r *answer) ([]importLine, error) {
	var answered struct {
		Results []json.RawMessage `json:"results"`
	}
	raws := []json.RawMessage{}
	if json.Unmarshal(r.body, &answered) == nil && answered.Results != nil {
		raws = answered.Results
	} else {
		for line := range bytes.Lines(r.body) {
			if line = bytes.TrimSpace(line); len(line) > 0 {
				raws = append(raws, line)
			}
		}
	}
	lines, err := decodeAll[importLine](raws)
	for i := range lines {
		lines[i].raw = raws[i]
		if lines[i].Line == 0 {
			lines[i].Line = i + 1
		}
	}
	return lines, err
}
