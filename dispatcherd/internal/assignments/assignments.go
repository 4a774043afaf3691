// Package assignments decides what a worker must be told. A [Reader] joins a
// node's assignments in a snapshot with what they refer to. [Sent] records what
// a worker was sent in one session, and turns offers into the messages that
// bring the worker up to date.
//
// A task refers to objects: its spec, and its dependencies. Sent sends an object
// before the first task that refers to it, sends it again when it changes, and
// withdraws it after the last task that refers to it. It knows nothing about an
// object but its reference and its version, so a new kind of object is one case
// in object.go and one join in reader.go.
package assignments

import (
	"slices"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Protocol is the newest assignment protocol that this package speaks. See
// [dispatcherv1.Hello].
const Protocol = 1

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

// needsObjects reports whether the task refers to more than its spec.
func (o *Offer) needsObjects() bool {
	return slices.ContainsFunc(o.Objects, func(object Object) bool { return object.Ref.Kind != KindSpec })
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
