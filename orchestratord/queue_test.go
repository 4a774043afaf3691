package orchestratord

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestQueueIsAMap compares the queue with a plain map from service to time.
func TestQueueIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q, model := newQueue(), map[string]time.Time{}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		moment := rapid.Custom(func(t *rapid.T) time.Time { return time.UnixMilli(rapid.Int64Range(0, 20).Draw(t, "at")) })
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				id, at := name.Draw(t, "service"), moment.Draw(t, "at")
				q.add(id, at)
				if old, ok := model[id]; !ok || at.Before(old) {
					model[id] = at
				}
			},
			"remove": func(t *rapid.T) {
				id := name.Draw(t, "service")
				q.remove(id)
				delete(model, id)
			},
			"pop": func(t *rapid.T) {
				now := moment.Draw(t, "now")
				id, ok := q.pop(now)
				if at, known := model[id]; ok && (!known || at.After(now)) {
					t.Fatalf("popped %s, due %v, at %v", id, at, now)
				}
				delete(model, id)
				if !ok {
					for id, at := range model {
						if !at.After(now) {
							t.Fatalf("%s is due and was not popped", id)
						}
					}
				}
			},
			"": func(t *rapid.T) {
				at, ok := q.next()
				if ok != (len(model) > 0) {
					t.Fatalf("next: %t, model %v", ok, model)
				}
				for id, m := range model {
					if m.Before(at) {
						t.Fatalf("%s is due at %v, before %v", id, m, at)
					}
				}
			},
		})
	})
}
