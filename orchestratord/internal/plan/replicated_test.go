package plan_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func TestCreate(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(3)
	w.reconcile(t)
	if got, want := w.slots(), []uint64{1, 2, 3}; !slices.Equal(got, want) {
		t.Fatalf("slots %v, want %v", got, want)
	}
	for _, task := range w.sorted() {
		if task.Desired() != running || task.State() != pending {
			t.Errorf("new task is %v, desired %v", task.State(), task.Desired())
		}
		if string(task.Record.SpecDigest) != string(w.service.TaskDigest) || task.Record.SpecVersion != 1 {
			t.Error("new task does not refer to the service's spec")
		}
	}
	if w.rollout != nil {
		t.Error("a new service has a rollout")
	}
	w.converge(t)
}

func TestOneReplicaByDefault(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.reconcile(t)
	if len(w.tasks) != 1 {
		t.Errorf("%d tasks, want 1", len(w.tasks))
	}
}

func TestJobsAreLeftAlone(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.service.Spec.Mode = &musterv1.ServiceSpec_GlobalJob{GlobalJob: &musterv1.GlobalJob{}}
	if _, err := plan.Decide(w.view()); !errors.Is(err, plan.ErrUnsupported) {
		t.Errorf("error %v, want ErrUnsupported", err)
	}
}

func TestUnknownSpecIsWaitedFor(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	clear(w.specs)
	if _, err := plan.Decide(w.view()); !errors.Is(err, plan.ErrSpecUnknown) {
		t.Errorf("error %v, want ErrSpecUnknown", err)
	}
}

func TestScaleUpTakesLowestFreeNumbers(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(4)
	w.converge(t)
	// Slots 1 and 3 fail to have a node, so they are the ones to go.
	for _, slot := range []uint64{1, 3} {
		task := w.one(t, slot)
		c := *task
		c.NodeID, c.Assignment, c.Status = "", nil, nil
		w.tasks[c.Key] = &c
	}
	w.replicas(2)
	w.reconcile(t)
	if got, want := w.slots(), []uint64{2, 4}; !slices.Equal(got, want) {
		t.Fatalf("slots %v after scaling down, want %v", got, want)
	}
	w.now = w.now.Add(time.Second)
	w.reconcile(t)
	if len(w.tasks) != 2 {
		t.Errorf("tasks that never had a node are still there:%s", w.print())
	}
	w.replicas(5)
	w.reconcile(t)
	if got, want := w.slots(), []uint64{1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("slots %v after scaling up, want %v", got, want)
	}
}

// The order of victims is Swarm's: swarm's table rows in its words.
func TestScaleDownOrder(t *testing.T) {
	type task struct {
		node  string
		state musterv1.TaskState
	}
	tests := []struct {
		name  string
		tasks []task // of slots 1, 2, …
		to    uint64
		keeps []uint64
	}{
		{"high slots go", []task{{"a", running}, {"b", running}, {"c", running}}, 2, []uint64{1, 2}},
		{"crowded nodes first", []task{{"a", running}, {"a", running}, {"b", running}}, 2, []uint64{1, 3}},
		{"the crowd counts from low slots", []task{{"a", running}, {"a", running}, {"a", running}, {"b", running}, {"b", running}}, 3, []uint64{1, 2, 4}},
		{"not running goes before running", []task{{"a", assigned}, {"b", running}, {"c", running}}, 2, []uint64{2, 3}},
		{"not running counts as the later copy", []task{{"a", assigned}, {"a", running}, {"b", running}}, 2, []uint64{2, 3}},
		{"crowding weighs more than running", []task{{"a", running}, {"a", running}, {"b", assigned}}, 2, []uint64{1, 3}},
		{"no node goes first of all", []task{{"", pending}, {"a", running}, {"a", running}}, 2, []uint64{2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.spec(null(1))
			w.replicas(uint64(len(tt.tasks)))
			w.reconcile(t)
			for i, want := range tt.tasks {
				task := w.one(t, uint64(i+1))
				if want.node != "" {
					w.assign(task, want.node)
					w.report(task, want.state)
				}
			}
			w.reconcile(t)
			w.replicas(tt.to)
			w.reconcile(t)
			if got := w.slots(); !slices.Equal(got, tt.keeps) {
				t.Errorf("keeps %v, want %v", got, tt.keeps)
			}
			w.converge(t)
			if len(w.tasks) != int(tt.to) {
				t.Errorf("records of removed slots stay:%s", w.print())
			}
		})
	}
}

func TestSlotAmidReplacementGoesFirst(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.startFirst()
	w.replicas(2)
	w.converge(t)
	w.spec(null(2))
	w.reconcile(t)
	// Slot 2's new task runs already; slot 1 has two.
	two := w.live(2)[1]
	w.assign(two, "c")
	w.report(two, running)
	w.reconcile(t)
	w.replicas(1)
	w.reconcile(t)
	if got, want := w.slots(), []uint64{2}; !slices.Equal(got, want) {
		t.Errorf("keeps %v, want %v:%s", got, want, w.print())
	}
}

