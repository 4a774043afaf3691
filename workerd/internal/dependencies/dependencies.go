// Package dependencies holds the objects that the tasks of a node refer to, such
// as specs and configs, in memory.
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
const Protocol = 1

// kind is a kind of object.
type kind uint8

const (
	kindSpec kind = iota + 1
	kindConfig
)

// Ref names an object.
type Ref struct {
	kind kind
	id   string
}

// String returns the reference for errors and logs.
func (r Ref) String() string {
	if r.kind == kindSpec {
		return fmt.Sprintf("spec %x", r.id)
	}
	return "config " + r.id
}

// SpecRef names a task spec by its digest.
func SpecRef(digest []byte) Ref { return Ref{kindSpec, string(digest)} }

// RefOf returns what a message names. It returns false for tasks, and for kinds
// that this version does not know.
func RefOf(ref *dispatcherv1.ObjectRef) (Ref, bool) {
	switch r := ref.GetRef().(type) {
	case *dispatcherv1.ObjectRef_Spec:
		return SpecRef(r.Spec), true
	case *dispatcherv1.ObjectRef_Config:
		return Ref{kindConfig, r.Config}, true
	default:
		return Ref{}, false
	}
}

// RefsOf returns what a task refers to, its spec first. It fails for a kind that
// this version does not know.
func RefsOf(t *dispatcherv1.AssignedTask) ([]Ref, error) {
	refs := make([]Ref, 1, 1+len(t.GetDependencies()))
	refs[0] = SpecRef(t.GetSpecDigest())
	for i, d := range t.GetDependencies() {
		ref, ok := RefOf(d)
		if !ok {
			return nil, fmt.Errorf("task %s: dependency %d is of a kind that this worker does not know", t.GetId(), i)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// Store holds objects. It is safe for concurrent use.
type Store struct {
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
func New() *Store { return &Store{objects: map[Ref]*object{}} }

// Begin starts a session: the dispatcher sends again whatever it wants the node
// to have. Begin drops what no task holds. It returns the digests of the specs
// that are left, and whether any was dropped since the last call.
func (s *Store) Begin() (specs map[string]bool, dropped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	specs = map[string]bool{}
	for ref, o := range s.objects {
		o.wanted = false
		s.dropUnused(ref, o)
	}
	for ref := range s.objects {
		if ref.kind == kindSpec {
			specs[ref.id] = true
		}
	}
	dropped, s.dropped = s.dropped, false
	return specs, dropped
}

// Put takes in an object that the dispatcher sent. It ignores tasks, and kinds
// that this version does not know.
func (s *Store) Put(o *dispatcherv1.AssignedObject) {
	switch o := o.GetObject().(type) {
	case *dispatcherv1.AssignedObject_Spec:
		s.PutSpec(o.Spec.GetDigest(), o.Spec.GetSpec())
	case *dispatcherv1.AssignedObject_Config:
		s.put(Ref{kindConfig, o.Config.GetId()}, o.Config)
	}
}

// PutSpec takes in a task spec. What it leaves open of that which executors act on
// is filled in: they have no defaults of their own.
func (s *Store) PutSpec(digest []byte, spec *musterv1.TaskSpec) {
	s.put(SpecRef(digest), defaults.Runtime(spec))
}

func (s *Store) put(ref Ref, message proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[ref]
	if o == nil {
		o = &object{}
		s.objects[ref] = o
	}
	o.message, o.wanted = message, true
}

// Withdraw notes that the dispatcher no longer wants the node to have an object.
func (s *Store) Withdraw(ref Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[ref]; o != nil {
		o.wanted = false
		s.dropUnused(ref, o)
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

// Config returns the content of a config, or nil.
func (s *Store) Config(id string) *dispatcherv1.AssignedConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[Ref{kindConfig, id}]
	if o == nil {
		return nil
	}
	config, _ := o.message.(*dispatcherv1.AssignedConfig)
	return config
}

// dropUnused drops an object that nothing needs. The caller holds mu.
func (s *Store) dropUnused(ref Ref, o *object) {
	if !o.wanted && o.holds == 0 {
		delete(s.objects, ref)
		s.dropped = s.dropped || ref.kind == kindSpec
	}
}
