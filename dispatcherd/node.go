package dispatcherd

import (
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/internal/payload"
)

// node is what the owner of its shard knows of a node.
type node struct {
	id   string
	life liveness
	// session is nil while the worker is not connected.
	session *session
	// description, address and instance are what the worker said in its last
	// session here.
	description *musterv1.NodeDescription
	address     string
	instance    string
	// judged is the description whose schemas were looked at last.
	judged *musterv1.NodeDescription
	pacer  pacer
	// claim is open while two workers want to be the node; former is who was it
	// before, and rival who was refused.
	claim  claim
	former former
	rival  rival
	// place is where the node is among the deadlines, -1 if it has none.
	place int
	// due is its deadline as of when it was placed. Heartbeats move the real one
	// on without moving the node: it is looked at when due, and placed anew.
	due time.Time
}

// newNode returns a node of which nothing is known.
func newNode(id string) *node { return &node{id: id, place: -1, pacer: newPacer()} }

// judge looks at the schemas of the node's description, once.
func (n *node) judge(schemas *payload.Schemas) {
	if n.judged != n.description {
		bounds.CheckSchemas(n.description, schemas)
		n.judged = n.description
	}
}

// deadline is when the node must be looked at: at the end of its patience, or when
// what its worker said may be written.
func (n *node) deadline() time.Time {
	life := n.life.deadline()
	if until := n.pacer.until; !until.IsZero() && (life.IsZero() || until.Before(life)) {
		return until
	}
	return life
}

// heard returns its life with all that its session has heard.
func (n *node) heard() liveness {
	if n.session == nil {
		return n.life
	}
	return n.life.hear(n.session.lastHeard())
}

func (n *node) standing() standing {
	s := standing{description: n.description, address: n.address, instance: n.instance}
	s.state, s.message = n.life.verdict()
	if s.state == musterv1.NodeStatus_READY {
		s.message = n.rival.what
	}
	return s
}

// deadlines is a heap of nodes, the one that is due first at its top. One
// timer a shard serves it, however many nodes there are.
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
