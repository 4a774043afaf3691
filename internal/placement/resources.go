package placement

import (
	"cmp"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Resources are amounts of what tasks can reserve of a node.
type Resources struct {
	NanoCPUs    int64
	MemoryBytes int64
}

// ResourcesOf reads resources from the contract. Nil means none.
func ResourcesOf(r *musterv1.Resources) Resources {
	return Resources{NanoCPUs: r.GetNanoCpus(), MemoryBytes: r.GetMemoryBytes()}
}

// reservationsOf returns what a task needs of a node at most at one time: what the main
// container and the sidecars reserve together, or what the greatest other container of the
// group does. Those run while no other container of the group does.
func reservationsOf(task *musterv1.TaskSpec) Resources {
	sum := ResourcesOf(task.GetResources().GetReservations())
	var most Resources
	for _, g := range task.GetGroup() {
		r := ResourcesOf(g.GetResources().GetReservations())
		if g.GetRole() == musterv1.GroupContainer_SIDECAR {
			sum = sum.Add(r)
			continue
		}
		most = Resources{max(most.NanoCPUs, r.NanoCPUs), max(most.MemoryBytes, r.MemoryBytes)}
	}
	return Resources{max(sum.NanoCPUs, most.NanoCPUs), max(sum.MemoryBytes, most.MemoryBytes)}
}

// Add returns the sum of two.
func (r Resources) Add(o Resources) Resources {
	return Resources{r.NanoCPUs + o.NanoCPUs, r.MemoryBytes + o.MemoryBytes}
}

// Sub returns the difference of two. It may be negative: a node can come to have less
// than its tasks hold.
func (r Resources) Sub(o Resources) Resources {
	return Resources{r.NanoCPUs - o.NanoCPUs, r.MemoryBytes - o.MemoryBytes}
}

// times returns the resources n times.
func (r Resources) times(n int) Resources {
	return Resources{int64(n) * r.NanoCPUs, int64(n) * r.MemoryBytes}
}

// Fits reports whether free holds what is reserved. A reservation of none of a
// resource fits even where less than none is free.
func (r Resources) Fits(free Resources) bool {
	return (r.NanoCPUs <= 0 || r.NanoCPUs <= free.NanoCPUs) && (r.MemoryBytes <= 0 || r.MemoryBytes <= free.MemoryBytes)
}

// Capacity returns the resources of a node.
func (n *Node) Capacity() Resources { return ResourcesOf(n.Description.GetResources()) }

// Overcommitted reports whether the tasks on a node hold more than it has.
func (n *Node) Overcommitted(u *Usage) bool { return !u.Resources.Fits(n.Capacity()) }

// Claim is what a task that is assigned to a node reserves there.
type Claim struct {
	Task       string
	AssignedAt int64
	Resources
}

// Excess returns the tasks that a node with a capacity has no room for: those that do
// not fit beside the ones that were assigned before them. A task that reserves nothing
// is never one of them. It sorts the claims.
func Excess(capacity Resources, claims []Claim) map[string]struct{} {
	var sum Resources
	for _, c := range claims {
		sum = sum.Add(c.Resources)
	}
	if sum.Fits(capacity) {
		return nil
	}
	slices.SortFunc(claims, func(a, b Claim) int {
		return cmp.Or(cmp.Compare(a.AssignedAt, b.AssignedAt), cmp.Compare(a.Task, b.Task))
	})
	excess, free := map[string]struct{}{}, capacity
	for _, c := range claims {
		switch {
		case c.Resources == Resources{}:
		case c.Fits(free):
			free = free.Sub(c.Resources)
		default:
			excess[c.Task] = struct{}{}
		}
	}
	return excess
}
