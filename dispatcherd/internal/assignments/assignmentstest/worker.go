// Package assignmentstest has a worker for tests: it applies the assignments that
// it receives, and checks that they follow the protocol.
package assignmentstest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backends"
)

// Worker holds what a worker was sent. It is not safe for concurrent use.
type Worker struct {
	Tasks map[string]*dispatcherv1.AssignedTask
	// Objects holds a TaskSpec under "spec/<digest>", an AssignedConfig under
	// "config/<id>", an AssignedSecret under "secret/<id>", a Network under "network/<id>", a Peer under
	// "peer/<network>/<node>" and a Service under "service/<network>/<service>".
	Objects map[string]proto.Message
	// Backends holds the backends of each service by task. Its keys are those of the
	// services.
	Backends map[string]map[string]*networkv1.Backend
	// named collects the keys of a complete set that has begun.
	named map[string]bool
}

// New returns a worker that was sent nothing.
func New() *Worker {
	return &Worker{Tasks: map[string]*dispatcherv1.AssignedTask{}, Objects: map[string]proto.Message{}, Backends: map[string]map[string]*networkv1.Backend{}}
}

// Apply applies one message of either protocol. It fails if the message breaks
// the protocol: an object that the worker has in the same version, a task before
// its objects, a member before its network, a withdrawal of something unknown or of an
// object that a task needs.
func (w *Worker) Apply(a *dispatcherv1.Assignments) error {
	if len(a.Specs)+len(a.Tasks)+len(a.Removed) > 0 && len(a.Objects)+len(a.Withdrawn) > 0 {
		return fmt.Errorf("message mixes two protocol versions: %v", a)
	}
	if a.Complete && w.named == nil {
		w.named = map[string]bool{}
	}
	for _, object := range objectsOf(a) {
		if err := w.put(object); err != nil {
			return err
		}
	}
	for _, ref := range withdrawnOf(a) {
		if err := w.withdraw(ref); err != nil {
			return err
		}
	}
	if a.Last {
		maps.DeleteFunc(w.Tasks, func(id string, _ *dispatcherv1.AssignedTask) bool { return !w.named["task/"+id] })
		maps.DeleteFunc(w.Objects, func(key string, _ proto.Message) bool { return !w.named[key] })
		maps.DeleteFunc(w.Backends, func(key string, _ map[string]*networkv1.Backend) bool { return !w.named["backends/"+key] })
		w.named = nil
	}
	return nil
}

// has reports whether the worker has an object, in the complete set if one has begun.
func (w *Worker) has(key string) bool {
	return w.Objects[key] != nil && (w.named == nil || w.named[key])
}

func (w *Worker) put(object *dispatcherv1.AssignedObject) error {
	var key string
	var message proto.Message
	switch o := object.Object.(type) {
	case *dispatcherv1.AssignedObject_Task:
		t := o.Task
		needs := t.DesiredState <= musterv1.TaskState_COMPLETE && t.KnownState < musterv1.TaskState_ACCEPTED
		for _, key := range Dependencies(t) {
			if needs && !w.has(key) {
				return fmt.Errorf("task %s comes before %s", t.Id, key)
			}
		}
		w.Tasks[t.Id] = t
		key = "task/" + t.Id
	case *dispatcherv1.AssignedObject_Spec:
		key, message = "spec/"+string(o.Spec.Digest), o.Spec.Spec
	case *dispatcherv1.AssignedObject_Config:
		key, message = "config/"+o.Config.Id, o.Config
	case *dispatcherv1.AssignedObject_Secret:
		key, message = "secret/"+o.Secret.Id, o.Secret
	case *dispatcherv1.AssignedObject_Network:
		key, message = "network/"+o.Network.Id, o.Network
	case *dispatcherv1.AssignedObject_Peer:
		key, message = "peer/"+o.Peer.NetworkId+"/"+o.Peer.NodeId, o.Peer
		if !w.has("network/" + o.Peer.NetworkId) {
			return fmt.Errorf("%s comes before its network", key)
		}
	case *dispatcherv1.AssignedObject_Service:
		key, message = ServiceKey(o.Service.NetworkId, o.Service.Id), o.Service
		if !w.has("network/" + o.Service.NetworkId) {
			return fmt.Errorf("%s comes before its network", key)
		}
	case *dispatcherv1.AssignedObject_PackedBackends:
		changed, gone, err := backends.Unpack(o.PackedBackends.Changes)
		if err != nil {
			return err
		}
		unpacked := &networkv1.Backends{
			NetworkId: o.PackedBackends.NetworkId, ServiceId: o.PackedBackends.ServiceId, Complete: o.PackedBackends.Complete,
			Backends: changed, Removed: gone,
		}
		if err := w.put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Backends{Backends: unpacked}}); err != nil {
			return err
		}
		service := ServiceKey(unpacked.NetworkId, unpacked.ServiceId)
		if has := len(w.Backends[service]); !o.PackedBackends.More && has != int(o.PackedBackends.Total) {
			return fmt.Errorf("the worker has %d backends of %s, and is to have %d", has, service, o.PackedBackends.Total)
		}
		return nil
	case *dispatcherv1.AssignedObject_Backends:
		service := ServiceKey(o.Backends.NetworkId, o.Backends.ServiceId)
		if key = "backends/" + service; !w.has(service) {
			return fmt.Errorf("%s come before the service", key)
		}
		switch {
		case o.Backends.Complete:
			w.Backends[service] = map[string]*networkv1.Backend{}
		case w.Backends[service] == nil || w.named != nil && !w.named[key]:
			return fmt.Errorf("%s are changes, and were never complete", key)
		}
		for _, b := range o.Backends.Backends {
			w.Backends[service][b.TaskId] = b
		}
		for _, id := range o.Backends.Removed {
			delete(w.Backends[service], id)
		}
	default:
		return fmt.Errorf("object of unknown kind %T", o)
	}
	if message != nil {
		// What belongs to a network may change and change back before it is sent.
		ofTask := strings.HasPrefix(key, "spec/") || strings.HasPrefix(key, "config/") || strings.HasPrefix(key, "secret/")
		if ofTask && w.has(key) && proto.Equal(w.Objects[key], message) {
			return fmt.Errorf("%s is sent twice", key)
		}
		w.Objects[key] = message
	}
	if w.named != nil {
		w.named[key] = true
	}
	return nil
}

