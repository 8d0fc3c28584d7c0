package gateway_test

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/gateway"
)

// nginx as the upstream: a short answer, nothing else.
const upstreamConf = `
worker_processes 1; daemon off; master_process off; pid %[1]s/upstream.pid; error_log %[1]s/upstream.err;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000000; server { listen %[2]s; location / { default_type text/plain; return 200 "ok"; } } }
# itself: %[3]s
`

// nginx as a gateway that checks a key by its hash, counts three windows, tells
// the upstream whose key it was, and writes a line for each request.
const luaConf = `
load_module /usr/lib/nginx/modules/ndk_http_module.so; load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
worker_processes 1; daemon off; master_process off; pid %[1]s/lua.pid; error_log %[1]s/lua.err;
events { worker_connections 4096; }
http {
  access_log %[1]s/access.log combined buffer=256k; keepalive_requests 1000000000;
  lua_shared_dict keys 10m; lua_shared_dict limits 10m;
  init_by_lua_block { ngx.shared.keys:set("known", "org_1") }
  upstream up { server %[3]s; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen %[2]s;
    location /birds/ {
      access_by_lua_block {
        local given = ngx.req.get_headers()["authorization"]
        if not given or given:sub(1, 7) ~= "Bearer " then return ngx.exit(401) end
        local hash = ngx.encode_base64(ngx.sha1_bin(given:sub(8)))
        local owner = ngx.shared.keys:get("known")
        local now = ngx.time()
        for _, window in ipairs({60, 3600, 86400}) do
          if ngx.shared.limits:incr(hash .. window .. math.floor(now / window), 1, 0, window) > 1e9 then return ngx.exit(429) end
        end
        ngx.req.clear_header("Authorization")
        ngx.req.set_header("X-Key-Id", hash)
        ngx.req.set_header("X-Key-Owner", owner)
        ngx.req.set_header("X-Key-Scopes", "birds:read")
        ngx.req.set_header("X-Key-Environment", "live")
        ngx.req.set_header("X-Request-Id", ngx.var.request_id)
      }
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://up/;
    }
  }
}
`

// contenders are what stands between client and upstream.
var contenders = []string{"gateway", "reverseproxy", "nginx-lua", "nothing"}

