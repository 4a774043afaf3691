package plan_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// TestIndexIsAMap compares an index with a plain map from key to task.
func TestIndexIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, model := plan.NewIndex("s", slices.Values([]*state.Task(nil))), map[string]*state.Task{}
		key := rapid.StringMatching(`[a-e]{1,2}`)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				task := &state.Task{Key: key.Draw(t, "key"), Record: &recordv1.Task{}}
				if old := x.Set(task); old != model[task.Key] {
					t.Fatalf("set %s replaced %v, want %v", task.Key, old, model[task.Key])
				}
				model[task.Key] = task
			},
			"remove": func(t *rapid.T) {
				k := key.Draw(t, "key")
				delete(model, k)
				x.Remove(k)
			},
			"all": func(t *rapid.T) {
				all := x.All()
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
