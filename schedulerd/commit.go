package schedulerd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

// errRefused says that a node no longer has room for any task of a plan.
var errRefused = errors.New("no longer fits")

// mostPerCommit bounds the tasks of one atomic update.
const mostPerCommit = 500

// part is what is committed for one node at once.
type part struct {
	node     *node
	choices  []plan.Choice
	admitted *[]plan.Choice
}

// commit writes a plan that was decided at some time, each node's part on its own: if
// a node no longer has room, because another scheduler was faster, no other node's
// part waits. It returns after what time to reconcile again, 0 if all went well.
func (d *Daemon) commit(ctx context.Context, m *model, p *plan.Plan, decided time.Time) time.Duration {
	if p.Size == 0 {
		return 0
	}
	// Neighbours in the store go together.
	nodes := slices.SortedFunc(maps.Keys(p.Choices), func(a, b string) int { return m.node(a).compare(m.node(b)) })
	var fns []func(*store.Tx) error
	var parts []part
	for _, id := range nodes {
		for chunk := range slices.Chunk(p.Choices[id], mostPerCommit) {
			parts = append(parts, part{node: m.node(id), choices: chunk, admitted: new([]plan.Choice)})
		}
	}
	at := time.Now().UnixMilli()
	for _, x := range parts {
		fns = append(fns, func(tx *store.Tx) error { return d.commitNode(tx, m, x, at) })
	}
	again := time.Duration(0)
	for i, err := range d.store.UpdateAll(ctx, fns) {
		if d.finish(ctx, m, parts[i], err, decided) {
			again = retryAfter
		}
	}
	return again
}

// finish notes what became of a part, and reports whether some of its tasks must be
// decided on again.
func (d *Daemon) finish(ctx context.Context, m *model, x part, err error, decided time.Time) (again bool) {
	done := map[string]bool{}
	if errors.Is(err, store.ErrOutcomeUnknown) {
		// The tasks may have got their nodes, now or in a moment.
		for _, c := range x.choices {
			d.fences.Invalidate(store.ShardOf(c.Service))
		}
	}
	if err == nil {
		now := time.Now()
		for _, c := range *x.admitted {
			done[c.ID] = true
			d.record(c, x.node.ID, decided, now)
		}
		d.metrics.placed.Add(float64(len(done)))
	} else if ctx.Err() == nil && !errors.Is(err, fence.ErrFenced) && !errors.Is(err, errRefused) {
		d.log.Warn("failed to commit assignments", zap.String("node", x.node.ID), zap.Error(err))
	}
	for _, c := range x.choices {
		if done[c.ID] {
			continue
		}
		// Decide again on what is true then. If it was committed nevertheless,
		// its assignment shows, and it no longer waits.
		d.metrics.refused.Inc()
		m.release(x.node.ID, c.ID)
		m.pendingServices[c.Service] = struct{}{}
		again = true
	}
	return again
}

// record records for metrics and traces that a task has got its node.
func (d *Daemon) record(c plan.Choice, node string, decided, now time.Time) {
	if !c.Delayed {
		d.metrics.assigned.Observe(max(0, now.Sub(time.UnixMilli(c.Created)).Seconds()))
	}
	if len(c.Trace) > 0 {
		d.tracer.Begin(c.Trace, "assign task", decided, tracing.Task(c.ID), tracing.Node(node)).End(nil)
	}
}

// commitNode writes the assignments of one node, as far as they fit what is
// true now: it is run again, on fresh records, when another scheduler has
// written to the node's shard, or the node has changed. Otherwise a scheduler that
// hears late that a node is drained or down would assign to it again and again, as
// fast as the orchestrator takes its tasks away.
func (d *Daemon) commitNode(tx *store.Tx, m *model, x part, at int64) error {
	reported, _ := d.tables.NodeStates.Get(tx, x.node.ID)
	operator, _ := d.tables.Nodes.Get(tx, x.node.ID)
	target := placement.NewNode(x.node.ID, reported.Value, operator.Value)
	usage := placement.NewUsage()
	// The node's shard does not guard blocks. Networks that are overcommitted because of
	// that are handled by refuse.
	usage.CountAddressesAs(x.node.usage)
	d.count(tx, m, x.node.ID, usage)
	if shared := x.node.machine; shared != nil && len(shared.nodes) > 1 {
		machine := placement.NewMachine()
		usage.SetMachine(machine)
		for _, other := range slices.Sorted(maps.Keys(shared.nodes)) {
			if other != x.node.ID {
				u := placement.NewUsage()
				d.count(tx, m, other, u)
				u.SetMachine(machine)
			}
		}
	}
	*x.admitted = plan.Admit(target, usage, x.choices, func(service string) bool { return d.fences.Check(tx, store.ShardOf(service)) == nil })
	for _, c := range *x.admitted {
		key := state.NodeTaskKey(x.node.ID, c.Service, c.ID)
		if _, exists := d.tables.Assignments.Get(tx, key); !exists {
			d.tables.Assignments.Put(tx, key, c.Request.Assignment(c.Slot, at))
		}
	}
	if len(*x.admitted) == 0 {
		return errRefused
	}
	return nil
}

// count counts into a usage what a node's tasks hold in a transaction.
func (d *Daemon) count(tx *store.Tx, m *model, nodeID string, usage *placement.Usage) {
	for a := range d.tables.Assignments.Scan(tx, nodeID+"/") {
		// A task that has ended holds nothing. Its status is read without guard:
		// a task never comes back from its end, so an old status is merely cautious.
		if s, ok := d.tables.Statuses.Get(m.now, a.Key); ok && s.Value.State > musterv1.TaskState_RUNNING {
			continue
		}
		usage.Add(m.hold(&a))
	}
}

// sweep removes the assignments of tasks that are gone, and reports whether
// some could not be removed. The transaction has the last word on that: tables are
// followed each for itself, so a task may merely not have been seen yet.
func (d *Daemon) sweep(ctx context.Context, m *model, held map[int]bool) bool {
	var fns []func(*store.Tx) error
	for key := range m.stale {
		nodeID, service, id := state.SplitKey(key)
		if !held[store.ShardOf(service)] {
			continue
		}
		fns = append(fns, func(tx *store.Tx) error {
			a, ok := d.tables.Assignments.Get(tx, key)
			if !ok {
				return nil
			}
			if _, ok := d.tables.Tasks.Get(tx, state.AssignedTaskKey(nodeID, service, id, a.Value)); !ok {
				d.tables.Assignments.Delete(tx, key)
			}
			return nil
		})
	}
	failed := false
	for _, err := range d.store.UpdateAll(ctx, fns) {
		if err != nil {
			failed = true
			if ctx.Err() == nil {
				d.log.Warn("failed to remove the assignment of a task that is gone", zap.Error(err))
			}
		}
	}
	return failed
}
