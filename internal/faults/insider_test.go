package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/minio/highwayhash"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/inspect"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/internal/testenv"
	"github.com/keyledger/keyledger/projections"
	"github.com/keyledger/keyledger/projections/merkle"
)

// insider is somebody with every right on one installation: NATS's administrator, at
// its files too, superuser of PostgreSQL, and owner of the published directory.
type insider struct {
	t      *testing.T
	past   *past
	dir    string // settings, master key, state directory
	broker *broker
	stage  *stage
}

// past is a history that was lived once, and what others have kept of it.
type past struct {
	dir, nats, postgres string   // stopped
	logKey              string   // file
	export, part        string   // of everything, and of the owner birdwatch
	checkpoint          string   // of LEDGER, as anybody could have kept it
	receipt             string   // for the revocation
	cosigned            []string // checkpoints of all streams, by a witness on another machine
	policy              string
	revoked, key        string // ids
	secret              string // of the revoked key
	revocation          uint64 // where it stands in LEDGER
}

// live makes a history: keys, uses of them, and a revocation that an insider would
// like not to have happened.
func live(t *testing.T) *past {
	t.Helper()
	p := &past{dir: t.TempDir(), nats: t.TempDir(), postgres: testenv.Postgres(t)}
	b := startBroker(t, p.nats, true)
	s := &stage{t: t, nats: b.url, postgres: p.postgres, seen: &journal{}}
	s.settle(p.dir, b)
	root := filepath.Join(p.dir, "root.key")
	if out, code := s.cli("init", "--config", s.config, "--root-key-file", root); code != 0 {
		t.Fatalf("init: %d %s", code, out)
	}
	s.root = readSecret(t, root)
	serve := s.service()
	serve.start()
	c := s.client(serve)
	c.prepare()
	kept := t.TempDir()
	at := func(name string) string { return filepath.Join(kept, name) }
	p.logKey, p.export, p.part, p.checkpoint, p.receipt, p.policy = at("log.key"), at("all.tar.gz"), at("birdwatch.tar.gz"), at("ledger.checkpoint"), at("revoke.receipt"), at("policy.txt")
	outside := func(args ...string) string {
		t.Helper()
		out, code := s.cli(append(args, "--url", serve.url, "--token-file", root)...)
		if code != 0 {
			t.Fatalf("keyledger %v: %d %s", args, code, out)
		}
		return out
	}

	var keys []made
	for i := range 6 {
		a := c.until(t.Context(), http.MethodPost, "/v1/keys", fmt.Sprint("k", i), map[string]any{"keyspace": "parcelbird", "owner": "birdwatch", "name": fmt.Sprint("CI ", i)})
		var m made
		a.decode(t, &m)
		keys = append(keys, m)
	}
	var listed struct{ Keys []struct{ Key string } }
	if err := json.Unmarshal([]byte(outside("audit", "key", "--json")), &listed); err != nil || len(listed.Keys) == 0 {
		t.Fatal("no key of the log", err)
	}
	writeFile(t, p.logKey, listed.Keys[0].Key+"\n")
	for range 3 {
		for _, k := range keys {
			if code, err := c.verify(t.Context(), k.Secret); err != nil || code != "VALID" {
				t.Fatalf("%s, %v", code, err)
			}
		}
	}
	p.revoked, p.secret, p.key = keys[2].Key.ID, keys[2].Secret, keys[3].Key.ID
	outside("audit", "prove", "ledger", "10", "--log-key", p.logKey) // several checkpoints, not one
	outside("keys", "revoke", p.revoked, "--reason", "stolen", "--receipt", p.receipt)
	for _, k := range keys[3:] {
		if code, err := c.verify(t.Context(), k.Secret); err != nil || code != "VALID" {
			t.Fatalf("%s, %v", code, err)
		}
	}
	for i := range 3 {
		a := c.until(t.Context(), http.MethodPatch, "/v1/keys/"+keys[i].Key.ID, fmt.Sprint("n", i), map[string]any{"name": fmt.Sprint("Build ", i)})
		if i != 2 && a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	outside("audit", "export", "-o", p.export)
	outside("audit", "export", "-o", p.part, "--keyspace", "parcelbird", "--owner", "birdwatch")
	outside("audit", "checkpoint", "ledger", "-o", p.checkpoint, "--log-key", p.logKey)
	witness := at("witness")
	verifier, code := s.cli("audit", "witness", "key", "--state-dir", witness, "--name", "watch.example.com")
	if code != 0 {
		t.Fatal(verifier)
	}
	writeFile(t, p.policy, "witness watch "+verifier+"quorum watch\n")
	if out, code := s.cli("audit", "witness", "--once", "--state-dir", witness, "--log", filepath.Join(p.dir, "state", "log"), "--log-key", p.logKey); code != 0 {
		t.Fatal(out)
	}
	var err error
	if p.cosigned, err = filepath.Glob(filepath.Join(witness, "*", "*", "last")); err != nil || len(p.cosigned) != len(audit.Streams) {
		t.Fatal("the witness has kept other than the streams", p.cosigned, err)
	}
	receipt, err := os.ReadFile(p.receipt)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(receipt)) {
		if _, err := fmt.Sscanf(line, "LEDGER %d 0", &p.revocation); err == nil {
			break
		}
	}
	if p.revocation == 0 {
		t.Fatalf("the receipt names no place: %s", receipt)
	}

	// The control, beside the service that runs.
	s.audited(7, append(p.evidence(), "--log-key", p.logKey)...).passes(t)
	if err := serve.process.Interrupt(patience); err != nil {
		t.Fatal(err)
	}
	b.stop()
	return p
}