func TestScaleToZeroAndBack(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(2)
	w.converge(t)
	old := w.one(t, 1)
	w.replicas(0)
	p := w.reconcile(t)
	if got := w.tasks[old.Key].Desired(); got != remove {
		t.Fatalf("desired %v, want REMOVE", got)
	}
	if !p.Slots[0].Vacates {
		t.Error("a slot that is given up is not marked")
	}
	// Back before they have stopped: the new ones wait for the old ones.
	w.replicas(2)
	p = w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != ready {
		t.Errorf("desired %v while the former task runs, want READY", got)
	}
	if !p.Slots[0].Fills {
		t.Error("a slot that is filled is not marked")
	}
	w.report(old, shutdown)
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != running {
		t.Errorf("desired %v after the former task has stopped, want RUNNING", got)
	}
	if _, ok := w.tasks[old.Key]; ok {
		t.Error("the record of a removed task stays")
	}
}

func TestRemoveService(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(3)
	w.converge(t)
	w.spec(null(2))
	w.converge(t)
	w.replicas(4)
	w.reconcile(t)
	if w.rollout == nil {
		t.Fatal("no rollout")
	}
	onLost := w.one(t, 2)
	w.nodes[onLost.NodeID] = plan.Down
	w.service = nil
	w.reconcile(t)
	w.now = w.now.Add(time.Second)
	w.reconcile(t)
	for _, task := range w.sorted() {
		switch {
		case task.Desired() != remove:
			t.Errorf("desired %v, want REMOVE", task.Desired())
		case task.Record.Slot == 4, task.NodeID == onLost.NodeID, task.Terminal():
			t.Errorf("a task of which nothing runs stays: %s", task.Key)
		}
	}
	if w.rollout != nil {
		t.Error("the rollout stays")
	}
	w.converge(t)
	if len(w.tasks) != 0 {
		t.Errorf("tasks stay:%s", w.print())
	}
}

func TestLostNodes(t *testing.T) {
	tests := []struct {
		name      string
		condition plan.Condition
		waits     bool // for the old task to stop
	}{
		{"down", plan.Down, false},
		{"gone", plan.Gone, false},
		{"drained", plan.Drained, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.spec(null(1))
			w.replicas(1)
			w.converge(t)
			old := w.one(t, 1)
			w.nodes[old.NodeID] = tt.condition
			p := w.reconcile(t)
			if got := w.tasks[old.Key].Desired(); got != shutdown {
				t.Errorf("old task desired %v, want SHUTDOWN", got)
			}
			if got := p.Slots[0].Lost; !slices.Equal(got, []string{old.NodeID}) {
				t.Errorf("decision rests on nodes %v", got)
			}
			next := w.one(t, 1)
			if next.Record.StartAfter > w.now.UnixMilli() || next.Record.Restarts != 0 {
				t.Errorf("replacement is delayed or counted: %v", next.Record)
			}
			want := running
			if tt.waits {
				want = ready
			}
			if next.Desired() != want {
				t.Errorf("replacement desired %v, want %v", next.Desired(), want)
			}
			w.converge(t)
			if got := w.one(t, 1); got.Key != next.Key || got.Desired() != running {
				t.Errorf("did not settle on the replacement:%s", w.print())
			}
		})
	}
}

func TestPausedNodeKeepsItsTasks(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(1)
	w.converge(t)
	w.nodes[w.one(t, 1).NodeID] = plan.Paused
	if p := w.reconcile(t); !p.Empty() {
		t.Errorf("plan%s", describe(p))
	}
}

func TestHungTaskIsWaitedForOneMinute(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(1)
	w.converge(t)
	w.nodes[w.one(t, 1).NodeID] = plan.Drained
	began := w.now
	p := w.reconcile(t)
	if want := began.Add(time.Minute); !p.Next.Equal(want) {
		t.Errorf("next look at %v, want %v", p.Next, want)
	}
	w.now = began.Add(time.Minute - time.Millisecond)
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != ready {
		t.Errorf("desired %v before the minute is over", got)
	}
	w.now = began.Add(time.Minute)
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != running {
		t.Errorf("desired %v after the minute", got)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	tests := []struct {
		name     string
		limit    int64
		attempts uint64
		want     int
	}{
		{"default", 5, 0, 5},
		{"one", 1, 0, 1},
		{"none", 0, 0, 1},
		{"all", -1, 0, 9},
		{"max attempts and one more", 2, 6, 7},
		{"max attempts even of no limit", -1, 6, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.history = tt.limit
			w.spec(null(1, restart(&musterv1.RestartPolicy{MaxAttempts: tt.attempts})))
			w.replicas(1)
			w.converge(t)
			for i := range 8 {
				w.spec(null(uint64(i+2), restart(&musterv1.RestartPolicy{MaxAttempts: tt.attempts})))
				w.converge(t)
			}
			if len(w.tasks) != tt.want {
				t.Errorf("%d records, want %d:%s", len(w.tasks), tt.want, w.print())
			}
			newest := slices.MaxFunc(w.sorted(), func(a, b *state.Task) int { return int(a.Record.CreatedAt - b.Record.CreatedAt) })
			if newest.Desired() != running {
				t.Error("the newest task is not the running one")
			}
		})
	}
}

