package placement

import (
	"fmt"
	"math"
	"slices"
	"strconv"
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
	FilterGroups      Filter = "groups"
	FilterFiles       Filter = "files"
	FilterVolumes     Filter = "volume-drivers"
	FilterNetworks    Filter = "networks"
	FilterConstraints Filter = "constraints"
	FilterPlatform    Filter = "platform"
	FilterPorts       Filter = "host-ports"
	FilterReplicas    Filter = "max-replicas"
)

// filter is one rule by which nodes refuse the tasks of a request.
type filter interface {
	name() Filter
	// applies reports whether the request asks anything of nodes by this rule.
	applies() bool
	// check reports whether a node takes one more task.
	check(n *Node, u *Usage) bool
	// explain counts every cause for which a node refuses that check refused.
	explain(c Candidate, count func(c cause, free int64))
	// describe says for people what a cause means, and on which nodes.
	describe(c cause, t tally) string
	// noun is what there may be several causes of.
	noun() string
}

// setFilters chooses the filters of a request.
func (r *Request) setFilters() {
	choose := func(filters ...filter) []filter {
		return slices.Clip(slices.DeleteFunc(filters, func(f filter) bool { return !f.applies() }))
	}
	r.filters = choose(
		readyFilter{}, resourceFilter{r}, executorFilter{r}, payloadFilter{r}, capabilityFilter{r},
		groupFilter{r}, fileFilter{r}, volumeFilter{r}, networkFilter{r}, constraintFilter{r}, platformFilter{r}, portFilter{r}, replicaFilter{r},
	)
	r.usageFilters = choose(resourceFilter{r}, networkFilter{r}, portFilter{r}, replicaFilter{r})
}

// Check returns the first filter that refuses the node, FilterNone if the task
// fits.
func (r *Request) Check(n *Node, u *Usage) Filter { return check(r.filters, n, u) }

// CheckUsage asks only those filters whose answer changes as tasks come to a
// node, for one that passed all before.
func (r *Request) CheckUsage(n *Node, u *Usage) Filter { return check(r.usageFilters, n, u) }

func check(filters []filter, n *Node, u *Usage) Filter {
	for _, f := range filters {
		if !f.check(n, u) {
			return f.name()
		}
	}
	return FilterNone
}

// readyFilter refuses nodes that are given no new tasks.
type readyFilter struct{}

func (readyFilter) name() Filter  { return FilterReady }
func (readyFilter) noun() string  { return "reason" }
func (readyFilter) applies() bool { return true }

func (readyFilter) check(n *Node, _ *Usage) bool { return n.Available() }

func (readyFilter) explain(c Candidate, count func(cause, int64)) {
	count(cause{text: c.condition()}, 0)
}

func (readyFilter) describe(c cause, t tally) string { return t.count() + " " + c.text }

// resourceFilter refuses nodes that lack the resources that a task reserves, and
// nodes whose machine lacks those that it shares.
type resourceFilter struct{ *Request }

func (resourceFilter) name() Filter    { return FilterResources }
func (resourceFilter) noun() string    { return "reason" }
func (f resourceFilter) applies() bool { return f.Resources != Resources{} }

func (f resourceFilter) check(n *Node, u *Usage) bool {
	return f.Fits(n.Capacity().Sub(u.Resources)) && (u.machine == nil || f.Fits(freeOnMachine(n, u)))
}

// freeOnMachine returns what the nodes of a machine have left in all.
func freeOnMachine(n *Node, u *Usage) Resources {
	shared := n.Description.GetMachine().GetShared()
	if shared == nil || u.machine == nil {
		return Resources{math.MaxInt64, math.MaxInt64}
	}
	return Resources{limit(shared.NanoCpus), limit(shared.MemoryBytes)}.Sub(u.machine.Resources)
}

// limit returns how much of a resource the nodes of a machine have in all. 0 means
// that they do not share it.
func limit(shared int64) int64 {
	if shared == 0 {
		return math.MaxInt64
	}
	return shared
}

// Resources, as the index of a cause.
const (
	indexCPU = iota
	indexMemory
)

func (f resourceFilter) explain(c Candidate, count func(cause, int64)) {
	own, machine := c.Capacity().Sub(c.Resources), freeOnMachine(c.Node, c.Usage)
	add := func(index int, want, own, machine int64) {
		if least := min(own, machine); want > 0 && want > least {
			count(cause{index: index, shared: want <= own}, max(0, least))
		}
	}
	add(indexCPU, f.NanoCPUs, own.NanoCPUs, machine.NanoCPUs)
	add(indexMemory, f.MemoryBytes, own.MemoryBytes, machine.MemoryBytes)
}

