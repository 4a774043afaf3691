package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Task is the join of the records of one task. Its records are shared and must not be
// changed.
type Task struct {
	ID        string
	ServiceID string
	// Key is the key of the task's record.
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

// State returns the observed state: the state that the worker has reported, or otherwise
// the progress of the managers. New tasks are PENDING.
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

// Desired returns the desired state.
func (t *Task) Desired() musterv1.TaskState { return t.Record.DesiredState }

// Terminal reports whether the task has ended and will never run again.
func (t *Task) Terminal() bool { return t.State() > musterv1.TaskState_RUNNING }

// Live reports whether the task should run, now or after waiting.
func (t *Task) Live() bool { return t.Desired() <= musterv1.TaskState_COMPLETE }

// FinishedReason is the reason that versions before v0.1.0 gave finished tasks. They had
// no field for it and decided by this text, so it must never be changed. v0.1.0 still
// writes it, because orchestrators of both versions run during an upgrade. The release
// after v0.1.0 may stop writing and reading it.
const FinishedReason = "restart policy allows no further task"

// Finished reports whether a task has ended and the restart policy does not allow a
// replacement.
func Finished(t *recordv1.Task) bool { return t.GetFinished() || t.GetReason() == FinishedReason }
