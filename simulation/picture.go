package simulation

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/plugins/sdk"
)

// calm is for how long nothing must have happened to a node before a task too many
// on it has no excuse: longer than a node takes to come back and to be told.
const calm = 15 * time.Second

// picture is everything as it is at one moment at which nothing is under way.
type picture struct {
	*cluster
	now      *store.Snapshot
	services map[string]*recordv1.Service // by id
	names    map[string]*recordv1.Service // by name
	configs  map[string]*recordv1.Config  // by name
	tasks    map[string][]*state.Task     // by service
	networks map[string]*recordv1.Network // by name
	nodes    map[string]*placement.Node
	usage    map[string]*placement.Usage
	// counted are the networks with the addresses that the usages count.
	counted *placement.Networks
	// running holds the tasks that executors run, by node, and beside the containers
	// of groups beside the main ones.
	running, beside map[string][]string
	faults          []string
}

// look makes a picture.
func (c *cluster) look() *picture {
	o := c.observer
	p := &picture{
		cluster: c, now: o.store.Snapshot(), services: map[string]*recordv1.Service{}, names: map[string]*recordv1.Service{},
		configs: map[string]*recordv1.Config{},
		tasks:   map[string][]*state.Task{}, nodes: map[string]*placement.Node{}, running: map[string][]string{}, beside: map[string][]string{},
	}
	c.follower.Advance(p.now)
	for e := range o.tables.Services.Scan(p.now, "") {
		p.services[e.Key], p.names[e.Value.Spec.Name] = e.Value, e.Value
	}
	for e := range o.tables.Configs.Scan(p.now, "") {
		p.configs[e.Value.Spec.Name] = e.Value
	}
	for t := range c.follower.Tasks() {
		p.tasks[t.ServiceID] = append(p.tasks[t.ServiceID], t)
	}
	for e := range o.tables.NodeStates.Scan(p.now, "") {
		spec, _ := o.tables.Nodes.Get(p.now, e.Key)
		p.nodes[e.Key] = placement.NewNode(e.Key, e.Value, spec.Value)
	}
	p.connections()
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		e, _, _, _ := c.nodes[name].state()
		if e == nil {
			continue
		}
		listed, err := e.List(context.Background(), "")
		if err != nil {
			p.fault("list the tasks of %s: %v", name, err)
		}
		for _, l := range listed {
			if l.State != sdk.Running {
				continue
			}
			if _, _, ok := containerOf(l.TaskID); ok {
				p.beside[name] = append(p.beside[name], l.TaskID)
			} else {
				p.running[name] = append(p.running[name], l.TaskID)
			}
		}
		slices.Sort(p.running[name])
		slices.Sort(p.beside[name])
	}
	return p
}

func startFirst(s *musterv1.ServiceSpec) bool {
	return s.GetUpdate().GetOrder() == musterv1.UpdateConfig_START_FIRST || s.GetRollback().GetOrder() == musterv1.UpdateConfig_START_FIRST
}

func (p *picture) fault(format string, args ...any) {
	p.faults = append(p.faults, fmt.Sprintf(format, args...))
}

// always says what is wrong that must never be so.
func (p *picture) always() []string {
	p.faults = nil
	p.room()
	p.slots()
	p.doubles()
	p.ordered()
	p.named()
	p.stored()
	p.allocated()
	p.robbed()
	p.holders()
	for _, u := range p.users {
		p.faults = append(p.faults, u.check(p.names)...)
		p.faults = append(p.faults, u.checkConfigs(p.configs)...)
		p.faults = append(p.faults, u.checkNetworks(p.networks)...)
	}
	return p.faults
}

// room sees to it that no node holds more than it has, nor a port twice.
func (p *picture) room() {
	ports := map[string]string{}
	for a := range p.observer.tables.Assignments.Scan(p.now, "") {
		node, service, id := state.SplitKey(a.Key)
		if s, ok := p.observer.tables.Statuses.Get(p.now, a.Key); ok && s.Value.State > musterv1.TaskState_RUNNING {
			continue
		}
		hold := placement.HoldOf(service, a.Value)
		t, ok := p.observer.tables.Tasks.Get(p.now, state.AssignedTaskKey(node, service, id, a.Value))
		hold.Leaving = ok && t.Value.DesiredState > musterv1.TaskState_COMPLETE
		if spec := p.task(t.Value.GetSpecDigest()); spec != nil {
			if cpus, memory := reserved(spec); cpus != hold.NanoCPUs || memory != hold.MemoryBytes {
				p.fault("task %s asks for %d and %d, and its assignment says %d and %d", id, cpus, memory, hold.NanoCPUs, hold.MemoryBytes)
			}
		}
		p.use(node).Add(hold)
		for _, port := range hold.Ports {
			key := fmt.Sprint(node, " ", port.Protocol, " ", port.PublishedPort)
			if other := ports[key]; other != "" && port.PublishedPort != 0 {
				p.fault("tasks %s and %s both have port %d of %s", other, id, port.PublishedPort, node)
			}
			ports[key] = id
		}
	}
	has := resources()
	for node, u := range p.usage {
		if u.NanoCPUs > has.NanoCpus || u.MemoryBytes > has.MemoryBytes {
			p.fault("the tasks of %s have %.1f cores of %.1f and %d MiB of %d", node, float64(u.NanoCPUs)/1e9, float64(has.NanoCpus)/1e9, u.MemoryBytes>>20, has.MemoryBytes>>20)
		}
	}
}

