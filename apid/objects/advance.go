package objects

import (
	"maps"
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// advance moves to a newer snapshot, at a cost of what has changed. The
// caller holds the lock.
func (v *View) advance(to *store.Snapshot, at time.Time) {
	from := v.now
	v.now = to
	delta := v.follower.Advance(to)
	services := delta.Services
	var changes []Change

	nodes := map[string]struct{}{}
	for c := range v.tables.Nodes.Changes(from, to) {
		nodes[c.Key()] = struct{}{}
	}
	for c := range v.tables.NodeStates.Changes(from, to) {
		nodes[c.Key()] = struct{}{}
	}
	for c := range v.tables.Clusters.Changes(from, to) {
		if c.Key() == state.ClusterID {
			changes = append(changes, v.putCluster(c.New))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		changes = v.putNode(changes, id)
	}
	var tasks []Change
	for _, id := range slices.Sorted(maps.Keys(delta.Tasks)) {
		tasks = v.putTask(tasks, id)
	}
	if len(nodes) > 0 {
		// Which nodes are to have their tasks may have changed.
		for id := range v.globals {
			services[id] = struct{}{}
		}
		// And so may which tasks of a former spec may stay where they are.
		for id, c := range v.counts {
			if s, ok := v.services.Get(id); ok && c.hasOther(string(s.Record.TaskDigest)) {
				services[id] = struct{}{}
			}
		}
	}
	mark := func(key string) {
		service, _, _ := strings.Cut(key, "/")
		services[service] = struct{}{}
	}
	for c := range v.tables.Rollouts.Changes(from, to) {
		mark(c.Key())
	}
	for c := range v.tables.Endpoints.Changes(from, to) {
		mark(c.Key())
	}
	for c := range v.tables.Placements.Changes(from, to) {
		mark(c.Key())
	}
	for _, id := range slices.Sorted(maps.Keys(services)) {
		changes = v.putService(changes, id)
	}
	changes = append(changes, tasks...)
	for _, kind := range v.collections {
		changes = kind.advance(changes, from, to)
	}
	if from == nil {
		v.history.begin(v.layout.of(to))
		return
	}
	v.history.add(changes, v.layout.of(to), at, v.tasks.Len())
}

func (v *View) putCluster(e *store.Entry[*recordv1.Cluster]) Change {
	old := v.cluster
	v.cluster = defaultCluster()
	if e != nil {
		v.cluster = &Cluster{Version: e.Version, Record: e.Value}
	}
	return Change{Kind: musterv1.ObjectKind_CLUSTER, ID: state.ClusterID, Old: old, New: v.cluster}
}

func (v *View) putNode(changes []Change, id string) []Change {
	old, had := v.nodes.Get(id)
	n := v.joinNode(id)
	switch {
	case n == nil && !had:
		return changes
	case n == nil:
		v.nodes.Delete(id)
		delete(v.paused, id)
		v.nodesChanged++
		return append(changes, Change{Kind: musterv1.ObjectKind_NODE, ID: id, Old: old})
	case had && n.same(old):
		return changes
	}
	v.nodes.Set(id, n)
	if delete(v.paused, id); n.Spec().Availability == musterv1.NodeSpec_PAUSE {
		v.paused[id] = struct{}{}
	}
	v.nodesChanged++
	c := Change{Kind: musterv1.ObjectKind_NODE, ID: id, New: n}
	if had {
		c.Old = old
	}
	return append(changes, c)
}

// joinNode returns nil if there is no such node: nothing is known of it, or an
// operator has removed it.
func (v *View) joinNode(id string) *Node {
	st, ok := v.tables.NodeStates.Get(v.now, id)
	if !ok {
		return nil
	}
	n := &Node{ID: id, State: st.Value, stateVersion: st.Version}
	if rec, ok := v.tables.Nodes.Get(v.now, id); ok {
		if rec.Value.Removed {
			return nil
		}
		n.Record, n.Version = rec.Value, rec.Version
	}
	return n
}

func (v *View) putTask(changes []Change, id string) []Change {
	joined, ok := v.follower.Task(id)
	if !ok {
		old, had := v.tasks.Delete(id)
		if !had {
			return changes
		}
		v.count(old, -1)
		v.serviceTasks.Delete(old.ServiceID + "/" + id)
		return append(changes, Change{Kind: musterv1.ObjectKind_TASK, ID: id, Old: old})
	}
	t := &Task{joined}
	old, had := v.tasks.Set(id, t)
	if !had {
		v.count(t, 1)
		v.serviceTasks.Insert(t.ServiceID + "/" + id)
		return append(changes, Change{Kind: musterv1.ObjectKind_TASK, ID: id, New: t})
	}
	t.keep(old)
	v.count(old, -1)
	v.count(t, 1)
	if t.version() == old.version() {
		return changes
	}
	return append(changes, Change{Kind: musterv1.ObjectKind_TASK, ID: id, Old: old, New: t})
}

// count adds a task to the counts of its service and node, or takes it off.
func (v *View) count(t *Task, sign int) {
	c := v.counts[t.ServiceID]
	if c == nil {
		c = &counts{running: map[state.Origin]uint64{}, failing: map[state.Origin]uint64{}, nodes: map[string]int{}}
		v.counts[t.ServiceID] = c
	}
	c.tasks += sign
	step := uint64(sign)
	v.use(string(t.Record.SpecDigest), sign)
	if live(t) {
		c.live += step
		if node := t.Record.NodeId; node != "" {
			if c.nodes[node] += sign; c.nodes[node] == 0 {
				delete(c.nodes, node)
			}
		}
	}
	switch m := state.OriginOf(t.Record); {
	case running(t):
		c.running.add(m, step)
	case failing(t):
		c.failing.add(m, step)
	case finished(t):
		c.finished += sign
	}
	if c.tasks == 0 {
		delete(v.counts, t.ServiceID)
	}
	if !holds(t) {
		return
	}
	l := v.loads[t.NodeID]
	if l == nil {
		l = &load{}
		v.loads[t.NodeID] = l
	}
	l.tasks += step
	l.nanoCPUs += int64(sign) * t.Assignment.NanoCpus
	l.memory += int64(sign) * t.Assignment.MemoryBytes
	if l.tasks == 0 {
		delete(v.loads, t.NodeID)
	}
}

// use counts who refers to a task spec.
func (v *View) use(digest string, sign int) {
	if digest == "" {
		return
	}
	if v.specUses[digest] += sign; v.specUses[digest] == 0 {
		delete(v.specUses, digest)
	}
}

func (v *View) putService(changes []Change, id string) []Change {
	old, had := v.services.Get(id)
	s := v.joinService(id)
	if s == nil && !had {
		return changes
	}
	c := Change{Kind: musterv1.ObjectKind_SERVICE, ID: id}
	if had {
		c.Old = old
		v.index(old, -1)
	}
	if s == nil {
		v.services.Delete(id)
		return append(changes, c)
	}
	v.index(s, 1)
	v.services.Set(id, s)
	if had && s.same(old) {
		return changes
	}
	c.New = s
	return append(changes, c)
}

func (v *View) index(s *Service, sign int) {
	name := fold(s.Record.GetSpec().GetName())
	if sign > 0 {
		v.serviceIDs[name] = s.ID
	} else if v.serviceIDs[name] == s.ID {
		delete(v.serviceIDs, name)
	}
	if sign > 0 && s.Record.GetSpec().GetGlobal() != nil {
		v.globals[s.ID] = struct{}{}
	} else {
		delete(v.globals, s.ID)
	}
	v.restarts = v.restarts.with(s.ID, s.Record.GetSpec(), sign)
	v.use(string(s.Record.TaskDigest), sign)
	v.use(string(s.Record.PreviousTaskDigest), sign)
	v.use(string(s.Record.FormerTaskDigest), sign)
}

func (v *View) joinService(id string) *Service {
	rec, ok := v.tables.Services.Get(v.now, id)
	if !ok {
		return nil
	}
	s := &Service{ID: id, Version: rec.Version, Record: rec.Value}
	if e, ok := v.tables.Rollouts.Get(v.now, id); ok {
		s.Rollout, s.rolloutVersion = e.Value, e.Version
	}
	if e, ok := v.tables.Endpoints.Get(v.now, id); ok {
		s.Endpoint, s.endpointVersion = e.Value, e.Version
	}
	s.Status = v.statusOf(s)
	return s
}
