package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/spf13/cobra"
)

// buildInfo says what this program was made of.
type buildInfo struct {
	Version  string `json:"version"` // devel when it was not built from a tagged module
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the checkout had changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// build reads what the Go toolchain wrote into the program.
var build = sync.OnceValue(func() buildInfo {
	b := buildInfo{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
})

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which version this is", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			b := build()
			if a.asJSON {
				return a.printValue(b)
			}
			_, err := fmt.Fprintf(a.stdout, "keyledger %s %s %s\n", b.Version, b.Go, b.Platform)
			return err
		},
	}
}
