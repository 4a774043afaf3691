package placement

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// maxCauses bounds how many causes an explanation lists for each filter.
const maxCauses = 3

// Refusals says why nodes refuse the tasks of a request.
type Refusals struct {
	request *Request
	nodes   map[Filter]int
	causes  map[cause]tally
}

// Refusal says how many nodes a filter refuses, and why.
type Refusal struct {
	Filter Filter
	Nodes  int
	Reason string
}

// cause is one of the reasons for which a filter refuses nodes.
type cause struct {
	filter Filter
	// index is that of the constraint or port in the request, or a resource.
	index int
	// text is the node's condition or platform, or the name of a field.
	text string
	// shared says that the node itself has room, and that other nodes of its machine
	// hold what it would need.
	shared bool
}

// Resources, as the index of a cause.
const (
	indexCPU = iota
	indexMemory
)

// tally counts the nodes that refuse for a cause. Most is how much of a resource is
// free on the one that has most.
type tally struct {
	nodes int
	most  int64
}

// Refusals explains why the candidates refuse the request. A node counts for the
// first filter that refuses it, and there for every cause: for all constraints that
// it does not meet. This takes longer than [Request.Check]; it is for tasks that
// found no node.
func (r *Request) Refusals(candidates []Candidate) *Refusals {
	rs := &Refusals{request: r, nodes: map[Filter]int{}, causes: map[cause]tally{}}
	for _, c := range candidates {
		if f := r.Check(c.Node, c.Usage); f != FilterNone {
			rs.nodes[f]++
			rs.add(f, c)
		}
	}
	return rs
}

// Nodes returns how many nodes a filter refuses.
func (rs *Refusals) Nodes(f Filter) int { return rs.nodes[f] }

// count counts a node for a cause.
func (rs *Refusals) count(c cause, free int64) {
	t, ok := rs.causes[c]
	if t.nodes++; !ok || free > t.most {
		t.most = free
	}
	rs.causes[c] = t
}

// add counts all causes for which a filter refuses a node.
func (rs *Refusals) add(f Filter, c Candidate) {
	r := rs.request
	switch f {
	case FilterReady:
		rs.count(cause{filter: f, text: c.condition()}, 0)
	case FilterResources:
		rs.addResources(c)
	case FilterExecutor:
		text := ""
		if c.Offer(r.Kind) != nil {
			text = "unhealthy"
		}
		rs.count(cause{filter: f, text: text}, 0)
	case FilterCapability:
		for _, field := range r.runtime.ignoredBy(c.Offer(r.Kind)) {
			rs.count(cause{filter: f, text: field.json}, 0)
		}
	case FilterConstraints:
		for i, constraint := range r.Constraints {
			if !constraint.met(c.Node) {
				rs.count(cause{filter: f, index: i}, 0)
			}
		}
	case FilterPlatform:
		p := c.Description.GetPlatform()
		rs.count(cause{filter: f, text: platformName(p.GetOs(), p.GetArchitecture())}, 0)
	case FilterPorts:
		for i, p := range r.Ports {
			own := c.ports[portOf(p)] > 0
			if own || c.machine != nil && c.machine.ports[portOf(p)] > 0 {
				rs.count(cause{filter: f, index: i, shared: !own}, 0)
			}
		}
	default:
		rs.count(cause{filter: f}, 0)
	}
}

func (rs *Refusals) addResources(c Candidate) {
	has, shared := c.Description.GetResources(), c.Description.GetMachine().GetShared()
	add := func(index int, want, own, ofMachine int64) {
		if least := min(own, ofMachine); want > 0 && want > least {
			rs.count(cause{filter: FilterResources, index: index, shared: want <= own}, max(0, least))
		}
	}
	cpus, memory := int64(math.MaxInt64), int64(math.MaxInt64)
	if c.machine != nil {
		cpus = limit(shared.GetNanoCpus()) - c.machine.held.NanoCPUs
		memory = limit(shared.GetMemoryBytes()) - c.machine.held.MemoryBytes
	}
	add(indexCPU, rs.request.NanoCPUs, has.GetNanoCpus()-c.held.NanoCPUs, cpus)
	add(indexMemory, rs.request.MemoryBytes, has.GetMemoryBytes()-c.held.MemoryBytes, memory)
}

// condition says for people why the node is given no new tasks.
func (n *Node) condition() string {
	switch {
	case n.Removed:
		return "removed"
	case n.State == musterv1.NodeStatus_DOWN:
		return "down"
	case n.State == musterv1.NodeStatus_DISCONNECTED:
		return "disconnected"
	case n.State != musterv1.NodeStatus_READY:
		return "not ready"
	case n.Availability == musterv1.NodeSpec_DRAIN:
		return "drained"
	}
	return "paused"
}

