package assignments

import (
	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Reader joins assignments in snapshots with what they refer to.
type Reader struct{ tables *state.Tables }

// NewReader returns a reader of tables.
func NewReader(tables *state.Tables) Reader { return Reader{tables} }

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
	if s, ok := d.tables.Services.Get(r, service); ok {
		o.Task.ServiceName = s.Value.GetSpec().GetName()
		o.Task.ServiceLabels = s.Value.GetSpec().GetLabels()
	} else {
		o.Lags = true
	}
	spec := Object{Ref: Ref{KindSpec, string(t.Value.SpecDigest)}}
	if s, ok := d.tables.Specs.Get(r, state.SpecKey(t.Value.SpecDigest)); ok {
		spec.Message = s.Value.GetTask()
	} else {
		o.Lags = true
	}
	o.Objects = []Object{spec}
	if s, ok := d.tables.Statuses.Get(r, a.Key); ok {
		o.Task.KnownState = s.Value.State
	}
	if o.stops() {
		o.Lags = false
	}
	return o
}
