package daemon

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Hosts are the host names that the HTTP servers of a daemon answer to.
//
// A page in a browser can make the name of its own site resolve to any address, of this
// machine or of a closed network, and then send requests there as if to its own site (DNS
// rebinding). It cannot hide that name. An IP address is not such a name, so requests for
// one pass.
type Hosts struct {
	// Names are host names, besides localhost. They have no port. "*.example.com" is every
	// name that has one more part than example.com.
	Names []string
	// LoopbackOnly restricts IP addresses to loopback ones.
	LoopbackOnly bool
	// Certified, if not nil, reports whether the server's certificate names a host. A
	// browser checks that too.
	Certified func(name string) bool
}

// Check returns a handler that refuses requests for other hosts.
func (h Hosts) Check(next http.Handler) http.Handler {
	names := map[string]bool{"localhost": true}
	for _, name := range h.Names {
		names[canonicalHost(name)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		host = canonicalHost(host)
		// Only browsers are led astray, and they name a host. A load balancer that asks for
		// the health in HTTP/1.0 may not.
		silent := r.Host == "" && !r.ProtoAtLeast(1, 1)
		if !silent && !h.allowed(names, host) {
			http.Error(w, fmt.Sprintf("this daemon does not answer requests for host %q; --allowed-host adds a name", host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (h Hosts) allowed(names map[string]bool, host string) bool {
	if _, parent, ok := strings.Cut(host, "."); names[host] || ok && names["*."+parent] {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return !h.LoopbackOnly || ip.Unmap().IsLoopback()
	}
	return host != "" && h.Certified != nil && h.Certified(host)
}

// canonicalHost writes a name as others write it: a dot at its end and the case of its
// letters do not count.
func canonicalHost(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// CheckHost says what is wrong with a name for Hosts.
func CheckHost(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	if rest := strings.TrimPrefix(name, "*."); rest == "" || strings.ContainsAny(rest, ":/*@ \t\r\n") {
		return fmt.Errorf("%q is not a host name: want one without scheme and port, such as muster.example.com or *.example.com", name)
	}
	return nil
}
