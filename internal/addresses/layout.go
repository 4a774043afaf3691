package addresses

import (
	"fmt"
	"net/netip"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
)

// Sizes of the parts of a network's subnets.
const (
	// mostVirtual bounds how many virtual addresses a network has.
	mostVirtual = 4096
	// mostInBlock is how many addresses a block has, in subnets that are large enough.
	mostInBlock = 64
	// blocksOfSmall is how many blocks a subnet that is not so large is cut into, if
	// it has as many addresses.
	blocksOfSmall = 8
)

// Layout says how a network's subnets are divided.
type Layout struct {
	Subnets
	// Virtual is the part that virtual addresses are from.
	Virtual Range
	// BlockSize is how many addresses of each subnet a block has, and Blocks how many
	// blocks there are.
	BlockSize, Blocks uint32

	// whole is the part of the subnets that addresses are given from.
	whole Range
}

// Subnet is one subnet of a network.
type Subnet struct {
	Prefix netip.Prefix
	// Range is the part of it from which addresses are given. Not valid: all of it.
	Range netip.Prefix
}

// Divide divides subnets, at most one for each family. It fails if they have too few
// addresses for one virtual address, one of a node and one of a task.
func Divide(subnets []Subnet, reserved []netip.Addr) (*Layout, error) {
	l := &Layout{Subnets: Subnets{reserved: map[netip.Addr]struct{}{}}}
	if len(subnets) == 0 {
		return nil, fmt.Errorf("a network needs a subnet")
	}
	size := maxBits
	for _, s := range subnets {
		given := s.Range
		if !given.IsValid() {
			given = s.Prefix
		}
		given = given.Masked()
		if !s.Prefix.Contains(given.Addr()) || given.Bits() < s.Prefix.Bits() {
			return nil, fmt.Errorf("range %s is not in subnet %s", given, s.Prefix)
		}
		size = min(size, hostBits(given))
		l.prefixes = append(l.prefixes, s.Prefix.Masked())
		l.whole.prefixes = append(l.whole.prefixes, given)
	}
	if err := sortFamilies(l.prefixes); err != nil {
		return nil, err
	}
	if err := sortFamilies(l.whole.prefixes); err != nil {
		return nil, err
	}
	for i, p := range l.whole.prefixes {
		l.whole.prefixes[i] = netip.PrefixFrom(p.Addr(), p.Addr().BitLen()-size)
	}
	for _, a := range reserved {
		l.reserved[a.Unmap()] = struct{}{}
	}
	if !l.divide() {
		return nil, fmt.Errorf("subnet %s is too small: want at least 8 addresses that are not reserved", subnets[0].Prefix)
	}
	return l, nil
}

// divide chooses the sizes of the parts.
func (l *Layout) divide() bool {
	size := l.whole.Size()
	virtual := max(min(size/4, mostVirtual), 1)
	for ; virtual < size; virtual *= 2 {
		l.Virtual = l.whole.part(0, virtual)
		if l.count(l.Virtual, 1) > 0 {
			break
		}
	}
	if virtual >= size {
		return false
	}
	l.BlockSize = min(mostInBlock, virtual)
	for l.BlockSize > 1 && (size-virtual)/l.BlockSize < blocksOfSmall {
		l.BlockSize /= 2
	}
	l.Blocks = (size - virtual) / l.BlockSize
	usable := uint32(0)
	for k := uint32(0); k < l.Blocks && usable < 2; k++ {
		usable += l.count(l.Block(k), 2)
	}
	return usable >= 2
}

// ReadLayout returns the layout that a record says. It fails for a network without
// subnets.
func ReadLayout(s *recordv1.NetworkState) (*Layout, error) {
	subnets, err := ParseSubnets(s.GetSubnets(), s.GetReserved())
	if err != nil {
		return nil, err
	}
	virtual, err := ParseRange(s.GetVirtual())
	if err != nil {
		return nil, err
	}
	l := &Layout{Subnets: subnets, Virtual: virtual, BlockSize: s.GetBlockSize(), Blocks: s.GetTotalBlocks()}
	switch {
	case len(subnets.prefixes) == 0 || len(virtual.prefixes) != len(subnets.prefixes):
		return nil, fmt.Errorf("%d virtual parts of %d subnets", len(virtual.prefixes), len(subnets.prefixes))
	case l.BlockSize == 0 || l.BlockSize&(l.BlockSize-1) != 0 || l.BlockSize > virtual.Size():
		return nil, fmt.Errorf("block size %d with %d virtual addresses: want a power of two that is not greater", l.BlockSize, virtual.Size())
	case uint64(l.Blocks)*uint64(l.BlockSize)+uint64(virtual.Size()) > 1<<maxBits:
		return nil, fmt.Errorf("%d blocks of %d addresses are more than %d", l.Blocks, l.BlockSize, 1<<maxBits)
	}
	l.whole.prefixes = slices.Clone(virtual.prefixes)
	return l, nil
}

// State writes the layout into a record.
func (l *Layout) State() *recordv1.NetworkState {
	s := &recordv1.NetworkState{
		Subnets: Range{l.prefixes}.Strings(), Virtual: l.Virtual.Strings(), BlockSize: l.BlockSize, TotalBlocks: l.Blocks,
	}
	for a := range l.reserved {
		s.Reserved = append(s.Reserved, a.String())
	}
	slices.Sort(s.Reserved)
	return s
}

// Block returns the block with a number, which must be less than Blocks.
func (l *Layout) Block(number uint32) Range {
	return l.whole.part(l.Virtual.Size()+number*l.BlockSize, l.BlockSize)
}

// Capacity returns how many addresses of a block may be given.
func (l *Layout) Capacity(number uint32) uint32 { return l.count(l.Block(number), l.BlockSize) }

// TotalCapacity returns how many addresses of all blocks may be given.
func (l *Layout) TotalCapacity() uint32 {
	total := l.Blocks * l.BlockSize
	for _, number := range l.short() {
		total -= l.BlockSize - l.Capacity(number)
	}
	return total
}

// UsableBlocks returns how many blocks have an address that may be given.
func (l *Layout) UsableBlocks() uint32 {
	usable := l.Blocks
	for _, number := range l.short() {
		if l.Capacity(number) == 0 {
			usable--
		}
	}
	return usable
}

// LeastCapacity returns how many addresses any block has at least that has some.
func (l *Layout) LeastCapacity() uint32 {
	least := l.BlockSize
	for _, number := range l.short() {
		if c := l.Capacity(number); c > 0 {
			least = min(least, c)
		}
	}
	return least
}

// short returns the blocks that hold an address that is never given.
func (l *Layout) short() []uint32 {
	var numbers []uint32
	note := func(a netip.Addr) {
		for i, p := range l.whole.prefixes {
			if a.Is4() != p.Addr().Is4() || a.Less(p.Addr()) || !l.prefixes[i].Contains(a) {
				continue
			}
			offset := distance(p.Addr(), a)
			if first := l.Virtual.Size(); offset >= first && (offset-first)/l.BlockSize < l.Blocks {
				numbers = append(numbers, (offset-first)/l.BlockSize)
			}
		}
	}
	for a := range l.reserved {
		note(a)
	}
	for _, p := range l.prefixes {
		if p.Addr().Is4() {
			note(add(p.Addr(), uint32(1)<<hostBits(p)-1))
		}
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}

// count returns how many addresses of a range may be given, at most so many.
func (l *Layout) count(r Range, most uint32) uint32 {
	n := uint32(0)
	for range l.Usable(r) {
		if n++; n >= most {
			break
		}
	}
	return n
}
