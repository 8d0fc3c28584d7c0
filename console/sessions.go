package console

import (
	"net/http"
	"slices"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

func (c *Console) sessionPages() {
	c.page("GET /sessions", (*visit).sessions)
	c.page("POST /sessions/end", (*visit).endSessions)
}

// shownSession is a session as its page shows it. Its id is no token.
type shownSession struct {
	ID, Name, Role, Browser string
	Actor                   events.Actor
	Began, Seen             events.Time
	This                    bool
}

type sessionsData struct {
	Own, Others    []shownSession
	MayEndOthers   bool
	Person         bool // who signed in by the identity provider
	Absolute, Idle string
}

// sessions shows where whoever asks is signed in, and to operators everybody.
func (v *visit) sessions() error {
	all, err := v.Sessions.all(v.r.Context())
	if err != nil {
		return err
	}
	d := sessionsData{MayEndOthers: v.may(domain.RootKeys), Person: v.session.Person != nil,
		Absolute: plural(int(sessionTime.Hours()), "hour"), Idle: plural(int(idleTime.Hours()), "hour")}
	for _, s := range all {
		shown := shownSession{ID: strings.TrimPrefix(s.id, "session."), Name: s.Name, Role: s.Role, Browser: s.Browser, Actor: s.Actor,
			Began: events.At(s.Began), Seen: events.At(s.Seen), This: s.id == v.session.id}
		switch {
		case s.Actor == v.me.Actor:
			d.Own = append(d.Own, shown)
		case d.MayEndOthers:
			d.Others = append(d.Others, shown)
		}
	}
	return v.show("sessions", "Sessions", d)
}

// endSessions ends one session, or all own ones, or all of others.
func (v *visit) endSessions() error {
	all, err := v.Sessions.all(v.r.Context())
	if err != nil {
		return err
	}
	id, which := "session."+v.form("id"), v.form("all")
	mayOthers := v.may(domain.RootKeys)
	chosen := slices.DeleteFunc(all, func(s *session) bool {
		own := s.Actor == v.me.Actor
		if !own && !mayOthers {
			return true
		}
		switch which {
		case "own":
			return !own
		case "others":
			return own
		}
		return s.id != id
	})
	if len(chosen) == 0 && which == "" {
		return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "There is no such session any more, or it is not yours to end."}
	}
	this := false
	for _, s := range chosen {
		if err := v.Sessions.forget(v.r.Context(), s.id); err != nil {
			return err
		}
		this = this || s.id == v.session.id
		v.Log.InfoContext(v.r.Context(), "a session was ended", "of", s.Actor.ID, "by", v.me.Actor.ID)
	}
	if this {
		endSession(v.w, v.r)
		v.w.Header().Set("Clear-Site-Data", `"cache", "storage"`)
		http.Redirect(v.w, v.r, "/signin?done=signed-out", http.StatusSeeOther)
		return nil
	}
	return v.redirect("/sessions", "sessions-ended")
}

// browser is what a User-Agent says in two words. What else it says is not kept: it
// tells people apart.
func browser(agent string) string {
	find := func(otherwise string, pairs ...string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.Contains(agent, pairs[i]) {
				return pairs[i+1]
			}
		}
		return otherwise
	}
	// Each of them also says the names of those before it in history.
	name := find("A browser", "Edg/", "Edge", "OPR/", "Opera", "Firefox/", "Firefox", "FxiOS/", "Firefox", "CriOS/", "Chrome",
		"Chrome/", "Chrome", "Safari/", "Safari", "curl/", "curl")
	system := find("", "Android", "Android", "iPhone", "iPhone", "iPad", "iPad", "Windows", "Windows", "Mac OS X", "macOS", "CrOS", "ChromeOS", "Linux", "Linux")
	if system == "" {
		return name
	}
	return name + " on " + system
}
