package serve

import (
	"net"
	"os"

	"github.com/musterhq/muster/internal/daemon"
)

// hostsOf are the host names that a daemon's HTTP servers answer to: those that its
// settings and its certificate name.
func hostsOf(s *daemon.Settings, creds daemon.Credentials, addresses ...string) daemon.Hosts {
	h := daemon.Hosts{Names: append(append([]string{}, s.AllowedHosts...), s.Join.Hosts...), Certified: creds.Certifies}
	for _, address := range append(addresses, s.Listen, s.Advertise, s.OpsListen) {
		if name, _, err := net.SplitHostPort(address); err == nil && name != "" {
			h.Names = append(h.Names, name)
		}
	}
	if name, err := os.Hostname(); err == nil {
		h.Names = append(h.Names, name)
	}
	return h
}

// thisMachine are the host names of a cluster that serves everyone on this machine.
func thisMachine(s *daemon.Settings) daemon.Hosts {
	return daemon.Hosts{Names: s.AllowedHosts, LoopbackOnly: true}
}

// loopback tells whether a host is this machine, and reached only from it.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
