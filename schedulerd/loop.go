package schedulerd

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// retryAfter is when to look again after a commit that failed, and mostRetryAfter
// when at the latest after many in a row. Any change of the store is looked at at
// once nevertheless.
const (
	retryAfter     = 50 * time.Millisecond
	mostRetryAfter = 5 * time.Second
)

// loop looks whenever the store or the shards have changed.
func (d *Daemon) loop(ctx context.Context) error {
	if err := d.store.Ready(ctx); err != nil {
		return err
	}
	m := newModel(d.tables)
	explained := newExplanations(d.tables, d.cfg.ExplainEvery)
	failures := 0
	for ctx.Err() == nil {
		again, failed := d.look(ctx, m, explained)
		failures++
		if !failed {
			failures = 0
		} else if failures > 1 {
			again = max(again, min(retryAfter<<min(failures-1, 10), mostRetryAfter))
		}
		d.wait(ctx, m.now, again)
	}
	return nil
}

// look brings the model up to date, places what waits, commits it, and returns
// when to look again although nothing changes (0 means not at all), and whether
// that is because something could not be written.
func (d *Daemon) look(ctx context.Context, m *model, explained *explanations) (again time.Duration, failed bool) {
	d.looking <- struct{}{}
	defer func() { <-d.looking }()
	began := time.Now()
	// In this order: the snapshot must not be older than the fence of a shard that
	// is held, for what others assigned before would not be in it.
	held, changed := d.shards()
	m.advance(d.store.Snapshot())
	// Services whose tasks waited for room are tried again when there is more of
	// it; all are when the shards have changed.
	services := m.fresh
	if m.roomier || changed {
		services = maps.Clone(m.fresh)
		for s := range m.waiting {
			services[s] = struct{}{}
		}
	}
	if changed {
		explained.addServices(m.now, services)
	}
	m.fresh, m.roomier = map[string]struct{}{}, false
	plan := newPlan(began)
	for _, service := range slices.Sorted(maps.Keys(services)) {
		if held[store.ShardOf(service)] {
			d.place(m, plan, explained, service)
		}
	}
	again = d.commit(ctx, m, plan)
	if d.sweep(ctx, m, held) {
		again = retryAfter
	}
	explained.keep(held)
	wait, err := explained.write(ctx, d.store, d.fence.check, time.Now())
	if err != nil && ctx.Err() == nil {
		d.log.Warn("explanations could not be written", zap.Error(err))
	}
	d.observe(m, held, plan, time.Since(began))
	failed = again != 0 || err != nil
	if again == 0 || wait > 0 && wait < again {
		again = wait
	}
	return again, failed
}

func (d *Daemon) observe(m *model, held map[int]bool, p *plan, took time.Duration) {
	waiting := 0
	for service, tasks := range m.waiting {
		if held[store.ShardOf(service)] {
			waiting += len(tasks)
		}
	}
	d.metrics.waiting.Set(float64(waiting - p.size))
	if p.size > 0 {
		d.metrics.lookTimes.Observe(took.Seconds())
		d.log.Debug("tasks were placed", zap.Int("tasks", p.size), zap.Int("nodes", len(p.nodes)), zap.Duration("took", took))
	}
}

// plan is what one look decided, by node.
type plan struct {
	nodes map[string][]choice
	size  int
	began time.Time
}

// choice is one task's place.
type choice struct {
	waiting
	service string
	request *placement.Request
	// taskKey is that of the task's record.
	taskKey string
}

func newPlan(began time.Time) *plan { return &plan{nodes: map[string][]choice{}, began: began} }

func (p *plan) add(node string, c choice) {
	p.nodes[node] = append(p.nodes[node], c)
	p.size++
}

// place decides where the waiting tasks of a service go. The model counts them
// in at once, so that later services find the room that is left.
func (d *Daemon) place(m *model, p *plan, explained *explanations, service string) {
	explained.begin(service)
	record, ok := m.tables.Services.Get(m.now, service)
	if !ok {
		return
	}
	for of, tasks := range groups(m.waiting[service]) {
		digest := of.Spec
		spec, ok := m.tables.Specs.Get(m.now, state.SpecKey([]byte(digest)))
		if !ok {
			// Tables are followed each for itself: the spec comes in a moment, and
			// brings nothing that wakes this service. So does a restart.
			m.fresh[service] = struct{}{}
			continue
		}
		request, err := placement.NewRequest(service, spec.Value.Task, state.Published(record.Value, []byte(of.Endpoint)))
		if err != nil {
			explained.say(service, digest, len(tasks), err.Error(), nil)
			continue
		}
		request.Remember(m.verdicts, digest)
		d.placeGroup(m, p, explained, request, digest, sureReplicas(record.Value.Spec, spec.Value.Task), tasks)
	}
}

