package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"html"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/console"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify/inbound"
)

// withConsole puts the console's pages beside the API. proxies are those whose word is
// taken on where a request comes from.
func withConsole(ctx context.Context, n *node, api http.Handler, openID *console.OpenID, proxies []string) (*console.Sessions, http.Handler, error) {
	js, err := jetstream.New(n.config.Conn)
	if err != nil {
		return nil, nil, err
	}
	sessions, err := console.OpenSessions(ctx, js, n.config.Replicas)
	if err != nil {
		return nil, nil, err
	}
	trusted, err := inbound.ParseProxies(proxies)
	if err != nil {
		return nil, nil, err
	}
	// Nobody who has the audit log can find out with it whose id is whose.
	people := hmac.New(sha256.New, n.config.Master[:])
	people.Write([]byte("people at the console"))
	pages, err := console.New(console.Deps{
		API: api, Sessions: sessions, OpenID: openID, PersonSecret: people.Sum(nil),
		ClientIP: func(r *http.Request) string { c := trusted.Client(r); return c.IP },
		Failed:   n.signinFailed,
		Version:  build().Version, Log: n.config.Log,
	})
	return sessions, pages, err
}

// signinFailed records that somebody could not sign in at the console.
func (n *node) signinFailed(ctx context.Context, reason, ip string) error {
	now := time.Now()
	from, err := n.seal.Seal(ctx, events.RootKeyspace, "", now, ip)
	if err != nil {
		return err
	}
	e := events.New(events.SigninFailed{Reason: reason, SourceIP: from, Fold: events.Fold{Count: 1, First: events.At(now), Last: events.At(now)}}, now)
	e.Keyspace, e.Actor, e.Via = events.RootKeyspace, events.Actor{Type: "system", ID: "console"}, "console"
	_, err = n.ledger.AppendOps(ctx, e)
	return err
}

// readOpenID reads the secret that openid.client_secret_file names.
func readOpenID(o *console.OpenID) error {
	if o == nil {
		return nil
	}
	if err := o.Validate(); err != nil {
		return usageError("%w", err)
	}
	if o.ClientSecretFile != "" {
		b, err := os.ReadFile(o.ClientSecretFile)
		if err != nil {
			return fmt.Errorf("openid.client_secret_file: %w", err)
		}
		o.ClientSecret, o.ClientSecretFile = strings.TrimSpace(string(b)), ""
	}
	return nil
}

// openIDOf reads the settings openid of a file, for dev; all others are left alone.
func openIDOf(file string) (*console.OpenID, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--openid: %w", err)
	}
	var all map[string]yamlv3.Node
	if err := yamlv3.Unmarshal(b, &all); err != nil {
		return nil, usageError("--openid %s: %w", file, err)
	}
	settings, ok := all["openid"]
	if !ok {
		return nil, usageError("--openid %s names no provider: write openid: {issuer: …}", file)
	}
	b, err = yamlv3.Marshal(&settings)
	if err != nil {
		return nil, err
	}
	o := new(console.OpenID)
	d := yamlv3.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(o); err != nil {
		return nil, usageError("--openid %s: %w", file, err)
	}
	if secret := os.Getenv(envName("openid.client_secret")); secret != "" {
		o.ClientSecret = secret
	}
	return o, readOpenID(o)
}

// openBrowser opens a link that signs somebody in. It goes by a file that only they can
// read: what a program is started with, everybody on the machine sees.
func openBrowser(ctx context.Context, dir, link string) error {
	page := filepath.Join(dir, "open-console.html")
	text := `<!doctype html><meta charset="utf-8"><title>keyledger</title><meta http-equiv="refresh" content="0; url=` +
		html.EscapeString(link) + `"><p><a href="` + html.EscapeString(link) + `">To the console</a>`
	if err := replaceFile(page, []byte(text)); err != nil {
		return err
	}
	var opener *exec.Cmd
	switch runtime.GOOS {
	case "darwin":
		opener = exec.CommandContext(ctx, "open", page)
	case "windows":
		opener = exec.CommandContext(ctx, "rundll32", "url.dll,FileProtocolHandler", page)
	default:
		opener = exec.CommandContext(ctx, "xdg-open", page)
	}
	if out, err := opener.CombinedOutput(); err != nil {
		return fmt.Errorf("no browser was opened (%w): open the link yourself: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (a *app) consoleCommand() *cobra.Command {
	var open bool
	c := &cobra.Command{
		Use: "console", Short: "Print a link that signs you in at the web console", Args: takes(),
		Long: "Prints a link that signs in at the web console as the root key of this command line. It works once, for ten minutes.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.do(cmd.Context(), call{method: http.MethodPost, path: console.CodePath})
			if err != nil {
				return err
			}
			var code console.Code
			if err := r.decode(&code); err != nil {
				return err
			}
			link := struct {
				URL   string    `json:"url"`
				Until time.Time `json:"until"`
			}{URL: strings.TrimSuffix(c.target.URL, "/") + code.Path}
			if link.Until, err = time.Parse(time.RFC3339, code.Until); err != nil {
				return err
			}
			if a.asJSON {
				return a.printValue(link)
			}
			fmt.Fprintf(a.stdout, "%s\n", link.URL)
			fmt.Fprintf(a.stderr, "It works once, until %s.\n", link.Until.Local().Format("15:04"))
			if !open {
				return nil
			}
			file, err := ContextPath()
			if err != nil {
				return err
			}
			dir := filepath.Dir(file)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			return openBrowser(cmd.Context(), dir, link.URL)
		},
	}
	c.Flags().BoolVar(&open, "open", false, "open it in the browser")
	return c
}
