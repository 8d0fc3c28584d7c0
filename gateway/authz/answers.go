package authz

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/keyledger/keyledger/verify/inbound"
)

// nginx answers 500 where auth_request gets any status but 2xx, 401 and 403, and
// shows no body of it. So it is told 403 and, in headers, the refusal as it should
// have been; its configuration keeps these in variables, asks for the answer below
// [AnswersPath], and relays that. Nothing is decided or counted a second time, and
// no node has to remember: the whole answer travels in X-Decision-Answer.

// maxCarried is the longest X-Decision-Answer, in bytes. All headers of the 403
// have to fit into nginx's proxy_buffer_size, 4 KiB by default.
const maxCarried = 2048

// told lets refuse write a refusal, in the form that the proxy understands.
func (z *Handler) told(w http.ResponseWriter, asked *asked, decision string, refuse func(http.ResponseWriter)) {
	if !asked.nginx {
		refuse(w)
		return
	}
	a := &answer{header: w.Header().Clone()}
	refuse(a)
	h := w.Header()
	for name, values := range a.header {
		if !strings.HasPrefix(name, "Content-") && !strings.HasPrefix(name, "Access-Control-") && name != "Vary" {
			h[name] = values
		}
	}
	h["X-Decision-Id"], h["X-Decision-Status"] = []string{decision}, []string{strconv.Itoa(a.status)}
	if carried := a.encode(); len(carried) <= maxCarried {
		h["X-Decision-Answer"] = []string{carried}
	} else if decision != "-" {
		z.kept.add(decision, a)
	}
	h["Content-Length"] = zero
	w.WriteHeader(http.StatusForbidden)
}

// answer relays a refusal that nginx was told of.
func (z *Handler) answer(w http.ResponseWriter, r *http.Request, decision, requestID string) {
	a := decode(r.Header.Get("X-Decision-Answer"))
	if a == nil {
		a = z.kept.get(decision)
	}
	if a == nil {
		status, err := strconv.Atoi(r.Header.Get("X-Decision-Status"))
		if err != nil || status < 400 || status > 599 {
			status = http.StatusForbidden
		}
		inbound.Problem(w, r, requestID, status, "REFUSED", "The request was refused. Why is known to another node, or was too long ago.")
		return
	}
	h := w.Header()
	for name, values := range a.header {
		h[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// answer is a refusal on its way to the client. It is an [http.ResponseWriter].
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }
func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}

var encoding = base64.RawURLEncoding

// encode writes the status, the header lines, an empty line and the body.
func (a *answer) encode() string {
	b := strconv.AppendInt(make([]byte, 0, 1024), int64(a.status), 10)
	for name, values := range a.header {
		for _, v := range values {
			b = append(append(append(append(b, '\n'), name...), ':'), v...)
		}
	}
	b = append(append(b, "\n\n"...), a.body...)
	return encoding.EncodeToString(b)
}

// decode is nil for what encode did not write.
func decode(s string) *answer {
	b, err := encoding.DecodeString(s)
	if err != nil || s == "" {
		return nil
	}
	head, body, ok := strings.Cut(string(b), "\n\n")
	if !ok {
		return nil
	}
	lines := strings.Split(head, "\n")
	status, err := strconv.Atoi(lines[0])
	if err != nil || status < 400 || status > 599 {
		return nil
	}
	a := &answer{status: status, header: http.Header{}, body: []byte(body)}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil
		}
		a.header[name] = append(a.header[name], value)
	}
	return a
}

// kept are the last answers that were too long to carry.
type kept struct {
	mu   sync.Mutex // guards the fields below
	ids  []string   // the oldest first
	last map[string]*answer
}

// maxKept is how many are kept: with bodies of 16 KiB, 8 MiB.
const maxKept = 512

func (k *kept) add(id string, a *answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == nil {
		k.last = map[string]*answer{}
	}
	if len(k.ids) == maxKept {
		delete(k.last, k.ids[0])
		k.ids = slices.Delete(k.ids, 0, 1)
	}
	k.ids, k.last[id] = append(k.ids, id), a
}

func (k *kept) get(id string) *answer {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last[id]
}
