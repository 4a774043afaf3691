package assignments

import (
	"testing"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
)

// batches are members that are read in these steps.
type batches [][]MemberChange

func (b *batches) Read() MemberReader { return b }

func (b *batches) Close() {}

func (b *batches) Next() []MemberChange {
	if len(*b) == 0 {
		return nil
	}
	next := (*b)[0]
	*b = (*b)[1:]
	return next
}

// TestMemberThatReturnsIsNotWithdrawn changes the members of a network between the reads
// of one call: the network is read for itself, and for the task that is attached to it.
func TestMemberThatReturnsIsNotWithdrawn(t *testing.T) {
	t.Parallel()
	peer := MemberChange{Object: &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Peer{
		Peer: &networkv1.Peer{NetworkId: "net", NodeId: "other"},
	}}}
	gone := MemberChange{Withdrawn: &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Peer{
		Peer: &networkv1.PeerRef{NetworkId: "net", NodeId: "other"},
	}}}
	for name, limits := range map[string]Limits{"one message": {Objects: 100, Bytes: 1 << 20}, "small messages": {Objects: 2, Bytes: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			worker, sent := assignmentstest.New(), NewSent(Protocol)
			network := Object{
				Ref: Ref{KindNetwork, "net"}, Version: 1, Held: true, Message: &networkv1.Network{Id: "net"},
				Members: &batches{{peer}, {gone}, {peer}, {gone}, {peer}},
			}
			spec := Object{Ref: Ref{KindSpec, "spec"}, Message: &musterv1.TaskSpec{}}
			offer := func(id string) Offer {
				return Offer{
					Key: "node/service/" + id, Service: "service", ID: id, Version: 1, Objects: []Object{spec, network},
					Task: &dispatcherv1.AssignedTask{Id: id, ServiceId: "service", ServiceName: "web", SpecDigest: []byte("spec"), Networks: []string{"net"}},
				}
			}
			messages := sent.Complete(nil, []Object{network}, limits)
			messages = append(messages, sent.Changes([]Offer{offer("a"), offer("b"), offer("c")}, []Object{network}, limits, time.Now())...)
			for _, m := range messages {
				if err := worker.Apply(m); err != nil {
					t.Fatal(err)
				}
			}
			if worker.Objects["peer/net/other"] == nil {
				t.Error("the worker does not have the peer that returned")
			}
		})
	}
}
