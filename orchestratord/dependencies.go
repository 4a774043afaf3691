package orchestratord

import (
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/dependency"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// removalWait is how long the tasks of a removed service run on at most because services
// that depend on it, and were removed too, still stop.
const removalWait = 2 * time.Minute

// dependencies is which services depend on which. It belongs to the loop's goroutine.
type dependencies struct {
	tables *state.Tables
	// ids and names are those of all services; names are folded.
	ids, names map[string]string
	// dependents are the ids of the services that depend on one, by its folded name.
	dependents map[string]map[string]struct{}
	// removed are the services that were removed and may still have tasks, by id.
	removed map[string]*recordv1.Name
}

func newDependencies(tables *state.Tables) *dependencies {
	return &dependencies{
		tables: tables, ids: map[string]string{}, names: map[string]string{},
		dependents: map[string]map[string]struct{}{}, removed: map[string]*recordv1.Name{},
	}
}

// advance moves to a newer snapshot.
func (d *dependencies) advance(from, to *store.Snapshot) {
	for c := range d.tables.Services.Changes(from, to) {
		id := c.Key()
		if c.Old != nil {
			for _, on := range c.Old.Value.GetSpec().GetDependsOn() {
				name := dependency.Fold(on.Service)
				if delete(d.dependents[name], id); len(d.dependents[name]) == 0 {
					delete(d.dependents, name)
				}
			}
		}
		if name, known := d.names[id]; known {
			delete(d.names, id)
			if d.ids[name] == id {
				delete(d.ids, name)
			}
		}
		if c.New == nil {
			continue
		}
		name := dependency.Fold(c.New.Value.GetSpec().GetName())
		d.ids[name], d.names[id] = id, name
		for _, on := range c.New.Value.GetSpec().GetDependsOn() {
			name := dependency.Fold(on.Service)
			if d.dependents[name] == nil {
				d.dependents[name] = map[string]struct{}{}
			}
			d.dependents[name][id] = struct{}{}
		}
	}
	for c := range d.tables.Names.Changes(from, to) {
		id, ok := state.RemovedService(c.Key())
		switch {
		case !ok:
		case c.New == nil:
			delete(d.removed, id)
		default:
			d.removed[id] = c.New.Value
		}
	}
}

// markDependents asks for a look at the services that depend on those that have changed.
func (l *loop) markDependents(from, to *store.Snapshot, changed map[string]struct{}) {
	d := l.dependencies
	if len(d.dependents) > 0 {
		// A service that was created or renamed is among those that have changed; so is
		// one that is gone, whose name it had.
		for id := range changed {
			for dependent := range d.dependents[d.names[id]] {
				if s := l.know(dependent); s.watchesDependencies {
					l.mark(s)
				}
			}
		}
		for c := range l.d.tables.Services.Changes(from, to) {
			if c.Old == nil {
				continue
			}
			for dependent := range d.dependents[dependency.Fold(c.Old.Value.GetSpec().GetName())] {
				if s := l.know(dependent); s.watchesDependencies {
					l.mark(s)
				}
			}
		}
	}
	gone := func(dependsOn []string) {
		for id, r := range d.removed {
			if contains(dependsOn, r.Name) {
				l.mark(l.know(id))
			}
		}
	}
	for id := range changed {
		if r := d.removed[id]; len(r.GetDependsOn()) > 0 {
			gone(r.DependsOn)
		}
	}
	for c := range l.d.tables.Names.Changes(from, to) {
		if c.New == nil && len(c.Old.Value.GetDependsOn()) > 0 {
			gone(c.Old.Value.DependsOn)
		}
	}
}

// waits returns what decides whether a service has to wait for others; nil if it depends
// on none.
func (l *loop) waits(spec *musterv1.ServiceSpec) func() string {
	if len(spec.GetDependsOn()) == 0 {
		return nil
	}
	return func() string {
		c := dependency.Cluster{Tables: l.d.tables, Tasks: l.follower, ServiceID: func(name string) (string, bool) {
			id, ok := l.dependencies.ids[name]
			return id, ok
		}}
		return c.Waits(spec)
	}
}

// stopAfter returns the time before which the tasks of a removed service run on, because
// services that depend on it have tasks that still stop. Zero: there are none.
func (l *loop) stopAfter(id string) time.Time {
	d := l.dependencies
	own := d.removed[id]
	if own == nil {
		return time.Time{}
	}
	for other, r := range d.removed {
		if other != id && contains(r.DependsOn, own.Name) && l.stops(other) {
			return time.UnixMilli(own.RemovedAt).Add(removalWait)
		}
	}
	return time.Time{}
}

// stops reports whether tasks of a removed service may still run.
func (l *loop) stops(id string) bool {
	for t := range l.follower.ServiceTasks(id) {
		if !t.Terminal() && (t.NodeID == "" || l.nodes.Condition(t.NodeID).Keeps()) {
			return true
		}
	}
	return false
}

func contains(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}