// evidence is all that others have kept.
func (p *past) evidence() (args []string) {
	for _, file := range append([]string{p.export, p.part, p.checkpoint, p.receipt}, p.cosigned...) {
		args = append(args, "--earlier", file)
	}
	return append(args, "--policy", p.policy)
}

// settle writes the settings of serve into a directory.
func (s *stage) settle(dir string, b *broker) {
	s.t.Helper()
	s.nats, s.config = b.url, filepath.Join(dir, "keyledger.yaml")
	writeFile(s.t, s.config, fmt.Sprintf("master_key_file: %q\nstate_dir: %q\npostgres: {url: %q}\nnats: {url: %q, monitor: [%q]}\n",
		filepath.Join(dir, "master.key"), filepath.Join(dir, "state"), s.postgres, b.url, b.monitor))
}

func (b *broker) stop() {
	b.t.Helper()
	if err := b.process.Interrupt(patience); err != nil {
		b.t.Fatal(err)
	}
}

// cli runs the program to its end.
func (s *stage) cli(args ...string) (out string, code int) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), testenv.Build(s.t), args...)
	cmd.Env = append(os.Environ(), "KEYLEDGER_CONTEXT="+filepath.Join(s.t.TempDir(), "none.json"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return stdout.String() + stderr.String(), exit.ExitCode()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return stdout.String(), 0
}

// found is what `audit verify` says.
type found struct{ inspect.Report }

func (f *found) text() string {
	var b strings.Builder
	for _, l := range f.Lines {
		fmt.Fprintf(&b, "\n%s\t%s\t%s\t%s", l.Status, l.Subject, l.Finding, l.Said)
	}
	return b.String()
}

// audited runs `audit verify` on the installation, which ends with 0 or, where it
// fails, with another code.
func (s *stage) audited(failing int, args ...string) *found {
	s.t.Helper()
	out, code := s.cli(append([]string{"audit", "verify", "--config", s.config, "--json"}, args...)...)
	var f found
	if err := json.Unmarshal([]byte(out), &f.Report); err != nil {
		s.t.Fatalf("audit verify: %d, %v: %s", code, err, out)
	}
	if want := map[bool]int{true: 0, false: failing}[f.Pass]; code != want {
		s.t.Errorf("audit verify ends with %d instead of %d: %s", code, want, f.text())
	}
	return &f
}

// copied is an installation of its own with that past, with its broker running and no
// service.
func (p *past) copied(t *testing.T) *insider {
	t.Helper()
	x := &insider{t: t, past: p, dir: t.TempDir()}
	copyDir(t, x.dir, p.dir)
	nats := t.TempDir()
	copyDir(t, nats, p.nats)
	x.broker = startBroker(t, nats, true)
	x.stage = &stage{t: t, postgres: testenv.CopyPostgres(t, p.postgres), seen: &journal{}}
	x.stage.settle(x.dir, x.broker)
	return x
}

func (x *insider) log(elem ...string) string {
	return filepath.Join(append([]string{x.dir, "state", "log"}, elem...)...)
}

// js does something as NATS's administrator.
func (x *insider) js(do func(context.Context, jetstream.JetStream) error) {
	x.t.Helper()
	conn, err := nats.Connect(x.broker.url)
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err == nil {
		err = do(x.t.Context(), js)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

// sql does something as superuser, to at least one row.
func (x *insider) sql(query string, args ...any) {
	x.t.Helper()
	(&broken{t: x.t, postgres: x.stage.postgres}).sql(query, args...)
}

// define does something as superuser that touches no rows.
func (x *insider) define(statements string) {
	x.t.Helper()
	conn, err := pgx.Connect(x.t.Context(), x.stage.postgres)
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close(x.t.Context())
	if _, err := conn.Exec(x.t.Context(), statements); err != nil {
		x.t.Fatal(err)
	}
}

func (x *insider) remove(path string) { (&broken{t: x.t}).remove(path) }

// forget takes the memory of how far the streams were out of the state directory.
func (x *insider) forget() {
	files, err := filepath.Glob(filepath.Join(x.dir, "state", "head*.json"))
	if err != nil || len(files) == 0 {
		x.t.Fatal("no head files", err)
	}
	for _, f := range files {
		x.remove(f)
	}
}

// limit lets a stream drop all but its last messages, and sets it back.
func (x *insider) limit(stream string, last int64) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		was := s.CachedInfo().Config
		changed := was
		changed.MaxMsgs, changed.Discard = last, jetstream.DiscardOld
		if _, err = js.UpdateStream(ctx, changed); err != nil {
			return err
		}
		_, err = js.UpdateStream(ctx, was)
		return err
	})
}

