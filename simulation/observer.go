package simulation

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// observer sees every change of the records through a store without faults, and checks the
// transitions.
type observer struct {
	c      *cluster
	tables *state.Tables
	store  *store.Store

	mu sync.Mutex
	// tasks holds all present and former tasks.
	tasks map[string]*history
	// names holds the names of all present and former services.
	names map[string]string
	// live holds the tasks of each slot that should run, by the slot's key. overlaps holds
	// slots with more than one such task, until the judge has seen them.
	live     map[string]map[string]bool
	overlaps []overlap
	// taken holds blocks that were taken from nodes, until the judge is done with them.
	taken []*takenBlock
	turns *turns
	// dependents is nil unless services depend on others.
	dependents *dependents
}

// overlap lists several tasks of one slot that should have run at the same time.
type overlap struct {
	service, slot string
	tasks         []string
}

// history is what the observer knows of a present or former task.
type history struct {
	service  string
	slot     string
	desired  musterv1.TaskState
	observed musterv1.TaskState
	// settled is when the task started to run or ended.
	settled time.Time
	// nodes are the nodes that it is assigned to.
	nodes []string
}

// unsettled reports whether the task was not settled the given time ago.
func (h *history) unsettled(ago time.Duration) bool {
	return h.settled.IsZero() || time.Since(h.settled) < ago
}

func newObserver(c *cluster, space kv.KV) (*observer, error) {
	t := state.NewTables()
	s, err := store.New(store.Options{KV: space, Prefix: prefix}, t.Services, t.Specs, t.Names, t.Nodes, t.Clusters, t.Tasks, t.Rollouts,
		t.Endpoints, t.Assignments, t.Placements, t.NodeStates, t.Statuses, t.Configs, t.Blobs,
		t.Networks, t.NetworkStates, t.Blocks)
	if err != nil {
		return nil, err
	}
	o := &observer{c: c, tables: t, store: s, tasks: map[string]*history{}, names: map[string]string{}, live: map[string]map[string]bool{}}
	o.turns = newTurns(o)
	if c.script.Size.Dependencies {
		o.dependents = newDependents(o)
	}
	return o, nil
}

// run checks each snapshot until ctx ends.
func (o *observer) run(ctx context.Context) {
	var last *store.Snapshot
	for {
		next, err := o.store.Wait(ctx, last)
		if err != nil {
			return
		}
		o.advance(last, next)
		last = next
	}
}

func (o *observer) of(id string) *history {
	h := o.tasks[id]
	if h == nil {
		h = &history{}
		o.tasks[id] = h
	}
	return h
}

func (o *observer) advance(from, to *store.Snapshot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turns.advance(from, to)
	o.allocations(from, to)
	if o.dependents != nil {
		o.dependents.advance(from, to)
	}
	for ch := range o.tables.Services.Changes(from, to) {
		if ch.New != nil {
			o.names[ch.New.Key] = ch.New.Value.Spec.Name
		}
	}
	for ch := range o.tables.Tasks.Changes(from, to) {
		o.task(ch)
	}
	for ch := range o.tables.Tasks.Changes(from, to) {
		o.recordOverlap(ch)
	}
	for ch := range o.tables.Assignments.Changes(from, to) {
		o.assignment(ch)
	}
	for ch := range o.tables.Assignments.Changes(from, to) {
		_, _, id := state.SplitKey(ch.Key())
		if h := o.of(id); len(h.nodes) > 1 {
			o.c.violated("task %s is assigned to several nodes: %v", id, h.nodes)
		}
	}
	for ch := range o.tables.Statuses.Changes(from, to) {
		o.status(ch)
	}
	for ch := range o.tables.NodeStates.Changes(from, to) {
		o.nodeState(ch)
	}
	for ch := range o.tables.Rollouts.Changes(from, to) {
		o.rollout(ch)
	}
}

func (o *observer) rollout(ch store.Change[*recordv1.Rollout]) {
	if ch.New == nil {
		return
	}
	r := ch.New.Value
	o.c.journal.note("rollout %s: %v %s", short(ch.New.Key), r.State, r.Message)
	if ch.Old == nil || ch.Old.Value.State != r.State {
		o.c.report.count("rollout "+r.State.String(), 1)
	}
}

// short abbreviates an id.
func short(id string) string { return id[:min(len(id), 6)] }

