package control

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/dependency"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// checkCycle refuses a spec whose dependencies lead back to the service. A service that
// closes a cycle depends on others itself, so a cycle through services that are created
// later is refused with the last of them.
func (s *Server) checkCycle(tx *store.Tx, spec *musterv1.ServiceSpec) error {
	self := dependency.Fold(spec.Name)
	seen := map[string]bool{}
	var visit func(path []string, on []*musterv1.ServiceDependency) []string
	visit = func(path []string, on []*musterv1.ServiceDependency) []string {
		for _, d := range on {
			name := dependency.Fold(d.Service)
			if name == self {
				return append(path, d.Service)
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			n, ok := s.Tables.Names.Get(tx, state.NameKey(s.services.name, d.Service))
			if !ok {
				continue
			}
			other, _ := s.Tables.Services.Get(tx, n.Value.Id)
			if cycle := visit(append(slices.Clone(path), d.Service), other.Value.GetSpec().GetDependsOn()); cycle != nil {
				return cycle
			}
		}
		return nil
	}
	cycle := visit([]string{spec.Name}, spec.DependsOn)
	if cycle == nil {
		return nil
	}
	return validate.Field("spec.dependsOn", "services must not wait for each other: %s; remove one of these dependencies", strings.Join(cycle, " -> "))
}

// restarts returns the services that restart with others, by folded name.
func (s *Server) restarts() (all map[string][]string) {
	s.View.Read(func(r *objects.Reader) { all = r.Restarts() })
	return all
}

// cascade is what one change of a service replaces besides its own tasks.
type cascade struct {
	// dependents are the services that restart with others, by folded name.
	dependents map[string][]string
	// done are the services whose tasks are replaced already: many paths may lead to one.
	done map[string]bool
}

// restartDependents has the tasks of services replaced that restart with a service whose
// tasks are. Those whose last update failed stay as they are.
func (s *Server) restartDependents(ctx context.Context, tx *store.Tx, name string, c cascade, now time.Time) error {
	for _, id := range c.dependents[dependency.Fold(name)] {
		e, ok := s.Tables.Services.Get(tx, id)
		if !ok || c.done[id] || !restartsWith(e.Value, name) {
			continue
		}
		c.done[id] = true
		stored, err := s.readService(tx, id, e)
		if err != nil {
			return err
		}
		if stored.task == nil || stored.stuck {
			continue
		}
		stored.cascade = c
		stored.next, stored.nextTask = e.Value.Spec, proto.CloneOf(stored.task)
		stored.nextTask.ForceUpdate++
		next, err := s.nextService(ctx, tx, id, stored, now)
		if err != nil {
			return err
		}
		s.Tables.Services.Put(tx, id, next)
	}
	return nil
}

func restartsWith(s *recordv1.Service, name string) bool {
	return slices.ContainsFunc(s.GetSpec().GetDependsOn(), func(d *musterv1.ServiceDependency) bool {
		return d.Restart && dependency.Fold(d.Service) == dependency.Fold(name)
	})
}

// dependsOn returns the names of the services that a service depends on.
func dependsOn(s *recordv1.Service) []string {
	var names []string
	for _, d := range s.GetSpec().GetDependsOn() {
		names = append(names, d.Service)
	}
	return names
}
