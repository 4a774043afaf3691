//go:build linux

package overlay_test

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// TestNetworkThatOverlapsWithARouteIsRefused gives a node routes to hosts that have addresses
// of networks.
func TestNetworkThatOverlapsWithARouteIsRefused(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	h := handle(t, m.space)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "lan"
	must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}))
	lan := address(t, h, "lan", "10.65.3.1/24")
	address(t, h, "lan", "fd00:65::3:1/112")
	// What is behind a gateway may be nothing.
	_, behind, err := net.ParseCIDR("10.0.0.0/8")
	must(t, err)
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: lan.Attrs().Index, Dst: behind, Gw: net.ParseIP("10.65.3.254")}))
	network := func(id string, vni uint32, subnets ...string) *networkv1.Network {
		return net10(id, vni, 1, func(n *networkv1.Network) {
			n.Subnets, n.Blocks, n.NodeAddresses = subnets, nil, nil
		})
	}
	apply := func() map[string]error {
		t.Helper()
		failed, err := m.plugin.Apply(t.Context(), &networkv1.ApplyRequest{Complete: true, Node: m.node, Networks: []*networkv1.Network{
			network("four", 4097, "10.65.0.0/16"), network("six", 4098, "10.66.0.0/16", "fd00:65::/64"), network("free", 4099, "10.64.0.0/16", "fd00:64::/64"),
		}})
		must(t, err)
		return failed
	}
	expect := func(when string, failed map[string]error) {
		t.Helper()
		for id, want := range map[string]string{"four": "subnet 10.65.0.0/16 overlaps with the route to 10.65.3.0/24 over lan of this node", "six": "subnet fd00:65::/64 overlaps with the route to fd00:65::3:0/112 over lan of this node"} {
			if failed[id] == nil || !strings.Contains(failed[id].Error(), want) {
				t.Errorf("%s: network %s: %v, want %q", when, id, failed[id], want)
			}
		}
		if failed["free"] != nil {
			t.Errorf("%s: the network without an overlap: %v", when, failed["free"])
		}
	}
	attach := func(id string) error {
		_, err := m.plugin.Attach(t.Context(), m.task("task-on-"+id, id+"=10.65.0.9").request)
		return err
	}
	expect("at first", apply())
	_, _ = m.plugin.Audit(t.Context())
	if err := attach("four"); err == nil {
		t.Error("a task was attached to a network that overlaps with a route")
	}
	must(t, h.LinkDel(lan))
	if failed := apply(); len(failed) > 0 {
		t.Errorf("without the routes: %v", failed)
	}
	must(t, attach("four"))
	// Tasks that are there continue on a node that gets such a route later.
	must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}))
	address(t, h, "lan", "10.65.3.1/24")
	address(t, h, "lan", "fd00:65::3:1/112")
	m.restart()
	expect("with tasks", apply())
	if repairs, err := m.plugin.Audit(t.Context()); err != nil || repairs > 0 {
		t.Errorf("an audit made %d repairs: %v", repairs, err)
	}
	must(t, attach("four"))
}
