package objects_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// kept is a task in the store, of slot 1 and the service's spec unless it says
// otherwise.
type kept struct {
	slot     uint64
	node     string
	spec     int
	failures uint32
	finished bool
	desired  musterv1.TaskState
	state    musterv1.TaskState
}

// put writes a service and its tasks. Spec counts as world.specs does.
func (w *world) put(t *testing.T, mode *musterv1.ServiceSpec, rollout *recordv1.Rollout, tasks []kept) {
	t.Helper()
	w.update(t, func(tx *store.Tx) {
		mode.Name = "web"
		w.tables.Services.Put(tx, "web", &recordv1.Service{Spec: mode, TaskDigest: w.specs[0]})
		if rollout != nil {
			w.tables.Rollouts.Put(tx, "web", rollout)
		}
		for i, k := range tasks {
			id, node := fmt.Sprint("t", i), k.node
			rec := &recordv1.Task{
				Slot: k.slot, SpecDigest: w.specs[k.spec], DesiredState: max(k.desired, musterv1.TaskState_RUNNING),
				EarlyFailures: k.failures, Finished: k.finished, CreatedAt: int64(i + 1),
			}
			if mode.GetGlobal() != nil {
				rec.Slot, rec.NodeId = 0, node
			} else {
				rec.Slot, node = max(k.slot, 1), "n1"
			}
			w.tables.Tasks.Put(tx, state.TaskKey("web", rec.Slot, rec.NodeId, id), rec)
			if k.state != 0 {
				held := state.NodeTaskKey(node, "web", id)
				w.tables.Assignments.Put(tx, held, &recordv1.Assignment{Slot: rec.Slot})
				w.tables.Statuses.Put(tx, held, &recordv1.Status{State: k.state})
			}
		}
	})
}

func (w *world) status(t *testing.T) *musterv1.ServiceStatus {
	t.Helper()
	var status *musterv1.ServiceStatus
	objects.New(w.store, w.tables, seal.NewKeyring(), 1).Read(func(r *objects.Reader) {
		s, ok := r.Service("web")
		if !ok {
			t.Fatal("the service is missing")
		}
		status = r.ServiceMessage(s).Status
	})
	return status
}

func TestStatusCountsFailingAndFinishedTasks(t *testing.T) {
	t.Parallel()
	const (
		running  = musterv1.TaskState_RUNNING
		failed   = musterv1.TaskState_FAILED
		rejected = musterv1.TaskState_REJECTED
		complete = musterv1.TaskState_COMPLETE
		shutdown = musterv1.TaskState_SHUTDOWN
		remove   = musterv1.TaskState_REMOVE
	)
	paused := &recordv1.Rollout{State: musterv1.UpdateStatus_PAUSED}
	for name, c := range map[string]struct {
		tasks             []kept
		rollout           *recordv1.Rollout
		failing, finished uint64
	}{
		"two early failures":                        {tasks: []kept{{failures: 2}}},
		"three early failures":                      {tasks: []kept{{failures: 3}}, failing: 1},
		"three early failures, and runs now":        {tasks: []kept{{failures: 3, state: running}}},
		"three early failures, about to be removed": {tasks: []kept{{failures: 3, desired: remove}}},
		"rejected before its delay is over":         {tasks: []kept{{failures: 3, state: rejected}}, failing: 1},
		"rejected after two early failures":         {tasks: []kept{{failures: 2, state: rejected}}, failing: 1},
		"rejected after one early failure":          {tasks: []kept{{failures: 1, state: rejected}}},
		"completed after three early failures":      {tasks: []kept{{failures: 3, state: complete}}},
		"fails with a former spec":                  {tasks: []kept{{failures: 3, spec: 1}}},
		"fails with a former spec, update paused":   {tasks: []kept{{failures: 3, spec: 1}}, rollout: paused, failing: 1},
		"ended for good":                            {tasks: []kept{{finished: true, desired: shutdown, state: failed}}, finished: 1},
		"ended for good, before another task":       {tasks: []kept{{finished: true, desired: shutdown, state: failed}, {state: running}}},
		"ended for good, with a former spec":        {tasks: []kept{{finished: true, spec: 1, desired: shutdown, state: failed}}},
		"ended for good, update paused":             {tasks: []kept{{finished: true, spec: 1, desired: shutdown, state: failed}}, rollout: paused, finished: 1},
		"ended for good, about to be removed":       {tasks: []kept{{finished: true, desired: remove, state: failed}}},
		"one slot of each": {
			tasks:   []kept{{failures: 3}, {slot: 2, finished: true, desired: shutdown, state: failed}, {slot: 3, state: running}},
			failing: 1, finished: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, end := newWorld(t)
			defer end()
			w.put(t, &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(1)}}}, c.rollout, c.tasks)
			if got := w.status(t); got.FailingTasks != c.failing || got.FinishedTasks != c.finished {
				t.Errorf("failing %d, finished %d; want %d, %d", got.FailingTasks, got.FinishedTasks, c.failing, c.finished)
			}
		})
	}
}

// A global service has converged although a paused node has a task of a former
// spec: updates leave such tasks alone.
func TestGlobalServiceConvergesBesidePausedNode(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		availability musterv1.NodeSpec_Availability
		want         bool
	}{
		"active": {musterv1.NodeSpec_ACTIVE, false},
		"paused": {musterv1.NodeSpec_PAUSE, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, end := newWorld(t)
			defer end()
			w.update(t, func(tx *store.Tx) {
				for _, node := range []string{"n1", "n2"} {
					w.tables.NodeStates.Put(tx, node, &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{Hostname: node}})
				}
				w.tables.Nodes.Put(tx, "n2", &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: c.availability}})
			})
			w.put(t, &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}}, nil, []kept{
				{node: "n1", state: musterv1.TaskState_RUNNING}, {node: "n2", spec: 1, state: musterv1.TaskState_RUNNING},
			})
			if got := w.status(t); got.Converged != c.want || got.DesiredTasks != 2 || got.RunningTasks != 2 {
				t.Errorf("converged %v, want %v: %v", got.Converged, c.want, got)
			}
		})
	}
}
