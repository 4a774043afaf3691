package simulation

import (
	"fmt"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
)

// settled says what is not yet as it should be once nothing goes wrong any more.
func (p *picture) settled() []string {
	p.faults = nil
	p.connections()
	p.room()
	p.nodesSettled()
	for id, s := range p.services {
		if len(s.Spec.DependsOn) > 0 && p.waits(s) != "" {
			p.waitingSettled(id, s)
		} else if s.Spec.GetGlobal() != nil {
			p.globalSettled(id, s)
		} else {
			p.replicatedSettled(id, s)
		}
	}
	p.executorsSettled()
	p.groupsSettled()
	p.noOrphans()
	p.networksSettled()
	p.routed()
	return p.faults
}

// nodesSettled wants each worker that is there READY, and each that left for good
// not.
func (p *picture) nodesSettled() {
	for name, n := range p.cluster.nodes {
		_, up, gone, _ := n.state()
		seen := p.nodes[name]
		switch {
		case up && (seen == nil || seen.State != musterv1.NodeStatus_READY):
			p.fault("node %s is there, and is %v", name, stateOf(seen))
		case gone && seen != nil && seen.State != musterv1.NodeStatus_DOWN:
			p.fault("node %s is gone, and is %v", name, seen.State)
		}
	}
}

func stateOf(n *placement.Node) musterv1.NodeStatus_State {
	if n == nil {
		return musterv1.NodeStatus_UNKNOWN
	}
	return n.State
}

// live returns a service's tasks that are to run; it wants those that are not to have
// ended.
func (p *picture) live(id string, s *recordv1.Service) (live []*state.Task) {
	for _, t := range p.tasks[id] {
		switch {
		case t.Terminal():
		case t.Live():
			live = append(live, t)
		case t.NodeID != "" && stateOf(p.nodes[t.NodeID]) == musterv1.NodeStatus_READY:
			p.fault("task %s of %s is desired %v, and is %v on %s", short(t.ID), s.Spec.Name, t.Desired(), t.State(), t.NodeID)
		}
	}
	return live
}

// fits returns a node that a task without one could have, or "".
func (p *picture) fits(s *recordv1.Service, t *state.Task) string {
	request, err := p.request(t.ServiceID, s, p.task(t.Record.SpecDigest), state.Published(s, t.Record.EndpointDigest))
	if err != nil {
		return fmt.Sprint("none: ", err)
	}
	for name, n := range p.nodes {
		if (t.Record.NodeId == "" || t.Record.NodeId == name) && request.Check(n, p.usage[name]) == placement.FilterNone {
			return name
		}
	}
	return ""
}

// placed wants a task to run where it may, or to wait because it may nowhere. It
// says whether it waits.
func (p *picture) placed(s *recordv1.Service, t *state.Task) (waits bool) {
	name := s.Spec.Name
	if t.NodeID == "" {
		if node := p.fits(s, t); node != "" {
			p.fault("task %s of %s waits (desired %v), and would fit on %s", short(t.ID), name, t.Desired(), node)
		}
		return true
	}
	if t.State() != musterv1.TaskState_RUNNING || t.Desired() != musterv1.TaskState_RUNNING {
		p.fault("task %s of %s is %v on %s (desired %v): %s %s", short(t.ID), name, t.State(), t.NodeID, t.Desired(), t.Status.GetMessage(), t.Status.GetError())
		return false
	}
	n := p.nodes[t.NodeID]
	if stateOf(n) != musterv1.NodeStatus_READY || n.Availability == musterv1.NodeSpec_DRAIN {
		p.fault("task %s of %s runs on %s, which is %v and %v", short(t.ID), name, t.NodeID, stateOf(n), n.Availability)
		return false
	}
	request, err := placement.NewRequest(t.ServiceID, p.task(s.TaskDigest), s.Spec.Endpoint)
	if err == nil && n.Availability == musterv1.NodeSpec_ACTIVE && p.current(s, t) && !request.Constraints.Match(n) {
		p.fault("task %s of %s runs on %s, which does not meet the constraints", short(t.ID), name, t.NodeID)
	}
	return false
}

