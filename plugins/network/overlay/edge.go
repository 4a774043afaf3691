//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// edge keeps the node's tables in the host's namespace, which lead published ports into
// networks and networks' traffic outside.
type edge struct {
	plugin *Plugin
	mu     sync.Mutex
	node   string
	kernel *link.Kernel
	tables [2]*ruleset.Table
	// dataPath is where the node receives packets of VXLAN.
	dataPath netip.AddrPort
	// peers are where each network's peers receive packets of VXLAN.
	peers map[string][]netip.AddrPort
	// verified is set once the tables hold what all networks need.
	verified bool
	// allowed is set once forwarding was allowed. Audits look at it again.
	allowed bool
}

// Owners of elements. That of a network ends with its id.
const (
	// ownerNode has what concerns no single network. A table that holds nothing more is
	// not needed.
	ownerNode    = "node"
	ownerTunnel  = "tunnel "
	ownerNetwork = "network "
)

// open opens the tables. There are none before the node is known.
func (e *edge) open(node string) {
	if e.tables[0] != nil {
		return
	}
	e.node, e.kernel = node, e.plugin.kernel()
	e.peers = make(map[string][]netip.AddrPort)
	for i, six := range []bool{false, true} {
		e.tables[i] = ruleset.New(ruleset.Host(six, "muster-"+link.Short(node), node), e.plugin.host.FD(), func(name string, call func() error) error { return e.kernel.Do(name, call) })
	}
}

// putTunnel says who may send packets of VXLAN into a network. The next call of update
// makes it so.
func (e *edge) putTunnel(node string, s *link.Network) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open(node)
	if s.Tunnel != nil {
		// What belongs to an encrypted network arrives elsewhere.
		delete(e.peers, s.ID)
		for _, t := range e.tables {
			t.Put(ownerTunnel+s.ID, nil)
		}
		e.dataPath = s.Local
		e.putNode()
		return
	}
	var peers []netip.Addr
	var remotes []netip.AddrPort
	for _, p := range s.Peers {
		peers = append(peers, p.Remote.Addr())
		remotes = append(remotes, p.Remote)
	}
	e.peers[s.ID] = remotes
	for i, six := range []bool{false, true} {
		e.tables[i].Put(ownerTunnel+s.ID, ruleset.HostTunnel(six, s.VNI, s.Local.Addr(), peers))
	}
	e.dataPath = s.Local
	e.putNode()
}

// putNode says what concerns no single network. The caller holds mu.
func (e *edge) putNode() {
	var peers []netip.AddrPort
	for _, more := range e.peers {
		peers = append(peers, more...)
	}
	slices.SortFunc(peers, netip.AddrPort.Compare)
	peers = slices.Compact(peers)
	for i, six := range []bool{false, true} {
		e.tables[i].Put(ownerNode, ruleset.HostDataPath(six, e.dataPath, peers))
	}
}

// update says what a network needs of the host. Nothing is changed before the first call
// of verify: until then only some networks may be known.
func (e *edge) update(n *network) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open(n.node.GetId())
	ports := n.published()
	owner := ownerNetwork + n.id
	var errs []error
	if at := slices.IndexFunc(ports, e.isDataPath); at >= 0 {
		errs = append(errs, fmt.Errorf("UDP port %d is not published on this node, which gets the traffic of networks there: publish another port, or set --data-path-port of the worker", ports[at].Published))
		ports = slices.DeleteFunc(ports, e.isDataPath)
	}
	for i, six := range []bool{false, true} {
		elements := ruleset.HostUplink(six, n.sandbox.Uplinks)
		for _, p := range ports {
			elements = append(elements, ruleset.HostPort(six, p.Protocol, p.Published, n.sandbox.Uplinks)...)
		}
		e.tables[i].Put(owner, elements)
		if e.verified {
			errs = append(errs, e.commit(i), networksdk.Warning(e.tables[i].Conflict(owner)))
		}
	}
	if e.verified && !e.allowed && len(n.sandbox.Uplinks) > 0 {
		errs = append(errs, e.allow(true))
	}
	return errors.Join(errs...)
}

// isDataPath reports whether nodes send traffic of networks to a port of this node.
func (e *edge) isDataPath(p ruleset.Port) bool {
	return p.Protocol == unix.IPPROTO_UDP && p.Published == e.dataPath.Port()
}

// leadsOutside reports whether a network has a way to the host.
func (e *edge) leadsOutside() bool {
	return slices.ContainsFunc(e.tables[0].Owners(), func(owner string) bool { return strings.HasPrefix(owner, ownerNetwork) })
}

// allow adds rules to other programs' chains that would keep networks from the outside.
func (e *edge) allow(wanted bool) error {
	bridges, err := link.OtherBridges(e.plugin.host)
	if err == nil {
		err = ruleset.AllowForwarding(e.plugin.host.FD(), link.HostPrefix(e.node), bridges, wanted, e.kernel.Do)
	}
	e.allowed = wanted && err == nil
	return err
}

// commit writes a table. A node without networks has none, and one without IPv6 has none
// for it.
func (e *edge) commit(i int) error {
	if !e.tables[i].HasOther(ownerNode) {
		return e.tables[i].Delete()
	}
	return e.tables[i].Commit()
}

// drop says that a network needs nothing of the host any longer.
func (e *edge) drop(network string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tables[0] == nil {
		return nil
	}
	var errs []error
	delete(e.peers, network)
	e.putNode()
	for i, t := range e.tables {
		t.Put(ownerNetwork+network, nil)
		t.Put(ownerTunnel+network, nil)
		if e.verified {
			errs = append(errs, e.commit(i))
		}
	}
	if e.allowed && !e.leadsOutside() {
		errs = append(errs, e.allow(false))
	}
	return errors.Join(errs...)
}

// verify compares the tables with what networks need. Only what belongs to the named
// networks is kept.
func (e *edge) verify(node string, known map[string]bool) (repairs uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open(node)
	before := e.kernel.Changes()
	var errs []error
	for i, t := range e.tables {
		for _, owner := range t.Owners() {
			if _, id, ofNetwork := strings.Cut(owner, " "); ofNetwork && !known[id] {
				t.Put(owner, nil)
			}
		}
		if !t.HasOther(ownerNode) {
			errs = append(errs, t.Delete())
		} else {
			errs = append(errs, t.Verify())
		}
		if i == 0 {
			errs = append(errs, e.allow(e.leadsOutside()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return e.kernel.Changes() - before, err
	}
	e.verified = true
	return e.kernel.Changes() - before, nil
}

// conflict says why a network's ports do not all lead into it.
func (e *edge) conflict(network string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, t := range e.tables {
		if t != nil {
			errs = append(errs, t.Conflict(ownerNetwork+network))
		}
	}
	return errors.Join(errs...)
}

// dropped returns how many packets the tables have dropped.
func (e *edge) dropped() (packets uint64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, t := range e.tables {
		if t == nil || !e.verified || !t.HasOther(ownerNode) {
			continue
		}
		for _, chain := range []string{ruleset.ChainForward, ruleset.ChainInput} {
			more, err := t.Counters(chain)
			packets += more
			errs = append(errs, err)
		}
	}
	return packets, errors.Join(errs...)
}

func (e *edge) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, t := range e.tables {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}
