// Package plan decides which nodes tasks get, and why tasks get none. It is pure: an
// [Input] goes in, a [Plan] comes out, and nothing else is read, written, waited for
// or remembered. Time is part of the input, so the same input always gives the same
// plan.
//
// Whether a task fits a node is decided by package placement. What is decided here is
// in which order services and tasks are placed, which nodes are preferred, and what is
// said of the tasks that are left.
package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
)

// Input is all that a decision rests on.
type Input struct {
	Now   time.Time
	Nodes Nodes
	// Services are those whose waiting tasks are decided on, in order. A service without
	// waiting tasks has nothing to be explained any longer.
	Services []Service
	// Faults are where tasks went wrong lately.
	Faults *Faults
	// Spec returns the task spec with a digest, or nil if it is not known.
	Spec func(digest string) *musterv1.TaskSpec
	// Network returns a network by its id, known or not.
	Network func(id string) *placement.Network
	// Verdicts remembers which payload schemas accept which specs. It saves time and
	// changes no decision. Nil remembers nothing.
	Verdicts *placement.Verdicts
}

// Nodes are the nodes that tasks can be placed on, each with what its tasks hold.
// Decide counts what it chooses into their usages while it decides, and takes it out
// again before it returns.
type Nodes interface {
	// Node returns a node. A node that is not known is one that takes no tasks.
	Node(id string) placement.Candidate
	// InOrder returns all nodes as the store keeps them, beginning with those whose
	// records lie where the service's record lies. The slice is the caller's.
	InOrder(service string) []placement.Candidate
}

// Service is a service with its tasks that have no node, in any order.
type Service struct {
	ID string
	// Record is nil if the service is gone, and its tasks are about to be.
	Record *recordv1.Service
	Tasks  []Task
}

// Task is a task without a node.
type Task struct {
	ID   string
	Slot uint64
	// Origin is what the task was created from.
	Origin state.Origin
	// Node is set for a task that runs there or nowhere.
	Node string
	// Created is when the task was created, in milliseconds.
	Created int64
	// Trace is that of the task's record.
	Trace []byte
	// Delayed says that there was no room for the task when it was first decided on: how
	// long it waits does not depend on the scheduler.
	Delayed bool
}

// Plan is what was decided.
type Plan struct {
	// Choices are the tasks that get a node, by node, each node's in the order in which
	// they were chosen.
	Choices map[string][]Choice
	// Size is how many choices there are.
	Size int
	// Explanations say why the other tasks wait, for each service of the input.
	Explanations []Explanation
	// Delayed are the tasks that got no node.
	Delayed []Delayed
	// Retry are services of which a spec is not known yet. Tables are followed each for
	// itself: the spec is seen in a moment, and nothing else tells of it.
	Retry []string
}

// Choice is a task that gets a node.
type Choice struct {
	Task
	Service string
	Request *placement.Request
}

// Delayed is a task for which there was no room.
type Delayed struct{ Service, Task string }

// Admit returns those of the choices for a node that the node still takes, as it and
// what its tasks hold are now; mine says whether a service is still this scheduler's.
// It counts them into the usage.
func Admit(n *placement.Node, u *placement.Usage, choices []Choice, mine func(service string) bool) []Choice {
	known := map[string]bool{}
	var admitted []Choice
	for _, c := range choices {
		ok, seen := known[c.Service]
		if !seen {
			ok = mine(c.Service)
			known[c.Service] = ok
		}
		if ok && c.Request.Check(n, u) == placement.FilterNone {
			u.Add(c.Request.Hold())
			admitted = append(admitted, c)
		}
	}
	return admitted
}

// decider is one decision in the making.
type decider struct {
	in   *Input
	plan Plan
}

// Decide chooses nodes for the waiting tasks of all services. A service finds the room
// that those before it have left.
func Decide(in *Input) Plan {
	d := &decider{in: in, plan: Plan{Choices: map[string][]Choice{}}}
	for i := range in.Services {
		d.service(&in.Services[i])
	}
	d.takeOut()
	return d.plan
}

// takeOut takes what was chosen out of the usages again, into which it was counted.
func (d *decider) takeOut() {
	for id, choices := range d.plan.Choices {
		n := d.in.Nodes.Node(id)
		for _, c := range choices {
			n.Remove(c.Request.Hold())
		}
	}
}

