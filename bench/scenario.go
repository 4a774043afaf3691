package main

import (
	"context"
	"fmt"
	"strings"
)

// The stores.
const (
	embedded = "embedded"
	disk     = "disk"
	consul   = "consul"
)

// size is how large a cluster and its load are.
type size struct {
	workers, tasks int
	// runs is how often it is measured at the most; 0: as often as is asked for.
	runs int
}

// scenario is one thing to measure.
type scenario struct {
	name, help string
	// defaults are the sizes that are measured if none is asked for.
	defaults []size
	// managers is how many there are of each manager; they need Consul.
	managers int
	// own says that the scenario starts its workers itself.
	own bool
	// network says that tasks are on a network, whatever is asked for.
	network bool
	// sealed says that the cluster needs a key, which one without TLS has only if it is
	// embedded.
	sealed bool
	run    func(context.Context, *site) error
}

// scenarios are all there are, in the order in which they are reported.
var scenarios = []*scenario{
	{name: "deploy", help: "a service from its creation to all tasks RUNNING, and from its scaling to 0 until none is left",
		defaults: []size{
			{workers: 100, tasks: 1}, {workers: 100, tasks: 1000}, {workers: 100, tasks: 10000},
			{workers: 1000, tasks: 20000, runs: 2}, {workers: 5000, tasks: 100000, runs: 1},
		}, run: deploy},
	{name: "distinct", help: "the same for services of one task each, every one with a spec of its own, created by 32 clients",
		defaults: []size{{workers: 10, tasks: 1000}}, run: distinct},
	{name: "stack", help: "a stack of services of one task each from its deployment until all run, its deployment again without a change, and its removal",
		defaults: []size{{workers: 10, tasks: 50}}, sealed: true, run: deployStack},
	{name: "update", help: "a service from its update until all its tasks run as updated: all at once, 100 at a time, 10 at a time",
		defaults: []size{{workers: 100, tasks: 1000}}, run: update},
	{name: "change", help: "what one change costs in a cluster that runs tasks already: CPU and bytes",
		defaults: []size{{workers: 100, tasks: 1000, runs: 1}, {workers: 1000, tasks: 20000, runs: 1}, {workers: 5000, tasks: 100000, runs: 1}}, run: change},
	{name: "api", help: "calls of the control API, by 1 client and by 32, on a cluster with as many services as tasks are asked for",
		defaults: []size{{workers: 10, tasks: 1000}}, run: api},
	{name: "reach", help: "a task on a network, from RUNNING until every other worker's network plugin knows it",
		defaults: []size{{workers: 100, tasks: 1000}}, network: true, run: reach},
	{name: "idle", help: "what a cluster uses while nothing happens, in 20 s",
		defaults: []size{
			{workers: 100, tasks: 0, runs: 1}, {workers: 1000, tasks: 0, runs: 1}, {workers: 1000, tasks: 10000, runs: 1}, {workers: 10000, tasks: 0, runs: 1},
		}, run: idle},
	{name: "workerfail", help: "a worker that is killed, until its share of the tasks runs elsewhere",
		defaults: []size{{workers: 10, tasks: 100}}, own: true, run: workerFail},
	{name: "failover", help: "one of two replicas of every manager killed, and one ended in order, until a task that is asked for then runs",
		defaults: []size{{workers: 10, tasks: 0}}, managers: 2, run: failover},
	{name: "takeover", help: "one replica of each manager ended in order, killed and stopped, one at a time: until its shards are others', and until tasks run that are asked for then",
		defaults: []size{{workers: 10, tasks: 0}}, managers: 2, run: takeOver},
	{name: "containers", help: "real containers on one node, and the same by docker run, 8 at once; needs a Docker Engine",
		defaults: []size{{workers: 1, tasks: 50}}, own: true, run: containers},
}

// describe lists the scenarios, for people.
func describe() string {
	var b strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&b, "  %-11s %s\n", s.name, s.help)
	}
	return b.String()
}

// sizes are those that are asked for.
func (sc *scenario) sizes(o *options) []size {
	if o.workers == 0 && o.tasks == 0 {
		return sc.defaults
	}
	s := sc.defaults[len(sc.defaults)-1]
	s.runs = 0
	if o.workers > 0 {
		s.workers = o.workers
	}
	if o.tasks > 0 {
		s.tasks = o.tasks
	}
	return []size{s}
}

// result is what one run measured.
type result struct {
	Scenario string   `json:"scenario"`
	Store    string   `json:"store"`
	Workers  int      `json:"workers"`
	Tasks    int      `json:"tasks"`
	Figures  []figure `json:"figures"`
	// CPU is what each process used while the first thing was measured, in
	// seconds; "workers" is this process: all workers and the client.
	CPU map[string]float64 `json:"cpu,omitempty"`
	// Counts is what the managers did to the store meanwhile.
	Counts map[string]counts `json:"counts,omitempty"`
}

// figure is one measured value.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func (r *result) add(name string, value float64, unit string) {
	r.Figures = append(r.Figures, figure{name, value, unit})
}
