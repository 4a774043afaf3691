package tasks

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/groups"
)

// grouped reports whether the task has containers beside its main one.
func (t *task) grouped() bool { return len(t.spec.GetGroup()) > 0 && t.assigned != nil }

// hasGroup reports whether the task has containers beside its main one.
func (c *call) hasGroup() bool { return c.description != nil && len(c.description.Spec.GetGroup()) > 0 }

// grouped returns the executor to call for the task: for a task with a group, one that
// runs its containers through the executor that holds them.
func (c *call) grouped(e *executor.Described) *executor.Described {
	if !c.hasGroup() || e.Executor == nil {
		return e
	}
	c.group = groups.New(groups.Config{
		Task: c.description, Network: c.known.place.network(), Executor: e, Handle: c.known.handle,
		Begun: c.known.status.State >= musterv1.TaskState_STARTING, Runtime: c.known.status.Runtime, Known: c.known.status.Containers,
	})
	return c.group.Described()
}

// noteGroup notes what a call for a task with a group has found out about its containers.
func (t *task) noteGroup(g *groups.Group) {
	if g == nil {
		return
	}
	if all := g.Statuses(); !sameContainers(all, t.current.status.Containers) {
		t.update(func(r *record) { r.status.Containers = all })
	}
	if handle := g.Handle(); !bytes.Equal(handle, t.current.handle) {
		t.update(func(r *record) { r.handle = handle })
	}
}

func sameContainers(a, b []*musterv1.ContainerStatus) bool {
	return slices.EqualFunc(a, b, func(x, y *musterv1.ContainerStatus) bool { return proto.Equal(x, y) })
}
