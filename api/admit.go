package api

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// admit lets a request in: who asks, whether they may, and a body that can be
// read. Nothing of the body is read for a stranger.
func (a *API) admit(w http.ResponseWriter, r *http.Request, rt *route, takesBody bool) error {
	c := callOf(r.Context())
	c.method, c.path, c.header = r.Method, r.URL.EscapedPath(), r.Header
	c.ip = func() string { return a.ClientIP(r) }
	if rt.action != "" || rt.known {
		authority, err := a.authenticate(r)
		if err != nil {
			return err
		}
		c.authority = authority
		if !rt.known {
			if err := authority.Require(rt.action); err != nil {
				return err
			}
		}
	}
	if rt.command {
		if err := a.askedReceipt(w, r); err != nil {
			return err
		}
	}
	if !takesBody {
		return nil
	}
	return readBody(w, r, c, rt)
}

// authenticate finds the key whose secret was sent, root keys first, and judges
// it as a verifier does. Whether it may do what it asks is not decided here.
func (a *API) authenticate(r *http.Request) (domain.Authority, error) {
	if authority, err, ok := a.callerOf(r); ok {
		return authority, err
	}
	// Root keys and keys of every keyspace are sent alike here, whatever header
	// their own API takes them in.
	secret, code := domain.RootKeyspace().Credential(r.Header.Values("Authorization"))
	if code != "" {
		return domain.Authority{}, unauthorized(code)
	}
	hash := domain.HashSecret(secret)
	root := domain.RootKeyspace()
	if key := a.Ring.BySecret(events.RootKeyspace, hash); key != nil {
		return a.judge(r, root, secret, hash, key)
	}
	err := error(unauthorized(domain.CodeUnknownKey))
	for _, ks := range a.Ring.Keyspaces() {
		key := a.Ring.BySecret(ks.Document.Keyspace, hash)
		if key == nil {
			continue
		}
		// The same hash may have been imported into two keyspaces.
		var authority domain.Authority
		if authority, err = a.judge(r, ks, secret, hash, key); err == nil {
			return authority, nil
		}
	}
	return domain.Authority{}, err
}

func (a *API) judge(r *http.Request, ks *domain.Keyspace, secret string, hash [32]byte, key *domain.Key) (domain.Authority, error) {
	req := domain.Request{Keyspace: key.Keyspace, Key: secret}
	if len(key.AllowedIPs) > 0 {
		req.IP = a.ClientIP(r)
	}
	// No Origin is known here, not unchecked: a key with a list needs one.
	req.Origin = new(strings.Join(r.Header.Values("Origin"), ", "))
	code := ks.JudgeKey(&req, secret, hash, key, a.Ring.Owner(key.Keyspace, key.Owner), events.At(a.Now()))
	if code != domain.CodeValid {
		return domain.Authority{}, unauthorized(code)
	}
	return domain.AuthorityOf(key, ks), nil
}

func unauthorized(code domain.Code) *Problem {
	detail := code.Message()
	switch code {
	case domain.CodeMissingCredential:
		detail = "No credential was sent: send Authorization: Bearer and a root key."
	case domain.CodeMalformedCredential:
		detail = "The Authorization header is not well-formed: it is Bearer, one space and a root key, once."
	case domain.CodeUnknownKey:
		detail = "The credential is not known."
	}
	return problem(code.Status(), string(code), detail)
}

var jsonOnly = []string{"application/json"}

// bodyTime is how long a client may take to send its body.
const bodyTime = 30 * time.Second