// anew deletes a stream and writes it again: the same bytes on the same subjects with
// the same headers, but what edit changes, or leaves out by answering nil. then is
// done before the stream has its configuration back, while everything is allowed.
func (x *insider) anew(stream string, edit func(sequence uint64, body []byte) []byte, then func(context.Context, jetstream.Stream) error) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		was := s.CachedInfo().Config
		var messages []*nats.Msg
		for n := s.CachedInfo().State.FirstSeq; n <= s.CachedInfo().State.LastSeq; n++ {
			m, err := s.GetMsg(ctx, n)
			if err != nil {
				return err
			}
			body := m.Data
			if edit != nil {
				body = edit(n, body)
			}
			if body == nil {
				continue
			}
			header := m.Header
			for name := range header {
				if strings.HasPrefix(name, "Nats-") && name != nats.MsgIdHdr {
					delete(header, name) // of how it was published, not of what it says
				}
			}
			messages = append(messages, &nats.Msg{Subject: m.Subject, Header: header, Data: body})
		}
		if err := js.DeleteStream(ctx, stream); err != nil {
			return err
		}
		open := was
		open.DenyDelete, open.DenyPurge = false, false
		if s, err = js.CreateStream(ctx, open); err != nil {
			return err
		}
		for _, m := range messages {
			if _, err := js.PublishMsg(ctx, m); err != nil {
				return err
			}
		}
		if then != nil {
			if err := then(ctx, s); err != nil {
				return err
			}
		}
		_, err = js.UpdateStream(ctx, was)
		return err
	})
}

// prunes takes the first message of USAGE away, and records that as if it had been
// pruned, with the tree that it had, which lie changes.
func (x *insider) prunes(lie func(*audit.Frontier)) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, events.Usage)
		if err != nil {
			return err
		}
		m, err := s.GetMsg(ctx, 1)
		if err != nil {
			return err
		}
		var f audit.Frontier
		for i, line := range events.Lines(m.Data) {
			e, err := events.Decode(line)
			if err != nil {
				return err
			}
			leaf := audit.LeafOf(&events.Record{Stream: events.Usage, Sequence: 1, Line: i, Subject: m.Subject, Body: line, Event: e})
			f.Add(leaf.Hash())
		}
		lie(&f)
		e := events.New(events.UsagePruned{Stream: events.Usage, Through: 1, TreeSize: uint64(f.Size()), RootHash: f.Root().String(), Frontier: f.Texts(), Reason: "retention"}, time.Now())
		e.Actor = events.Actor{Type: "system", ID: "retention"}
		body, err := events.Encode(e)
		if err != nil {
			return err
		}
		if _, err := js.Publish(ctx, events.OpsSubject(e), body); err != nil {
			return err
		}
		return s.Purge(ctx, jetstream.WithPurgeSequence(2))
	})
}

// positions writes down what a reader of the stream as it is now would remember.
func (x *insider) positions(stream string) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		last := s.CachedInfo().State.LastSeq
		m, err := s.GetMsg(ctx, last)
		if err != nil {
			return err
		}
		lines := events.Lines(m.Data)
		e, err := events.Decode(lines[len(lines)-1])
		if err != nil {
			return err
		}
		x.sql(`update keyledger.positions set sequence = $2, event_id = $3 where stream = $1`, stream, int64(last), e.ID)
		return nil
	})
}

// onDisk changes bytes of a stored message in its block file, with NATS stopped, and
// makes the message's own hash right again.
func (x *insider) onDisk(stream, old, changed string) {
	x.t.Helper()
	if len(old) != len(changed) {
		x.t.Fatal("another length")
	}
	x.broker.stop()
	done := false
	for _, file := range (&broken{t: x.t}).blocksIn(x.broker.dir, stream) {
		b, err := os.ReadFile(file)
		if err != nil {
			x.t.Fatal(err)
		}
		var index int
		if _, err := fmt.Sscanf(filepath.Base(file), "%d.blk", &index); err != nil {
			x.t.Fatal(err)
		}
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, index))
		for at := 0; at < len(b); {
			length := binary.LittleEndian.Uint32(b[at:])
			record := b[at : at+int(length&^(1<<31))]
			at += len(record)
			i := bytes.Index(record, []byte(old))
			if i < 0 || done {
				continue
			}
			copy(record[i:], changed)
			h, err := highwayhash.NewDigest64(key[:])
			if err != nil {
				x.t.Fatal(err)
			}
			subject := int(binary.LittleEndian.Uint16(record[20:]))
			data := record[22 : len(record)-8]
			h.Write(record[4:20])
			h.Write(data[:subject])
			if data = data[subject:]; length&(1<<31) != 0 {
				data = data[4:]
			}
			h.Write(data)
			copy(record[len(record)-8:], h.Sum(nil))
			done = true
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			x.t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(filepath.Dir(file), "index.db")) // else the old hash of the last message is remembered
	}
	if !done {
		x.t.Fatalf("%s does not hold %q", stream, old)
	}
	x.broker.start()
}

