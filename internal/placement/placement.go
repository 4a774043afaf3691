// Package placement decides whether a task fits a node, and says why not. It
// is the only place that does: the scheduler uses it to choose, to check again
// what it commits, and to explain; others use it for constraints and dry runs.
//
// A [Request] is what tasks of one spec ask of a node; a [Node] is what a node
// offers, and a [Usage] what its tasks hold of that. Filters are asked in the
// order of SwarmKit's (ready, resources, plugin, constraints, platform, host
// ports, replicas), and the first that refuses a node is the one that counts in
// an explanation. Each filter is a value that both checks and explains.
//
// [Resources] are amounts that tasks reserve. Whether they fit is decided here for
// the scheduler and for [Excess]: which tasks a node has no room for any longer.
//
// A node is judged by its first healthy executor of the task's kind: the schema
// of that executor must accept the payload of a generic runtime, and the executor
// must act on the fields that a container spec sets, if it says on which it does.
// What one node's executor says never counts for another node.
package placement

import (
	"sync/atomic"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/taskspec"
)

// ContainerKind is the runtime kind of a container.
const ContainerKind = "container"

// Node is a node as the scheduler sees it. Its parts are shared and must not be
// changed.
type Node struct {
	ID           string
	State        musterv1.NodeStatus_State
	Availability musterv1.NodeSpec_Availability
	Labels       map[string]string
	Description  *musterv1.NodeDescription
	Address      string
	// Removed says that an operator removed the node.
	Removed bool

	offers atomic.Pointer[[]Offer]
}

// NewNode joins what a node reports of itself with what an operator says of
// it. Either may be nil.
func NewNode(id string, reported *recordv1.NodeState, operator *recordv1.Node) *Node {
	n := &Node{
		ID: id, State: reported.GetState(), Description: reported.GetDescription(), Address: reported.GetAddress(),
		Availability: operator.GetSpec().GetAvailability(), Labels: operator.GetSpec().GetLabels(), Removed: operator.GetRemoved(),
	}
	if n.Availability == musterv1.NodeSpec_AVAILABILITY_UNSPECIFIED {
		n.Availability = musterv1.NodeSpec_ACTIVE
	}
	if reported == nil {
		n.State = musterv1.NodeStatus_UNKNOWN
	}
	return n
}

// MachineID returns the machine whose ports and resources the node shares with other
// nodes; empty if there is none. The tasks of a node that is down, or was removed,
// may have ended, and stand in the way of no other node.
//
// A worker states its machine itself, so the id counts only among workers that the
// dispatcher sees at the same address: a worker elsewhere cannot take the capacity of
// a machine by naming it.
func (n *Node) MachineID() string {
	id := n.Description.GetMachine().GetId()
	if id == "" || n.Removed || n.State == musterv1.NodeStatus_DOWN {
		return ""
	}
	return n.Address + "/" + id
}

// Request is what tasks of one service and one spec ask of a node.
type Request struct {
	Service     string
	Kind        string
	Constraints Constraints
	Platforms   []*musterv1.Platform
	MaxReplicas uint64
	// Resources are what a task reserves.
	Resources
	// Ports are the ports that a task publishes on its node, in host mode. The
	// node itself chooses the number of one without, which is not reserved here.
	Ports []*musterv1.PortConfig
	// Networks are the ids of the networks that a task is on.
	Networks []string

	networks []*Network
	// runtimes are what the main container and those of the group ask of an executor.
	runtimes []*runtime
	// files says that a container refers to a secret or config, and signals that it gets a
	// signal when that changes.
	files, signals bool
	// volumeDrivers are the volume drivers that the mounts name.
	volumeDrivers []string
	// filters are those that the request asks anything of, in their order. usageFilters
	// are those of them whose answer changes as tasks come to a node.
	filters, usageFilters []filter
}

// NewRequest reads a request from specs. Its error says which constraint cannot
// be read; such a spec is refused before it is stored.
func NewRequest(service string, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) (*Request, error) {
	constraints, err := ParseConstraints(task.GetPlacement().GetConstraints())
	if err != nil {
		return nil, err
	}
	r := &Request{
		Service: service, Kind: Kind(task), Constraints: constraints,
		Platforms: task.GetPlacement().GetPlatforms(), MaxReplicas: task.GetPlacement().GetMaxReplicas(),
		Resources: reservationsOf(task), runtimes: []*runtime{newRuntime("", task)},
	}
	r.files, r.signals = taskspec.HasFiles(task), taskspec.NeedsSignals(task)
	r.volumeDrivers = volumeDrivers(task)
	for _, g := range task.GetGroup() {
		r.runtimes = append(r.runtimes, newRuntime(g.GetName(), taskspec.OfGroup(g)))
	}
	for _, p := range endpoint.GetPorts() {
		if p.PublishMode == musterv1.PortConfig_HOST {
			r.Ports = append(r.Ports, p)
		}
	}
	r.setFilters()
	return r, nil
}

