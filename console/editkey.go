package console

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
)

// editable are a key's fields as a form holds them, each as one text. Fields that the
// keyspace does not have are absent.
type editable map[string]string

// editFields are in the order of the form.
var editFields = []string{"name", "plan", "scopes", "resources", "limit_minute", "limit_hour", "limit_day", "allowed_origins", "allowed_ips", "meta"}

var editWords = map[string]string{
	"name": "Name", "plan": "Plan", "scopes": "Scopes", "resources": "Bound to", "limit_minute": "Limit per minute", "limit_hour": "Limit per hour",
	"limit_day": "Limit per day", "allowed_origins": "Origins", "allowed_ips": "Addresses", "meta": "Meta", "expires": "Expiry",
}

// editableOf is what of a key may be changed.
func editableOf(k *api.Key, d *domain.Document) editable {
	e := editable{"name": k.Name, "allowed_ips": strings.Join(k.AllowedIPs, "\n")}
	if len(d.Plans) > 0 {
		e["plan"] = k.Plan
	}
	if len(d.Scopes) > 0 && len(d.FixedScopes) == 0 {
		e["scopes"] = strings.Join(slices.Sorted(slices.Values(k.Scopes)), "\n")
	}
	if d.Resource.Mode != "none" && d.Resource.Mode != "" {
		e["resources"] = strings.Join(k.Resources, "\n")
	}
	if d.Limits.From == "key" {
		for _, w := range []string{"minute", "hour", "day"} {
			e["limit_"+w] = ""
			if n, ok := k.Limits[w]; ok {
				e["limit_"+w] = strconv.FormatInt(n, 10)
			}
		}
	}
	if d.AllowedOrigins {
		e["allowed_origins"] = strings.Join(k.AllowedOrigins, "\n")
	}
	var meta []string
	for _, name := range slices.Sorted(maps.Keys(k.Meta)) {
		meta = append(meta, name+"="+k.Meta[name])
	}
	e["meta"] = strings.Join(meta, "\n")
	return e
}

// editableIn is what a form was sent with, of the fields that there are.
func editableIn(f url.Values, of editable) editable {
	e := editable{}
	for name := range of {
		switch name {
		case "scopes":
			e[name] = strings.Join(slices.Sorted(slices.Values(f["scopes"])), "\n")
		case "resources", "allowed_origins", "allowed_ips":
			e[name] = strings.Join(words(f.Get(name)), "\n")
		case "meta":
			var lines []string
			for line := range strings.Lines(f.Get("meta")) {
				if line = strings.TrimSpace(line); line != "" {
					lines = append(lines, line)
				}
			}
			e[name] = strings.Join(lines, "\n")
		default:
			e[name] = strings.TrimSpace(f.Get(name))
		}
	}
	return e
}

