// Package dependencies holds the objects that the tasks of a node refer to, such
// as specs, configs and networks, in memory.
//
// What a network consists of is kept by a [Networks]. It hears of a network until
// neither the dispatcher wants the node to have it nor a task holds it.
//
// An object stays while the dispatcher wants the node to have it, or while a task
// of the node holds it. A task that is withdrawn together with its objects can
// therefore still be stopped and removed.
package dependencies

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

// Protocol is the newest assignment protocol that this package understands. See
// [dispatcherv1.Hello].
const Protocol = 4

// kind is a kind of object.
type kind uint8

const (
	kindSpec kind = iota + 1
	kindConfig
	kindNetwork
	kindSecret
)

// Ref names an object.
type Ref struct {
	kind kind
	id   string
}

// String returns the reference for errors and logs.
func (r Ref) String() string {
	switch r.kind {
	case kindSpec:
		return fmt.Sprintf("spec %x", r.id)
	case kindNetwork:
		return "network " + r.id
	case kindSecret:
		return "secret " + r.id
	default:
		return "config " + r.id
	}
}

// SpecRef names a task spec by its digest.
func SpecRef(digest []byte) Ref { return Ref{kindSpec, string(digest)} }

// NetworkRef names a network by its id.
func NetworkRef(id string) Ref { return Ref{kindNetwork, id} }

// ConfigRef names a config by its id.
func ConfigRef(id string) Ref { return Ref{kindConfig, id} }

// SecretRef names a secret by its id.
func SecretRef(id string) Ref { return Ref{kindSecret, id} }

// IsFile reports whether the object is a config or a secret.
func (r Ref) IsFile() bool { return r.kind == kindConfig || r.kind == kindSecret }

// IsSecret reports whether the object is a secret.
func (r Ref) IsSecret() bool { return r.kind == kindSecret }

// RefOf returns what a message names. It returns false for what tasks do not refer to,
// and for kinds that this version does not know.
func RefOf(ref *dispatcherv1.ObjectRef) (Ref, bool) {
	switch r := ref.GetRef().(type) {
	case *dispatcherv1.ObjectRef_Spec:
		return SpecRef(r.Spec), true
	case *dispatcherv1.ObjectRef_Config:
		return ConfigRef(r.Config), true
	case *dispatcherv1.ObjectRef_Secret:
		return SecretRef(r.Secret), true
	case *dispatcherv1.ObjectRef_Network:
		return NetworkRef(r.Network), true
	default:
		return Ref{}, false
	}
}

// RefsOf returns what a task refers to, its spec first. It fails for a kind that
// this version does not know.
func RefsOf(t *dispatcherv1.AssignedTask) ([]Ref, error) {
	refs := make([]Ref, 1, 1+len(t.GetDependencies())+len(t.GetNetworks()))
	refs[0] = SpecRef(t.GetSpecDigest())
	for i, d := range t.GetDependencies() {
		ref, ok := RefOf(d)
		if !ok {
			return nil, fmt.Errorf("task %s: dependency %d is of a kind that this worker does not know", t.GetId(), i)
		}
		refs = append(refs, ref)
	}
	return append(refs, NetworkRefs(t)...), nil
}

// NetworkRefs returns the networks that a task is attached to.
func NetworkRefs(t *dispatcherv1.AssignedTask) []Ref {
	refs := make([]Ref, len(t.GetNetworks()))
	for i, id := range t.GetNetworks() {
		refs[i] = NetworkRef(id)
	}
	return refs
}

// Networks keeps what the networks of a node consist of.
type Networks interface {
	// Begin starts a session: a complete set follows, which Complete ends. Peers,
	// services and backends that are not in it are removed then.
	Begin()
	Complete()
	// Put takes in a network, a peer, a service or backends.
	Put(o *dispatcherv1.AssignedObject)
	// Remove removes a network with all that belongs to it.
	Remove(network string)
	// Withdraw removes a peer or a service, or says that a network is withdrawn that a task
	// still holds: if it is sent again, all that belongs to it is too.
	Withdraw(ref *dispatcherv1.ObjectRef)
}

// Store holds objects. It is safe for concurrent use.
type Store struct {
	networks Networks

	mu      sync.Mutex
	objects map[Ref]*object
	// dropped says that a spec was dropped since the last call of Begin.
	dropped bool
}

type object struct {
	message proto.Message
	// wanted says that the dispatcher sent the object in this session, and has
	// not withdrawn it.
	wanted bool
	// holds is the number of tasks that hold the object.
	holds int
}

// New returns an empty store.
func New(networks Networks) *Store { return &Store{networks: networks, objects: map[Ref]*object{}} }

