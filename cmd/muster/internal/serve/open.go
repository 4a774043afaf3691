package serve

import (
	"errors"
	"fmt"
	"net"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
)

// refuseOpen refuses addresses at which a daemon without TLS would be reached from
// other machines, unless the settings say that this is meant. Secured says that the
// daemon comes by its certificate in another way than the settings that all have.
func refuseOpen(s *daemon.Settings, secured bool, addresses ...address) error {
	if secured || s.Join.Wanted() || s.TLS.CertFile != "" || s.InsecureListen {
		return nil
	}
	var faults []error
	for _, a := range addresses {
		if a.value == "" {
			// Nothing is served there; but the one for other daemons is always, and no
			// address is every one.
			if a.flag == "listen" {
				faults = append(faults, errors.New("--listen: no address is all addresses of this machine, and without TLS everyone who can connect there is an administrator"))
			}
			continue
		}
		host, _, err := net.SplitHostPort(a.value)
		if err != nil {
			faults = append(faults, fmt.Errorf("--%s: %q is not host:port", a.flag, a.value))
			continue
		}
		if !loopback(host) {
			faults = append(faults, fmt.Errorf("--%s: %q is not a loopback address, and without TLS everyone who can connect there is an administrator", a.flag, a.value))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &cli.UsageError{Err: errors.Join(append(faults, errOpen)...)}
}

var errOpen = errors.New("give --join and --join-token-file (apid: --cluster-key-file), or --tls-cert-file, --tls-key-file and --tls-ca-file; " +
	"or --insecure-listen, if every machine that can reach it may do everything")
