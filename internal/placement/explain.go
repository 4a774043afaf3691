package placement

import (
	"cmp"
	"fmt"
	"maps"
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
	// byFilter has an element for each of the request's filters.
	byFilter []refused
}

// refused counts the nodes that one filter refuses, and its causes.
type refused struct {
	filter filter
	nodes  int
	causes map[cause]*tally
	count  func(c cause, free int64)
}

// Refusal says how many nodes a filter refuses, and why.
type Refusal struct {
	Filter Filter
	Nodes  int
	Reason string
}

// cause is one of the reasons for which a filter refuses nodes.
type cause struct {
	// index is that of the constraint or port in the request, or a resource.
	index int
	// text is the node's condition or platform, or the name of a field.
	text string
	// shared says that the node itself has room, and that other nodes of its machine
	// hold what it would need.
	shared bool
}

// tally counts the nodes that refuse for a cause. Most is how much of a resource is
// free on the one that has most.
type tally struct {
	nodes int
	most  int64
}

// count says how many nodes there are.
func (t tally) count() string { return count(t.nodes, "node") }

// where says on which nodes a cause is.
func (t tally) where(c cause) string {
	if c.shared {
		return "on the machine of " + t.count()
	}
	return "on " + t.count()
}

// Refusals explains why the candidates refuse the request. A node counts for the
// first filter that refuses it, and there for every cause: for all constraints that
// it does not meet. This takes longer than [Request.Check]; it is for tasks that
// found no node.
func (r *Request) Refusals(candidates []Candidate) *Refusals {
	rs := &Refusals{byFilter: make([]refused, len(r.filters))}
	for i, f := range r.filters {
		rs.byFilter[i] = newRefused(f)
	}
	for _, c := range candidates {
		for i, f := range r.filters {
			if !f.check(c.Node, c.Usage) {
				rs.byFilter[i].nodes++
				f.explain(c, rs.byFilter[i].count)
				break
			}
		}
	}
	return rs
}

func newRefused(f filter) refused {
	causes := map[cause]*tally{}
	return refused{filter: f, causes: causes, count: func(c cause, free int64) {
		t := causes[c]
		if t == nil {
			t = &tally{most: free}
			causes[c] = t
		}
		t.nodes++
		t.most = max(t.most, free)
	}}
}

// Nodes returns how many nodes a filter refuses.
func (rs *Refusals) Nodes(f Filter) int {
	for _, r := range rs.byFilter {
		if r.filter.name() == f {
			return r.nodes
		}
	}
	return 0
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
	var out []Refusal
	for _, r := range rs.byFilter {
		if r.nodes > 0 {
			out = append(out, Refusal{Filter: r.filter.name(), Nodes: r.nodes, Reason: r.reason()})
		}
	}
	slices.SortFunc(out, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(b.Nodes, a.Nodes), cmp.Compare(a.Filter, b.Filter))
	})
	return out
}

// String says for people why no node is suitable.
func (rs *Refusals) String() string {
	var parts []string
	for _, f := range rs.Filters() {
		parts = append(parts, f.Reason)
	}
	if len(parts) == 0 {
		return "no suitable node (there are no nodes)"
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

// reason says the causes, the one that counts most nodes first.
func (r *refused) reason() string {
	causes := slices.SortedFunc(maps.Keys(r.causes), func(a, b cause) int {
		alone := func(c cause) int {
			if c.shared {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(r.causes[b].nodes, r.causes[a].nodes), cmp.Compare(a.index, b.index),
			cmp.Compare(a.text, b.text), cmp.Compare(alone(a), alone(b)))
	})
	var parts []string
	for _, c := range causes[:min(len(causes), maxCauses)] {
		parts = append(parts, r.filter.describe(c, *r.causes[c]))
	}
	if more := len(causes) - maxCauses; more > 0 {
		parts = append(parts, count(more, "more "+r.filter.noun()))
	}
	return strings.Join(parts, "; ")
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
