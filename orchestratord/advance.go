package orchestratord

import (
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// advance moves to a newer snapshot, and asks for a look at each service for
// which something has changed that can matter. Most changes cannot: that a task
// was assigned, or has begun to run, is none of the orchestrator's business.
func (l *loop) advance(to *store.Snapshot) {
	from := l.follower.Snapshot()
	if from == to {
		return
	}
	delta := l.follower.Advance(to)
	moved, resized, changed := l.nodes.advance(from, to)
	l.findExcess(resized, delta.Tasks)
	l.dependencies.advance(from, to)

	for id := range delta.Services {
		l.know(id)
	}
	for c := range l.d.tables.Services.Changes(from, to) {
		l.mark(l.know(c.Key()))
	}
	for c := range l.d.tables.Rollouts.Changes(from, to) {
		delta.Services[c.Key()] = struct{}{}
		l.mark(l.know(c.Key()))
	}
	l.removeTasks(from, to)
	l.markDependents(from, to, delta.Services)
	for id := range delta.Tasks {
		t, ok := l.follower.Task(id)
		if !ok {
			continue
		}
		if s := l.know(t.ServiceID); s.tasks != nil && l.matters(s, s.tasks.Set(t), t) {
			l.mark(s)
		}
	}

	l.limitChanged(to)
	for range l.d.tables.Specs.Changes(from, to) {
		l.markIf(func(s *service) bool { return s.lacksSpec })
		break
	}
	for id := range delta.Services {
		if s := l.know(id); s.tasks == nil && !l.exists(id, to) {
			delete(l.services, id)
		}
	}
	if changed {
		l.markIf(func(s *service) bool { return s.global })
	}
	for node := range moved {
		for t := range l.follower.NodeTasks(node) {
			if s := l.know(t.ServiceID); s.tasks != nil {
				s.tasks.Touch(t)
				l.mark(s)
			}
		}
	}
}

// know returns what is known of a service. If its shard is held it has just
// come into being, and needs a look.
func (l *loop) know(id string) *service {
	if s := l.services[id]; s != nil {
		return s
	}
	s := &service{id: id, shard: store.ShardOf(id)}
	l.services[id] = s
	if h := l.held[s.shard]; h != nil && h.released == nil {
		s.tasks = plan.NewIndex(id, l.follower.ServiceTasks(id))
		l.mark(s)
	}
	return s
}

// exists reports whether there is any trace of a service.
func (l *loop) exists(id string, sn *store.Snapshot) bool {
	if _, ok := l.d.tables.Services.Get(sn, id); ok {
		return true
	}
	if _, ok := l.d.tables.Rollouts.Get(sn, id); ok {
		return true
	}
	for range l.d.tables.Tasks.Scan(sn, id+"/") {
		return true
	}
	return false
}

// removeTasks takes tasks whose records are gone out of the lists.
func (l *loop) removeTasks(from, to *store.Snapshot) {
	for c := range l.d.tables.Tasks.Changes(from, to) {
		if c.New != nil {
			continue
		}
		id, _, _ := state.SplitKey(c.Old.Key)
		if s := l.know(id); s.tasks != nil {
			s.tasks.Remove(c.Old.Key)
			l.mark(s)
		}
	}
}

// matters reports whether what has changed about a task can change a decision.
func (l *loop) matters(s *service, old, t *state.Task) bool {
	switch {
	case old == nil || old.Version != t.Version:
		return true
	case old.Terminal() != t.Terminal():
		return true
	case old.Assignment.GetRefused() != t.Assignment.GetRefused():
		return true
	// A task may be seen to run as soon as it is seen to have a node.
	case s.watchesRunning && t.State() == musterv1.TaskState_RUNNING && old.State() != t.State():
		return true
	default:
		return old.NodeID != t.NodeID && (!t.Live() || t.NodeID == "" || !l.nodes.suits(t, s.constraints))
	}
}

// limitChanged looks for a new history limit, which holds for everything at
// once.
func (l *loop) limitChanged(to *store.Snapshot) {
	limit := defaults.TaskHistoryLimit(nil)
	if e, ok := l.d.tables.Clusters.Get(to, state.ClusterID); ok {
		limit = defaults.TaskHistoryLimit(e.Value.GetSpec())
	}
	if limit != l.history {
		l.history = limit
		l.markIf(func(*service) bool { return true })
	}
}

func (l *loop) markIf(condition func(*service) bool) {
	for _, s := range l.services {
		if condition(s) {
			l.mark(s)
		}
	}
}
