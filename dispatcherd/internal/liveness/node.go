package liveness

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/internal/store"
)

// node is what a tracker knows about a node.
type node struct {
	id   string
	life life
	// session is nil while the worker is not connected.
	session Session
	// period is the session's heartbeat period.
	period time.Duration
	// description, address and instance are those of the last session here.
	description *musterv1.NodeDescription
	address     string
	instance    string
	// checked is the description that was checked last, and problem what is wrong with
	// it.
	checked *musterv1.NodeDescription
	problem string
	// postponed is when a postponed write is due, zero if none is postponed.
	postponed time.Time
	// claimed is when another worker claimed the node after the session was last
	// heard. predecessor is the worker that was the node before, and conflict the one
	// that was refused last.
	claimed     time.Time
	predecessor predecessor
	conflict    nodeConflict
	// place is the node's index in the heap of deadlines, -1 if it has none.
	place int
	// due is the deadline when the node was placed. Heartbeats extend the actual
	// deadline without moving the node in the heap: it is placed again when due.
	due time.Time
}

func newNode(id string) *node { return &node{id: id, place: -1} }

// checkDescription checks a node's description once.
func (t *Tracker) checkDescription(n *node, r store.Reader) {
	if n.checked != n.description {
		bounds.CheckSchemas(n.description, t.cfg.Schemas)
		n.problem = cmp.Or(bounds.CheckDataPath(n.description), t.checkKey(n, r))
		n.checked = n.description
	}
}

// checkKey removes the public key of a description if another node has it already, and
// returns why. A node that takes the key of another one cannot read its traffic, but could
// lead it astray.
func (t *Tracker) checkKey(n *node, r store.Reader) string {
	key := n.description.GetDataPath().GetPublicKey()
	if len(key) == 0 {
		return ""
	}
	states := t.cfg.Tables.NodeStates
	if e, ok := states.Get(r, n.id); ok && bytes.Equal(e.Value.GetDescription().GetDataPath().GetPublicKey(), key) {
		return ""
	}
	for e := range states.Scan(r, "") {
		if e.Key != n.id && bytes.Equal(e.Value.GetDescription().GetDataPath().GetPublicKey(), key) {
			n.description.DataPath.PublicKey, n.description.DataPath.EncryptedPort = nil, 0
			for _, d := range n.description.NetworkDrivers {
				d.Capabilities = slices.DeleteFunc(d.Capabilities, func(c string) bool { return c == "encrypted" })
			}
			return fmt.Sprintf("node %s has its public key for encrypted networks already, so it gets no tasks on these; "+
				"remove encryption.json of its network plugin and restart the worker, and the node makes another key", e.Key)
		}
	}
	return ""
}

// deadline returns when the node must be checked: when its patience ends, or when
// a postponed write is due.
func (n *node) deadline() time.Time {
	deadline := n.life.deadline()
	if until := n.postponed; !until.IsZero() && (deadline.IsZero() || until.Before(deadline)) {
		return until
	}
	return deadline
}

// heard returns the liveness including the last heartbeat of the session.
func (n *node) heard() life {
	if n.session == nil {
		return n.life
	}
	return n.life.hear(n.session.LastHeard())
}

func (n *node) status() nodeStatus {
	s := nodeStatus{description: n.description, address: n.address, instance: n.instance}
	s.state, s.message = n.life.state()
	if s.state == musterv1.NodeStatus_READY {
		s.message = cmp.Or(n.conflict.message, n.problem)
	}
	return s
}

// deadlines is a heap of nodes, ordered by deadline. It needs only one timer for
// each shard, however many nodes there are.
type deadlines []*node

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}
func (d *deadlines) Push(x any) {
	n := x.(*node)
	n.place = len(*d)
	*d = append(*d, n)
}
func (d *deadlines) Pop() any {
	old := *d
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	n.place = -1
	return n
}
