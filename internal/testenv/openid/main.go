// Openid is an identity provider for tests: the example server of zitadel/oidc, whose
// library is certified by the OpenID Foundation, with people and groups that the
// arguments name (name=group,group; the password is everybody's "verysecure"). It prints
// its address. It is a module of its own, so that nothing of it is a dependency of the
// program.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// people are the example's, with groups.
type people struct {
	*storage.Storage
	groups map[string][]string // by user id
}

// SetUserinfoFromToken answers UserInfo.
func (p *people) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, tokenID, subject, origin string) error {
	if err := p.Storage.SetUserinfoFromToken(ctx, info, tokenID, subject, origin); err != nil {
		return err
	}
	info.AppendClaims("groups", p.groups[subject])
	return nil
}

func (p *people) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := p.Storage.GetClientByClientID(ctx, id)
	if err != nil {
		return nil, err
	}
	return client{c}, nil
}

// client is one that a console on any port of this machine may use.
type client struct{ op.Client }

func (client) RedirectURIGlobs() []string {
	return []string{"http://127.0.0.1:*/signin/openid/callback"}
}

func (client) PostLogoutRedirectURIGlobs() []string {
	return []string{"http://127.0.0.1:*/signin"}
}

func main() {
	users, groups := map[string]*storage.User{}, map[string][]string{}
	for _, arg := range os.Args[1:] {
		name, in, _ := strings.Cut(arg, "=")
		users[name] = &storage.User{ID: name, Username: name, Password: "verysecure", FirstName: strings.ToUpper(name[:1]) + name[1:], LastName: "Example", Email: name + "@example.com"}
		groups[name] = []string{}
		if in != "" {
			groups[name] = strings.Split(in, ",")
		}
	}
	file, err := os.CreateTemp("", "openid-*.json")
	if err != nil {
		log.Fatal(err)
	}
	err = json.NewEncoder(file).Encode(users)
	file.Close()
	if err != nil {
		log.Fatal(err)
	}
	known, err := storage.StoreFromFile(file.Name())
	os.Remove(file.Name())
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	issuer := "http://" + l.Addr().String()
	storage.RegisterClients(storage.WebClient("keyledger", "the secret of the client"))
	h := exampleop.SetupServer(issuer, &people{storage.NewStorage(known), groups}, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), false)
	fmt.Println("issuer " + issuer + " .")
	log.Fatal(http.Serve(l, h))
}