// Kind is the runtime kind of a task spec.
func Kind(task *musterv1.TaskSpec) string {
	if g := task.GetGeneric(); g != nil {
		return g.Kind
	}
	return ContainerKind
}

// Hold is what one task holds of its node.
type Hold struct {
	Service string
	Resources
	Ports []*musterv1.PortConfig
	// Networks are those on which it holds an address.
	Networks []string
	// Leaving says that the task was told to stop: it holds resources and ports
	// until it has ended, and is no longer one of its service's.
	Leaving bool
}

// Hold returns what a task of this request would hold.
func (r *Request) Hold() Hold {
	return Hold{Service: r.Service, Resources: r.Resources, Ports: r.Ports, Networks: r.Networks}
}

// Assignment writes a hold as the record that claims it.
func (r *Request) Assignment(slot uint64, assignedAt int64) *recordv1.Assignment {
	return &recordv1.Assignment{
		AssignedAt: assignedAt, NanoCpus: r.NanoCPUs, MemoryBytes: r.MemoryBytes, Ports: r.Ports, Slot: slot,
		Networks: r.Networks,
	}
}

// HoldOf reads a hold from the record that claims it.
func HoldOf(service string, a *recordv1.Assignment) Hold {
	return Hold{Service: service, Resources: Resources{a.GetNanoCpus(), a.GetMemoryBytes()}, Ports: a.GetPorts(), Networks: a.GetNetworks()}
}

// held is resources and ports that tasks hold.
type held struct {
	Resources
	ports map[port]int
}

// count counts a task in or out, n times.
func (h *held) count(t Hold, n int) {
	h.Resources = h.Add(t.times(n))
	for _, p := range t.Ports {
		if p.PublishedPort != 0 {
			h.countPort(portOf(p), n)
		}
	}
}

func (h *held) countPort(p port, n int) {
	if h.ports[p] += n; h.ports[p] == 0 {
		delete(h.ports, p)
	}
}

// add counts in, n times, all that others hold.
func (h *held) add(others *held, n int) {
	h.Resources = h.Add(others.times(n))
	for p, k := range others.ports {
		h.countPort(p, n*k)
	}
}

// Machine is what the tasks of all nodes on one machine hold of it.
type Machine struct{ held }

// NewMachine returns the usage of a machine without nodes.
func NewMachine() *Machine { return &Machine{held{ports: map[port]int{}}} }

// Usage is what the tasks of one node hold of it.
type Usage struct {
	held
	// Tasks is how many there are, those that are leaving left out.
	Tasks    int
	services map[string]int
	// machine is nil for a node that shares nothing with others.
	machine *Machine
	// networks is nil if addresses are not counted. uses is by network.
	networks *Networks
	uses     map[string]*networkUse
}

// port is what two tasks on one machine cannot share.
type port struct {
	protocol musterv1.PortConfig_Protocol
	number   uint32
}

func portOf(p *musterv1.PortConfig) port {
	return port{defaults.Protocol(p), p.PublishedPort}
}

// NewUsage returns the usage of an empty node that shares nothing.
func NewUsage() *Usage { return &Usage{services: map[string]int{}, held: held{ports: map[port]int{}}} }

// SetMachine makes the node one of a machine's: what its tasks hold counts there,
// too. Nil takes it off the machine that it was on.
func (u *Usage) SetMachine(m *Machine) {
	if u.machine == m {
		return
	}
	if u.machine != nil {
		u.machine.add(&u.held, -1)
	}
	if u.machine = m; m != nil {
		m.add(&u.held, 1)
	}
}

// Add counts a task in.
func (u *Usage) Add(h Hold) { u.count(h, 1) }

// Remove counts a task out.
func (u *Usage) Remove(h Hold) { u.count(h, -1) }

func (u *Usage) count(h Hold, n int) {
	u.held.count(h, n)
	if u.machine != nil {
		u.machine.count(h, n)
	}
	u.countNetworks(h, n)
	if !h.Leaving {
		u.Tasks += n
		if u.services[h.Service] += n; u.services[h.Service] == 0 {
			delete(u.services, h.Service)
		}
	}
}

// Service returns how many of the node's tasks are a service's, those that are
// leaving left out.
func (u *Usage) Service(id string) int { return u.services[id] }
