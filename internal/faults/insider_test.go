package faults

import (
	"bytes"
	"context"
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
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/minio/highwayhash"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyledger/keyledger/audit/inspect"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/ledger"
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
	dir, nats, postgres string // stopped
	logKey              string // file
	export, part        string // of everything, and of the owner birdwatch
	checkpoint          string // of LEDGER, as anybody could have kept it
	receipt             string // for the revocation
	cosigned, policy    string // by a witness on another machine
	revoked, key        string // ids
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
	p.revoked, p.key = keys[2].Key.ID, keys[3].Key.ID
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
	last, err := filepath.Glob(filepath.Join(witness, "*", "ledger", "last"))
	if err != nil || len(last) != 1 {
		t.Fatal("the witness has kept nothing", last, err)
	}
	p.cosigned = last[0]
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
	r := s.audited(7, "--log-key", p.logKey)
	if !r.Pass {
		t.Fatalf("What nobody touched does not pass: %s", r.text())
	}
	if err := serve.process.Interrupt(patience); err != nil {
		t.Fatal(err)
	}
	b.stop()
	return p
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
