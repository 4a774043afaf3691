package plan_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

func TestTasksAreSpreadOverNodesOrExplained(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		nodes   nodes
		build   func(t *testing.T, w *world)
		want    map[string][]string
		reasons map[string]string
	}{
		"spread in order of slots": {
			nodes: nodes{node("a", 8), node("b", 8)},
			build: func(t *testing.T, w *world) { w.service(t, "web", null(1), 3, 0) },
			want:  map[string][]string{"a": {"web-1", "web-3"}, "b": {"web-2"}},
		},
		"a service finds the room that others leave": {
			nodes: nodes{node("a", 3)},
			build: func(t *testing.T, w *world) {
				w.service(t, "first", null(2), 1, 0)
				w.service(t, "second", null(1), 2, 0)
			},
			want:    map[string][]string{"a": {"first-1", "second-1"}},
			reasons: map[string]string{"second": "1: no suitable node (insufficient CPU on 1 node: want 1, none free)"},
		},
		"no nodes": {
			build:   func(t *testing.T, w *world) { w.service(t, "web", null(1), 2, 0) },
			reasons: map[string]string{"web": "2: no suitable node (there are no nodes)"},
		},
		"a host port is for one task of a node": {
			nodes:   nodes{node("a", 8), node("b", 8, down)},
			build:   func(t *testing.T, w *world) { w.service(t, "web", null(1), 2, 80) },
			want:    map[string][]string{"a": {"web-1"}},
			reasons: map[string]string{"web": "1: no suitable node (host port 80/tcp in use on 1 node; 1 node down)"},
		},
		"constraint that cannot be read": {
			nodes:   nodes{node("a", 8)},
			build:   func(t *testing.T, w *world) { w.service(t, "web", null(1, "zone"), 1, 0) },
			reasons: map[string]string{"web": `1: constraint "zone": has no operator; want key==value or key!=value`},
		},
		"bound tasks go to their node": {
			nodes: nodes{node("a", 8), node("b", 1)},
			build: func(t *testing.T, w *world) {
				w.service(t, "agent", null(1), 4, 0)
				for i, n := range []string{"b", "b", "a", "unknown"} {
					w.services[0].Tasks[i].Node = n
				}
			},
			want:    map[string][]string{"a": {"agent-3"}, "b": {"agent-1"}},
			reasons: map[string]string{"agent": "2: no suitable node (1 node not ready; insufficient CPU on 1 node: want 1, none free)"},
		},
		"service that is gone": {
			nodes: nodes{node("a", 8)},
			build: func(t *testing.T, w *world) {
				w.service(t, "web", null(1), 1, 0)
				w.services[0].Record = nil
			},
		},
		"nothing waits": {
			nodes: nodes{node("a", 8)},
			build: func(t *testing.T, w *world) { w.service(t, "web", null(1), 0, 0) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(tt.nodes...)
			tt.build(t, w)
			p := plan.Decide(w.input())
			if tt.want == nil {
				tt.want = map[string][]string{}
			}
			if tt.reasons == nil {
				tt.reasons = map[string]string{}
			}
			if diff := cmp.Diff(tt.want, placed(p)); diff != "" {
				t.Errorf("tasks by node (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.reasons, reasons(p)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
			if len(p.Explanations) != len(w.services) {
				t.Errorf("%d explanations of %d services, want one of each", len(p.Explanations), len(w.services))
			}
		})
	}
}

// A spec is written with its service, and may be seen a moment later.
func TestServiceWhoseSpecIsNotKnownIsRetried(t *testing.T) {
	t.Parallel()
	w := newWorld(node("a", 8))
	digest := w.service(t, "web", null(1), 2, 0)
	w.service(t, "other", null(2), 1, 0)
	spec := w.specs[digest]
	delete(w.specs, digest)
	p := plan.Decide(w.input())
	if diff := cmp.Diff([]string{"web"}, p.Retry); diff != "" || p.Size != 1 {
		t.Errorf("%d tasks placed, want that of the other service; retry (-want +got):\n%s", p.Size, diff)
	}
	w.specs[digest] = spec
	if p := plan.Decide(w.input()); len(p.Retry) != 0 || p.Size != 3 {
		t.Errorf("%d tasks placed, retry %v, want all 3 placed", p.Size, p.Retry)
	}
}

// Tasks of one spec that differ in what they publish share an explanation.
func TestExplanationCountsAllTasksOfSpec(t *testing.T) {
	t.Parallel()
	w := newWorld(node("a", 8, down))
	digest := w.service(t, "web", null(1), 5, 80)
	for i := range 2 {
		w.services[0].Tasks[i].Origin.Endpoint = ""
	}
	p := plan.Decide(w.input())
	if got := p.Explanations[0].Waiting[digest].Tasks; got != 5 {
		t.Errorf("%d tasks are said to wait, want 5", got)
	}
}

func TestNodeWhereTasksFailedIsAvoided(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		failures int
		blamed   bool
		later    time.Duration
		avoided  bool
	}{
		"none":                        {0, false, 0, false},
		"four failures":               {4, false, 0, false},
		"five failures":               {5, false, 0, true},
		"node blamed once":            {1, true, 0, true},
		"five failures, a while ago":  {5, false, plan.FaultWindow, false},
		"five failures, just now":     {5, false, plan.FaultWindow - 1, true},
		"node blamed, a while ago":    {1, true, plan.FaultWindow, false},
		"node blamed, and four later": {5, true, 0, true},
	} {
		w := newWorld(node("a", 8), node("b", 1))
		digest := w.service(t, "web", null(1), 1, 0)
		for i := range tt.failures {
			w.faults.Note(plan.SpecKey{Service: "web", Digest: digest}, "a", w.now, tt.blamed && i == 0)
		}
		w.faults.Note(plan.SpecKey{Service: "other", Digest: digest}, "b", w.now, true)
		w.now = w.now.Add(tt.later)
		w.faults.Forget(w.now)
		want := "a"
		if tt.avoided {
			want = "b"
		}
		p := plan.Decide(w.input())
		if len(p.Choices[want]) != 1 {
			t.Errorf("%s: tasks are on %v, want on %s", name, placed(p), want)
		}
		// A node to be avoided is better than none.
		w.nodes = nodes{node("a", 8)}
		if p := plan.Decide(w.input()); len(p.Choices["a"]) != 1 {
			t.Errorf("%s: tasks are on %v, want on the only node", name, placed(p))
		}
	}
}

