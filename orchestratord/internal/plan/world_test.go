package plan_test

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

const (
	pending  = musterv1.TaskState_PENDING
	assigned = musterv1.TaskState_ASSIGNED
	ready    = musterv1.TaskState_READY
	running  = musterv1.TaskState_RUNNING
	complete = musterv1.TaskState_COMPLETE
	shutdown = musterv1.TaskState_SHUTDOWN
	failed   = musterv1.TaskState_FAILED
	rejected = musterv1.TaskState_REJECTED
	remove   = musterv1.TaskState_REMOVE
)

const serviceID = "svc"

// world is a service, its tasks and the nodes, on which plans are carried out
// as the daemon would.
type world struct {
	now     time.Time
	service *recordv1.Service
	rollout *recordv1.Rollout
	tasks   map[string]*state.Task // by key
	specs   map[string]*musterv1.TaskSpec
	nodes   map[string]plan.Condition
	crowded map[string]bool   // tasks that their nodes have no room for
	labels  map[string]string // of nodes; a constraint is a label
	history int64
	ids     int
	// waits says that what the service depends on is not there. stopAfter is until when
	// services that depend on it stop.
	waits     bool
	stopAfter time.Time
}

func newWorld() *world {
	w := &world{
		now:     time.UnixMilli(1_000_000),
		tasks:   map[string]*state.Task{},
		specs:   map[string]*musterv1.TaskSpec{},
		nodes:   map[string]plan.Condition{},
		labels:  map[string]string{},
		history: 5,
	}
	for _, n := range []string{"a", "b", "c"} {
		w.nodes[n] = plan.Up
	}
	return w
}

// spec gives the service a task spec.
func (w *world) spec(s *musterv1.TaskSpec) {
	digest, err := state.Digest(s)
	if err != nil {
		panic(err)
	}
	w.specs[string(digest)] = s
	if w.service == nil {
		w.service = &recordv1.Service{Spec: &musterv1.ServiceSpec{}, SpecVersion: 1, TaskDigest: digest}
		return
	}
	if string(w.service.TaskDigest) != string(digest) {
		w.leave()
	}
	w.service.PreviousTaskDigest = w.service.TaskDigest
	w.service.TaskDigest = digest
}

// leave begins another version of what the tasks run, as the API does: what they
// ran before is remembered.
func (w *world) leave() {
	s := w.service
	w.service.Attempt++
	w.service.RollsBack = false
	if w.rollout == nil || !w.rollout.RolledBack || w.rollout.SpecVersion != s.SpecVersion {
		s.FormerTaskDigest, s.FormerSpecVersion, s.FormerEndpoint = s.TaskDigest, s.SpecVersion, s.Spec.Endpoint
	}
	s.SpecVersion++
}

// rollBack asks for what was there before the last update.
func (w *world) rollBack() {
	s := w.service
	if s.PreviousTaskDigest == nil {
		return
	}
	if string(s.PreviousTaskDigest) != string(s.TaskDigest) {
		w.leave()
	}
	s.TaskDigest, s.PreviousTaskDigest = s.PreviousTaskDigest, s.TaskDigest
	s.PreviousSpec, s.RollsBack = s.Spec, true
	s.Attempt++
}

// config is how tasks are replaced now.
func (w *world) config() *musterv1.UpdateConfig {
	c := w.service.Spec.GetUpdate()
	if w.service.RollsBack || w.rollout.GetRolledBack() {
		c = w.service.Spec.GetRollback()
	}
	if c == nil {
		c = &musterv1.UpdateConfig{Parallelism: 1}
	}
	return c
}

// inFlight counts the slots that have their turn, which is not settled yet. A slot
// that has what it should have beside the task of a former turn is through with
// that.
func (w *world) inFlight() int {
	n := 0
	for _, ts := range w.bySlot() {
		inFlight, through := false, false
		for _, t := range ts {
			// No update waits for what a paused node has of a global service.
			frozen := w.service.Spec.GetGlobal() != nil && w.nodes[t.Record.NodeId] == plan.Paused
			inTurn := !frozen && t.Live() && t.Record.Turn != nil && t.Record.Turn.SettledAt == 0 && t.State() < running
			inFlight = inFlight || inTurn
			through = through || t.Live() && !inTurn && string(t.Record.SpecDigest) == string(state.EffectiveSpec(w.service, w.rollout).Digest)
		}
		if inFlight && !through {
			n++
		}
	}
	return n
}

