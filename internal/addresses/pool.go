package addresses

import (
	"math"
	"math/big"
	"net/netip"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

// Pool is a range of addresses that is cut into subnets for networks.
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

// Size returns how many subnets the pool has.
func (p Pool) Size() float64 { return math.Exp2(float64(p.Bits - p.Base.Bits())) }

// Taken returns how many subnets of the pool overlap others.
func (p Pool) Taken(others []netip.Prefix) float64 {
	// Each of these is a subnet of the pool, or contains some.
	var taken []netip.Prefix
	for _, o := range others {
		if o.Overlaps(p.Base) {
			taken = append(taken, netip.PrefixFrom(o.Addr(), min(o.Bits(), p.Bits)).Masked())
		}
	}
	slices.SortFunc(taken, netip.Prefix.Compare)
	sum := 0.0
	var last netip.Prefix
	for _, t := range taken {
		if last.IsValid() && last.Bits() <= t.Bits() && last.Contains(t.Addr()) {
			continue
		}
		last = t
		sum += math.Exp2(float64(p.Bits - max(t.Bits(), p.Base.Bits())))
	}
	return sum
}

// Free returns the pool's first subnet that overlaps none of the used ones, which are
// sorted by address.
func (p Pool) Free(used []netip.Prefix) (netip.Prefix, bool) {
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
