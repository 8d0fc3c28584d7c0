// A subscriber that learns who no longer verifies: by Server-Sent Events from where it
// stood, over broken connections; or, where NATS_URL is set, from NATS, without what
// happened before.
//
//	KEYLEDGER_URL=http://127.0.0.1:7070 KEYLEDGER_TOKEN=klr_… go run ./examples/revocations
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	follow := events
	if os.Getenv("NATS_URL") != "" {
		follow = live
	}
	if err := follow(ctx); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// events goes on behind the last sequence. A subscriber that keeps what it learned
// keeps that, too, in the same write.
func events(ctx context.Context) error {
	for last := "0"; ctx.Err() == nil; {
		err := connection(ctx, &last)
		log.Printf("connecting again after %s: %v", last, err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return ctx.Err()
}

func connection(ctx context.Context, last *string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", os.Getenv("KEYLEDGER_URL")+"/v1/feeds/revocations", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("KEYLEDGER_TOKEN"))
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", *last)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status) // 422: the sequence is of another FEED, begin with 0
	}
	var event, id string
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		field, value, _ := strings.Cut(in.Text(), ": ")
		switch field {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			var r struct {
				Key, Why string
				Since    *time.Time
				Previous json.Number
			}
			if err := json.Unmarshal([]byte(value), &r); err != nil {
				return err
			}
			if r.Previous.String() != *last {
				return fmt.Errorf("what came between %s and %s is missing", *last, r.Previous)
			}
			switch event {
			case "":
				fmt.Println(r.Key, r.Why) // refuse it
			case "announced":
				fmt.Println(r.Key, "will be", r.Why, r.Since)
			case "reached":
				fmt.Println("what was known is told")
			}
		case "": // an event is whole
			if id != "" {
				*last = id
			}
			event, id = "", ""
		}
	}
	return in.Err()
}

// live needs permission for live.> alone. What happens while it is away is not repeated.
func live(ctx context.Context) error {
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	if _, err := nc.Subscribe("live.key.revoked.>", func(m *nats.Msg) {
		var fact struct{ Key string }
		if err := json.Unmarshal(m.Data, &fact); err != nil {
			log.Printf("%s: %v", m.Subject, err)
			return
		}
		fmt.Println(fact.Key, "revoked")
	}); err != nil {
		return err
	}
	if err := nc.Flush(); err != nil {
		return err
	}
	fmt.Println("subscribed")
	<-ctx.Done()
	return ctx.Err()
}
