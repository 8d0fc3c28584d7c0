package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The settings that deploy/ mounts into the containers are ones that this
// program reads, and say what production needs.
func TestDeployedSettings(t *testing.T) {
	a := &app{stdout: io.Discard, stderr: io.Discard}
	for _, kind := range []string{"serve", "gateway"} {
		cmd := a.serveCommand()
		if kind == "gateway" {
			cmd = a.gatewayCommand()
		}
		s, err := readSettings(cmd, filepath.Join("..", "..", "deploy", kind+".yaml"))
		if err != nil {
			t.Fatalf("%s.yaml: %v", kind, err)
		}
		if s.NATS.Replicas != 3 || len(s.NATS.Monitor) != 3 || len(strings.Split(s.NATS.URL, ",")) != 3 || s.NATS.AllowUnverifiedSync || s.NATS.UserFile == "" {
			t.Errorf("%s.yaml: NATS %+v", kind, s.NATS)
		}
		if s.StateDir == "" || s.MasterKeyFile == "" || s.StaleWindow != 5*time.Minute {
			t.Errorf("%s.yaml: state_dir %q, master_key_file %q, stale_window %v", kind, s.StateDir, s.MasterKeyFile, s.StaleWindow)
		}
		if kind == "serve" {
			if s.Postgres.URLFile == "" || s.Postgres.URL != "" {
				t.Errorf("serve.yaml: the PostgreSQL URL belongs into a file, found %+v", s.Postgres)
			}
			continue
		}
		if err := s.Gateway.Validate(); err != nil {
			t.Errorf("gateway.yaml: %v", err)
		}
		if len(s.Gateway.Routes) == 0 || s.Postgres.URLFile != "" {
			t.Errorf("gateway.yaml: %d routes, PostgreSQL %+v", len(s.Gateway.Routes), s.Postgres)
		}
	}
}

// A setting that nobody knows is refused by name, not ignored.
func TestUnknownSetting(t *testing.T) {
	file := filepath.Join(t.TempDir(), "serve.yaml")
	if err := os.WriteFile(file, []byte("master_key_file: m\nnats: {url: nats://n, replica: 3}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: io.Discard, stderr: io.Discard}
	if _, err := readSettings(a.serveCommand(), file); err == nil || !strings.Contains(err.Error(), "replica") {
		t.Errorf("an unknown setting: %v", err)
	}
}

// A later place counts: file, environment, flag.
func TestSettingsInOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "serve.yaml")
	if err := os.WriteFile(file, []byte("master_key_file: m\nlisten: from-file\nnode: from-file\nstale_window: 1m\nnats: {url: nats://file, replicas: 3}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KEYLEDGER_NODE", "from-environment")
	t.Setenv("KEYLEDGER_NATS_URL", "nats://environment")
	t.Setenv("KEYLEDGER_NATS_MONITOR", "http://a:8222,http://b:8222")
	a := &app{stdout: io.Discard, stderr: io.Discard}
	cmd := a.serveCommand()
	if err := cmd.ParseFlags([]string{"--nats-url", "nats://flag", "--stale-window", "90s"}); err != nil {
		t.Fatal(err)
	}
	s, err := readSettings(cmd, file)
	if err != nil {
		t.Fatal(err)
	}
	if s.Listen != "from-file" || s.Node != "from-environment" || s.NATS.URL != "nats://flag" || s.NATS.Replicas != 3 || len(s.NATS.Monitor) != 2 || s.StaleWindow != 90*time.Second {
		t.Errorf("settings %+v", s)
	}
}

// How long figures are kept is given in days, the coarser the longer.
func TestKeepFigures(t *testing.T) {
	for _, c := range []struct{ minutes, hours, days, wrong string }{
		{"", "", "", ""}, {"90d", "", "", ""}, {"90d", "730d", "3650d", ""}, {"", "90d", "", ""}, {"48h", "48h", "48h", ""},
		{"1d", "", "", "retention.usage_minutes: at least"}, {"90d", "30d", "", "retention.usage_hours: at least 90d"}, {"", "", "soon", "retention.usage_days"},
	} {
		var s settings
		s.Retention.UsageMinutes, s.Retention.UsageHours, s.Retention.UsageDays = c.minutes, c.hours, c.days
		k, err := s.keepFigures()
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%+v: %v", c, err)
		}
		now := time.Date(2026, 3, 31, 17, 5, 0, 0, time.UTC)
		if u := k.until(now); c.minutes == "90d" && err == nil && !u.Minutes.Equal(time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)) || c.days == "" && !u.Days.IsZero() {
			t.Errorf("%+v: removed until %+v", c, u)
		}
	}
}

// Every setting stands in the operators' manual, with its environment variable.
func TestEverySettingIsDocumented(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "..", "docs", "operators.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flagged {
		if !strings.Contains(string(manual), "`"+f.path+"`") || !strings.Contains(string(manual), "`"+envName(f.path)+"`") {
			t.Errorf("docs/operators.md does not say what %s is, which is also %s", f.path, envName(f.path))
		}
	}
}

// What is wrong with a sink keeps serve from starting, with file, line and what to write; a
// gateway delivers nothing.
func TestSinksAreRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	master := write("master", strings.Repeat("ab", 32))
	settings := write("serve.yaml", "master_key_file: "+master+"\nnats: {url: nats://n}\nsinks:\n- {name: billing, kind: htpp}\n")
	contains(t, "stderr", invoke(t, "", "serve", "--config", settings).want(t, exitUsage).stderr, `line 4: sinks[0].kind "htpp" is not known: write one of http, redis_stream`)
	contains(t, "stderr", invoke(t, "", "dev", "--sinks", settings).want(t, exitUsage).stderr, "line 4:")
	none := write("none.yaml", "listen: x\n")
	contains(t, "stderr", invoke(t, "", "dev", "--sinks", none).want(t, exitUsage).stderr, "names no sinks")
	gateway := write("gateway.yaml", "master_key_file: "+master+"\nnats: {url: nats://n}\nauthz_socket: s\nsinks: []\n")
	contains(t, "stderr", invoke(t, "", "gateway", "--config", gateway).want(t, exitUsage).stderr, "a gateway delivers nothing")
}
