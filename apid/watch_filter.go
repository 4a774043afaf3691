package apid

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
)

// watchFilter says which changes a watch is told, and how.
type watchFilter struct {
	kinds    []musterv1.ObjectKind
	actions  []musterv1.WatchAction
	ids      []string
	names    []string
	services []string
	labels   labelFilter
	nodes    []string
	req      *musterv1.WatchRequest
	// byService and byName are the ids of the services that services and names
	// have ever stood for: tasks outlive their service and its name.
	byService, byName map[string]bool
}

func newWatchFilter(req *musterv1.WatchRequest) (*watchFilter, error) {
	if err := checkLists(req); err != nil {
		return nil, err
	}
	for i, k := range req.Kinds {
		field := fmt.Sprintf("kinds[%d]", i)
		switch k {
		case musterv1.ObjectKind_SERVICE, musterv1.ObjectKind_TASK, musterv1.ObjectKind_NODE, musterv1.ObjectKind_CLUSTER:
		case musterv1.ObjectKind_NETWORK, musterv1.ObjectKind_SECRET, musterv1.ObjectKind_CONFIG, musterv1.ObjectKind_VOLUME:
			return nil, status.Errorf(codes.Unimplemented, "not implemented yet: %s: there are no objects of kind %s yet", field, k)
		default:
			return nil, validate.Field(field, "is not a kind of object")
		}
	}
	for i, a := range req.Actions {
		if a < musterv1.WatchAction_CREATE || a > musterv1.WatchAction_DELETE {
			return nil, validate.Field(fmt.Sprintf("actions[%d]", i), "must be CREATE, UPDATE or DELETE")
		}
	}
	labels, err := parseLabels(req.Labels)
	if err != nil {
		return nil, err
	}
	return &watchFilter{
		labels: labels, nodes: foldAll(req.Nodes), req: req,
		kinds: req.Kinds, actions: req.Actions, ids: req.Ids, names: foldAll(req.Names),
		services: foldAll(req.Services), byService: map[string]bool{}, byName: map[string]bool{},
	}, nil
}

// learn resolves the names of services as they are now.
func (f *watchFilter) learn(r *objects.Reader) {
	for _, ref := range slices.Concat(f.services, f.names) {
		if s := r.ServiceByName(ref); s != nil {
			f.wantService(s)
		}
	}
}

// ignores reports whether a change is of a kind that the watch does not ask for, which
// is most of them where a few services have many tasks. Services are always looked
// at: their names are learned.
func (f *watchFilter) ignores(c objects.Change) bool {
	switch c.Kind {
	case objects.KindTask:
		return !oneOf(f.kinds, musterv1.ObjectKind_TASK)
	case objects.KindNode:
		return !oneOf(f.kinds, musterv1.ObjectKind_NODE)
	default:
		return false
	}
}

// event turns a change into an event, nil if the watch does not ask for it.
func (f *watchFilter) event(r *objects.Reader, c objects.Change, withOld bool) *musterv1.WatchEvent {
	e := &musterv1.WatchEvent{Id: c.ID, At: timestamp(c.At), Action: action(c)}
	object := c.New
	if object == nil {
		object = c.Old
	}
	var wanted bool
	switch o := object.(type) {
	case *objects.Service:
		e.Kind = musterv1.ObjectKind_SERVICE
		wanted = f.wantService(o)
	case *objects.Task:
		e.Kind = musterv1.ObjectKind_TASK
		wanted = f.wantTask(r, o)
	case *objects.Node:
		e.Kind = musterv1.ObjectKind_NODE
		wanted = len(f.services) == 0 && oneOf(f.names, fold(o.Hostname()))
	case *objects.Cluster:
		e.Kind = musterv1.ObjectKind_CLUSTER
		wanted = len(f.services) == 0 && oneOf(f.names, c.ID)
	}
	if wanted && f.selects() {
		// What no longer passes is told once more: that it has left.
		wanted = f.passes(r, c.New) || f.passes(r, c.Old)
	}
	if !wanted || !oneOf(f.kinds, e.Kind) || !oneOf(f.actions, e.Action) || !onePrefix(f.ids, c.ID) {
		return nil
	}
	fill(r, e, object)
	if withOld && c.Old != nil && c.New != nil {
		fillOld(r, e, c.Old)
	}
	return e
}

