//go:build linux

package ruleset

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// Sets and maps of the host's namespace.
const (
	mapPublished = "published" // protocol . port : address
	setUplinks   = "uplinks"   // address
	setDataPorts = "dataports" // port
	setDataPaths = "datapaths" // address . port
	setOwnPorts  = "ownports"  // port
	setLocal     = "local"     // address
	setTunnels   = "tunnels"   // VXLAN network identifier
	setPeers     = "peers"     // VXLAN network identifier . address
)

// Host returns the layout of a node's table in the host's namespace.
func Host(six bool, name, node string) Layout {
	f, pool := ipv4, link.UplinkPool4()
	if six {
		f, pool = ipv6, link.UplinkPool6()
	}
	ours := link.HostPrefix(node) + "*"
	fresh := state(expr.CtStateBitNEW)
	publish := func(name string) Rule {
		return rule(name, &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, equal(1, native(typeLocal)),
			meta(expr.MetaKeyL4PROTO, reg), loadPort(reg+1), replace(mapPublished), f.nat(expr.NATTypeDestNAT, 0))
	}
	var local []Rule
	if !six {
		// Programs of the node use other loopback addresses, such as the resolver's 127.0.0.53.
		local = append(local, rule("other loopback address", f.within(f.loadTarget(1), netip.MustParsePrefix("127.0.0.0/8")),
			f.loadTarget(1), different(1, []byte{127, 0, 0, 1}), accept()))
	}
	local = append(local, publish("published port of the node"))
	// That includes what a task sends to a published port of its own node.
	snat := []Rule{rule("outside", f.loadSource(reg), find(setUplinks, reg), &expr.Masq{})}
	if !six {
		loopback := netip.MustParsePrefix("127.0.0.0/8")
		snat = append(snat, rule("from localhost", to(ours), f.within(f.loadSource(1), loopback), &expr.Masq{}))
	}
	// Packets of VXLAN carry nothing that proves where they come from. Fragments are put
	// together before these rules, because the chains for NAT track connections.
	vxlan := slices.Concat(protocol(unix.IPPROTO_UDP), []expr.Any{loadPort(reg), find(setDataPorts, reg)})
	tunnel := func(register uint32) []expr.Any { return slices.Concat(vxlan, []expr.Any{loadVNI(register)}) }
	fromTask := func(name string, to ...expr.Any) Rule {
		return rule(name, from(ours), protocol(unix.IPPROTO_UDP), to, &expr.Counter{}, drop())
	}
	toPeer := fromTask("VXLAN from a task to a peer", f.loadTarget(reg), loadPort(reg+f.words()), find(setDataPaths, reg))
	return Layout{
		Name: name, Family: f.table,
		Sets: []Set{
			{Name: setDataPorts, Key: nftables.TypeInetService},
			{Name: setDataPaths, Key: nftables.MustConcatSetType(f.address, nftables.TypeInetService)},
			{Name: setOwnPorts, Key: nftables.TypeInetService},
			{Name: setLocal, Key: f.address},
			{Name: setTunnels, Key: nftables.TypeMark},
			{Name: setPeers, Key: nftables.MustConcatSetType(nftables.TypeMark, f.address)},
			{Name: mapPublished, Key: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), Data: f.address},
			{Name: setUplinks, Key: f.address},
		},
		Chains: []Chain{
			{Name: "dnat", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest, Rules: []Rule{publish("published port")}},
			{Name: "dnat-local", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: *nftables.ChainPriorityNATDest, Rules: local},
			// Networks reach neither each other nor the host through the addresses of the
			// way between them.
			{Name: ChainForward, Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter, Rules: []Rule{
				toPeer,
				// Tasks without networks leave by other links, such as a bridge of Docker.
				rule("VXLAN to a peer", tunnel(reg), f.loadTarget(reg+1), find(setPeers, reg),
					f.loadSource(reg+1), missing(setPeers, reg), &expr.Counter{}, drop()),
				rule("not published", to(ours), fresh, notTranslated(), &expr.Counter{}, drop()),
			}},
			{Name: ChainInput, Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: *nftables.ChainPriorityFilter, Rules: []Rule{
				// The kernel receives at all addresses of the node. Peers may be on this machine.
				fromTask("VXLAN from a task to this node", loadPort(reg), find(setOwnPorts, reg)),
				toPeer,
				rule("VXLAN from others than peers", tunnel(reg), find(setTunnels, reg), f.loadSource(reg+1), missing(setPeers, reg), &expr.Counter{}, drop()),
				rule("VXLAN to another address", tunnel(reg), find(setTunnels, reg), f.loadTarget(reg), missing(setLocal, reg), &expr.Counter{}, drop()),
				rule("host's end", from(ours), fresh, f.within(f.loadTarget(1), pool), &expr.Counter{}, drop()),
			}},
			{Name: "snat", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: *nftables.ChainPriorityNATSource, Rules: snat},
		},
		Dynamic: func(string) []Rule { return nil },
	}
}

// HostPort returns the elements that lead a published port to a network's namespace.
func HostPort(six bool, protocol byte, port uint16, uplinks []netip.Addr) []Element {
	var all []Element
	for _, a := range of(six, uplinks) {
		all = append(all, Element{mapPublished, portKey(protocol, port), string(a.AsSlice())})
	}
	return all
}

// HostUplink returns the elements that let a network reach what is outside.
func HostUplink(six bool, uplinks []netip.Addr) []Element {
	var all []Element
	for _, a := range of(six, uplinks) {
		all = append(all, Element{Set: setUplinks, Key: string(a.AsSlice())})
	}
	return all
}

// HostDataPath returns the elements that keep tasks from sending to where nodes receive
// packets of VXLAN: this node, and its peers. Peers are sorted.
func HostDataPath(six bool, local netip.AddrPort, peers []netip.AddrPort) []Element {
	var all []Element
	var ports []uint16
	if local.Port() != 0 {
		ports = append(ports, local.Port())
		all = append(all, Element{Set: setOwnPorts, Key: bigEndian(local.Port())})
	}
	for _, p := range peers {
		ports = append(ports, p.Port())
		if p.Addr().Is6() == six {
			all = append(all, Element{Set: setDataPaths, Key: string(p.Addr().AsSlice()) + bigEndian(p.Port()) + "\x00\x00"})
		}
	}
	slices.Sort(ports)
	for _, p := range slices.Compact(ports) {
		all = append(all, Element{Set: setDataPorts, Key: bigEndian(p)})
	}
	if a := local.Addr(); a.IsValid() && a.Is6() == six {
		all = append(all, Element{Set: setLocal, Key: string(a.AsSlice())})
	}
	return all
}

func bigEndian(port uint16) string { return string([]byte{byte(port >> 8), byte(port)}) }

// HostTunnel returns the elements that let only peers send VXLAN packets into a network.
func HostTunnel(six bool, vni uint32, local netip.Addr, peers []netip.Addr) []Element {
	if vni == 0 || local.Is6() != six {
		return nil
	}
	key := string([]byte{byte(vni >> 16), byte(vni >> 8), byte(vni), 0})
	all := []Element{{Set: setTunnels, Key: key}}
	for _, a := range of(six, peers) {
		all = append(all, Element{Set: setPeers, Key: key + string(a.AsSlice())})
	}
	return all
}
