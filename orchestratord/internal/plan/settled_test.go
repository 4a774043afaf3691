package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// TestSettledSlotsChangeNoDecision changes tasks, nodes and a service as they come,
// and compares what is decided with an index that has seen all of it with what is
// decided on all slots.
func TestSettledSlotsChangeNoDecision(t *testing.T) {
	const id = "s"
	rapid.Check(t, func(t *rapid.T) {
		cluster := newWorld()
		cluster.crowded = map[string]bool{}
		delete(cluster.nodes, "c")
		index := plan.NewIndex(id, slices.Values([]*state.Task(nil)))
		replicas := uint64(3)
		record := &recordv1.Service{TaskDigest: []byte("new"), SpecVersion: 2, Spec: &musterv1.ServiceSpec{}}
		version := uint64(1)
		var rollout *recordv1.Rollout
		made := int64(0)
		draw := func(t *rapid.T) *state.Task {
			slot := rapid.Uint64Range(1, 5).Draw(t, "slot")
			task := fmt.Sprintf("t%d", rapid.IntRange(1, 2).Draw(t, "id"))
			made++
			x := &state.Task{ID: task, ServiceID: id, Key: state.TaskKey(id, slot, "", task), Version: uint64(made), Record: &recordv1.Task{
				Slot: slot, SpecDigest: []byte(rapid.SampledFrom([]string{"new", "new", "old", "other"}).Draw(t, "digest")), CreatedAt: made,
				DesiredState: rapid.SampledFrom([]musterv1.TaskState{
					musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING,
					musterv1.TaskState_READY, musterv1.TaskState_SHUTDOWN, musterv1.TaskState_REMOVE,
				}).Draw(t, "desired"),
			}}
			if rapid.Bool().Draw(t, "in turn") {
				x.Record.Turn = &recordv1.Turn{}
			}
			if rapid.IntRange(0, 4).Draw(t, "assigned") > 0 {
				x.NodeID, x.Assignment = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node"), &recordv1.Assignment{}
				x.Status = &recordv1.Status{State: rapid.SampledFrom([]musterv1.TaskState{
					musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING,
					musterv1.TaskState_READY, musterv1.TaskState_FAILED, musterv1.TaskState_COMPLETE, musterv1.TaskState_ORPHANED,
				}).Draw(t, "state")}
			}
			return x
		}
		decide := func(by func(*plan.Input) (plan.Plan, error)) plan.Plan {
			p, err := by(&plan.Input{
				Now: cluster.now, ServiceID: id, Service: record, Rollout: rollout, Tasks: index, Cluster: cluster, HistoryLimit: 5,
				Spec: func(digest []byte) *musterv1.TaskSpec {
					return &musterv1.TaskSpec{ForceUpdate: uint64(len(digest) - 3)} // all but one are the same
				},
				NewID: func() string { return "made" },
			})
			if err != nil {
				t.Fatal(err)
			}
			p.Whole = false
			return p
		}
		t.Repeat(map[string]func(*rapid.T){
			"task": func(t *rapid.T) { index.Set(draw(t)) },
			"tasks": func(t *rapid.T) {
				for range 5 {
					index.Set(draw(t))
				}
			},
			"task goes": func(t *rapid.T) { index.Remove(draw(t).Key) },
			"settle": func(*rapid.T) {
				for _, x := range index.All() {
					if x.NodeID != "" && x.Live() {
						done := *x
						done.Record = &recordv1.Task{
							Slot: x.Record.Slot, SpecDigest: record.TaskDigest, CreatedAt: x.Record.CreatedAt, DesiredState: musterv1.TaskState_RUNNING,
						}
						done.Status = &recordv1.Status{State: musterv1.TaskState_RUNNING}
						index.Set(&done)
					}
				}
			},
			"node": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node")
				cluster.nodes[id] = rapid.SampledFrom([]plan.Condition{plan.Up, plan.Up, plan.Paused, plan.Drained, plan.Down}).Draw(t, "condition")
				for _, x := range index.All() {
					if x.NodeID == id {
						index.Touch(x)
					}
				}
			},
			"service": func(t *rapid.T) {
				replicas = rapid.Uint64Range(0, 5).Draw(t, "replicas")
				version++
				record = &recordv1.Service{
					TaskDigest: []byte(rapid.SampledFrom([]string{"new", "old"}).Draw(t, "digest")), SpecVersion: version,
					Spec: &musterv1.ServiceSpec{Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}}},
				}
			},
			"rollout": func(t *rapid.T) {
				rollout = rapid.SampledFrom([]*recordv1.Rollout{
					nil, {State: musterv1.UpdateStatus_UPDATING, SpecVersion: version}, {State: musterv1.UpdateStatus_COMPLETED, SpecVersion: version},
				}).Draw(t, "rollout")
			},
			"room": func(t *rapid.T) {
				for _, x := range index.All() {
					if x.ID == "t1" {
						cluster.crowded[x.ID] = rapid.Bool().Draw(t, "crowded")
						index.Touch(x)
					}
				}
			},
			"": func(t *rapid.T) {
				if diff := cmp.Diff(decide(plan.DecideWhole), decide(plan.Decide), protocmp.Transform()); diff != "" {
					t.Fatalf("decided differently (-on all +without settled slots):\n%s", diff)
				}
			},
		})
	})
}

// A service of 100 tasks that run, of which one fails and one is missing.
func TestDecisionLeavesSettledSlotsOut(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(100)
	w.converge(t)
	for _, x := range w.tasks {
		if x.Record.Slot == 40 {
			delete(w.tasks, x.Key)
		}
	}
	w.report(w.one(t, 30), failed)
	v := w.view()
	v.WholeAfter = w.now.Add(1)
	p, err := plan.Decide(v)
	if err != nil {
		t.Fatal(err)
	}
	var slots []string
	for _, s := range p.Slots {
		slots = append(slots, s.Prefix)
	}
	want := []string{state.TaskKey(serviceID, 30, "", ""), state.TaskKey(serviceID, 40, "", "")}
	if diff := cmp.Diff(want, slots); diff != "" || p.Whole || p.Postponed {
		t.Errorf("whole %t, postponed %t, slots (-want +got):\n%s", p.Whole, p.Postponed, diff)
	}
}

// Which slots are given up is chosen among all, and not too often for many.
func TestDecisionOnAllSlotsWaitsUntilItMay(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"scaled down": func(w *world) { w.replicas(4) },
		"updated":     func(w *world) { w.spec(null(2)) },
		"removed":     func(w *world) { w.service = nil },
	} {
		w := newWorld()
		w.spec(null(1))
		w.replicas(5)
		w.converge(t)
		change(w)
		v := w.view()
		v.WholeAfter = w.now.Add(1)
		p, err := plan.Decide(v)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Postponed || p.Whole || !p.Next.Equal(v.WholeAfter) || !p.Empty() {
			t.Errorf("%s: postponed %t, whole %t, next %v, empty %t before it may be decided", name, p.Postponed, p.Whole, p.Next, p.Empty())
		}
		v.Now = v.WholeAfter
		if p, err = plan.Decide(v); err != nil || p.Postponed || !p.Whole || p.Empty() {
			t.Errorf("%s: postponed %t, whole %t, empty %t, error %v once it may be decided", name, p.Postponed, p.Whole, p.Empty(), err)
		}
	}
}
