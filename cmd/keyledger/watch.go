package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors"
)

func (a *app) watchCommand() *cobra.Command {
	var filter reactors.WatchFilter
	var natsURL, creds string
	var from uint64
	var count int
	cmd := &cobra.Command{
		Use: "watch", Short: "Print the facts of FEED as they happen, read from NATS, until Ctrl-C", Args: takes(),
		Long: `Print the facts that other services can subscribe to, as they happen: one line
each, or with --json one JSON object each. They are read from NATS itself, from
stream FEED, with the address and credentials that a subscriber would use. A lost
connection is taken up again, and no fact is missed.`,
		Example: `  keyledger watch --type key.revoked
  keyledger watch --type key.revoked --json --nats-url nats://127.0.0.1:4222`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, t := range filter.Types {
				if _, known := events.Types()[t]; !known && !strings.HasSuffix(t, ".*") {
					return usageError("--type: there is no such type of fact; write one such as key.created or key.revoked, or key.* for all about keys")
				}
			}
			if from > 0 {
				filter.After = new(from - 1)
			}
			return a.watch(cmd.Context(), filter, natsURL, creds, count)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&filter.Types, "type", nil, "only these types, such as key.revoked, or key.* for all about keys")
	f.StringVar(&filter.Keyspace, "keyspace", "", "only of this keyspace")
	f.StringVar(&filter.Owner, "owner", "", "only of this owner")
	f.StringVar(&filter.Key, "key", "", "only of this key id")
	f.Uint64Var(&from, "from-sequence", 0, "begin at this FEED sequence (1 is the first) instead of now")
	f.IntVar(&count, "count", 0, "end after this many facts")
	a.natsFlags(cmd, &natsURL, &creds)
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

func (a *app) watch(ctx context.Context, filter reactors.WatchFilter, natsURL, creds string, count int) error {
	natsURL, creds, err := a.nats(natsURL, creds)
	if err != nil {
		return err
	}
	nc, err := connectNATS(natsURL, creds)
	if err != nil {
		return err
	}
	defer nc.Close()
	if filter.After == nil {
		// Read here, so that what is recorded after the note is printed for sure.
		last, err := lastOfFeed(ctx, nc)
		if err != nil {
			return err
		}
		filter.After = &last
	}
	a.note("watching stream %s after sequence %d; end with Ctrl-C", events.Feed, *filter.After)
	n := 0
	for fact, err := range reactors.Watch(ctx, nc, filter) {
		if err != nil {
			return err
		}
		if err := a.printFact(fact.Body, fact.Sequence); err != nil {
			return err
		}
		if n++; n == count {
			break
		}
	}
	return nil
}

// printFact prints the body of a fact as it came, or a line with its place in
// FEED, which --from-sequence takes.
func (a *app) printFact(body []byte, sequence uint64) error {
	if a.asJSON {
		return a.printEvent(body)
	}
	var e eventView
	if err := (&answer{body: body}).decode(&e); err != nil {
		return err
	}
	e.Stream, e.Sequence = events.Feed, sequence
	return a.printEventLine(e)
}

func connectNATS(url, creds string) (*nats.Conn, error) {
	options := []nats.Option{nats.Name("keyledger watch"), nats.Timeout(5 * time.Second), nats.MaxReconnects(-1)}
	if creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(url, options...)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return nil, &exitError{exitRefused, "NATS_REFUSED", fmt.Errorf("NATS refuses the credentials (%w): give the file of others with --nats-creds", err)}
	case err != nil:
		return nil, &exitError{exitUnreachable, "UNREACHABLE", fmt.Errorf("NATS does not answer (%w): see whether it is running, and name its address with --nats-url or KEYLEDGER_NATS_URL", err)}
	}
	return nc, nil
}

func lastOfFeed(ctx context.Context, nc *nats.Conn) (uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, events.Feed)
	if err != nil {
		return 0, fmt.Errorf("stream %s cannot be read (%w): is this keyledger's NATS, and may its user read it?", events.Feed, err)
	}
	return s.CachedInfo().State.LastSeq, nil
}
