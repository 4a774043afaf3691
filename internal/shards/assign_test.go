package shards_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/shards"
)

func TestAssign(t *testing.T) {
	tests := map[string]struct {
		members []string
		shards  int
		want    []string
	}{
		"no members":  {nil, 3, []string{"", "", ""}},
		"no shards":   {[]string{"a"}, 0, []string{}},
		"alone":       {[]string{"a"}, 3, []string{"a", "a", "a"}},
		"named twice": {[]string{"a", "a"}, 2, []string{"a", "a"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, shards.Assign(test.members, test.shards)); diff != "" {
				t.Errorf("Assign (-want +got):\n%s", diff)
			}
		})
	}
}

// names draws distinct names of members, like those of instances.
func names(least int) *rapid.Generator[[]string] {
	return rapid.SliceOfNDistinct(rapid.StringMatching("[A-Z2-7]{10}"), least, 20, rapid.ID[string])
}

func shares(assigned []string) map[string]int {
	n := map[string]int{}
	for _, m := range assigned {
		n[m]++
	}
	return n
}

// TestAssignIsFair checks that every shard has a member, that no member has
// over one more than another, and that all replicas come to the same result.
func TestAssignIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := names(1).Draw(t, "members")
		n := rapid.IntRange(1, 64).Draw(t, "shards")
		got := shards.Assign(members, n)
		share := shares(got)
		for _, m := range members {
			if least := n / len(members); share[m] < least || share[m] > least+1 {
				t.Errorf("%s has %d of %d shards among %d members", m, share[m], n, len(members))
			}
			delete(share, m)
		}
		if len(share) != 0 {
			t.Errorf("shards went to strangers: %v", share)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		again := slices.Clone(members)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		if diff := cmp.Diff(got, shards.Assign(append(again, again[0]), n)); diff != "" {
			t.Errorf("another order gives another result:\n%s", diff)
		}
	})
}

// moved counts the shards that have to move when a member comes or goes, and
// those that move needlessly: from one member that stays to another.
func moved(with, without []string, member string) (own, others int) {
	for s := range with {
		switch {
		case with[s] == member:
			own++
		case with[s] != without[s]:
			others++
		}
	}
	return own, others
}

// TestAssignMovesLittle lets a member go (or come, which is the same backwards):
// its own shards move, and few besides.
func TestAssignMovesLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := names(2).Draw(t, "members")
		n := rapid.IntRange(1, 64).Draw(t, "shards")
		own, others := moved(shards.Assign(members, n), shards.Assign(members[1:], n), members[0])
		if others > n/2+1 {
			t.Errorf("of %d shards, %d moved between the %d members that stayed, and %d from the one that left", n, others, len(members)-1, own)
		}
	})
}

// TestAssignMovesLittleOnAverage measures how many shards move beyond what
// must.
func TestAssignMovesLittleOnAverage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 3, 5, 8} {
		own, others, worst := 0, 0, 0
		const rounds = 400
		for range rounds {
			var members []string
			for range n {
				members = append(members, fmt.Sprintf("%x", random.Uint64()))
			}
			with, without := shards.Assign(members, shards.DefaultShards), shards.Assign(members[1:], shards.DefaultShards)
			o, x := moved(with, without, members[0])
			own, others, worst = own+o, others+x, max(worst, x)
		}
		t.Logf("%d members: one that leaves moves %.1f shards of its own and %.1f of others, at worst %d",
			n, float64(own)/rounds, float64(others)/rounds, worst)
		if others > rounds*shards.DefaultShards/5 {
			t.Errorf("%d members: %.1f shards of others move on average", n, float64(others)/rounds)
		}
	}
}
