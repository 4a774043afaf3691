package addresses_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/addresses"
)

// TestPoolsCountWhatTheyGive checks the number of taken subnets against all subnets of a
// pool, and that one is free exactly if not all are taken. So the API refuses a network
// exactly if the allocator would find no subnet for it.
func TestPoolsCountWhatTheyGive(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pool := addresses.Pool{Base: netip.MustParsePrefix("10.0.0.0/24"), Bits: rapid.IntRange(24, 30).Draw(t, "size")}
		var used []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "used") {
			a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")})
			used = append(used, netip.PrefixFrom(a, rapid.IntRange(22, 32).Draw(t, "bits")).Masked())
		}
		slices.SortFunc(used, netip.Prefix.Compare)
		want := 0
		for i := range 1 << (pool.Bits - 24) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i << (32 - pool.Bits))}), pool.Bits)
			if slices.ContainsFunc(used, p.Overlaps) {
				want++
			}
		}
		if got := pool.Taken(used); got != float64(want) {
			t.Errorf("%v subnets are taken by %v, want %d", got, used, want)
		}
		if free, ok := pool.Free(used); ok != (pool.Taken(used) < pool.Size()) || ok && slices.ContainsFunc(used, free.Overlaps) {
			t.Errorf("subnet %v is free (%t) beside %v, of which %v of %v are taken", free, ok, used, pool.Taken(used), pool.Size())
		}
	})
}
