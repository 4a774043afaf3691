package shards

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
)

// Assign distributes shards over members: result[s] is the member that should hold
// shard s, or "" if there are no members. No member gets more than one shard more
// than another. The result depends only on the set of members, so replicas that see
// the same members agree. Each shard ranks the members differently (rendezvous
// hashing, Thaler and Ravishankar 1998), so a member that joins or leaves moves
// little more than its own share.
func Assign(members []string, shards int) []string {
	result := make([]string, shards)
	members = slices.Compact(slices.Sorted(slices.Values(members)))
	n := len(members)
	if n == 0 {
		return result
	}
	type choice struct {
		score  uint64
		shard  int
		member string
	}
	choices := make([]choice, 0, n*shards)
	for s := range shards {
		for _, m := range members {
			choices = append(choices, choice{score(m, s), s, m})
		}
	}
	slices.SortFunc(choices, func(a, b choice) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.shard, b.shard), cmp.Compare(a.member, b.member))
	})
	// Pairs with the highest score come first. Every member gets the smaller share.
	// The remaining shards go to the members with the highest scores, one each.
	share, extra := shards/n, shards%n
	held := make(map[string]int, n)
	for _, c := range choices {
		if result[c.shard] != "" {
			continue
		}
		switch held[c.member] {
		case share:
			if extra == 0 {
				continue
			}
			extra--
		case share + 1:
			continue
		}
		result[c.shard] = c.member
		held[c.member]++
	}
	return result
}

// score returns how strongly a shard prefers a member.
func score(member string, shard int) uint64 {
	h := fnv.New64a()
	// Write of a hash never fails.
	_, _ = h.Write([]byte(member + "/" + strconv.Itoa(shard)))
	// The low bits of FNV are similar for similar strings: mix them with the
	// finalizer of MurmurHash3.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}
