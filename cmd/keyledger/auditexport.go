package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

func (a *app) auditExportCommand() *cobra.Command {
	var file, format, from, to, witnessed string
	var scope bundle.Scope
	cmd := &cobra.Command{
		Use: "export", Short: "Export events with the proof that they are complete and unaltered", Args: takes(),
		Long: `Export events as a bundle, a tar.gz that proves itself: whoever has the log's key
checks it offline with "keyledger audit verify", or with tools/verify_bundle.py. It is
complete as of now: of everything, of a keyspace, of an owner or of a key, with all
streams. --from and --to leave out the bytes of other events; what proves that nothing
else is missing stays. A lost connection is taken up again. The bundle is checked
before it gets its name.

Where the log asks for signatures of witnesses (log_policy), they come after the
export: it is waited for them, for five minutes or as long as --witnessed says, and the
bundle passes "keyledger audit verify --policy". Where they do not come in that time, an
export of everything ends where their signatures end, and says what came later; one of a
part is not made (exit code 7). --witnessed=no asks nobody.

--format csv, ndjson and cloudevents write the same events without proofs, with
personal data opened where you may see it.`,
		Example: `  keyledger audit export -o bundle.tar.gz
  keyledger audit export -o org_1.tar.gz --keyspace parcelbird --owner org_1
  keyledger audit export -o key.csv --format csv --key key_… --from 90d`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError("-o is needed: the file to write")
			}
			var err error
			if from, err = a.past("--from", from); err != nil {
				return err
			}
			if to, err = a.past("--to", to); err != nil {
				return err
			}
			wait, err := witnessWait(witnessed)
			if err != nil {
				return err
			}
			switch format {
			case "bundle":
				return a.exportBundle(cmd, file, scope, from, to, wait)
			case "csv", "ndjson", "cloudevents":
				return a.exportPlain(cmd, file, format, scope, from, to)
			}
			return usageError("--format is bundle, csv, ndjson or cloudevents")
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the file to write")
	cmd.Flags().StringVar(&format, "format", "bundle", "bundle, or without proofs: csv, ndjson, cloudevents")
	cmd.Flags().StringVar(&scope.Keyspace, "keyspace", "", "of this keyspace")
	cmd.Flags().StringVar(&scope.Owner, "owner", "", "of this owner and its keys")
	cmd.Flags().StringVar(&scope.Key, "key", "", "of this key id")
	cmd.Flags().StringVar(&from, "from", "", "not before this time, date or distance (24h)")
	cmd.Flags().StringVar(&to, "to", "", "before this time, date or distance")
	cmd.Flags().StringVar(&witnessed, "witnessed", "", "how long to wait for the witnesses that the log asks for (default 5m), or no")
	cmd.Flags().Lookup("witnessed").NoOptDefVal = witnessTime.String()
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"bundle", "csv", "ndjson", "cloudevents"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// exported is what is printed of an export.
type exported struct {
	File     string         `json:"file"`
	Bytes    int64          `json:"bytes"`
	Format   string         `json:"format"`
	Events   int64          `json:"events,omitempty"`   // of a plain export
	Verified *bundle.Report `json:"verified,omitempty"` // of a bundle
}

// besides is a new file in the directory of another, which it may take the place of. It
// is made before anything is asked of the service, where it is recorded.
func besides(file string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".keyledger-export-*")
	if err != nil {
		return nil, fmt.Errorf("-o: no file can be written in %s: %w", filepath.Dir(file), errors.Unwrap(err))
	}
	return f, nil
}

