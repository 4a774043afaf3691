package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

// maxHosts bounds how many hosts one certificate names.
const maxHosts = 64

// Bounds of RFC 1035 on a host name and on each of its labels.
const (
	maxHostName = 253
	maxLabel    = 63
)

// AllowedHosts are the host names and IP addresses that an administrator allows in the
// certificates of joining manager daemons, in addition to each daemon's own name.
type AllowedHosts map[authv1.Role][]string

// ParseAllowedHosts reads entries such as "schedulerd=metrics.example".
func ParseAllowedHosts(entries []string) (AllowedHosts, error) {
	allowed := AllowedHosts{}
	var errs []error
	for _, entry := range entries {
		daemon, host, ok := strings.Cut(entry, "=")
		role, known := auth.Managers()[daemon]
		if !ok || !known {
			errs = append(errs, fmt.Errorf("%q does not begin with a manager daemon's name: want DAEMON=HOST, such as schedulerd=metrics.example", entry))
			continue
		}
		if err := CheckHost(host); err != nil {
			errs = append(errs, err)
			continue
		}
		allowed[role] = append(allowed[role], canonicalHost(host))
	}
	return allowed, errors.Join(errs...)
}

// split divides hosts into those that a daemon of a role may have and the others.
func (a AllowedHosts) split(role authv1.Role, hosts []string) (granted, refused []string) {
	for _, h := range hosts {
		switch h = canonicalHost(h); {
		case h == OwnHost(role):
			// Every certificate of the role has it.
		case slices.Contains(a[role], h):
			granted = append(granted, h)
		default:
			refused = append(refused, h)
		}
	}
	return granted, refused
}

// CheckHost returns an error if a certificate cannot name a host. A host is an IP address
// or a DNS name. Names with a wildcard, a final dot, or characters in a label other than
// letters, digits, dashes and underscores are refused.
func CheckHost(host string) error {
	if ip := net.ParseIP(host); ip != nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("invalid host %q: it is not the address of one host", host)
		}
		return nil
	}
	if host == "" || len(host) > maxHostName {
		return fmt.Errorf("invalid host %q: want a DNS name of 1 to %d characters, or an IP address", host[:min(len(host), maxHostName)], maxHostName)
	}
	if strings.Contains(host, "*") {
		return fmt.Errorf("invalid host %q: wildcards are not allowed; give each name", host)
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInLabel) {
			return fmt.Errorf("invalid host %q: want a DNS name without a final dot, such as api.example, or an IP address", host)
		}
	}
	// Some programs would read such a name as an IPv4 address.
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return fmt.Errorf("invalid host %q: the last part of a DNS name must not be a number", host)
	}
	return nil
}

func notInLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// canonicalHost returns the same text for equal hosts.
func canonicalHost(host string) string {
	if ip := net.ParseIP(host); ip != nil {
		return ip.String()
	}
	return strings.ToLower(host)
}

// OwnHost returns the DNS name that every certificate of a role has: the name of the
// daemon. It follows from the identity, so no holder of a certificate can choose it.
// Without any DNS name, some programs compare the host with the subject's common name,
// which a worker chooses.
func OwnHost(role authv1.Role) string {
	switch {
	case role == authv1.Role_WORKER:
		return "workerd"
	case auth.IsManager(role):
		return auth.RoleName(role)
	default:
		return ""
	}
}

// hostsOf returns the hosts that a certificate is for.
func hostsOf(c *x509.Certificate) []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// without returns the hosts that are not in others.
func without(hosts, others []string) []string {
	return slices.DeleteFunc(slices.Clone(hosts), func(h string) bool {
		return slices.ContainsFunc(others, func(o string) bool { return canonicalHost(o) == canonicalHost(h) })
	})
}
