package placement

import (
	"math"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Filter names what refuses a node. It is part of explanations and metrics.
type Filter string

// The filters, in the order in which they are asked.
const (
	FilterNone        Filter = ""
	FilterReady       Filter = "ready"
	FilterResources   Filter = "resources"
	FilterExecutor    Filter = "executor"
	FilterPayload     Filter = "payload"
	FilterCapability  Filter = "capabilities"
	FilterConstraints Filter = "constraints"
	FilterPlatform    Filter = "platform"
	FilterPorts       Filter = "host-ports"
	FilterReplicas    Filter = "max-replicas"
)

// Check returns the first filter that refuses the node, FilterNone if the task
// fits.
func (r *Request) Check(n *Node, u *Usage) Filter {
	switch {
	case !n.Available():
		return FilterReady
	case !r.fitsResources(n, u):
		return FilterResources
	}
	if f := r.checkExecutor(n); f != FilterNone {
		return f
	}
	switch {
	case !r.Constraints.Match(n):
		return FilterConstraints
	case !r.fitsPlatform(n):
		return FilterPlatform
	case !r.fitsPorts(u):
		return FilterPorts
	case r.MaxReplicas > 0 && uint64(u.Service(r.Service)) >= r.MaxReplicas:
		return FilterReplicas
	}
	return FilterNone
}

// CheckUsage asks only those filters whose answer changes as tasks come to a
// node, for one that passed all before.
func (r *Request) CheckUsage(n *Node, u *Usage) Filter {
	switch {
	case !r.fitsResources(n, u):
		return FilterResources
	case !r.fitsPorts(u):
		return FilterPorts
	case r.MaxReplicas > 0 && uint64(u.Service(r.Service)) >= r.MaxReplicas:
		return FilterReplicas
	}
	return FilterNone
}

// fitsResources reports whether the node has the resources, and its machine those
// of them that it shares with other nodes.
func (r *Request) fitsResources(n *Node, u *Usage) bool {
	has := n.Description.GetResources()
	if !r.fitsBeside(&u.held, has.GetNanoCpus(), has.GetMemoryBytes()) {
		return false
	}
	if u.machine == nil {
		return true
	}
	shared := n.Description.GetMachine().GetShared()
	return r.fitsBeside(&u.machine.held, limit(shared.GetNanoCpus()), limit(shared.GetMemoryBytes()))
}

// limit returns how much of a resource the nodes of a machine have in all. 0 means
// that they do not share it.
func limit(shared int64) int64 {
	if shared == 0 {
		return math.MaxInt64
	}
	return shared
}

// fitsBeside reports whether a task of the request fits beside what others hold.
func (r *Request) fitsBeside(others *held, nanoCPUs, memoryBytes int64) bool {
	return (r.NanoCPUs == 0 || r.NanoCPUs <= nanoCPUs-others.NanoCPUs) &&
		(r.MemoryBytes == 0 || r.MemoryBytes <= memoryBytes-others.MemoryBytes)
}

func (r *Request) fitsPlatform(n *Node) bool {
	if len(r.Platforms) == 0 {
		return true
	}
	has := n.Description.GetPlatform()
	return slices.ContainsFunc(r.Platforms, func(p *musterv1.Platform) bool {
		return (p.Os == "" || strings.EqualFold(p.Os, has.GetOs())) &&
			(p.Architecture == "" || architecture(strings.ToLower(p.Architecture)) == architecture(has.GetArchitecture()))
	})
}

// fitsPorts reports whether the ports are free on the node, and on its machine.
func (r *Request) fitsPorts(u *Usage) bool {
	ports := u.ports
	if u.machine != nil {
		ports = u.machine.ports
	}
	return !slices.ContainsFunc(r.Ports, func(p *musterv1.PortConfig) bool { return ports[portOf(p)] > 0 })
}