func (w *world) replicas(n uint64) {
	w.service.Spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &n}}
}

func (w *world) global() {
	w.service.Spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
}

func (w *world) startFirst() {
	w.service.Spec.Update = &musterv1.UpdateConfig{Order: musterv1.UpdateConfig_START_FIRST}
}

// null is a task spec that differs from others by its number.
func null(n uint64, more ...func(*musterv1.TaskSpec)) *musterv1.TaskSpec {
	s := &musterv1.TaskSpec{
		Runtime:     &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}},
		ForceUpdate: n,
	}
	for _, f := range more {
		f(s)
	}
	return s
}

func (w *world) Condition(node string) plan.Condition { return w.nodes[node] }

func (w *world) Room(t *state.Task) bool { return !w.crowded[t.ID] }

func (w *world) Nodes() iter.Seq[string] {
	return slices.Values(slices.Sorted(maps.Keys(w.nodes)))
}

func (w *world) Matcher(constraints []string) (func(string) bool, error) {
	return func(node string) bool {
		for _, c := range constraints {
			if w.labels[node] != c {
				return false
			}
		}
		return true
	}, nil
}

func (w *world) sorted() []*state.Task {
	return slices.SortedFunc(maps.Values(w.tasks), func(a, b *state.Task) int { return strings.Compare(a.Key, b.Key) })
}

func (w *world) view() *plan.Input {
	return &plan.Input{
		Now: w.now, ServiceID: serviceID, Service: w.service, Rollout: w.rollout,
		Tasks:   plan.NewIndex(serviceID, slices.Values(w.sorted())),
		Spec:    func(d []byte) *musterv1.TaskSpec { return w.specs[string(d)] },
		Cluster: w, HistoryLimit: w.history,
		NewID: func() string { w.ids++; return fmt.Sprintf("t%04d", w.ids) },
		Waits: func() string {
			if w.waits {
				return "db: 0 of 1 tasks healthy"
			}
			return ""
		},
		StopAfter: w.stopAfter,
	}
}

