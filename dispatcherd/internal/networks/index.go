// Package networks knows what the nodes of each network must be told: the network
// itself with the node's own addresses, and its members, which are the other nodes
// (peers), the services, and the tasks that get the services' traffic (backends).
//
// An [Index] goes from snapshot to snapshot and looks only at what has changed. Peers
// are joined in holders.go, services in services.go, and backends in backends.go. The members of a
// network are the same for all of its nodes, so each network has one [feed] of
// numbered changes, which all sessions read. One change costs each node one small
// message, and the messages are shared.
//
// An index costs nothing while there are no networks.
package networks

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Index knows the networks as one snapshot shows them. It implements
// [assignments.Networks].
type Index struct {
	tables  *state.Tables
	deliver func(map[string][]string)

	mu sync.Mutex
	// at is the snapshot. It is nil while there are no networks.
	at *store.Snapshot
	// version is that of the last network object that changed.
	version  uint64
	networks map[string]*network
	// nodes holds the nodes that have a block or a task on a network.
	nodes map[string]*node
	// services holds the services that are on a network.
	services map[string]*service
	// specless holds the services whose task spec is missing, by the key of the spec.
	specless map[string]map[string]struct{}
	// tasks holds the tasks whose status shows networks, by id.
	tasks map[string]*task
}

// network is one network.
type network struct {
	feed
	// pace decides when changes of the members are published.
	pace pace
	// record and state are nil if there are none.
	record *recordv1.Network
	state  *recordv1.NetworkState
	// holders are the nodes that have blocks of the network.
	holders map[string]*holder
	// owners are the nodes that have blocks, by the subnets of these.
	owners map[netip.Prefix]string
	// version is that of the last change of record and state.
	version uint64
}

// node is a node with a block or a task on a network.
type node struct {
	networks map[string]struct{}
	tasks    map[string]struct{}
}

// New returns an index of no snapshot. Deliver is called with the nodes whose networks
// have changed as in the result of [Index.Advance], when changes were held back that come
// too fast. If it is nil, none are held back.
func New(tables *state.Tables, deliver func(nodes map[string][]string)) *Index {
	x := &Index{tables: tables, deliver: deliver}
	x.reset()
	return x
}

func (x *Index) reset() {
	x.at = nil
	x.networks, x.nodes, x.services = map[string]*network{}, map[string]*node{}, map[string]*service{}
	x.specless, x.tasks = map[string]map[string]struct{}{}, map[string]*task{}
}

// Tables returns the tables whose changes concern the index now.
func (x *Index) Tables() []store.TableDef {
	t := x.tables
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.at == nil {
		return []store.TableDef{t.Networks}
	}
	return []store.TableDef{t.Networks, t.NetworkStates, t.Blocks, t.NodeStates, t.Services, t.Specs, t.Endpoints, t.Rollouts, t.Statuses, t.Tasks, t.Assignments}
}

// Advance continues with a snapshot. It returns the nodes whose networks have changed,
// each with the ids of these networks, and whether tasks of any node may no longer have
// to wait for a network.
func (x *Index) Advance(to *store.Snapshot) (nodes map[string][]string, appeared bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.at == nil && !x.anyNetwork(to) {
		return nil, false
	}
	a := &advance{
		Index: x, from: x.at, to: to, before: map[string]uint64{}, changed: map[string]map[string]struct{}{},
		staleTasks: map[string]struct{}{}, staleServices: map[string]struct{}{},
	}
	x.at = to
	a.followNetworks()
	a.followNodes()
	a.followTasks()
	a.followServices()
	return a.finish(), a.appeared
}

func (x *Index) anyNetwork(r store.Reader) bool {
	for range x.tables.Networks.Scan(r, "") {
		return true
	}
	return false
}

// advance is the step from one snapshot to the next.
type advance struct {
	*Index
	from, to *store.Snapshot
	// before holds the number of the last change of the feeds that were touched.
	before map[string]uint64
	// changed holds the nodes whose network objects have changed.
	changed map[string]map[string]struct{}
	// staleTasks holds the keys of assignments, and staleServices the ids of services,
	// that must be joined again.
	staleTasks, staleServices map[string]struct{}
	// appeared says that a network without blocks has changed. Tasks of any node may wait
	// for it.
	appeared bool
}

// network returns a network, which is about to change.
func (a *advance) network(id string) *network {
	n := a.Index.network(id)
	if _, ok := a.before[id]; !ok {
		a.before[id] = n.newest
	}
	return n
}

// change notes that a node's network object has changed.
func (a *advance) change(node, network string) {
	if a.changed[node] == nil {
		a.changed[node] = map[string]struct{}{}
	}
	a.changed[node][network] = struct{}{}
}

// finish forgets the networks of which nothing is left, and returns the nodes that
// must be told.
func (a *advance) finish() map[string][]string {
	for id, newest := range a.before {
		n := a.networks[id]
		if n.newest != newest && a.publish(n) {
			for r := range n.readers {
				a.change(r.node, id)
			}
		}
		if n.record == nil && n.state == nil && len(n.holders) == 0 && len(n.readers) == 0 && n.order.Len() == n.withdrawn {
			delete(a.networks, id)
		}
	}
	if len(a.networks) == 0 {
		a.reset()
	}
	nodes := make(map[string][]string, len(a.changed))
	for node, networks := range a.changed {
		nodes[node] = slices.Sorted(maps.Keys(networks))
	}
	return nodes
}

// network returns a network, which may be new.
func (x *Index) network(id string) *network {
	n := x.networks[id]
	if n == nil {
		n = &network{feed: newFeed(id), holders: map[string]*holder{}, owners: map[netip.Prefix]string{}}
		x.networks[id] = n
	}
	return n
}

// node returns a node, which may be new.
func (x *Index) node(id string) *node {
	n := x.nodes[id]
	if n == nil {
		n = &node{networks: map[string]struct{}{}, tasks: map[string]struct{}{}}
		x.nodes[id] = n
	}
	return n
}

// forgetNode forgets a node without networks and tasks.
func (x *Index) forgetNode(id string) {
	if n := x.nodes[id]; n != nil && len(n.networks)+len(n.tasks) == 0 {
		delete(x.nodes, id)
	}
}

// Network implements [assignments.Networks].
func (x *Index) Network(node, id string) assignments.Object {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.object(node, id)
}

// Held returns the networks of which a node has a block.
func (x *Index) Held(node string) []assignments.Object {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.nodes[node]
	if n == nil {
		return nil
	}
	var all []assignments.Object
	for _, id := range slices.Sorted(maps.Keys(n.networks)) {
		all = append(all, x.object(node, id))
	}
	return all
}

// members are the members of a network as a node gets them.
type members struct {
	index         *Index
	node, network string
}

// Read implements [assignments.Members].
func (m members) Read() assignments.MemberReader {
	m.index.mu.Lock()
	defer m.index.mu.Unlock()
	n := m.index.network(m.network)
	r := &reader{index: m.index, feed: &n.feed, node: m.node}
	n.readers[r] = struct{}{}
	return r
}
