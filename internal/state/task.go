package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Task is the join of the records of one task. Its parts are shared and must
// not be changed.
type Task struct {
	ID        string
	ServiceID string
	// Key is that of the task's record.
	Key     string
	Version uint64
	Record  *recordv1.Task
	// NodeID is the node that the task is assigned to, or "".
	NodeID string
	// Assignment is nil until the scheduler has chosen a node.
	Assignment        *recordv1.Assignment
	AssignmentVersion uint64
	// Status is nil until a worker has reported.
	Status        *recordv1.Status
	StatusVersion uint64
}

// State is the observed state: what the worker said, or else how far the
// managers have come. A task that needs no address is born PENDING.
func (t *Task) State() musterv1.TaskState {
	switch {
	case t.Status != nil:
		return max(t.Status.State, musterv1.TaskState_ASSIGNED)
	case t.Assignment != nil:
		return musterv1.TaskState_ASSIGNED
	default:
		return musterv1.TaskState_PENDING
	}
}

// Desired is the desired state.
func (t *Task) Desired() musterv1.TaskState { return t.Record.DesiredState }

// Terminal reports whether the task has ended and will never run again.
func (t *Task) Terminal() bool { return t.State() > musterv1.TaskState_RUNNING }

// Live reports whether the task is meant to run, or to wait until it may.
func (t *Task) Live() bool { return t.Desired() <= musterv1.TaskState_COMPLETE }

// FinishedReason is the reason of a finished task as versions before v0.1.0 wrote
// it. They had no field for it and decided by this text, so it must never be
// reworded. v0.1.0 still writes it, because an orchestrator of the former version
// may run beside a new one during an upgrade. The release after v0.1.0 may stop
// writing and reading it.
const FinishedReason = "restart policy allows no further task"

// Finished reports whether a task has ended and the restart policy allows no task
// to follow it.
func Finished(t *recordv1.Task) bool { return t.GetFinished() || t.GetReason() == FinishedReason }
