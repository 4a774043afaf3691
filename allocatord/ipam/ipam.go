// Package ipam chooses subnets and network identifiers for networks, and address blocks
// for nodes. It is pure: a decision follows from what is held already, which the store's
// records say, so every replica decides alike after a restart.
package ipam

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/musterhq/muster/internal/addresses"
)

// Identifiers of VXLAN networks that are given. Smaller ones are left to others, as
// SwarmKit does.
const (
	FirstVNI = 4096
	LastVNI  = 1<<24 - 1
)

// VNI returns a network identifier that is not used. The search begins at a number that
// follows from the network's id: the identifier of a network that was removed is not given
// to the next one, which late packets could reach.
func VNI(network string, used map[uint32]bool) (uint32, error) {
	const count = LastVNI - FirstVNI + 1
	h := fnv.New32a()
	_, _ = h.Write([]byte(network))
	first := h.Sum32() % count
	for i := range uint32(min(len(used)+1, count)) {
		if vni := FirstVNI + (first+i)%count; !used[vni] {
			return vni, nil
		}
	}
	return 0, errors.New("all VXLAN network identifiers are in use: remove networks that are no longer needed")
}

// Subnet returns the first subnet of the pools of a family that overlaps no used one.
func Subnet(pools []addresses.Pool, ipv4 bool, used []netip.Prefix) (netip.Prefix, error) {
	sorted := slices.Clone(used)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	tried := 0
	for _, p := range pools {
		if p.Base.Addr().Is4() != ipv4 {
			continue
		}
		tried++
		if free, ok := p.Free(sorted); ok {
			return free, nil
		}
	}
	family := "IPv6"
	if ipv4 {
		family = "IPv4"
	}
	if tried == 0 {
		return netip.Prefix{}, fmt.Errorf("the cluster has no address pool for %s: set one, or give the network a subnet", family)
	}
	return netip.Prefix{}, fmt.Errorf("the %s address pools of the cluster are exhausted: remove networks, add a pool, or give the network a subnet", family)
}
