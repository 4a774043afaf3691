package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// withNetworkIDs returns a task spec whose networks are named by their ids. It reads
// their records, so that a network cannot be removed in the same moment.
func (s *Server) withNetworkIDs(tx *store.Tx, task *musterv1.TaskSpec) (*musterv1.TaskSpec, error) {
	if len(task.GetNetworks()) == 0 {
		return task, nil
	}
	var r validate.Report
	task = proto.CloneOf(task)
	seen := map[string]int{}
	for i, n := range task.Networks {
		if n.Target == state.HostNetwork || n.Target == state.NoNetwork {
			continue
		}
		at := networkField(i) + ".target"
		id, network := s.findNetwork(tx, n.Target)
		if network == nil && strings.EqualFold(n.Target, validate.IngressNetwork) {
			r.Invalid(at, "%q is the ingress network, which services join by publishing a port", n.Target)
			continue
		}
		if network == nil {
			r.Waiting(at, "there is no network %q; create it first (muster network create)", n.Target)
			continue
		}
		if first, again := seen[id]; again {
			r.Invalid(at, "network %q is given twice, also by %s", network.GetName(), networkField(first))
		}
		if network.GetIngress() {
			r.Invalid(at, "%q is the ingress network, which services join by publishing a port", network.GetName())
		}
		n.Target, seen[id] = id, i
	}
	return task, r.Err()
}

// networkField is the path of one of a service's networks.
func networkField(i int) string { return validate.Indexed("spec.task.networks", i) }

// findNetwork resolves an id or a name. The spec is nil if nothing fits.
func (s *Server) findNetwork(tx *store.Tx, target string) (id string, spec *musterv1.NetworkSpec) {
	if e, ok := s.Tables.Networks.Get(tx, target); ok {
		return target, e.Value.Spec
	}
	name, ok := s.Tables.Names.Get(tx, state.NameKey(s.networks.name, target))
	if !ok {
		return "", nil
	}
	e, _ := s.Tables.Networks.Get(tx, name.Value.Id)
	return name.Value.Id, e.Value.GetSpec()
}

// connect sees to the networks and published ports of a service that is about to be
// written in the place of another record, nil if it is new: the service joins the
// ingress network if it needs it, its networks exist and do not overlap, and no other
// service has its ports. Its secrets and configs exist, too. Task is the service's task spec, nil if it cannot be read.
func (s *Server) connect(tx *store.Tx, id string, old, next *recordv1.Service, task *musterv1.TaskSpec, now time.Time) (err error) {
	endpoint := next.GetSpec().GetEndpoint()
	switch {
	case state.PublishesIngress(endpoint):
		if next.IngressNetworkId, err = s.ensureIngress(tx, now); err != nil {
			return err
		}
	case !state.PublishesIngress(next.FormerEndpoint):
		next.IngressNetworkId = ""
	}
	if err := s.checkNetworks(tx, next, task); err != nil {
		return err
	}
	// Those of a spec that comes back may have been removed since.
	if _, err := s.withFileIDs(tx, task); err != nil {
		return err
	}
	if err := s.checkAliases(tx, id, old, next, task); err != nil {
		return err
	}
	if old != nil && proto.Equal(endpoint, old.GetSpec().GetEndpoint()) {
		return nil
	}
	former := old.GetSpec().GetEndpoint()
	if n := len(endpoint.GetPorts()); n > validate.MaxPorts && n > len(former.GetPorts()) {
		return validate.Field("spec.endpoint.ports", "has %d entries; at most %d are allowed: publish the others from another service", n, validate.MaxPorts)
	}
	if err := s.checkReserved(tx, former, endpoint); err != nil {
		return err
	}
	return s.checkPorts(tx, id, endpoint)
}

// checkReserved refuses ports that programs of the nodes use. A service keeps those that
// it publishes already.
func (s *Server) checkReserved(tx *store.Tx, former, endpoint *musterv1.EndpointSpec) error {
	var reserved []string
	var r validate.Report
	for i, p := range endpoint.GetPorts() {
		kept := slices.ContainsFunc(former.GetPorts(), func(f *musterv1.PortConfig) bool {
			return f.PublishedPort == p.PublishedPort && defaults.Protocol(f) == defaults.Protocol(p) && state.IsIngress(f) == state.IsIngress(p)
		})
		if p.PublishedPort == 0 || kept {
			continue
		}
		field := validate.Indexed("spec.endpoint.ports", i) + ".publishedPort"
		if s.executors().CarriesNetworks(p) {
			r.Waiting(field, "%s is used by nodes for the traffic of networks; choose another port", portText(p))
			continue
		}
		if reserved == nil {
			cluster, _ := s.Tables.Clusters.Get(tx, state.ClusterID)
			reserved = defaults.ReservedPorts(cluster.Value.GetSpec())
		}
		for _, text := range reserved {
			if ports, err := validate.ParsePortRange(text); err == nil && ports.Contains(p) {
				r.Waiting(field, "%s is reserved for programs of the nodes (%s); choose another port, or change the cluster's reserved ports (muster cluster update --reserved-port)", portText(p), text)
				break
			}
		}
	}
	return r.Err()
}

