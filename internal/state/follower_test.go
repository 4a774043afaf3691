package state_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// joined returns all tasks by id, joined by looking at every record.
func joined(tables *state.Tables, sn *store.Snapshot) map[string]*state.Task {
	tasks := map[string]*state.Task{}
	for e := range tables.Tasks.Scan(sn, "") {
		service, _, id := state.SplitKey(e.Key)
		tasks[id] = &state.Task{ID: id, ServiceID: service, Key: e.Key, Version: e.Version, Record: e.Value}
	}
	for e := range tables.Assignments.Scan(sn, "") {
		node, _, id := state.SplitKey(e.Key)
		t := tasks[id]
		if t == nil {
			continue
		}
		t.NodeID, t.Assignment, t.AssignmentVersion = node, e.Value, e.Version
		if s, ok := tables.Statuses.Get(sn, e.Key); ok {
			t.Status, t.StatusVersion = s.Value, s.Version
		}
	}
	return tasks
}

// TestFollowerJoins changes the tables in any order, as they may be seen, and
// compares what a follower makes of each change with a join of everything. A
// task has one assignment at a time.
func TestFollowerJoins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		space, err := embedded.Open(embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = space.Close() }()
		tables := state.NewTables()
		s, err := store.New(store.Options{KV: space}, tables.Services, tables.Tasks, tables.Assignments, tables.Statuses)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		if err := s.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		follower := state.NewFollower(tables)
		before := map[string]*state.Task{}
		id, node := rapid.IntRange(1, 4), rapid.SampledFrom([]string{"a", "b"})
		change := func(tx *store.Tx, t *rapid.T) {
			n := id.Draw(t, "task")
			service, task := fmt.Sprintf("s%d", n%2), fmt.Sprintf("t%d", n)
			key, at := state.TaskKey(service, uint64(n), "", task), state.NodeTaskKey(node.Draw(t, "node"), service, task)
			switch rapid.SampledFrom([]string{"task", "task goes", "assign", "unassign", "status", "status goes"}).Draw(t, "deed") {
			case "task":
				tables.Tasks.Put(tx, key, &recordv1.Task{Slot: uint64(n), DesiredState: musterv1.TaskState(rapid.IntRange(1, 5).Draw(t, "desired"))})
			case "task goes":
				tables.Tasks.Delete(tx, key)
			case "assign":
				for _, other := range []string{"a", "b"} {
					if k := state.NodeTaskKey(other, service, task); k != at {
						tables.Assignments.Delete(tx, k)
					}
				}
				tables.Assignments.Put(tx, at, &recordv1.Assignment{Slot: uint64(n), AssignedAt: int64(rapid.IntRange(1, 3).Draw(t, "at"))})
			case "unassign":
				tables.Assignments.Delete(tx, at)
			case "status":
				tables.Statuses.Put(tx, at, &recordv1.Status{State: musterv1.TaskState(rapid.IntRange(4, 12).Draw(t, "state"))})
			case "status goes":
				tables.Statuses.Delete(tx, at)
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "looks") {
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				if err := s.Update(ctx, func(tx *store.Tx) error { change(tx, t); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			delta := follower.Advance(s.Snapshot())
			want := joined(tables, s.Snapshot())
			got := map[string]*state.Task{}
			for x := range follower.Tasks() {
				got[x.ID] = x
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Fatalf("joined differently (-all +follower):\n%s", diff)
			}
			onNodes := map[string]*state.Task{}
			for _, n := range []string{"a", "b"} {
				for x := range follower.NodeTasks(n) {
					if onNodes[x.ID] = x; x.NodeID != n {
						t.Errorf("task %s of node %q is among those of %s", x.ID, x.NodeID, n)
					}
				}
			}
			for n := range 4 {
				task := fmt.Sprintf("t%d", n+1)
				if x := want[task]; x != nil && x.NodeID != "" && onNodes[task] == nil {
					t.Errorf("task %s is missing among those of %s", task, x.NodeID)
				}
				_, told := delta.Tasks[task]
				if !told && !cmp.Equal(before[task], want[task], protocmp.Transform()) {
					t.Errorf("a change of task %s is not told", task)
				}
			}
			before = want
		}
	})
}

func TestStateIsTheJoin(t *testing.T) {
	status := func(s musterv1.TaskState) *recordv1.Status { return &recordv1.Status{State: s} }
	tests := []struct {
		name string
		task state.Task
		want musterv1.TaskState
	}{
		{"no node yet", state.Task{}, musterv1.TaskState_PENDING},
		{"no word yet", state.Task{Assignment: &recordv1.Assignment{}}, musterv1.TaskState_ASSIGNED},
		{"what its worker says", state.Task{Assignment: &recordv1.Assignment{}, Status: status(musterv1.TaskState_FAILED)}, musterv1.TaskState_FAILED},
		{"a worker lowers nothing", state.Task{Assignment: &recordv1.Assignment{}, Status: status(musterv1.TaskState_NEW)}, musterv1.TaskState_ASSIGNED},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.task.State(); got != tt.want {
				t.Errorf("state %v, want %v", got, tt.want)
			}
		})
	}
}