// slots checks that at no moment since the last check more tasks of a slot should
// run than the update order allows.
func (p *picture) slots() {
	for _, c := range p.observer.takeOverlaps() {
		if len(c.tasks) > p.most(c.service) {
			p.fault("slot %s of %s has several tasks that are to run: %v", c.slot, p.observer.nameOf(c.service), c.tasks)
		}
	}
}

// most is how many tasks of a slot may be to run: what a service was asked for just
// now may not have come to its tasks yet, so it counts what it was ever asked for.
func (p *picture) most(service string) int {
	name := p.observer.nameOf(service)
	if u := p.owner(name); u != nil && u.startsFirst(name) {
		return 2
	}
	return 1
}

// doubles sees to it that no two tasks of a slot run, by what the executors say, on
// nodes to which nothing has happened.
func (p *picture) doubles() {
	type slot struct{ service, slot string }
	runs := map[slot][]string{}
	for name, ids := range p.running {
		if _, up, _, troubled := p.cluster.nodes[name].state(); !up || time.Since(troubled) < calm {
			continue
		}
		for _, id := range ids {
			h := p.observer.known(id)
			if h.service == "" {
				p.fault("%s runs %s, which was never created", name, id)
				continue
			}
			at := slot{h.service, h.slot}
			runs[at] = append(runs[at], id+" on "+name)
		}
	}
	for at, ids := range runs {
		if len(ids) > p.most(at.service) {
			p.fault("slot %s of %s runs several times: %v", at.slot, p.observer.nameOf(at.service), ids)
		}
	}
}

// named checks that each service has its name, that each name has its service or is
// that of a removed one, and that each task has its spec.
func (p *picture) named() {
	named := 0
	for e := range p.observer.tables.Names.Scan(p.now, "") {
		if id, ok := state.RemovedService(e.Key); ok {
			if p.services[id] != nil {
				p.fault("service %s is there, and its name is kept as that of a removed one", id)
			}
			continue
		}
		named++
		if c, ok := p.observer.tables.Configs.Get(p.now, e.Value.Id); ok && state.NameKey("config", c.Value.Spec.Name) == e.Key {
			continue
		}
		if n, ok := p.observer.tables.Networks.Get(p.now, e.Value.Id); ok && state.NameKey("network", n.Value.Spec.Name) == e.Key {
			continue
		}
		if s := p.services[e.Value.Id]; s == nil || state.NameKey("service", s.Spec.Name) != e.Key {
			p.fault("the name %s is of nothing", e.Key)
		}
	}
	if named != len(p.services)+len(p.configs)+len(p.networks) {
		p.fault("%d services, %d configs and %d networks have %d names", len(p.services), len(p.configs), len(p.networks), named)
	}
	for id, s := range p.services {
		if p.task(s.TaskDigest) == nil {
			p.fault("service %s has no task spec", id)
		}
	}
	for _, tasks := range p.tasks {
		for _, t := range tasks {
			if p.task(t.Record.SpecDigest) == nil && t.Live() {
				p.fault("task %s has no spec", t.ID)
			}
		}
	}
}

// task returns a task spec.
func (p *picture) task(digest []byte) *musterv1.TaskSpec {
	e, ok := p.observer.tables.Specs.Get(p.now, state.SpecKey(digest))
	if !ok {
		return nil
	}
	return e.Value.Task
}

// current says whether a task runs what its service asks for.
func (p *picture) current(s *recordv1.Service, t *state.Task) bool {
	endpoint, err := state.EndpointDigest(s.Spec.Endpoint)
	if err != nil || !bytes.Equal(endpoint, t.Record.EndpointDigest) {
		return false
	}
	return sameRun(p.task(s.TaskDigest), p.task(t.Record.SpecDigest))
}
