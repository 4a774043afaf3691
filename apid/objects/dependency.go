package objects

import (
	"maps"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/dependency"
)

// restarts holds the ids of the services that restart with another, by its folded name.
// It is immutable.
type restarts map[string][]string

// with returns the map with a service's dependencies added or taken off.
func (r restarts) with(id string, spec *musterv1.ServiceSpec, sign int) restarts {
	next := r
	for _, d := range spec.GetDependsOn() {
		if !d.Restart {
			continue
		}
		if name := dependency.Fold(d.Service); !slices.Contains(next[name], id) == (sign > 0) {
			next = maps.Clone(next)
			if next == nil {
				next = restarts{}
			}
			ids := slices.DeleteFunc(slices.Clone(next[name]), func(other string) bool { return other == id })
			if sign > 0 {
				ids = append(ids, id)
			}
			if next[name] = ids; len(ids) == 0 {
				delete(next, name)
			}
		}
	}
	return next
}

// Restarts returns the ids of the services that restart with another, by its folded
// name. The map must not be changed, and may be kept.
func (r *Reader) Restarts() map[string][]string { return r.v.restarts }

// waits returns what new tasks of a service wait for, or "".
func (r *Reader) waits(s *recordv1.Service) string {
	if len(s.GetSpec().GetDependsOn()) == 0 {
		return ""
	}
	c := dependency.Cluster{Tables: r.v.tables, Tasks: r.v.follower, ServiceID: func(name string) (string, bool) {
		id, ok := r.v.serviceIDs[name]
		return id, ok
	}}
	if waits := c.Waits(s.Spec); waits != "" {
		return "waiting for " + waits
	}
	return ""
}

// unfinished returns what a service waits for that does not run as it should yet.
func (r *Reader) unfinished(s *Service) string {
	if s.Status.Converged() {
		return ""
	}
	return r.waits(s.Record)
}

// waiting returns what a task waits for that may not start yet, or "".
func (r *Reader) waiting(t *Task) string {
	if !live(t) || t.Desired() >= musterv1.TaskState_READY {
		return ""
	}
	s, ok := r.v.services.Get(t.ServiceID)
	if !ok {
		return ""
	}
	why, known := r.waited[s.ID]
	if !known {
		why = r.waits(s.Record)
		if r.waited == nil {
			r.waited = map[string]string{}
		}
		r.waited[s.ID] = why
	}
	return why
}
