package merkle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/cluster"
)

// keyPlace is where the bucket holds the keys of the log.
const keyPlace = "key"

// stored is the value at keyPlace: all keys that the log ever had, the one that
// signs last.
type stored struct {
	Name string      `json:"name"` // of all of them, and the first part of every origin
	Keys []storedKey `json:"keys"`
	Next *storedKey  `json:"next,omitempty"` // signs when its event is recorded
}

type storedKey struct {
	Verifier string      `json:"verifier"` // verifier key, C2SP signed-note
	Secret   []byte      `json:"secret"`   // signer key, wrapped by the master key
	Since    events.Time `json:"since"`
	// Of the event that announces it; the first has none.
	Event    string `json:"event,omitempty"`    // id
	Sequence uint64 `json:"sequence,omitempty"` // on OPS
	Command  string `json:"command,omitempty"`  // that asked for it
}

// logKey is a key that is open.
type logKey struct {
	verifier note.Verifier
	text     string
	since    events.Time
	named    []byte // note in which the key before it names it; the first has none
}

// Key is a verifier key of the log.
type Key struct {
	Verifier string      `json:"key"` // C2SP signed-note verifier key: name+hash+key
	Since    events.Time `json:"since"`
	Until    events.Time `json:"until"` // null: it signs now
	Named    string      `json:"named"` // note in which the key before it names it, see [audit.OpenSuccessor]; empty: the first
}

// Name is the log's: the first part of every origin. Empty while its key is in doubt.
func (l *Log) Name() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.keys) == 0 {
		return ""
	}
	return l.keys[0].verifier.Name()
}

// Key is the verifier key that signs now; empty while it is in doubt.
func (l *Log) Key() string {
	if all := l.Keys(); len(all) > 0 {
		return all[0].Verifier
	}
	return ""
}

// Keys are all verifier keys that the log ever had, newest first.
func (l *Log) Keys() []Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Key
	for i, k := range l.keys {
		key := Key{Verifier: k.text, Since: k.since, Named: string(k.named)}
		if i > 0 {
			key.Until = l.keys[i-1].since
		}
		list = append(list, key)
	}
	return list
}

// Successor is the note in which a key of the log, by its hash, names the next one;
// false where it has named none.
func (l *Log) Successor(hash uint32) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, k := range l.keys {
		if k.verifier.KeyHash() == hash && i > 0 {
			return l.keys[i-1].named, true
		}
	}
	return nil, false
}

// Verifiers are the same, to open checkpoints with.
func (l *Log) Verifiers() []note.Verifier {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []note.Verifier
	for _, k := range l.keys {
		list = append(list, k.verifier)
	}
	return list
}

func (l *Log) signing() note.Signer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signer
}

// newKey makes a key. Its secret part leaves this function wrapped.
func (l *Log) newKey(name string) (storedKey, error) {
	secret, verifier, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return storedKey{}, err
	}
	return storedKey{Verifier: verifier, Secret: l.o.Master.Wrap([]byte(secret), wrapFor(verifier)), Since: events.At(time.Now())}, nil
}

// wrapFor binds a wrapped signer key to its verifier key.
func wrapFor(verifier string) string { return "keyledger log key " + verifier }

// readKeys reads the keys of the log and makes the first one. A bucket that has none
// although somebody remembers checkpoints is in doubt.
func (l *Log) readKeys(ctx context.Context) error {
	l.keyed.Lock()
	defer l.keyed.Unlock()
	for {
		value, revision, err := l.get(ctx, keyPlace)
		if err != nil {
			return err
		}
		if value == nil {
			memory, err := l.remembered(ctx)
			if err != nil {
				return err
			}
			if memory != "" {
				l.set(func() {
					l.keys, l.signer = nil, nil
					l.doubt = &Doubt{Problem: "the bucket " + Bucket + " has no key of the log, but " + memory + " remembers checkpoints that were signed", Fix: fixMemory}
				})
				return nil
			}
			if value, err = l.firstKey(); err != nil {
				return err
			}
			if _, err = l.kv.Update(ctx, keyPlace, value, revision); cluster.Conflict(err) {
				continue
			} else if err != nil {
				return fmt.Errorf("store the first key of the audit log in the bucket %s: %w", Bucket, err)
			}
		}
		var s stored
		doubt := l.openKeys(value, &s)
		if doubt != nil {
			l.set(func() { l.keys, l.signer, l.doubt = nil, nil, doubt })
		} else if s.Next != nil && time.Since(s.Next.Since.Time()) > rotationTime {
			return l.finishRotation(ctx, s, revision)
		}
		return nil
	}
}

func (l *Log) firstKey() ([]byte, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	s := stored{Name: "keyledger-" + hex.EncodeToString(id[:])}
	k, err := l.newKey(s.Name)
	if err != nil {
		return nil, err
	}
	s.Keys = []storedKey{k}
	return json.Marshal(s)
}

// openKeys takes over what the bucket holds, or says what is wrong with it.
func (l *Log) openKeys(value []byte, s *stored) *Doubt {
	doubt := func(problem string) *Doubt {
		return &Doubt{Problem: "the key of the log in the bucket " + Bucket + " " + problem, Fix: fixMemory}
	}
	if err := json.Unmarshal(value, s); err != nil || len(s.Keys) == 0 {
		return doubt("is not as it was written")
	}
	var keys []logKey
	var signer note.Signer // of the key before
	for _, k := range s.Keys {
		v, err := note.NewVerifier(k.Verifier)
		if err != nil || v.Name() != s.Name {
			return doubt("is not as it was written")
		}
		key := logKey{verifier: v, text: k.Verifier, since: k.Since}
		if signer != nil {
			// Ed25519 signs the same text in one way: this is the note in the event.
			if key.named, err = audit.SignSuccessor(k.Verifier, signer); err != nil {
				return doubt("cannot be used: " + err.Error())
			}
		}
		if signer, err = l.unwrap(k); err != nil {
			return doubt("cannot be used: " + err.Error())
		}
		keys = append(keys, key)
	}
	slices.Reverse(keys)
	l.set(func() { l.keys, l.signer, l.doubt = keys, signer, nil })
	return nil
}

