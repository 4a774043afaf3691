package simulation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Size is how large a cluster is, and how much happens to it.
type Size struct {
	// Workers are there from the start, Late join later.
	Workers, Late int
	// Managers is how many replicas there are of each manager daemon.
	Managers int
	// Clients is how many users there are, Services how many services each has at
	// most, Replicas how many tasks one has at most.
	Clients, Services, Replicas int
	// Length is for how long things are done and go wrong.
	Length time.Duration
	// Calls and Faults are the mean times between two calls of a user and between
	// two faults; 0 is none.
	Calls, Faults time.Duration
	// Latency is how long the network and the store take for everything.
	Latency time.Duration
	// Networks has users make networks, and services on them, some with groups.
	Networks bool
	// Dependencies has services depend on others.
	Dependencies bool
}

// Op is what a step does.
type Op string

// What users do.
const (
	create     Op = "create"
	update     Op = "update"
	scale      Op = "scale"
	remove     Op = "remove"
	rollBack   Op = "roll back"
	updateNode Op = "update node"

	createConfig Op = "create config"
	updateConfig Op = "update config"
	removeConfig Op = "remove config"

	createNetwork Op = "create network"
	removeNetwork Op = "remove network"
)

// What happens to daemons and workers.
const (
	kill     Op = "kill"
	stop     Op = "stop"
	powerOff Op = "power off"
	join     Op = "join"
	leave    Op = "leave for good"
	reset    Op = "reset connections"
	cut      Op = "cut off"
	slow     Op = "slow down"
	doubled  Op = "double reports"
	late     Op = "send reports late"
	// doubledOrders are what a dispatcher says of tasks.
	doubledOrders Op = "double assignments"
	cutStore      Op = "cut off from the store"
	noStore       Op = "store is away"
	slowStore     Op = "slow store"
	hungStore     Op = "store hangs"
	failBefore    Op = "store fails before the commit"
	failAfter     Op = "store fails after the commit"
	lateLists     Op = "store tells late"
	lose          Op = "lose session"
)

// faultOps are what can go wrong, each as often as it should be chosen.
var faultOps = []Op{
	kill, kill, kill, kill, stop, stop, powerOff, powerOff, join, leave, reset, reset, cut, cut, cut, slow, slow, doubled, doubled, late,
	cutStore, cutStore, cutStore, noStore, slowStore, slowStore, hungStore, failBefore, failBefore, failAfter, failAfter, failAfter, lateLists, lateLists, lose, lose,
}

// Step is one thing that is done, or goes wrong.
type Step struct {
	At time.Duration
	Op Op
	// Who is a service's name, a manager, or a worker; With is the other end of what
	// is cut or slowed.
	Who, With string
	// Client calls API, if it is a call.
	Client int
	API    string
	Spec   *musterv1.ServiceSpec
	Node   *musterv1.NodeSpec
	N      int
	// For is how long a fault lasts; By is how much is late.
	For, By time.Duration
	// Silent says that there is no notice of a death.
	Silent bool
	// Twin, if not empty, is where the same call is made at the same time, as by a
	// client that takes it to be lost.
	Twin string
}

func (s Step) String() string {
	text := fmt.Sprintf("%s %s", s.Op, s.Who)
	if s.With != "" {
		text += " from " + s.With
	}
	if s.Twin != "" {
		text += " and at " + s.Twin
	}
	if s.For > 0 {
		text += fmt.Sprintf(" for %v", s.For)
	}
	if s.By > 0 {
		text += fmt.Sprintf(" by %v", s.By)
	}
	if s.N > 0 {
		text += fmt.Sprintf(" (%d)", s.N)
	}
	if s.Silent {
		text += ", silently"
	}
	if s.Spec != nil {
		text += ": " + describe(s.Spec)
	}
	if s.Node != nil {
		text += fmt.Sprintf(": %v", s.Node)
	}
	return text
}

// describe tells of a service in few words.
func describe(s *musterv1.ServiceSpec) string {
	mode := "global"
	if r := s.GetReplicated(); r != nil {
		mode = fmt.Sprint(r.GetReplicas(), " replicas")
	}
	text := fmt.Sprintf("%s, task %v, restart %v/%v/%d, %s", mode, s.Task.GetGeneric().GetPayload().AsMap(),
		s.Task.GetRestart().GetCondition(), s.Task.GetRestart().GetDelay().AsDuration(), s.Task.GetRestart().GetMaxAttempts(),
		describeRoll(s.Update))
	if s.Rollback != nil {
		text += "; back: " + describeRoll(s.Rollback)
	}
	if res := s.Task.GetResources().GetReservations(); res != nil {
		text += fmt.Sprintf(", %.1f cores, %d MiB", float64(res.NanoCpus)/1e9, res.MemoryBytes>>20)
	}
	if p := s.Task.Placement; p != nil {
		text += fmt.Sprintf(", %v max %d", p.Constraints, p.MaxReplicas)
	}
	for _, p := range s.Endpoint.GetPorts() {
		text += fmt.Sprintf(", port %d (%v)", p.PublishedPort, p.PublishMode)
	}
	for _, n := range s.Task.Networks {
		text += ", on " + n.Target
	}
	for _, c := range s.Task.Group {
		text += ", " + c.Name
	}
	return text + describeDependencies(s.DependsOn)
}

