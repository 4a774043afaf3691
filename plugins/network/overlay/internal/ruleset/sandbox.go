//go:build linux

package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// Sets and maps of a network's namespace.
const (
	setVirtual  = "virtual"  // address
	mapServices = "services" // address : verdict
	mapBackends = "backends" // address . number : address
	mapPorts    = "ports"    // protocol . port : verdict
	mapTargets  = "targets"  // protocol . port . number : address . port
	mapSelf     = "self"     // address . address : address
	mapNode     = "node"     // mark : address
	setOutgoing = "outgoing" // address
	setRelayed  = "relayed"  // port
)

// markMesh marks connections to published ports whose source must be replaced.
const markMesh = 1

// Chains that count what they drop. ChainForward is in both kinds of tables.
const (
	ChainSource  = "source"
	ChainForward = "forward"
	ChainInput   = "input"
)

// Sandbox returns the layout of a network's namespace for IPv4 or IPv6. Its data are the
// elements that the functions below return. On the ingress network tasks do not reach each
// other, and only those that have the elements of Outgoing reach the outside.
func Sandbox(six, ingress bool) Layout {
	f, local, pool := ipv4, link.Gateway, link.UplinkPool4()
	if six {
		f, local, pool = ipv6, link.Local6, link.UplinkPool6()
	}
	w := f.words()
	tasks := link.TaskPrefix + "*"
	established := state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	tasksToTasks := []Rule{
		rule("task to task", from(tasks), to(tasks), accept()),
		rule("task to peer", from(tasks), to(link.Overlay), accept()),
	}
	toOutside := slices.Concat(from(tasks), to(link.Uplink))
	if ingress {
		tasksToTasks = nil
		toOutside = append(toOutside, f.loadSource(reg), find(setOutgoing, reg))
	}
	forward := slices.Concat([]Rule{rule("connections", established, accept())}, tasksToTasks, []Rule{
		rule("peer to task", from(link.Overlay), to(tasks), accept()),
		rule("task to other network", from(tasks), to(link.Uplink), f.within(f.loadTarget(1), pool), &expr.Counter{}, drop()),
		rule("task to outside", toOutside, accept()),
		rule("published", from(link.Uplink), translated(), accept()),
		rule("rest", &expr.Counter{}, drop()),
	})
	chains := []Chain{
		// A packet's source must be reached by the link that it came from. That holds for
		// tasks, whose routes name exactly their addresses, as well as for peers.
		{Name: ChainSource, Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityRaw, Rules: []Rule{
			rule("wrong source", notFrom("lo"),
				&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, equal(1, native(0)), &expr.Counter{}, drop()),
		}},
		{Name: "dnat", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest, Rules: []Rule{
			rule("published ports", from(link.Uplink), goTo("published")),
			rule("ping virtual address", f.ping(), f.loadTarget(reg), find(setVirtual, reg),
				&expr.Immediate{Register: reg, Data: local.AsSlice()}, f.nat(expr.NATTypeDestNAT, 0)),
			rule("virtual address", f.loadTarget(reg), jump(mapServices, reg)),
		}},
		{Name: "published", Rules: []Rule{
			rule("published port", meta(expr.MetaKeyL4PROTO, reg), loadPort(reg+1), jump(mapPorts, reg)),
		}},
		{Name: "unserved", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: *nftables.ChainPriorityNATDest + 10, Rules: []Rule{
			rule("reset", protocol(unix.IPPROTO_TCP), f.loadTarget(reg), find(setVirtual, reg), reset()),
			rule("unreachable", f.loadTarget(reg), find(setVirtual, reg), f.rejectPort()),
		}},
		{Name: ChainForward, Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: *nftables.ChainPriorityFilter, Drop: true, Rules: forward},
		{Name: ChainInput, Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: *nftables.ChainPriorityFilter, Drop: true, Rules: inputRules(f, local, tasks, established)},
		{Name: "snat", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: *nftables.ChainPriorityNATSource, Rules: []Rule{
			rule("published", meta(expr.MetaKeyMARK, reg), equal(reg, native(markMesh)), replace(mapNode), f.nat(expr.NATTypeSourceNAT, 0)),
			rule("task to itself", translated(), f.loadSource(reg), f.loadTarget(reg+w), replace(mapSelf), f.nat(expr.NATTypeSourceNAT, 0)),
			rule("outside", from(tasks), to(link.Uplink), &expr.Masq{}),
		}},
	}
	index := nftables.TypeMark
	return Layout{
		Name: "muster", Family: f.table, Chains: chains,
		Sets: []Set{
			{Name: setVirtual, Key: f.address},
			{Name: mapServices, Key: f.address, Data: nftables.TypeVerdict},
			{Name: mapBackends, Key: nftables.MustConcatSetType(f.address, index), Data: f.address},
			{Name: mapPorts, Key: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), Data: nftables.TypeVerdict},
			{Name: mapTargets, Key: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, index), Data: nftables.MustConcatSetType(f.address, nftables.TypeInetService)},
			{Name: mapSelf, Key: nftables.MustConcatSetType(f.address, f.address), Data: f.address},
			{Name: mapNode, Key: nftables.TypeMark, Data: f.address},
			{Name: setOutgoing, Key: f.address},
			{Name: setRelayed, Key: nftables.TypeInetService},
		},
		Dynamic: func(chain string) []Rule { return balance(f, chain) },
	}
}

