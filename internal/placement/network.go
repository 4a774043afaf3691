package placement

import (
	"fmt"
	"net/netip"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/defaults"
)

// Capabilities of network plugins that a network may need.
const (
	networkIPv6      = "ipv6"
	networkEncrypted = "encrypted"
	networkIngress   = "ingress"
)

// Capabilities of executors that can run tasks on networks, of which one suffices.
const (
	ProvidesNetwork = "network.provides"
	AcceptsNetwork  = "network.accepts"
)

// networkDriver returns the driver of a network.
func networkDriver(spec *musterv1.NetworkSpec) string {
	if name := spec.GetDriver().GetName(); name != "" {
		return name
	}
	return defaults.NetworkDriver
}

// networkCapabilities returns what a plugin must be capable of to serve a network.
func networkCapabilities(spec *musterv1.NetworkSpec) []string {
	var needs []string
	if spec.GetIpv6Enabled() || slices.ContainsFunc(spec.GetIpam().GetConfigs(), func(c *musterv1.IPAMConfig) bool {
		p, err := netip.ParsePrefix(c.GetSubnet())
		return err == nil && p.Addr().Is6()
	}) {
		needs = append(needs, networkIPv6)
	}
	if spec.GetEncrypted() {
		needs = append(needs, networkEncrypted)
	}
	if spec.GetIngress() {
		needs = append(needs, networkIngress)
	}
	return needs
}

// LacksForNetwork returns what the node lacks to serve a network: text for people, ""
// if a healthy plugin of the node serves it.
func (n *Node) LacksForNetwork(spec *musterv1.NetworkSpec) string {
	driver, needs := networkDriver(spec), networkCapabilities(spec)
	lacks := fmt.Sprintf("no network plugin for driver %q (install one in the worker's plugin directory)", driver)
	for _, d := range n.Description.GetNetworkDrivers() {
		if !slices.Contains(d.Drivers, driver) {
			continue
		}
		if d.Health != musterv1.ExecutorDescription_HEALTHY {
			lacks = fmt.Sprintf("network plugin for driver %q is not healthy", driver)
			if d.Message != "" {
				lacks += ": " + d.Message
			} else {
				lacks += " (see the log of the worker)"
			}
			continue
		}
		missing := slices.IndexFunc(needs, func(need string) bool { return !slices.Contains(d.Capabilities, need) })
		if missing < 0 {
			return ""
		}
		lacks = fmt.Sprintf("network plugin for driver %q lacks the capability %q", driver, needs[missing])
	}
	return lacks
}

// Networks are the networks of a cluster with the addresses that tasks hold. They belong
// to one goroutine.
type Networks struct {
	byID map[string]*Network
}

// NewNetworks returns none.
func NewNetworks() *Networks { return &Networks{byID: map[string]*Network{}} }

// Network is a network as the scheduler sees it.
type Network struct {
	ID   string
	spec *musterv1.NetworkSpec
	// lacks says why no task can be on the network: text for people.
	lacks string
	// layout is nil if there are no addresses to count: a driver may choose them
	// itself.
	layout *addresses.Layout
	// total is how many addresses the blocks have in all, and perBlock how many a block
	// has at least.
	total, perBlock int
	// blocks is how many blocks there are, leased how many of them nodes have, and
	// claimed how many more the tasks of nodes need.
	blocks, leased, claimed int
	uses                    map[*networkUse]struct{}
}

// networkUse is what the tasks of one node hold of a network.
type networkUse struct {
	network *Network
	tasks   int
	// blocks are those that the node has, with capacity addresses in all.
	blocks            []uint32
	capacity, claimed int
}

// Network returns a network by its id. One that is not known takes no tasks.
func (ns *Networks) Network(id string) *Network {
	n := ns.byID[id]
	if n == nil {
		n = &Network{ID: id, uses: map[*networkUse]struct{}{}}
		n.Set(nil, nil)
		ns.byID[id] = n
	}
	return n
}

