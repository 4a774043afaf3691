package plan_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// finishedTask returns a world in which the one task of a service that may not be
// restarted has ended, and the task's key.
func finishedTask(t *testing.T, end musterv1.TaskState) (*world, string) {
	t.Helper()
	w := single(t, &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE})
	key := w.one(t, 1).Key
	w.end(t, end)
	return w, key
}

// rewrite changes the record of a task.
func (w *world) rewrite(key string, change func(*recordv1.Task)) {
	c := *w.tasks[key]
	c.Record = proto.CloneOf(c.Record)
	c.Version++
	change(c.Record)
	w.tasks[key] = &c
}

func TestFinishedTaskIsMarkedByFieldAndFormerReason(t *testing.T) {
	w, key := finishedTask(t, complete)
	r := w.tasks[key].Record
	if !r.Finished {
		t.Errorf("record %v has no finished, want it set", r)
	}
	// The text is what versions before v0.1.0 decide by.
	if want := "restart policy allows no further task"; r.Reason != want {
		t.Errorf("reason = %q, want %q for orchestrators of the former version", r.Reason, want)
	}
}

func TestFinishedTaskIsNotRunAgain(t *testing.T) {
	tests := []struct {
		name   string
		change func(*recordv1.Task)
		again  bool
	}{
		{"as written", func(*recordv1.Task) {}, false},
		{"former version: reason only", func(r *recordv1.Task) { r.Finished = false }, false},
		{"reworded reason", func(r *recordv1.Task) { r.Reason = "task has finished" }, false},
		{"no reason", func(r *recordv1.Task) { r.Reason = "" }, false},
		{"neither", func(r *recordv1.Task) { r.Finished, r.Reason = false, "task ended" }, true},
	}
	for _, tt := range tests {
		for _, end := range []musterv1.TaskState{complete, failed} {
			t.Run(tt.name+"/"+end.String(), func(t *testing.T) {
				w, key := finishedTask(t, end)
				w.rewrite(key, tt.change)
				w.now = w.now.Add(time.Hour)
				w.converge(t)
				if got := len(w.live(1)) == 1; got != tt.again {
					t.Errorf("slot runs again: %t, want %t:%s", got, tt.again, w.print())
				}
			})
		}
	}
}

// The history limit must not delete the record that says that a slot has finished.
func TestHistoryKeepsFinishedTask(t *testing.T) {
	for _, former := range []bool{false, true} {
		w, key := finishedTask(t, complete)
		w.rewrite(key, func(r *recordv1.Task) {
			if r.Reason = "reworded"; former {
				r.Finished, r.Reason = false, "restart policy allows no further task"
			}
		})
		w.history = 0
		w.converge(t)
		if w.tasks[key] == nil || len(w.tasks) != 1 {
			t.Errorf("former=%t: tasks are %v, want only %s", former, w.print(), key)
		}
	}
}