// frozen says whether a task is left alone: a paused node keeps what it has of a
// global service, of whatever spec that is and whatever becomes of it.
func (p *picture) frozen(s *recordv1.Service, t *state.Task) bool {
	n := p.nodes[t.Record.NodeId]
	return s.Spec.GetGlobal() != nil && n != nil && n.Availability == musterv1.NodeSpec_PAUSE
}

// slot is what a slot has when nothing goes wrong any more.
type slot struct {
	placed, waits []*state.Task
}

// slotsSettled wants one task in each slot of a service, that runs or waits; beside
// one that waits, its predecessor may run if the update order is START_FIRST. It
// wants the update to be at its end, unless a task waits: then slots whose turn has not
// come are as they were, if no other may be updated.
func (p *picture) slotsSettled(id string, s *recordv1.Service) (slots map[string]*slot, held bool) {
	slots = map[string]*slot{}
	waiting := 0
	e, _ := p.observer.tables.Rollouts.Get(p.now, id)
	rollout := e.Value
	config := rollConfigOf(s, rollout)
	live := p.live(id, s)
	held = p.held(s, rollout, config, live)
	for _, t := range live {
		_, key, _ := state.SplitKey(t.Key)
		at := slots[key]
		if at == nil {
			at = &slot{}
			slots[key] = at
		}
		if (held || p.frozen(s, t)) && !p.current(s, t) {
			continue
		}
		if p.placed(s, t) {
			waiting++
			at.waits = append(at.waits, t)
		} else {
			at.placed = append(at.placed, t)
		}
	}
	for key, at := range slots {
		bridged := config.Order == musterv1.UpdateConfig_START_FIRST && len(at.waits) > 0
		if len(at.placed) > 1 || len(at.waits) > 1 || len(at.placed) > 0 && len(at.waits) > 0 && !bridged {
			p.fault("slot %s of %s has %d tasks and %d that wait", key, s.Spec.Name, len(at.placed), len(at.waits))
		}
		for _, t := range at.placed {
			if !bridged {
				p.upToDate(s, t)
			}
		}
		for _, t := range at.waits {
			p.upToDate(s, t)
		}
	}
	if waiting == 0 && rolls(rollout) {
		p.fault("the update of %s has not ended: %v", s.Spec.Name, rollout)
	}
	return slots, held
}

// held says whether slots whose turn in an update has not come stay without one: all
// those that may have theirs at once wait for a node.
func (p *picture) held(s *recordv1.Service, r *recordv1.Rollout, config *musterv1.UpdateConfig, live []*state.Task) bool {
	updating := uint64(0)
	for _, t := range live {
		if t.Live() && t.NodeID == "" && t.Record.Turn != nil && t.Record.Turn.SettledAt == 0 && p.current(s, t) {
			updating++
		}
	}
	return rolls(r) && config.Parallelism > 0 && updating >= config.Parallelism
}

// restless says whether tasks whose turn waits never come to rest as they are.
func (p *picture) restless(id string, s *recordv1.Service, r *recordv1.Rollout) bool {
	if !p.held(s, r, rollConfigOf(s, r), p.tasks[id]) {
		return false
	}
	return slices.ContainsFunc(p.tasks[id], func(t *state.Task) bool {
		return t.Live() && !p.current(s, t) && !steady(&musterv1.ServiceSpec{Task: p.task(t.Record.SpecDigest)})
	})
}

// upToDate wants a task to run what its service asks for.
func (p *picture) upToDate(s *recordv1.Service, t *state.Task) {
	if !p.current(s, t) {
		p.fault("task %s of %s is of a former spec", short(t.ID), s.Spec.Name)
	}
}

func (p *picture) replicatedSettled(id string, s *recordv1.Service) {
	slots, held := p.slotsSettled(id, s)
	if want := int(s.Spec.GetReplicated().GetReplicas()); len(slots) != want && !held {
		p.fault("service %s has tasks in %d slots, want %d", s.Spec.Name, len(slots), want)
	}
}

