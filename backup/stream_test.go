package backup_test

import (
	"bytes"
	"runtime"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyledger/keyledger/backup"
)

// In a cluster the server that restores may have answered before the client's server
// knows where the chunks go. JetStream's side is played here, so that it always has.
func TestRestoreBeforeInterest(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	connect := func() *nats.Conn {
		conn, err := nats.Connect(s.ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		return conn
	}
	client, restores := connect(), connect()

	var got bytes.Buffer
	asked, failed := make(chan struct{}), make(chan error, 1)
	subscribe := func(subject string, answer func(*nats.Msg)) error {
		_, err := restores.Subscribe(subject, answer)
		if err == nil {
			err = restores.Flush()
		}
		return err
	}
	err = subscribe("$JS.API.STREAM.RESTORE.LEDGER", func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"deliver_subject":"chunks"}`))
		close(asked)
	})
	if err != nil {
		t.Fatal(err)
	}
	var late sync.WaitGroup
	late.Go(func() {
		<-asked
		for client.Stats().OutMsgs < 3 && t.Context().Err() == nil { // the request, a chunk, the chunk again
			runtime.Gosched()
		}
		failed <- subscribe("chunks", func(m *nats.Msg) {
			got.Write(m.Data)
			if len(m.Data) == 0 {
				_ = m.Respond([]byte(`{}`))
				return
			}
			_ = m.Respond(nil)
		})
	})
	t.Cleanup(late.Wait) // after its context has ended

	snapshot := bytes.Repeat([]byte("parcelbird"), 100_000)
	stream := &backup.Stream{Name: "LEDGER", Config: []byte(`{"name":"LEDGER"}`), State: []byte(`{}`)}
	if err := backup.RestoreStream(t.Context(), client, stream, bytes.NewReader(snapshot), 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), snapshot) {
		t.Errorf("%d bytes of %d came, or others", got.Len(), len(snapshot))
	}
}
