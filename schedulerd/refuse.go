package schedulerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// refuse refuses tasks on nodes that cannot give them an address of a network, and
// reports whether some could not be refused. Assignments are sharded by node, so nothing
// guards what nodes need of a network together: schedulers that assign at the same moment
// can promise its last blocks to several nodes. All schedulers find the same tasks, and
// each refuses those of its services: the newest of a node that have no address yet. The
// orchestrator replaces them.
func (d *Daemon) refuse(ctx context.Context, m *model, held map[int]bool) (failed bool) {
	if !m.networks.Overcommitted() {
		return false
	}
	var fns []func(*store.Tx) error
	for _, n := range m.nodes {
		for network, excess := range n.usage.Excess() {
			for _, key := range m.withoutAddress(n, network, excess) {
				if _, service, _ := state.SplitKey(key); held[store.ShardOf(service)] {
					fns = append(fns, func(tx *store.Tx) error { return d.refuseTask(tx, m, key, network) })
				}
			}
		}
	}
	for _, err := range d.store.UpdateAll(ctx, fns) {
		if err != nil {
			failed = true
			if ctx.Err() == nil {
				d.log.Warn("failed to refuse a task without an address", zap.Error(err))
			}
		}
	}
	return failed
}

// withoutAddress returns the keys of a node's assignments for which a network has no
// address, given how many tasks are too many. Those that are about to end anyway are
// among these.
func (m *model) withoutAddress(n *node, network string, excess int) []string {
	var found []*store.Entry[*recordv1.Assignment]
	for a := range m.tables.Assignments.Scan(m.now, n.ID+"/") {
		_, _, id := state.SplitKey(a.Key)
		hold, holds := n.holds[id]
		switch {
		case !holds || !slices.Contains(a.Value.Networks, network):
		case hold.Leaving || a.Value.Refused != "":
			excess--
		case !addressed(m.tables, m.now, a.Key):
			found = append(found, &a)
		}
	}
	slices.SortFunc(found, func(a, b *store.Entry[*recordv1.Assignment]) int {
		return cmp.Or(cmp.Compare(b.Value.AssignedAt, a.Value.AssignedAt), cmp.Compare(b.Key, a.Key))
	})
	var keys []string
	for _, a := range found[:min(max(0, excess), len(found))] {
		keys = append(keys, a.Key)
	}
	return keys
}

// addressed reports whether a task has addresses, as far as its worker has reported.
func addressed(t *state.Tables, r store.Reader, key string) bool {
	s, ok := t.Statuses.Get(r, key)
	return ok && (len(s.Value.Networks) > 0 || s.Value.State >= musterv1.TaskState_STARTING)
}

// refuseTask refuses a task if its node has too many still, and the task is without an
// address.
func (d *Daemon) refuseTask(tx *store.Tx, m *model, key, network string) error {
	node, service, _ := state.SplitKey(key)
	a, ok := d.tables.Assignments.Get(tx, key)
	if d.fences.Check(tx, store.ShardOf(service)) != nil || !ok || a.Value.Refused != "" || addressed(d.tables, tx, key) {
		return nil
	}
	record, _ := d.tables.Networks.Get(tx, network)
	given, _ := d.tables.NetworkStates.Get(tx, network)
	networks := placement.NewNetworks()
	networks.Network(network).Set(record.Value.GetSpec(), given.Value)
	usage, others := placement.NewUsage(), placement.NewUsage()
	usage.SetNetworks(networks)
	others.SetNetworks(networks)
	for b := range d.tables.Blocks.Scan(tx, network+"/") {
		number, ok := state.BlockNumber(b.Key)
		switch {
		case !ok:
		case b.Value.NodeId == node:
			usage.AddBlock(network, number)
		default:
			others.AddBlock(network, number)
		}
	}
	leaving := 0
	for other := range d.tables.Assignments.Scan(tx, node+"/") {
		s, ok := d.tables.Statuses.Get(tx, other.Key)
		if ok && s.Value.State > musterv1.TaskState_RUNNING || !slices.Contains(other.Value.Networks, network) {
			continue
		}
		hold := m.hold(&other)
		usage.Add(placement.Hold{Service: hold.Service, Networks: []string{network}})
		if hold.Leaving || other.Value.Refused != "" {
			leaving++
		}
	}
	if usage.Excess()[network] <= leaving {
		return nil
	}
	refused := proto.CloneOf(a.Value)
	refused.Refused = fmt.Sprintf("network %s has no address left", cmp.Or(record.Value.GetSpec().GetName(), network))
	d.tables.Assignments.Put(tx, key, refused)
	return nil
}
