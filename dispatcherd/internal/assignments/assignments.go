// Package assignments decides what a worker must be told. A [Reader] joins a
// node's assignments in a snapshot with what they refer to. [Sent] records what
// a worker was sent in one session, and turns offers into the messages that
// bring the worker up to date.
//
// A task refers to objects: its spec, and its dependencies. Sent sends an object
// before the first task that refers to it, sends it again when it changes, and
// withdraws it after the last task that refers to it. A node can hold an object
// without a task, and an object can bring members with it (members.go): a network
// does both. Sent knows nothing else about an object but its reference and its
// version, so a new kind of object is one case in object.go and one join in
// reader.go.
package assignments

import (
	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Protocol is the newest assignment protocol that this package speaks. See
// [dispatcherv1.Hello].
const Protocol = 4

// Offer is one assignment as a snapshot shows it, joined with what it refers to.
type Offer struct {
	// Key is the assignment's: "<node>/<service>/<task>".
	Key string
	// Service and ID are the second and third segment of Key.
	Service, ID string
	// Version is the assignment's; 0 if there is no such assignment.
	Version uint64
	// AssignedAt is when the node was chosen, in Unix milliseconds.
	AssignedAt int64
	// Task is nil if the node must not run it: the assignment or the task's
	// record is gone.
	Task *dispatcherv1.AssignedTask
	// Objects are what the task refers to.
	Objects []Object
	// Lags says that something which the assignment refers to is missing from
	// the snapshot, and may only be late: each table arrives on its own.
	Lags bool
}

// missing reports whether the snapshot lacks an object that the worker does not
// have either.
func (o *Offer) missing(sent map[Ref]*sentObject) bool {
	for _, object := range o.Objects {
		if object.Message == nil && sent[object.Ref] == nil {
			return true
		}
	}
	return false
}

// protocol returns the first assignment protocol that has all objects of the task.
func (o *Offer) protocol() uint32 {
	first := uint32(0)
	for _, object := range o.Objects {
		first = max(first, object.Ref.Kind.protocol())
	}
	return first
}

// stops reports whether the task must stop. It then needs neither its service
// nor its objects, which may be gone for good.
func (o *Offer) stops() bool {
	return o.Task.DesiredState > musterv1.TaskState_COMPLETE
}

// Limits bound one message.
type Limits struct {
	// Objects is the greatest number of tasks and withdrawals.
	Objects int
	// Bytes is the size from which on a message takes no further object.
	Bytes int
}
