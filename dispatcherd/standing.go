package dispatcherd

import (
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// standing is what this dispatcher would have a node's record say.
type standing struct {
	// state is STATE_UNSPECIFIED to leave the record as it is.
	state   musterv1.NodeStatus_State
	message string
	// description is nil if the node has not spoken to this dispatcher. Then
	// address and instance are not known either.
	description *musterv1.NodeDescription
	address     string
	instance    string
}

// record returns the record that should follow the one there is: the same
// one, if it says everything already. There may be none.
func (s standing) record(have *recordv1.NodeState, now time.Time) *recordv1.NodeState {
	switch {
	case s.state == musterv1.NodeStatus_STATE_UNSPECIFIED:
		return have
	case have == nil && s.description == nil:
		// What nobody ever heard of is not down.
		return nil
	case have == nil:
		have = &recordv1.NodeState{}
	case s.overtaken(have):
		return have
	}
	same := have.State == s.state &&
		(s.description == nil ||
			have.Address == s.address && have.InstanceId == s.instance && proto.Equal(have.Description, s.description)) &&
		// Why a node fell is said once; what there is to say of one that lives may
		// change.
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

// overtaken reports whether the record shows a newer worker process alive than
// the one whose end this dispatcher would report: the shard has passed on to
// another, and this one has not noticed yet.
func (s standing) overtaken(have *recordv1.NodeState) bool {
	return s.state != musterv1.NodeStatus_READY && s.description != nil &&
		have.State == musterv1.NodeStatus_READY && have.InstanceId != s.instance
}
