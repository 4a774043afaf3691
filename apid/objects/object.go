package objects

import (
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Object is an object of any kind as it was at one moment. It is immutable.
type Object interface {
	// Kind is the object's kind.
	Kind() musterv1.ObjectKind
	// Key is the object's id.
	Key() string
	// Name is what people call the object. Only some kinds have unique names.
	Name() string
	// Labels are those that filters look at. False: the object has no labels, and
	// passes no filter on labels.
	Labels(r *Reader) (map[string]string, bool)
	// Message is the object as users see it.
	Message(r *Reader) proto.Message

	// seen reports whether the object was known at a point, and whether the whole
	// change that led to it was.
	seen(at Point) (known, all bool)
}

var (
	_ Object = (*Service)(nil)
	_ Object = (*Task)(nil)
	_ Object = (*Node)(nil)
	_ Object = (*Cluster)(nil)
	_ Object = (*Config)(nil)
	_ Object = (*Network)(nil)
	_ Object = (*Secret)(nil)
	_ Object = (*Stack)(nil)
)

// Kinds returns the kinds of objects that a view holds.
func Kinds() []musterv1.ObjectKind {
	return []musterv1.ObjectKind{
		musterv1.ObjectKind_CLUSTER, musterv1.ObjectKind_NODE, musterv1.ObjectKind_SERVICE, musterv1.ObjectKind_TASK,
		musterv1.ObjectKind_CONFIG, musterv1.ObjectKind_NETWORK, musterv1.ObjectKind_SECRET, musterv1.ObjectKind_STACK,
	}
}

// Kind is SERVICE.
func (s *Service) Kind() musterv1.ObjectKind { return musterv1.ObjectKind_SERVICE }

// Key is the id.
func (s *Service) Key() string { return s.ID }

// Name is the service's name, unique among services.
func (s *Service) Name() string { return s.Record.GetSpec().GetName() }

// Labels are those of the spec.
func (s *Service) Labels(*Reader) (map[string]string, bool) {
	return s.Record.GetSpec().GetLabels(), true
}

// Message is the service as users see it.
func (s *Service) Message(r *Reader) proto.Message { return r.ServiceMessage(s) }

// seen never says that all was seen: a service also changes with its rollout, its
// endpoint and its tasks, of which its record tells nothing.
func (s *Service) seen(at Point) (known, all bool) {
	return at.seen(at.layout.tables.Services, s.ID, s.Version), false
}

// Kind is TASK.
func (t *Task) Kind() musterv1.ObjectKind { return musterv1.ObjectKind_TASK }

// Key is the id.
func (t *Task) Key() string { return t.ID }

// Name is the task's id: its full name is that of its service as well.
func (t *Task) Name() string { return t.ID }

// Labels are those of the task's service.
func (t *Task) Labels(r *Reader) (map[string]string, bool) {
	s, ok := r.Service(t.ServiceID)
	if !ok {
		return nil, false
	}
	return s.Labels(r)
}

// Message is the task as users see it.
func (t *Task) Message(r *Reader) proto.Message { return r.TaskMessage(t) }

func (t *Task) seen(at Point) (known, all bool) {
	tables := at.layout.tables
	known = at.seen(tables.Tasks, t.ServiceID, t.Version)
	return known, known && at.seen(tables.Assignments, t.NodeID, t.AssignmentVersion) && at.seen(tables.Statuses, t.NodeID, t.StatusVersion)
}

// Kind is NODE.
func (n *Node) Kind() musterv1.ObjectKind { return musterv1.ObjectKind_NODE }

// Key is the id.
func (n *Node) Key() string { return n.ID }

// Name is the node's host name.
func (n *Node) Name() string { return n.Hostname() }

// Labels are those that an operator gave the node.
func (n *Node) Labels(*Reader) (map[string]string, bool) {
	return n.Record.GetSpec().GetLabels(), true
}

// Message is the node as users see it.
func (n *Node) Message(r *Reader) proto.Message { return r.NodeMessage(n) }

func (n *Node) seen(at Point) (known, all bool) {
	tables := at.layout.tables
	known = at.seen(tables.NodeStates, n.ID, n.stateVersion)
	return known, known && at.seen(tables.Nodes, n.ID, n.Version)
}

// Kind is CLUSTER.
func (c *Cluster) Kind() musterv1.ObjectKind { return musterv1.ObjectKind_CLUSTER }

// Key is the id.
func (c *Cluster) Key() string { return state.ClusterID }

// Name is that of the one cluster.
func (c *Cluster) Name() string { return state.ClusterID }

// Labels says that the cluster passes no filter on labels.
func (c *Cluster) Labels(*Reader) (map[string]string, bool) { return nil, false }

// Message is the cluster as users see it.
func (c *Cluster) Message(r *Reader) proto.Message { return r.ClusterMessage(c) }

func (c *Cluster) seen(Point) (known, all bool) { return false, false }