func (l *Log) unwrap(k storedKey) (note.Signer, error) {
	secret, err := l.o.Master.Unwrap(k.Secret, wrapFor(k.Verifier))
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(string(secret))
	if err != nil {
		return nil, errors.New("what was wrapped is no signer key") // the error may show it
	}
	v, err := note.NewVerifier(k.Verifier)
	if err != nil || v.KeyHash() != signer.KeyHash() || v.Name() != signer.Name() {
		return nil, errors.New("the signer key does not belong to the verifier key")
	}
	return signer, nil
}

func (l *Log) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// ErrDoubt says that the log's key is in doubt and cannot be changed.
var ErrDoubt = errors.New("the key of the log is in doubt")

// Rotation is what became of a [Log.Rotate].
type Rotation struct {
	Key      Key
	Sequence uint64 // of its event on OPS
	Replayed bool   // the command had taken effect before
}

// rememberCommand is how long a command that is repeated is known.
const rememberCommand = 24 * time.Hour

// Rotate makes a new key, announces it with an event on OPS that the old one has
// signed, and signs with it from then on. Old keys stay listed. What is cut off in
// the middle is finished by the next look at the keys. The same command again within 24
// hours makes no other key. by fills in who did it.
func (l *Log) Rotate(ctx context.Context, command string, by func(*events.Envelope)) (Rotation, error) {
	l.keyed.Lock()
	defer l.keyed.Unlock()
	for {
		value, revision, err := l.get(ctx, keyPlace)
		if err != nil {
			return Rotation{}, err
		}
		var s stored
		if value == nil {
			return Rotation{}, ErrDoubt
		}
		if doubt := l.openKeys(value, &s); doubt != nil {
			return Rotation{}, fmt.Errorf("%w: %w", ErrDoubt, doubt)
		}
		if at := slices.IndexFunc(s.Keys, func(k storedKey) bool {
			return k.Command == command && command != "" && time.Since(k.Since.Time()) < rememberCommand
		}); at >= 0 {
			return Rotation{l.Keys()[len(s.Keys)-1-at], s.Keys[at].Sequence, true}, nil
		}
		if s.Next == nil {
			next, err := l.newKey(s.Name)
			if err != nil {
				return Rotation{}, err
			}
			next.Event, next.Command = events.NewID("evt", time.Now()), command
			s.Next = &next
			if value, err = json.Marshal(s); err != nil {
				return Rotation{}, err
			}
			if revision, err = l.kv.Update(ctx, keyPlace, value, revision); cluster.Conflict(err) {
				continue
			} else if err != nil {
				return Rotation{}, fmt.Errorf("store the next key of the audit log: %w", err)
			}
		}
		ours := s.Next.Command == command
		if !ours {
			by = nil // it is another's, which is finished first
		}
		sequence, err := l.announce(ctx, s, by)
		if err != nil {
			return Rotation{}, err
		}
		if err := l.adopt(ctx, s, sequence, revision); cluster.Conflict(err) {
			continue
		} else if err != nil {
			return Rotation{}, err
		}
		if ours {
			return Rotation{Key: l.Keys()[0], Sequence: sequence}, nil
		}
	}
}

// rotationTime is how long a rotation is left to the process that began it.
const rotationTime = 10 * time.Second

// finishRotation goes on where a process ended in the middle.
func (l *Log) finishRotation(ctx context.Context, s stored, revision uint64) error {
	sequence, err := l.announce(ctx, s, nil)
	if err != nil {
		return err
	}
	err = l.adopt(ctx, s, sequence, revision)
	if cluster.Conflict(err) {
		return nil // somebody else did; the next look sees it
	}
	return err
}

// announce records the next key. Its event has an id that was chosen with the key,
// so that announcing it again within the server's memory adds nothing; a second
// announcement later says the same.
func (l *Log) announce(ctx context.Context, s stored, by func(*events.Envelope)) (uint64, error) {
	old := s.Keys[len(s.Keys)-1]
	signer, err := l.unwrap(old)
	if err != nil {
		return 0, err
	}
	statement, err := audit.SignSuccessor(s.Next.Verifier, signer)
	if err != nil {
		return 0, err
	}
	e := events.New(events.LogKeyRotated{Previous: old.Verifier, Key: s.Next.Verifier, Statement: string(statement)}, time.Now())
	e.ID, e.Command = s.Next.Event, s.Next.Command
	e.Actor, e.Via = events.Actor{Type: "system", ID: l.o.Node}, "log"
	if by != nil {
		by(&e)
	}
	sequence, err := l.o.Ledger.AppendOps(ctx, e)
	if err != nil {
		return 0, fmt.Errorf("record the next key of the audit log: %w", err)
	}
	return sequence, nil
}

func (l *Log) adopt(ctx context.Context, s stored, sequence, revision uint64) error {
	s.Next.Since, s.Next.Sequence = events.At(time.Now()), sequence
	s.Keys, s.Next = append(s.Keys, *s.Next), nil
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := l.kv.Update(ctx, keyPlace, value, revision); err != nil {
		return fmt.Errorf("store the next key of the audit log: %w", err)
	}
	if doubt := l.openKeys(value, &s); doubt != nil {
		return doubt
	}
	return nil
}
