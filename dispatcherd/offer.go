package dispatcherd

import (
	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// desk reads snapshots: it joins an assignment with what it refers to.
type desk struct{ tables *state.Tables }

// offers returns all of a node's assignments.
func (d desk) offers(r store.Reader, node string) []offer {
	var all []offer
	for e := range d.tables.Assignments.Scan(r, node+"/") {
		all = append(all, d.join(r, e))
	}
	return all
}

// offer returns one assignment, or that there is none.
func (d desk) offer(r store.Reader, key string) offer {
	e, ok := d.tables.Assignments.Get(r, key)
	if !ok {
		_, service, id := state.SplitKey(key)
		return offer{key: key, service: service, id: id}
	}
	return d.join(r, e)
}

func (d desk) join(r store.Reader, a store.Entry[*recordv1.Assignment]) offer {
	node, service, id := state.SplitKey(a.Key)
	o := offer{key: a.Key, service: service, id: id, version: a.Version, assignedAt: a.Value.AssignedAt}
	t, ok := d.tables.Tasks.Get(r, state.AssignedTaskKey(node, service, id, a.Value))
	if !ok {
		o.lags = true
		return o
	}
	o.task = &dispatcherv1.AssignedTask{
		Id: id, ServiceId: service, Slot: t.Value.Slot,
		SpecDigest: t.Value.SpecDigest, DesiredState: t.Value.DesiredState,
		Ports: a.Value.Ports, Trace: t.Value.Trace,
	}
	if s, ok := d.tables.Services.Get(r, service); ok {
		o.task.ServiceName = s.Value.GetSpec().GetName()
		o.task.ServiceLabels = s.Value.GetSpec().GetLabels()
	} else {
		o.lags = true
	}
	if s, ok := d.tables.Specs.Get(r, state.SpecKey(t.Value.SpecDigest)); ok {
		o.spec = s.Value.GetTask()
	} else {
		o.lags = true
	}
	if s, ok := d.tables.Statuses.Get(r, a.Key); ok {
		o.task.KnownState = s.Value.State
	}
	// A task that is to stop needs neither its service nor its spec, which may
	// be gone for good.
	if o.task.DesiredState > musterv1.TaskState_COMPLETE {
		o.lags = false
	}
	return o
}
