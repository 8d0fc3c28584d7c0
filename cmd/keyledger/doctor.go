package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// check is one line of doctor.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warn, fail
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // what to do; with warn and fail
}

// clockTolerance is what a Date header, which has whole seconds, and a slow
// answer may explain.
const clockTolerance = 3 * time.Second

func (a *app) doctorCommand() *cobra.Command {
	var natsURL, creds string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check that everything can be reached, and say what to do", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks, code := a.examine(cmd.Context(), natsURL, creds)
			if a.asJSON {
				if err := a.printValue(map[string]any{"ok": code == exitOK, "checks": checks}); err != nil {
					return err
				}
			} else if err := a.printChecks(checks); err != nil {
				return err
			}
			if code != exitOK {
				return quietly(code)
			}
			return nil
		},
	}
	a.natsFlags(cmd, &natsURL, &creds)
	return cmd
}

func (a *app) printChecks(checks []check) error {
	for _, c := range checks {
		line := fmt.Sprintf("%s\t%s\t%s", c.Status, c.Name, clean(c.Detail))
		if a.tty {
			// The colour's own characters must not count as width.
			line = a.paint(c.Status) + strings.Repeat(" ", 6-len(c.Status)) + fmt.Sprintf("%-12s %s", c.Name, clean(c.Detail))
		}
		if c.Fix != "" && a.tty {
			line += "\n      " + strings.Repeat(" ", 13) + clean(c.Fix)
		} else if c.Fix != "" {
			line += "\t" + clean(c.Fix)
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// examine makes all checks that can be made and returns them with the exit
// code: 5 when the API does not answer, 1 for any other failure.
func (a *app) examine(ctx context.Context, natsURL, creds string) (checks []check, code int) {
	add := func(c check) {
		checks = append(checks, c)
		if c.Status == "fail" && code == exitOK {
			code = exitFailed
		}
	}
	c, err := a.client()
	if err != nil {
		add(check{"context", "fail", err.Error(), "correct it, or remove the context file and start `keyledger dev`, which writes it anew"})
		return checks, code
	}
	add(checkContext(c.target))
	add(checkToken(c.target))
	reached := a.checkReachable(ctx, c)
	for _, r := range reached {
		add(r)
	}
	if reached[0].Status == "fail" {
		code = exitUnreachable
	} else {
		add(checkReady(ctx, c))
		for _, s := range checkStatus(ctx, c) {
			add(s)
		}
	}
	add(a.checkNATS(ctx, natsURL, creds))
	return checks, code
}

func checkContext(t target) check {
	if !t.found {
		return check{"context", "warn", "there is no context file at " + t.path, "start `keyledger dev`, which writes one, or give --url and --token-file each time"}
	}
	info, err := os.Stat(t.path)
	if err != nil {
		return check{"context", "fail", err.Error(), "make the file readable for yourself"}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return check{"context", "warn", fmt.Sprintf("%s can be read by others (mode %04o)", t.path, info.Mode().Perm()), "chmod 600 " + t.path}
	}
	return check{"context", "ok", t.path, ""}
}

func checkToken(t target) check {
	const name = "root key"
	switch {
	case t.tokenMiss != nil:
		return check{name, "fail", t.tokenMiss.Error(), "start `keyledger dev` again, or give another file with --token-file"}
	case t.token == "":
		return check{name, "fail", "there is none for " + t.URL, "give one with --token-file or KEYLEDGER_TOKEN"}
	case t.tokenFrom == "KEYLEDGER_TOKEN" && t.TokenFile == "":
		return check{name, "ok", "from KEYLEDGER_TOKEN", ""}
	}
	info, err := os.Stat(t.TokenFile)
	if err != nil {
		return check{name, "fail", err.Error(), "give another file with --token-file"}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return check{name, "warn", fmt.Sprintf("%s can be read by others (mode %04o)", t.TokenFile, info.Mode().Perm()), "chmod 600 " + t.TokenFile}
	}
	if u, err := url.Parse(t.URL); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) {
		return check{name, "warn", "it travels in clear to " + t.URL, "use an https address"}
	}
	return check{name, "ok", "from " + t.tokenFrom, ""}
}

// checkReachable asks for liveness, and compares the clocks by the way.
func (a *app) checkReachable(ctx context.Context, c *client) []check {
	begun := a.now()
	r, err := c.plain(ctx, "/healthz")
	if lost, ok := errors.AsType[*unreachable](err); ok {
		return []check{{"api", "fail", fmt.Sprintf("%s does not answer: %v", lost.url, rootCause(lost.cause)), "start it with `keyledger dev`, or name another with --url; the address is from " + lost.from}}
	}
	if err != nil {
		return []check{{"api", "fail", firstLine(err), "see whether " + c.target.URL + " is keyledger's address"}}
	}
	took := a.now().Sub(begun)
	checks := []check{{"api", "ok", fmt.Sprintf("%s answers in %s", c.target.URL, took.Round(time.Millisecond/10)), ""}}
	if at, err := http.ParseTime(r.header.Get("Date")); err == nil {
		// The header is cut to whole seconds: half of one is the best guess.
		difference := begun.Add(took / 2).Sub(at.Add(time.Second / 2)).Round(time.Second)
		if difference.Abs() > clockTolerance {
			checks = append(checks, check{"clock", "warn", fmt.Sprintf("this machine is %s off from the service", difference), "set both by NTP: expiry and grace are judged by the service's clock"})
		} else {
			checks = append(checks, check{"clock", "ok", "as the service's", ""})
		}
	}
	return checks
}

// plain reads a path outside /v1.
func (c *client) plain(ctx context.Context, path string) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := c.open(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &answer{resp.StatusCode, resp.Header, body}, err
}

// checkReady reads {ready, checks: {name: {ok, detail}}}, which /readyz answers
// with 200 and with 503.
func checkReady(ctx context.Context, c *client) check {
	r, err := c.plain(ctx, "/readyz")
	if p, ok := errors.AsType[*problem](err); ok && p.raw != nil {
		r = &answer{body: p.raw}
	} else if err != nil {
		return check{"ready", "fail", firstLine(err), "the service's log says why"}
	}
	var answered struct {
		Checks map[string]struct {
			OK     bool   `json:"ok"`
			Detail string `json:"detail"`
		} `json:"checks"`
	}
	if jsonErr := r.decode(&answered); jsonErr != nil {
		return check{"ready", "fail", jsonErr.Error(), "use a program of the service's version"}
	}
	var well, not []string
	for _, name := range slices.Sorted(maps.Keys(answered.Checks)) {
		if one := answered.Checks[name]; one.OK {
			well = append(well, name)
		} else {
			not = append(not, name+": "+one.Detail)
		}
	}
	if err != nil || len(not) > 0 {
		return check{"ready", "fail", strings.Join(not, "; "), "wait until it has caught up; the service's log says what it is waiting for"}
	}
	return check{"ready", "ok", strings.Join(well, ", "), ""}
}

// statusView is what GET /v1/status answers.
type statusView struct {
	Streams []struct {
		Stream string `json:"stream"`
		Head   uint64 `json:"head"`
		Doubt  string `json:"doubt"`
	} `json:"streams"`
	Projections []projectionView `json:"projections"`
	Verifiers   []struct {
		Node   string `json:"node"`
		Lag    uint64 `json:"lag"`
		LostMS int64  `json:"lost_ms"`
	} `json:"verifiers"`
}

// lostTooLong is how many milliseconds a verifier may be without news before it
// is worth a word: while all is well it is about one second.
const lostTooLong = 5000

// checkStatus asks with the root key, and looks at streams, verifiers and
// projections.
func checkStatus(ctx context.Context, c *client) []check {
	const log = "the service's log says more"
	r, err := c.do(ctx, call{method: http.MethodGet, path: path("status")})
	if p, ok := errors.AsType[*problem](err); ok && p.exit() == exitRefused {
		return []check{{"status", "fail", "the root key is refused: " + firstLine(err),
			"give one of role operator with --token-file; lost ones are replaced with `keyledger root-key reset` on the service's machine"}}
	}
	if err != nil {
		return []check{{"status", "fail", firstLine(err), log}}
	}
	var s statusView
	if err := r.decode(&s); err != nil {
		return []check{{"status", "fail", err.Error(), "use a program of the service's version"}}
	}
	checks := []check{{"status", "ok", "the root key is accepted", ""}}
	var heads []string
	streams := check{Name: "streams", Status: "ok"}
	for _, one := range s.Streams {
		heads = append(heads, fmt.Sprintf("%s %d", one.Stream, one.Head))
		if one.Doubt != "" {
			streams.Status, streams.Fix = "fail", log
			heads[len(heads)-1] += " in doubt: " + one.Doubt
		}
	}
	streams.Detail = strings.Join(heads, ", ")
	checks = append(checks, streams)
	for _, v := range s.Verifiers {
		one := check{"verifier", "ok", fmt.Sprintf("%s has applied everything", orDash(v.Node)), ""}
		switch {
		case v.LostMS > lostTooLong:
			one = check{"verifier", "warn", fmt.Sprintf("%s has had no news of the ledger for %d s", orDash(v.Node), v.LostMS/1000), "see whether it reaches NATS: beyond the stale window it refuses"}
		case v.Lag > 0:
			one.Detail = fmt.Sprintf("%s is %d facts behind", orDash(v.Node), v.Lag)
		}
		checks = append(checks, one)
	}
	return append(checks, checkProjections(s.Projections)...)
}

// checkProjections looks for one that stands still.
func checkProjections(list []projectionView) []check {
	var behind []string
	var checks []check
	for _, p := range list {
		if p.Error != "" {
			checks = append(checks, check{"projection", "fail", fmt.Sprintf("%s is %s at %d of %d: %s", p.Name, p.State, p.Position, p.Head, p.Error),
				"`keyledger projections status` shows all; the service's log says more"})
		} else if p.Lag > 0 {
			behind = append(behind, fmt.Sprintf("%s is %d messages behind", p.Name, p.Lag))
		}
	}
	switch {
	case len(checks) > 0 || len(list) == 0:
		return checks
	case len(behind) > 0:
		return []check{{"projections", "ok", "following: " + strings.Join(behind, ", "), ""}}
	}
	return []check{{"projections", "ok", fmt.Sprintf("all %d are at the head of their streams", len(list)), ""}}
}

// checkNATS opens a connection to NATS's port and reads its greeting. That is
// enough to tell a wrong address; watch says what is wrong with credentials.
func (a *app) checkNATS(ctx context.Context, natsURL, creds string) check {
	where, creds, err := a.nats(natsURL, creds)
	if err != nil {
		return check{"nats", "warn", "its address is not known here, so `watch` does not work", "give it with --nats-url or KEYLEDGER_NATS_URL"}
	}
	if creds != "" {
		if info, err := os.Stat(creds); errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm()&0o077 != 0 {
			return check{"nats", "warn", "the credentials file " + creds + " is missing or can be read by others", "chmod 600 it, or name another with --nats-creds"}
		}
	}
	var failed error
	for one := range strings.SplitSeq(where, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.Host == "" {
			failed = errors.New("it is no URL of the form nats://host:port")
			continue
		}
		host := u.Host
		if u.Port() == "" {
			host = net.JoinHostPort(u.Hostname(), "4222")
		}
		if failed = greeted(ctx, host); failed == nil {
			return check{"nats", "ok", host + " answers", ""}
		}
	}
	return check{"nats", "fail", fmt.Sprintf("it does not answer: %v", rootCause(failed)), "see whether NATS is running, and its address is right"}
}

func greeted(ctx context.Context, host string) error {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	hello := make([]byte, 5)
	if _, err := io.ReadFull(conn, hello); err != nil {
		return err
	}
	if string(hello) != "INFO " {
		return fmt.Errorf("%s is not NATS", host)
	}
	return nil
}

func rootCause(err error) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		return outer.Err
	}
	return err
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}
