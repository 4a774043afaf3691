package networks_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/workerd/internal/dependencies"
)

// theNetwork names the network of these tests.
var theNetwork = &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Network{Network: "net"}}

func TestWithdrawnNetworkThatIsSentAgainHasOnlyTheMembersSentWithIt(t *testing.T) {
	inBubble(t, func(n *node) {
		s := dependencies.New(n.networks)
		send := func(objects ...*dispatcherv1.AssignedObject) {
			for _, o := range objects {
				s.Put(o)
			}
		}
		s.Begin()
		send(net("10.64.4.0/26"), peer("node2"), peer("node3"), service("old"), service("svc"), backends(true, "a", "b"))
		s.Complete()
		stopping := []dependencies.Ref{dependencies.NetworkRef("net")}
		if err := s.Hold(stopping); err != nil {
			n.t.Fatal(err)
		}
		n.settle(time.Second)
		s.Withdraw(theNetwork)
		n.settle(time.Second)
		n.wantBackends("a", "b")
		send(net("10.64.4.0/26"), peer("node3"), service("svc"), backends(true, "b"))
		n.settle(time.Second)
		s.Release(stopping)
		n.settle(time.Second)
		n.wantBackends("b")
		got := n.kernel.Networks()["net"]
		if got == nil || len(got.Peers) != 1 || got.Peers["node3"] == nil || len(got.Services) != 1 {
			n.t.Errorf("the kernel has %v, want the peer node3 and the service svc", got)
		}
	})
}

// dispatcher is what a dispatcher wants a node to have of the network, and sends, and a task
// that comes and goes.
type dispatcher struct {
	store *dependencies.Store
	// sent is set while the node has the network and is told of every change.
	sent, held bool
	// peers and backends are those that are there. There is no service if backends is nil.
	peers, backends map[string]bool
}

// sendAll sends the network with its members.
func (d *dispatcher) sendAll() {
	d.sent = true
	d.store.Put(net("10.64.4.0/26"))
	for id := range d.peers {
		d.store.Put(peer(id))
	}
	if d.backends != nil {
		d.store.Put(service("svc"))
		d.store.Put(backends(true, slices.Sorted(maps.Keys(d.backends))...))
	}
}

// put and withdraw send a change, if the node has the network.
func (d *dispatcher) put(objects ...*dispatcherv1.AssignedObject) {
	for _, o := range objects {
		if d.sent {
			d.store.Put(o)
		}
	}
}

func (d *dispatcher) withdraw(ref *dispatcherv1.ObjectRef) {
	if d.sent {
		d.store.Withdraw(ref)
	}
}

func (d *dispatcher) do(step string) {
	held := []dependencies.Ref{dependencies.NetworkRef("net")}
	switch step {
	case "session":
		d.store.Begin()
		if d.sent {
			d.sendAll()
		}
		d.store.Complete()
	case "network":
		if d.sent {
			d.withdraw(theNetwork)
			d.sent = false
		} else {
			d.sendAll()
		}
	case "task":
		if d.held {
			d.store.Release(held)
			d.held = false
		} else {
			d.held = d.store.Hold(held) == nil
		}
	case "node2", "node3":
		if d.peers[step] = !d.peers[step]; d.peers[step] {
			d.put(peer(step))
			return
		}
		delete(d.peers, step)
		d.withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Peer{Peer: &networkv1.PeerRef{NetworkId: "net", NodeId: step}}})
	case "service":
		if d.backends == nil {
			d.backends = map[string]bool{}
			d.put(service("svc"), backends(true))
			return
		}
		d.backends = nil
		d.withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Service{Service: &networkv1.ServiceRef{NetworkId: "net", ServiceId: "svc"}}})
	case "a", "b":
		switch {
		case d.backends == nil:
		case d.backends[step]:
			delete(d.backends, step)
			d.put(backends(false, "-"+step))
		default:
			d.backends[step] = true
			d.put(backends(false, step))
		}
	}
}

// differs says how the kernel differs from what the dispatcher sent.
func (d *dispatcher) differs(kernel *nullnetwork.Network) error {
	switch {
	case kernel == nil:
		return errors.New("the kernel lacks the network")
	case !maps.Equal(keys(kernel.Peers), d.peers):
		return fmt.Errorf("the kernel has the peers %v, want %v", keys(kernel.Peers), d.peers)
	case (kernel.Services["svc"] == nil) != (d.backends == nil):
		return fmt.Errorf("the kernel has the services %v, want svc: %v", kernel.Services, d.backends != nil)
	case d.backends != nil && !maps.Equal(keys(kernel.Services["svc"].Backends), d.backends):
		return fmt.Errorf("the kernel has the backends %v, want %v", keys(kernel.Services["svc"].Backends), d.backends)
	}
	return nil
}

func keys[T any](of map[string]T) map[string]bool {
	all := map[string]bool{}
	for id := range of {
		all[id] = true
	}
	return all
}

// However sessions, networks, their members and tasks come and go, the kernel has what the
// dispatcher sent last.
func TestKernelHasWhatTheDispatcherSentLast(t *testing.T) {
	t.Parallel()
	steps := rapid.SliceOfN(rapid.SampledFrom([]string{"session", "network", "network", "task", "task", "node2", "node3", "service", "a", "b", "settle"}), 60, 120)
	rapid.Check(t, func(rt *rapid.T) {
		all := append([]string{"session"}, steps.Draw(rt, "steps")...)
		var failed error
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, "192.0.2.1")
			n.startPlugin()
			stop := n.start()
			defer stop()
			d := &dispatcher{store: dependencies.New(n.networks), peers: map[string]bool{}}
			for i, step := range append(all, "settle") {
				d.do(step)
				if step != "settle" {
					continue
				}
				n.settle(time.Second)
				if d.sent && failed == nil {
					if err := d.differs(n.kernel.Networks()["net"]); err != nil {
						failed = fmt.Errorf("after %q: %w", all[:i], err)
					}
				}
			}
			for _, v := range n.kernel.Violations() {
				failed = errors.Join(failed, errors.New(v))
			}
		})
		if failed != nil {
			rt.Fatal(failed)
		}
	})
}