func (b *broken) blocksIn(dir, stream string) []string {
	b.t.Helper()
	link := filepath.Join(b.t.TempDir(), "nats")
	if err := os.Symlink(dir, link); err != nil {
		b.t.Fatal(err)
	}
	return (&broken{t: b.t, dir: filepath.Dir(link)}).blocks(stream)
}

// kv is the bucket of the log.
func (x *insider) kv(do func(context.Context, jetstream.KeyValue) error) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		kv, err := js.KeyValue(ctx, merkle.Bucket)
		if err != nil {
			return err
		}
		return do(ctx, kv)
	})
}

// signer is the log's key, which the master key opens.
func (x *insider) signer() (signer note.Signer) {
	x.t.Helper()
	master, err := seal.LoadMaster(filepath.Join(x.dir, "master.key"))
	if err != nil {
		x.t.Fatal(err)
	}
	x.kv(func(ctx context.Context, kv jetstream.KeyValue) error {
		e, err := kv.Get(ctx, "key")
		if err != nil {
			return err
		}
		var s struct {
			Keys []struct {
				Verifier string
				Secret   []byte
			}
		}
		if err := json.Unmarshal(e.Value(), &s); err != nil {
			return err
		}
		secret, err := master.Unwrap(s.Keys[0].Secret, "keyledger log key "+s.Keys[0].Verifier)
		if err != nil {
			return err
		}
		signer, err = note.NewSigner(string(secret))
		return err
	})
	return signer
}

// forged puts a checkpoint into the bucket, signed by a key: of the size that the newest
// has, with another root.
func (x *insider) forged(stream string, signer note.Signer) {
	x.t.Helper()
	x.kv(func(ctx context.Context, kv jetstream.KeyValue) error {
		place := "checkpoint." + strings.ToLower(stream)
		e, err := kv.Get(ctx, place)
		if err != nil {
			return err
		}
		var kept map[string]any
		if err := json.Unmarshal(e.Value(), &kept); err != nil {
			return err
		}
		text, _, _ := strings.Cut(kept["checkpoint"].(string), "\n\n")
		c, err := audit.ParseCheckpoint(text + "\n")
		if err != nil {
			return err
		}
		c.Root[7] ^= 1
		signed, err := audit.Sign(c, signer)
		if err != nil {
			return err
		}
		kept["checkpoint"] = string(signed)
		value, err := json.Marshal(kept)
		if err != nil {
			return err
		}
		_, err = kv.Put(ctx, place, value)
		return err
	})
}