// Script is all that is done in a run and all that goes wrong. It is a function of
// the seed and of nothing else.
type Script struct {
	Seed  uint64
	Size  Size
	Steps []Step
	// SessionLossDelays are the managers that learn late that their session has ended, with
	// the delay.
	SessionLossDelays map[string]time.Duration
}

// daemons are the manager daemons.
var daemons = []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"}

// replica names a replica of a daemon; they count from 1.
func replica(daemon string, n int) string { return fmt.Sprintf("%s-%d", daemon, n) }

// workerName names a worker; they count from 0.
func workerName(n int) string { return fmt.Sprintf("node-%03d", n) }

// drawSize draws how large the cluster of a seed is. Small ones find most, and one
// in twelve is large.
func drawSize(r *rand.Rand) Size {
	s := Size{
		Workers: 3 + r.IntN(18), Late: r.IntN(4), Managers: 2 + r.IntN(2),
		Clients: 1 + r.IntN(3), Services: 2 + r.IntN(4), Replicas: 1 + r.IntN(12),
		Length: between(r, 30*time.Second, 2*time.Minute),
		Calls:  between(r, 300*time.Millisecond, 3*time.Second), Faults: between(r, 400*time.Millisecond, 6*time.Second),
		Latency: pick(r, []time.Duration{0, 0, time.Millisecond, 4 * time.Millisecond}),
	}
	if one(r, 12) {
		s.Workers, s.Replicas = 100+r.IntN(200), 100
	}
	if one(r, 8) {
		s.Faults = 0
	}
	return s
}

// NewScript draws the script of a seed. One seed in four is without networks.
func NewScript(seed uint64) *Script {
	size := drawSize(rand.New(rand.NewPCG(seed, 0x6d7573746572)))
	size.Networks = seed%4 != 0
	return NewScriptOf(seed, size)
}

// NewDependencyScript draws the script of a seed in which services depend on others.
func NewDependencyScript(seed uint64) *Script {
	size := drawSize(rand.New(rand.NewPCG(seed, 0x6d7573746572)))
	size.Dependencies = true
	return NewScriptOf(seed, size)
}

// NewScriptOf draws a script of a given size.
func NewScriptOf(seed uint64, size Size) *Script {
	s := &Script{Seed: seed, Size: size, SessionLossDelays: map[string]time.Duration{}}
	for client := range size.Clients {
		// Each in its own stream, so that a change of one leaves the others as they are.
		w := &writer{Rand: rand.New(rand.NewPCG(seed, uint64(client))), size: size, client: client, services: map[string]*musterv1.ServiceSpec{}}
		s.Steps = append(s.Steps, w.calls()...)
	}
	w := &writer{Rand: rand.New(rand.NewPCG(seed, 1<<32)), size: size, joined: size.Workers}
	s.Steps = append(s.Steps, w.faults()...)
	for _, d := range daemons {
		for i := range size.Managers {
			if size.Faults > 0 && one(w.Rand, 3) {
				s.SessionLossDelays[replica(d, i+1)] = between(w.Rand, 100*time.Millisecond, 5*time.Second)
			}
		}
	}
	s.addLaterSteps(size)
	s.roll(size)
	s.addConfigs(size)
	s.addNetworks(size)
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return int(a.At - b.At) })
	s.addDependencies(size)
	return s
}

// addLaterSteps adds kinds of steps that were introduced later. It has its own random
// numbers, so that the other steps of a seed stay the same.
func (s *Script) addLaterSteps(size Size) {
	r := rand.New(rand.NewPCG(s.Seed, 2<<32))
	if size.Faults == 0 {
		return
	}
	for i := range s.Steps {
		if s.Steps[i].API != "" && one(r, 12) {
			s.Steps[i].Twin = replica("apid", 1+r.IntN(size.Managers))
		}
	}
	w := &writer{Rand: r, size: size, joined: size.Workers}
	for at := 5 * time.Second; at < size.Length; at += w.pause(6 * size.Faults) {
		f := Step{At: at, Op: doubledOrders, Who: w.worker(), For: between(r, time.Second, 20*time.Second)}
		f.For = min(f.For, size.Length-at)
		s.Steps = append(s.Steps, f)
	}
}

// writer draws steps.
type writer struct {
	*rand.Rand
	size     Size
	client   int
	made     int
	services map[string]*musterv1.ServiceSpec
	// joined is how many workers have been there; left are those that never return.
	joined int
	left   map[string]bool
}

// calls draws what one user does.
func (w *writer) calls() []Step {
	var steps []Step
	if w.size.Calls == 0 {
		return nil
	}
	// Workers first have to be there.
	for at := 3 * time.Second; at < w.size.Length; at += w.pause(w.size.Calls) {
		s := w.call()
		s.At, s.Client, s.API = at, w.client, replica("apid", 1+w.IntN(w.size.Managers))
		steps = append(steps, s)
	}
	return steps
}

