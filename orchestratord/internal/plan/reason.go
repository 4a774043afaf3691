package plan

import "errors"

// Reason says why something is done: to people who read the task, to the log
// and to metrics.
type Reason string

// Why tasks are made, ended, started and forgotten.
const (
	ReasonSlotEmpty      Reason = "slot has no task"
	ReasonNodeEligible   Reason = "node has no task"
	ReasonSpecChanged    Reason = "task spec changed"
	ReasonFailed         Reason = "task failed"
	ReasonEnded          Reason = "task ended"
	ReasonNodeDown       Reason = "node is down"
	ReasonNodeDrained    Reason = "node is drained"
	ReasonNodeGone       Reason = "node was removed"
	ReasonNodePaused     Reason = "task ended on a paused node"
	ReasonConstraints    Reason = "node does not meet the constraints"
	ReasonCrowded        Reason = "node has not enough resources any more"
	ReasonRefused        Reason = "node has no network address for the task"
	ReasonSuperseded     Reason = "slot has another task"
	ReasonScaledDown     Reason = "service was scaled down"
	ReasonServiceRemoved Reason = "service was removed"
	ReasonSlotUnused     Reason = "slot is not used any more"
	ReasonMayStart       Reason = "wait is over"
	ReasonHistory        Reason = "history limit"
	ReasonNoRestart      Reason = "restart policy allows no further task"
)

// ErrUnsupported is returned for a service of a mode that this version does
// not know.
var ErrUnsupported = errors.New("service mode is not supported")

// ErrSpecUnknown is returned while the service's task spec is not to be found.
var ErrSpecUnknown = errors.New("task spec is not known")

// reason names what is wrong with a node.
func (c Condition) reason() Reason {
	switch c {
	case Down:
		return ReasonNodeDown
	case Drained:
		return ReasonNodeDrained
	default:
		return ReasonNodeGone
	}
}
