package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// Bucket is the NATS KV bucket of sessions and one-time codes. What is in it can
// be lost: everybody signs in again.
const Bucket = "keyledger_sessions"

// How long a session lasts at most, and since its last page; and how long a
// one-time code can be used.
const (
	sessionTime = 12 * time.Hour
	idleTime    = 2 * time.Hour
	codeTime    = 10 * time.Minute
)

// Sessions keeps who is signed in. A token is in one browser's cookie, its SHA-256
// is the name of the session here. It is safe for concurrent use.
type Sessions struct {
	kv   jetstream.KeyValue
	conn *nats.Conn
	now  func() time.Time
}

// OpenSessions opens the bucket and makes it where it is missing.
func OpenSessions(ctx context.Context, js jetstream.JetStream, replicas int) (*Sessions, error) {
	kv, err := cluster.OpenBucket(ctx, js, jetstream.KeyValueConfig{
		Bucket: Bucket, Description: "who is signed in at the console", History: 1, TTL: sessionTime, MaxBytes: 64 << 20, Replicas: max(replicas, 1),
	})
	if err != nil {
		return nil, err
	}
	return &Sessions{kv: kv, conn: js.Conn(), now: time.Now}, nil
}

// session is somebody who is signed in: the holder of a root key, or a person.
type session struct {
	RootKey []byte       `json:"root_key,omitempty"` // SHA-256 of its secret
	Person  *person      `json:"person,omitempty"`
	Actor   events.Actor `json:"actor"` // what the audit log calls them
	Role    string       `json:"role"`  // when they signed in
	Name    string       `json:"name"`  // what the console calls them
	Browser string       `json:"browser,omitempty"`
	Began   time.Time    `json:"began"`
	Seen    time.Time    `json:"seen"`
	Theme   string       `json:"theme,omitempty"` // light, dark; empty: as the system says

	Caller   api.Caller `json:"-"` // as they are judged now
	id       string     // its name in the bucket
	revision uint64     // of it
}

// errSignedOut says that nobody is signed in, or no longer.
var errSignedOut = errors.New("nobody is signed in")

func newToken() string { return rand.Text() + rand.Text() }

func nameOf(kind, token string) string {
	sum := sha256.Sum256([]byte(token))
	return kind + "." + hex.EncodeToString(sum[:])
}

// begin keeps a session and returns its token, which is in no other place.
func (s *Sessions) begin(ctx context.Context, v session) (token string, err error) {
	token = newToken()
	v.Began = s.now()
	v.Seen = v.Began
	return token, s.put(ctx, nameOf("session", token), v)
}

// get reads an entry; errSignedOut: there is none. What began just before is known to the
// bucket's leader, and perhaps to no other server.
func (s *Sessions) get(ctx context.Context, name string) (value []byte, revision uint64, err error) {
	entry, err := s.kv.Get(ctx, name)
	if err == nil {
		return entry.Value(), entry.Revision(), nil
	}
	if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, fmt.Errorf("read the bucket %s: %w", Bucket, err)
	}
	value, revision, err = cluster.Get(ctx, s.conn, Bucket, name)
	if err == nil && value == nil {
		err = errSignedOut
	}
	return value, revision, err
}

