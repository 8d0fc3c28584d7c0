// Feed follows one's own part of FEED over NATS with a durable consumer, which goes on
// where it stood, however long nobody asked. `keyledger subscribers add` gives what it
// needs:
//
//	NATS_URL=nats://… SEED_FILE=billing.nk CONSUMER=subscriber-billing go run ./examples/feed
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := follow(ctx); err != nil {
		log.Fatal(err)
	}
}

func follow(ctx context.Context) error {
	key, err := nats.NkeyOptionFromSeed(os.Getenv("SEED_FILE"))
	if err != nil {
		return err
	}
	nc, err := nats.Connect(os.Getenv("NATS_URL"), key, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	consumer, err := js.Consumer(ctx, "FEED", os.Getenv("CONSUMER"))
	if err != nil {
		return err
	}
	running, err := consumer.Consume(func(m jetstream.Msg) {
		var fact struct{ ID, Type, Key string }
		if err := json.Unmarshal(m.Data(), &fact); err != nil {
			log.Printf("%s: %v", m.Subject(), err)
			return // it comes again
		}
		fmt.Println(fact.Type, fact.Key) // may come twice: the id tells
		if err := m.Ack(); err != nil {
			log.Print(err)
		}
	})
	if err != nil {
		return err
	}
	defer running.Stop()
	fmt.Println("following")
	<-ctx.Done()
	return nil
}
