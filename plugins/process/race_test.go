//go:build linux

package process_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/sdk"
)

// Two processes of one executor may be there for a moment: one whose worker has
// just died, and the next. Whatever both do to a task at once, it is started at
// most once, and nothing of it is left after Remove.
func TestTwoExecutorsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var both []*process.Executor
	for range 2 {
		executor, err := process.New(process.Config{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		// What is half done when a process begins is done away with, so both
		// begin before there is anything.
		if _, err := executor.List(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		both = append(both, executor)
	}
	for round := range 20 {
		task := &sdk.Task{
			Id: fmt.Sprintf("race%d-%d", time.Now().UnixNano(), round), NodeId: "n1",
			Spec: spec(t, map[string]any{"shell": "exec sleep 1000"}),
		}
		if _, err := both[0].Prepare(t.Context(), task, nil); err != nil {
			t.Fatal(err)
		}
		var starting sync.WaitGroup
		var ids [4]string
		for i := range ids {
			starting.Go(func() {
				started, err := both[i%2].Start(t.Context(), task, nil)
				if err != nil {
					t.Errorf("Start: %v", err)
					return
				}
				ids[i] = started.Status.GetId()
			})
		}
		starting.Wait()
		if ids[0] != ids[1] || ids[0] != ids[2] || ids[0] != ids[3] {
			t.Errorf("four Starts say the processes %q", ids)
		}
		if n := running(t, task.Id); n != 1 {
			t.Errorf("%d of the task run, want 1", n)
		}
		var removing sync.WaitGroup
		for _, executor := range both {
			removing.Go(func() {
				// One of them may be told to try again, for the other is at it.
				for {
					err := executor.Remove(t.Context(), sdk.Ref{TaskID: task.Id})
					if err == nil || sdk.IsNotFound(err) {
						return
					}
					if !errors.Is(err, process.ErrBusy) {
						t.Errorf("Remove: %v", err)
						return
					}
				}
			})
		}
		removing.Wait()
		if found := left(t, dir, task.Id); len(found) > 0 {
			t.Errorf("there is left: %q", found)
		}
	}
}
