// Package lifecycle knows the states of a task on a worker, and what to do
// next in each of them. It decides and does nothing: state in, step out.
//
// The rules are SwarmKit's (agent/exec, Do): one step at a time, a task waits
// at READY while only that is desired, observed states only rise, and a task
// is REJECTED if it fails before STARTING and FAILED if it does so later.
package lifecycle

import (
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Op is what an executor is asked to do.
type Op int

// What an executor is asked to do.
const (
	// Nothing: the task is as far as it is desired, or has ended.
	Nothing Op = iota
	// Advance is no call: the task just moves on to the next state.
	Advance
	Prepare
	Start
	Wait
	Shutdown
)

// String returns the name of the call, for logs and metrics.
func (o Op) String() string {
	return [...]string{"nothing", "advance", "prepare", "start", "wait", "shutdown"}[o]
}

// Step is the next thing to do, and where it leads if it succeeds.
type Step struct {
	Op      Op
	To      musterv1.TaskState
	Message string
}

// Next returns the next step of a task.
func Next(state, desired musterv1.TaskState) Step {
	switch {
	case desired >= musterv1.TaskState_SHUTDOWN:
		if Ended(state) {
			return Step{}
		}
		return Step{Shutdown, musterv1.TaskState_SHUTDOWN, "shutdown"}
	case state > desired:
		return Step{}
	}
	// What has been begun is finished, even beyond what is desired.
	switch state {
	case musterv1.TaskState_PREPARING:
		return Step{Prepare, musterv1.TaskState_READY, "prepared"}
	case musterv1.TaskState_STARTING:
		return Step{Start, musterv1.TaskState_RUNNING, "started"}
	case musterv1.TaskState_RUNNING:
		return Step{Wait, musterv1.TaskState_COMPLETE, "finished"}
	}
	if state >= desired {
		return Step{}
	}
	switch state {
	case musterv1.TaskState_TASK_STATE_UNSPECIFIED, musterv1.TaskState_NEW, musterv1.TaskState_PENDING, musterv1.TaskState_ASSIGNED:
		return Step{Advance, musterv1.TaskState_ACCEPTED, "accepted"}
	case musterv1.TaskState_ACCEPTED:
		return Step{Advance, musterv1.TaskState_PREPARING, "preparing"}
	case musterv1.TaskState_READY:
		return Step{Advance, musterv1.TaskState_STARTING, "starting"}
	}
	return Step{}
}

// Failure returns the state that a fatal error leads to.
func Failure(state musterv1.TaskState) musterv1.TaskState {
	if state < musterv1.TaskState_STARTING {
		return musterv1.TaskState_REJECTED
	}
	return musterv1.TaskState_FAILED
}

// Ended says whether a state is terminal: the task will never run again.
func Ended(state musterv1.TaskState) bool { return state > musterv1.TaskState_RUNNING }

// Touched says whether an executor may hold something of a task in a state.
func Touched(state musterv1.TaskState) bool { return state >= musterv1.TaskState_PREPARING }
