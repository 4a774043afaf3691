package orchestratord

import (
	"iter"

	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// A node can come to have fewer resources than its tasks reserve: its worker was
// started again with other settings, or on a smaller machine. Then the tasks that
// were assigned last leave it, as many as it takes. All orchestrators see the same
// tasks, regardless of which services they belong to.

// findExcess updates which tasks have no room: on the nodes that were resized, and on
// those that were too small and have other tasks now. Services that this changes
// something for are reconciled.
func (l *loop) findExcess(resized []string, changed map[string]struct{}) {
	nodes := map[string]struct{}{}
	for _, id := range resized {
		nodes[id] = struct{}{}
	}
	if len(l.nodes.excess) > 0 {
		for id := range changed {
			// A task that has lost its assignment does not show here: its node has room
			// then, or other tasks that have yet to leave it.
			if t, ok := l.follower.Task(id); ok && l.nodes.excess[t.NodeID] != nil {
				nodes[t.NodeID] = struct{}{}
			}
		}
	}
	for id := range nodes {
		before, now := l.nodes.excess[id], overflow(l.nodes.byID[id], l.follower.NodeTasks(id))
		delete(l.nodes.excess, id)
		if len(now) > 0 {
			l.nodes.excess[id] = now
		}
		if len(before)+len(now) == 0 {
			continue
		}
		for t := range l.follower.NodeTasks(id) {
			if s := l.know(t.ServiceID); s.tasks != nil {
				s.tasks.Touch(t)
				l.mark(s)
			}
		}
	}
}

// Room says whether a task's node has room for what the task reserves.
func (ns *nodes) Room(t *state.Task) bool {
	_, crowded := ns.excess[t.NodeID][t.ID]
	return !crowded
}

// overflow returns those of a node's tasks that do not fit beside the ones that
// were assigned before them. Tasks that have ended, or were told to, do not count.
func overflow(n *placement.Node, tasks iter.Seq[*state.Task]) map[string]struct{} {
	if n == nil || n.Description == nil {
		return nil
	}
	var claims []placement.Claim
	for t := range tasks {
		if !t.Terminal() && t.Live() {
			claims = append(claims, placement.Claim{
				Task: t.ID, AssignedAt: t.Assignment.GetAssignedAt(), Resources: placement.HoldOf(t.ServiceID, t.Assignment).Resources,
			})
		}
	}
	return placement.Excess(n.Capacity(), claims)
}

// refusedOn reports whether the scheduler has refused a task on a node.
func refusedOn(tables *state.Tables, r store.Reader, node string) bool {
	for e := range tables.Assignments.Scan(r, node+"/") {
		if e.Value.Refused != "" {
			return true
		}
	}
	return false
}

// overcommitted reports whether more is assigned to a node than it has.
func overcommitted(tables *state.Tables, r store.Reader, n *placement.Node) bool {
	u := placement.NewUsage()
	for e := range tables.Assignments.Scan(r, n.ID+"/") {
		u.Add(placement.HoldOf("", e.Value))
	}
	return n.Overcommitted(u)
}
