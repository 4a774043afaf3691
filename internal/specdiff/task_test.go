package specdiff_test

import (
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/specdiff"
)

// taskSpec returns a task spec of a container, changed.
func taskSpec(changes ...func(*musterv1.TaskSpec)) *musterv1.TaskSpec {
	s := &musterv1.TaskSpec{
		Runtime:   &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "web:1", Env: []string{"A=1"}}},
		Placement: &musterv1.Placement{Constraints: []string{"node.labels.zone==a"}},
	}
	for _, change := range changes {
		change(s)
	}
	return s
}

func TestTaskChangeReplacesUnlessItCanStayUnderRunningTask(t *testing.T) {
	image := func(s *musterv1.TaskSpec) { s.GetContainer().Image = "web:2" }
	zone := func(s *musterv1.TaskSpec) { s.Placement.Constraints[0] = "node.labels.zone==b" }
	auth := func(s *musterv1.TaskSpec) {
		s.GetContainer().PullOptions = &musterv1.PullOptions{RegistryAuth: "secret"}
	}
	group := func(changes ...func(*musterv1.ContainerSpec)) func(*musterv1.TaskSpec) {
		return func(s *musterv1.TaskSpec) {
			c := &musterv1.ContainerSpec{Image: "proxy:1"}
			for _, change := range changes {
				change(c)
			}
			s.Group = []*musterv1.GroupContainer{{Name: "proxy", Runtime: &musterv1.GroupContainer_Container{Container: c}}}
		}
	}
	tests := []struct {
		name            string
		former, present *musterv1.TaskSpec
		want            specdiff.Change
	}{
		{"equal", taskSpec(), taskSpec(), specdiff.Change{}},
		{"image", taskSpec(), taskSpec(image), specdiff.Change{Replaces: true}},
		{"placement", taskSpec(), taskSpec(zone), specdiff.Change{Placement: true}},
		{"placement removed", taskSpec(), taskSpec(func(s *musterv1.TaskSpec) { s.Placement = nil }), specdiff.Change{Placement: true}},
		{"pull options", taskSpec(), taskSpec(auth), specdiff.Change{Pull: true}},
		{"all", taskSpec(), taskSpec(image, zone, auth), specdiff.Change{Replaces: true, Placement: true, Pull: true}},
		{"forced", taskSpec(), taskSpec(func(s *musterv1.TaskSpec) { s.ForceUpdate++ }), specdiff.Change{Replaces: true}},
		{"resources", taskSpec(), taskSpec(func(s *musterv1.TaskSpec) { s.Resources = &musterv1.ResourceRequirements{} }), specdiff.Change{Replaces: true}},
		{"runtime", taskSpec(), &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}, Placement: taskSpec().Placement}, specdiff.Change{Replaces: true}},
		{"group", taskSpec(), taskSpec(group()), specdiff.Change{Replaces: true, Pull: true}},
		{"same group", taskSpec(group()), taskSpec(group()), specdiff.Change{}},
		{"image in the group", taskSpec(group()), taskSpec(group(func(c *musterv1.ContainerSpec) { c.Image = "proxy:2" })), specdiff.Change{Replaces: true}},
		{"pull options in the group", taskSpec(group()), taskSpec(group(func(c *musterv1.ContainerSpec) {
			c.PullOptions = &musterv1.PullOptions{RegistryAuth: "secret"}
		})), specdiff.Change{Pull: true}},
		{"former unknown", nil, taskSpec(), specdiff.Change{Replaces: true}},
	}
	for _, tt := range tests {
		if got := specdiff.Tasks(tt.former, tt.present); got != tt.want {
			t.Errorf("%s: Tasks = %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestTaskIsKeptWhereItCompliesWithPresentSpec(t *testing.T) {
	const preparing, running = musterv1.TaskState_PREPARING, musterv1.TaskState_RUNNING
	tests := []struct {
		name     string
		change   specdiff.Change
		node     string
		observed musterv1.TaskState
		want     bool
	}{
		{"nothing changed", specdiff.Change{}, "", musterv1.TaskState_PENDING, true},
		{"nothing changed, on a node that does not comply", specdiff.Change{}, "bad", running, true},
		{"replaces", specdiff.Change{Replaces: true}, "good", running, false},
		{"placement, on a node that complies", specdiff.Change{Placement: true}, "good", running, true},
		{"placement, on a node that does not", specdiff.Change{Placement: true}, "bad", running, false},
		{"placement, without a node", specdiff.Change{Placement: true}, "", musterv1.TaskState_PENDING, false},
		{"pull, prepared", specdiff.Change{Pull: true}, "bad", running, true},
		{"pull, not prepared", specdiff.Change{Pull: true}, "good", preparing, false},
	}
	for _, tt := range tests {
		if got := tt.change.Keeps(tt.node, tt.observed, func(node string) bool { return node == "good" }); got != tt.want {
			t.Errorf("%s: Keeps = %t, want %t", tt.name, got, tt.want)
		}
	}
}