func (f resourceFilter) describe(c cause, t tally) string {
	if c.index == indexCPU {
		want, free := formatCPUs(f.NanoCPUs), formatCPUs(t.most)
		return fmt.Sprintf("insufficient CPU %s: want %s, %s", t.where(c), want, atMost(t.most, free))
	}
	want, free := formatBytes(f.MemoryBytes), formatBytes(t.most)
	if want == free {
		want, free = count(f.MemoryBytes, "byte"), strconv.FormatInt(t.most, 10)
	}
	return fmt.Sprintf("insufficient memory %s: want %s, %s", t.where(c), want, atMost(t.most, free))
}

// executorFilter refuses nodes without a healthy executor of the task's kind.
type executorFilter struct{ *Request }

func (executorFilter) name() Filter  { return FilterExecutor }
func (executorFilter) noun() string  { return "reason" }
func (executorFilter) applies() bool { return true }

func (f executorFilter) check(n *Node, _ *Usage) bool {
	o := n.Offer(f.Kind)
	return o != nil && o.Healthy()
}

func (f executorFilter) explain(c Candidate, count func(cause, int64)) {
	text := ""
	if c.Offer(f.Kind) != nil {
		text = "unhealthy"
	}
	count(cause{text: text}, 0)
}

func (f executorFilter) describe(c cause, t tally) string {
	if c.text != "" {
		return fmt.Sprintf("executor for %q is not healthy %s", f.Kind, t.where(c))
	}
	return fmt.Sprintf("no executor for %q %s", f.Kind, t.where(c))
}

// payloadFilter refuses nodes whose executor does not accept the payload of a generic
// runtime.
type payloadFilter struct{ *Request }

func (payloadFilter) name() Filter    { return FilterPayload }
func (payloadFilter) noun() string    { return "reason" }
func (f payloadFilter) applies() bool { return f.Kind != ContainerKind }

func (f payloadFilter) check(n *Node, _ *Usage) bool {
	return f.checkRuntimes(n.Offer(f.Kind)) == FilterNone
}

func (payloadFilter) explain(_ Candidate, count func(cause, int64)) { count(cause{}, 0) }

func (f payloadFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("executor for %q does not accept the payload %s", f.Kind, t.where(c))
}

// capabilityFilter refuses nodes whose executor does not act on fields that a
// container spec sets.
type capabilityFilter struct{ *Request }

func (capabilityFilter) name() Filter { return FilterCapability }
func (capabilityFilter) noun() string { return "field" }
func (f capabilityFilter) applies() bool {
	return slices.ContainsFunc(f.runtimes, func(c *runtime) bool { return len(c.fields) > 0 })
}

func (f capabilityFilter) check(n *Node, _ *Usage) bool {
	return f.checkRuntimes(n.Offer(f.Kind)) == FilterNone
}

func (f capabilityFilter) explain(c Candidate, count func(cause, int64)) {
	for _, container := range f.runtimes {
		for _, field := range container.ignoredBy(c.Offer(f.Kind)) {
			text := field.json
			if container.name != "" {
				text += fmt.Sprintf(" of container %q", container.name)
			}
			count(cause{text: text}, 0)
		}
	}
}

func (f capabilityFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("executor for %q does not act on field %s %s", f.Kind, c.text, t.where(c))
}

// GroupsCapability is the capability of an executor that runs task groups.
const GroupsCapability = "groups"

// groupFilter refuses nodes whose executor, or whose worker, cannot run task groups.
type groupFilter struct{ *Request }

func (groupFilter) name() Filter    { return FilterGroups }
func (groupFilter) noun() string    { return "reason" }
func (f groupFilter) applies() bool { return len(f.runtimes) > 1 }

func (f groupFilter) check(n *Node, _ *Usage) bool {
	return slices.Contains(n.Offer(f.Kind).Capabilities, GroupsCapability)
}

func (groupFilter) explain(_ Candidate, count func(cause, int64)) { count(cause{}, 0) }

func (f groupFilter) describe(_ cause, t tally) string {
	return fmt.Sprintf("executor for %q cannot run task groups on %s", f.Kind, t.count())
}

// Capabilities of executors for tasks with secrets and configs.
const (
	// FilesCapability is that of an executor that gives tasks their secrets and configs.
	FilesCapability = "files"
	// SignalsCapability is that of an executor that can signal tasks.
	SignalsCapability = "signals"
)

// fileFilter refuses nodes whose executor, or whose worker, cannot give tasks secrets and
// configs, or cannot signal them when these change.
type fileFilter struct{ *Request }

func (fileFilter) name() Filter    { return FilterFiles }
func (fileFilter) noun() string    { return "reason" }
func (f fileFilter) applies() bool { return f.files }