// published is a file of the published directory, which change edits.
func (x *insider) published(change func([]byte) []byte, elem ...string) {
	x.t.Helper()
	b, err := os.ReadFile(x.log(elem...))
	if err == nil {
		err = os.WriteFile(x.log(elem...), change(b), 0o600)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

// setBack puts the oldest checkpoint that the bucket still has in the place of the newest.
func (x *insider) setBack(stream string) {
	x.t.Helper()
	x.kv(func(ctx context.Context, kv jetstream.KeyValue) error {
		place := "checkpoint." + strings.ToLower(stream)
		history, err := kv.History(ctx, place)
		if err != nil {
			return err
		}
		_, err = kv.Put(ctx, place, history[0].Value())
		return err
	})
}

func (f *found) passes(t *testing.T) {
	t.Helper()
	if !f.Pass {
		t.Errorf("What nobody touched does not pass:%s", f.text())
	}
}

// wanted is a line that must be there.
type wanted struct{ subject, finding, says string }

func (f *found) want(t *testing.T, all ...wanted) {
	t.Helper()
	for _, w := range all {
		if !slices.ContainsFunc(f.Lines, func(l inspect.Line) bool {
			return l.Status == inspect.Fail && l.Subject == w.subject && l.Finding == w.finding && strings.Contains(l.Said, w.says)
		}) {
			t.Errorf("Nothing says that %s is %s: %q:%s", w.subject, w.finding, w.says, f.text())
		}
	}
}

// What somebody with every right on NATS, PostgreSQL and the published directory does
// to history, short of signing another one, `audit verify` finds by what is there, and
// names.
func TestInsider(t *testing.T) {
	p := live(t)
	for _, a := range []struct {
		name   string
		does   func(*insider)
		wanted []wanted
	}{
		{"trims the beginning of LEDGER by a limit", func(x *insider) { x.limit(events.Ledger, 9) },
			[]wanted{{"LEDGER", inspect.Trimmed, "its beginning is gone: it begins at sequence"}}},
		{"trims the beginning of USAGE by a purge", func(x *insider) {
			x.js(func(ctx context.Context, js jetstream.JetStream) error {
				s, err := js.Stream(ctx, events.Usage)
				if err != nil {
					return err
				}
				return s.Purge(ctx, jetstream.WithPurgeSequence(3))
			})
		}, []wanted{{"USAGE", inspect.Trimmed, "it begins at sequence 3, no pruning that is recorded reaches there"}}},
		{"trims the beginning of USAGE, and forges the record of a pruning", func(x *insider) { x.prunes(func(f *audit.Frontier) {}) },
			[]wanted{{"usage_v2", inspect.Row, "there is no baseline of what was pruned before"}}},
		{"trims the beginning of USAGE, and forges the record of another pruning", func(x *insider) { x.prunes(func(f *audit.Frontier) { f.Add(tlog.Hash{}) }) },
			[]wanted{{"USAGE", inspect.Recreated, "from USAGE 2 0 on none of"}}},
		{"trims the end of LEDGER, and sets back bucket, positions and head files", func(x *insider) {
			x.anew(events.Ledger, func(n uint64, b []byte) []byte {
				if n >= p.revocation {
					return nil
				}
				return b
			}, nil)
			x.setBack(events.Ledger)
			x.positions(events.Ledger)
			x.forget()
		}, []wanted{{"LEDGER", inspect.Checkpoint, "was set back"}, {"LEDGER", inspect.Trimmed, fmt.Sprintf("its end is gone: it ends at sequence %d", p.revocation-1)}}},
		{"deletes one message", func(x *insider) {
			x.anew(events.Ledger, nil, func(ctx context.Context, s jetstream.Stream) error { return s.DeleteMsg(ctx, p.revocation) })
		}, []wanted{{"LEDGER", inspect.Missing, "1 messages between its first sequence 1 and its last"}, {"LEDGER", inspect.Missing, fmt.Sprintf("sequence %d is missing", p.revocation)}}},
		{"takes a stream away", func(x *insider) {
			x.js(func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, events.Usage) })
		}, []wanted{{"USAGE", inspect.Recreated, "the stream does not exist"}}},
		{"lets a stream forget by and by", func(x *insider) {
			x.js(func(ctx context.Context, js jetstream.JetStream) error {
				s, err := js.Stream(ctx, events.Ledger)
				if err != nil {
					return err
				}
				config := s.CachedInfo().Config
				config.MaxAge = 1000 * time.Hour
				_, err = js.UpdateStream(ctx, config)
				return err
			})
		}, []wanted{{"LEDGER", inspect.Configuration, "max_age"}}},

		{"recreates LEDGER and FEED without the revocation", func(x *insider) {
			without := func(_ uint64, b []byte) []byte {
				if bytes.Contains(b, []byte(`"key.revoked"`)) {
					return nil
				}
				return b
			}
			for _, stream := range []string{events.Ledger, events.Feed} {
				x.anew(stream, without, nil)
				x.positions(stream)
			}
			x.forget()
		}, []wanted{{"LEDGER", inspect.Recreated, fmt.Sprintf("from LEDGER %d 0 on none of", p.revocation)}, {"LEDGER", inspect.Recreated, "key.revoked of parcelbird birdwatch " + p.revoked}}},
		{"recreates LEDGER with one event changed", func(x *insider) {
			x.anew(events.Ledger, func(_ uint64, b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"stolen"`), []byte(`"boring"`)) }, nil)
		}, []wanted{{"LEDGER", inspect.Edited, fmt.Sprintf("the event at LEDGER %d 0 is not the one that was signed", p.revocation)}}},

		{"edits an event of LEDGER on disk", func(x *insider) { x.onDisk(events.Ledger, `"stolen"`, `"boring"`) },
			[]wanted{{"LEDGER", inspect.Edited, fmt.Sprintf("the event at LEDGER %d 0 is not the one that was signed", p.revocation)}}},
		{"edits a line of a page of USAGE on disk", func(x *insider) { x.onDisk(events.Usage, p.key, p.revoked) },
			[]wanted{{"USAGE", inspect.Edited, "is not the one that was signed"}}},
		{"edits an event on disk, and lets everything in PostgreSQL follow", func(x *insider) {
			x.onDisk(events.Ledger, `"stolen"`, `"boring"`)
			x.rebuilt()
			x.sql(`delete from keyledger.log_checkpoints where stream = 'LEDGER'`)
		}, []wanted{{"LEDGER", inspect.Edited, fmt.Sprintf("the event at LEDGER %d 0 is not the one that was signed, by the tree of 13 events in the published directory", p.revocation)}}},
		{"edits an event on disk, lets PostgreSQL follow, and takes the published directory away", func(x *insider) {
			x.onDisk(events.Ledger, `"stolen"`, `"boring"`)
			x.rebuilt()
			x.sql(`delete from keyledger.log_checkpoints`)
			x.remove(x.log())
		}, []wanted{{"LEDGER", inspect.Edited, "It was changed after it was signed: the bucket keyledger_log"}}},

		{"changes a row: a key is alive again", func(x *insider) {
			x.sql(`update keyledger.keys_v1 set revoked_at = null, revoke_reason = '' where id = $1`, p.revoked)
		}, []wanted{{"keys_v1", inspect.Row, "keys_v1: the row id=" + p.revoked + ` was changed (revoke_reason: "", not "stolen"; revoked_at: null, not "`}}},
		{"changes a row: more was used", func(x *insider) {
			x.sql(`update keyledger.usage_v2 set requests = requests + 40 where ctid = (select ctid from keyledger.usage_v2 where key = $1 limit 1)`, p.key)
		}, []wanted{{"usage_v2", inspect.Row, "key=" + p.key}, {"usage_v2", inspect.Row, "was changed (requests: 4"}}},
		{"changes a row: the copy of LEDGER", func(x *insider) {
			x.sql(`update keyledger.ledger_v1 set body = convert_to(replace(convert_from(body, 'UTF8'), 'stolen', 'boring'), 'UTF8') where sequence = $1`, int64(p.revocation))
		}, []wanted{{"ledger_v1", inspect.Row, fmt.Sprintf("the row sequence=%d was changed (body)", p.revocation)}}},
		{"takes a row away from the copy of LEDGER", func(x *insider) {
			x.sql(`delete from keyledger.ledger_v1 where sequence = $1`, int64(p.revocation))
		}, []wanted{{"ledger_v1", inspect.Row, fmt.Sprintf("the row sequence=%d is missing", p.revocation)}}},
		{"takes rows away from the index of uses", func(x *insider) { x.sql(`delete from keyledger.uses_v1`) },
			[]wanted{{"uses_v1", inspect.Row, "is missing"}}},
		{"changes the index of addresses", func(x *insider) {
			x.sql(`update keyledger.addresses_blocks_v1 set latest = latest - 1`)
		}, []wanted{{"addresses_v1", inspect.Row, "latest: "}}},
		{"changes a tile of the tree", func(x *insider) {
			x.sql(`update keyledger.tree_ledger_v1 set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) where level = 0`)
		}, []wanted{{"tree_ledger_v1", inspect.Row, "the row level=0, number=0 was changed (hashes)"}}},
		{"changes how many events an owner has", func(x *insider) {
			x.sql(`update keyledger.parts_ledger_v1 set events = events - 1 where scope = (select scope from keyledger.parts_ledger_v1 where events > 1 and length(scope) > 0 limit 1)`)
		}, []wanted{{"parts_ledger_v1", inspect.Row, "was changed (events: "}}},
		{"lets a view lie, and a trigger", func(x *insider) {
			x.define(`do $do$ begin execute 'create or replace view analytics.keys as ' || replace(pg_get_viewdef('analytics.keys'::regclass), '''revoked''', '''active'''); end $do$;
				create function keyledger.lie() returns trigger language plpgsql as $$ begin new.revoked_at = null; return new; end $$;
				create trigger lie before insert on keyledger.keys_v1 for each row execute function keyledger.lie()`)
		}, []wanted{{"views", inspect.Row, "trigger lie on keyledger.keys_v1 is not this program's"}, {"views", inspect.Row, "view analytics.keys is defined otherwise"}}},

		{"puts an older checkpoint into the bucket", func(x *insider) { x.setBack(events.Ledger) },
			[]wanted{{"LEDGER", inspect.Checkpoint, "the bucket keyledger_log was set back: it holds a checkpoint of"}}},
		{"puts an older checkpoint into a bucket without its past", func(x *insider) {
			x.setBack(events.Ledger)
			x.bucketAnew(func(string) bool { return true })
		}, []wanted{{"LEDGER", inspect.Checkpoint, "the bucket keyledger_log was set back: its checkpoint is of"}}},
		{"puts a checkpoint of another key into the bucket", func(x *insider) {
			secret, _, err := note.GenerateKey(rand.Reader, x.signer().Name())
			if err != nil {
				x.t.Fatal(err)
			}
			signer, err := note.NewSigner(secret)
			if err != nil {
				x.t.Fatal(err)
			}
			x.forged(events.Ledger, signer)
		}, []wanted{{"LEDGER", inspect.Checkpoint, "what the bucket keyledger_log remembers as its checkpoint was not signed by the log's key"}}},
		{"signs another root with the log's key", func(x *insider) { x.forged(events.Ledger, x.signer()) },
			[]wanted{{"LEDGER", inspect.Rewritten, "two roots were signed for"}}},
		{"deletes a checkpoint from the bucket", func(x *insider) {
			x.kv(func(ctx context.Context, kv jetstream.KeyValue) error { return kv.Delete(ctx, "checkpoint.usage") })
		}, []wanted{{"USAGE", inspect.Checkpoint, "the bucket keyledger_log: the checkpoint was deleted"}}},
		{"takes the bucket away", func(x *insider) {
			x.js(func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteKeyValue(ctx, merkle.Bucket) })
		}, []wanted{{"log key", inspect.Checkpoint, "is gone"}, {"LEDGER", inspect.Checkpoint, "the bucket keyledger_log has no checkpoint of it, but PostgreSQL remembers one"}}},
		{"changes a checkpoint in PostgreSQL", func(x *insider) {
			x.sql(`update keyledger.log_checkpoints set root = sha256('another') where stream = 'LEDGER' and size = (select max(size) from keyledger.log_checkpoints where stream = 'LEDGER')`)
		}, []wanted{{"LEDGER", inspect.Checkpoint, "the row was changed"}}},
		{"puts an older checkpoint into the published directory", func(x *insider) {
			older := x.older(events.Ledger)
			x.published(func([]byte) []byte { return older }, "ledger", "checkpoint")
			x.sql(`update keyledger.log_checkpoints set signed_at = signed_at - interval '1 hour'`) // some time passes
		}, []wanted{{"LEDGER", inspect.Checkpoint, "shows an older checkpoint"}}},
		{"puts the checkpoint of another stream into the published directory", func(x *insider) {
			b, err := os.ReadFile(x.log("feed", "checkpoint"))
			if err != nil {
				x.t.Fatal(err)
			}
			x.published(func([]byte) []byte { return b }, "ledger", "checkpoint")
		}, []wanted{{"LEDGER", inspect.Checkpoint, "remembers as its checkpoint was not signed by the log's key"}}},
		{"changes a published tile", func(x *insider) {
			tiles, err := filepath.Glob(x.log("ledger", "tile", "0", "000.p", "*"))
			if err != nil || len(tiles) == 0 {
				x.t.Fatal("no tiles", err)
			}
			for _, tile := range tiles {
				rel, err := filepath.Rel(x.log(), tile)
				if err != nil {
					x.t.Fatal(err)
				}
				x.published(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, rel)
			}
		}, []wanted{{"LEDGER", inspect.Checkpoint, "does not hold the tree that its own checkpoint signs"}}},
		{"puts a key of his own into the published directory", func(x *insider) {
			x.published(func(b []byte) []byte { return append(b, "keyledger-0+00000000+AAAA\n"...) }, "keys")
		}, []wanted{{"log key", inspect.Checkpoint, "the published directory names the key keyledger-0+00000000+AAAA"}}},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			x := p.copied(t)
			a.does(x)
			f := x.stage.audited(7, "--log-key", p.logKey)
			f.want(t, a.wanted...)
			t.Log(f.text())
		})
	}
}

// older is a checkpoint that was signed before the newest, and whose tree was published:
// of two that are signed in quick succession only the second may be.
func (x *insider) older(stream string) []byte {
	x.t.Helper()
	conn, err := pgx.Connect(x.t.Context(), x.stage.postgres)
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close(x.t.Context())
	rows, err := conn.Query(x.t.Context(), `select size, signed from keyledger.log_checkpoints where stream = $1 order by size desc offset 1`, stream)
	if err != nil {
		x.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var size int64
		var signed string
		if err := rows.Scan(&size, &signed); err != nil {
			x.t.Fatal(err)
		}
		if _, err := os.Stat(x.log(strings.ToLower(stream), "tile", "0", "000.p", strconv.FormatInt(size, 10))); err == nil {
			return []byte(signed)
		}
	}
	x.t.Fatal("no older tree of ", stream, " was published: ", rows.Err())
	return nil
}

// bucketAnew makes the bucket of the log anew, with the newest value of each place that
// is to stay.
func (x *insider) bucketAnew(stays func(place string) bool) {
	x.t.Helper()
	x.js(func(ctx context.Context, js jetstream.JetStream) error {
		kv, err := js.KeyValue(ctx, merkle.Bucket)
		if err != nil {
			return err
		}
		status, err := kv.Status(ctx)
		if err != nil {
			return err
		}
		config := status.Config()
		places, err := kv.Keys(ctx)
		if err != nil {
			return err
		}
		values := map[string][]byte{}
		for _, place := range places {
			e, err := kv.Get(ctx, place)
			if err != nil {
				return err
			}
			values[place] = e.Value()
		}
		if err := js.DeleteKeyValue(ctx, merkle.Bucket); err != nil {
			return err
		}
		if kv, err = js.CreateKeyValue(ctx, config); err != nil {
			return err
		}
		for place, value := range values {
			if stays(place) {
				if _, err := kv.Put(ctx, place, value); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// rewritten is an installation whose insider has the master key, and lets the service
// itself sign another history: without the revocation, and without anything that
// remembers it. Of the log's bucket remains what stays.
func (p *past) rewritten(t *testing.T, stays func(place string) bool) *insider {
	t.Helper()
	x := p.copied(t)
	without := func(kind string) func(uint64, []byte) []byte {
		return func(_ uint64, b []byte) []byte {
			if bytes.Contains(b, []byte(`"type":"`+kind+`"`)) {
				return nil
			}
			return b
		}
	}
	x.anew(events.Ledger, without("key.revoked"), nil)
	x.anew(events.Ops, without("audit.read"), nil)
	x.js(func(ctx context.Context, js jetstream.JetStream) error { return js.DeleteStream(ctx, events.Feed) })
	x.bucketAnew(stays)
	x.define(`drop schema keyledger cascade; drop schema analytics cascade; drop schema if exists keyledger_baseline cascade`)
	x.remove(x.log())
	x.forget()
	serve := x.stage.service()
	serve.start()
	root := filepath.Join(x.dir, "root.key")
	x.stage.root = readSecret(t, root)
	if code, err := x.stage.client(serve).verify(t.Context(), p.secret); err != nil || code != "VALID" {
		t.Errorf("The key that was revoked is not alive again: %s, %v", code, err)
	}
	for _, stream := range []string{"ledger", "feed"} { // waits until it is signed
		if out, code := x.stage.cli("audit", "prove", stream, "12", "--url", serve.url, "--token-file", root); code != 0 {
			t.Fatalf("prove: %d %s", code, out)
		}
	}
	if err := serve.process.Interrupt(patience); err != nil {
		t.Fatal(err)
	}
	return x
}

// Who has the master key, too, can let another history be signed, and nothing that is
// there shows it: that is why others keep exports, checkpoints and receipts, and why
// there are witnesses. Each of them alone shows it.
func TestInsiderWithTheMasterKey(t *testing.T) {
	p := live(t)
	x := p.rewritten(t, func(place string) bool { return place == "key" })
	// The control: without anything from outside it passes, with the right key.
	if f := x.stage.audited(7, "--log-key", p.logKey); !f.Pass {
		t.Errorf("A history that was signed as a whole is found without what others kept, so this test shows nothing:%s", f.text())
	}
	at := fmt.Sprintf("LEDGER %d 0", p.revocation)
	for _, e := range []struct {
		name   string
		args   []string
		wanted []wanted
	}{
		{"an export of everything", []string{"--earlier", p.export}, []wanted{{"LEDGER", inspect.Rewritten, "The export has an event about parcelbird birdwatch " + p.revoked + " at " + at}, {"OPS", inspect.Rewritten, ""}}},
		{"an export of one owner", []string{"--earlier", p.part}, []wanted{{"LEDGER", inspect.Rewritten, "The export has an event about parcelbird birdwatch " + p.revoked + " at " + at}}},
		{"a checkpoint", []string{"--earlier", p.checkpoint}, []wanted{{"LEDGER", inspect.Rewritten, "ledger.checkpoint has a tree of"}}},
		{"a receipt", []string{"--earlier", p.receipt}, []wanted{{"LEDGER", inspect.Rewritten, "signed a receipt (" + p.receipt + ") for the event about parcelbird birdwatch " + p.revoked + " at " + at}}},
		{"what a witness has signed", p.evidence()[8:], []wanted{{"LEDGER", inspect.Rewritten, "last has a tree of"}}},
		{"a policy that nobody has met", []string{"--policy", p.policy}, []wanted{{"LEDGER", inspect.Checkpoint, "signatures which the policy asks for"}}},
	} {
		t.Run(e.name, func(t *testing.T) {
			f := x.stage.audited(7, append(e.args, "--streams-only", "--log-key", p.logKey)...)
			f.want(t, e.wanted...)
			t.Log(f.text())
		})
	}

	t.Run("another key", func(t *testing.T) {
		x := p.rewritten(t, func(string) bool { return false })
		x.stage.audited(7, "--log-key", p.logKey).want(t, wanted{"log key", inspect.Checkpoint, "the key was replaced"})
		if f := x.stage.audited(7); !f.Pass { // the control: who asks the installation for its key is told what it likes
			t.Errorf("The key that is there does not fit what it has signed:%s", f.text())
		}
		x.stage.audited(7, "--earlier", p.receipt).want(t, wanted{p.receipt, inspect.Checkpoint, "it is of another log, or the key was replaced"})
	})
}

// What a start refuses, and what is changed beside a service that runs, is found as
// well.
func TestInsiderBesideTheService(t *testing.T) {
	p := live(t)
	x := p.copied(t)
	x.stage.audited(7, append(p.evidence(), "--log-key", p.logKey)...).passes(t)
	serve := x.stage.service()
	serve.start()
	root := filepath.Join(x.dir, "root.key")
	x.sql(`update keyledger.keys_v1 set revoked_at = null where id = $1`, p.revoked)
	x.stage.audited(7, "--log-key", p.logKey).want(t, wanted{"keys_v1", inspect.Row, "the row id=" + p.revoked + " was changed (revoked_at: null"})
	if out, code := x.stage.cli("projections", "rebuild", "keys_v1", "--url", serve.url, "--token-file", root); code != 0 {
		t.Fatalf("rebuild: %d %s", code, out)
	}
	x.stage.audited(7, append(p.evidence(), "--log-key", p.logKey)...).passes(t)

	x.limit(events.Ledger, 5)
	x.stage.audited(7, "--log-key", p.logKey).want(t, wanted{"LEDGER", inspect.Trimmed, "its beginning is gone"})
	_ = serve.process.Interrupt(patience)
	again := x.stage.service()
	again.launch()
	if err := again.process.Wait(patience); err == nil || !strings.Contains(again.process.Output(), "LEDGER") {
		t.Fatalf("It starts: %v", err)
	}
	x.stage.audited(7, "--log-key", p.logKey).want(t, wanted{"LEDGER", inspect.Trimmed, "its beginning is gone"})
}

// rebuilt makes every read model anew from the streams as they are.
func (x *insider) rebuilt() {
	x.t.Helper()
	conn, err := nats.Connect(x.broker.url)
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close()
	pool, err := pgxpool.New(x.t.Context(), x.stage.postgres)
	if err != nil {
		x.t.Fatal(err)
	}
	defer pool.Close()
	l, _, err := ledger.Inspect(x.t.Context(), conn, ledger.Options{})
	if err != nil {
		x.t.Fatal(err)
	}
	defer l.Close()
	runner := projections.New(l, pool, nil)
	for _, p := range projections.All() {
		if _, err := runner.Rebuild(x.t.Context(), p.Name(), nil); err != nil {
			x.t.Fatal(err)
		}
	}
}
