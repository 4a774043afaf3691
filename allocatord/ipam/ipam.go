// Package ipam chooses subnets and network identifiers for networks, and address blocks
// for nodes. It is pure: a decision follows from what is held already, which the store's
// records say, so every replica decides alike after a restart.
package ipam

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
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

// Pool is a range of addresses that is cut into subnets.
type Pool struct {
	Base netip.Prefix
	// Bits is the prefix length of the subnets.
	Bits int
}

// Pools returns the pools of a cluster. Pools that cannot be read are skipped; apid refuses
// them.
func Pools(c *musterv1.ClusterSpec) []Pool {
	var pools []Pool
	for _, p := range defaults.AddressPools(c) {
		base, err := netip.ParsePrefix(p.GetBase())
		if err == nil && int(p.GetSize()) >= base.Bits() && int(p.GetSize()) <= base.Addr().BitLen() {
			pools = append(pools, Pool{Base: base.Masked(), Bits: int(p.GetSize())})
		}
	}
	return pools
}

// Subnet returns the first subnet of the pools of a family that overlaps no used one.
func Subnet(pools []Pool, ipv4 bool, used []netip.Prefix) (netip.Prefix, error) {
	sorted := slices.Clone(used)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	tried := 0
	for _, p := range pools {
		if p.Base.Addr().Is4() != ipv4 {
			continue
		}
		tried++
		if free, ok := p.free(sorted); ok {
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

// free returns the pool's first subnet that overlaps none of the used ones, which are
// sorted by address.
func (p Pool) free(used []netip.Prefix) (netip.Prefix, bool) {
	candidate := netip.PrefixFrom(p.Base.Addr(), p.Bits)
	for _, u := range used {
		for candidate.IsValid() && candidate.Overlaps(u) {
			candidate = after(candidate, u)
		}
		if !candidate.IsValid() || !p.Base.Contains(candidate.Addr()) {
			return netip.Prefix{}, false
		}
	}
	return candidate, p.Base.Contains(candidate.Addr())
}

// after returns the next subnet of the candidate's size behind both prefixes; one that is
// not valid at the end of all addresses.
func after(candidate, used netip.Prefix) netip.Prefix {
	larger := candidate
	if used.Bits() < candidate.Bits() {
		larger = used
	}
	bits := candidate.Addr().BitLen()
	next := new(big.Int).SetBytes(larger.Masked().Addr().AsSlice())
	next.Add(next, new(big.Int).Lsh(big.NewInt(1), uint(bits-larger.Bits())))
	if next.BitLen() > bits {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(next.FillBytes(make([]byte, bits/8)))
	return netip.PrefixFrom(a, candidate.Bits())
}