// Forget drops a network that does not exist and of which no node has tasks or blocks.
func (ns *Networks) Forget(id string) {
	if n := ns.byID[id]; n != nil && n.spec == nil && len(n.uses) == 0 {
		delete(ns.byID, id)
	}
}

// Set says what the network is, and what the allocator gave it. Nil: it does not exist,
// or has nothing yet.
func (n *Network) Set(spec *musterv1.NetworkSpec, s *recordv1.NetworkState) {
	n.spec, n.layout, n.total, n.perBlock, n.blocks, n.lacks = spec, nil, 0, 0, 0, ""
	layout, err := addresses.ReadLayout(s)
	switch {
	case spec == nil:
		n.lacks = "does not exist"
	case s.GetError() != "":
		n.lacks = "has no subnet: " + s.Error
	case s == nil:
		n.lacks = "is being set up and has no subnet yet"
	case len(s.Subnets) == 0:
		// Its driver chooses addresses.
	case err != nil:
		n.lacks = "has no usable subnet: " + err.Error()
	default:
		n.layout, n.total = layout, int(layout.TotalCapacity())
		n.blocks, n.perBlock = int(layout.UsableBlocks()), int(layout.LeastCapacity())
	}
	for u := range n.uses {
		u.capacity = 0
		for _, number := range u.blocks {
			u.capacity += n.capacity(number)
		}
		u.claim()
	}
}

// capacity returns how many addresses a block has.
func (n *Network) capacity(block uint32) int {
	if n.layout == nil {
		return 0
	}
	return int(n.layout.Capacity(block))
}

// free returns how many blocks no node has.
func (n *Network) free() int { return n.blocks - n.leased }

func (n *Network) name() string {
	if name := n.spec.GetName(); name != "" {
		return name
	}
	return n.ID
}

// needs returns how many blocks the node needs for so many tasks beyond those that it
// has. One address is the node's own.
func (u *networkUse) needs(tasks int) int {
	missing := tasks + 1 - u.capacity
	if n := u.network; n.layout != nil && tasks > 0 && missing > 0 {
		return (missing + n.perBlock - 1) / n.perBlock
	}
	return 0
}

// claim counts again what the node needs.
func (u *networkUse) claim() {
	needs := u.needs(u.tasks)
	u.network.claimed += needs - u.claimed
	u.claimed = needs
}

// admits reports whether the node has an address for one more task, or can get a block.
func (u *networkUse) admits() bool {
	more := u.needs(u.tasks+1) - u.claimed
	return more <= 0 || u.network.claimed+more <= u.network.free()
}

// SetNetworks lets the usage count addresses: those of networks that its tasks are on.
// Without it, addresses are not part of what the node is asked for.
func (u *Usage) SetNetworks(ns *Networks) { u.networks = ns }

// CountAddressesAs lets an empty usage count addresses of the networks that another usage
// of the same node counts, beside what other nodes have and need of them.
func (u *Usage) CountAddressesAs(o *Usage) {
	u.networks, u.uses = NewNetworks(), map[string]*networkUse{}
	for id, theirs := range o.uses {
		n := *theirs.network
		n.claimed -= theirs.claimed
		n.uses = map[*networkUse]struct{}{}
		u.networks.byID[id] = &n
		u.uses[id] = &networkUse{network: &n, blocks: slices.Clone(theirs.blocks), capacity: theirs.capacity}
	}
}

// Overcommitted reports whether the tasks of nodes need more addresses of a network than
// there are.
func (ns *Networks) Overcommitted() bool {
	for _, n := range ns.byID {
		if n.claimed > n.free() {
			return true
		}
	}
	return false
}

// Excess returns how many tasks of the node cannot get an address, by network, even if the
// node gets all blocks that are left.
func (u *Usage) Excess() map[string]int {
	var excess map[string]int
	for id, use := range u.uses {
		n := use.network
		if use.claimed <= n.free() {
			continue
		}
		if excess == nil {
			excess = map[string]int{}
		}
		// One address is the node's own.
		excess[id] = use.tasks - max(0, use.capacity+n.free()*n.perBlock-1)
	}
	return excess
}

