package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// app is one invocation of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	tty, errTTY    bool // stdout, stderr is a terminal
	color          bool
	width          int // of the terminal; 0: not known
	now            func() time.Time

	asJSON    bool
	urlFlag   string
	tokenFlag string
	receipts  int // answers whose receipts were written

	running *cobra.Command // the command that was found
	started bool           // its arguments were right
}

// run is the program from outside: arguments and streams in, exit code out.
// Ctrl-C and SIGTERM end the context that every command works under.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := newApp(stdin, stdout, stderr)
	return a.execute(ctx, args)
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now}
	a.tty, a.errTTY = terminal(stdout), terminal(stderr)
	a.width = widthOf(stdout)
	a.color = a.tty && os.Getenv("NO_COLOR") == ""
	return a
}

func (a *app) execute(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	var err error
	a.running, err = root.ExecuteContextC(ctx)
	return a.finish(err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyledger",
		Short: "API keys as a ledger: issue, verify, limit, rotate, revoke, and prove what happened",
		Long: `keyledger issues, verifies, limits, rotates and revokes API keys, and keeps
every one of these facts in a log that can be checked.

Start everything with ` + "`keyledger dev`" + `; it writes a context file, so that the
commands here work in another terminal without further settings.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 unreachable,
6 refused, 7 audit proof failed.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "use", Title: "Use:"}, &cobra.Group{ID: "look", Title: "Look after:"})
	root.SetHelpCommandGroupID("look")
	root.SetCompletionCommandGroupID("look")
	f := root.PersistentFlags()
	f.BoolVar(&a.asJSON, "json", false, "print JSON")
	f.StringVar(&a.urlFlag, "url", "", "address of the API (else KEYLEDGER_URL, the context file, "+defaultURL+")")
	f.StringVar(&a.tokenFlag, "token-file", "", "file that holds the root key (else KEYLEDGER_TOKEN, the context file)")
	for group, commands := range map[string][]*cobra.Command{
		"run": {
			a.devCommand(), a.serveCommand(), a.gatewayCommand(), a.initCommand(),
		},
		"use": {
			a.keyspacesCommand(), a.ownersCommand(), a.keysCommand(), a.verifyCommand(), a.usageCommand(), a.alertsCommand(), a.reportCommand(), a.limitsCommand(), a.watchCommand(), a.subscribersCommand(), a.sinksCommand(), a.webhooksCommand(), a.consoleCommand(),
		},
		"look": {
			a.auditCommand(), a.privacyCommand(), a.projectionsCommand(), a.rootKeyCommand(), a.backupCommand(), a.restoreCommand(), a.acceptLossCommand(), a.doctorCommand(), a.benchCommand(), a.openapiCommand(), a.versionCommand(),
		},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.InitDefaultCompletionCmd()
	a.mark(root)
	return root
}

// mark makes every command note that its flags and arguments were accepted:
// what fails before that is usage, exit code 2.
func (a *app) mark(c *cobra.Command) {
	if inner := c.RunE; inner != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return inner(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		a.mark(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(commands...)
	return c
}

// noSubcommand refuses what is no subcommand. It does not repeat the argument:
// it may be a secret in the wrong place.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	names := make([]string, 0, 16)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usageError("`%s` has no such subcommand; did you mean %s?", cmd.CommandPath(), strings.Join(near, " or "))
	}
	return usageError("`%s` has no such subcommand; it has %s", cmd.CommandPath(), strings.Join(names, ", "))
}

// takes names the arguments of a command; a name that ends in "…" may be
// repeated. A wrong number of them is usage, and none is repeated in the
// message.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		many := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "…")
		switch {
		case len(args) == len(names) || many && len(args) > len(names):
			return nil
		case len(names) == 0:
			return usageError("`%s` takes no argument (secrets are read from stdin or a file)", cmd.CommandPath())
		case len(args) > len(names):
			return usageError("`%s` takes %s and nothing after it (secrets are read from stdin or a file)", cmd.CommandPath(), strings.Join(names, " "))
		}
		return usageError("`%s` needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " "))
	}
}

// must marks flags as required. Cobra's own message for a missing one says
// neither the command nor what to write.
func must(cmd *cobra.Command, names ...string) {
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, n := range names {
			if f := cmd.Flag(n); !f.Changed {
				return usageError("`%s` needs --%s: %s", cmd.CommandPath(), n, f.Usage)
			}
		}
		return inner(cmd, args)
	}
	for _, n := range names {
		if f := cmd.Flag(n); f == nil {
			panic(fmt.Sprintf("%s has no flag %s", cmd.Name(), n))
		}
	}
}
