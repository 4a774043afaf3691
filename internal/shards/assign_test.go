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

// names draws distinct member names that look like instance names.
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

// TestAssignGivesEvenShares: every shard has a member, no member has more than one
// shard more than another, and the order of the members makes no difference.
func TestAssignGivesEvenShares(t *testing.T) {
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
			t.Errorf("names that are not members have shards: %v", share)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		again := slices.Clone(members)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		if diff := cmp.Diff(got, shards.Assign(append(again, again[0]), n)); diff != "" {
			t.Errorf("Assign depends on the order of members:\n%s", diff)
		}
	})
}

// moved counts the shards that must move because a member joins or leaves, and those
// that move needlessly between two members that stay.
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

// TestAssignMovesFewOtherShards removes a member. Its own shards must move, and at most
// half of the others may. Adding a member is the same in reverse.
func TestAssignMovesFewOtherShards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := names(2).Draw(t, "members")
		n := rapid.IntRange(1, 64).Draw(t, "shards")
		own, others := moved(shards.Assign(members, n), shards.Assign(members[1:], n), members[0])
		if others > n/2+1 {
			t.Errorf("of %d shards, %d moved between the %d members that stayed, and %d from the one that left", n, others, len(members)-1, own)
		}
	})
}

// TestAssignMovesFewOtherShardsOnAverage bounds the average number of shards that move
// needlessly by a fifth of all shards.
func TestAssignMovesFewOtherShardsOnAverage(t *testing.T) {
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
		t.Logf("%d members: when one leaves, %.1f of its own shards move and %.1f of others, at most %d",
			n, float64(own)/rounds, float64(others)/rounds, worst)
		if others > rounds*shards.DefaultShards/5 {
			t.Errorf("%d members: %.1f shards of others move on average, want at most %d", n, float64(others)/rounds, shards.DefaultShards/5)
		}
	}
}
