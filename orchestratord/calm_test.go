package orchestratord

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// TestCalmSlotsChangeNoDecision changes tasks, nodes and a service as they come,
// and compares what is decided without the calm slots with what is decided on all.
func TestCalmSlotsChangeNoDecision(t *testing.T) {
	const id = "s"
	now := time.UnixMilli(1_000_000)
	rapid.Check(t, func(t *rapid.T) {
		l := &loop{d: &Daemon{cfg: Config{LookShare: 1}}, nodes: newNodes(state.NewTables()), history: defaultHistory}
		for _, id := range []string{"a", "b"} {
			l.nodes.byID[id], l.nodes.conditions[id] = placement.NewNode(id, nil, nil), plan.Up
		}
		s := &service{tasks: newTaskList(id, slices.Values([]*state.Task(nil)))}
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
				Slot: slot, SpecDigest: []byte(rapid.SampledFrom([]string{"new", "new", "new", "old"}).Draw(t, "digest")), CreatedAt: made,
				DesiredState: rapid.SampledFrom([]musterv1.TaskState{
					musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING,
					musterv1.TaskState_READY, musterv1.TaskState_SHUTDOWN, musterv1.TaskState_REMOVE,
				}).Draw(t, "desired"),
			}}
			if rapid.IntRange(0, 4).Draw(t, "assigned") > 0 {
				x.NodeID, x.Assignment = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node"), &recordv1.Assignment{}
				x.Status = &recordv1.Status{State: rapid.SampledFrom([]musterv1.TaskState{
					musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING, musterv1.TaskState_RUNNING,
					musterv1.TaskState_READY, musterv1.TaskState_FAILED, musterv1.TaskState_COMPLETE, musterv1.TaskState_ORPHANED,
				}).Draw(t, "state")}
			}
			return x
		}
		decide := func(all bool) plan.Plan {
			w := &plan.World{
				Now: now, ServiceID: id, Service: record, Rollout: rollout, Cluster: l.nodes, HistoryLimit: l.history,
				Spec:  func([]byte) *musterv1.TaskSpec { return &musterv1.TaskSpec{} },
				NewID: func() string { return "made" },
			}
			c := &commit{service: id, version: version}
			c.replicas, c.counted = plan.Replicas(record)
			var p plan.Plan
			var err error
			if all {
				w.Tasks = s.tasks.all()
				p, err = plan.Decide(w)
			} else {
				s.wholeAfter = time.Time{}
				p, err = l.decide(s, c, w)
			}
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		t.Repeat(map[string]func(*rapid.T){
			"task": func(t *rapid.T) { s.tasks.set(draw(t)) },
			"tasks": func(t *rapid.T) {
				for range 5 {
					s.tasks.set(draw(t))
				}
			},
			"task goes": func(t *rapid.T) { s.tasks.remove(draw(t).Key) },
			"settle": func(*rapid.T) {
				for _, x := range s.tasks.all() {
					if x.NodeID != "" && x.Live() {
						done := *x
						done.Record = &recordv1.Task{
							Slot: x.Record.Slot, SpecDigest: record.TaskDigest, CreatedAt: x.Record.CreatedAt, DesiredState: musterv1.TaskState_RUNNING,
						}
						done.Status = &recordv1.Status{State: musterv1.TaskState_RUNNING}
						s.tasks.set(&done)
					}
				}
			},
			"node": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node")
				l.nodes.conditions[id] = rapid.SampledFrom([]plan.Condition{plan.Up, plan.Up, plan.Paused, plan.Drained, plan.Down}).Draw(t, "condition")
				for _, x := range s.tasks.all() {
					if x.NodeID == id {
						s.tasks.calm.touch(x)
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
			"": func(t *rapid.T) {
				if diff := cmp.Diff(decide(true), decide(false), protocmp.Transform()); diff != "" {
					t.Fatalf("decided differently (-on all +without calm slots):\n%s", diff)
				}
			},
		})
	})
}
