package assignments

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/taskspec"
)

// Networks knows the networks of nodes.
type Networks interface {
	// Network returns a network as a node gets it.
	Network(node, id string) Object
}

// Reader joins assignments in snapshots with what they refer to.
type Reader struct {
	tables   *state.Tables
	networks Networks
	secrets  Secrets
}

// Secrets opens the data of secrets, and the values of task specs.
type Secrets interface {
	// OpenSecret returns the data of a secret from what lies sealed in the store. It reports
	// its errors itself.
	OpenSecret(id string, record *recordv1.Secret, sealed []byte) ([]byte, error)
	// OpenSpec returns the task spec of the record with key id, with all values. It
	// reports its errors itself.
	OpenSpec(id string, record *recordv1.Spec) (*musterv1.TaskSpec, error)
}

// NewReader returns a reader of tables.
func NewReader(tables *state.Tables, networks Networks, secrets Secrets) Reader {
	return Reader{tables, networks, secrets}
}

// Offers returns all of a node's assignments.
func (d Reader) Offers(r store.Reader, node string) []Offer {
	var all []Offer
	for e := range d.tables.Assignments.Scan(r, node+"/") {
		all = append(all, d.join(r, e))
	}
	return all
}

// Offer returns one assignment, with Version 0 if there is none.
func (d Reader) Offer(r store.Reader, key string) Offer {
	e, ok := d.tables.Assignments.Get(r, key)
	if !ok {
		_, service, id := state.SplitKey(key)
		return Offer{Key: key, Service: service, ID: id}
	}
	return d.join(r, e)
}

func (d Reader) join(r store.Reader, a store.Entry[*recordv1.Assignment]) Offer {
	node, service, id := state.SplitKey(a.Key)
	o := Offer{Key: a.Key, Service: service, ID: id, Version: a.Version, AssignedAt: a.Value.AssignedAt}
	t, ok := d.tables.Tasks.Get(r, state.AssignedTaskKey(node, service, id, a.Value))
	if !ok {
		o.Lags = true
		return o
	}
	o.Task = &dispatcherv1.AssignedTask{
		Id: id, ServiceId: service, Slot: t.Value.Slot,
		SpecDigest: t.Value.SpecDigest, DesiredState: t.Value.DesiredState,
		Ports: a.Value.Ports, Trace: t.Value.Trace,
	}
	s, ok := d.tables.Services.Get(r, service)
	if ok {
		o.Task.ServiceName = s.Value.GetSpec().GetName()
		o.Task.ServiceLabels = s.Value.GetSpec().GetLabels()
	} else {
		o.Lags = true
	}
	spec := Object{Ref: Ref{KindSpec, string(t.Value.SpecDigest)}}
	taskSpec, ok := d.tables.Specs.Get(r, state.SpecKey(t.Value.SpecDigest))
	switch {
	case !ok:
		o.Lags = true
	case taskSpec.Value.Envelope == nil:
		spec.Message = taskSpec.Value.GetTask()
	default:
		spec.Load = func() proto.Message {
			open, err := d.secrets.OpenSpec(taskSpec.Key, taskSpec.Value)
			if err != nil {
				return nil
			}
			return open
		}
	}
	o.Objects = []Object{spec}
	d.attach(&o, s.Value, t.Value, taskSpec.Value.GetTask(), a.Value.Networks)
	if s, ok := d.tables.Statuses.Get(r, a.Key); ok {
		o.Task.KnownState = s.Value.State
	}
	if !o.stops() && o.Task.KnownState <= musterv1.TaskState_RUNNING {
		d.addFiles(r, &o, taskSpec.Value.GetTask())
	}
	if o.stops() {
		o.Lags = false
	}
	return o
}

// attach adds the networks that the task is attached to: those of its assignment. A
// scheduler of a former version has assigned it without them.
func (d Reader) attach(o *Offer, service *recordv1.Service, task *recordv1.Task, spec *musterv1.TaskSpec, assigned []string) {
	o.Task.Networks = assigned
	if len(assigned) == 0 {
		var published *musterv1.EndpointSpec
		if service.GetIngressNetworkId() != "" {
			published = state.Published(service, task.EndpointDigest)
		}
		o.Task.Networks = state.NetworksOf(service, spec, published)
	}
	if len(o.Task.Networks) == 0 {
		return
	}
	node, _, _ := state.SplitKey(o.Key)
	for _, id := range o.Task.Networks {
		network := d.networks.Network(node, id)
		o.Objects = append(o.Objects, network)
		o.Task.Dependencies = append(o.Task.Dependencies, network.Ref.wire())
	}
	o.Task.DrainDelay = durationpb.New(defaults.DrainDelay(service.GetSpec().GetEndpoint()))
}

// addFiles adds the secrets and configs that the containers of the task refer to.
func (d Reader) addFiles(r store.Reader, o *Offer, spec *musterv1.TaskSpec) {
	for _, f := range taskspec.AllFiles(spec) {
		object := d.config(r, f.ID)
		if f.Secret {
			object = d.secret(r, f.ID)
		}
		if slices.ContainsFunc(o.Objects, func(other Object) bool { return other.Ref == object.Ref }) {
			continue
		}
		o.Objects = append(o.Objects, object)
		o.Task.Dependencies = append(o.Task.Dependencies, object.Ref.wire())
	}
}

func (d Reader) config(r store.Reader, id string) Object {
	object := Object{Ref: Ref{KindConfig, id}}
	if e, ok := d.tables.Configs.Get(r, id); ok {
		object.Version, object.Digest = e.Version, string(e.Value.Digest)
		object.Load = func() proto.Message {
			data, err := d.tables.ReadBlob(r, e.Value.Digest)
			if err != nil {
				// The table of blobs may be late.
				return nil
			}
			spec := e.Value.GetSpec()
			return &dispatcherv1.AssignedConfig{Id: id, Data: data, Name: spec.GetName(), Templating: spec.GetTemplating().GetName()}
		}
	}
	return object
}

func (d Reader) secret(r store.Reader, id string) Object {
	object := Object{Ref: Ref{KindSecret, id}}
	if e, ok := d.tables.Secrets.Get(r, id); ok {
		object.Version, object.Digest = e.Version, string(e.Value.Digest)
		object.Load = func() proto.Message {
			sealed, err := d.tables.ReadSealed(r, e.Value.Digest)
			if err != nil {
				// The table of blobs may be late.
				return nil
			}
			data, err := d.secrets.OpenSecret(id, e.Value, sealed)
			if err != nil {
				return nil
			}
			spec := e.Value.GetSpec()
			return &dispatcherv1.AssignedSecret{Id: id, Data: data, Name: spec.GetName(), Templating: spec.GetTemplating().GetName()}
		}
	}
	return object
}
