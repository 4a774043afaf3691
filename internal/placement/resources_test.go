package placement_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/placement"
)

func TestReservationFitsWhatIsFree(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		reserved, free placement.Resources
		want           bool
	}{
		{placement.Resources{}, placement.Resources{}, true},
		{placement.Resources{NanoCPUs: 2, MemoryBytes: 3}, placement.Resources{NanoCPUs: 2, MemoryBytes: 3}, true},
		{placement.Resources{NanoCPUs: 3}, placement.Resources{NanoCPUs: 2, MemoryBytes: 3}, false},
		{placement.Resources{MemoryBytes: 4}, placement.Resources{NanoCPUs: 2, MemoryBytes: 3}, false},
		{placement.Resources{NanoCPUs: 1}, placement.Resources{NanoCPUs: 1, MemoryBytes: -5}, true},
		{placement.Resources{}, placement.Resources{NanoCPUs: -1, MemoryBytes: -5}, true},
	} {
		if got := tt.reserved.Fits(tt.free); got != tt.want {
			t.Errorf("%+v fits %+v: %t, want %t", tt.reserved, tt.free, got, tt.want)
		}
	}
}

func TestOvercommittedNodeHoldsMoreThanItHas(t *testing.T) {
	t.Parallel()
	n := machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) { r.Description.Resources.NanoCpus = 4e9 })
	u := placement.NewUsage()
	for _, tt := range []struct {
		nanoCPUs int64
		want     bool
	}{{4e9, false}, {0, false}, {1, true}} {
		u.Add(placement.Hold{Service: "web", Resources: placement.Resources{NanoCPUs: tt.nanoCPUs}})
		if got := n.Overcommitted(u); got != tt.want {
			t.Errorf("node with 4 cores that holds %d nanocores: overcommitted %t, want %t", u.NanoCPUs, got, tt.want)
		}
	}
}

func TestExcessLeavesTasksThatWereAssignedFirst(t *testing.T) {
	t.Parallel()
	claim := func(task string, at, cpus, memory int64) placement.Claim {
		return placement.Claim{Task: task, AssignedAt: at, Resources: placement.Resources{NanoCPUs: cpus, MemoryBytes: memory}}
	}
	for name, tt := range map[string]struct {
		claims []placement.Claim
		want   []string
	}{
		"room for all":           {[]placement.Claim{claim("a", 1, 2, 2), claim("b", 2, 2, 2)}, nil},
		"newest leaves":          {[]placement.Claim{claim("new", 3, 2, 1), claim("old", 1, 2, 1), claim("mid", 2, 2, 1)}, []string{"new"}},
		"memory":                 {[]placement.Claim{claim("a", 1, 1, 3), claim("b", 2, 1, 2)}, []string{"b"}},
		"smaller one fits":       {[]placement.Claim{claim("a", 1, 3, 1), claim("b", 2, 2, 1), claim("c", 3, 1, 1)}, []string{"b"}},
		"nothing reserved stays": {[]placement.Claim{claim("a", 1, 9, 0), claim("b", 2, 0, 0)}, []string{"a"}},
		"same time, by id":       {[]placement.Claim{claim("b", 1, 3, 1), claim("a", 1, 3, 1)}, []string{"b"}},
	} {
		got := placement.Excess(placement.Resources{NanoCPUs: 4, MemoryBytes: 4}, tt.claims)
		if diff := cmp.Diff(tt.want, slices.Sorted(maps.Keys(got))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestExcessIsWhatDoesNotFit holds on random claims that what stays fits, and that no
// task that leaves would have fitted beside those that were assigned before it and stay.
func TestExcessIsWhatDoesNotFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := placement.Resources{NanoCPUs: rapid.Int64Range(0, 20).Draw(t, "cpus"), MemoryBytes: rapid.Int64Range(0, 20).Draw(t, "memory")}
		var claims []placement.Claim
		for i := range rapid.IntRange(0, 10).Draw(t, "tasks") {
			claims = append(claims, placement.Claim{
				Task: fmt.Sprint(i), AssignedAt: rapid.Int64Range(0, 5).Draw(t, "at"),
				Resources: placement.Resources{NanoCPUs: rapid.Int64Range(0, 5).Draw(t, "cpu"), MemoryBytes: rapid.Int64Range(0, 5).Draw(t, "mem")},
			})
		}
		excess := placement.Excess(capacity, claims)
		free := capacity
		for _, c := range claims { // in the order of their assignment by now
			_, leaves := excess[c.Task]
			if fits := c.Fits(free); fits == leaves {
				t.Fatalf("task %s with %+v of %+v free: leaves %t", c.Task, c.Resources, free, leaves)
			}
			if !leaves {
				free = free.Sub(c.Resources)
			}
		}
	})
}
