package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"
)

// feedWatch is what `watch` asks of a subscriber to FEED.
type feedWatch struct {
	natsURL string
	creds   string   // file; empty: none
	types   []string // empty: all
	from    uint64   // FEED sequence to begin at; 0: with the next fact
}

// watchFeed gives the body of each fact to emit, in order, until the context
// ends (no error) or emit fails.
var watchFeed = func(ctx context.Context, w feedWatch, emit func(body []byte) error) error {
	return errors.New("watching is not built in")
}

func (a *app) watchCommand() *cobra.Command {
	var w feedWatch
	var keyspace, owner, key string
	var count int
	cmd := &cobra.Command{
		Use: "watch", Short: "Print the facts of FEED as they happen, read from NATS, until Ctrl-C", Args: takes(),
		Long: `Print the facts that other services can subscribe to, as they happen: one line
each, or with --json one JSON object each. They are read from NATS itself, from
stream FEED, with the address and credentials that a subscriber would use.`,
		Example: `  keyledger watch --type key.revoked
  keyledger watch --type key.revoked --json --nats-url nats://127.0.0.1:4222`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.watch(cmd.Context(), w, keyspace, owner, key, count)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&w.types, "type", nil, "only these types, such as key.revoked")
	f.StringVar(&keyspace, "keyspace", "", "only of this keyspace")
	f.StringVar(&owner, "owner", "", "only of this owner")
	f.StringVar(&key, "key", "", "only of this key id")
	f.Uint64Var(&w.from, "from-sequence", 0, "begin at this FEED sequence (1 is the first) instead of now")
	f.IntVar(&count, "count", 0, "end after this many facts")
	a.natsFlags(cmd, &w.natsURL, &w.creds)
	_ = cmd.RegisterFlagCompletionFunc("type", completeTypes)
	a.completeFlags(cmd)
	return cmd
}

func (a *app) natsFlags(cmd *cobra.Command, url, creds *string) {
	cmd.Flags().StringVar(url, "nats-url", "", "address of NATS (else KEYLEDGER_NATS_URL, the context file)")
	cmd.Flags().StringVar(creds, "nats-creds", "", "credentials file for NATS (else KEYLEDGER_NATS_CREDS, the context file)")
}

// nats takes the address of NATS from flag, environment or context.
func (a *app) nats(url, creds string) (string, string, error) {
	t, err := a.target()
	if err != nil && url == "" {
		return "", "", err
	}
	for _, candidate := range [][2]string{
		{url, creds},
		{os.Getenv("KEYLEDGER_NATS_URL"), os.Getenv("KEYLEDGER_NATS_CREDS")},
		{t.NATSURL, t.NATSCreds},
	} {
		if candidate[0] != "" {
			if creds != "" {
				candidate[1] = creds
			}
			return candidate[0], candidate[1], nil
		}
	}
	return "", "", usageError("no address of NATS: give it with --nats-url or KEYLEDGER_NATS_URL; `keyledger dev` writes a context file with its own")
}

var errEnough = errors.New("enough")

func (a *app) watch(ctx context.Context, w feedWatch, keyspace, owner, key string, count int) error {
	var err error
	if w.natsURL, w.creds, err = a.nats(w.natsURL, w.creds); err != nil {
		return err
	}
	n := 0
	err = watchFeed(ctx, w, func(body []byte) error {
		var e eventView
		if err := (&answer{body: body}).decode(&e); err != nil {
			return err
		}
		if keyspace != "" && e.Keyspace != keyspace || owner != "" && e.Owner != owner || key != "" && e.Key != key {
			return nil
		}
		if err := a.printEvent(body); err != nil {
			return err
		}
		if n++; count > 0 && n >= count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) || ctx.Err() != nil {
		return nil
	}
	return err
}
