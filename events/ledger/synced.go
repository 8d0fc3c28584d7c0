package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// SyncedBy is an [Options.SyncAlways] that asks the monitoring address of every
// server (http://nats-1:8222) whether it syncs every write. nil where there is none.
func SyncedBy(monitors []string) func(context.Context) (bool, error) {
	if len(monitors) == 0 {
		return nil
	}
	return func(ctx context.Context) (bool, error) {
		for _, base := range monitors {
			synced, err := syncedBy(ctx, strings.TrimRight(strings.TrimSpace(base), "/"))
			if err != nil || !synced {
				return false, err
			}
		}
		return true, nil
	}
}

func syncedBy(ctx context.Context, base string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/jsz?config=true", nil)
	if err != nil {
		return false, fmt.Errorf("nats.monitor: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, fmt.Errorf("nats.monitor: %w", err)
	}
	defer resp.Body.Close()
	var jsz struct {
		Config struct {
			SyncAlways bool `json:"sync_always"`
		} `json:"config"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&jsz); err != nil || resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("nats.monitor: %s/jsz answers %s, which is not JetStream's state", base, resp.Status)
	}
	return jsz.Config.SyncAlways, nil
}
