package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

const (
	// maxLines is how many keys one import brings, section 5 of the contract.
	maxLines = 10_000

	// importers is how many lines are worked on at once. Each waits for a disk.
	importers = 32
)

// ImportLine is one key to import.
type ImportLine struct {
	GrantRequest
	SHA256 string `json:"sha256" doc:"SHA-256 of the whole secret, in lower-case hex." example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	First  string `json:"first,omitempty" doc:"First characters of the secret, to show; no more than the keyspace's document allows."`
	Last   string `json:"last,omitempty" doc:"Last characters of the secret, likewise."`
}

// Imported says what became of each line.
type Imported struct {
	Created int            `json:"created"`
	Failed  int            `json:"failed"`
	Results []ImportResult `json:"results" nullable:"false" doc:"One for each line that is not blank, in order."`
}

// ImportResult is a key, or the problem with it.
type ImportResult struct {
	Line    int      `json:"line" doc:"From 1."`
	Key     *Key     `json:"key,omitempty"`
	Problem *Problem `json:"problem,omitempty"`

	Receipts []string `json:"receipts,omitempty" nullable:"false" doc:"With Receipt: 1, one for each event of the line: a signed note in base64."`
}

func (a *API) imports() {
	schema := a.schema(ImportLine{})
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "import-keys", Method: http.MethodPost, Path: "/v1/keys/import", Tags: []string{"Keys"},
			Summary:     "Import keys by their hashes",
			Description: "Makes a key of each line, from the SHA-256 of a secret that its customer already has. At most 10,000 lines; with more nothing is recorded. The good lines stand; the others come back with their problem, a hash that is known already among them.",
			RequestBody: &huma.RequestBody{Required: true, Description: "One JSON object per line.",
				Content: map[string]*huma.MediaType{"application/x-ndjson": {Schema: schema}}},
			Responses: map[string]*huma.Response{"200": a.answer("What became of each line.", a.schema(Imported{}))},
		},
		action: domain.KeysCreate, command: true, accepts: []string{"application/x-ndjson", "application/ndjson", "application/jsonl"}, body: maxImport,
	}, a.importKeys(a.decode(schema)))
}

func (a *API) importKeys(decode func([]byte, any) error) func(http.ResponseWriter, *http.Request, *call) error {
	return func(w http.ResponseWriter, r *http.Request, c *call) error {
		q, err := a.request(r.Context())
		if err != nil {
			return err
		}
		type line struct {
			number int
			body   []byte
		}
		var lines []line
		n := 0
		for body := range bytes.Lines(c.body) {
			n++
			if body = bytes.TrimSpace(body); len(body) == 0 {
				continue
			}
			if len(lines) == maxLines {
				return problem(http.StatusRequestEntityTooLarge, "TOO_MANY_LINES", fmt.Sprintf("The import has more than %d lines; nothing was recorded. Divide it.", maxLines))
			}
			lines = append(lines, line{n, body})
		}
		if len(lines) == 0 {
			return unreadable("it is empty, and this call needs one JSON object per line")
		}
		out := Imported{Results: make([]ImportResult, len(lines))}
		var sequence uint64
		var mu sync.Mutex // guards sequence
		var missing atomic.Bool
		next := make(chan int)
		var workers sync.WaitGroup
		for range min(importers, len(lines)) {
			workers.Go(func() {
				for i := range next {
					q := q
					if q.IdempotencyKey != "" {
						// The whole call's body is part of what each line is: a line that moved
						// to another place is another command.
						q.Body = slices.Concat(q.Body, []byte("\n"+strconv.Itoa(lines[i].number)))
						q.IdempotencyKey += "/" + strconv.Itoa(lines[i].number)
					}
					res, err := a.importLine(r.Context(), q, lines[i].body, decode)
					out.Results[i].Line = lines[i].number
					if err != nil {
						out.Results[i].Problem = a.answered(r.Context(), err).(*Problem)
						continue
					}
					out.Results[i].Key = new(Key(queries.ViewOf(res.Key, a.Now())))
					if c.answerHeader != nil {
						if out.Results[i].Receipts, err = a.receiptsOf(r.Context(), q, res.Sequence); err != nil {
							missing.Store(true)
						}
					}
					mu.Lock()
					sequence = max(sequence, res.Sequence)
					mu.Unlock()
				}
			})
		}
		for i := range lines {
			next <- i
		}
		close(next)
		workers.Wait()
		for _, result := range out.Results {
			if result.Key != nil {
				out.Created++
			} else {
				out.Failed++
			}
		}
		if missing.Load() {
			w.Header().Set(receiptMissing, receiptAgain)
		}
		w.Header().Set("Ledger-Sequence", strconv.FormatUint(max(sequence, a.Ring.Sequence()), 10))
		writeJSON(w, http.StatusOK, "application/json", out)
		return nil
	}
}

func (a *API) importLine(ctx context.Context, q commands.Request, body []byte, decode func([]byte, any) error) (commands.Result, error) {
	if ctx.Err() != nil {
		return commands.Result{}, ctx.Err()
	}
	if p := readable(body); p != nil {
		return commands.Result{}, p
	}
	var in ImportLine
	if err := decode(body, &in); err != nil {
		return commands.Result{}, err
	}
	cmd, err := in.command()
	if err != nil {
		return commands.Result{}, err
	}
	cmd.Secret = events.Secret{SHA256: in.SHA256, First: in.First, Last: in.Last}
	return a.Commands.ImportKey(ctx, q, in.Keyspace, in.Owner, cmd)
}
