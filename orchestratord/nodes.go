package orchestratord

import (
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// nodes is what is known of the nodes. It belongs to the loop's goroutine.
type nodes struct {
	tables *state.Tables
	byID   map[string]*placement.Node
	// conditions holds what becomes of tasks on each node.
	conditions map[string]plan.Condition
	// excess holds the tasks that their nodes have no room for, by node.
	excess map[string]map[string]struct{}
	// ids are those of all nodes in order; nil if they have to be gathered.
	ids []string
}

var _ plan.Cluster = (*nodes)(nil)

func newNodes(tables *state.Tables) *nodes {
	return &nodes{tables: tables, byID: map[string]*placement.Node{}, conditions: map[string]plan.Condition{}, excess: map[string]map[string]struct{}{}}
}

// advance moves to a newer snapshot. It returns the nodes whose tasks need a look, and those that have other resources than before, and reports
// whether anything has changed that a constraint or a condition can speak of.
func (ns *nodes) advance(from, to *store.Snapshot) (moved map[string]struct{}, resized []string, changed bool) {
	touched := map[string]struct{}{}
	for c := range ns.tables.Nodes.Changes(from, to) {
		touched[c.Key()] = struct{}{}
	}
	for c := range ns.tables.NodeStates.Changes(from, to) {
		touched[c.Key()] = struct{}{}
	}
	moved = map[string]struct{}{}
	for id := range touched {
		node, condition := readNode(ns.tables, to, id)
		if condition != ns.conditions[id] {
			moved[id] = struct{}{}
			changed = true
		}
		old := ns.byID[id]
		if (old == nil) != (node == nil) {
			ns.ids = nil
		}
		if node == nil {
			delete(ns.byID, id)
			delete(ns.conditions, id)
			delete(ns.excess, id)
			continue
		}
		if old == nil || !sameToConstraints(old, node) {
			moved[id] = struct{}{}
			changed = true
		}
		if old == nil || !proto.Equal(old.Description.GetResources(), node.Description.GetResources()) {
			resized = append(resized, id)
		}
		ns.byID[id], ns.conditions[id] = node, condition
	}
	return moved, resized, changed
}

// sameToConstraints reports whether no constraint can tell two states of a node
// apart.
func sameToConstraints(a, b *placement.Node) bool {
	return a.Address == b.Address && proto.Equal(
		&musterv1.NodeDescription{Hostname: a.Description.GetHostname(), Platform: a.Description.GetPlatform(), Labels: a.Description.GetLabels()},
		&musterv1.NodeDescription{Hostname: b.Description.GetHostname(), Platform: b.Description.GetPlatform(), Labels: b.Description.GetLabels()},
	) && proto.Equal(&musterv1.NodeSpec{Labels: a.Labels}, &musterv1.NodeSpec{Labels: b.Labels})
}

// readNode returns a node, nil if it is gone, and what becomes of its tasks.
func readNode(tables *state.Tables, r store.Reader, id string) (*placement.Node, plan.Condition) {
	reported, ok := tables.NodeStates.Get(r, id)
	operator, _ := tables.Nodes.Get(r, id)
	if !ok || operator.Value.GetRemoved() {
		return nil, plan.Gone
	}
	n := placement.NewNode(id, reported.Value, operator.Value)
	switch {
	case n.State == musterv1.NodeStatus_DOWN:
		return n, plan.Down
	case n.Availability == musterv1.NodeSpec_DRAIN:
		return n, plan.Drained
	case n.Availability == musterv1.NodeSpec_PAUSE:
		return n, plan.Paused
	default:
		return n, plan.Up
	}
}

// suits reports whether a task may stay on its node.
func (ns *nodes) suits(t *state.Task, constraints placement.Constraints) bool {
	n := ns.byID[t.NodeID]
	return n != nil && ns.conditions[t.NodeID].Keeps() && constraints.Match(n) && ns.Room(t)
}

// Condition says what becomes of tasks on a node.
func (ns *nodes) Condition(id string) plan.Condition { return ns.conditions[id] }

// Nodes yields the ids of all nodes, in order.
func (ns *nodes) Nodes() iter.Seq[string] {
	if ns.ids == nil {
		ns.ids = make([]string, 0, len(ns.byID))
		for id := range ns.byID {
			ns.ids = append(ns.ids, id)
		}
		slices.Sort(ns.ids)
	}
	return slices.Values(ns.ids)
}

// Matcher returns a function that reports whether a node meets constraints.
func (ns *nodes) Matcher(constraints []string) (func(string) bool, error) {
	cs, err := placement.ParseConstraints(constraints)
	if err != nil {
		return nil, fmt.Errorf("parse constraints: %w", err)
	}
	return func(id string) bool {
		n := ns.byID[id]
		return n != nil && cs.Match(n)
	}, nil
}
