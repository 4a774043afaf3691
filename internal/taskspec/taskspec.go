// Package taskspec reads task specs: their parts that are in several places, because a
// task can have a group of containers.
package taskspec

import (
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Containers returns the container specs of a task: that of the main container and those of
// its group, as far as they are containers. They are shared with the task.
func Containers(t *musterv1.TaskSpec) []*musterv1.ContainerSpec {
	var all []*musterv1.ContainerSpec
	if c := t.GetContainer(); c != nil {
		all = append(all, c)
	}
	for _, g := range t.GetGroup() {
		if c := g.GetContainer(); c != nil {
			all = append(all, c)
		}
	}
	return all
}

// OfGroup returns the task spec of a container of a group by itself: its runtime and its
// resources.
func OfGroup(g *musterv1.GroupContainer) *musterv1.TaskSpec {
	spec := &musterv1.TaskSpec{Resources: g.GetResources()}
	switch runtime := g.GetRuntime().(type) {
	case *musterv1.GroupContainer_Container:
		spec.Runtime = &musterv1.TaskSpec_Container{Container: runtime.Container}
	case *musterv1.GroupContainer_Generic:
		spec.Runtime = &musterv1.TaskSpec_Generic{Generic: runtime.Generic}
	}
	return spec
}
