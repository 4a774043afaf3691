// Package addresses is the arithmetic of a network's addresses.
//
// A network has at most one subnet for each of IPv4 and IPv6. They are divided alike:
// the address with number 70 of the IPv4 subnet and that of the IPv6 subnet belong to
// the same holder. The numbers are called offsets.
//
//	offset 0                 virtual.size                           size
//	| virtual addresses      | block 0 | block 1 | ...                 |
//
// The allocator divides the subnets ([Divide]) and leases blocks to nodes; a worker gives
// the addresses of its node's blocks to tasks ([Subnets.Usable]).
package addresses

import (
	"fmt"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// Range is a part of a network's subnets: a prefix of each family, IPv4 first, with as
// many addresses each. The zero Range is empty.
type Range struct {
	prefixes []netip.Prefix
}

// ParseRange reads a range from CIDR notation.
func ParseRange(cidrs []string) (Range, error) {
	prefixes, err := parsePrefixes(cidrs)
	if err != nil {
		return Range{}, err
	}
	r := Range{prefixes}
	for _, p := range prefixes {
		if hostBits(p) != r.bits() {
			return Range{}, fmt.Errorf("%s and %s have different sizes", prefixes[0], p)
		}
	}
	if len(prefixes) > 0 && r.bits() > maxBits {
		return Range{}, fmt.Errorf("%s has more than %d addresses", prefixes[0], 1<<maxBits)
	}
	return r, nil
}

// maxBits bounds the size of a range: it has at most as many addresses as an IPv4 /8. What
// an IPv6 subnet has beyond that is not used.
const maxBits = 24

// parsePrefixes reads at most one prefix for each family, and returns IPv4 first.
func parsePrefixes(cidrs []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(cidrs))
	for _, cidr := range cidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("invalid subnet %q: want CIDR notation such as 10.1.0.0/16", cidr)
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("invalid subnet %q: write it as an IPv4 subnet", cidr)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, sortFamilies(prefixes)
}

// sortFamilies sorts IPv4 before IPv6, and refuses two prefixes of one family.
func sortFamilies(prefixes []netip.Prefix) error {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	for i := 1; i < len(prefixes); i++ {
		if prefixes[i].Addr().Is4() == prefixes[i-1].Addr().Is4() {
			return fmt.Errorf("%s and %s are of one family: a network has at most one IPv4 and one IPv6 subnet", prefixes[i-1], prefixes[i])
		}
	}
	return nil
}

// Strings returns the range in CIDR notation.
func (r Range) Strings() []string {
	var cidrs []string
	for _, p := range r.prefixes {
		cidrs = append(cidrs, p.String())
	}
	return cidrs
}

// Size returns how many addresses of each family the range has, those that are never
// given included.
func (r Range) Size() uint32 {
	if len(r.prefixes) == 0 {
		return 0
	}
	return 1 << r.bits()
}

func (r Range) bits() int {
	if len(r.prefixes) == 0 {
		return 0
	}
	return hostBits(r.prefixes[0])
}

// At returns the addresses with an offset, IPv4 first; none if the range is smaller.
func (r Range) At(offset uint32) []netip.Addr {
	if offset >= r.Size() {
		return nil
	}
	addrs := make([]netip.Addr, len(r.prefixes))
	for i, p := range r.prefixes {
		addrs[i] = add(p.Addr(), offset)
	}
	return addrs
}

// Offset returns the offset of an address; false if it is not in the range.
func (r Range) Offset(a netip.Addr) (uint32, bool) {
	for _, p := range r.prefixes {
		if p.Contains(a) {
			return distance(p.Addr(), a), true
		}
	}
	return 0, false
}

// part returns the addresses from an offset on, of which the size is a power of two that
// divides the offset.
func (r Range) part(offset, size uint32) Range {
	prefixes := make([]netip.Prefix, len(r.prefixes))
	for i, p := range r.prefixes {
		a := add(p.Addr(), offset)
		prefixes[i] = netip.PrefixFrom(a, a.BitLen()-bits.TrailingZeros32(size))
	}
	return Range{prefixes}
}