// AddBlock notes that the node has a block of a network.
func (u *Usage) AddBlock(network string, number uint32) {
	use := u.use(network)
	use.blocks = append(use.blocks, number)
	use.capacity += use.network.capacity(number)
	use.network.leased++
	use.claim()
}

// RemoveBlock notes that the node no longer has a block.
func (u *Usage) RemoveBlock(network string, number uint32) {
	use := u.use(network)
	if i := slices.Index(use.blocks, number); i >= 0 {
		use.blocks = slices.Delete(use.blocks, i, i+1)
		use.capacity -= use.network.capacity(number)
		use.network.leased--
	}
	u.counted(use)
}

func (u *Usage) countNetworks(h Hold, n int) {
	if u.networks == nil {
		return
	}
	for _, id := range h.Networks {
		use := u.use(id)
		use.tasks += n
		u.counted(use)
	}
}

// use returns what the node holds of a network.
func (u *Usage) use(id string) *networkUse {
	if use := u.uses[id]; use != nil {
		return use
	}
	if u.uses == nil {
		u.uses = map[string]*networkUse{}
	}
	use := &networkUse{network: u.networks.Network(id)}
	u.uses[id] = use
	use.network.uses[use] = struct{}{}
	return use
}

// counted counts what a use claims, and drops it when it holds nothing.
func (u *Usage) counted(use *networkUse) {
	use.claim()
	if use.tasks == 0 && len(use.blocks) == 0 {
		delete(u.uses, use.network.ID)
		delete(use.network.uses, use)
	}
}

// Join has the request ask for networks. Their ids become part of what its tasks hold.
func (r *Request) Join(networks []*Network) {
	r.networks = networks
	for _, n := range networks {
		r.Networks = append(r.Networks, n.ID)
	}
	r.setFilters()
}

// networkFilter refuses nodes that cannot connect a task to its networks, or have no
// address for it.
type networkFilter struct{ *Request }

func (networkFilter) name() Filter    { return FilterNetworks }
func (networkFilter) noun() string    { return "reason" }
func (f networkFilter) applies() bool { return len(f.networks) > 0 }

func (f networkFilter) check(n *Node, u *Usage) bool {
	if !f.joins(n) {
		return false
	}
	for _, network := range f.networks {
		if network.lacks != "" || n.LacksForNetwork(network.spec) != "" || !f.admits(network, u) {
			return false
		}
	}
	return true
}

// joins reports whether the executor can run tasks on networks.
func (f networkFilter) joins(n *Node) bool {
	o := n.Offer(f.Kind)
	return o != nil && slices.ContainsFunc(o.Capabilities, func(c string) bool { return c == ProvidesNetwork || c == AcceptsNetwork })
}

func (f networkFilter) admits(n *Network, u *Usage) bool {
	if u.networks == nil {
		return true
	}
	if use := u.uses[n.ID]; use != nil {
		return use.admits()
	}
	return (&networkUse{network: n}).admits()
}

func (f networkFilter) explain(c Candidate, count func(cause, int64)) {
	if !f.joins(c.Node) {
		count(cause{text: fmt.Sprintf("executor for %q cannot connect tasks to networks (muster plugin ls says what it lacks)", f.Kind)}, 0)
		return
	}
	for i, n := range f.networks {
		lacks := n.lacks
		switch {
		case lacks != "":
			count(cause{index: i, text: fmt.Sprintf("network %s %s", n.name(), lacks)}, 0)
		case c.LacksForNetwork(n.spec) != "":
			count(cause{index: i, text: fmt.Sprintf("network %s: %s", n.name(), c.LacksForNetwork(n.spec))}, 0)
		case !f.admits(n, c.Usage):
			count(cause{index: i, text: fmt.Sprintf("network %s is full: all %d addresses are in use or reserved for other nodes", n.name(), n.total)}, 0)
		}
	}
}

func (f networkFilter) describe(c cause, t tally) string { return c.text + " " + t.where(c) }
