package serve

import (
	"fmt"
	"net"
	"net/http"
	"strings"
)

// thisMachineOnly refuses requests that are not addressed to this machine by a
// name of its own. A page in a browser may have the name of its own site lead to
// a loopback address, and then send there what it likes, as if to its own site;
// what it cannot do is hide that name (DNS rebinding).
func thisMachineOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		if !loopback(host) {
			http.Error(w, fmt.Sprintf("muster dev answers requests for localhost, and this one is for %q", host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// loopback tells whether a host is this machine, and reached only from it.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
