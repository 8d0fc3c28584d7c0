package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/commands/subscribers"
)

func (a *app) subscribersCommand() *cobra.Command {
	return group("subscribers", "Let other services follow FEED over NATS, each its own part of it",
		a.subscribersAddCommand(), a.subscribersListCommand(), a.subscribersRemoveCommand())
}

// subscriberAdded is what `subscribers add` prints: the API's answer, and what only this
// side knows.
type subscriberAdded struct {
	Subscriber subscribers.Subscriber `json:"subscriber"`
	Config     string                 `json:"config"`
	Applied    bool                   `json:"applied"`
	NATSURL    string                 `json:"nats_url"`            // empty: not known here
	Seed       string                 `json:"seed,omitempty"`      // where it was not written to a file
	SeedFile   string                 `json:"seed_file,omitempty"` // where it was
}

func (a *app) subscribersAddCommand() *cobra.Command {
	var keyspace, owner, from, file, public, natsURL, creds string
	var all bool
	var f commandFlags
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Let a service follow one owner's facts, a keyspace's, or all", Args: takes("NAME"),
		Long: `Makes the key of a NATS user (an nkey), a durable consumer on FEED that holds one
owner's facts, one keyspace's, or all, and prints what to put into the configuration
of the NATS server, and what the service needs. Its credentials reach that and the
same subjects of live, and nothing else. The seed is printed once, or written to
--seed-file; the server's configuration holds the public key alone.

Under "keyledger dev" the server lets the service in at once. Elsewhere put the entry
into subscribers.conf (deploy/nats/nats.conf includes it) on every node, and reload
each of them twice: nats-server --signal reload.`,
		Example: `  keyledger subscribers add billing --keyspace parcelbird --owner org_1 --seed-file billing.nk`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (keyspace == "") != all {
				return usageError("say what the service may see: --keyspace, with --owner for one customer's alone, or --all")
			}
			if public != "" && file != "" {
				return usageError("--public-key and --seed-file exclude each other: who has made the key has its seed")
			}
			place, err := a.openSecretFile(file, false)
			if err != nil {
				return err
			}
			defer place.discard()
			var seed []byte
			if public == "" {
				pair, err := nkeys.CreateUser()
				if err != nil {
					return err
				}
				defer pair.Wipe()
				if seed, err = pair.Seed(); err != nil {
					return err
				}
				if public, err = pair.PublicKey(); err != nil {
					return err
				}
			}
			body := map[string]string{"name": args[0], "public_key": public, "from": from}
			for name, value := range map[string]string{"keyspace": keyspace, "owner": owner} {
				if value != "" {
					body[name] = value
				}
			}
			r, err := a.command(cmd, &f, http.MethodPost, path("subscribers"), body)
			if err != nil {
				return err
			}
			var v subscriberAdded
			if err := r.decode(&v); err != nil {
				return err
			}
			if len(seed) > 0 {
				if err := place.write(a, string(seed)); err != nil {
					return err
				}
				if place.printed() {
					v.Seed = string(seed)
				} else {
					v.SeedFile = file
				}
			}
			v.NATSURL, _, _ = a.nats(natsURL, creds)
			if a.asJSON {
				return a.printValue(v)
			}
			if file == "-" {
				return nil
			}
			return a.showSubscriber(v)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&keyspace, "keyspace", "", "the keyspace whose facts it sees")
	fl.StringVar(&owner, "owner", "", "the one owner whose facts it sees")
	fl.BoolVar(&all, "all", false, "it sees all of FEED")
	fl.StringVar(&from, "from", "beginning", "where its consumer begins in FEED: beginning or now")
	fl.StringVar(&file, "seed-file", "", "write the seed to this new file (mode 0600) instead of printing it; - prints nothing else")
	fl.StringVar(&public, "public-key", "", "public key of an nkey that the service has made itself")
	a.natsFlags(cmd, &natsURL, &creds)
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"beginning", "now"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

func (a *app) showSubscriber(v subscriberAdded) error {
	x := v.Subscriber
	fields := [][2]string{{"subscriber", x.Name}, {"keyspace", orDash(x.Keyspace)}, {"owner", orDash(x.Owner)}, {"nats url", orDash(v.NATSURL)},
		{"consumer", "FEED " + x.Consumer}, {"subject", x.Subject}, {"live", x.Live}, {"public key", x.PublicKey}}
	switch {
	case v.SeedFile != "":
		fields = append(fields, [2]string{"seed file", v.SeedFile})
	case v.Seed != "":
		fields = append(fields, [2]string{"seed", v.Seed})
	}
	if err := a.fields(fields); err != nil {
		return err
	}
	if v.Seed != "" {
		a.note("Keep the seed now: it is stored nowhere and not shown again.")
	}
	if v.Applied {
		a.note("The server lets it in from now on. To try it: docs/subscribe.md, \"A durable consumer\".")
		return nil
	}
	a.note("Put this into subscribers.conf of every NATS server, and reload each twice (nats-server --signal reload):")
	_, err := fmt.Fprintf(a.stdout, "\n%s", v.Config)
	return err
}

func (a *app) subscribersListCommand() *cobra.Command {
	var config bool
	cmd := &cobra.Command{
		Use: "list", Short: "List who follows FEED over NATS", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.get(cmd, path("subscribers"), url.Values{}, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var page struct {
				Subscribers []json.RawMessage
				Config      string
			}
			if err := r.decode(&page); err != nil {
				return err
			}
			if config {
				_, err := fmt.Fprint(a.stdout, page.Config)
				return err
			}
			list, err := decodeAll[subscribers.Subscriber](page.Subscribers)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, x := range list {
				rows[i] = []string{x.Name, orDash(x.Keyspace), orDash(x.Owner), x.Consumer, a.when(x.AddedAt), x.PublicKey}
			}
			return a.rows([]string{"Subscriber", "Keyspace", "Owner", "Consumer", "Added", "Public key"}, rows)
		},
	}
	cmd.Flags().BoolVar(&config, "config", false, "print subscribers.conf for the NATS servers instead")
	return cmd
}

func (a *app) subscribersRemoveCommand() *cobra.Command {
	var f commandFlags
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "End a subscriber: its consumer, and its way in", Args: takes("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &f, http.MethodDelete, path("subscribers", args[0]), nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v subscriberAdded
			if err := r.decode(&v); err != nil {
				return err
			}
			if err := a.fields([][2]string{{"subscriber", v.Subscriber.Name}, {"state", "removed"}, {"consumer", "FEED " + v.Subscriber.Consumer}}); err != nil {
				return err
			}
			if !v.Applied {
				a.note("It still hears live until this is taken out of subscribers.conf of every NATS server, and each was reloaded (nats-server --signal reload):")
				_, err = fmt.Fprintf(a.stdout, "\n%s", v.Config)
			}
			return err
		},
	}
	return cmd
}
