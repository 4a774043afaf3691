package liveness

import (
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// nodeStatus is what this dispatcher wants a node's record to say.
type nodeStatus struct {
	// state is STATE_UNSPECIFIED if the record must not change.
	state   musterv1.NodeStatus_State
	message string
	// description is nil if the node had no session with this dispatcher. Address
	// and instance are unknown then.
	description *musterv1.NodeDescription
	address     string
	instance    string
}

// record returns the next record, which is have itself if nothing changes. Both
// may be nil.
func (s nodeStatus) record(have *recordv1.NodeState, now time.Time) *recordv1.NodeState {
	switch {
	case s.state == musterv1.NodeStatus_STATE_UNSPECIFIED:
		return have
	case have == nil && s.description == nil:
		// A node that never had a session is not down.
		return nil
	case have == nil:
		have = &recordv1.NodeState{}
	case s.outdated(have):
		return have
	}
	same := have.State == s.state &&
		(s.description == nil ||
			have.Address == s.address && have.InstanceId == s.instance && proto.Equal(have.Description, s.description)) &&
		// The reason why a node is down does not change, the message of a ready node
		// may.
		(s.state != musterv1.NodeStatus_READY || have.Message == s.message)
	if same {
		return have
	}
	next := &recordv1.NodeState{
		Description: have.Description, Address: have.Address, InstanceId: have.InstanceId,
		State: have.State, Message: have.Message, Since: have.Since, CreatedAt: have.CreatedAt,
	}
	if s.description != nil {
		next.Description, next.Address, next.InstanceId = s.description, s.address, s.instance
	}
	if next.State != s.state {
		next.State, next.Message, next.Since = s.state, s.message, now.UnixMilli()
	}
	if next.State == musterv1.NodeStatus_READY {
		next.Message = s.message
	}
	if next.CreatedAt == 0 {
		next.CreatedAt = now.UnixMilli()
	}
	return next
}

// outdated reports whether the record shows a newer worker process as ready than
// the process whose end this dispatcher would report: the shard has moved to
// another dispatcher, and this one has not noticed yet.
func (s nodeStatus) outdated(have *recordv1.NodeState) bool {
	return s.state != musterv1.NodeStatus_READY && s.description != nil &&
		have.State == musterv1.NodeStatus_READY && have.InstanceId != s.instance
}

// sameLife reports whether a record differs at most in what the worker reports.
// Such a change may wait, and a change of liveness may not.
func (s nodeStatus) sameLife(have *recordv1.NodeState) bool {
	return have != nil && have.State == s.state && (s.description == nil || have.InstanceId == s.instance)
}

// reason returns why the node is in its state, for people.
func (s nodeStatus) reason() string {
	if s.message != "" {
		return s.message
	}
	return "its worker is connected"
}
