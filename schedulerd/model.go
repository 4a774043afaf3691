package schedulerd

import (
	"cmp"
	"maps"
	"slices"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

var _ plan.Nodes = (*model)(nil)

// model is what the loop knows: the store's snapshot and what follows from it.
// It belongs to the loop's goroutine.
type model struct {
	tables *state.Tables
	now    *store.Snapshot
	nodes  map[string]*node
	// machines holds the machines that nodes share.
	machines map[string]*machine
	// sorted holds the nodes as the store keeps them, by shard and id; nil when they must
	// be sorted again.
	sorted []*node
	// tasks holds every task that should run and has no node, by service and
	// id.
	waiting map[string]map[string]plan.Task
	// assigned holds the node of each assigned task.
	assigned map[string]string
	// known holds the ids of all tasks that have a record.
	known map[string]struct{}
	// stale holds the keys of assignments whose task is gone, or has not been
	// seen yet.
	stale map[string]struct{}
	// capacityFreed is set when a node has more to give than at the last decision.
	capacityFreed bool
	// pendingServices holds services with tasks that no decision has seen yet.
	pendingServices map[string]struct{}
	// faults says which nodes tasks should avoid.
	faults *plan.Faults
	// networks are the networks with the addresses that tasks hold.
	networks *placement.Networks
	// verdicts remembers which executors' schemas accept which specs.
	verdicts *placement.Verdicts
}

// node is a node and what its tasks hold.
type node struct {
	*placement.Node
	shard int
	usage *placement.Usage
	holds map[string]placement.Hold // by task
	// blocks is how many blocks of networks the node has.
	blocks int
	// machine is nil for a node that shares nothing with others.
	machine *machine
}

// machine is a machine that nodes share, with these nodes by id.
type machine struct {
	id    string
	usage *placement.Machine
	nodes map[string]*node
}

func newModel(tables *state.Tables) *model {
	return &model{
		tables: tables, nodes: map[string]*node{}, machines: map[string]*machine{}, waiting: map[string]map[string]plan.Task{}, assigned: map[string]string{},
		known: map[string]struct{}{}, stale: map[string]struct{}{}, pendingServices: map[string]struct{}{}, faults: plan.NewFaults(),
		networks: placement.NewNetworks(), verdicts: placement.NewVerdicts(),
	}
}

// advance moves to a newer snapshot.
func (m *model) advance(to *store.Snapshot, now time.Time) {
	from := m.now
	m.now = to
	m.faults.Forget(now)
	m.networksChanged(from)
	for c := range m.tables.Nodes.Changes(from, to) {
		m.refreshNode(c.Key())
	}
	for c := range m.tables.NodeStates.Changes(from, to) {
		m.refreshNode(c.Key())
	}
	// A service's ports and constraints are part of what its tasks ask for.
	for c := range m.tables.Services.Changes(from, to) {
		m.pendingServices[c.Key()] = struct{}{}
	}
	for c := range m.tables.Tasks.Changes(from, to) {
		m.taskChanged(c)
	}
	for c := range m.tables.Assignments.Changes(from, to) {
		m.assignmentChanged(c)
	}
	for c := range m.tables.Statuses.Changes(from, to) {
		if c.New != nil && c.New.Value.State > musterv1.TaskState_RUNNING && (c.Old == nil || c.Old.Value.State <= musterv1.TaskState_RUNNING) {
			nodeID, _, task := state.SplitKey(c.New.Key)
			m.release(nodeID, task)
			m.failed(c.New.Key, c.New.Value, from != nil, now)
		}
	}
}

// compare orders nodes as the store keeps them.
func (n *node) compare(o *node) int {
	return cmp.Or(cmp.Compare(n.shard, o.shard), cmp.Compare(n.ID, o.ID))
}

func (m *model) node(id string) *node {
	n := m.nodes[id]
	if n == nil {
		n = &node{Node: placement.NewNode(id, nil, nil), shard: store.ShardOf(id), usage: placement.NewUsage(), holds: map[string]placement.Hold{}}
		n.usage.SetNetworks(m.networks)
		m.nodes[id], m.sorted = n, nil
	}
	return n
}

// drop forgets a node.
func (m *model) drop(id string) {
	m.move(m.nodes[id], "")
	delete(m.nodes, id)
	m.sorted = nil
}

// move notes which machine a node shares with others; none if id is empty.
func (m *model) move(n *node, id string) {
	if n == nil || n.machine == nil && id == "" || n.machine != nil && n.machine.id == id {
		return
	}
	if old := n.machine; old != nil {
		n.machine = nil
		n.usage.SetMachine(nil)
		if delete(old.nodes, n.ID); len(old.nodes) == 0 {
			delete(m.machines, old.id)
		}
	}
	if id == "" {
		return
	}
	if m.machines[id] == nil {
		m.machines[id] = &machine{id: id, usage: placement.NewMachine(), nodes: map[string]*node{}}
	}
	n.machine = m.machines[id]
	n.machine.nodes[n.ID] = n
	n.usage.SetMachine(n.machine.usage)
}

// Node returns a node with what its tasks hold.
func (m *model) Node(id string) placement.Candidate {
	if n := m.nodes[id]; n != nil {
		return n.candidate()
	}
	return placement.Candidate{Node: placement.NewNode(id, nil, nil), Usage: placement.NewUsage()}
}

func (n *node) candidate() placement.Candidate {
	return placement.Candidate{Node: n.Node, Usage: n.usage}
}

// InOrder returns the nodes as the store keeps them, beginning with a service's shard.
func (m *model) InOrder(service string) []placement.Candidate {
	if m.sorted == nil {
		m.sorted = slices.SortedFunc(maps.Values(m.nodes), (*node).compare)
	}
	begin, _ := slices.BinarySearchFunc(m.sorted, store.ShardOf(service), func(n *node, shard int) int { return cmp.Compare(n.shard, shard) })
	candidates := make([]placement.Candidate, 0, len(m.sorted))
	for _, part := range [][]*node{m.sorted[begin:], m.sorted[:begin]} {
		for _, n := range part {
			candidates = append(candidates, n.candidate())
		}
	}
	return candidates
}

// idle reports whether the node holds nothing.
func (n *node) idle() bool { return len(n.holds) == 0 && n.blocks == 0 }

func (m *model) refreshNode(id string) {
	reported, known := m.tables.NodeStates.Get(m.now, id)
	operator, _ := m.tables.Nodes.Get(m.now, id)
	n := m.node(id)
	before := n.Node
	n.Node = placement.NewNode(id, reported.Value, operator.Value)
	m.verdicts.Replace(before, n.Node)
	m.move(n, n.MachineID())
	m.capacityFreed = true
	if !known && n.idle() {
		m.drop(id)
	}
}

func (m *model) taskChanged(c store.Change[*recordv1.Task]) {
	service, _, id := state.SplitKey(c.Key())
	if c.New == nil {
		delete(m.known, id)
		m.forget(service, id)
		m.leave(id)
		if n, ok := m.assigned[id]; ok {
			m.stale[state.NodeTaskKey(n, service, id)] = struct{}{}
		}
		return
	}
	m.known[id] = struct{}{}
	n, assigned := m.assigned[id]
	if assigned {
		// The assignment may have been seen first.
		delete(m.stale, state.NodeTaskKey(n, service, id))
	}
	if leaving(c.New.Value) {
		m.leave(id)
	}
	if assigned || !placeable(c.New.Value) {
		m.forget(service, id)
		return
	}
	m.wait(service, id, c.New.Value)
}

// wait notes that a task needs a node.
func (m *model) wait(service, id string, t *recordv1.Task) {
	if m.waiting[service] == nil {
		m.waiting[service] = map[string]plan.Task{}
	}
	m.waiting[service][id] = plan.Task{
		ID: id, Slot: t.Slot, Origin: state.OriginOf(t), Node: t.NodeId, Created: t.CreatedAt, Trace: t.Trace,
		Delayed: m.waiting[service][id].Delayed,
	}
	m.pendingServices[service] = struct{}{}
}

// take counts in what a plan gives nodes, and notes which tasks found no room.
func (m *model) take(p *plan.Plan) {
	for id, choices := range p.Choices {
		n := m.node(id)
		for _, c := range choices {
			hold := c.Request.Hold()
			n.holds[c.ID] = hold
			n.usage.Add(hold)
		}
	}
	for _, d := range p.Delayed {
		if t := m.waiting[d.Service][d.Task]; !t.Delayed {
			t.Delayed = true
			m.waiting[d.Service][d.Task] = t
		}
	}
	for _, service := range p.Retry {
		m.pendingServices[service] = struct{}{}
	}
}

func (m *model) forget(service, id string) {
	delete(m.waiting[service], id)
	if len(m.waiting[service]) == 0 {
		delete(m.waiting, service)
	}
	// Its explanation may have to go.
	m.pendingServices[service] = struct{}{}
}

func (m *model) assignmentChanged(c store.Change[*recordv1.Assignment]) {
	nodeID, service, id := state.SplitKey(c.Key())
	n := m.node(nodeID)
	if c.New == nil {
		m.release(nodeID, id)
		delete(m.stale, c.Old.Key)
		if m.assigned[id] == nodeID {
			delete(m.assigned, id)
			if t, ok := m.tables.Tasks.Get(m.now, state.AssignedTaskKey(nodeID, service, id, c.Old.Value)); ok && placeable(t.Value) {
				m.wait(service, id, t.Value)
			}
		}
		if n.idle() {
			if _, known := m.tables.NodeStates.Get(m.now, nodeID); !known {
				m.drop(nodeID)
			}
		}
		return
	}
	m.assigned[id] = nodeID
	m.forget(service, id)
	if _, ok := m.known[id]; !ok {
		m.stale[c.New.Key] = struct{}{}
	}
	if s, ok := m.tables.Statuses.Get(m.now, c.New.Key); ok && s.Value.State > musterv1.TaskState_RUNNING {
		return // it has ended, and holds nothing
	}
	hold := m.hold(c.New)
	if _, ok := n.holds[id]; !ok {
		n.holds[id] = hold
		n.usage.Add(hold)
	} else if hold.Leaving {
		m.leave(id)
	}
}

// hold returns what an assigned task holds. That a task is leaving never becomes
// untrue, so an older record of it is merely cautious.
func (m *model) hold(a *store.Entry[*recordv1.Assignment]) placement.Hold {
	nodeID, service, id := state.SplitKey(a.Key)
	h := placement.HoldOf(service, a.Value)
	t, ok := m.tables.Tasks.Get(m.now, state.AssignedTaskKey(nodeID, service, id, a.Value))
	h.Leaving = ok && leaving(t.Value)
	return h
}

// leaving reports whether a task was told to stop.
func leaving(t *recordv1.Task) bool { return t.DesiredState > musterv1.TaskState_COMPLETE }

// placeable reports whether a task should get a node. One whose service waits for others
// should not yet.
func placeable(t *recordv1.Task) bool {
	return t.DesiredState >= musterv1.TaskState_READY && !leaving(t)
}

// leave counts a task that was told to stop as none of its service's. Room for
// others may come of that.
func (m *model) leave(task string) {
	n, ok := m.nodes[m.assigned[task]]
	if !ok {
		return
	}
	if hold, ok := n.holds[task]; ok && !hold.Leaving {
		n.usage.Remove(hold)
		hold.Leaving = true
		n.usage.Add(hold)
		n.holds[task] = hold
		m.capacityFreed = true
	}
}

// release gives back what a task held.
func (m *model) release(nodeID, task string) {
	n, ok := m.nodes[nodeID]
	if !ok {
		return
	}
	if hold, ok := n.holds[task]; ok {
		delete(n.holds, task)
		n.usage.Remove(hold)
		m.capacityFreed = true
	}
}

// failed notes the end of a task, if it is a failure: that of a task which was told to
// stop is none. A status's time is that of the worker's clock, which may be wrong,
// so it counts only for what happened before this scheduler looked.
func (m *model) failed(key string, s *recordv1.Status, news bool, now time.Time) {
	if s.State != musterv1.TaskState_FAILED && s.State != musterv1.TaskState_REJECTED {
		return
	}
	at := now
	if before := time.UnixMilli(s.At); !news && before.Before(at) {
		at = before
	}
	nodeID, service, id := state.SplitKey(key)
	a, ok := m.tables.Assignments.Get(m.now, key)
	if !ok || now.Sub(at) >= plan.FaultWindow {
		return
	}
	t, ok := m.tables.Tasks.Get(m.now, state.AssignedTaskKey(nodeID, service, id, a.Value))
	// A task that failed is told to stop as well, but later: when it is replaced.
	if !ok || leaving(t.Value) && t.Value.DesiredAt <= s.At && !s.NodeToBlame {
		return
	}
	m.faults.Note(plan.SpecKey{Service: service, Digest: string(t.Value.SpecDigest)}, nodeID, at, s.NodeToBlame)
}
