package objects

import (
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
)

// counts are the tasks of one service.
type counts struct {
	tasks int
	live  uint64
	// running counts by what the tasks were made of.
	running map[made]uint64
	// nodes counts live tasks by the node that they are bound to, for global
	// services.
	nodes map[string]int
}

// former reports whether some running tasks are of another spec than this.
func (c *counts) former(digest string) bool {
	for m := range c.running {
		if m.spec != digest {
			return true
		}
	}
	return false
}

// made is what a task was made of: digests of its spec and of what its service
// published.
type made struct{ spec, endpoint string }

func madeOf(t *Task) made {
	return made{string(t.Record.SpecDigest), string(t.Record.EndpointDigest)}
}

// load is what the tasks on one node hold of it.
type load struct {
	tasks            uint64
	nanoCPUs, memory int64
}

// running reports whether a task counts as running.
func running(t *Task) bool {
	return t.Live() && t.State() == musterv1.TaskState_RUNNING
}

// live reports whether a task is meant to run and still may.
func live(t *Task) bool { return t.Live() && !t.Terminal() }

// holds reports whether a task holds something of its node.
func holds(t *Task) bool { return t.Assignment != nil && !t.Terminal() }

// statusOf counts a service's tasks.
func (v *View) statusOf(s *Service) Status {
	st := Status{Desired: 1}
	spec := s.Record.GetSpec()
	if r := spec.GetReplicated(); r != nil && r.Replicas != nil {
		st.Desired = *r.Replicas
	}
	c := v.counts[s.ID]
	if c == nil {
		c = &counts{}
	}
	if spec.GetGlobal() != nil {
		st.Desired = v.eligible(s, c)
	}
	st.Live = c.live
	// What cannot be encoded was never stored.
	endpoint, _ := state.EndpointDigest(spec.GetEndpoint())
	current := made{string(s.Record.TaskDigest), string(endpoint)}
	for m, n := range c.running {
		st.Running += n
		switch {
		case m == current:
			st.RunningCurrent += n
		case m.endpoint == current.endpoint:
			st.RunningCurrent += v.stays(s, m)
		}
	}
	if e, ok := v.tables.Placements.Get(v.now, state.PlacementKey(s.ID, s.Record.TaskDigest)); ok && e.Value.Pending > 0 {
		st.Pending = e.Value.Reason
	}
	return st
}

// stays counts the running tasks of a former spec that need not be replaced:
// it differs in the placement only, and their nodes meet it, or in how the
// image is fetched, and they have it.
func (v *View) stays(s *Service, m made) uint64 {
	former, ok := v.tables.Specs.Get(v.now, state.SpecKey([]byte(m.spec)))
	if !ok {
		return 0
	}
	present, ok := v.tables.Specs.Get(v.now, state.SpecKey(s.Record.TaskDigest))
	if !ok || !proto.Equal(stripped(former.Value.Task), stripped(present.Value.Task)) {
		return 0
	}
	matches, err := v.matcher(present.Value.Task)
	if err != nil {
		return 0
	}
	var n uint64
	for t := range v.follower.ServiceTasks(s.ID) {
		if t := (&Task{t}); running(t) && madeOf(t) == m {
			if node, ok := v.nodes.Get(t.NodeID); ok && matches(node) {
				n++
			}
		}
	}
	return n
}

// stripped returns a spec without what may change under a running task.
func stripped(t *musterv1.TaskSpec) *musterv1.TaskSpec {
	t = proto.CloneOf(t)
	t.Placement = nil
	if c := t.GetContainer(); c != nil {
		c.PullOptions = nil
	}
	return t
}

// eligible counts the nodes that are to have a task of a global service: those
// that may get one, and those that have one.
func (v *View) eligible(s *Service, c *counts) uint64 {
	n := uint64(len(c.nodes))
	e, ok := v.tables.Specs.Get(v.now, state.SpecKey(s.Record.TaskDigest))
	if !ok {
		return n
	}
	matches, err := v.matcher(e.Value.Task)
	if err != nil {
		return n
	}
	v.nodes.Scan(func(id string, node *Node) bool {
		if c.nodes[id] == 0 && node.State.State != musterv1.NodeStatus_DOWN &&
			node.Spec().Availability == musterv1.NodeSpec_ACTIVE && matches(node) {
			n++
		}
		return true
	})
	return n
}

// matcher reports whether nodes meet a task spec's constraints.
func (v *View) matcher(t *musterv1.TaskSpec) (func(*Node) bool, error) {
	constraints, err := placement.ParseConstraints(t.GetPlacement().GetConstraints())
	if err != nil || len(constraints) == 0 {
		return func(*Node) bool { return true }, err
	}
	return func(n *Node) bool { return constraints.Match(placement.NewNode(n.ID, n.State, n.Record)) }, nil
}