func (w *world) decide(t testing.TB) plan.Plan {
	t.Helper()
	p, err := plan.Decide(w.view())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// apply carries a plan out.
func (w *world) apply(p plan.Plan) {
	for _, s := range p.Slots {
		for _, c := range s.Changes {
			if c.Record == nil {
				delete(w.tasks, c.Key)
				continue
			}
			_, _, id := state.SplitKey(c.Key)
			old := w.tasks[c.Key]
			next := &state.Task{ID: id, ServiceID: serviceID, Key: c.Key, Record: c.Record, Version: 1}
			if old != nil {
				next.Version = old.Version + 1
				next.NodeID, next.Assignment, next.Status = old.NodeID, old.Assignment, old.Status
			}
			w.tasks[c.Key] = next
		}
	}
	if p.Rollout != nil {
		w.rollout = p.Rollout
	}
	if p.ForgetRollout {
		w.rollout = nil
	}
}

// reconcile decides and carries out, and checks that this is all there was to do.
func (w *world) reconcile(t testing.TB) plan.Plan {
	t.Helper()
	p := w.decide(t)
	w.apply(p)
	if again := w.decide(t); !again.Empty() {
		t.Fatalf("a second look finds more to do: %s", describe(again))
	}
	return p
}

func describe(p plan.Plan) string {
	var b strings.Builder
	for _, s := range p.Slots {
		for _, c := range s.Changes {
			fmt.Fprintf(&b, "\n%s -> %v (%s)", c.Key, c.Record, c.Reason)
		}
	}
	if p.Rollout != nil {
		fmt.Fprintf(&b, "\nrollout %v", p.Rollout)
	}
	return b.String()
}

// assign puts a task on a node.
func (w *world) assign(t *state.Task, node string) {
	c := *t
	c.NodeID, c.Assignment = node, &recordv1.Assignment{Slot: t.Record.Slot}
	w.tasks[t.Key] = &c
}

// report says what a worker says of a task.
func (w *world) report(t *state.Task, s musterv1.TaskState) {
	c := *w.tasks[t.Key]
	if c.Status.GetState() == s {
		return
	}
	at := w.now.UnixMilli()
	times := append(slices.Collect(state.Times(c.Status)), state.StateTime{State: s, At: at})
	c.Status = &recordv1.Status{State: s, At: at, AppliedAt: at}
	state.SetTimes(c.Status, times)
	w.tasks[t.Key] = &c
}

// settle assigns what has no node and reports every task in the state that is
// desired of it.
func (w *world) settle() {
	up := slices.Sorted(maps.Keys(w.nodes))
	up = slices.DeleteFunc(up, func(n string) bool { return w.nodes[n] != plan.Up })
	count := map[string]int{}
	for _, t := range w.tasks {
		if t.NodeID != "" && t.Live() {
			count[t.NodeID]++
		}
	}
	for _, t := range w.sorted() {
		if t.NodeID == "" && t.Live() && t.Desired() > unstarted {
			node := t.Record.NodeId
			if node == "" && len(up) > 0 {
				node = slices.MinFunc(up, func(a, b string) int { return cmp.Compare(count[a], count[b]) })
			}
			if node == "" || w.nodes[node] != plan.Up {
				continue
			}
			count[node]++
			w.assign(t, node)
			t = w.tasks[t.Key]
		}
		if t.NodeID != "" && !t.Terminal() && w.nodes[t.NodeID] != plan.Down && w.nodes[t.NodeID] != plan.Gone {
			w.report(t, min(t.Desired(), shutdown))
		}
	}
}

// converge lets all parts do their work until nothing changes.
func (w *world) converge(t testing.TB) {
	t.Helper()
	for range 500 {
		p := w.reconcile(t)
		before := w.print()
		w.settle()
		switch {
		case p.Empty() && before == w.print() && p.Next.IsZero():
			return
		case p.Empty() && before == w.print():
			w.now = p.Next
		}
	}
	t.Fatalf("does not converge: %s", w.print())
}

// live returns the slot's tasks that are meant to run, newest last.
func (w *world) live(slot uint64) []*state.Task {
	var ts []*state.Task
	for _, t := range w.sorted() {
		if t.Record.Slot == slot && t.Live() {
			ts = append(ts, t)
		}
	}
	slices.SortFunc(ts, func(a, b *state.Task) int { return cmp.Compare(a.Record.CreatedAt, b.Record.CreatedAt) })
	return ts
}

func (w *world) one(t testing.TB, slot uint64) *state.Task {
	t.Helper()
	ts := w.live(slot)
	if len(ts) != 1 {
		t.Fatalf("slot %d has %d live tasks, want 1:%s", slot, len(ts), w.print())
	}
	return ts[0]
}

func (w *world) on(node string) []*state.Task {
	var ts []*state.Task
	for _, t := range w.sorted() {
		if t.Record.NodeId == node && t.Live() {
			ts = append(ts, t)
		}
	}
	return ts
}

// slots lists the slots that have a live task.
func (w *world) slots() []uint64 {
	var s []uint64
	for _, t := range w.sorted() {
		if t.Live() && !slices.Contains(s, t.Record.Slot) {
			s = append(s, t.Record.Slot)
		}
	}
	return s
}

// print is the world for people, and for comparing.
func (w *world) print() string {
	var b strings.Builder
	for _, t := range w.sorted() {
		fmt.Fprintf(&b, "\n%s on %q desired %v observed %v (%s)", t.Key, t.NodeID, t.Desired(), t.State(), t.Record.Reason)
	}
	fmt.Fprintf(&b, "\nnodes %v rollout %v", w.nodes, w.rollout.String())
	return b.String()
}
