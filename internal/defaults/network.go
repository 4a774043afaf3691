package defaults

import (
	"slices"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// NetworkDriver is the driver of a network whose spec names none.
	NetworkDriver = "overlay"
	// DataPathPort is the UDP port of a worker for the traffic of networks.
	DataPathPort = 4789

	drainDelay  = 2 * time.Second
	maxNetworks = 1000
)

// DrainDelay returns how long a task that has networks is left running after it was taken
// out of names and virtual addresses.
func DrainDelay(e *musterv1.EndpointSpec) time.Duration {
	if e.GetDrainDelay() == nil {
		return drainDelay
	}
	return e.GetDrainDelay().AsDuration()
}

// AddressPools returns where the subnets of networks come from that ask for none: the
// cluster's pools, and for a family of which it has none, the default. A nil spec is a
// cluster without one.
func AddressPools(s *musterv1.ClusterSpec) []*musterv1.AddressPool {
	pools := slices.Clone(s.GetNetwork().GetAddressPools())
	for _, pool := range []*musterv1.AddressPool{{Base: "10.64.0.0/10", Size: 16}, {Base: "fd6d:7573:7465::/48", Size: 64}} {
		if !slices.ContainsFunc(pools, func(p *musterv1.AddressPool) bool { return isIPv6(p) == isIPv6(pool) }) {
			pools = append(pools, pool)
		}
	}
	return pools
}

func isIPv6(p *musterv1.AddressPool) bool { return strings.Contains(p.GetBase(), ":") }

// ReservedPorts returns the ports that services cannot publish: by default those of ssh,
// of Muster's daemons and of Consul. A nil spec is a cluster without one.
func ReservedPorts(s *musterv1.ClusterSpec) []string {
	if r := s.GetNetwork().GetReservedPorts(); r != nil {
		return r.GetPorts()
	}
	return []string{
		"22/tcp",
		"7700-7705/tcp", "7780/tcp", "8700-8705/tcp",
		"8300-8302/tcp", "8301-8302/udp", "8500-8503/tcp", "8600",
	}
}

// MaxNetworks returns how many networks a cluster may have; nil is a cluster without a
// spec.
func MaxNetworks(s *musterv1.ClusterSpec) uint32 {
	if n := s.GetNetwork(); n != nil && n.MaxNetworks != nil {
		return n.GetMaxNetworks()
	}
	return maxNetworks
}
