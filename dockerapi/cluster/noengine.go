package cluster

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/musterhq/muster/dockerapi/server"
)

// one matches the paths at which a client asks for one object of an Engine. `docker
// inspect` tries the next kind only if it is told that there is no such object.
var one = regexp.MustCompile(`^(?:/v[\d.]+)?/(containers|images|plugins|volumes)/(.+?)(?:/json)?$`)

// WithoutEngine answers what only an Engine could.
func WithoutEngine(w http.ResponseWriter, r *http.Request) {
	if m := one.FindStringSubmatch(r.URL.Path); m != nil && r.Method == http.MethodGet && m[2] != "json" && m[2] != "get" {
		kind := strings.TrimSuffix(m[1], "s")
		server.WriteError(w, http.StatusNotFound, "No such "+kind+": "+m[2]+" ("+errNoEngine.Error()+")")
		return
	}
	if !engines.MatchString(r.URL.Path) {
		server.WriteError(w, http.StatusNotFound, "page not found")
		return
	}
	server.WriteError(w, http.StatusNotImplemented, errNoEngine.Error())
}

// engines matches the paths that an Engine has.
var engines = regexp.MustCompile(`^(?:/v[\d.]+)?/(containers|images|plugins|volumes|exec|build|commit|session|grpc|networks|system|auth|distribution|events)(/|$)`)
