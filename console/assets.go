package console

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
)

//go:embed static
var staticFiles embed.FS

// assetFiles are the assets by name. Style sheets are one, console.css: the one of that name
// first, then those of the rooms.
var assetFiles = sync.OnceValue(func() map[string][]byte {
	m := map[string][]byte{}
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		panic(err) // embedded: fails in every run or in none
	}
	var sheets []byte
	for _, e := range entries {
		b, err := staticFiles.ReadFile("static/" + e.Name())
		if err != nil {
			panic(err)
		}
		switch {
		case e.Name() == "console.css":
			sheets = append(b, sheets...)
		case path.Ext(e.Name()) == ".css":
			sheets = append(sheets, b...)
		default:
			m[e.Name()] = b
		}
	}
	m["console.css"] = sheets
	return m
})

// hashes are the first characters of the SHA-256 of every asset: its address
// changes with its content, so that browsers may keep it for ever.
var hashes = sync.OnceValue(func() map[string]string {
	m := map[string]string{}
	for name, b := range assetFiles() {
		sum := sha256.Sum256(b)
		m[name] = hex.EncodeToString(sum[:6])
	}
	return m
})

// zippedFiles are the assets as they are sent to browsers that take gzip; one that gzip
// does not help is missing.
var zippedFiles = sync.OnceValue(func() map[string][]byte {
	m := map[string][]byte{}
	for name, b := range assetFiles() {
		if z := zipped(b); z != nil {
			m[name] = z
		}
	}
	return m
})

// scripts are those of a page: everybody's (charts may be on any), and the one of its
// name, if any.
func scripts(page string) []string {
	names := []string{"console.js", "chart.js"}
	if own := page + ".js"; assetFiles()[own] != nil {
		names = append(names, own)
	}
	return names
}

// asset is where a page finds an asset.
func asset(name string) (string, error) {
	hash := hashes()[name]
	if hash == "" {
		return "", fmt.Errorf("there is no asset %s", name)
	}
	return "/assets/" + hash + "/" + name, nil
}

func (c *Console) assets() {
	c.mux.HandleFunc("GET /assets/{hash}/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if hashes()[name] == "" || hashes()[name] != r.PathValue("hash") {
			http.NotFound(w, r)
			return
		}
		kind := mime.TypeByExtension(path.Ext(name))
		if strings.HasSuffix(name, ".js") {
			kind = "text/javascript; charset=utf-8"
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		w.Header().Set("Vary", "Accept-Encoding")
		b := assetFiles()[name]
		if z := zippedFiles()[name]; z != nil && zips(r) {
			w.Header().Set("Content-Encoding", "gzip")
			b = z
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b)
	})
	c.mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		to, err := asset("icon.svg")
		if err != nil {
			http.NotFound(w, r)
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
}

func mustPath(p string) *url.URL { return &url.URL{Path: p} }
