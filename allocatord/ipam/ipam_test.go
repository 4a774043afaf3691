package ipam_test

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/allocatord/ipam"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
)

func TestSubnetsComeFromTheFirstFreePartOfThePools(t *testing.T) {
	pools := addresses.Pools(&musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{AddressPools: []*musterv1.AddressPool{
		{Base: "10.0.0.0/30", Size: 31}, {Base: "not readable", Size: 24}, {Base: "192.168.0.0/23", Size: 24},
	}}})
	var used []netip.Prefix
	for _, want := range []string{"10.0.0.0/31", "10.0.0.2/31", "192.168.0.0/24", "192.168.1.0/24", ""} {
		got, err := ipam.Subnet(pools, true, used)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Fatalf("got %v and error %v, want %q", got, err, want)
		}
		used = append(used, got)
	}
	if got, err := ipam.Subnet(pools, false, nil); err != nil || got.String() != "fd6d:7573:7465::/64" {
		t.Errorf("IPv6: got %v and error %v, want the first default subnet", got, err)
	}
	for ipv4, want := range map[bool]string{true: "10.64.0.0/16", false: "fd6d:7573:7465::/64"} {
		if got, err := ipam.Subnet(addresses.Pools(nil), ipv4, nil); err != nil || got.String() != want {
			t.Errorf("default pools: got %v and error %v, want %s", got, err, want)
		}
	}
	if _, err := ipam.Subnet([]addresses.Pool{{Base: netip.MustParsePrefix("255.255.0.0/16"), Bits: 16}}, true,
		[]netip.Prefix{netip.MustParsePrefix("255.255.255.0/24")}); err == nil {
		t.Error("a subnet at the end of all addresses is given twice")
	}
}

func TestASubnetOverlapsNoneInUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := addresses.Pool{Base: netip.MustParsePrefix("10.0.0.0/24"), Bits: rapid.IntRange(24, 30).Draw(t, "size")}
		var used []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "used") {
			a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")})
			used = append(used, netip.PrefixFrom(a, rapid.IntRange(22, 32).Draw(t, "bits")).Masked())
		}
		overlaps := func(p netip.Prefix) bool {
			for _, u := range used {
				if u.Overlaps(p) {
					return true
				}
			}
			return false
		}
		got, err := ipam.Subnet([]addresses.Pool{pool}, true, used)
		for i := range 1 << (pool.Bits - 24) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i << (32 - pool.Bits))}), pool.Bits)
			if overlaps(p) {
				continue
			}
			if err != nil || got != p {
				t.Fatalf("got %v and error %v, want %v, the first that is free of %v", got, err, p, used)
			}
			return
		}
		if err == nil {
			t.Fatalf("got %v, which overlaps one of %v", got, used)
		}
	})
}

func TestVNIsAreUniqueAndNotReusedAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		used := map[uint32]bool{}
		for i := range rapid.IntRange(1, 50).Draw(t, "networks") {
			id := fmt.Sprint("network", i%7) // the same number is asked for again
			vni, err := ipam.VNI(id, used)
			if err != nil || used[vni] || vni < ipam.FirstVNI || vni > ipam.LastVNI {
				t.Fatalf("got %d and error %v", vni, err)
			}
			used[vni] = true
		}
	})
	first, _ := ipam.VNI("a", nil)
	if second, _ := ipam.VNI("b", nil); second == first {
		t.Errorf("network b gets %d, which network a had before", second)
	}
}

func TestNumbersHaveOneHolderAndAreNotLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint32Range(0, 12).Draw(t, "limit")
		unusable := rapid.Uint32Range(0, 12).Draw(t, "unusable")
		usable := func(n uint32) bool { return n != unusable }
		n := ipam.NewNumbers(limit, 0, usable)
		held := map[uint32]string{}
		size := int(limit)
		if unusable < limit {
			size--
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				holder := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "holder")
				number, ok := n.Take(holder)
				if ok != (len(held) < size) {
					t.Fatalf("with %d of %d held, take returns %t", len(held), size, ok)
				}
				if ok {
					if _, taken := held[number]; taken || !usable(number) || number >= limit {
						t.Fatalf("%d is given, of which the holder is %q", number, held[number])
					}
					held[number] = holder
				}
			case 1:
				number := rapid.Uint32Range(0, 12).Draw(t, "number")
				n.Release(number)
				delete(held, number)
			case 2: // another replica takes over
				again := ipam.NewNumbers(limit, n.Next(), usable)
				for number, holder := range held {
					if !again.Restore(number, holder) || again.Restore(number, holder+"x") {
						t.Fatalf("%d of %q is not restored, or restored for another", number, holder)
					}
				}
				n = again
			}
			for number, holder := range held {
				if n.Holder(number) != holder {
					t.Fatalf("%d is held by %q, want %q", number, n.Holder(number), holder)
				}
			}
			if n.Held() != len(held) {
				t.Fatalf("%d are held, want %d", n.Held(), len(held))
			}
		}
	})
}

func TestANumberThatWasReleasedIsGivenAgainLast(t *testing.T) {
	n := ipam.NewNumbers(4, 0, func(uint32) bool { return true })
	for _, want := range []uint32{0, 1} {
		if got, ok := n.Take("a"); !ok || got != want {
			t.Fatalf("got %d and %t, want %d", got, ok, want)
		}
	}
	n.Release(0)
	n.Release(1)
	for _, want := range []uint32{2, 3, 0, 1} {
		if got, ok := n.Take("b"); !ok || got != want {
			t.Fatalf("got %d and %t, want %d", got, ok, want)
		}
	}
	if got, ok := n.Take("c"); ok {
		t.Errorf("got %d, want none", got)
	}
}