// patch is what the API is asked to change from one state of a form to another. Numbers
// that are none are sent as they are: the API says what is wrong with them.
func patch(was, now editable) map[string]any {
	in, limits := map[string]any{}, map[string]any{}
	for name, text := range now {
		if text == was[name] {
			continue
		}
		switch name {
		case "name":
			in[name] = text
		case "plan":
			if in[name] = text; text == "" {
				in[name] = nil
			}
		case "limit_minute", "limit_hour", "limit_day":
			window := strings.TrimPrefix(name, "limit_")
			if n, err := strconv.ParseInt(text, 10, 64); err == nil {
				limits[window] = n
			} else if text == "" {
				limits[window] = nil
			} else {
				limits[window] = text
			}
		case "meta":
			meta := map[string]string{}
			for line := range strings.Lines(text) {
				name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				meta[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			in[name] = meta
		default:
			list := []string{}
			if text != "" {
				list = strings.Split(text, "\n")
			}
			in[name] = list
		}
	}
	if len(limits) > 0 {
		in["limits"] = limits
	}
	return in
}

type editKeyData struct {
	listed
	Document *domain.Document
	Given    editable
	Was      string // what the form began with, as JSON
	Version  string // the key's, that the form is about
	Once     string
	Scopes   []scopeChoice
	Plans    []string
	Presets  []preset
	Expiry   string   // what is chosen: keep, never, custom, or one of Expiries
	Expiries []string // lengths from now on
	At       string   // of custom
	Soonest  string
	Moved    []movedField
	Problem  *api.Problem
}

// movedField is what somebody else changed while a form was open.
type movedField struct {
	Word, Was, Is string
	Yours         string // what the form says
	Both          bool   // the form changes it too
}

func (v *visit) editKey() error {
	k, ks, err := v.keyOf()
	if err != nil {
		return err
	}
	if err := v.mayEdit(&k); err != nil {
		return err
	}
	return v.showEdit(&k, ks, editableOf(&k, &ks.Document), "keep", "", nil, nil)
}

func (v *visit) mayEdit(k *api.Key) error {
	if !v.may(domain.KeysUpdate) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not change keys."}
	}
	if k.RevokedAt != 0 {
		return &api.Problem{Status: http.StatusConflict, Title: "It is revoked", Detail: "A revoked key cannot be changed."}
	}
	return nil
}

func (v *visit) showEdit(k *api.Key, ks *keyspace, given editable, expiry, at string, moved []movedField, problem *api.Problem) error {
	was, err := json.Marshal(editableOf(k, &ks.Document))
	if err != nil {
		return err
	}
	d := editKeyData{listed: listed{Key: *k, Status: k.Status, Word: ks.word(k.Status)}, Document: &ks.Document, Given: given, Was: string(was),
		Version: fmt.Sprint(k.Version), Once: newToken(), Expiry: expiry, At: at, Moved: moved, Problem: problem,
		Soonest: v.Now().UTC().Format("2006-01-02T15:04")}
	chosen := strings.Split(given["scopes"], "\n")
	for _, name := range slices.Sorted(maps.Keys(ks.Document.Scopes)) {
		s := ks.Document.Scopes[name]
		has := slices.Contains(chosen, name)
		d.Scopes = append(d.Scopes, scopeChoice{name, s.About, has || s.Available == nil || *s.Available, has})
	}
	d.Plans = slices.Sorted(maps.Keys(ks.Document.Plans))
	for _, name := range slices.Sorted(maps.Keys(ks.Document.Limits.Presets)) {
		limits := ks.Document.Limits.Presets[name]
		p := preset{Name: name}
		for window, field := range map[string]*string{"minute": &p.Minute, "hour": &p.Hour, "day": &p.Day} {
			if n, ok := limits[window]; ok {
				*field = strconv.FormatInt(n, 10)
			}
		}
		d.Presets = append(d.Presets, p)
	}
	for _, p := range ks.Document.Lifecycle.Expiry.Presets {
		if _, err := domain.ParseDuration(p); err == nil {
			d.Expiries = append(d.Expiries, p)
		}
	}
	if d.At == "" && k.ExpiresAt != 0 {
		d.At = k.ExpiresAt.Time().UTC().Format("2006-01-02T15:04")
	}
	if problem != nil {
		v.w.WriteHeader(problem.Status)
	} else if len(moved) > 0 {
		v.w.WriteHeader(http.StatusPreconditionFailed)
	}
	return v.show("edit", "Edit "+cmp.Or(k.Name, k.ID), d)
}

// saveKey changes what the form changed, if nobody changed the key meanwhile. Else it
// shows what they changed, keeps what the form changed, and asks again.
func (v *visit) saveKey() error {
	if err := v.r.ParseForm(); err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "The form could not be read."}
	}
	k, ks, err := v.keyOf()
	if err != nil {
		return err
	}
	if err := v.mayEdit(&k); err != nil {
		return err
	}
	f := v.r.PostForm
	is := editableOf(&k, &ks.Document)
	now, was := editableIn(f, is), editable{}
	if err := json.Unmarshal([]byte(f.Get("was")), &was); err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "The form is not whole. Open the page again."}
	}
	in := patch(was, now)
	expiry, at := f.Get("expiry"), strings.TrimSpace(f.Get("expires_at"))
	switch expiry {
	case "", "keep":
	case "never":
		if k.ExpiresAt != 0 {
			in["expires_at"] = nil
		}
	case "custom":
		in["expires_at"] = at // which the API refuses where it is no time
		for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05"} {
			if t, err := time.Parse(layout, at); err == nil {
				in["expires_at"] = t.Format(time.RFC3339)
			}
		}
	default:
		d, err := domain.ParseDuration(expiry)
		if err != nil {
			return &api.Problem{Status: http.StatusBadRequest, Title: "Bad Request", Detail: "There is no such expiry."}
		}
		in["expires_at"] = v.Now().Add(time.Duration(d)).UTC().Format(time.RFC3339)
	}
	page := "/keys/" + url.PathEscape(k.ID)
	if len(in) == 0 {
		return v.redirect(page, "")
	}
	header := once(f.Get("once"))
	if header == nil {
		header = http.Header{}
	}
	header.Set("If-Match", strconv.Quote(f.Get("version")))
	_, err = v.call(http.MethodPatch, "/v1"+page, nil, header, in, nil)
	p, refused := errors.AsType[*api.Problem](err)
	switch {
	case err == nil:
		return v.redirect(page, "changed")
	case !refused:
		return err
	case p.Status == http.StatusPreconditionFailed:
		// It may have moved since it was read above.
		if k, ks, err = v.keyOf(); err != nil {
			return err
		}
		is = editableOf(&k, &ks.Document)
		given, moved := merged(was, now, is)
		if len(moved) == 0 { // a rotation, say, or an expiry
			moved = []movedField{{Word: "Something that this form does not show", Was: "version " + f.Get("version"), Is: fmt.Sprintf("version %d", k.Version)}}
		}
		return v.showEdit(&k, ks, given, expiry, at, moved, nil)
	case p.Status == http.StatusUnprocessableEntity || p.Status == http.StatusConflict || p.Status == http.StatusBadRequest || p.Status == http.StatusForbidden:
		return v.showEdit(&k, ks, now, expiry, at, nil, p)
	}
	return err
}

// merged is a form over a key that somebody else changed meanwhile: what the form did
// not touch is as it is now.
func merged(was, now, is editable) (given editable, moved []movedField) {
	given = maps.Clone(is)
	for _, name := range editFields {
		if _, there := is[name]; !there {
			continue
		}
		touched := now[name] != was[name]
		if touched {
			given[name] = now[name]
		}
		if is[name] != was[name] {
			line := func(s string) string { return cmp.Or(strings.ReplaceAll(s, "\n", ", "), "nothing") }
			moved = append(moved, movedField{editWords[name], line(was[name]), line(is[name]), line(now[name]), touched && now[name] != is[name]})
		}
	}
	return given, moved
}
