package embedded

import (
	"context"
	"errors"
)

var errNoSuchVersion = errors.New("no such version")

func download(ctx context.Context, cfg PostgresConfig, major string, who *osUser) (binaries, error) {
	return binaries{}, errors.New("not yet")
}
