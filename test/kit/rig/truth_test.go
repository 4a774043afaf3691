package rig_test

import (
	"os"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
)

// TestReplaced tells a task that was replaced from one that is dead and still said
// to run, which is what a cluster says that has not heard of it.
func TestReplaced(t *testing.T) {
	tasks := func(ids ...string) map[string]*musterv1.Task {
		all := map[string]*musterv1.Task{}
		for _, id := range ids {
			// This process is one that is there.
			all[id] = &musterv1.Task{Id: id, Name: id, Status: &musterv1.TaskStatus{Runtime: &musterv1.RuntimeStatus{Id: id, Pid: int64(os.Getpid())}}}
		}
		return all
	}
	before := tasks("a", "b", "dead")
	for name, tt := range map[string]struct {
		after map[string]*musterv1.Task
		want  bool
	}{
		"replaced":                 {tasks("a", "b", "new"), true},
		"it is not known yet":      {tasks("a", "b", "dead"), false},
		"not replaced yet":         {tasks("a", "b"), false},
		"another was replaced too": {tasks("a", "new", "newer"), false},
		"one too many":             {tasks("a", "b", "new", "newer"), false},
	} {
		if err := rig.Replaced(before, tt.after, "dead"); (err == nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
