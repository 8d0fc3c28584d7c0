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
	"github.com/keyledger/keyledger/reactors/pubsub"
)

// feedWatch says what of FEED to print.
type feedWatch struct {
	natsURL, creds       string
	types                []string // empty: all
	keyspace, owner, key string   // empty: any
	from                 uint64   // FEED sequence to begin at; 0: with the next fact
	count                int      // 0: until the context ends
}

func (a *app) watchCommand() *cobra.Command {
	var w feedWatch
	cmd := &cobra.Command{
		Use: "watch", Short: "Print the facts of FEED as they happen, read from NATS, until Ctrl-C", Args: takes(),
		Long: `Print the facts that other services can subscribe to, as they happen: one line
each, or with --json one JSON object each. They are read from NATS itself, from
stream FEED, with the address and credentials that a subscriber would use. A lost
connection is taken up again, and no fact is missed.`,
		Example: `  keyledger watch --type key.revoked
  keyledger watch --type key.revoked --json --nats-url nats://127.0.0.1:4222`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.watch(cmd.Context(), w) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&w.types, "type", nil, "only these types, such as key.revoked")
	f.StringVar(&w.keyspace, "keyspace", "", "only of this keyspace")
	f.StringVar(&w.owner, "owner", "", "only of this owner")
	f.StringVar(&w.key, "key", "", "only of this key id")
	f.Uint64Var(&w.from, "from-sequence", 0, "begin at this FEED sequence (1 is the first) instead of now")
	f.IntVar(&w.count, "count", 0, "end after this many facts")
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

// subjects are the filters of FEED: feed.<type>.<keyspace>.<owner>.<key>.
func (w feedWatch) subjects() ([]string, error) {
	types := w.types
	if len(types) == 0 {
		types = []string{"*.*"} // every type of a fact has two parts
	}
	place := ""
	for _, s := range []string{w.keyspace, w.owner, w.key} {
		switch {
		case s == "":
			place += ".*"
		case strings.ContainsAny(s, "*>. \t"):
			return nil, usageError("--keyspace, --owner and --key are ids, without spaces, dots and wildcards")
		default:
			place += "." + s
		}
	}
	var subjects []string
	for _, t := range types {
		if _, ok := events.Types()[t]; !ok && len(w.types) > 0 {
			return nil, usageError("--type: there is no such type of fact; write one such as key.created, key.rotated or key.revoked")
		}
		subjects = append(subjects, "feed."+t+place)
	}
	return subjects, nil
}

func (a *app) watch(ctx context.Context, w feedWatch) error {
	subjects, err := w.subjects()
	if err != nil {
		return err
	}
	if w.natsURL, w.creds, err = a.nats(w.natsURL, w.creds); err != nil {
		return err
	}
	nc, err := connectNATS(w.natsURL, w.creds)
	if err != nil {
		return err
	}
	defer nc.Close()
	after := w.from
	if after > 0 {
		after-- // Tail begins after a place
	} else if after, err = lastOfFeed(ctx, nc); err != nil {
		return err
	}
	a.note("watching stream %s after sequence %d; end with Ctrl-C", events.Feed, after)
	n := 0
	for m, err := range pubsub.Tail(ctx, nc, events.Feed, pubsub.TailOptions{After: after, Filter: subjects}) {
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := a.printFact(m.Data(), meta.Sequence.Stream); err != nil {
			return err
		}
		if n++; n == w.count {
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