// Subnets are a network's subnets and the addresses in them that are never given: those
// that are reserved, the first (network address, subnet router), and of IPv4 the last
// (broadcast).
type Subnets struct {
	prefixes []netip.Prefix
	reserved map[netip.Addr]struct{}
}

// ParseSubnets reads subnets from CIDR notation, and reserved addresses.
func ParseSubnets(cidrs, reserved []string) (Subnets, error) {
	prefixes, err := parsePrefixes(cidrs)
	if err != nil {
		return Subnets{}, err
	}
	s := Subnets{prefixes: prefixes, reserved: make(map[netip.Addr]struct{}, len(reserved))}
	for _, text := range reserved {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return Subnets{}, fmt.Errorf("invalid reserved address %q: want an IP address", text)
		}
		s.reserved[a.Unmap()] = struct{}{}
	}
	return s, nil
}

// Given reports whether an address may be given to a holder.
func (s Subnets) Given(a netip.Addr) bool {
	if _, reserved := s.reserved[a]; reserved {
		return false
	}
	for _, p := range s.prefixes {
		if p.Contains(a) {
			return a != p.Addr() && (!a.Is4() || distance(p.Addr(), a) != uint32(1)<<hostBits(p)-1)
		}
	}
	return false
}

// Bits returns the prefix length of the subnet that an address is in; 0 if it is in none.
func (s Subnets) Bits(a netip.Addr) int {
	for _, p := range s.prefixes {
		if p.Contains(a) {
			return p.Bits()
		}
	}
	return 0
}

// Usable yields the offsets of a range whose addresses may be given, and the addresses,
// IPv4 first. An offset of which one address is reserved yields neither.
func (s Subnets) Usable(r Range) iter.Seq2[uint32, []netip.Addr] {
	return func(yield func(uint32, []netip.Addr) bool) {
		for offset := range r.Size() {
			addrs := r.At(offset)
			if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !s.Given(a) }) && !yield(offset, addrs) {
				return
			}
		}
	}
}

// ParseBlocks reads blocks of the subnets from CIDR notation: all of both families, in
// the order in which they were leased. It is what a worker gets.
func (s Subnets) ParseBlocks(cidrs []string) ([]Range, error) {
	families := len(s.prefixes)
	if families == 0 || len(cidrs)%families != 0 {
		return nil, fmt.Errorf("%d parts of blocks for %d subnets", len(cidrs), families)
	}
	byFamily := map[bool][]string{}
	for _, cidr := range cidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("invalid block %q: want CIDR notation", cidr)
		}
		byFamily[p.Addr().Is4()] = append(byFamily[p.Addr().Is4()], cidr)
	}
	blocks := make([]Range, len(cidrs)/families)
	for i := range blocks {
		var parts []string
		for _, p := range s.prefixes {
			of := byFamily[p.Addr().Is4()]
			if i >= len(of) {
				return nil, fmt.Errorf("block %d has no part of %s", i, p)
			}
			parts = append(parts, of[i])
		}
		r, err := ParseRange(parts)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		blocks[i] = r
	}
	return blocks, nil
}

// hostBits returns how many bits of an address a prefix leaves open.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// add returns the address that is so many behind another one.
func add(a netip.Addr, offset uint32) netip.Addr {
	b := a.AsSlice()
	for i, carry := len(b)-1, uint64(offset); i >= 0 && carry > 0; i-- {
		carry += uint64(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	sum, _ := netip.AddrFromSlice(b)
	return sum
}

// distance returns how many addresses b is behind a, as far as 32 bits say it.
func distance(a, b netip.Addr) uint32 {
	x, y := a.AsSlice(), b.AsSlice()
	last := func(s []byte) (n uint32) {
		for _, octet := range s[len(s)-4:] {
			n = n<<8 | uint32(octet)
		}
		return n
	}
	return last(y) - last(x)
}
