//go:build linux

// Package link keeps the links, addresses, routes and neighbours of networks and tasks.
package link

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/musterhq/muster/api/nodeid"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// Names in the kernel. Each is derived from ids, so that a new process finds what another
// one made, and so that several nodes on one machine do not meet.
const (
	// Overlay is the VXLAN device of a network's namespace.
	Overlay = "vxlan0"
	// Uplink is the end of the way to the host in a network's namespace.
	Uplink = "up0"
	// TaskPrefix begins the names of the ends of tasks' interfaces in a network's namespace.
	TaskPrefix = "t"
)

// Gateway is the address of the network's namespace that tasks know: their next hop and
// their name server.
var Gateway = netip.MustParseAddr("169.254.1.1")

// Gateway6 is the next hop of tasks in IPv6. No interface has it: tasks have a permanent
// neighbour entry for it.
var Gateway6 = netip.MustParseAddr("fe80::1")

// Local6 is an address of the network's namespace in IPv6. It is outside of the pool that
// networks get their subnets from, fd6d:7573:7465::/48.
var Local6 = netip.MustParseAddr("fd6d:7573:7466:1::1")

// gatewayMAC is the hardware address of the network's end of each task's interface.
var gatewayMAC = net.HardwareAddr{0x02, 'm', 'u', 's', 't', 'r'}

func sum(parts ...string) []byte {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return h[:]
}

var lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func tag(length int, parts ...string) string {
	return lower.EncodeToString(sum(parts...))[:length]
}

// Short returns eight hexadecimal digits for an id.
func Short(id string) string { return hex.EncodeToString(sum(id)[:4]) }

// HostPrefix begins the names of all links of a node in the host's namespace.
func HostPrefix(node string) string { return "mu" + tag(5, node) }

// HostLink returns the name of the host's end of a network's way to the host.
func HostLink(node, network string) string { return HostPrefix(node) + tag(8, network) }

// TaskLink returns the name of the network's end of a task's interface.
func TaskLink(task, network string) string { return TaskPrefix + tag(14, task, network) }

// PeerMAC returns the hardware address of a node on an overlay.
func PeerMAC(node string) net.HardwareAddr { return nodeid.HardwareAddress(node) }

// TaskMAC returns the hardware address of a task's interface.
func TaskMAC(task, network string) net.HardwareAddr {
	return append(net.HardwareAddr{0x02}, sum("task", task, network)[:5]...)
}

// dockerBridge matches the names that Docker gives to the bridges of its networks.
var dockerBridge = regexp.MustCompile(`^br-[0-9a-f]{12}$`)

// OtherBridges returns the links of the host whose names begin as those of Docker's bridges
// and that are not.
func OtherBridges(host *netns.Namespace) ([]string, error) {
	h, err := host.Link()
	if err != nil {
		return nil, err
	}
	links, err := dump(func() ([]netlink.Link, error) { return h.LinkList() })
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "br-") && !dockerBridge.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
