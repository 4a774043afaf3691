package schedulerd

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// networksChanged notes what networks are, and which node has which of their blocks.
func (m *model) networksChanged(from *store.Snapshot) {
	changed := map[string]bool{}
	for c := range m.tables.Networks.Changes(from, m.now) {
		changed[c.Key()] = true
	}
	for c := range m.tables.NetworkStates.Changes(from, m.now) {
		if c.Old == nil || c.New == nil || !state.SameAddresses(c.Old.Value, c.New.Value) {
			changed[c.Key()] = true
		}
	}
	for id := range changed {
		n, _ := m.tables.Networks.Get(m.now, id)
		s, _ := m.tables.NetworkStates.Get(m.now, id)
		m.networks.Network(id).Set(n.Value.GetSpec(), s.Value)
		m.networks.Forget(id)
		m.capacityFreed = true
	}
	for c := range m.tables.Blocks.Changes(from, m.now) {
		for _, b := range []struct {
			entry *store.Entry[*recordv1.Block]
			count int
		}{{c.Old, -1}, {c.New, 1}} {
			if b.entry != nil {
				m.countBlock(b.entry, b.count)
			}
		}
		m.capacityFreed = true
	}
}

// countBlock counts a block of a node in or out.
func (m *model) countBlock(b *store.Entry[*recordv1.Block], count int) {
	id, _, _ := state.SplitKey(b.Key)
	number, ok := state.BlockNumber(b.Key)
	if !ok {
		return
	}
	n := m.node(b.Value.NodeId)
	n.blocks += count
	if count > 0 {
		n.usage.AddBlock(id, number)
	} else {
		n.usage.RemoveBlock(id, number)
		m.networks.Forget(id)
	}
	if _, known := m.tables.NodeStates.Get(m.now, n.ID); !known && n.idle() {
		m.drop(n.ID)
	}
}