// Begin starts a session: the dispatcher sends again whatever it wants the node
// to have. Begin drops what no task holds, except for networks, which are in use
// without tasks: they are dropped by Complete. It returns the digests of the specs
// that are left, and whether any was dropped since the last call.
func (s *Store) Begin() (specs map[string]bool, dropped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks.Begin()
	specs = map[string]bool{}
	for ref, o := range s.objects {
		o.wanted = false
		if ref.kind != kindNetwork {
			s.dropUnused(ref, o)
		}
	}
	for ref := range s.objects {
		if ref.kind == kindSpec {
			specs[ref.id] = true
		}
	}
	dropped, s.dropped = s.dropped, false
	return specs, dropped
}

// Complete ends the complete set of a session: networks that were not in it, and that no
// task holds, are dropped.
func (s *Store) Complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, o := range s.objects {
		if ref.kind == kindNetwork {
			s.dropUnused(ref, o)
		}
	}
	s.networks.Complete()
}

// Restore takes in a network of an earlier session.
func (s *Store) Restore(o *dispatcherv1.AssignedObject) {
	s.Put(o)
	if n := o.GetNetwork(); n != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.objects[NetworkRef(n.GetId())].wanted = false
	}
}

// Put takes in an object that the dispatcher sent. It ignores tasks, and kinds
// that this version does not know. It returns the config or secret whose data are others
// than those that the store had.
func (s *Store) Put(object *dispatcherv1.AssignedObject) (changed Ref, ok bool) {
	switch o := object.GetObject().(type) {
	case *dispatcherv1.AssignedObject_Spec:
		s.PutSpec(o.Spec.GetDigest(), o.Spec.GetSpec())
	case *dispatcherv1.AssignedObject_Config:
		ref := ConfigRef(o.Config.GetId())
		return ref, s.put(ref, o.Config)
	case *dispatcherv1.AssignedObject_Secret:
		ref := SecretRef(o.Secret.GetId())
		return ref, s.put(ref, o.Secret)
	case *dispatcherv1.AssignedObject_Network:
		s.put(NetworkRef(o.Network.GetId()), nil)
		s.networks.Put(object)
	case *dispatcherv1.AssignedObject_Peer, *dispatcherv1.AssignedObject_Service,
		*dispatcherv1.AssignedObject_Backends, *dispatcherv1.AssignedObject_PackedBackends:
		s.networks.Put(object)
	}
	return Ref{}, false
}

// PutSpec takes in a task spec. What it leaves open of that which executors act on
// is filled in: they have no defaults of their own.
func (s *Store) PutSpec(digest []byte, spec *musterv1.TaskSpec) {
	s.put(SpecRef(digest), defaults.Runtime(spec))
}

// put takes in an object, and returns whether it replaces another message.
func (s *Store) put(ref Ref, message proto.Message) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[ref]
	if o == nil {
		o = &object{}
		s.objects[ref] = o
	}
	changed = o.message != nil && ref.IsFile() && !proto.Equal(o.message, message)
	o.message, o.wanted = message, true
	return changed
}

// Withdraw notes that the dispatcher no longer wants the node to have an object.
func (s *Store) Withdraw(named *dispatcherv1.ObjectRef) {
	ref, ok := RefOf(named)
	if !ok {
		s.networks.Withdraw(named)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[ref]; o != nil {
		o.wanted = false
		s.dropUnused(ref, o)
		if ref.kind == kindNetwork && s.objects[ref] != nil {
			s.networks.Withdraw(named)
		}
	}
}

// Hold keeps all of the objects for a task until Release. It fails, and holds
// none, if one is missing.
func (s *Store) Hold(refs []Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if s.objects[ref] == nil {
			return fmt.Errorf("%s was not sent", ref)
		}
	}
	for _, ref := range refs {
		s.objects[ref].holds++
	}
	return nil
}

// Release ends what Hold began.
func (s *Store) Release(refs []Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if o := s.objects[ref]; o != nil && o.holds > 0 {
			o.holds--
			s.dropUnused(ref, o)
		}
	}
}

// Spec returns a task spec, or nil.
func (s *Store) Spec(digest []byte) *musterv1.TaskSpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[SpecRef(digest)]
	if o == nil {
		return nil
	}
	spec, _ := o.message.(*musterv1.TaskSpec)
	return spec
}

// Data is the content of a config or a secret.
type Data interface {
	GetName() string
	GetData() []byte
	// GetTemplating returns the name of the templating driver, if there is one.
	GetTemplating() string
}

// Data returns the content of a config or secret that a task may have, or nil.
func (s *Store) Data(ref Ref, task string) Data {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[ref]
	if o == nil {
		return nil
	}
	switch m := o.message.(type) {
	case *dispatcherv1.AssignedConfig:
		return m
	case *dispatcherv1.AssignedSecret:
		if only := m.GetTaskId(); only == "" || only == task {
			return m
		}
	}
	return nil
}

// dropUnused drops an object that nothing needs. The caller holds mu.
func (s *Store) dropUnused(ref Ref, o *object) {
	if !o.wanted && o.holds == 0 {
		delete(s.objects, ref)
		s.dropped = s.dropped || ref.kind == kindSpec
		if ref.kind == kindNetwork {
			s.networks.Remove(ref.id)
		}
	}
}