// groups sorts tasks by what they are made of, those of one kind by slot.
func groups(tasks map[string]waiting) map[state.Origin][]waiting {
	alike := map[state.Origin][]waiting{}
	for _, t := range tasks {
		alike[t.origin] = append(alike[t.origin], t)
	}
	for _, g := range alike {
		slices.SortFunc(g, func(a, b waiting) int {
			return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.id, b.id))
		})
	}
	return alike
}

// placeGroup decides where waiting tasks of one kind go, of a service that is sure to
// have so many tasks.
func (d *Daemon) placeGroup(m *model, p *plan, explained *explanations, r *placement.Request, digest string, replicas int, tasks []waiting) {
	choose := func(n *node, t waiting) {
		c := choice{waiting: t, service: r.Service, request: r, taskKey: state.TaskKey(r.Service, t.slot, t.node, t.id)}
		n.holds[t.id] = r.Hold()
		p.add(n.ID, c)
	}
	left := 0
	var free []waiting
	var refusing []placement.Candidate
	for _, t := range tasks {
		if t.node == "" {
			free = append(free, t)
			continue
		}
		n := m.node(t.node)
		if r.Check(n.Node, n.usage) != placement.FilterNone {
			refusing = append(refusing, placement.Candidate{Node: n.Node, Usage: n.usage})
			left++
			m.delay(r.Service, t)
			continue
		}
		n.usage.Add(r.Hold())
		choose(n, t)
	}
	if len(free) > 0 {
		candidates := make([]placement.Candidate, 0, len(m.nodes))
		avoided := m.faults.avoided(specKey{r.Service, digest}, p.began)
		// Of nodes that are alike neighbours in the store are taken: their tasks share
		// pages. Schedulers that place different services begin at different shards, where
		// they are not in each other's way.
		for n := range m.inOrder(store.ShardOf(r.Service)) {
			candidates = append(candidates, placement.Candidate{Node: n.Node, Usage: n.usage, Avoid: avoided[n.ID]})
		}
		next := 0
		take := func(c placement.Candidate) {
			choose(m.nodes[c.ID], free[next])
			next++
		}
		if total := replicas - assigned(r.Service, candidates); worthFilling(len(candidates), len(free), total) {
			for _, c := range fill(r, candidates, len(free), total) {
				take(c)
			}
		}
		r.Spread(candidates, len(free)-next, take)
		for _, t := range free[next:] {
			left++
			m.delay(r.Service, t)
		}
		if next < len(free) {
			refusing = append(refusing, candidates...)
		}
	}
	if left > 0 {
		refusals := r.Refusals(refusing)
		explained.say(r.Service, digest, left, refusals.String(), counts(refusals))
	}
}

// errRefused says that a node has no room for any task of a plan any more.
var errRefused = errors.New("no longer fits")

// commit writes a plan, each node's part on its own: what one node has no room
// for any more, because another scheduler was faster, keeps nobody else's
// waiting. It returns when to look again, 0 if all went well.
func (d *Daemon) commit(ctx context.Context, m *model, p *plan) time.Duration {
	if p.size == 0 {
		return 0
	}
	// Neighbours in the store go together.
	nodes := slices.SortedFunc(maps.Keys(p.nodes), func(a, b string) int { return m.node(a).compare(m.node(b)) })
	var fns []func(*store.Tx) error
	var parts []part
	for _, id := range nodes {
		for chunk := range slices.Chunk(p.nodes[id], mostPerCommit) {
			parts = append(parts, part{node: m.node(id), choices: chunk, committed: new([]choice)})
		}
	}
	for _, x := range parts {
		fns = append(fns, func(tx *store.Tx) error { return d.commitNode(tx, m, x) })
	}
	again := time.Duration(0)
	for i, err := range d.store.UpdateAll(ctx, fns) {
		done := map[string]bool{}
		if errors.Is(err, store.ErrOutcomeUnknown) {
			// The tasks may have got their nodes, now or in a moment.
			for _, c := range parts[i].choices {
				d.fence.invalidate(store.ShardOf(c.service))
			}
		}
		if err == nil {
			now := time.Now()
			for _, c := range *parts[i].committed {
				done[c.id] = true
				d.tell(c, parts[i].node.ID, p.began, now)
			}
			d.metrics.placed.Add(float64(len(done)))
		} else if ctx.Err() == nil && !errors.Is(err, errFenced) && !errors.Is(err, errRefused) {
			d.log.Warn("placements could not be committed", zap.String("node", parts[i].node.ID), zap.Error(err))
		}
		for _, c := range parts[i].choices {
			if done[c.id] {
				continue
			}
			// Decide again on what is true then. If it was committed all the same,
			// its assignment shows, and it no longer waits.
			d.metrics.refused.Inc()
			m.release(parts[i].node.ID, c.id)
			m.fresh[c.service] = struct{}{}
			again = retryAfter
		}
	}
	return again
}

