package networks

import (
	"net/netip"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// block is a part of a network's addresses that the node has: of IPv4, IPv6 or both.
// The same offset in both belongs to the same holder.
type block struct {
	prefixes []netip.Prefix
	// size is the number of addresses of each prefix.
	size int
}

// largestBlock limits the addresses of a block that are considered: allocators give
// far smaller ones.
const largestBlock = 1 << 16

// pool gives addresses of a node's blocks of one network.
type pool struct {
	blocks []block
	// excluded are addresses that are never given.
	excluded map[netip.Addr]bool
	// holders names the task that has an address; the node's own have "".
	holders map[netip.Addr]string
	// next is the place, counted over all blocks, at which the search for a free address
	// begins: an address that has just become free is given last.
	next int
	// full says that no address was free, and none has become free since.
	full bool
}

func newPool() *pool { return &pool{holders: map[netip.Addr]string{}} }

// set takes in what a network consists of now. Addresses that tasks have stay theirs.
func (p *pool) set(n *networkv1.Network) {
	var families [2][]netip.Prefix
	for _, text := range n.GetBlocks() {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			families[family(prefix.Addr())] = append(families[family(prefix.Addr())], prefix.Masked())
		}
	}
	p.blocks, p.full = nil, false
	for i := range max(len(families[0]), len(families[1])) {
		b := block{size: largestBlock}
		for _, prefixes := range families {
			if i < len(prefixes) {
				b.prefixes = append(b.prefixes, prefixes[i])
				if free := prefixes[i].Addr().BitLen() - prefixes[i].Bits(); free < 16 {
					b.size = min(b.size, 1<<free)
				}
			}
		}
		p.blocks = append(p.blocks, b)
	}
	p.excluded = map[netip.Addr]bool{}
	for _, text := range n.GetReservedAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			p.excluded[a] = true
		}
	}
	for _, text := range n.GetSubnets() {
		if subnet, err := netip.ParsePrefix(text); err == nil {
			p.excludeEnds(subnet.Masked())
		}
	}
}

// excludeEnds excludes the address of a subnet itself and, in IPv4, its broadcast
// address. The smallest subnets have neither.
func (p *pool) excludeEnds(subnet netip.Prefix) {
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return
	}
	p.excluded[subnet.Addr()] = true
	if subnet.Addr().Is4() {
		bytes := subnet.Addr().As4()
		for i := subnet.Bits(); i < 32; i++ {
			bytes[i/8] |= 1 << (7 - i%8)
		}
		p.excluded[netip.AddrFrom4(bytes)] = true
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// total returns the number of places in all blocks.
func (p *pool) total() int {
	total := 0
	for _, b := range p.blocks {
		total += b.size
	}
	return total
}

// at returns the addresses at a place, or nil if they are not to be given.
func (p *pool) at(place int) []netip.Addr {
	for _, b := range p.blocks {
		if place >= b.size {
			place -= b.size
			continue
		}
		addresses := make([]netip.Addr, len(b.prefixes))
		for i, prefix := range b.prefixes {
			a := plus(prefix.Addr(), place)
			if _, taken := p.holders[a]; taken || p.excluded[a] {
				return nil
			}
			addresses[i] = a
		}
		return addresses
	}
	return nil
}

// plus returns the address that lies n after another.
func plus(a netip.Addr, n int) netip.Addr {
	bytes := a.AsSlice()
	for i := len(bytes) - 1; i >= 0 && n > 0; i-- {
		n += int(bytes[i])
		bytes[i] = byte(n)
		n >>= 8
	}
	sum, _ := netip.AddrFromSlice(bytes)
	return sum
}

// give gives free addresses, one for each of IPv4 and IPv6 that the network has, to a
// holder. It returns nil if there are none.
func (p *pool) give(holder string) []netip.Addr {
	if p.full {
		return nil
	}
	total := p.total()
	for i := range total {
		place := (p.next + i) % total
		if addresses := p.at(place); addresses != nil {
			p.next = place + 1
			p.take(holder, addresses)
			return addresses
		}
	}
	p.full = true
	return nil
}

// first gives the node the first free addresses of its blocks.
func (p *pool) first() []netip.Addr {
	for place := range p.total() {
		if addresses := p.at(place); addresses != nil {
			p.take("", addresses)
			return addresses
		}
	}
	return nil
}

// take notes that a holder has addresses, unless another one does.
func (p *pool) take(holder string, addresses []netip.Addr) {
	for _, a := range addresses {
		if _, taken := p.holders[a]; !taken {
			p.holders[a] = holder
		}
	}
}

// free notes that a holder no longer has addresses.
func (p *pool) free(holder string, addresses []netip.Addr) {
	for _, a := range addresses {
		if p.holders[a] == holder {
			delete(p.holders, a)
			p.full = false
		}
	}
}

// within reports whether all addresses are in the blocks, for each of IPv4 and IPv6
// that these have.
func (p *pool) within(addresses []netip.Addr) bool {
	return slices.ContainsFunc(p.blocks, func(b block) bool {
		return len(addresses) == len(b.prefixes) && !slices.ContainsFunc(addresses, func(a netip.Addr) bool {
			return !slices.ContainsFunc(b.prefixes, func(prefix netip.Prefix) bool { return prefix.Contains(a) })
		})
	})
}

// parse returns the addresses of texts, without those that are none.
func parse(texts []string) []netip.Addr {
	addresses := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// format is the opposite of parse.
func format(addresses []netip.Addr) []string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.String()
	}
	return texts
}
