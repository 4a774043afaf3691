package plan

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// target is what tasks of a slot are to be made of, and by which rules they are
// kept. During an update slots have different ones: those whose turn has not come
// are kept by what they were made of.
type target struct {
	digest   []byte
	version  uint64
	endpoint []byte // digest of what is published
	spec     *musterv1.TaskSpec
	policy   policy
	limit    int64
	matches  func(node string) bool

	w      *World
	drifts map[string]drift // how other specs differ, by digest
}

func newTarget(w *World, digest, endpoint []byte, version uint64) (*target, error) {
	t := &target{w: w, digest: digest, endpoint: endpoint, version: version, spec: w.Spec(digest)}
	if t.spec == nil {
		return nil, fmt.Errorf("%w: digest %s", ErrSpecUnknown, state.SpecKey(digest))
	}
	t.policy = policyOf(t.spec.GetRestart())
	t.limit = w.HistoryLimit
	if t.policy.attempts > 0 {
		// As many as the policy speaks of are always to be seen.
		t.limit = int64(min(t.policy.attempts, 1<<31)) + 1
	}
	var err error
	if t.matches, err = w.Cluster.Matcher(t.spec.GetPlacement().GetConstraints()); err != nil {
		return nil, fmt.Errorf("constraints of the service: %w", err)
	}
	return t, nil
}

// drift is how another task spec differs from the target's.
type drift struct {
	// runs says that what runs is different, so that tasks must be replaced.
	runs bool
	// place says that the placement is: tasks whose node meets the constraints
	// may stay.
	place bool
	// pull says that only the way to fetch the image is: tasks that have fetched it
	// may stay.
	pull bool
}

// clean reports whether a task is what the target asks for.
func (g *target) clean(t *state.Task) bool {
	switch {
	case !bytes.Equal(t.Record.EndpointDigest, g.endpoint):
		return false
	case bytes.Equal(t.Record.SpecDigest, g.digest):
		return true
	}
	f := g.drift(t.Record.SpecDigest)
	if f.runs {
		return false
	}
	if f.place && (t.NodeID == "" || !g.matches(t.NodeID)) {
		return false
	}
	return !f.pull || t.State() >= musterv1.TaskState_READY
}

func (g *target) drift(digest []byte) drift {
	if f, ok := g.drifts[string(digest)]; ok {
		return f
	}
	f := driftOf(g.w.Spec(digest), g.spec)
	if g.drifts == nil {
		g.drifts = map[string]drift{}
	}
	g.drifts[string(digest)] = f
	return f
}

func driftOf(former, present *musterv1.TaskSpec) drift {
	if former == nil {
		return drift{runs: true}
	}
	a, b := stripped(former), stripped(present)
	return drift{
		runs:  !proto.Equal(a, b),
		place: !proto.Equal(former.GetPlacement(), present.GetPlacement()),
		pull:  !proto.Equal(former.GetContainer().GetPullOptions(), present.GetContainer().GetPullOptions()),
	}
}

// stripped returns the spec without what may change under a running task.
func stripped(s *musterv1.TaskSpec) *musterv1.TaskSpec {
	c := proto.CloneOf(s)
	c.Placement = nil
	if c.GetContainer() != nil {
		c.GetContainer().PullOptions = nil
	}
	return c
}