func readBody(w http.ResponseWriter, r *http.Request, c *call, rt *route) error {
	accepts := rt.accepts
	if accepts == nil {
		accepts = jsonOnly
	}
	values := r.Header.Values("Content-Type")
	mediaType := accepts[0]
	if len(values) > 0 {
		var err error
		if mediaType, _, err = mime.ParseMediaType(values[0]); err != nil || len(values) > 1 || !slices.Contains(accepts, mediaType) {
			return problem(http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "The body of this call is "+strings.Join(accepts, ", ")+": say so in Content-Type.")
		}
	}
	if r.Header.Get("Content-Encoding") != "" {
		return problem(http.StatusUnsupportedMediaType, "UNSUPPORTED_ENCODING", "A body is sent without a Content-Encoding.")
	}
	limit := rt.body
	if limit == 0 {
		limit = maxBody
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime)) // a writer that cannot has its own way
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = rc.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE", "The body is larger than "+strconv.FormatInt(limit, 10)+" bytes.")
	}
	if err != nil {
		return unreadable("it did not arrive whole")
	}
	if len(body) == 0 && rt.bodyOptional {
		r.Body = http.NoBody
		return nil
	}
	if mediaType == "application/json" {
		if p := readable(body); p != nil {
			return p
		}
	}
	c.body, c.mediaType = body, mediaType
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	return nil
}

// via is what a fact says of the way it came.
func (c *call) via() string {
	if c.console {
		return "console"
	}
	if strings.HasPrefix(c.header.Get("User-Agent"), "keyledger-cli/") {
		return "cli"
	}
	return "api"
}

// maxIdempotencyKey is the longest Idempotency-Key, in characters.
const maxIdempotencyKey = 255

// request is the part of a command that every call has: who asks, and under
// which idempotency key. The command itself is its method, path and body.
func (a *API) request(ctx context.Context) (commands.Request, error) {
	c := callOf(ctx)
	q := commands.Request{Authority: c.authority, Via: c.via(), RequestID: c.requestID}
	if values := c.header.Values("Idempotency-Key"); len(values) > 0 {
		if err := validIdempotencyKey(values); err != nil {
			return q, err
		}
		q.IdempotencyKey = values[0]
		q.Body = slices.Concat([]byte(c.method+" "+c.path+"\n"), c.body)
	}
	version, err := ifMatch(c.header.Values("If-Match"))
	q.IfMatch = version
	return q, err
}

func validIdempotencyKey(values []string) error {
	ok := len(values) == 1 && len(values[0]) >= 1 && len(values[0]) <= maxIdempotencyKey
	for i := 0; ok && i < len(values[0]); i++ {
		ok = values[0][i] >= ' ' && values[0][i] <= '~'
	}
	if ok {
		return nil
	}
	p := problem(http.StatusBadRequest, "INVALID_IDEMPOTENCY_KEY", "The Idempotency-Key cannot be used.")
	p.Errors = []Detail{{Path: "header.Idempotency-Key", Message: "is not 1 to 255 printable ASCII characters, once", Fix: "send a fresh UUID"}}
	return p
}

// ifMatch reads "<version>", W/"<version>", a bare number, or * for any.
func ifMatch(values []string) (*uint64, error) {
	if len(values) == 0 || len(values) == 1 && strings.TrimSpace(values[0]) == "*" {
		return nil, nil
	}
	tag := strings.TrimPrefix(strings.TrimSpace(values[0]), "W/")
	if len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' {
		tag = tag[1 : len(tag)-1]
	}
	n, err := strconv.ParseUint(tag, 10, 64)
	if err != nil || len(values) > 1 {
		p := problem(http.StatusBadRequest, "INVALID_IF_MATCH", "The If-Match header cannot be read.")
		p.Errors = []Detail{{Path: "header.If-Match", Message: "is not the ETag of a key", Fix: `the ETag as it was answered, such as "3"`}}
		return nil, p
	}
	return &n, nil
}

// patience is how long a read waits for Min-Sequence.
const patience = 5 * time.Second

// await waits until wait has reached the sequence that the caller wants to see.
func (a *API) await(ctx context.Context, wait func(context.Context, uint64) error) error {
	values := callOf(ctx).header.Values("Min-Sequence")
	if len(values) == 0 {
		return nil
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	if err != nil || len(values) > 1 {
		p := problem(http.StatusBadRequest, "INVALID_MIN_SEQUENCE", "The Min-Sequence header cannot be read.")
		p.Errors = []Detail{{Path: "header.Min-Sequence", Message: "is not a sequence of the ledger", Fix: "the Ledger-Sequence that a command answered with"}}
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if wait(ctx, n) != nil {
		return unavailable("SEQUENCE_NOT_REACHED", "What is read here has not reached Min-Sequence yet: ask again.", 1)
	}
	return nil
}
