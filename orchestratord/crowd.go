package orchestratord

import (
	"cmp"
	"iter"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// A node can come to have fewer resources than its tasks reserve: its worker was
// started again with other settings, or on a smaller machine. Then the tasks that
// were assigned last leave it, as many as it takes. All orchestrators see the same
// ones, whosever services they are.

// crowd looks again which tasks have no room on the nodes that were resized, and on
// those that were too small and have other tasks now. What that changes is looked
// at.
func (l *loop) crowd(resized []string, changed map[string]struct{}) {
	look := map[string]struct{}{}
	for _, id := range resized {
		look[id] = struct{}{}
	}
	if len(l.nodes.crowds) > 0 {
		for id := range changed {
			// One that has lost its assignment is not to be seen here: its node has room
			// then, or others that have yet to leave it.
			if t, ok := l.follower.Task(id); ok && l.nodes.crowds[t.NodeID] != nil {
				look[t.NodeID] = struct{}{}
			}
		}
	}
	for id := range look {
		before, now := l.nodes.crowds[id], overflow(l.nodes.byID[id], l.follower.NodeTasks(id))
		delete(l.nodes.crowds, id)
		if len(now) > 0 {
			l.nodes.crowds[id] = now
		}
		if len(before)+len(now) == 0 {
			continue
		}
		for t := range l.follower.NodeTasks(id) {
			if s := l.know(t.ServiceID); s.tasks != nil {
				s.tasks.calm.touch(t)
				l.mark(s)
			}
		}
	}
}

// Room says whether a task's node has room for what the task reserves.
func (ns *nodes) Room(t *state.Task) bool {
	_, crowded := ns.crowds[t.NodeID][t.ID]
	return !crowded
}

// overflow returns those of a node's tasks that do not fit beside the ones that
// were assigned before them. Tasks that have ended, or are told to, count no more.
func overflow(n *placement.Node, tasks iter.Seq[*state.Task]) map[string]struct{} {
	if n == nil || n.Description == nil {
		return nil
	}
	has := n.Description.GetResources()
	var all []*state.Task
	var cpus, memory int64
	for t := range tasks {
		if t.Terminal() || t.Desired() > musterv1.TaskState_COMPLETE {
			continue
		}
		all = append(all, t)
		cpus, memory = cpus+t.Assignment.GetNanoCpus(), memory+t.Assignment.GetMemoryBytes()
	}
	if fits(has, cpus, memory) {
		return nil
	}
	slices.SortFunc(all, func(a, b *state.Task) int {
		return cmp.Or(cmp.Compare(a.Assignment.GetAssignedAt(), b.Assignment.GetAssignedAt()), cmp.Compare(a.ID, b.ID))
	})
	crowded := map[string]struct{}{}
	cpus, memory = 0, 0
	for _, t := range all {
		c, m := t.Assignment.GetNanoCpus(), t.Assignment.GetMemoryBytes()
		// What reserves nothing is in nobody's way.
		if c == 0 && m == 0 {
			continue
		}
		if !fits(has, cpus+c, memory+m) {
			crowded[t.ID] = struct{}{}
			continue
		}
		cpus, memory = cpus+c, memory+m
	}
	return crowded
}

// fits reports whether there are the resources that are reserved.
func fits(has *musterv1.Resources, cpus, memory int64) bool {
	return cpus <= has.GetNanoCpus() && memory <= has.GetMemoryBytes()
}

// roomy reports whether a node has room for all that is assigned to it.
func roomy(tables *state.Tables, r store.Reader, n *placement.Node) bool {
	u := placement.NewUsage()
	for e := range tables.Assignments.Scan(r, n.ID+"/") {
		u.Add(placement.HoldOf("", e.Value))
	}
	return n.Description != nil && fits(n.Description.GetResources(), u.NanoCPUs, u.MemoryBytes)
}