// service decides on the tasks of one service.
func (d *decider) service(s *Service) {
	why := Explanation{Service: s.ID, Waiting: map[string]Waiting{}}
	defer func() { d.plan.Explanations = append(d.plan.Explanations, why) }()
	if s.Record == nil {
		return
	}
	for _, g := range groups(s.Tasks) {
		of := g[0].Origin
		spec := d.in.Spec(of.Spec)
		if spec == nil {
			if !slices.Contains(d.plan.Retry, s.ID) {
				d.plan.Retry = append(d.plan.Retry, s.ID)
			}
			continue
		}
		endpoint := state.Published(s.Record, []byte(of.Endpoint))
		request, err := placement.NewRequest(s.ID, spec, endpoint)
		if err != nil {
			why.add(of.Spec, Waiting{Tasks: len(g), Reason: err.Error()})
			continue
		}
		if ids := state.NetworksOf(s.Record, spec, endpoint); len(ids) > 0 {
			networks := make([]*placement.Network, len(ids))
			for i, id := range ids {
				networks[i] = d.in.Network(id)
			}
			request.Join(networks)
		}
		if d.in.Verdicts != nil {
			request.Remember(d.in.Verdicts, of.Spec)
		}
		if left := d.group(request, of.Spec, certainReplicas(s.Record.Spec, spec), g); left.Tasks > 0 {
			why.add(of.Spec, left)
		}
	}
}

// groups sorts tasks into groups that were created from the same, each by slot.
func groups(tasks []Task) [][]Task {
	sorted := slices.Clone(tasks)
	slices.SortFunc(sorted, func(a, b Task) int {
		return cmp.Or(
			strings.Compare(a.Origin.Spec, b.Origin.Spec), strings.Compare(a.Origin.Endpoint, b.Origin.Endpoint),
			cmp.Compare(a.Slot, b.Slot), strings.Compare(a.ID, b.ID),
		)
	})
	var gs [][]Task
	for first, i := 0, 1; i <= len(sorted); i++ {
		if i == len(sorted) || sorted[i].Origin != sorted[first].Origin {
			gs = append(gs, sorted[first:i:i])
			first = i
		}
	}
	return gs
}

// group chooses nodes for tasks of one request, of a service that is certain to have
// so many replicas. It returns how many tasks are left, and why.
func (d *decider) group(r *placement.Request, digest string, replicas int, tasks []Task) Waiting {
	var free, left []Task
	var refusing []placement.Candidate
	for _, t := range tasks {
		if t.Node == "" {
			free = append(free, t)
			continue
		}
		n := d.in.Nodes.Node(t.Node)
		if r.Check(n.Node, n.Usage) != placement.FilterNone {
			refusing = append(refusing, n)
			left = append(left, t)
			continue
		}
		n.Add(r.Hold())
		d.choose(n, r, t)
	}
	if len(free) > 0 {
		candidates := d.candidates(r.Service, digest)
		placed := d.place(r, replicas, candidates, free)
		left = append(left, free[placed:]...)
		if placed < len(free) {
			refusing = append(refusing, candidates...)
		}
	}
	if len(left) == 0 {
		return Waiting{}
	}
	for _, t := range left {
		d.plan.Delayed = append(d.plan.Delayed, Delayed{Service: r.Service, Task: t.ID})
	}
	refusals := r.Refusals(refusing)
	return Waiting{Tasks: len(left), Reason: refusals.String(), Refusals: refusals.Filters()}
}

// candidates returns all nodes. Of nodes that are alike neighbours in the store are
// chosen: their tasks share pages. Schedulers that place different services begin at
// different shards, where they are not in each other's way.
func (d *decider) candidates(service, digest string) []placement.Candidate {
	candidates := d.in.Nodes.InOrder(service)
	if avoided := d.in.Faults.Avoided(SpecKey{service, digest}, d.in.Now); len(avoided) > 0 {
		for i := range candidates {
			candidates[i].Avoid = avoided[candidates[i].ID]
		}
	}
	return candidates
}

// place chooses among candidates for tasks that may run anywhere, and returns how many
// were placed: the first ones.
func (d *decider) place(r *placement.Request, replicas int, candidates []placement.Candidate, tasks []Task) int {
	next := 0
	take := func(c placement.Candidate) {
		d.choose(c, r, tasks[next])
		next++
	}
	if total := replicas - assigned(r.Service, candidates); worthFilling(len(candidates), len(tasks), total) {
		for _, c := range fill(r, candidates, len(tasks), total) {
			take(c)
		}
	}
	r.Spread(candidates, len(tasks)-next, take)
	return next
}

// choose gives a task a node, into whose usage its hold has been counted.
func (d *decider) choose(c placement.Candidate, r *placement.Request, t Task) {
	d.plan.Choices[c.ID] = append(d.plan.Choices[c.ID], Choice{Task: t, Service: r.Service, Request: r})
	d.plan.Size++
}
