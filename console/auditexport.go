package console

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/domain"
)

// exportData is the form of an export.
type exportData struct {
	Ask       *auditAsk
	What      []struct{ Name, Word string }
	Kinds     []eventKind
	Spans     any
	Keyspaces []string
	Format    string
	MayProve  bool
	Personal  bool
	Once      string
	Problem   *api.Problem
}

func (v *visit) auditExport() error {
	ask := v.auditAsk()
	ask.query(v.Now())
	with := *ask
	searched(ask.Q, &with) // a search for a key or an owner is a choice of one
	ask.Keyspace, ask.Owner, ask.Key = with.Keyspace, with.Owner, with.Key
	return v.showExport(ask, v.r.URL.Query().Get("format"), nil)
}

func (v *visit) showExport(ask *auditAsk, format string, problem *api.Problem) error {
	d := exportData{Ask: ask, What: auditWhat, Kinds: eventKinds, Spans: auditSpans, Format: format, MayProve: v.may(domain.LogRead), Personal: v.personal(), Once: newToken(), Problem: problem}
	if d.Format == "" {
		d.Format = "csv"
		if d.MayProve {
			d.Format = "bundle"
		}
	}
	all, err := v.keyspaces()
	if err != nil {
		return err
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	}
	return v.show("auditexport", "Export the audit log", d)
}

// auditFile answers the file itself.
func (v *visit) auditFile() error {
	if err := v.r.ParseForm(); err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "The form cannot be read."}
	}
	ask := &auditAsk{What: v.form("what"), Keyspace: v.form("keyspace"), Owner: v.form("owner"), Key: v.form("key"), Span: v.form("span"), From: v.form("from"), To: v.form("to")}
	going, end := v.begin(v.form("once"))
	err := v.file(ask, v.form("format"), going)
	end(err == nil)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 {
		return v.showExport(ask, v.form("format"), p)
	}
	return err
}

func (v *visit) file(ask *auditAsk, format string, going *exporting) error {
	about := []string{"audit"}
	for _, s := range []string{ask.Keyspace, ask.Owner, ask.Key} {
		if s != "" {
			about = append(about, s)
		}
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '_'
	}, strings.Join(append(about, v.Now().UTC().Format("20060102-1504")), "-"))
	q := ask.query(v.Now())
	switch format {
	case "csv":
		return v.plainExport(q, "text/csv", name+".csv", going)
	case "ndjson":
		return v.plainExport(q, "application/x-ndjson", name+".ndjson", going)
	case "cloudevents":
		return v.plainExport(q, "application/cloudevents-batch+json", name+".json", going)
	case "bundle":
		return v.bundleExport(q, name+".tar.gz", going)
	}
	return &api.Problem{Status: http.StatusUnprocessableEntity, Title: "Unprocessable Entity", Detail: "Choose one of the formats."}
}

// download hands an answer of the API on to the browser, which keeps it, and counts its
// lines. An answer that is a problem is kept here instead.
type download struct {
	w       http.ResponseWriter
	name    string
	going   *exporting
	problem *answer
	begun   bool
}

func (d *download) Unwrap() http.ResponseWriter { return d.w }

func (d *download) Header() http.Header {
	if d.problem != nil {
		return d.problem.header
	}
	return d.w.Header()
}

func (d *download) WriteHeader(status int) {
	if d.begun || d.problem != nil {
		return
	}
	if status >= 300 {
		d.problem = &answer{header: http.Header{}, status: status}
		return
	}
	d.begun = true
	d.w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", d.name))
	d.w.WriteHeader(status)
}

func (d *download) Write(b []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	if d.problem != nil {
		return d.problem.Write(b)
	}
	d.going.done.Add(int64(bytes.Count(b, []byte("\n"))))
	return d.w.Write(b)
}

func (v *visit) plainExport(q url.Values, accept, name string, going *exporting) error {
	d := &download{w: v.w, name: name, going: going}
	to := v.w
	v.w = d
	err := v.through("/v1/audit/events", q, accept)
	v.w = to
	if err == nil && d.problem != nil {
		to.Header().Del("Content-Type")
		return problemOf(d.problem)
	}
	return err
}

func problemOf(a *answer) error {
	p := &api.Problem{}
	if err := json.Unmarshal(a.body.Bytes(), p); err != nil || p.Status == 0 {
		p = &api.Problem{Status: cmp.Or(a.status, http.StatusInternalServerError), Title: http.StatusText(a.status), Code: "UNEXPECTED"}
	}
	return p
}

