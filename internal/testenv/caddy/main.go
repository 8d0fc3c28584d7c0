// Caddy, as it is released, for the tests of the configuration in deploy/caddy. It
// is a module of its own, so that nothing of it is a dependency of the program.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() { caddycmd.Main() }
