package networks

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

func TestFirstAndLastAddressOfASubnetAreNotGiven(t *testing.T) {
	t.Parallel()
	p := newPool()
	p.set(&networkv1.Network{
		Subnets: []string{"10.0.0.0/29"}, Blocks: []string{"10.0.0.0/30", "10.0.0.4/30"}, ReservedAddresses: []string{"10.0.0.2"},
	})
	var given []string
	for {
		addresses := p.give("t")
		if addresses == nil {
			break
		}
		given = append(given, format(addresses)...)
	}
	if want := []string{"10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"}; !slices.Equal(given, want) {
		t.Errorf("given: %v, want %v", given, want)
	}
}

func TestBothFamiliesHaveTheSameOffset(t *testing.T) {
	t.Parallel()
	p := newPool()
	p.set(&networkv1.Network{
		Subnets: []string{"10.0.0.0/16", "fd00::/64"}, Blocks: []string{"10.0.4.0/31", "fd00::400/127", "10.0.8.0/31", "fd00::800/127"},
	})
	var given [][]string
	for addresses := p.give("t"); addresses != nil; addresses = p.give("t") {
		given = append(given, format(addresses))
	}
	want := [][]string{{"10.0.4.0", "fd00::400"}, {"10.0.4.1", "fd00::401"}, {"10.0.8.0", "fd00::800"}, {"10.0.8.1", "fd00::801"}}
	if !slices.EqualFunc(given, want, slices.Equal) {
		t.Errorf("given: %v, want %v", given, want)
	}
}

func TestFreedAddressIsGivenLast(t *testing.T) {
	t.Parallel()
	p := newPool()
	p.set(&networkv1.Network{Subnets: []string{"10.0.0.0/16"}, Blocks: []string{"10.0.4.0/30"}})
	first := p.give("a")
	p.free("a", first)
	for range 3 {
		if got := p.give("b"); slices.Equal(got, first) {
			t.Fatal("a freed address was given before others")
		}
	}
	if got := p.give("c"); !slices.Equal(got, first) {
		t.Errorf("given: %v, want %v", got, first)
	}
}

// However addresses are given and freed, no address has two holders, and all are within
// the blocks.
func TestNoAddressHasTwoHolders(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"10.0.4.0/30", "10.0.4.4/31", "10.0.4.6/32", "10.0.9.0/28"}), 1, 4, rapid.ID[string]).Draw(t, "blocks")
		p := newPool()
		p.set(&networkv1.Network{Subnets: []string{"10.0.0.0/16"}, Blocks: blocks})
		p.first()
		size := p.total() - 1
		held := map[netip.Addr]string{}
		t.Repeat(map[string]func(*rapid.T){
			"give": func(t *rapid.T) {
				id := rapid.StringMatching("[a-c]").Draw(t, "holder")
				addresses := p.give(id)
				if (addresses == nil) != (len(held) == size) {
					t.Fatalf("gave %v with %d of %d held", addresses, len(held), size)
				}
				for _, a := range addresses {
					if other, taken := held[a]; taken {
						t.Fatalf("%s is given to %s and %s", a, other, id)
					}
					if !p.within([]netip.Addr{a}) {
						t.Fatalf("%s is in none of %v", a, blocks)
					}
					held[a] = id
				}
			},
			"free": func(t *rapid.T) {
				for a, id := range held {
					p.free(id, []netip.Addr{a})
					delete(held, a)
					return
				}
				t.Skip("none is held")
			},
			"free what another holds": func(t *rapid.T) {
				for a := range held {
					p.free("other", []netip.Addr{a})
					return
				}
				t.Skip("none is held")
			},
		})
	})
}