// A commit takes what still fits, and nothing of services of other schedulers.
func TestAdmitTakesWhatStillFits(t *testing.T) {
	t.Parallel()
	w := newWorld(node("a", 4))
	w.service(t, "lost", null(1), 1, 0)
	w.service(t, "web", null(1), 3, 0)
	choices := plan.Decide(w.input()).Choices["a"]
	if len(choices) != 4 {
		t.Fatalf("%d tasks were placed, want 4", len(choices))
	}
	n := w.nodes[0]
	n.Add(placement.Hold{Service: "meanwhile", Resources: placement.Resources{NanoCPUs: 2e9}})
	asked := 0
	admitted := plan.Admit(n.Node, n.Usage, choices, func(service string) bool { asked++; return service != "lost" })
	var got []string
	for _, c := range admitted {
		got = append(got, c.ID)
	}
	if diff := cmp.Diff([]string{"web-1", "web-2"}, got); diff != "" {
		t.Errorf("admitted (-want +got):\n%s", diff)
	}
	if asked != 2 {
		t.Errorf("asked %d times whose a service is, want once for each of 2", asked)
	}
	if n.NanoCPUs != 4e9 {
		t.Errorf("usage is %d nanocores, want what was admitted counted in", n.NanoCPUs)
	}
	if got := plan.Admit(placement.NewNode("a", nil, nil), placement.NewUsage(), choices, func(string) bool { return true }); len(got) != 0 {
		t.Errorf("a node that is gone admits %d tasks", len(got))
	}
}

func TestDelayedTasksAreThoseWithoutRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(node("a", 1))
	w.service(t, "web", null(1), 3, 0)
	p := plan.Decide(w.input())
	if diff := cmp.Diff([]plan.Delayed{{Service: "web", Task: "web-2"}, {Service: "web", Task: "web-3"}}, p.Delayed); diff != "" {
		t.Errorf("delayed (-want +got):\n%s", diff)
	}
}

// Where a large service's tasks come in parts, a node gets its whole share at once,
// unless the tasks may finish for good.
func TestLargeServiceFillsNodeByNode(t *testing.T) {
	t.Parallel()
	const count, share = 200, 5
	for _, tt := range []struct {
		condition musterv1.RestartPolicy_Condition
		attempts  uint64
		fills     bool
	}{
		{musterv1.RestartPolicy_CONDITION_UNSPECIFIED, 0, true},
		{musterv1.RestartPolicy_ANY, 0, true},
		{musterv1.RestartPolicy_ANY, 3, false},
		{musterv1.RestartPolicy_NONE, 0, false},
	} {
		w := newWorld()
		for i := range count {
			w.nodes = append(w.nodes, node(string(rune('a'+i/26))+string(rune('a'+i%26)), 64))
		}
		spec := null(1)
		spec.Restart = &musterv1.RestartPolicy{Condition: tt.condition, MaxAttempts: tt.attempts}
		w.service(t, "web", spec, count*share/4, 0)
		replicas := uint64(count * share)
		w.services[0].Record.Spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}}
		p := plan.Decide(w.input())
		most := 0
		for _, choices := range p.Choices {
			most = max(most, len(choices))
		}
		if p.Size != count*share/4 || (most == share) != tt.fills || !tt.fills && most != 2 {
			t.Errorf("condition %v, attempts %d: %d tasks placed, at most %d on a node; fills %t", tt.condition, tt.attempts, p.Size, most, tt.fills)
		}
		if tt.fills { // neighbouring slots are not on one node
			for id, choices := range p.Choices {
				for a, b := range pairs(choices) {
					if b.Slot-a.Slot < count/4/2 {
						t.Errorf("slots %d and %d are both on node %s", a.Slot, b.Slot, id)
					}
				}
			}
		}
	}
}

// pairs yields neighbours, in order of their slots.
func pairs(choices []plan.Choice) func(yield func(a, b plan.Choice) bool) {
	choices = slices.SortedFunc(slices.Values(choices), func(a, b plan.Choice) int { return int(a.Slot) - int(b.Slot) })
	return func(yield func(a, b plan.Choice) bool) {
		for i := 1; i < len(choices); i++ {
			if !yield(choices[i-1], choices[i]) {
				return
			}
		}
	}
}
