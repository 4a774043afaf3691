package placement

import (
	"cmp"
	"fmt"
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

// Reason says for people what it means that a filter refused a node.
func (f Filter) Reason(r *Request) string {
	switch f {
	case FilterReady:
		return "node is not available for new tasks"
	case FilterResources:
		return "insufficient resources"
	case FilterExecutor:
		return fmt.Sprintf("no healthy executor for %q", r.Kind)
	case FilterPayload:
		return fmt.Sprintf("executor for %q does not accept the payload", r.Kind)
	case FilterCapability:
		return fmt.Sprintf("executor for %q does not act on every field of the spec", r.Kind)
	case FilterConstraints:
		return "scheduling constraints not satisfied"
	case FilterPlatform:
		return "unsupported platform"
	case FilterPorts:
		return "host-mode port already in use"
	case FilterReplicas:
		return "max replicas per node reached"
	}
	return ""
}

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
	limit := func(shared int64) int64 {
		if shared == 0 {
			return math.MaxInt64
		}
		return shared
	}
	shared := n.Description.GetMachine().GetShared()
	return r.fitsBeside(&u.machine.held, limit(shared.GetNanoCpus()), limit(shared.GetMemoryBytes()))
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

// Refusals counts which filters refused how many nodes.
type Refusals map[Filter]int

// Explain says for people why no node is suitable, the commonest reason first.
func (rs Refusals) Explain(r *Request) string {
	if len(rs) == 0 {
		return "no suitable node (there are no nodes)"
	}
	parts := make([]string, 0, len(rs))
	for _, f := range rs.Sorted() {
		unit := "nodes"
		if rs[f] == 1 {
			unit = "node"
		}
		parts = append(parts, fmt.Sprintf("%s on %d %s", f.Reason(r), rs[f], unit))
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

// Sorted returns the filters, the one that refused most nodes first.
func (rs Refusals) Sorted() []Filter {
	filters := make([]Filter, 0, len(rs))
	for f := range rs {
		filters = append(filters, f)
	}
	slices.SortFunc(filters, func(a, b Filter) int {
		return cmp.Or(cmp.Compare(rs[b], rs[a]), cmp.Compare(a, b))
	})
	return filters
}
