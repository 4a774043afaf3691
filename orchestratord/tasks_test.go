package orchestratord

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
)

// TestTaskListIsAMap compares a task list with a plain map from key to task.
func TestTaskListIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, model := newTaskList("s", slices.Values([]*state.Task(nil))), map[string]*state.Task{}
		key := rapid.StringMatching(`[a-e]{1,2}`)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				x := &state.Task{Key: key.Draw(t, "key"), Record: &recordv1.Task{}}
				if old := l.set(x); old != model[x.Key] {
					t.Fatalf("set %s replaced %v, want %v", x.Key, old, model[x.Key])
				}
				model[x.Key] = x
			},
			"remove": func(t *rapid.T) {
				k := key.Draw(t, "key")
				delete(model, k)
				l.remove(k)
			},
			"all": func(t *rapid.T) {
				all := l.all()
				want := slices.Sorted(maps.Keys(model))
				if len(all) != len(want) {
					t.Fatalf("%d tasks, want %d", len(all), len(want))
				}
				for i, k := range want {
					if all[i] != model[k] {
						t.Fatalf("task %d is %s, want %s", i, all[i].Key, k)
					}
				}
			},
		})
	})
}
