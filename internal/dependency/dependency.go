// Package dependency decides whether what a service depends on is there. The
// orchestrator starts tasks by it, and apid explains by it why tasks wait, so that both
// say the same.
package dependency

import (
	"fmt"
	"slices"
	"strings"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
)

// Cluster is the services and tasks at one moment.
type Cluster struct {
	Tables *state.Tables
	// Tasks has the moment's snapshot.
	Tasks *state.Follower
	// ServiceID finds a service by its folded name.
	ServiceID func(folded string) (id string, ok bool)
}

// Fold returns a service's name without the case of its letters, which does not count.
func Fold(name string) string { return strings.ToLower(name) }

// Waits returns what a service with this spec has to wait for, "shop_db: 0 of 1 tasks
// healthy", or "" if all of its dependencies are there.
func (c Cluster) Waits(spec *musterv1.ServiceSpec) string {
	var waits []string
	for _, d := range spec.GetDependsOn() {
		if why := c.lacks(d); why != "" {
			waits = append(waits, d.Service+": "+why)
		}
	}
	return strings.Join(waits, ", ")
}

// Required reports whether a service that does not exist is waited for.
func Required(d *musterv1.ServiceDependency) bool { return d.Required == nil || d.GetRequired() }

// lacks returns why a dependency is not there, or "".
func (c Cluster) lacks(d *musterv1.ServiceDependency) string {
	id, ok := c.ServiceID(Fold(d.Service))
	if !ok {
		if !Required(d) {
			return ""
		}
		return "there is no such service yet"
	}
	now := c.Tasks.Snapshot()
	e, ok := c.Tables.Services.Get(now, id)
	if !ok {
		return "there is no such service yet"
	}
	rollout, _ := c.Tables.Rollouts.Get(now, id)
	if updating(e.Value, rollout.Value) {
		return "its update is in progress"
	}
	return c.count(id, e.Value, d.Condition)
}

// updating reports whether tasks of a service are being replaced, or will be at once.
func updating(s *recordv1.Service, r *recordv1.Rollout) bool {
	switch r.GetState() {
	case musterv1.UpdateStatus_UPDATING, musterv1.UpdateStatus_ROLLBACK_STARTED:
		return true
	}
	// The orchestrator records a rollout for each update, even one that replaces nothing.
	return (r != nil || len(s.FormerTaskDigest) > 0) && !state.IsCurrent(s, r)
}

// count counts the slots in which a condition holds, and returns why they are too few.
func (c Cluster) count(id string, s *recordv1.Service, condition musterv1.ServiceDependency_Condition) string {
	holds, done := hasRun, "running"
	switch condition {
	case musterv1.ServiceDependency_HEALTHY:
		holds, done = isHealthy, "healthy"
	case musterv1.ServiceDependency_COMPLETED:
		holds, done = hasCompleted, "completed"
	}
	var have, slots, failed uint64
	for tasks := range c.slots(id) {
		if !slices.ContainsFunc(tasks, func(t *state.Task) bool { return t.Live() || state.Finished(t.Record) }) {
			continue // nothing but the past of a slot that was given up
		}
		slots++
		if holds(tasks) {
			have++
		} else if condition == musterv1.ServiceDependency_COMPLETED && ended(tasks, musterv1.TaskState_FAILED) {
			failed++
		}
	}
	want := max(defaults.Replicas(s.GetSpec()), 1)
	if s.GetSpec().GetGlobal() != nil {
		want = max(slots, 1)
	}
	switch {
	case have >= want:
		return ""
	case failed > 0:
		return fmt.Sprintf("%d of %d tasks %s, %d failed", have, want, done, failed)
	default:
		return fmt.Sprintf("%d of %d tasks %s", have, want, done)
	}
}

// slots yields the tasks of each slot. The slices hold until the next.
func (c Cluster) slots(id string) func(yield func([]*state.Task) bool) {
	return func(yield func([]*state.Task) bool) {
		var tasks []*state.Task
		for t := range c.Tasks.ServiceTasks(id) {
			if len(tasks) > 0 && (t.Record.Slot != tasks[0].Record.Slot || t.Record.Slot == 0 && t.Record.NodeId != tasks[0].Record.NodeId) {
				if !yield(tasks) {
					return
				}
				tasks = tasks[:0]
			}
			tasks = append(tasks, t)
		}
		if len(tasks) > 0 {
			yield(tasks)
		}
	}
}

// hasRun reports whether a task of a slot runs, or has run.
func hasRun(tasks []*state.Task) bool {
	return slices.ContainsFunc(tasks, func(t *state.Task) bool {
		if s := t.State(); s == musterv1.TaskState_RUNNING || s == musterv1.TaskState_COMPLETE {
			return true
		}
		for reached := range state.Times(t.Status) {
			if reached.State == musterv1.TaskState_RUNNING {
				return true
			}
		}
		return false
	})
}

// isHealthy reports whether a slot has a task that runs. A task with a health check is
// not RUNNING before the check has succeeded.
func isHealthy(tasks []*state.Task) bool {
	return slices.ContainsFunc(tasks, func(t *state.Task) bool {
		return t.Live() && t.State() == musterv1.TaskState_RUNNING && t.Status.GetRuntime().GetHealth().GetState() != musterv1.Health_UNHEALTHY
	})
}

// hasCompleted reports whether a slot's last task has ended with success, and no other
// will follow it.
func hasCompleted(tasks []*state.Task) bool { return ended(tasks, musterv1.TaskState_COMPLETE) }

// ended reports whether a slot's last task has ended in a state for good.
func ended(tasks []*state.Task, in musterv1.TaskState) bool {
	last := slices.MaxFunc(tasks, func(a, b *state.Task) int { return int(a.Record.CreatedAt - b.Record.CreatedAt) })
	return state.Finished(last.Record) && last.State() == in
}
