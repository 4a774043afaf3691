package validate

import (
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

const (
	// maxNetworks bounds how many networks a service is on: each is an interface of each
	// task.
	maxNetworks = 32
	// maxAliases bounds the further names of a service on one network.
	maxAliases = 64
	// MaxDrainDelay is the greatest drain delay.
	MaxDrainDelay = 10 * time.Minute
)

// attachments checks the networks of a task spec as far as that needs no other objects.
func (v *Validator) attachments(r *Report, field string, list []*musterv1.NetworkAttachmentConfig) {
	if len(list) > maxNetworks {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(list), maxNetworks)
		return
	}
	seen := map[string]int{}
	for i, n := range list {
		at := Indexed(field, i)
		if n.Target == "" {
			r.Invalid(at+".target", "is required: the name or id of a network, host or none")
			continue
		}
		if first, again := seen[n.Target]; again {
			r.Invalid(at+".target", "network %q is given twice, also by %s", short(n.Target), Indexed(field, first))
			continue
		}
		seen[n.Target] = i
		if len(n.Addresses) > 0 {
			r.Invalid(at+".addresses", "tasks cannot be given fixed addresses: use the name of the service")
		}
		v.aliases(r, at+".aliases", n.Aliases)
		if !standalone(n) {
			continue
		}
		if len(list) > 1 {
			r.Invalid(at+".target", "a task with network %s can have no other networks", n.Target)
		}
		if len(n.Aliases) > 0 {
			r.Invalid(at+".aliases", "network %s has no names of services, so there are no aliases", n.Target)
		}
	}
}

// standalone reports whether an attachment is to no network of the cluster.
func standalone(n *musterv1.NetworkAttachmentConfig) bool {
	return n.Target == state.HostNetwork || n.Target == state.NoNetwork
}

// aliases checks names of a service. Each is one label of a DNS name.
func (v *Validator) aliases(r *Report, field string, aliases []string) {
	if len(aliases) > maxAliases {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(aliases), maxAliases)
		return
	}
	for i, a := range aliases {
		if len(a) > MaxName || !v.pattern.label.MatchString(a) {
			r.Invalid(Indexed(field, i), `invalid alias %q: want at most %d letters, digits, "-" and "_", with a letter or digit at both ends`, short(a), MaxName)
		}
	}
}

// reach checks what a service publishes against the networks of its tasks, and that an
// executor can attach tasks to networks if the service needs any.
func (v *Validator) reach(r *Report, spec *musterv1.ServiceSpec, catalog *Catalog) {
	const networks, ports = "spec.task.networks", "spec.endpoint.ports"
	kind := containerKind
	if g := spec.Task.GetGeneric(); g != nil {
		kind = g.Kind
	}
	o := catalog.offered(kind)
	if alone := slices.IndexFunc(spec.Task.Networks, standalone); alone >= 0 {
		network := spec.Task.Networks[alone].Target
		checkStandalone(r, ports, spec.GetEndpoint().GetPorts(), network)
		if kind != containerKind && network == state.NoNetwork && o != nil && !o.provides {
			r.Waiting(Indexed(networks, alone)+".target", "no node has an executor for tasks of kind %q that can run them without a network; leave it out for the node's own network, or use an internal network", short(kind))
		}
		return
	}
	cause := ""
	switch mesh := slices.IndexFunc(spec.GetEndpoint().GetPorts(), state.IsIngress); {
	case len(spec.Task.Networks) > 0:
		cause = Indexed(networks, 0)
	case mesh >= 0:
		cause = Indexed(ports, mesh) + ".publishMode"
	default:
		return
	}
	if o != nil && !o.attaches {
		r.Waiting(cause, "no node has an executor for tasks of kind %q that can attach them to networks; ports in mode HOST need no network", short(kind))
	}
}

// checkStandalone checks the ports of a task that is on no network of the cluster.
func checkStandalone(r *Report, field string, ports []*musterv1.PortConfig, network string) {
	for i, p := range ports {
		at := Indexed(field, i)
		switch {
		case network == state.NoNetwork:
			r.Invalid(at, "a task with network %s cannot publish ports", network)
		case state.IsIngress(p):
			r.Invalid(at+".publishMode", "a task with network %s is not on the ingress network, so its ports can only be published in mode HOST", network)
		case p.PublishedPort != p.TargetPort:
			r.Invalid(at+".publishedPort", "must be %d, as targetPort: a task with network %s has the ports of its node", p.TargetPort, network)
		}
	}
}