func (f fileFilter) check(n *Node, _ *Usage) bool { return f.lacks(n.Offer(f.Kind)) == "" }

// lacks returns what an executor cannot do for the tasks, or "".
func (f fileFilter) lacks(o *Offer) string {
	switch {
	case !slices.Contains(o.Capabilities, FilesCapability):
		return "give tasks secrets and configs"
	case f.signals && !slices.Contains(o.Capabilities, SignalsCapability):
		return "signal tasks when a secret or config changes"
	}
	return ""
}

func (f fileFilter) explain(c Candidate, count func(cause, int64)) {
	count(cause{text: f.lacks(c.Node.Offer(f.Kind))}, 0)
}

func (f fileFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("executor for %q, or its worker, cannot %s %s", f.Kind, c.text, t.where(c))
}

// constraintFilter refuses nodes that do not meet all constraints.
type constraintFilter struct{ *Request }

func (constraintFilter) name() Filter    { return FilterConstraints }
func (constraintFilter) noun() string    { return "constraint" }
func (f constraintFilter) applies() bool { return len(f.Constraints) > 0 }

func (f constraintFilter) check(n *Node, _ *Usage) bool { return f.Constraints.Match(n) }

func (f constraintFilter) explain(c Candidate, count func(cause, int64)) {
	for i, constraint := range f.Constraints {
		if !constraint.met(c.Node) {
			count(cause{index: i}, 0)
		}
	}
}

func (f constraintFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("constraint %s not met by %s", f.Constraints[c.index], t.count())
}

// platformFilter refuses nodes of other platforms than those that are asked for.
type platformFilter struct{ *Request }

func (platformFilter) name() Filter    { return FilterPlatform }
func (platformFilter) noun() string    { return "platform" }
func (f platformFilter) applies() bool { return len(f.Platforms) > 0 }

func (f platformFilter) check(n *Node, _ *Usage) bool {
	has := n.Description.GetPlatform()
	return slices.ContainsFunc(f.Platforms, func(p *musterv1.Platform) bool {
		return (p.Os == "" || strings.EqualFold(p.Os, has.GetOs())) &&
			(p.Architecture == "" || architecture(strings.ToLower(p.Architecture)) == architecture(has.GetArchitecture()))
	})
}

func (platformFilter) explain(c Candidate, count func(cause, int64)) {
	p := c.Description.GetPlatform()
	count(cause{text: platformName(p.GetOs(), p.GetArchitecture())}, 0)
}

func (f platformFilter) describe(c cause, t tally) string {
	var want []string
	for _, p := range f.Platforms {
		want = append(want, platformName(p.Os, p.Architecture))
	}
	return fmt.Sprintf("platform is %s, not %s, %s", c.text, strings.Join(want, " or "), t.where(c))
}

// portFilter refuses nodes on which a host port is taken, or on whose machine.
type portFilter struct{ *Request }

func (portFilter) name() Filter    { return FilterPorts }
func (portFilter) noun() string    { return "host port" }
func (f portFilter) applies() bool { return len(f.Ports) > 0 }

func (f portFilter) check(_ *Node, u *Usage) bool {
	ports := u.ports
	if u.machine != nil {
		ports = u.machine.ports
	}
	return !slices.ContainsFunc(f.Ports, func(p *musterv1.PortConfig) bool { return ports[portOf(p)] > 0 })
}

func (f portFilter) explain(c Candidate, count func(cause, int64)) {
	for i, p := range f.Ports {
		own := c.ports[portOf(p)] > 0
		if own || c.machine != nil && c.machine.ports[portOf(p)] > 0 {
			count(cause{index: i, shared: !own}, 0)
		}
	}
}

func (f portFilter) describe(c cause, t tally) string {
	p := portOf(f.Ports[c.index])
	return fmt.Sprintf("host port %d/%s in use %s", p.number, strings.ToLower(p.protocol.String()), t.where(c))
}

// replicaFilter refuses nodes that have as many tasks of the service as one node may.
type replicaFilter struct{ *Request }

func (replicaFilter) name() Filter    { return FilterReplicas }
func (replicaFilter) noun() string    { return "reason" }
func (f replicaFilter) applies() bool { return f.MaxReplicas > 0 }

func (f replicaFilter) check(_ *Node, u *Usage) bool {
	return uint64(u.Service(f.Service)) < f.MaxReplicas
}

func (replicaFilter) explain(_ Candidate, count func(cause, int64)) { count(cause{}, 0) }

func (f replicaFilter) describe(c cause, t tally) string {
	return fmt.Sprintf("max replicas per node (%d) reached %s", f.MaxReplicas, t.where(c))
}
