package dependencies_test

import (
	"slices"
	"testing"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/dependencies"
)

// noNetworks is for tests that are not about networks.
type noNetworks struct{}

func (noNetworks) Begin()                           {}
func (noNetworks) Complete()                        {}
func (noNetworks) Put(*dispatcherv1.AssignedObject) {}
func (noNetworks) Remove(string)                    {}
func (noNetworks) Withdraw(*dispatcherv1.ObjectRef) {}

// recorded records what a store says of networks.
type recorded struct{ calls []string }

func (r *recorded) Begin()    { r.calls = append(r.calls, "begin") }
func (r *recorded) Complete() { r.calls = append(r.calls, "complete") }

func (r *recorded) Put(o *dispatcherv1.AssignedObject) {
	switch o := o.GetObject().(type) {
	case *dispatcherv1.AssignedObject_Network:
		r.calls = append(r.calls, "network "+o.Network.GetId())
	case *dispatcherv1.AssignedObject_Peer:
		r.calls = append(r.calls, "peer "+o.Peer.GetNodeId())
	case *dispatcherv1.AssignedObject_Service:
		r.calls = append(r.calls, "service "+o.Service.GetId())
	case *dispatcherv1.AssignedObject_Backends:
		r.calls = append(r.calls, "backends "+o.Backends.GetServiceId())
	}
}

func (r *recorded) Remove(id string) { r.calls = append(r.calls, "remove "+id) }

func (r *recorded) Withdraw(ref *dispatcherv1.ObjectRef) {
	if p := ref.GetPeer(); p != nil {
		r.calls = append(r.calls, "withdraw peer "+p.GetNodeId())
	}
	if id := ref.GetNetwork(); id != "" {
		r.calls = append(r.calls, "withdraw network "+id)
	}
}

// want checks and forgets what was recorded.
func (r *recorded) want(t *testing.T, calls ...string) {
	t.Helper()
	if !slices.Equal(r.calls, calls) {
		t.Errorf("recorded %q, want %q", r.calls, calls)
	}
	r.calls = nil
}

func putNetwork(s *dependencies.Store, id string) {
	s.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{Id: id}}})
}

func networkRef(id string) *dispatcherv1.ObjectRef {
	return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Network{Network: id}}
}

func TestMembersOfNetworksArePassedOn(t *testing.T) {
	t.Parallel()
	r := &recorded{}
	s := dependencies.New(r)
	putNetwork(s, "n")
	s.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Peer{Peer: &networkv1.Peer{NodeId: "p"}}})
	s.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Service{Service: &networkv1.Service{Id: "s"}}})
	s.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Backends{Backends: &networkv1.Backends{ServiceId: "s"}}})
	s.Withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Peer{Peer: &networkv1.PeerRef{NodeId: "p"}}})
	s.Withdraw(networkRef("n"))
	r.want(t, "network n", "peer p", "service s", "backends s", "withdraw peer p", "remove n")
}

func TestTasksHoldTheirNetworks(t *testing.T) {
	t.Parallel()
	r := &recorded{}
	s := dependencies.New(r)
	s.PutSpec([]byte("d"), &musterv1.TaskSpec{})
	held, err := dependencies.RefsOf(&dispatcherv1.AssignedTask{Id: "t", SpecDigest: []byte("d"), Networks: []string{"n"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(held); err == nil || err.Error() != "network n was not sent" {
		t.Errorf("Hold = %v, want that network n was not sent", err)
	}
	putNetwork(s, "n")
	if err := s.Hold(held); err != nil {
		t.Fatal(err)
	}
	s.Withdraw(networkRef("n"))
	r.want(t, "network n", "withdraw network n")
	s.Release(held)
	r.want(t, "remove n")
}

func TestNetworksStayUntilTheSetOfASessionIsComplete(t *testing.T) {
	t.Parallel()
	r := &recorded{}
	s := dependencies.New(r)
	putNetwork(s, "kept")
	putNetwork(s, "dropped")
	s.Begin()
	putNetwork(s, "kept")
	r.want(t, "network kept", "network dropped", "begin", "network kept")
	s.Complete()
	r.want(t, "remove dropped", "complete")
}

func TestRestoredNetworkStaysUntilASetDoesNotNameIt(t *testing.T) {
	t.Parallel()
	r := &recorded{}
	s := dependencies.New(r)
	s.Restore(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{Id: "n"}}})
	s.Begin()
	r.want(t, "network n", "begin")
	s.Complete()
	r.want(t, "remove n", "complete")
}
