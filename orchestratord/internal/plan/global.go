package plan

import (
	"github.com/musterhq/muster/internal/state"
)

// global brings a service to one task on every node that meets its
// constraints. A task is bound to its node from the start: the scheduler only
// confirms that it fits.
func (d *decider) global() {
	seen := map[string]bool{}
	for _, g := range groups(d.w.Tasks) {
		node := g[0].Record.NodeId
		seen[node] = true
		s := d.open(g[0].Record.Slot, node, g)
		d.onNode(s, g, node)
		s.close()
	}
	for node := range d.w.Cluster.Nodes() {
		if seen[node] || d.w.Cluster.Condition(node) != Up || !d.matches(node) {
			continue
		}
		s := d.open(0, node, nil)
		s.keep(false, ReasonNodeEligible)
		s.close()
	}
}

func (d *decider) onNode(s *slot, tasks []*state.Task, node string) {
	switch c := d.w.Cluster.Condition(node); {
	case s.number != 0:
		s.drop(ReasonSlotUnused)
	case c == Gone:
		s.lost = append(s.lost, node)
		s.drop(ReasonNodeGone)
	case !c.Keeps():
		s.lost = append(s.lost, node)
		s.leave(tasks, c.reason())
	case !d.matches(node):
		s.unfit = append(s.unfit, node)
		s.leave(tasks, ReasonConstraints)
	default:
		s.keep(c == Paused, ReasonNodeEligible)
	}
}

// leave ends the tasks on a node that is to have none now.
func (s *slot) leave(tasks []*state.Task, why Reason) {
	for i, t := range tasks {
		if t.Live() {
			s.end(i, why)
		}
	}
	s.reap()
}
