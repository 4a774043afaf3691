package validate

import (
	"fmt"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

const (
	// MaxPorts is how many ports a service may publish.
	MaxPorts = 256
	// maxReservedPorts bounds the entries of the cluster's reserved ports.
	maxReservedPorts = 256
	// firstDynamic and lastDynamic are the ports that are chosen for services.
	firstDynamic, lastDynamic = 30000, 32767
)

// PortRange is ports of one protocol, or of all protocols if that is unspecified.
type PortRange struct {
	First, Last uint32
	Protocol    musterv1.PortConfig_Protocol
}

// ParsePortRange reads "22/tcp", "8300-8302/udp" or "53", which means all protocols.
func ParsePortRange(text string) (PortRange, error) {
	ports, protocol, named := strings.Cut(text, "/")
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	to, errLast := strconv.ParseUint(last, 10, 16)
	number, known := musterv1.PortConfig_Protocol_value[strings.ToUpper(protocol)]
	if err != nil || errLast != nil || from == 0 || to < from || named && (!known || number == 0) {
		return PortRange{}, fmt.Errorf("%q is not a port; want for example 22/tcp, 8300-8302/udp, or 53 for all protocols", short(text))
	}
	return PortRange{First: uint32(from), Last: uint32(to), Protocol: musterv1.PortConfig_Protocol(number)}, nil
}

// Contains reports whether a port is in the range.
func (r PortRange) Contains(p *musterv1.PortConfig) bool {
	return r.First <= p.GetPublishedPort() && p.GetPublishedPort() <= r.Last &&
		(r.Protocol == musterv1.PortConfig_PROTOCOL_UNSPECIFIED || r.Protocol == defaults.Protocol(p))
}

// checkReservedPorts checks the ports that services cannot publish.
func checkReservedPorts(r *Report, field string, ports []string) {
	if len(ports) > maxReservedPorts {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(ports), maxReservedPorts)
		return
	}
	for i, text := range ports {
		switch p, err := ParsePortRange(text); {
		case err != nil:
			r.Invalid(Indexed(field, i), "%v", err)
		case p.First <= lastDynamic && p.Last >= firstDynamic:
			r.Invalid(Indexed(field, i), "%s: ports from %d to %d cannot be reserved: they are given to services that name no port", text, firstDynamic, lastDynamic)
		}
	}
}