func (o *observer) task(ch store.Change[*recordv1.Task]) {
	if ch.New == nil {
		_, _, id := state.SplitKey(ch.Old.Key)
		o.c.journal.note("task %s is removed", short(id))
		o.wants(ch.Old.Key, false)
		return
	}
	service, slot, id := state.SplitKey(ch.New.Key)
	o.wants(ch.New.Key, ch.New.Value.DesiredState == musterv1.TaskState_RUNNING)
	h := o.of(id)
	h.service, h.slot = service, slot
	t := ch.New.Value
	if t.DesiredState < h.desired {
		o.c.violated("the desired state of task %s fell from %v to %v", id, h.desired, t.DesiredState)
	}
	if t.DesiredState != h.desired {
		o.c.journal.note("task %s of %s in %s: desired %v (%s)", short(id), short(service), slot, t.DesiredState, t.Reason)
	}
	h.desired = t.DesiredState
}

// wants notes whether a task is to run.
func (o *observer) wants(key string, run bool) {
	service, slot, id := state.SplitKey(key)
	at := service + "/" + slot
	if !run {
		delete(o.live[at], id)
		return
	}
	if o.live[at] == nil {
		o.live[at] = map[string]bool{}
	}
	o.live[at][id] = true
}

// recordOverlap records which tasks of a slot should run, if there are several. It is called
// after all changes of a commit.
func (o *observer) recordOverlap(ch store.Change[*recordv1.Task]) {
	service, slot, _ := state.SplitKey(ch.Key())
	if ids := o.live[service+"/"+slot]; len(ids) > 1 {
		o.overlaps = append(o.overlaps, overlap{service, slot, slices.Sorted(maps.Keys(ids))})
	}
}

// takeOverlaps returns the overlaps since the last call.
func (o *observer) takeOverlaps() []overlap {
	o.mu.Lock()
	defer o.mu.Unlock()
	overlaps := o.overlaps
	o.overlaps = nil
	return overlaps
}

func (o *observer) assignment(ch store.Change[*recordv1.Assignment]) {
	if ch.Old != nil && ch.New == nil {
		node, _, id := state.SplitKey(ch.Old.Key)
		h := o.of(id)
		h.nodes = slices.DeleteFunc(h.nodes, func(n string) bool { return n == node })
		o.c.journal.note("task %s is no longer assigned to %s", short(id), node)
		return
	}
	node, _, id := state.SplitKey(ch.New.Key)
	h := o.of(id)
	if slices.Contains(h.nodes, node) {
		return
	}
	o.c.journal.note("task %s is assigned to %s", short(id), node)
	o.c.report.count("assignments", 1)
	h.nodes = append(h.nodes, node)
}

func (o *observer) status(ch store.Change[*recordv1.Status]) {
	if ch.New == nil {
		return
	}
	node, _, id := state.SplitKey(ch.New.Key)
	h := o.of(id)
	s := ch.New.Value
	if s.State < h.observed {
		o.c.violated("the observed state of task %s on %s fell from %v to %v", id, node, h.observed, s.State)
	}
	if s.State != h.observed {
		o.c.journal.note("task %s on %s is %v %s%s", short(id), node, s.State, s.Message, s.Error)
		if s.State == musterv1.TaskState_RUNNING {
			o.c.report.count("tasks that ran", 1)
		}
	}
	if h.observed = s.State; h.settled.IsZero() && s.State >= musterv1.TaskState_RUNNING {
		h.settled = time.Now()
	}
}

func (o *observer) nodeState(ch store.Change[*recordv1.NodeState]) {
	if ch.New == nil {
		o.c.journal.note("node %s is forgotten", ch.Old.Key)
		return
	}
	if ch.Old == nil || ch.Old.Value.State != ch.New.Value.State {
		o.c.journal.note("node %s is %v %s", ch.New.Key, ch.New.Value.State, ch.New.Value.Message)
	}
	if n := o.c.nodes[ch.New.Key]; n != nil {
		n.setLost(ch.New.Value.State != musterv1.NodeStatus_READY)
	}
}

// nameOf returns the name that a service has or had.
func (o *observer) nameOf(service string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.names[service]
}

// known returns what is known of a task.
func (o *observer) known(id string) history {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.tasks[id]; h != nil {
		return *h
	}
	return history{}
}
