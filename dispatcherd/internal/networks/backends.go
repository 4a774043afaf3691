package networks

import (
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// task is a task whose status shows networks.
type task struct {
	// key is the key of the task's assignment.
	key string
	// networks are those on which the task is a backend.
	networks []string
}

// followTasks continues with the tasks that get traffic.
func (a *advance) followTasks() {
	t := a.tables
	for c := range t.Statuses.Changes(a.from, a.to) {
		if c.Old != nil && len(c.Old.Value.Networks) > 0 || c.New != nil && len(c.New.Value.Networks) > 0 {
			a.staleTasks[c.Key()] = struct{}{}
		}
	}
	if a.from != nil { // at first all tasks are among the statuses
		for c := range t.Tasks.Changes(a.from, a.to) {
			_, _, id := state.SplitKey(c.Key())
			if known := a.tasks[id]; known != nil {
				a.staleTasks[known.key] = struct{}{}
			}
		}
		for c := range t.Assignments.Changes(a.from, a.to) {
			_, _, id := state.SplitKey(c.Key())
			if known := a.tasks[id]; known != nil && known.key == c.Key() {
				a.staleTasks[known.key] = struct{}{}
			}
		}
	}
	for key := range a.staleTasks {
		a.setTask(key)
	}
}

// setTask makes a task a backend on the networks on which it gets traffic.
func (a *advance) setTask(key string) {
	nodeID, serviceID, id := state.SplitKey(key)
	known := a.tasks[id]
	status, ok := a.tables.Statuses.Get(a.to, key)
	attached := ok && len(status.Value.Networks) > 0
	switch {
	case !attached && (known == nil || known.key != key):
		return
	case known == nil:
		known = &task{key: key}
		a.tasks[id] = known
		a.node(nodeID).tasks[key] = struct{}{}
	case known.key != key:
		// The task was moved to another node before it ran.
		a.forgetTask(known)
		known.key = key
		a.node(nodeID).tasks[key] = struct{}{}
	}
	before := known.networks
	known.networks = nil
	record := a.receives(key, status.Value)
	if record != nil {
		for _, at := range status.Value.Networks {
			if len(at.Addresses) == 0 || slices.Contains(known.networks, at.NetworkId) || !a.network(at.NetworkId).owns(nodeID, at.Addresses) {
				continue
			}
			known.networks = append(known.networks, at.NetworkId)
			a.setBackend(at.NetworkId, serviceID, id, &networkv1.Backend{
				TaskId: id, Addresses: at.Addresses, NodeId: nodeID, Slot: record.Slot,
			}, status.Value.AppliedAt)
		}
	}
	for _, network := range before {
		if !slices.Contains(known.networks, network) {
			a.setBackend(network, serviceID, id, nil, 0)
		}
	}
	if !attached {
		a.forgetTask(known)
		delete(a.tasks, id)
	}
}

// forgetTask forgets on which node a task is.
func (a *advance) forgetTask(t *task) {
	id, _, _ := state.SplitKey(t.key)
	if n := a.nodes[id]; n != nil {
		delete(n.tasks, t.key)
		a.forgetNode(id)
	}
}

// receives returns the record of a task that gets traffic, and nil for others.
func (a *advance) receives(key string, s *recordv1.Status) *recordv1.Task {
	node, service, id := state.SplitKey(key)
	health := s.GetRuntime().GetHealth().GetState()
	if s.GetState() != musterv1.TaskState_RUNNING || health == musterv1.Health_UNHEALTHY || health == musterv1.Health_STARTING {
		return nil
	}
	if n, _ := a.tables.NodeStates.Get(a.to, node); !reachable(n.Value) {
		return nil
	}
	assignment, ok := a.tables.Assignments.Get(a.to, key)
	if !ok {
		return nil
	}
	t, ok := a.tables.Tasks.Get(a.to, state.AssignedTaskKey(node, service, id, assignment.Value))
	// The desired state of jobs is COMPLETE.
	if !ok || t.Value.DesiredState < musterv1.TaskState_RUNNING || t.Value.DesiredState > musterv1.TaskState_COMPLETE {
		return nil
	}
	return t.Value
}

// setBackend makes a task a backend, or no longer one if the message is nil.
func (a *advance) setBackend(networkID, serviceID, id string, message *networkv1.Backend, at int64) {
	n := a.network(networkID)
	key := memberKey{service: serviceID, task: id}
	if message == nil {
		n.set(key, nil, 0) // an interface that holds a nil pointer is not nil
	} else {
		n.set(key, message, at)
	}
	s := a.services[serviceID]
	if s == nil {
		s = &service{backed: map[string]struct{}{}}
		a.services[serviceID] = s
	}
	backed := n.live[serviceID] > 0
	if _, was := s.backed[networkID]; was != backed {
		if backed {
			s.backed[networkID] = struct{}{}
		} else {
			delete(s.backed, networkID)
		}
		a.staleServices[serviceID] = struct{}{}
	}
}