// pause draws a time with a mean.
func (w *writer) pause(mean time.Duration) time.Duration {
	return min(time.Duration(w.ExpFloat64()*float64(mean)), 5*mean).Round(time.Millisecond) + time.Millisecond
}

func (w *writer) call() Step {
	names := slices.Sorted(maps.Keys(w.services))
	if len(names) == 0 || len(names) < w.size.Services && one(w.Rand, 3) {
		w.made++
		spec := newSpec(w.Rand, fmt.Sprintf("s%d-%d", w.client, w.made), w.size)
		w.label(spec)
		w.services[spec.Name] = spec
		return Step{Op: create, Who: spec.Name, Spec: clone(spec)}
	}
	spec := w.services[pick(w.Rand, names)]
	switch n := w.IntN(12); {
	case n < 5 && spec.GetReplicated() != nil:
		spec.Mode = replicated(w.IntN(w.size.Replicas + 1))
		return Step{Op: scale, Who: spec.Name, N: int(spec.GetReplicated().GetReplicas())}
	case n < 9:
		w.made++
		if !one(w.Rand, 4) {
			change(w.Rand, spec)
		} else {
			spec.Task.ForceUpdate++
		}
		w.label(spec)
		return Step{Op: update, Who: spec.Name, Spec: clone(spec)}
	case n < 10:
		delete(w.services, spec.Name)
		return Step{Op: remove, Who: spec.Name}
	default:
		node := &musterv1.NodeSpec{Availability: pick(w.Rand, []musterv1.NodeSpec_Availability{
			musterv1.NodeSpec_ACTIVE, musterv1.NodeSpec_ACTIVE, musterv1.NodeSpec_ACTIVE, musterv1.NodeSpec_PAUSE, musterv1.NodeSpec_DRAIN,
		})}
		if !one(w.Rand, 3) {
			node.Labels = map[string]string{"zone": pick(w.Rand, zones)}
		}
		return Step{Op: updateNode, Who: workerName(w.IntN(w.size.Workers)), Node: node}
	}
}

func (w *writer) label(spec *musterv1.ServiceSpec) {
	spec.Labels = map[string]string{revisionLabel: fmt.Sprint(w.made)}
}

// faults draws what goes wrong.
func (w *writer) faults() []Step {
	var steps []Step
	w.left = map[string]bool{}
	if w.size.Faults == 0 {
		return nil
	}
	for at := 4 * time.Second; at < w.size.Length; at += w.pause(w.size.Faults) {
		s := w.fault(pick(w.Rand, faultOps))
		if s.Op == "" {
			continue
		}
		s.At = at
		// What lasts is over when faults are.
		s.For = min(s.For, w.size.Length-at)
		steps = append(steps, s)
	}
	return steps
}

func (w *writer) manager() string { return replica(pick(w.Rand, daemons), 1+w.IntN(w.size.Managers)) }

func (w *writer) worker() string { return workerName(w.IntN(w.joined)) }

func (w *writer) fault(op Op) Step {
	s := Step{Op: op, For: between(w.Rand, 200*time.Millisecond, 20*time.Second)}
	if one(w.Rand, 2) {
		s.For = between(w.Rand, 0, 2*time.Second)
	}
	switch op {
	case kill, stop:
		s.Silent = op == kill && one(w.Rand, 4)
		if s.Who = w.manager(); one(w.Rand, 3) {
			s.Who = w.worker()
		}
	case powerOff, doubled, late:
		s.Who = w.worker()
		if op == late {
			s.By = between(w.Rand, 50*time.Millisecond, 3*time.Second)
		}
	case join:
		if w.joined == w.size.Workers+w.size.Late {
			return Step{}
		}
		s.Who, s.For = workerName(w.joined), 0
		w.joined++
	case leave:
		if s.Who = w.worker(); len(w.left) >= w.size.Workers/4 || w.left[s.Who] {
			return Step{}
		}
		w.left[s.Who], s.For, s.Silent = true, 0, one(w.Rand, 2)
	case reset, cut, slow:
		s.Who, s.With = w.worker(), replica("dispatcherd", 1+w.IntN(w.size.Managers))
		if one(w.Rand, 5) {
			s.Who, s.With = fmt.Sprintf("user-%d", w.IntN(w.size.Clients)), replica("apid", 1+w.IntN(w.size.Managers))
		}
		if op == slow {
			s.By = between(w.Rand, 10*time.Millisecond, 4*time.Second)
		}
	case noStore:
	case slowStore, lateLists:
		s.Who, s.By = w.manager(), between(w.Rand, 20*time.Millisecond, 3*time.Second)
	case failBefore, failAfter:
		s.Who, s.N, s.For = w.manager(), 1+w.IntN(5), 0
	default:
		s.Who = w.manager()
	}
	return s
}