func (p *picture) globalSettled(id string, s *recordv1.Service) {
	slots, held := p.slotsSettled(id, s)
	request, err := placement.NewRequest(id, p.task(s.TaskDigest), s.Spec.Endpoint)
	if err != nil {
		p.fault("service %s: %v", s.Spec.Name, err)
		return
	}
	for name, n := range p.nodes {
		wanted := n.State == musterv1.NodeStatus_READY && n.Availability == musterv1.NodeSpec_ACTIVE && request.Constraints.Match(n)
		if wanted && slots[name] == nil && !held {
			p.fault("service %s has no task on %s", s.Spec.Name, name)
		}
	}
}

// executorsSettled wants executors to run what the records say, and nothing else.
func (p *picture) executorsSettled() {
	want := map[string][]string{}
	for _, tasks := range p.tasks {
		for _, t := range tasks {
			if t.State() == musterv1.TaskState_RUNNING && stateOf(p.nodes[t.NodeID]) == musterv1.NodeStatus_READY {
				want[t.NodeID] = append(want[t.NodeID], t.ID)
			}
		}
	}
	for name, n := range p.cluster.nodes {
		if _, up, _, _ := n.state(); !up {
			continue
		}
		slices.Sort(want[name])
		for _, id := range want[name] {
			if !slices.Contains(p.running[name], id) {
				p.fault("task %s is RUNNING on %s by the records, and its executor does not run it", short(id), name)
			}
		}
		for _, id := range p.running[name] {
			if !slices.Contains(want[name], id) {
				p.fault("%s runs task %s, which it should not", name, short(id))
			}
		}
	}
}

// noOrphans wants each record to have the one that it is there for.
func (p *picture) noOrphans() {
	t := p.observer.tables
	service := func(table, key, id string) {
		if p.services[id] == nil {
			p.fault("record %s of %s is of no service", key, table)
		}
	}
	for e := range t.Tasks.Scan(p.now, "") {
		id, _, _ := state.SplitKey(e.Key)
		service("tasks", e.Key, id)
	}
	for e := range t.Rollouts.Scan(p.now, "") {
		service("rollouts", e.Key, e.Key)
	}
	for e := range t.Endpoints.Scan(p.now, "") {
		service("endpoints", e.Key, e.Key)
	}
	for e := range t.Placements.Scan(p.now, "") {
		// Keys with one segment are fences, as versions before v0.1.0 keep them.
		if id, second, _ := state.SplitKey(e.Key); second != "" {
			service("placements", e.Key, id)
		}
	}
	for e := range t.Assignments.Scan(p.now, "") {
		node, id, task := state.SplitKey(e.Key)
		if _, ok := t.Tasks.Get(p.now, state.AssignedTaskKey(node, id, task, e.Value)); !ok {
			p.fault("assignment %s is of no task", e.Key)
		}
	}
	for e := range t.Statuses.Scan(p.now, "") {
		if _, ok := t.Assignments.Get(p.now, e.Key); !ok {
			p.fault("status %s is of no assignment", e.Key)
		}
	}
}

// empty says what is left after every service and every config was removed.
func (p *picture) empty() []string {
	p.faults = nil
	p.noOrphans()
	p.noOrphanedData()
	if len(p.configs) > 0 {
		p.fault("%d configs are left", len(p.configs))
	}
	p.noNetworks()
	if len(p.services) > 0 {
		p.fault("%d services are left", len(p.services))
	}
	for e := range p.observer.tables.Specs.Scan(p.now, "") {
		p.fault("spec %s is left", e.Key)
	}
	for e := range p.observer.tables.Names.Scan(p.now, "") {
		p.fault("name %s is left", e.Key)
	}
	for name, n := range p.cluster.nodes {
		e, up, _, _ := n.state()
		if e == nil || !up {
			continue
		}
		if held, err := e.List(p.background, ""); err != nil || len(held) > 0 {
			p.fault("%s still holds %d tasks (%v)", name, len(held), err)
		}
	}
	return p.faults
}
