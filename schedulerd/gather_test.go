package schedulerd

import (
	"fmt"
	"testing"
	"time"
)

// TestWorthGathering knows which looks are to be followed by a wait for more tasks.
func TestWorthGathering(t *testing.T) {
	for name, test := range map[string]struct {
		nodes, tasks int
		took, want   time.Duration
	}{
		"one task":            {1, 1, time.Millisecond, 0},
		"few nodes":           {manyNodes - 1, manyNodes - 1, time.Second, 0},
		"many for each":       {manyNodes, manyNodes*fewTasks + 1, time.Second, 0},
		"few for each":        {manyNodes, manyNodes * fewTasks, 30 * time.Millisecond, 60 * time.Millisecond},
		"not for long at all": {5000, 5000, time.Minute, mostGathering},
		"nothing":             {0, 0, time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlan(time.Now())
			for i := range test.tasks {
				p.add(fmt.Sprint("n", i%test.nodes), choice{})
			}
			if got := p.worthGathering(test.took); got != test.want {
				t.Errorf("after a look of %s: %s, want %s", test.took, got, test.want)
			}
		})
	}
}