func (s *Sessions) put(ctx context.Context, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := s.kv.Put(ctx, name, b); err != nil {
		return fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	return nil
}

// update writes a session that was changed. Where it ended meanwhile it stays ended.
func (s *Sessions) update(ctx context.Context, v *session) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	revision, err := s.kv.Update(ctx, v.id, b, v.revision)
	if err != nil {
		return fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	v.revision = revision
	return nil
}

// over says whether a session has ended by itself.
func (s *Sessions) over(v *session) bool {
	now := s.now()
	return now.Sub(v.Began) > sessionTime || now.Sub(v.Seen) > idleTime
}

// find returns the session of a token, or errSignedOut. It goes on by being found by
// somebody; what a page does by itself does not count.
func (s *Sessions) find(ctx context.Context, token string, somebody bool) (*session, error) {
	if token == "" {
		return nil, errSignedOut
	}
	name := nameOf("session", token)
	value, revision, err := s.get(ctx, name)
	if err != nil {
		return nil, err
	}
	v, err := decodeSession(name, value, revision)
	if err != nil {
		return nil, err
	}
	if s.over(v) {
		_ = s.kv.Purge(ctx, name) // it is over either way, and the bucket forgets it by itself
		return nil, errSignedOut
	}
	if now := s.now(); somebody && now.Sub(v.Seen) > time.Minute {
		v.Seen = now
		_ = s.update(ctx, v) // of several requests at once one has written it
	}
	return v, nil
}

func decodeSession(name string, value []byte, revision uint64) (*session, error) {
	v := &session{id: name, revision: revision}
	if err := json.Unmarshal(value, v); err != nil {
		return nil, fmt.Errorf("a session in the bucket %s cannot be read: %w", Bucket, err)
	}
	if len(v.RootKey) == len(v.Caller.RootKey) {
		copy(v.Caller.RootKey[:], v.RootKey)
	} else if v.Person == nil {
		return nil, errSignedOut
	}
	return v, nil
}

// all returns the sessions that have not ended, the one that was seen last first.
func (s *Sessions) all(ctx context.Context) ([]*session, error) {
	w, err := s.kv.Watch(ctx, "session.*", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("read the bucket %s: %w", Bucket, err)
	}
	defer w.Stop()
	var all []*session
	for {
		select {
		case entry := <-w.Updates():
			if entry == nil { // there are no more
				slices.SortFunc(all, func(a, b *session) int { return b.Seen.Compare(a.Seen) })
				return all, nil
			}
			if v, err := decodeSession(entry.Key(), entry.Value(), entry.Revision()); err == nil && !s.over(v) {
				all = append(all, v)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("read the bucket %s: %w", Bucket, ctx.Err())
		}
	}
}

// ended returns a context that is done when a session is: for what a page listens to.
func (s *Sessions) ended(ctx context.Context, v *session) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithDeadline(ctx, time.Now().Add(sessionTime-s.now().Sub(v.Began)))
	w, err := s.kv.Watch(ctx, v.id)
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("read the bucket %s: %w", Bucket, err)
	}
	go func() {
		defer cancel()
		defer w.Stop()
		for {
			select {
			case entry, ok := <-w.Updates():
				if !ok || entry != nil && entry.Operation() != jetstream.KeyValuePut {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel, nil
}

// end forgets the session of a token, wherever it is used.
func (s *Sessions) end(ctx context.Context, token string) error {
	return s.forget(ctx, nameOf("session", token))
}

func (s *Sessions) forget(ctx context.Context, id string) error {
	if err := s.kv.Purge(ctx, id); err != nil {
		return fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	return nil
}

// code is a one-time code that signs its holder in as somebody.
type code struct {
	RootKey []byte    `json:"root_key"` // SHA-256 of its secret
	Until   time.Time `json:"until"`
}

// newCode makes a code and says until when it works.
func (s *Sessions) newCode(ctx context.Context, rootKey [sha256.Size]byte) (token string, until time.Time, err error) {
	token, until = "once_"+newToken(), s.now().Add(codeTime)
	return token, until, s.put(ctx, nameOf("code", token), code{rootKey[:], until})
}

// Link is where a browser signs in with a one-time code for the holder of a root key,
// on this host. The code is behind the #, which browsers send nobody.
func (s *Sessions) Link(ctx context.Context, rootKey [sha256.Size]byte) (path string, until time.Time, err error) {
	token, until, err := s.newCode(ctx, rootKey)
	return "/signin#" + token, until, err
}

// redeem uses a code up. errSignedOut: it is not known, used or too old.
func (s *Sessions) redeem(ctx context.Context, token string) (*code, error) {
	name := nameOf("code", token)
	value, revision, err := s.get(ctx, name)
	if err != nil {
		return nil, err
	}
	// Whoever removes it has it: of two at once the second is refused.
	if err := s.kv.Delete(ctx, name, jetstream.LastRevision(revision)); cluster.Conflict(err) {
		return nil, errSignedOut
	} else if err != nil {
		return nil, fmt.Errorf("write to the bucket %s: %w", Bucket, err)
	}
	var v code
	if err := json.Unmarshal(value, &v); err != nil {
		return nil, err
	}
	if len(v.RootKey) != sha256.Size || s.now().After(v.Until) {
		return nil, errSignedOut
	}
	return &v, nil
}

// cookieName is the session's cookie. Over TLS its prefix binds it to this host.
func cookieName(r *http.Request) string {
	if secure(r) {
		return "__Host-keyledger"
	}
	return "keyledger_session"
}

func secure(r *http.Request) bool {
	return r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
}

func setSession(w http.ResponseWriter, r *http.Request, token string) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName(r), Value: token, Path: "/", HttpOnly: true, Secure: secure(r),
		SameSite: http.SameSiteLaxMode, MaxAge: int(sessionTime / time.Second),
	})
}

func endSession(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName(r), Path: "/", HttpOnly: true, Secure: secure(r), SameSite: http.SameSiteLaxMode, MaxAge: -1})
}

func tokenOf(r *http.Request) string {
	c, err := r.Cookie(cookieName(r))
	if err != nil {
		return ""
	}
	return c.Value
}