// exportBundle writes a bundle beside its place, checks it, and moves it there.
func (a *app) exportBundle(cmd *cobra.Command, file string, scope bundle.Scope, from, to string, wait time.Duration) error {
	f, err := besides(file)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	c, err := a.client()
	if err != nil {
		return err
	}
	body := map[string]any{}
	for name, value := range map[string]string{"keyspace": scope.Keyspace, "owner": scope.Owner, "key": scope.Key, "from": from, "to": to} {
		if value != "" {
			body[name] = value
		}
	}
	head, err := c.beginExport(cmd.Context(), body)
	if err != nil {
		return err
	}
	o := bundle.Options{}
	policy, err := audit.ParsePolicy([]byte(head.Policy))
	if err != nil {
		return fmt.Errorf("the answer is not what this program expects (%w): is the service of the same version?", err)
	}
	if policy.Asks() && wait >= 0 {
		if err := a.witnessExport(cmd.Context(), c, &head, policy, body, wait); err != nil {
			return err
		}
		o.Policy = []byte(head.Policy)
	}
	size, err := a.writeBundle(cmd.Context(), c, f, head)
	if err != nil {
		return err
	}
	if o.Keys, err = logKeys(head.Keys); err != nil {
		return err
	}
	report, err := a.checkBundle(f.Name(), o)
	if err != nil {
		return err
	}
	if !report.Pass {
		bad := file + ".failed"
		if err := os.Rename(f.Name(), bad); err != nil {
			return err
		}
		if err := a.printReport(bad, report); err != nil {
			return err
		}
		a.note("keyledger: what the service answered does not prove itself: is the log in doubt? `keyledger doctor` and the service's log say more.")
		return quietly(exitProof)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	if a.asJSON {
		return a.printValue(exported{file, size, "bundle", 0, &report})
	}
	if err := a.printReport(file, report); err != nil {
		return err
	}
	a.note("checked with the keys that the service itself named; an auditor takes one from `keyledger audit key`, by another way")
	return nil
}

func (c *client) beginExport(ctx context.Context, body map[string]any) (head bundle.Head, err error) {
	r, err := c.do(ctx, call{method: http.MethodPost, path: path("audit", "exports"), body: jsonBody(body)})
	if err != nil {
		return head, err
	}
	return head, r.decode(&head)
}

// exportAttempts is how often in a row a reading that gets no further is taken up again.
const exportAttempts = 8

func (a *app) writeBundle(ctx context.Context, c *client, f *os.File, head bundle.Head) (size int64, err error) {
	out := bufio.NewWriterSize(f, 1<<20)
	w, err := bundle.NewWriter(out, head)
	if err != nil {
		return 0, fmt.Errorf("the answer is not what this program expects (%w): is the service of the same version?", err)
	}
	var total, done int64
	last := map[string]uint64{}
	for _, s := range head.Manifest.Streams {
		total += s.Leaves
		last[s.Stream] = s.Last
	}
	bar := a.progress("exporting")
	defer func() { bar.end(err == nil) }()
	export := strconv.FormatUint(head.Manifest.Exported.Sequence, 10)
	for stream := w.Stream(); stream != ""; stream = w.Stream() {
		after := audit.Place{Stream: stream}
		wait, failed := retryFirst, 0
		for w.Stream() == stream {
			before := done
			err := func() error {
				q := url.Values{"stream": {stream}, "last": {strconv.FormatUint(last[stream], 10)}}
				if after.Sequence > 0 {
					q.Set("after_sequence", strconv.FormatUint(after.Sequence, 10))
					q.Set("after_line", strconv.Itoa(after.Line))
				}
				resp, err := c.open(ctx, call{method: http.MethodGet, path: path("audit", "exports", export), query: q, header: http.Header{"Accept": {"text/plain"}}})
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				return readExport(resp.Body, w, stream, head.Manifest.Within, func(l *audit.Leaf) {
					after = l.Place
					if done++; done%1024 == 0 || done == total {
						bar.set(done, total)
					}
				})
			}()
			if err == nil {
				if w.Stream() == stream {
					return 0, fmt.Errorf("%s ends %d events before what was signed: was it pruned meanwhile? Export again", stream, w.Left())
				}
				break
			}
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			lost, ok := errors.AsType[*unreachable](err)
			if errors.Is(err, errCut) {
				lost, ok = &unreachable{c.target.URL, c.target.urlFrom, true, "", err}, true
			}
			if !ok {
				return 0, err
			}
			if failed++; done > before {
				wait, failed = retryFirst, 0
			}
			if failed >= exportAttempts {
				return 0, lost
			}
			a.note("keyledger: the connection was lost; going on behind %s", after)
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(wait):
			}
			wait = min(2*wait, retryLast)
		}
	}
	if err := errors.Join(w.Close(), out.Flush(), f.Sync()); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

// longestLine is that of an event, with its newline.
const longestLine = 16<<20 + 1

var errCut = errors.New("the answer was cut off")

// readExport writes the leaves and events of an answer until the stream is complete. A
// connection that was cut off is an error that is errCut.
func readExport(r io.Reader, w *bundle.Writer, stream string, within func(events.Time) bool, wrote func(*audit.Leaf)) error {
	lines := bufio.NewReaderSize(r, 256<<10)
	next := func() ([]byte, error) {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			long := bytes.Clone(line)
			for errors.Is(err, bufio.ErrBufferFull) && len(long) <= longestLine {
				line, err = lines.ReadSlice('\n')
				long = append(long, line...)
			}
			line = long
		}
		if err == io.EOF && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
	for w.Stream() == stream {
		line, err := next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errCut, err)
		}
		leaf, err := bundle.ParseLine(stream, line)
		if err != nil {
			return fmt.Errorf("the answer is not what this program expects (%w): is the service of the same version?", err)
		}
		var body []byte
		if within(leaf.Time) {
			if body, err = next(); err != nil {
				return fmt.Errorf("%w: %w", errCut, err)
			}
		}
		if err := w.Leaf(&leaf, body); err != nil {
			return err
		}
		wrote(&leaf)
	}
	return nil
}