func TestLowerHistoryLimitHoldsAtOnce(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(2)
	for i := range 6 {
		w.spec(null(uint64(i)))
		w.converge(t)
	}
	if len(w.tasks) != 10 {
		t.Fatalf("%d records, want 10", len(w.tasks))
	}
	w.history = 2
	w.reconcile(t)
	if len(w.tasks) != 4 {
		t.Errorf("%d records, want 4", len(w.tasks))
	}
}

// A task that its node has no room for any more is replaced; one on a paused node
// stays.
func TestCrowdedNodes(t *testing.T) {
	for condition, moves := range map[plan.Condition]bool{plan.Up: true, plan.Paused: false} {
		w := newWorld()
		w.spec(null(1))
		w.replicas(2)
		w.converge(t)
		old := w.one(t, 1)
		w.crowded = map[string]bool{old.ID: true}
		w.nodes[old.NodeID] = condition
		p := w.reconcile(t)
		if p.Empty() == moves {
			t.Fatalf("%v: plan %v", condition, p.Slots)
		}
		if !moves {
			continue
		}
		if s := p.Slots[0]; len(p.Slots) != 1 || !slices.Equal(s.Crowded, []string{old.NodeID}) || len(s.Unfit) > 0 {
			t.Errorf("decision rests on nodes %v and %v", s.Crowded, s.Unfit)
		}
		if got := w.tasks[old.Key].Record; got.DesiredState != shutdown || got.Reason != string(plan.ReasonCrowded) {
			t.Errorf("old task is %v", got)
		}
	}
}

// TestRefusedTasksAreReplaced has the scheduler find that a node cannot run a task after
// all. That is nothing that the task did, so the restart policy has no say.
func TestRefusedTasksAreReplaced(t *testing.T) {
	tests := []struct {
		state     musterv1.TaskState
		condition plan.Condition
		moves     bool
	}{
		{musterv1.TaskState_ASSIGNED, plan.Up, true},
		{musterv1.TaskState_PREPARING, plan.Paused, true},
		{musterv1.TaskState_RUNNING, plan.Up, false},
	}
	for _, tt := range tests {
		t.Run(tt.state.String(), func(t *testing.T) {
			w := newWorld()
			s := null(1)
			s.Restart = &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE}
			w.spec(s)
			w.replicas(1)
			w.converge(t)
			old := w.one(t, 1)
			old.Status.State = tt.state
			old.Assignment = &recordv1.Assignment{Refused: "network back has no address left"}
			w.nodes[old.NodeID] = tt.condition
			p := w.reconcile(t)
			if !tt.moves {
				if !p.Empty() {
					t.Errorf("a task that runs is replaced: %v", p.Slots)
				}
				return
			}
			if got := w.tasks[old.Key].Record; got.DesiredState != shutdown || got.Reason != string(plan.ReasonRefused) {
				t.Errorf("old task is %v", got)
			}
			if next := w.one(t, 1); next.ID == old.ID {
				t.Error("no task follows")
			}
		})
	}
}

// A task whose node does not meet the constraints any more is replaced, whatever
// its own spec; one on a paused node stays.
func TestUnfitNodes(t *testing.T) {
	tests := []struct {
		name      string
		condition plan.Condition
		policy    musterv1.RestartPolicy_Condition
		moves     bool
		follows   bool
	}{
		{"up", plan.Up, musterv1.RestartPolicy_ANY, true, true},
		{"up, never restarted", plan.Up, musterv1.RestartPolicy_NONE, true, false},
		{"paused", plan.Paused, musterv1.RestartPolicy_ANY, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			spec := null(1, restart(&musterv1.RestartPolicy{Condition: tt.policy}))
			spec.Placement = &musterv1.Placement{Constraints: []string{"ssd"}}
			for n := range w.nodes {
				w.labels[n] = "ssd"
			}
			w.spec(spec)
			w.replicas(1)
			w.converge(t)
			old := w.one(t, 1)
			w.labels[old.NodeID], w.nodes[old.NodeID] = "", tt.condition
			p := w.reconcile(t)
			if !tt.moves {
				if !p.Empty() {
					t.Errorf("plan %v", p.Slots)
				}
				return
			}
			if got := w.tasks[old.Key].Record; got.DesiredState != shutdown {
				t.Errorf("old task is %v", got)
			}
			if got := p.Slots[0].Unfit; !slices.Equal(got, []string{old.NodeID}) {
				t.Errorf("decision rests on nodes %v", got)
			}
			if !tt.follows {
				w.converge(t)
				if n := len(w.tasks); n != 1 {
					t.Errorf("%d tasks", n)
				}
				return
			}
			if next := w.one(t, 1); next.Key == old.Key || next.Desired() != ready || next.Record.Restarts != 0 {
				t.Errorf("replacement is %v", next.Record)
			}
		})
	}
}