// portText names a port outside, such as 80/tcp.
func portText(p *musterv1.PortConfig) string {
	return fmt.Sprintf("%d/%s", p.GetPublishedPort(), strings.ToLower(defaults.Protocol(p).String()))
}

// checkNetworks refuses a service two of whose networks have addresses in common: a task
// could not tell them apart. Networks of which the subnets are not known yet will get
// such as no other network has.
func (s *Server) checkNetworks(tx *store.Tx, next *recordv1.Service, task *musterv1.TaskSpec) error {
	var r validate.Report
	type taken struct {
		name    string
		subnets []netip.Prefix
	}
	var others []taken
	for i, id := range state.NetworksOf(next, task, next.GetSpec().GetEndpoint()) {
		field := "spec.endpoint.ports"
		if i < len(task.GetNetworks()) {
			field = networkField(i) + ".target"
		}
		e, ok := s.Tables.Networks.Get(tx, id)
		if !ok {
			r.Waiting(field, "network %q was removed; name another one", id)
			continue
		}
		spec := e.Value.Spec
		own := taken{spec.GetName(), s.subnets(tx, id, spec)}
		for _, other := range others {
			if a, b, ok := overlap(own.subnets, other.subnets); ok {
				r.Invalid(field, "subnet %s of network %q overlaps with %s of network %q; a service cannot be on both", a, own.name, b, other.name)
			}
		}
		others = append(others, own)
	}
	return r.Err()
}

// port is a port outside.
type port struct {
	number   uint32
	protocol musterv1.PortConfig_Protocol
}

// checkPorts refuses ports that another service has. A port in mode INGRESS is that of one
// service on all nodes. Services with the same port in mode HOST run on different nodes,
// which the scheduler sees to.
func (s *Server) checkPorts(tx *store.Tx, id string, endpoint *musterv1.EndpointSpec) error {
	wanted := map[port]int{}
	for i, p := range endpoint.GetPorts() {
		if p.PublishedPort != 0 {
			wanted[port{p.PublishedPort, defaults.Protocol(p)}] = i
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if id, _ := s.findIngress(tx); id == "" {
		// No service has a port in mode INGRESS, and neither has this one.
		return nil
	}
	holders := map[int]string{}
	for e := range s.Tables.Services.Scan(tx, "") {
		if e.Key == id {
			continue
		}
		for _, p := range s.portsOf(tx, e) {
			i, ok := wanted[port{p.PublishedPort, defaults.Protocol(p)}]
			if ok && (state.IsIngress(p) || state.IsIngress(endpoint.Ports[i])) {
				holders[i] = e.Value.GetSpec().GetName()
			}
		}
	}
	var r validate.Report
	for i, p := range endpoint.GetPorts() {
		if holder, taken := holders[i]; taken {
			r.Waiting(validate.Indexed("spec.endpoint.ports", i)+".publishedPort", "%s is published by service %q; choose another port, or leave it out to get a free one",
				portText(p), holder)
		}
	}
	return r.Err()
}

// portsOf returns the ports that a service has: those of its spec, of a spec that it may
// return to, and those that the allocator chose for it.
func (s *Server) portsOf(tx *store.Tx, e store.Entry[*recordv1.Service]) []*musterv1.PortConfig {
	ports := e.Value.GetSpec().GetEndpoint().GetPorts()
	if former := e.Value.GetFormerEndpoint().GetPorts(); len(former) > 0 && s.mayReturn(tx, e) {
		ports = slices.Concat(ports, former)
	}
	if slices.ContainsFunc(ports, func(p *musterv1.PortConfig) bool { return p.PublishedPort == 0 && state.IsIngress(p) }) {
		chosen, _ := s.Tables.Endpoints.Get(tx, e.Key)
		ports = slices.Concat(ports, chosen.Value.GetEndpoint().GetPorts())
	}
	return ports
}
