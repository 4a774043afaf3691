package addresses_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/addresses"
)

func divide(t *testing.T, subnet string) *addresses.Layout {
	t.Helper()
	l, err := addresses.Divide([]addresses.Subnet{{Prefix: netip.MustParsePrefix(subnet)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSubnetsAreDividedBySize(t *testing.T) {
	for _, c := range []struct {
		subnet, virtual, first string
		size, blocks           uint32
	}{
		{"10.64.0.0/16", "10.64.0.0/20", "10.64.16.0/26", 64, 960},
		{"10.0.0.0/8", "10.0.0.0/20", "10.0.16.0/26", 64, 262080},
		{"10.1.0.0/22", "10.1.0.0/24", "10.1.1.0/26", 64, 12},
		{"10.1.0.0/23", "10.1.0.0/25", "10.1.0.128/27", 32, 12},
		{"10.1.0.0/24", "10.1.0.0/26", "10.1.0.64/28", 16, 12},
		{"10.1.0.0/28", "10.1.0.0/30", "10.1.0.4/32", 1, 12},
		{"10.1.0.0/29", "10.1.0.0/31", "10.1.0.2/32", 1, 6},
		{"fd00::/64", "fd00::/116", "fd00::1000/122", 64, 262080},
	} {
		l := divide(t, c.subnet)
		if got := strings.Join(l.Virtual.Strings(), " "); got != c.virtual {
			t.Errorf("%s: virtual %s, want %s", c.subnet, got, c.virtual)
		}
		if got := strings.Join(l.Block(0).Strings(), " "); got != c.first || l.BlockSize != c.size || l.Blocks != c.blocks {
			t.Errorf("%s: %d blocks of %d from %s, want %d of %d from %s", c.subnet, l.Blocks, l.BlockSize, got, c.blocks, c.size, c.first)
		}
	}
}

func TestDivideRefusesSubnetsWithoutRoom(t *testing.T) {
	for _, subnet := range []string{"10.0.0.0/30", "10.0.0.0/31", "10.0.0.1/32", "fd00::/128"} {
		if l, err := addresses.Divide([]addresses.Subnet{{Prefix: netip.MustParsePrefix(subnet)}}, nil); err == nil {
			t.Errorf("%s is divided into %v and %d blocks", subnet, l.Virtual, l.Blocks)
		}
	}
	if _, err := addresses.Divide([]addresses.Subnet{{
		Prefix: netip.MustParsePrefix("10.0.0.0/16"), Range: netip.MustParsePrefix("10.1.0.0/24"),
	}}, nil); err == nil {
		t.Error("a range outside the subnet is accepted")
	}
	if _, err := addresses.Divide([]addresses.Subnet{
		{Prefix: netip.MustParsePrefix("10.0.0.0/16")}, {Prefix: netip.MustParsePrefix("10.1.0.0/16")},
	}, nil); err == nil {
		t.Error("two IPv4 subnets are accepted")
	}
}

func TestBothFamiliesAreDividedAlike(t *testing.T) {
	l, err := addresses.Divide([]addresses.Subnet{
		{Prefix: netip.MustParsePrefix("fd00:1::/64")}, {Prefix: netip.MustParsePrefix("10.1.0.0/24")},
	}, []netip.Addr{netip.MustParseAddr("10.1.0.66"), netip.MustParseAddr("fd00:1::43")})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.Block(0).Strings(), " "); got != "10.1.0.64/28 fd00:1::40/124" {
		t.Errorf("block 0 is %s", got)
	}
	var got []string
	for offset, addrs := range l.Usable(l.Block(0)) {
		if o, ok := l.Block(0).Offset(addrs[1]); !ok || o != offset {
			t.Errorf("offset of %s is %d, want %d", addrs[1], o, offset)
		}
		if len(got) < 3 {
			got = append(got, addrs[0].String()+" "+addrs[1].String())
		}
	}
	want := []string{"10.1.0.64 fd00:1::40", "10.1.0.65 fd00:1::41", "10.1.0.68 fd00:1::44"}
	if !slices.Equal(got, want) {
		t.Errorf("usable addresses begin with %q, want %q", got, want)
	}
}

// subnets draws the subnets of a network.
func subnets(t *rapid.T) ([]addresses.Subnet, []netip.Addr) {
	var subnets []addresses.Subnet
	if rapid.Bool().Draw(t, "ipv4") {
		bits := rapid.IntRange(8, 30).Draw(t, "ipv4 bits")
		s := addresses.Subnet{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.1.2.0"), bits).Masked()}
		if rapid.Bool().Draw(t, "range") {
			a := s.Prefix.Addr().As4()
			a[3] += 8
			if given := netip.PrefixFrom(netip.AddrFrom4(a), max(bits, 29)); s.Prefix.Contains(given.Addr()) {
				s.Range = given
			}
		}
		subnets = append(subnets, s)
	}
	if len(subnets) == 0 || rapid.Bool().Draw(t, "ipv6") {
		bits := rapid.IntRange(48, 126).Draw(t, "ipv6 bits")
		subnets = append(subnets, addresses.Subnet{Prefix: netip.PrefixFrom(netip.MustParseAddr("fd00:0:0:1::"), bits).Masked()})
	}
	var reserved []netip.Addr
	for _, b := range rapid.SliceOfN(rapid.Byte(), 0, 4).Draw(t, "reserved") {
		a := subnets[0].Prefix.Addr().AsSlice()
		a[len(a)-1] |= b
		r, _ := netip.AddrFromSlice(a)
		reserved = append(reserved, r)
	}
	return subnets, reserved
}

func TestPartsOfALayoutAreDisjointAndItsRecordSaysItAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subnets, reserved := subnets(t)
		l, err := addresses.Divide(subnets, reserved)
		if err != nil {
			return
		}
		read, err := addresses.ReadLayout(l.State())
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(read.State(), l.State()) {
			t.Fatalf("record %v is read as %v", l.State(), read.State())
		}
		holder := map[netip.Addr]int{}
		give := func(r addresses.Range, number int) (n uint32) {
			for offset, addrs := range l.Usable(r) {
				n++
				for _, a := range addrs {
					if o, ok := r.Offset(a); !ok || o != offset || !slices.Equal(r.At(o), addrs) {
						t.Fatalf("%s has offset %d of %v, want %d", a, o, r, offset)
					}
					if other, taken := holder[a]; taken {
						t.Fatalf("parts %d and %d have %s", other, number, a)
					}
					holder[a] = number
					if slices.Contains(reserved, a) || !slices.ContainsFunc(subnets, func(s addresses.Subnet) bool {
						return s.Prefix.Contains(a) && (!s.Range.IsValid() || s.Range.Contains(a))
					}) {
						t.Fatalf("%s is given", a)
					}
				}
			}
			return n
		}
		if give(l.Virtual, -1) == 0 {
			t.Fatal("no virtual address")
		}
		if l.Blocks < 1<<10 {
			total, least, usable := uint32(0), l.BlockSize, uint32(0)
			for k := range l.Blocks {
				if !slices.Equal(read.Block(k).Strings(), l.Block(k).Strings()) {
					t.Fatalf("block %d is read as %v, want %v", k, read.Block(k), l.Block(k))
				}
				n := give(l.Block(k), int(k))
				if n != l.Capacity(k) {
					t.Fatalf("block %d has %d addresses, its capacity is %d", k, n, l.Capacity(k))
				}
				if total += n; n > 0 {
					least = min(least, n)
					usable++
				}
			}
			if usable != l.UsableBlocks() || total != l.TotalCapacity() || least != l.LeastCapacity() || total < 2 {
				t.Fatalf("%d addresses, at least %d in a block; the layout reports %d and %d", total, least, l.TotalCapacity(), l.LeastCapacity())
			}
		}
	})
}

func TestBlocksArePairedInOrder(t *testing.T) {
	l, err := addresses.Divide([]addresses.Subnet{
		{Prefix: netip.MustParsePrefix("10.1.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00:1::/64")},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := addresses.ParseSubnets(l.State().Subnets, nil)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := s.ParseBlocks(append(l.Block(5).Strings(), l.Block(2).Strings()...))
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 2 || !slices.Equal(blocks[0].Strings(), l.Block(5).Strings()) || !slices.Equal(blocks[1].Strings(), l.Block(2).Strings()) {
		t.Errorf("blocks %v", blocks)
	}
	for _, bad := range [][]string{{"10.1.0.64/28"}, {"10.1.0.64/28", "10.1.0.80/28"}, {"10.1.0.64/28", "fd00:1::/64"}, {"x", "y"}} {
		if blocks, err := s.ParseBlocks(bad); err == nil {
			t.Errorf("%q is read as %v", bad, blocks)
		}
	}
}

func FuzzReadLayout(f *testing.F) {
	f.Add("10.64.0.0/16", "10.64.0.0/20", "fd00::/64", "fd00::/116", "10.64.0.1", uint32(64), uint32(960))
	f.Add("10.1.0.0/29", "10.1.0.0/31", "", "", "", uint32(1), uint32(6))
	f.Fuzz(func(t *testing.T, subnet, virtual, subnet6, virtual6, reserved string, size, blocks uint32) {
		state := &recordv1.NetworkState{Subnets: []string{subnet}, Virtual: []string{virtual}, BlockSize: size, TotalBlocks: blocks}
		if subnet6 != "" {
			state.Subnets, state.Virtual = append(state.Subnets, subnet6), append(state.Virtual, virtual6)
		}
		if reserved != "" {
			state.Reserved = []string{reserved}
		}
		l, err := addresses.ReadLayout(state)
		if err != nil || l.Blocks == 0 {
			return
		}
		l.LeastCapacity()
		last := l.Block(l.Blocks - 1)
		if l.Capacity(l.Blocks-1) > last.Size() {
			t.Errorf("block %v has more addresses than its size", last)
		}
		s, err := addresses.ParseSubnets(state.Subnets, state.Reserved)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.ParseBlocks(last.Strings()); err != nil {
			t.Errorf("block %v: %v", last, err)
		}
	})
}