// contender answers as a contender in Go.
func contender(b testing.TB, name, upstream string) http.Handler {
	switch name {
	case "gateway":
		return newRig(b, http.NotFoundHandler(), func(c *gateway.Config) { c.Routes[0].Upstream = upstream }).gateway
	case "reverseproxy":
		to, err := url.Parse(upstream)
		if err != nil {
			b.Fatal(err)
		}
		return &httputil.ReverseProxy{
			Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(to) },
			Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
}

// Gateway, bare httputil.ReverseProxy, nginx with Lua, and a server that
// forwards nothing: each in a process of its own on the first core; the upstream
// and wrk on the second; in turns, the median of five. The processor time for
// each request says more than the rate where the machine is shared. In short mode
// each only has to answer.
func BenchmarkLoad(b *testing.B) {
	if name, ok := os.LookupEnv("KEYLEDGER_LOAD_SERVE"); ok {
		l, err := net.Listen("tcp", os.Getenv("KEYLEDGER_LOAD_LISTEN"))
		if err != nil {
			b.Fatal(err)
		}
		_ = http.Serve(l, contender(b, name, os.Getenv("KEYLEDGER_LOAD_UPSTREAM"))) // until it is killed
		return
	}
	if testing.Short() {
		up := httptest.NewServer(contender(b, "nothing", ""))
		defer up.Close()
		for _, name := range []string{"gateway", "reverseproxy"} {
			s := httptest.NewServer(contender(b, name, up.URL))
			if err := answers(s.URL); err != nil {
				b.Errorf("%s: %v", name, err)
			}
			s.Close()
		}
		return
	}
	dir, address := b.TempDir(), map[string]string{}
	for _, name := range append([]string{"upstream"}, contenders...) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		address[name] = l.Addr().String()
		l.Close()
	}
	start := func(core, name string, args ...string) int {
		c := exec.Command("taskset", append([]string{"-c", core}, args...)...)
		c.Env = append(os.Environ(), "KEYLEDGER_LOAD_SERVE="+name, "KEYLEDGER_LOAD_LISTEN="+address[name], "KEYLEDGER_LOAD_UPSTREAM=http://"+address["upstream"])
		if err := c.Start(); err != nil {
			b.Fatalf("%v: install wrk, nginx, libnginx-mod-http-lua and util-linux", err)
		}
		b.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
		return c.Process.Pid // taskset becomes what it starts
	}
	nginx := func(core, name, conf string) int {
		file := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(file, fmt.Appendf(nil, conf, dir, address[name], address["upstream"]), 0o600); err != nil {
			b.Fatal(err)
		}
		return start(core, name, "nginx", "-e", "stderr", "-p", dir, "-c", file)
	}
	nginx("1", "upstream", upstreamConf)
	pids := map[string]int{}
	for _, name := range contenders {
		if name == "nginx-lua" {
			pids[name] = nginx("0", name, luaConf)
		} else {
			pids[name] = start("0", name, os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkLoad$", "-test.timeout=0")
		}
		if err := answers("http://" + address[name]); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
	}
	type figures struct{ rate, p99, cost float64 }
	all := map[string][]figures{}
	for b.Loop() {
		for round := range 6 {
			for _, name := range contenders {
				seconds := cmp.Or(os.Getenv("KEYLEDGER_LOAD_TIME"), "10s")
				if round == 0 {
					seconds = "2s" // to warm up
				}
				before := processorTime(b, pids[name])
				out, err := exec.Command("taskset", "-c", "1", "wrk", "-t1", "-c64", "-d"+seconds, "--latency", "-H", "Authorization: Bearer "+secret,
					"http://"+address[name]+"/birds/v1/birds/7").CombinedOutput()
				if err != nil || bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
					b.Fatalf("%s: %v\n%s", name, err, out)
				}
				spent := processorTime(b, pids[name]) - before
				if round > 0 {
					all[name] = append(all[name], figures{number(b, out, `Requests/sec:\s+([0-9.]+)()`), number(b, out, `99%\s+([0-9.]+)(us|ms|s)`),
						float64(spent.Microseconds()) / number(b, out, `([0-9]+)() requests in`)})
				}
			}
		}
	}
	median := func(list []figures, of func(figures) float64) float64 {
		list = slices.SortedFunc(slices.Values(list), func(a, b figures) int { return cmp.Compare(of(a), of(b)) })
		return of(list[len(list)/2])
	}
	for _, name := range contenders {
		b.ReportMetric(median(all[name], func(f figures) float64 { return f.rate }), name+"-req/s")
		b.ReportMetric(median(all[name], func(f figures) float64 { return f.p99 }), name+"-p99-ms")
		b.ReportMetric(median(all[name], func(f figures) float64 { return f.cost }), name+"-cpu-µs")
	}
}

// answers waits until a contender does.
func answers(base string) error {
	until := time.Now().Add(20 * time.Second)
	for {
		r, err := http.NewRequest("GET", base+"/birds/v1/birds/7", nil)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		res, err := http.DefaultClient.Do(r)
		if err == nil {
			body, readErr := bufio.NewReader(res.Body).ReadString(0)
			res.Body.Close()
			if res.StatusCode == 200 && body == "ok" && readErr == io.EOF {
				return nil
			}
			err = fmt.Errorf("%d %q, %v", res.StatusCode, body, readErr)
		}
		if time.Now().After(until) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // nothing signals that another process listens
	}
}

// number finds a figure in wrk's report; times are in milliseconds.
func number(b *testing.B, report []byte, pattern string) float64 {
	b.Helper()
	m := regexp.MustCompile(pattern).FindSubmatch(report)
	if m == nil {
		b.Fatalf("no %s in\n%s", pattern, report)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	switch string(m[2]) {
	case "us":
		n /= 1000
	case "s":
		n *= 1000
	}
	return n
}

// processorTime is what a process has used, in user and kernel, to 10 ms.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
