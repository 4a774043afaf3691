package placement_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

// TestFill holds that tasks that come in parts, and fill node by node, end up where
// they would be spread if they came at once.
func TestFill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, err := placement.NewRequest("web", &musterv1.TaskSpec{
			Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: 1e9}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var once, parts []placement.Candidate
		for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
			cores := rapid.Int64Range(0, 20).Draw(t, "cores")
			n := machine(fmt.Sprint("n", i), func(r *recordv1.NodeState, _ *recordv1.Node) {
				r.Description.Resources.NanoCpus = cores * 1e9
			})
			web, others := rapid.IntRange(0, 5).Draw(t, "of web"), rapid.IntRange(0, 5).Draw(t, "of others")
			avoid := rapid.Bool().Draw(t, "avoid")
			for _, all := range []*[]placement.Candidate{&once, &parts} {
				u := placement.NewUsage()
				for range web {
					u.Add(r.Hold())
				}
				for range others {
					u.Add(placement.Hold{Service: "other"})
				}
				*all = append(*all, placement.Candidate{Node: n, Usage: u, Avoid: avoid})
			}
		}
		total := rapid.IntRange(0, 100).Draw(t, "total")
		r.Spread(once, total, func(placement.Candidate) {})

		waiting, coming := 0, total
		for coming > 0 {
			part := rapid.IntRange(1, coming).Draw(t, "part")
			waiting, coming = waiting+part, coming-part
			if coming > 0 {
				waiting -= r.Fill(parts, waiting, waiting+coming, func(placement.Candidate) {})
			}
		}
		r.Spread(parts, waiting, func(placement.Candidate) {})
		counts := func(all []placement.Candidate) (n []int) {
			for _, c := range all {
				n = append(n, c.Service("web"))
			}
			return n
		}
		if diff := cmp.Diff(counts(once), counts(parts)); diff != "" {
			t.Errorf("tasks of web by node, at once and in parts:\n%s", diff)
		}
	})
}

// TestFillNodeByNode holds that a node has its share before the next gets any.
func TestFillNodeByNode(t *testing.T) {
	r, err := placement.NewRequest("web", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []placement.Candidate
	for i := range 5 {
		nodes = append(nodes, placement.Candidate{Node: machine(fmt.Sprint("n", i), nil), Usage: placement.NewUsage()})
	}
	nodes[1].Add(r.Hold())
	var got []string
	// 5 nodes and 22 tasks more than one: four each, and three that Spread places.
	placed := r.Fill(nodes, 9, 22, func(c placement.Candidate) { got = append(got, c.ID) })
	want := []string{"n0", "n0", "n0", "n0", "n1", "n1", "n1", "n2", "n2"}
	if diff := cmp.Diff(want, got); placed != len(want) || diff != "" {
		t.Errorf("%d placed:\n%s", placed, diff)
	}
	if placed := r.Fill(nodes, 13, 13, func(placement.Candidate) {}); placed != 10 {
		t.Errorf("of what is left %d were placed, want 10", placed)
	}
}
