package plan

// global brings a service to one task on every node that meets its
// constraints. A task is bound to its node from the start: the scheduler only
// confirms that it fits.
type global struct {
	d  *decider
	on []*slotState
}

func (d *decider) global() *global {
	g := &global{d: d}
	for _, tasks := range groups(d.tasks) {
		node := tasks[0].Record.NodeId
		g.on = append(g.on, &slotState{
			number: tasks[0].Record.Slot, node: node, tasks: tasks, frozen: d.w.Cluster.Condition(node) == Paused,
		})
	}
	return g
}

func (g *global) wantedSlots() []*slotState {
	var wanted []*slotState
	for _, e := range g.on {
		if g.wanted(e) {
			wanted = append(wanted, e)
		}
	}
	return wanted
}

func (g *global) wanted(e *slotState) bool {
	return e.number == 0 && g.d.w.Cluster.Condition(e.node).Keeps() && g.d.target.matches(e.node)
}

func (g *global) act() {
	d := g.d
	seen := make(map[string]bool, len(g.on))
	for _, e := range g.on {
		seen[e.node] = true
		s := d.open(e.number, e.node, e.tasks)
		if g.wanted(e) {
			s.keepSlot(e, ReasonNodeEligible)
		} else {
			g.leave(s)
		}
		s.close()
	}
	for node := range d.w.Cluster.Nodes() {
		if seen[node] || d.w.Cluster.Condition(node) != Up || !d.target.matches(node) {
			continue
		}
		s := d.open(0, node, nil)
		s.keep(false, ReasonNodeEligible)
		s.close()
	}
}

// leave gives up the tasks on a node that is to have none.
func (g *global) leave(s *slot) {
	switch c := g.d.w.Cluster.Condition(s.node); {
	case s.number != 0:
		s.drop(ReasonSlotUnused)
	case c == Gone:
		s.lost = append(s.lost, s.node)
		s.drop(ReasonNodeGone)
	case !c.Keeps():
		s.lost = append(s.lost, s.node)
		s.leave(c.reason())
	default:
		s.unfit = append(s.unfit, s.node)
		s.leave(ReasonConstraints)
	}
}

// leave ends the tasks on a node that is to have none now.
func (s *slot) leave(why Reason) {
	for i, t := range s.tasks {
		if t.Live() {
			s.end(i, why)
		}
	}
	s.reap()
}
