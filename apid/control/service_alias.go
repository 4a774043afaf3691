package control

import (
	"slices"
	"strings"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// checkAliases refuses names that would mean two services on a network without anyone
// having said so: an alias that is the name of another service there, and the name of a
// service that another one has as an alias there. Services may share an alias. A service
// keeps what it has.
func (s *Server) checkAliases(tx *store.Tx, id string, old, next *recordv1.Service, task *musterv1.TaskSpec) error {
	if len(task.GetNetworks()) == 0 {
		return nil
	}
	former, _ := s.Tables.Specs.Get(tx, state.SpecKey(old.GetTaskDigest()))
	var r validate.Report
	var joined []string
	renamed := !strings.EqualFold(old.GetSpec().GetName(), next.GetSpec().GetName())
	for i, n := range task.Networks {
		was := attachment(former.Value.GetTask(), n.Target)
		if was == nil || renamed {
			joined = append(joined, n.Target)
		}
		for j, alias := range n.Aliases {
			if slices.ContainsFunc(was.GetAliases(), func(a string) bool { return strings.EqualFold(a, alias) }) {
				continue
			}
			if other := s.serviceOn(tx, alias, n.Target); other != "" && other != id {
				r.Waiting(validate.Indexed(networkField(i)+".aliases", j),
					"%q is the name of another service on this network, which would share its requests; choose another alias", alias)
			}
		}
	}
	if other, network := s.aliasOn(id, next.GetSpec().GetName(), joined); other != "" {
		r.Waiting("spec.name", "%q is an alias of service %q on network %q, which would share its requests; choose another name, or remove the alias", next.GetSpec().GetName(), other, network)
	}
	return r.Err()
}

// attachment returns how tasks of a spec are attached to a network; nil if they are not.
func attachment(task *musterv1.TaskSpec, network string) *musterv1.NetworkAttachmentConfig {
	for _, n := range task.GetNetworks() {
		if n.Target == network {
			return n
		}
	}
	return nil
}

// serviceOn returns the id of the service of a name if it is on a network.
func (s *Server) serviceOn(tx *store.Tx, name, network string) string {
	n, ok := s.Tables.Names.Get(tx, state.NameKey(s.services.name, name))
	if !ok {
		return ""
	}
	e, ok := s.Tables.Services.Get(tx, n.Value.Id)
	if !ok || !s.inUse(tx, e, func(service *recordv1.Service, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) bool {
		return objects.UsesNetwork(service, task, endpoint, network)
	}) {
		return ""
	}
	return e.Key
}

// aliasOn returns the name of another service that has an alias on one of the networks,
// and the network's name. It looks at the objects that this replica knows: a transaction
// that reads all services would be repeated with each change of one.
func (s *Server) aliasOn(id, alias string, networks []string) (service, network string) {
	if len(networks) == 0 {
		return "", ""
	}
	s.View.Read(func(r *objects.Reader) {
		r.Services("", func(o *objects.Service) bool {
			if o.ID == id {
				return true
			}
			for _, n := range r.StoredSpec(o.Record.TaskDigest).GetNetworks() {
				if slices.Contains(networks, n.Target) && slices.ContainsFunc(n.Aliases, func(a string) bool { return strings.EqualFold(a, alias) }) {
					service, network = o.Name(), n.Target
					if known, ok := r.Network(n.Target); ok {
						network = known.Name()
					}
				}
			}
			return service == ""
		})
	})
	return service, network
}
