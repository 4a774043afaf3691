package faults_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestPowerLoss takes the power from everything at once, several times: managers,
// store, workers, plugins and tasks. What was accepted before is there afterwards,
// each slot runs exactly once, and what ran is replaced once for each time.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]cluster.Config{
		"embedded": {Embedded: true, OnDisk: true},
		"consul":   {Replicas: 2, ConsulServers: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			losePower(t, start(t, cfg, "one", "two"))
		})
	}
}

func losePower(t *testing.T, r *rig.Rig) {
	const steady, late = 6, 4
	services := map[string]int{"steady": steady}
	_, err := r.Create(t.Context(), rig.Processes("steady", steady, rig.Sleep))
	ok(t, err)
	all := func(ctx context.Context) error {
		for service, n := range services {
			if _, err := r.Running(ctx, service, n); err != nil {
				return fmt.Errorf("%s: %w", service, err)
			}
		}
		return r.Truthful(ctx)
	}
	wait.Within(t, waitTimeout, "all runs", all)
	// How far what was asked for last gets before the power goes.
	pauses := []time.Duration{0, 30 * time.Millisecond, 150 * time.Millisecond}
	for i, pause := range pauses {
		service := fmt.Sprint("late-", i)
		services[service] = late
		_, err := r.Create(t.Context(), rig.Processes(service, late, rig.Sleep))
		ok(t, err)
		<-time.After(pause)
		ok(t, r.PowerLoss())
		wait.Within(t, waitTimeout, "nothing runs", r.Dark)
		ok(t, r.PowerOn(t.Context()))
		took := wait.Within(t, 2*waitTimeout, "each slot runs once", all)
		t.Logf("all ran %v after the power was back", took)
		once(t, r, "steady", i+2)
	}
}

// once fails unless each slot of a service has had a number of tasks, of which the
// last alone runs.
func once(t *testing.T, r *rig.Rig, service string, want int) {
	t.Helper()
	tasks, err := r.Tasks(t.Context(), service)
	ok(t, err)
	bySlot := map[uint64][]*musterv1.Task{}
	for _, task := range tasks {
		bySlot[task.Slot] = append(bySlot[task.Slot], task)
	}
	for slot, tasks := range bySlot {
		if len(tasks) != want {
			t.Errorf("slot %d of %s has had %d tasks, want %d: %v", slot, service, len(tasks), want, tasks)
		}
	}
}