// Filters returns the filters that refuse nodes, the one that refuses most first.
func (rs *Refusals) Filters() []Refusal {
	byFilter := map[Filter][]cause{}
	for c := range rs.causes {
		byFilter[c.filter] = append(byFilter[c.filter], c)
	}
	filters := slices.SortedFunc(maps.Keys(rs.nodes), func(a, b Filter) int {
		return cmp.Or(cmp.Compare(rs.nodes[b], rs.nodes[a]), cmp.Compare(a, b))
	})
	out := make([]Refusal, 0, len(filters))
	for _, f := range filters {
		out = append(out, Refusal{Filter: f, Nodes: rs.nodes[f], Reason: rs.list(byFilter[f])})
	}
	return out
}

// String says for people why no node is suitable.
func (rs *Refusals) String() string {
	if len(rs.nodes) == 0 {
		return "no suitable node (there are no nodes)"
	}
	var parts []string
	for _, f := range rs.Filters() {
		parts = append(parts, f.Reason)
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

// list says the causes of one filter, the one that counts most nodes first.
func (rs *Refusals) list(causes []cause) string {
	slices.SortFunc(causes, func(a, b cause) int {
		alone := func(c cause) int {
			if c.shared {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(rs.causes[b].nodes, rs.causes[a].nodes), cmp.Compare(a.index, b.index),
			cmp.Compare(a.text, b.text), cmp.Compare(alone(a), alone(b)))
	})
	var parts []string
	for _, c := range causes[:min(len(causes), maxCauses)] {
		parts = append(parts, rs.say(c))
	}
	if more := len(causes) - maxCauses; more > 0 {
		parts = append(parts, count(more, "more "+noun(causes[0].filter)))
	}
	return strings.Join(parts, "; ")
}

// noun names what a filter has several causes of.
func noun(f Filter) string {
	switch f {
	case FilterConstraints:
		return "constraint"
	case FilterPorts:
		return "host port"
	case FilterCapability:
		return "field"
	case FilterPlatform:
		return "platform"
	}
	return "reason"
}

// say says for people what a cause means, and for how many nodes.
func (rs *Refusals) say(c cause) string {
	r, t := rs.request, rs.causes[c]
	nodes := count(t.nodes, "node")
	where := "on " + nodes
	if c.shared {
		where = "on the machine of " + nodes
	}
	switch c.filter {
	case FilterReady:
		return nodes + " " + c.text
	case FilterResources:
		if c.index == indexCPU {
			want, free := formatCPUs(r.NanoCPUs), formatCPUs(t.most)
			return fmt.Sprintf("insufficient CPU %s: want %s, %s", where, want, atMost(t.most, free))
		}
		want, free := formatBytes(r.MemoryBytes), formatBytes(t.most)
		if want == free {
			want, free = count(r.MemoryBytes, "byte"), strconv.FormatInt(t.most, 10)
		}
		return fmt.Sprintf("insufficient memory %s: want %s, %s", where, want, atMost(t.most, free))
	case FilterExecutor:
		if c.text != "" {
			return fmt.Sprintf("executor for %q is not healthy %s", r.Kind, where)
		}
		return fmt.Sprintf("no executor for %q %s", r.Kind, where)
	case FilterPayload:
		return fmt.Sprintf("executor for %q does not accept the payload %s", r.Kind, where)
	case FilterCapability:
		return fmt.Sprintf("executor for %q does not act on field %s %s", r.Kind, c.text, where)
	case FilterConstraints:
		return fmt.Sprintf("constraint %s not met by %s", r.Constraints[c.index], nodes)
	case FilterPlatform:
		var want []string
		for _, p := range r.Platforms {
			want = append(want, platformName(p.Os, p.Architecture))
		}
		return fmt.Sprintf("platform is %s, not %s, %s", c.text, strings.Join(want, " or "), where)
	case FilterPorts:
		p := portOf(r.Ports[c.index])
		return fmt.Sprintf("host port %d/%s in use %s", p.number, strings.ToLower(p.protocol.String()), where)
	case FilterReplicas:
		return fmt.Sprintf("max replicas per node (%d) reached %s", r.MaxReplicas, where)
	}
	return fmt.Sprintf("%s %s", c.filter, where)
}

// count says a number of things.
func count[N int | int64](n N, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}

func atMost(free int64, text string) string {
	if free == 0 {
		return "none free"
	}
	return "at most " + text + " free"
}

func formatCPUs(nanoCPUs int64) string {
	return strconv.FormatFloat(float64(nanoCPUs)/1e9, 'f', -1, 64)
}

func formatBytes(bytes int64) string {
	return units.CustomSize("%.4g %s", float64(bytes), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

// platformName writes a platform as people do; a part that may be any is "*".
func platformName(os, arch string) string {
	return cmp.Or(strings.ToLower(os), "*") + "/" + cmp.Or(architecture(strings.ToLower(arch)), "*")
}
