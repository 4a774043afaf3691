package stack

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/specdiff"
	"github.com/musterhq/muster/internal/taskspec"
)

// Action is what a deployment does with an object.
type Action string

// The actions.
const (
	ActionCreate Action = "create"
	ActionUpdate Action = "update"
	ActionRemove Action = "remove"
	ActionKeep   Action = "keep"
)

// Change is what a deployment does with one object.
type Change struct {
	Action Action `json:"action"`
	// Kind is "network", "config", "secret" or "service".
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Fields are the paths of the changed fields of an update, such as
	// "task.container.image".
	Fields []string `json:"fields,omitempty"`
	// Note is what a reader should know of the change. It is usually empty.
	Note string `json:"note,omitempty"`

	id      string
	version uint64
	spec    proto.Message
	current *musterv1.Service
	// ifUnused has an object stay while a service still uses it. A later deployment or Clean
	// removes it.
	ifUnused bool
}

// Options say how a stack is deployed.
type Options struct {
	// Prune removes objects of the stack that the spec does not have.
	Prune bool
	// Message is stored with the revision.
	Message string
	// Progress is told of each change that was made, and of objects that stay. Nil: it is
	// not.
	Progress func(Change)
}

// Plan returns what a deployment of a spec changes, in the order in which it is done.
// Objects that stay as they are have the action ActionKeep. It changes nothing. The caller needs
// the role operator.
//
// The data of configs and secrets never changes: other data is another object, whose name
// ends with a digest, and the services that use it are updated.
func Plan(ctx context.Context, client Client, spec *musterv1.StackSpec, opt Options) ([]Change, error) {
	p, err := prepare(ctx, client, spec, opt)
	if err != nil {
		return nil, err
	}
	return p.changes, nil
}

// planned is a deployment that has been decided on.
type planned struct {
	// stack is nil if none is stored.
	stack *musterv1.Stack
	// spec is what to store.
	spec    *musterv1.StackSpec
	changes []Change
}

// prepare decides what a deployment does.
func prepare(ctx context.Context, client Client, spec *musterv1.StackSpec, opt Options) (*planned, error) {
	stored, err := find(ctx, client, spec.Name)
	if err != nil {
		return nil, err
	}
	p := &planned{stack: stored, spec: labelled(spec)}
	if stored != nil {
		current, err := client.GetStackRevision(ctx, &musterv1.GetStackRevisionRequest{Stack: stored.Id})
		if err != nil {
			return nil, fmt.Errorf("read revision of stack %q: %w", spec.Name, err)
		}
		p.spec.DigestKey = current.Spec.GetDigestKey()
	} else {
		p.spec.DigestKey = newDigestKey()
	}
	have, err := read(ctx, client, spec.Name)
	if err != nil {
		return nil, err
	}
	return p, p.plan(have, opt.Prune)
}

// labelled returns a copy of a spec whose objects all have the stack's label.
func labelled(spec *musterv1.StackSpec) *musterv1.StackSpec {
	spec = proto.CloneOf(spec)
	label := func(labels *map[string]string) {
		if *labels == nil {
			*labels = map[string]string{}
		}
		(*labels)[Label] = spec.Name
	}
	for _, s := range spec.Services {
		label(&s.Labels)
	}
	for _, n := range spec.Networks {
		label(&n.Labels)
	}
	for _, c := range spec.Configs {
		label(&c.Labels)
	}
	for _, s := range spec.Secrets {
		label(&s.Labels)
	}
	return spec
}

// plan decides on the changes.
func (p *planned) plan(have *objects, prune bool) error {
	var former, pruned []Change
	kept := map[string]bool{}
	keep := func(c Change) {
		kept[c.Kind+" "+c.id] = true
		p.changes = append(p.changes, c)
	}
	for _, n := range p.spec.Networks {
		c, err := planNetwork(have, n)
		if err != nil {
			return err
		}
		keep(c)
	}
	configNames, secretNames := map[string]string{}, map[string]string{}
	for _, s := range p.spec.Configs {
		c, old, err := p.planConfig(have, s)
		if err != nil {
			return err
		}
		configNames[s.Name] = c.Name
		former = append(former, old...)
		keep(c)
	}
	for _, s := range p.spec.Secrets {
		c, old, err := p.planSecret(have, s)
		if err != nil {
			return err
		}
		secretNames[s.Name] = c.Name
		former = append(former, old...)
		keep(c)
	}
	for _, s := range p.spec.Services {
		keep(planService(have, withFiles(s, configNames, secretNames)))
	}
	for _, c := range former {
		kept[c.Kind+" "+c.id] = true
	}
	if prune {
		for _, c := range removals(have) {
			if !kept[c.Kind+" "+c.id] {
				c.ifUnused = c.Kind != "service"
				pruned = append(pruned, c)
			}
		}
	}
	p.changes = append(append(p.changes, pruned...), former...)
	return nil
}

// planNetwork refuses a network that would have to change, because networks cannot.
func planNetwork(have *objects, spec *musterv1.NetworkSpec) (Change, error) {
	c := Change{Action: ActionCreate, Kind: "network", Name: spec.Name, spec: spec}
	at := slices.IndexFunc(have.networks, func(n *musterv1.Network) bool { return strings.EqualFold(n.Spec.GetName(), spec.Name) })
	if at < 0 {
		return c, nil
	}
	c.Action, c.id = ActionKeep, have.networks[at].Id
	is, want := comparableNetwork(have.networks[at].Spec), comparableNetwork(spec)
	if proto.Equal(is, want) {
		return c, nil
	}
	c.Fields = specdiff.Kept(is, want, want)
	return c, fmt.Errorf("network %q exists and differs in %s, and networks cannot be changed: give the network another name, or remove the stack first",
		spec.Name, strings.Join(c.Fields, ", "))
}

