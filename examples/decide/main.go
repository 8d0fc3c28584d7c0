// One decision in process, for requests that do not come over HTTP: messages of a
// queue, calls of another protocol. The secret is read from stdin.
//
//	NATS_URL=nats://127.0.0.1:7072 MASTER_KEY_FILE=…/master.key go run ./examples/decide GET /v1/parcels/7 < my.key
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/verify"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	if len(os.Args) != 3 {
		return errors.New("usage: decide METHOD PATH < SECRET")
	}
	secret, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	// Once per process: it follows the ledger from here on, and decides in memory.
	node, err := verify.Connect(ctx, verify.Config{
		URL:           os.Getenv("NATS_URL"),
		MasterKeyFile: os.Getenv("MASTER_KEY_FILE"),
	})
	if err != nil {
		return err
	}
	defer func() { // what was used is recorded
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(err, node.Close(end))
	}()

	request := domain.Request{Keyspace: "parcelbird", Key: strings.TrimSpace(string(secret)), Method: os.Args[1], Path: os.Args[2]}
	began := time.Now()
	decision := node.Verify(request)
	if !decision.Valid {
		answer := decision.Answer(&request, "")
		fmt.Printf("%s: %d %s\n", decision.Code, answer.Status, answer.Body)
		return nil
	}
	// Once for each request that was admitted.
	node.Record(&decision, &request, verify.Use{Via: "decide", Status: 200, Latency: time.Since(began)})
	fmt.Printf("%s for %s\n", decision.Code, decision.Key.Owner)
	return nil
}