// tell tells metrics and traces of a task that has got its node.
func (d *Daemon) tell(c choice, node string, began, now time.Time) {
	if !c.delayed {
		d.metrics.assigned.Observe(max(0, now.Sub(time.UnixMilli(c.created)).Seconds()))
	}
	if len(c.trace) > 0 {
		d.tracer.Begin(c.trace, "assign task", began, tracing.Task(c.id), tracing.Node(node)).End(nil)
	}
}

// mostPerCommit bounds the tasks of one atomic update.
const mostPerCommit = 500

// part is what is committed for one node at once.
type part struct {
	node      *node
	choices   []choice
	committed *[]choice
}

// commitNode writes the assignments of one node, as far as they fit what is
// true now: it is run again, on fresh records, when another scheduler has
// written to the node's shard, or the node has changed. A scheduler that hears late
// that a node is drained or down would else assign to it again and again, as fast as
// the orchestrator takes its tasks away.
func (d *Daemon) commitNode(tx *store.Tx, m *model, x part) error {
	*x.committed = (*x.committed)[:0]
	reported, _ := d.tables.NodeStates.Get(tx, x.node.ID)
	operator, _ := d.tables.Nodes.Get(tx, x.node.ID)
	target := placement.NewNode(x.node.ID, reported.Value, operator.Value)
	usage := d.usage(tx, m, x.node.ID)
	if shared := x.node.machine; shared != nil && len(shared.nodes) > 1 {
		machine := placement.NewMachine()
		usage.SetMachine(machine)
		for _, other := range slices.Sorted(maps.Keys(shared.nodes)) {
			if other != x.node.ID {
				d.usage(tx, m, other).SetMachine(machine)
			}
		}
	}
	fenced := map[string]bool{}
	for _, c := range x.choices {
		ok, seen := fenced[c.service]
		if !seen {
			ok = d.fence.check(tx, c.service) == nil
			fenced[c.service] = ok
		}
		if !ok || c.request.Check(target, usage) != placement.FilterNone {
			continue
		}
		key := state.NodeTaskKey(x.node.ID, c.service, c.id)
		if _, exists := d.tables.Assignments.Get(tx, key); !exists {
			d.tables.Assignments.Put(tx, key, c.request.Assignment(c.slot, time.Now().UnixMilli()))
		}
		usage.Add(c.request.Hold())
		*x.committed = append(*x.committed, c)
	}
	if len(*x.committed) == 0 {
		return errRefused
	}
	return nil
}

// usage returns what a node's tasks hold in a transaction.
func (d *Daemon) usage(tx *store.Tx, m *model, nodeID string) *placement.Usage {
	usage := placement.NewUsage()
	for a := range d.tables.Assignments.Scan(tx, nodeID+"/") {
		// A task that has ended holds nothing. Its status is read without guard:
		// it never comes back from its end, so an old one is merely cautious.
		if s, ok := d.tables.Statuses.Get(m.now, a.Key); ok && s.Value.State > musterv1.TaskState_RUNNING {
			continue
		}
		usage.Add(m.hold(&a))
	}
	return usage
}

// sweep removes the assignments of tasks that are gone, and reports whether
// some could not be. The transaction has the last word on that: tables are
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
				d.log.Warn("assignment of a task that is gone could not be removed", zap.Error(err))
			}
		}
	}
	return failed
}
