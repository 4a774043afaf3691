package assignments

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Kind is a kind of object that tasks refer to.
type Kind uint8

// The kinds of objects.
const (
	KindSpec Kind = iota + 1
	KindConfig
)

// Ref names an object.
type Ref struct {
	Kind Kind
	ID   string
}

// Object is something that a task refers to, as a snapshot shows it.
type Object struct {
	Ref Ref
	// Version changes whenever the object does. It is 0 for objects that never
	// change.
	Version uint64
	// Message is the object: a TaskSpec or an AssignedConfig. It is nil if the
	// snapshot does not have it.
	Message proto.Message
}

// wire returns the object as a worker receives it.
func (o *Object) wire() *dispatcherv1.AssignedObject {
	switch m := o.Message.(type) {
	case *musterv1.TaskSpec:
		spec := &dispatcherv1.AssignedSpec{Digest: []byte(o.Ref.ID), Spec: m}
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Spec{Spec: spec}}
	case *dispatcherv1.AssignedConfig:
		return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Config{Config: m}}
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
	default:
		panic(fmt.Sprintf("assignments: reference to kind %d", r.Kind)) // a Reader made it
	}
}
