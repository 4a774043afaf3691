package simulation

import (
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/dependency"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// dependenciesAge is how long ago a dependency may have been there last when a task
// starts: tables are followed each for itself, and an orchestrator may hear late that the
// dependency is gone.
const dependenciesAge = 30 * time.Second

// addDependencies has services depend on others of the same user that were created
// before, so that there are no cycles. What a service depends on never changes.
func (s *Script) addDependencies(size Size) {
	if !size.Dependencies {
		return
	}
	on := map[string][]*musterv1.ServiceDependency{}
	for client := range size.Clients {
		r := rand.New(rand.NewPCG(s.Seed, 6<<32+uint64(client)))
		var before []string
		for i := range s.Steps {
			at := &s.Steps[i]
			if at.Client != client || at.Spec == nil {
				continue
			}
			if at.Op == create {
				for range min(len(before), r.IntN(3)) {
					on[at.Who] = addDependency(r, on[at.Who], pick(r, before))
				}
				before = append(before, at.Who)
			}
			at.Spec.DependsOn = on[at.Who]
		}
	}
}

func addDependency(r *rand.Rand, on []*musterv1.ServiceDependency, name string) []*musterv1.ServiceDependency {
	for _, d := range on {
		if d.Service == name {
			return on
		}
	}
	d := &musterv1.ServiceDependency{Service: name, Restart: one(r, 4), Condition: pick(r, []musterv1.ServiceDependency_Condition{
		musterv1.ServiceDependency_STARTED, musterv1.ServiceDependency_STARTED, musterv1.ServiceDependency_HEALTHY,
		musterv1.ServiceDependency_HEALTHY, musterv1.ServiceDependency_COMPLETED,
	})}
	if one(r, 3) {
		d.Required = proto.Bool(false)
	}
	return append(on, d)
}

// dependents holds, for each service that depends on others, since when it has its task
// spec, and when all that it depends on was there last.
type dependents struct {
	o     *observer
	tasks *state.Follower
	ids   map[string]string // by folded name
	since map[string]specSince
	held  map[string]time.Time
}

type specSince struct {
	version uint64
	at      time.Time
}

func newDependents(o *observer) *dependents {
	return &dependents{o: o, tasks: state.NewFollower(o.tables), ids: map[string]string{}, since: map[string]specSince{}, held: map[string]time.Time{}}
}

// cluster returns what decides whether dependencies are there.
func (d *dependents) cluster() dependency.Cluster {
	return dependency.Cluster{Tables: d.o.tables, Tasks: d.tasks, ServiceID: func(name string) (string, bool) {
		id, ok := d.ids[name]
		return id, ok
	}}
}

// advance checks that tasks get a node only if what their service depends on was there
// since it has their spec.
func (d *dependents) advance(from, to *store.Snapshot) {
	d.tasks.Advance(to)
	for ch := range d.o.tables.Services.Changes(from, to) {
		if ch.Old != nil {
			delete(d.ids, dependency.Fold(ch.Old.Value.Spec.Name))
		}
		if ch.New == nil {
			continue
		}
		d.ids[dependency.Fold(ch.New.Value.Spec.Name)] = ch.New.Key
		if s := d.since[ch.New.Key]; s.version != ch.New.Value.SpecVersion {
			d.since[ch.New.Key] = specSince{ch.New.Value.SpecVersion, time.Now()}
		}
	}
	for e := range d.o.tables.Services.Scan(to, "") {
		if len(e.Value.Spec.DependsOn) > 0 && d.cluster().Waits(e.Value.Spec) == "" {
			d.held[e.Key] = time.Now()
		}
	}
	for ch := range d.o.tables.Assignments.Changes(from, to) {
		if ch.Old == nil {
			d.assigned(to, ch.New)
		}
	}
}

func (d *dependents) assigned(at *store.Snapshot, a *store.Entry[*recordv1.Assignment]) {
	_, id, task := state.SplitKey(a.Key)
	s, ok := d.o.tables.Services.Get(at, id)
	t, known := d.tasks.Task(task)
	if !ok || !known || len(s.Value.Spec.DependsOn) == 0 {
		return
	}
	rollout, _ := d.o.tables.Rollouts.Get(at, id)
	since := d.since[id]
	if rollout.Value.GetRolledBack() || t.Record.SpecVersion != since.version {
		return // it ran before, or is of a spec that is about to go
	}
	if d.held[id].Before(since.at.Add(-dependenciesAge)) {
		d.o.c.violated("task %s of %s (desired %v) has a node before its dependencies were there (%s)",
			short(task), s.Value.Spec.Name, t.Desired(), d.cluster().Waits(s.Value.Spec))
	}
	d.o.c.report.count("dependent tasks that started", 1)
}

// waits returns what a service waits for at the moment of the picture, or "".
func (p *picture) waits(s *recordv1.Service) string {
	c := dependency.Cluster{Tables: p.observer.tables, Tasks: p.follower, ServiceID: func(name string) (string, bool) {
		for id, other := range p.services {
			if dependency.Fold(other.Spec.Name) == name {
				return id, true
			}
		}
		return "", false
	}}
	return c.Waits(s.Spec)
}

// waitingSettled wants tasks that wait for other services to have no node.
func (p *picture) waitingSettled(id string, s *recordv1.Service) {
	for _, t := range p.tasks[id] {
		if t.Live() && t.Desired() < musterv1.TaskState_READY && t.NodeID != "" {
			p.fault("task %s of %s waits for %s, and has node %s", short(t.ID), s.Spec.Name, p.waits(s), t.NodeID)
		}
	}
}

// describeDependencies tells of them in few words.
func describeDependencies(on []*musterv1.ServiceDependency) (text string) {
	for _, d := range on {
		text += fmt.Sprintf(", after %s is %v", d.Service, d.Condition)
		if d.Restart {
			text += " and restarts with it"
		}
		if d.Required != nil {
			text += " if it exists"
		}
	}
	return text
}
