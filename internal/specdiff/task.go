package specdiff

import (
	"slices"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/taskspec"
)

// Change says in which respects a task spec differs from the one that tasks were
// created from, as far as it matters to these tasks.
type Change struct {
	// Replaces says that what runs is different: the tasks must be replaced.
	Replaces bool
	// Placement says that the placement is different: tasks may stay on nodes that
	// meet the new constraints.
	Placement bool
	// Pull says that the way to fetch the image is different: tasks that have fetched
	// it may stay.
	Pull bool
}

// Tasks compares the task spec that tasks were created from with the one that they
// should follow. A former spec that is not known (nil) replaces them.
func Tasks(former, present *musterv1.TaskSpec) Change {
	if former == nil {
		return Change{Replaces: true}
	}
	return Change{
		Replaces:  !proto.Equal(identity(former), identity(present)),
		Placement: !proto.Equal(former.GetPlacement(), present.GetPlacement()),
		Pull:      !slices.EqualFunc(pulls(former), pulls(present), samePull),
	}
}

// Keeps reports whether a task that was created from the former spec complies with
// the present one. The task is on node, or on none if that is empty, and is observed
// in a state; meets reports whether a node meets the present constraints.
func (c Change) Keeps(node string, observed musterv1.TaskState, meets func(node string) bool) bool {
	switch {
	case c.Replaces:
		return false
	case c.Placement && (node == "" || !meets(node)):
		return false
	default:
		return !c.Pull || observed >= musterv1.TaskState_READY
	}
}

// identity returns a task spec without what may change under a running task.
func identity(s *musterv1.TaskSpec) *musterv1.TaskSpec {
	c := proto.CloneOf(s)
	c.Placement = nil
	for _, container := range taskspec.Containers(c) {
		container.PullOptions = nil
	}
	return c
}

// pulls returns how the images of the main container and of those of the group are fetched.
func pulls(s *musterv1.TaskSpec) []*musterv1.PullOptions {
	all := []*musterv1.PullOptions{s.GetContainer().GetPullOptions()}
	for _, g := range s.GetGroup() {
		all = append(all, g.GetContainer().GetPullOptions())
	}
	return all
}

func samePull(a, b *musterv1.PullOptions) bool { return proto.Equal(a, b) }
