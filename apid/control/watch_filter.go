package control

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

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
	fields   eventFields
	// byService and byName are the ids of the services that services and names
	// have ever stood for: tasks outlive their service and its name.
	byService, byName map[string]bool
}

func newWatchFilter(req *musterv1.WatchRequest, fields eventFields) (*watchFilter, error) {
	if err := checkLists(req); err != nil {
		return nil, err
	}
	for i, k := range req.Kinds {
		field := fmt.Sprintf("kinds[%d]", i)
		if slices.Contains(objects.Kinds(), k) {
			continue
		}
		if _, known := musterv1.ObjectKind_name[int32(k)]; known && k != musterv1.ObjectKind_OBJECT_KIND_UNSPECIFIED {
			return nil, status.Errorf(codes.Unimplemented, "not implemented yet: %s: there are no objects of kind %s yet", field, k)
		}
		return nil, validate.Field(field, "is not a kind of object")
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
		labels: labels, nodes: foldAll(req.Nodes), req: req, fields: fields,
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
	return c.Kind != musterv1.ObjectKind_SERVICE && !oneOf(f.kinds, c.Kind)
}

// event turns a change into an event, nil if the watch does not ask for it.
func (f *watchFilter) event(r *objects.Reader, c objects.Change, withOld bool) *musterv1.WatchEvent {
	e := &musterv1.WatchEvent{Id: c.ID, At: timestamp(c.At), Action: action(c), Kind: c.Kind}
	object, reader := c.New, r
	if object == nil {
		object, reader = c.Old, r.Past()
	}
	if !f.wants(r, object) || !oneOf(f.kinds, e.Kind) || !oneOf(f.actions, e.Action) || !onePrefix(f.ids, c.ID) {
		return nil
	}
	// An object that no longer passes is sent once more, so that the watcher learns
	// that it has left.
	if f.selects() && !f.passes(r, c.New) && !f.passes(r, c.Old) {
		return nil
	}
	f.fields.set(e, "object", object.Message(reader))
	if withOld && c.Old != nil && c.New != nil {
		f.fields.set(e, "old", c.Old.Message(r.Past()))
	}
	return e
}

// wants reports whether the watch asks for an object by a name, or by a service.
func (f *watchFilter) wants(r *objects.Reader, object objects.Object) bool {
	switch o := object.(type) {
	case *objects.Service:
		return f.wantService(o)
	case *objects.Task:
		return f.wantTask(r, o)
	default:
		return len(f.services) == 0 && oneOf(f.names, fold(o.Name()))
	}
}

// selects reports whether the watch asks for properties of objects.
func (f *watchFilter) selects() bool {
	q := f.req
	return len(q.Labels)+len(q.Nodes)+len(q.States)+len(q.DesiredStates)+len(q.NodeStates)+len(q.Availabilities)+len(q.Roles)+len(q.Modes) > 0
}

// passes reports whether an object has the properties that the watch asks for. An
// object of a kind that lacks one of them does not.
func (f *watchFilter) passes(r *objects.Reader, object objects.Object) bool {
	if object == nil {
		return false
	}
	q := f.req
	s, isService := object.(*objects.Service)
	t, isTask := object.(*objects.Task)
	n, isNode := object.(*objects.Node)
	if len(q.Modes) > 0 && (!isService || !oneOf(q.Modes, serviceMode(s.Record.GetSpec()))) {
		return false
	}
	if len(q.States)+len(q.DesiredStates) > 0 && (!isTask || !oneOf(q.States, t.State()) || !oneOf(q.DesiredStates, t.Desired())) {
		return false
	}
	if len(q.NodeStates)+len(q.Availabilities)+len(q.Roles) > 0 &&
		(!isNode || !oneOf(q.NodeStates, n.State.GetState()) || !oneOf(q.Availabilities, n.Spec().Availability) || !oneOf(q.Roles, n.Spec().Role)) {
		return false
	}
	if len(f.nodes) > 0 && (!isTask || !f.onNode(r, t)) && (!isNode || !slices.Contains(f.nodes, fold(n.Hostname())) && !slices.Contains(q.Nodes, n.ID)) {
		return false
	}
	return f.labels.matchObject(r, object)
}

// onNode reports whether a task is on one of the nodes that the watch asks for.
func (f *watchFilter) onNode(r *objects.Reader, t *objects.Task) bool {
	if slices.Contains(f.req.Nodes, t.NodeID) {
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

// eventFields are the fields of an event that hold objects: by their oneof, and by
// the full name of the object's message.
type eventFields map[protoreflect.Name]map[protoreflect.FullName]protoreflect.FieldDescriptor

func newEventFields() eventFields {
	all := eventFields{}
	oneofs := (*musterv1.WatchEvent)(nil).ProtoReflect().Descriptor().Oneofs()
	for i := range oneofs.Len() {
		of := map[protoreflect.FullName]protoreflect.FieldDescriptor{}
		for j := range oneofs.Get(i).Fields().Len() {
			field := oneofs.Get(i).Fields().Get(j)
			of[field.Message().FullName()] = field
		}
		all[oneofs.Get(i).Name()] = of
	}
	return all
}

// set puts an object into the field of a oneof that is for it.
func (f eventFields) set(e *musterv1.WatchEvent, oneof protoreflect.Name, object proto.Message) {
	m := object.ProtoReflect()
	e.ProtoReflect().Set(f[oneof][m.Descriptor().FullName()], protoreflect.ValueOfMessage(m))
}
