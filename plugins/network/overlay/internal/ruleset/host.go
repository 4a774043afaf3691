//go:build linux

package ruleset

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// Sets and maps of the host's namespace.
const (
	mapPublished = "published" // protocol . port : address
	setUplinks   = "uplinks"   // address
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
	// That includes what a task sends to a published port of its own node.
	snat := []Rule{rule("outside", f.loadSource(reg), find(setUplinks, reg), &expr.Masq{})}
	if !six {
		loopback := netip.MustParsePrefix("127.0.0.0/8")
		snat = append(snat, rule("from localhost", to(ours), f.within(f.loadSource(1), loopback), &expr.Masq{}))
	}
	return Layout{
		Name: name, Family: f.table,
		Sets: []Set{
			{Name: mapPublished, Key: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), Data: f.address},
			{Name: setUplinks, Key: f.address},
		},
		Chains: []Chain{
			{Name: "dnat", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest, Rules: []Rule{publish("published port")}},
			{Name: "dnat-local", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: *nftables.ChainPriorityNATDest, Rules: []Rule{publish("published port of the node")}},
			// Networks reach neither each other nor the host through the addresses of the
			// way between them.
			{Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter, Rules: []Rule{
				rule("not published", to(ours), fresh, notTranslated(), &expr.Counter{}, drop()),
			}},
			{Name: "input", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: *nftables.ChainPriorityFilter, Rules: []Rule{
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