// inputRules are about what reaches the namespace itself: the name server, and ping.
func inputRules(f family, local netip.Addr, tasks string, established []expr.Any) []Rule {
	rules := []Rule{
		rule("connections", established, accept()),
		rule("itself", from("lo"), accept()),
		rule("ping", f.ping(), accept()),
	}
	if f.table == nftables.TableFamilyIPv6 {
		// Neighbour solicitation and advertisement, on the way to the host.
		for _, kind := range []byte{135, 136} {
			rules = append(rules, rule("neighbour", protocol(unix.IPPROTO_ICMPV6),
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, equal(1, []byte{kind}), accept()))
		}
	}
	for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rules = append(rules, rule("names", from(tasks), f.loadTarget(1), equal(1, local.AsSlice()), protocol(number), port(53), accept()))
	}
	return append(rules,
		rule("relayed port", from(link.Uplink), protocol(unix.IPPROTO_TCP), loadPort(reg), find(setRelayed, reg), accept()),
		rule("reset", protocol(unix.IPPROTO_TCP), reset()),
		rule("unreachable", f.rejectPort()),
	)
}

// Chains that balance are called by their purpose and the number of backends.
const (
	chainService = "service-"
	chainMesh    = "mesh-"
	chainLocal   = "local-"
)

// balance returns the rules of a chain that chooses a backend at random.
func balance(f family, chain string) []Rule {
	purpose, count, _ := strings.Cut(chain, "-")
	n, err := strconv.ParseUint(count, 10, 32)
	if err != nil || n == 0 {
		return nil
	}
	w := f.words()
	switch purpose + "-" {
	case chainService:
		return []Rule{rule(chain, f.loadTarget(reg), random(reg+w, uint32(n)), replace(mapBackends), f.nat(expr.NATTypeDestNAT, 0))}
	case chainMesh, chainLocal:
		r := rule(chain, meta(expr.MetaKeyL4PROTO, reg), loadPort(reg+1), random(reg+2, uint32(n)), replace(mapTargets), f.nat(expr.NATTypeDestNAT, reg+w))
		if purpose+"-" == chainMesh {
			mark := []expr.Any{&expr.Immediate{Register: 1, Data: native(markMesh)}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
			r.Exprs = append(mark, r.Exprs...)
		}
		return []Rule{r}
	}
	return nil
}

// of returns the addresses of one family.
func of(six bool, addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addresses {
		if a.Is6() == six {
			out = append(out, a)
		}
	}
	return out
}

// Service returns the elements of a service with virtual addresses.
func Service(six bool, virtual, backends []netip.Addr) []Element {
	backends = of(six, backends)
	var all []Element
	for _, v := range of(six, virtual) {
		key := string(v.AsSlice())
		all = append(all, Element{Set: setVirtual, Key: key})
		if len(backends) == 0 {
			continue
		}
		all = append(all, Element{mapServices, key, fmt.Sprint(chainService, len(backends))})
		for i, b := range backends {
			all = append(all, Element{mapBackends, key + string(native(uint32(i))), string(b.AsSlice())})
		}
	}
	return all
}

// Port is a published port.
type Port struct {
	// Protocol is its number in IP headers.
	Protocol          byte
	Published, Target uint16
	// KeepSource leaves the client's address as it is. All backends must be on this node.
	KeepSource bool
	// Relay has a process in the namespace take the connections.
	Relay bool
}

// portKey is the protocol and the port, each in four bytes.
func portKey(protocol byte, port uint16) string {
	return string([]byte{protocol, 0, 0, 0, byte(port >> 8), byte(port), 0, 0})
}

// Published returns the elements of a port that leads from the host to backends.
func Published(six bool, p Port, backends []netip.Addr) []Element {
	backends = of(six, backends)
	if len(backends) == 0 {
		return nil
	}
	if p.Relay {
		return []Element{{Set: setRelayed, Key: bigEndian(p.Published)}}
	}
	key, chain := portKey(p.Protocol, p.Published), chainMesh
	if p.KeepSource {
		chain = chainLocal
	}
	all := []Element{{mapPorts, key, fmt.Sprint(chain, len(backends))}}
	for i, b := range backends {
		value := append(b.AsSlice(), binary.BigEndian.AppendUint16(nil, p.Target)...)
		all = append(all, Element{mapTargets, key + string(native(uint32(i))), string(append(value, 0, 0))})
	}
	return all
}

// Outgoing returns the elements that let a task of the ingress network reach the outside.
func Outgoing(six bool, task []netip.Addr) []Element {
	var all []Element
	for _, a := range of(six, task) {
		all = append(all, Element{Set: setOutgoing, Key: string(a.AsSlice())})
	}
	return all
}

// Self returns the elements that let a task reach itself through a virtual address.
func Self(six bool, task, node []netip.Addr) []Element {
	own := of(six, node)
	if len(own) == 0 {
		return nil
	}
	var all []Element
	for _, a := range of(six, task) {
		all = append(all, Element{mapSelf, string(a.AsSlice()) + string(a.AsSlice()), string(own[0].AsSlice())})
	}
	return all
}

// Node returns the elements that name the node's own address.
func Node(six bool, node []netip.Addr) []Element {
	own := of(six, node)
	if len(own) == 0 {
		return nil
	}
	return []Element{{mapNode, string(native(markMesh)), string(own[0].AsSlice())}}
}

// Trial returns elements that need a chain of the given name, to find out whether the
// kernel takes it.
func Trial(six bool, chain string) []Element {
	a := netip.IPv4Unspecified()
	if six {
		a = netip.IPv6Unspecified()
	}
	if strings.HasPrefix(chain, chainService) {
		return []Element{{mapServices, string(a.AsSlice()), chain}}
	}
	return []Element{{mapPorts, portKey(unix.IPPROTO_TCP, 1), chain}}
}
