package assignments

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Kind is a kind of object that tasks refer to.
type Kind uint8

// The kinds of objects.
const (
	KindSpec Kind = iota + 1
	KindConfig
	KindNetwork
	KindSecret
)

// file reports whether objects of the kind are secrets and configs, which only tasks that
// run need.
func (k Kind) file() bool { return k == KindConfig || k == KindSecret }

// protocol returns the first assignment protocol that has objects of the kind.
func (k Kind) protocol() uint32 {
	switch k {
	case KindSpec:
		return 0
	case KindConfig:
		return 1
	case KindSecret:
		return 4
	default:
		return 2
	}
}

// Ref names an object.
type Ref struct {
	Kind Kind
	ID   string
}

// Object is something that a task refers to, as a snapshot shows it.
type Object struct {
	Ref Ref
	// Version grows whenever the object changes. It is 0 for objects that never
	// change.
	Version uint64
	// Message is the object: a TaskSpec, an AssignedConfig, an AssignedSecret or a
	// Network. It is nil if the node cannot have it, or not yet, or if Load makes it.
	Message proto.Message
	// Load makes the message of an object that is long, or secret, when it is sent. It
	// returns nil if it cannot, or not yet.
	Load func() proto.Message
	// Digest is that of the content, for objects whose version also grows without a change
	// of it. It is empty for others.
	Digest string
	// Held says that the node needs the object even if no task refers to it.
	Held bool
	// Members are what the object brings with it. It is nil if that is nothing.
	Members Members
}

// wire returns the object as a worker receives it.
func (o *Object) wire() *dispatcherv1.AssignedObject {
	switch m := o.Message.(type) {
	case *musterv1.TaskSpec:
		spec := &dispatcherv1.AssignedSpec{Digest: []byte(o.Ref.ID), Spec: m}
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Spec{Spec: spec}}
	case *dispatcherv1.AssignedConfig:
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Config{Config: m}}
	case *dispatcherv1.AssignedSecret:
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Secret{Secret: m}}
	case *networkv1.Network:
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Network{Network: m}}
	default:
		panic(fmt.Sprintf("assignments: object of type %T", m)) // a Reader made it
	}
}

// wire returns the reference as a worker receives it.
func (r Ref) wire() *dispatcherv1.ObjectRef {
	switch r.Kind {
	case KindSpec:
		return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Spec{Spec: []byte(r.ID)}}
	case KindConfig:
		return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Config{Config: r.ID}}
	case KindNetwork:
		return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Network{Network: r.ID}}
	case KindSecret:
		return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Secret{Secret: r.ID}}
	default:
		panic(fmt.Sprintf("assignments: reference to kind %d", r.Kind)) // a Reader made it
	}
}