// comparableNetwork returns a network's spec without its defaults and what has no effect.
func comparableNetwork(spec *musterv1.NetworkSpec) *musterv1.NetworkSpec {
	spec = proto.CloneOf(spec)
	spec.Attachable = false
	if d := spec.Driver; d != nil && (d.Name == "" || d.Name == defaultDriver) && len(d.Options) == 0 {
		spec.Driver = nil
	}
	if i := spec.Ipam; i != nil && len(i.Configs) == 0 && i.Driver == nil {
		spec.Ipam = nil
	}
	return spec
}

func planService(have *objects, spec *musterv1.ServiceSpec) Change {
	c := Change{Action: ActionCreate, Kind: "service", Name: spec.Name, spec: spec}
	at := slices.IndexFunc(have.services, func(s *musterv1.Service) bool { return strings.EqualFold(s.Spec.GetName(), spec.Name) })
	if at < 0 {
		return c
	}
	c.current = have.services[at]
	c.id, c.version = c.current.Id, c.current.Meta.GetVersion()
	if spec.Task != nil {
		// A restart that was asked for since is not undone.
		spec.Task.ForceUpdate = max(spec.Task.GetForceUpdate(), c.current.Spec.GetTask().GetForceUpdate())
	}
	is, want := have.normalized(c.current.Spec), have.normalized(spec)
	if proto.Equal(is, want) {
		c.Action = ActionKeep
		return c
	}
	c.Action, c.Fields = ActionUpdate, specdiff.Kept(is, want, want)
	return c
}

// normalized returns a spec without what the API fills in or never returns.
func (o *objects) normalized(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec = proto.CloneOf(spec)
	for _, n := range spec.Task.GetNetworks() {
		if name, ok := o.networkNames[n.Target]; ok {
			n.Target = name
		}
	}
	for _, r := range spec.Task.GetResourceReferences() {
		if name, ok := o.fileNames[r.Id]; ok {
			r.Id = name
		}
	}
	for _, c := range taskspec.Containers(spec.Task) {
		for _, r := range c.Configs {
			if r.ConfigName != "" {
				r.ConfigId = ""
			}
		}
		for _, r := range c.Secrets {
			if r.SecretName != "" {
				r.SecretId = ""
			}
		}
		if c.PullOptions != nil {
			c.PullOptions.RegistryAuth = ""
			if proto.Size(c.PullOptions) == 0 {
				c.PullOptions = nil
			}
		}
	}
	return spec
}

// withFiles returns a service that refers to configs and secrets by the names of the
// objects that have their data.
func withFiles(s *musterv1.ServiceSpec, configs, secrets map[string]string) *musterv1.ServiceSpec {
	s = proto.CloneOf(s)
	for _, r := range s.Task.GetResourceReferences() {
		names := configs
		if r.Type == musterv1.ResourceReference_SECRET {
			names = secrets
		}
		if r.File.GetName() == "" {
			// The path must not change with the version.
			r.File = proto.CloneOf(r.File)
			if r.File == nil {
				r.File = &musterv1.FileTarget{}
			}
			r.File.Name = r.Id
		}
		if name, ok := names[r.Id]; ok {
			r.Id = name
		}
	}
	for _, c := range taskspec.Containers(s.Task) {
		for _, r := range c.Configs {
			if name, ok := configs[r.ConfigName]; ok {
				r.ConfigName = name
			}
		}
		for _, r := range c.Secrets {
			if name, ok := secrets[r.SecretName]; ok {
				r.SecretName = name
			}
		}
	}
	return s
}

// removals removes all objects: services before those that they depend on, and then what
// the services use.
func removals(have *objects) []Change {
	var all []Change
	for _, s := range stopOrder(have.services) {
		all = append(all, Change{Action: ActionRemove, Kind: "service", Name: s.Spec.GetName(), id: s.Id})
	}
	for _, o := range have.configs {
		all = append(all, Change{Action: ActionRemove, Kind: "config", Name: o.Spec.GetName(), id: o.Id})
	}
	for _, o := range have.secrets {
		all = append(all, Change{Action: ActionRemove, Kind: "secret", Name: o.Spec.GetName(), id: o.Id})
	}
	for _, o := range have.networks {
		all = append(all, Change{Action: ActionRemove, Kind: "network", Name: o.Spec.GetName(), id: o.Id})
	}
	return all
}

// stopOrder returns services with those first that depend on others.
func stopOrder(services []*musterv1.Service) []*musterv1.Service {
	byName := map[string]*musterv1.Service{}
	for _, s := range services {
		byName[strings.ToLower(s.Spec.GetName())] = s
	}
	var order []*musterv1.Service
	seen := map[*musterv1.Service]bool{}
	var visit func(s *musterv1.Service)
	visit = func(s *musterv1.Service) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		for _, d := range s.Spec.GetDependsOn() {
			visit(byName[strings.ToLower(d.Service)])
		}
		order = append(order, s)
	}
	for _, s := range services {
		visit(s)
	}
	slices.Reverse(order)
	return order
}
