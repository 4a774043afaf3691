package networks_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	backendpack "github.com/musterhq/muster/internal/backends"
)

// packed returns changes of the backends of a service, as many as there then are in all.
func packed(complete, more bool, total int, tasks ...string) *dispatcherv1.AssignedObject {
	b := backends(complete, tasks...).GetBackends()
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_PackedBackends{PackedBackends: &networkv1.PackedBackends{
		NetworkId: b.NetworkId, ServiceId: b.ServiceId, Complete: complete, More: more, Total: uint32(total), Changes: backendpack.Pack(b.Backends, b.Removed),
	}}}
}

func TestPackedBackendsReachThePlugin(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.16.0/26"), service("svc"), packed(true, false, 2, "t1", "t2"))
		n.settle(time.Second)
		n.wantBackends("t1", "t2")
		// Several changes of one task go to the plugin together.
		release := n.hang("Apply")
		n.put(peer("other"))
		n.settle(time.Second)
		n.put(packed(false, false, 3, "t3", "-t1"), packed(false, false, 3, "t1", "-t2"), packed(false, false, 2, "-t3"), packed(false, false, 3, "t2"))
		release()
		n.settle(time.Second)
		n.wantBackends("t1", "t2")
		n.put(packed(false, false, 0, "-t1", "-t2"))
		n.settle(time.Second)
		n.wantBackends()
	})
}

// TestSetInPartsRemovesNothingMeanwhile checks that a service keeps its backends while
// a new session sends them again in several messages.
func TestSetInPartsRemovesNothingMeanwhile(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.16.0/26"), service("svc"), packed(true, true, 3, "t1"), packed(false, false, 3, "t2", "t3"))
		n.settle(time.Second)
		n.wantBackends("t1", "t2", "t3")
		n.take()
		n.networks.Begin()
		n.put(net("10.64.16.0/26"), service("svc"), packed(true, true, 3, "t3"))
		n.settle(time.Second)
		n.wantBackends("t1", "t2", "t3")
		n.put(packed(false, false, 3, "t1", "t2"))
		n.networks.Complete()
		n.settle(time.Second)
		n.wantBackends("t1", "t2", "t3")
		if applies := n.take(); len(applies) > 0 {
			t.Errorf("the plugin is told %v, and nothing has changed", applies)
		}
		n.session(net("10.64.16.0/26"), service("svc"), packed(true, true, 2, "t4"), packed(false, false, 2, "t1"))
		n.settle(time.Second)
		n.wantBackends("t1", "t4")
	})
}

// TestManyChangesOfFewBackendsTakeLittleRoom checks that a worker does not keep the
// changes of backends that were replaced long ago.
func TestManyChangesOfFewBackendsTakeLittleRoom(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.16.0/26"), service("svc"), packed(true, false, 1, "t0"))
		for i := range 10_000 {
			n.put(packed(false, false, 1, fmt.Sprintf("t%d", i+1), fmt.Sprintf("-t%d", i)))
		}
		n.settle(time.Minute)
		n.wantBackends("t10000")
		if size := proto.Size(n.stored["net"]); size > 10_000 {
			t.Errorf("the worker stores %d bytes for one backend", size)
		}
	})
}

func TestMalformedBackendsChangeNothing(t *testing.T) {
	inBubble(t, func(n *node) {
		n.session(net("10.64.16.0/26"), service("svc"), packed(true, false, 1, "t1"))
		bad := packed(true, false, 1, "t2")
		bad.GetPackedBackends().Changes = bad.GetPackedBackends().Changes[:2]
		n.put(bad)
		n.settle(time.Second)
		n.wantBackends("t1")
		n.put(packed(false, false, 2, "t3"))
		n.settle(time.Second)
		n.wantBackends("t1", "t3")
	})
}