func (w *Worker) withdraw(ref *dispatcherv1.ObjectRef) error {
	if id := ref.GetTask(); id != "" {
		if w.Tasks[id] == nil {
			return fmt.Errorf("task %s is withdrawn, and was never there", id)
		}
		delete(w.Tasks, id)
		return nil
	}
	key := Key(ref)
	member := ref.GetPeer() != nil || ref.GetService() != nil
	if w.Objects[key] == nil && !member {
		return fmt.Errorf("%s is withdrawn, and was never there", key)
	}
	for _, t := range w.Tasks {
		if t.DesiredState <= musterv1.TaskState_COMPLETE && slices.Contains(Dependencies(t), key) {
			return fmt.Errorf("%s is withdrawn, and task %s refers to it", key, t.Id)
		}
	}
	delete(w.Objects, key)
	delete(w.Backends, key)
	if id := ref.GetNetwork(); id != "" {
		member := func(key string) bool {
			return strings.HasPrefix(key, "peer/"+id+"/") || strings.HasPrefix(key, "service/"+id+"/")
		}
		maps.DeleteFunc(w.Objects, func(key string, _ proto.Message) bool { return member(key) })
		maps.DeleteFunc(w.Backends, func(key string, _ map[string]*networkv1.Backend) bool { return member(key) })
	}
	return nil
}

// ServiceKey returns the key of a service on a network.
func ServiceKey(network, service string) string { return "service/" + network + "/" + service }

// Dependencies returns the keys in Objects of what a task refers to.
func Dependencies(t *dispatcherv1.AssignedTask) []string {
	keys := []string{"spec/" + string(t.SpecDigest)}
	for _, ref := range t.Dependencies {
		keys = append(keys, Key(ref))
	}
	return keys
}

// Key returns the key in Objects of what a reference names.
func Key(ref *dispatcherv1.ObjectRef) string {
	switch r := ref.Ref.(type) {
	case *dispatcherv1.ObjectRef_Spec:
		return "spec/" + string(r.Spec)
	case *dispatcherv1.ObjectRef_Config:
		return "config/" + r.Config
	case *dispatcherv1.ObjectRef_Secret:
		return "secret/" + r.Secret
	case *dispatcherv1.ObjectRef_Network:
		return "network/" + r.Network
	case *dispatcherv1.ObjectRef_Peer:
		return "peer/" + r.Peer.NetworkId + "/" + r.Peer.NodeId
	case *dispatcherv1.ObjectRef_Service:
		return ServiceKey(r.Service.NetworkId, r.Service.ServiceId)
	default:
		return fmt.Sprintf("%T", r)
	}
}

// objectsOf returns the objects of a message of either protocol.
func objectsOf(a *dispatcherv1.Assignments) []*dispatcherv1.AssignedObject {
	all := slices.Clone(a.Objects)
	for _, spec := range a.Specs {
		all = append(all, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Spec{Spec: spec}})
	}
	for _, task := range a.Tasks {
		all = append(all, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Task{Task: task}})
	}
	return all
}

// withdrawnOf returns what a message of either protocol withdraws.
func withdrawnOf(a *dispatcherv1.Assignments) []*dispatcherv1.ObjectRef {
	all := slices.Clone(a.Withdrawn)
	for _, id := range a.Removed {
		all = append(all, &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Task{Task: id}})
	}
	return all
}
