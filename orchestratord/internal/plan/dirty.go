package plan

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// drift is how a former task spec differs from the current one.
type drift struct {
	// runs says that what runs is different, so that tasks must be replaced.
	runs bool
	// place says that the placement is: tasks whose node meets the constraints
	// may stay.
	place bool
	// pull says that only the way to fetch the image is: tasks that have it may
	// stay.
	pull bool
}

// clean reports whether a task is what the service's spec asks for.
func (d *decider) clean(t *state.Task) bool {
	switch {
	case !bytes.Equal(t.Record.EndpointDigest, d.endpoint):
		return false
	case bytes.Equal(t.Record.SpecDigest, d.w.Service.TaskDigest):
		return true
	}
	f := d.drift(t.Record.SpecDigest)
	if f.runs {
		return false
	}
	if f.place && (t.NodeID == "" || !d.matches(t.NodeID)) {
		return false
	}
	if s := t.State(); f.pull && (s < musterv1.TaskState_READY || s > musterv1.TaskState_RUNNING) {
		return false
	}
	return true
}

func (d *decider) drift(digest []byte) drift {
	if f, ok := d.drifts[string(digest)]; ok {
		return f
	}
	f := driftOf(d.w.Spec(digest), d.spec)
	if d.drifts == nil {
		d.drifts = map[string]drift{}
	}
	d.drifts[string(digest)] = f
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
