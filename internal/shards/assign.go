package shards

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
)

// Assign shares shards out among members: result[s] is the member that should
// hold shard s, "" if there are no members. No member has over one shard more
// than another. It depends on the set of members alone, so replicas that see
// the same members agree; and because each shard prefers members in an order of
// its own (rendezvous hashing, Thaler and Ravishankar 1998), a member that
// comes or goes moves little more than its own share.
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
	// The most wanted pairs come first. Every member gets the smaller share; the
	// shards that remain go one each to members that want them most.
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

// score is how much a shard prefers a member.
func score(member string, shard int) uint64 {
	h := fnv.New64a()
	// A hash's Write never fails.
	_, _ = h.Write([]byte(member + "/" + strconv.Itoa(shard)))
	// FNV's low bits of similar strings are alike; mix them (the finalizer of
	// MurmurHash3).
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}