// selects reports whether the watch asks for properties of objects.
func (f *watchFilter) selects() bool {
	q := f.req
	return len(q.Labels)+len(q.Nodes)+len(q.States)+len(q.DesiredStates)+len(q.NodeStates)+len(q.Availabilities)+len(q.Roles)+len(q.Modes) > 0
}

// passes reports whether an object has the properties that the watch asks for. A
// kind that lacks one of them does not.
func (f *watchFilter) passes(r *objects.Reader, object any) bool {
	q := f.req
	ofService := len(q.Modes) > 0
	ofTask := len(q.States)+len(q.DesiredStates) > 0
	ofNode := len(q.NodeStates)+len(q.Availabilities)+len(q.Roles) > 0
	switch o := object.(type) {
	case *objects.Service:
		return !ofTask && !ofNode && len(f.nodes) == 0 && oneOf(q.Modes, serviceMode(o.Record.GetSpec())) && f.labels.match(o.Record.GetSpec().GetLabels())
	case *objects.Task:
		if ofService || ofNode || !oneOf(q.States, o.State()) || !oneOf(q.DesiredStates, o.Desired()) || !f.onNode(r, o) {
			return false
		}
		if len(f.labels) == 0 {
			return true
		}
		s, ok := r.Service(o.ServiceID)
		return ok && f.labels.match(s.Record.GetSpec().GetLabels())
	case *objects.Node:
		spec := o.Spec()
		return !ofService && !ofTask && oneOf(q.NodeStates, o.State.GetState()) && oneOf(q.Availabilities, spec.Availability) &&
			oneOf(q.Roles, spec.Role) && f.labels.match(spec.Labels) && (oneOf(f.nodes, fold(o.Hostname())) || slices.Contains(q.Nodes, o.ID))
	}
	return false
}

// onNode reports whether a task is on one of the nodes that the watch asks for.
func (f *watchFilter) onNode(r *objects.Reader, t *objects.Task) bool {
	if len(f.nodes) == 0 || slices.Contains(f.req.Nodes, t.NodeID) {
		return true
	}
	n, ok := r.Node(t.NodeID)
	return ok && slices.Contains(f.nodes, fold(n.Hostname()))
}

func (f *watchFilter) wantService(s *objects.Service) bool {
	name := fold(s.Record.GetSpec().GetName())
	if slices.Contains(f.services, name) || slices.Contains(f.services, s.ID) {
		f.byService[s.ID] = true
	}
	if slices.Contains(f.names, name) {
		f.byName[s.ID] = true
	}
	return oneOf(f.names, name) && (len(f.services) == 0 || f.byService[s.ID])
}

func (f *watchFilter) wantTask(r *objects.Reader, t *objects.Task) bool {
	if s, ok := r.Service(t.ServiceID); ok {
		f.wantService(s)
	}
	return (len(f.services) == 0 || f.byService[t.ServiceID] || slices.Contains(f.services, t.ServiceID)) &&
		(len(f.names) == 0 || f.byName[t.ServiceID])
}

func action(c objects.Change) musterv1.WatchAction {
	switch {
	case c.New == nil:
		return musterv1.WatchAction_DELETE
	case c.Old == nil && !c.Known:
		return musterv1.WatchAction_CREATE
	default:
		return musterv1.WatchAction_UPDATE
	}
}

func fill(r *objects.Reader, e *musterv1.WatchEvent, object any) {
	switch o := object.(type) {
	case *objects.Service:
		e.Object = &musterv1.WatchEvent_Service{Service: r.ServiceMessage(o)}
	case *objects.Task:
		e.Object = &musterv1.WatchEvent_Task{Task: r.TaskMessage(o)}
	case *objects.Node:
		e.Object = &musterv1.WatchEvent_Node{Node: r.NodeMessage(o)}
	case *objects.Cluster:
		e.Object = &musterv1.WatchEvent_Cluster{Cluster: r.ClusterMessage(o)}
	}
}

func fillOld(r *objects.Reader, e *musterv1.WatchEvent, old any) {
	switch o := old.(type) {
	case *objects.Service:
		e.Old = &musterv1.WatchEvent_OldService{OldService: r.ServiceMessage(o)}
	case *objects.Task:
		e.Old = &musterv1.WatchEvent_OldTask{OldTask: r.TaskMessage(o)}
	case *objects.Node:
		e.Old = &musterv1.WatchEvent_OldNode{OldNode: r.NodeMessage(o)}
	case *objects.Cluster:
		e.Old = &musterv1.WatchEvent_OldCluster{OldCluster: r.ClusterMessage(o)}
	}
}