// exportPlain writes events without proofs.
func (a *app) exportPlain(cmd *cobra.Command, file, format string, scope bundle.Scope, from, to string) error {
	f, err := besides(file)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	c, err := a.client()
	if err != nil {
		return err
	}
	kind := "application/x-ndjson"
	if format == "csv" {
		kind = "text/csv"
	}
	q := set(url.Values{}, "keyspace", scope.Keyspace, "owner", scope.Owner, "key", scope.Key, "from", from, "to", to)
	resp, err := c.open(cmd.Context(), call{method: http.MethodGet, path: path("audit", "events"), query: q, header: http.Header{"Accept": {kind}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	e := exported{File: file, Format: format}
	out := bufio.NewWriterSize(f, 1<<20)
	if format == "cloudevents" {
		e.Events, err = writeCloudEvents(out, resp.Body)
	} else {
		_, err = io.Copy(out, resp.Body)
	}
	if err != nil {
		return fmt.Errorf("the export ended before its end, nothing was kept: %w", err)
	}
	if err := errors.Join(out.Flush(), f.Sync()); err != nil {
		return err
	}
	if e.Bytes, err = f.Seek(0, io.SeekCurrent); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	if a.asJSON {
		return a.printValue(e)
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %d bytes, without proofs\n", clean(file), e.Bytes)
	return err
}

// writeCloudEvents writes the events of an NDJSON answer as CloudEvents, one a line.
func writeCloudEvents(w io.Writer, r io.Reader) (n int64, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	var out []byte
	for ; lines.Scan(); n++ {
		var e eventView
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return n, err
		}
		out = events.AppendCloudEvent(out[:0], &events.Record{Stream: e.Stream, Sequence: e.Sequence, Line: e.Line,
			Event: events.Envelope{ID: e.ID, Type: e.Type, Time: e.Time, Keyspace: e.Keyspace, Owner: e.Owner, Key: e.Key}}, lines.Bytes())
		if _, err := w.Write(append(out, '\n')); err != nil {
			return n, err
		}
	}
	return n, lines.Err()
}