// bundleExport makes a bundle of the API's answers, as `keyledger audit export` does. It
// is written as it is read; one that cannot be finished ends with a broken connection.
func (v *visit) bundleExport(q url.Values, name string, going *exporting) error {
	in := map[string]string{}
	for _, field := range []string{"keyspace", "owner", "key", "from", "to"} {
		if s := q.Get(field); s != "" {
			in[field] = s
		}
	}
	var head bundle.Head
	if _, err := v.call(http.MethodPost, "/v1/audit/exports", nil, nil, in, &head); err != nil {
		return err
	}
	for _, s := range head.Manifest.Streams {
		going.total.Add(s.Leaves)
	}
	v.attachment("application/gzip", name)
	out := bufio.NewWriterSize(v.w, 256<<10)
	w, err := bundle.NewWriter(out, head)
	if err != nil {
		return err
	}
	for i := 0; w.Stream() != "" && err == nil && i < len(head.Manifest.Streams); i++ {
		err = v.bundleStream(w, &head.Manifest, going)
	}
	if err == nil && w.Stream() != "" {
		err = fmt.Errorf("%s ends %d events early", w.Stream(), w.Left())
	}
	if err = errors.Join(err, w.Close(), out.Flush()); err != nil {
		v.Log.ErrorContext(v.r.Context(), "export not finished", "path", v.r.URL.Path, "error", err)
		going.over(false)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// piped is an answer of the API that is read while it is written.
type piped struct {
	header http.Header
	status int
	w      *io.PipeWriter
}

func (p *piped) Header() http.Header { return p.header }

func (p *piped) WriteHeader(status int) { p.status = cmp.Or(p.status, status) }

func (p *piped) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	if p.status >= 300 {
		return 0, fmt.Errorf("the API answered %d: %.300s", p.status, b)
	}
	return p.w.Write(b)
}

// bundleStream writes the leaves and events of the stream that is next.
func (v *visit) bundleStream(w *bundle.Writer, m *bundle.Manifest, going *exporting) error {
	stream, last := w.Stream(), uint64(0)
	for _, s := range m.Streams {
		if s.Stream == stream {
			last = s.Last
		}
	}
	path := "/v1/audit/exports/" + strconv.FormatUint(m.Exported.Sequence, 10)
	r, err := v.request(v.r.Context(), http.MethodGet, path, url.Values{"stream": {stream}, "last": {strconv.FormatUint(last, 10)}}, nil)
	if err != nil {
		return err
	}
	from, to := io.Pipe()
	var answering sync.WaitGroup
	defer answering.Wait()
	defer from.Close()
	answering.Go(func() {
		err := errors.New("it was cut off")
		defer func() {
			if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
				err = fmt.Errorf("panic: %v", cause)
			}
			to.CloseWithError(err)
		}()
		p := &piped{header: http.Header{}, w: to}
		v.API.ServeHTTP(p, r)
		if err = io.EOF; p.status >= 300 {
			err = fmt.Errorf("the API answered %d", p.status)
		}
	})
	lines := bufio.NewReaderSize(from, 256<<10)
	for w.Stream() == stream {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("read %s: %w", stream, err)
		}
		leaf, err := bundle.ParseLine(stream, line[:len(line)-1])
		if err != nil {
			return err
		}
		var body []byte
		if m.Within(leaf.Time) {
			if body, err = lines.ReadBytes('\n'); err != nil {
				return fmt.Errorf("read %s: %w", stream, err)
			}
			body = body[:len(body)-1]
		}
		if err := w.Leaf(&leaf, body); err != nil {
			return err
		}
		going.done.Add(1)
	}
	return nil
}

// exporting is an export that goes on in this process, for whoever began it.
type exporting struct {
	done, total atomic.Int64 // events; total 0: not known
	ended       atomic.Int32 // 1: whole, 2: broken off
}

func (e *exporting) over(whole bool) {
	if whole {
		e.ended.CompareAndSwap(0, 1)
	} else {
		e.ended.CompareAndSwap(0, 2)
	}
}

// exports are those of this process, by session and the token of their form. They are
// kept a little after their end.
var exports = struct {
	mu sync.Mutex // guards by
	by map[string]*exporting
}{by: map[string]*exporting{}}

// keptExport is how long it can be asked how an export ended.
const keptExport = time.Minute

func (v *visit) begin(token string) (*exporting, func(whole bool)) {
	e, name := &exporting{}, v.session.id+" "+token
	exports.mu.Lock()
	defer exports.mu.Unlock()
	exports.by[name] = e
	return e, func(whole bool) {
		e.over(whole)
		time.AfterFunc(keptExport, func() {
			exports.mu.Lock()
			defer exports.mu.Unlock()
			if exports.by[name] == e {
				delete(exports.by, name)
			}
		})
	}
}

// auditProgress is how far an export is.
func (v *visit) auditProgress() error {
	exports.mu.Lock()
	e := exports.by[v.session.id+" "+v.r.URL.Query().Get("once")]
	exports.mu.Unlock()
	answer := struct {
		Known bool  `json:"known"`
		Done  int64 `json:"done"`
		Total int64 `json:"total"`
		Ended bool  `json:"ended"`
		Whole bool  `json:"whole"`
	}{}
	if e != nil {
		answer.Known, answer.Done, answer.Total = true, e.done.Load(), e.total.Load()
		answer.Ended, answer.Whole = e.ended.Load() != 0, e.ended.Load() == 1
	}
	v.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(v.w).Encode(answer)
}
