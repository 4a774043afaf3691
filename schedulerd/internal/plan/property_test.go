package plan_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

// randomWorld draws nodes, some of which share a machine and hold tasks, and services
// with waiting tasks.
func randomWorld(t *rapid.T) *world {
	w := newWorld()
	machines := map[string]*placement.Machine{}
	for i := range rapid.IntRange(0, 8).Draw(t, "nodes") {
		shared := rapid.SampledFrom([]string{"", "", "m1", "m2"}).Draw(t, "machine")
		n := node(fmt.Sprint("n", i), rapid.Int64Range(0, 6).Draw(t, "cores"), func(s *recordv1.NodeState) {
			s.State = rapid.SampledFrom([]musterv1.NodeStatus_State{musterv1.NodeStatus_READY, musterv1.NodeStatus_READY, musterv1.NodeStatus_DOWN}).Draw(t, "state")
			if shared != "" {
				s.Description.Machine = &musterv1.Machine{Id: shared, Shared: &musterv1.Resources{NanoCpus: 6e9}}
			}
		})
		if id := n.MachineID(); id != "" {
			if machines[id] == nil {
				machines[id] = placement.NewMachine()
			}
			n.SetMachine(machines[id])
		}
		if rapid.Bool().Draw(t, "taken") {
			n.Add(placement.Hold{Service: "s0", Resources: placement.Resources{NanoCPUs: 1e9}, Leaving: rapid.Bool().Draw(t, "leaving")})
		}
		w.nodes = append(w.nodes, n)
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "services") {
		id := fmt.Sprint("s", i)
		port := rapid.SampledFrom([]uint32{0, 0, 80, 81}).Draw(t, "port")
		spec := null(rapid.Int64Range(0, 3).Draw(t, "reserved"))
		spec.Placement.MaxReplicas = uint64(rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "max replicas"))
		digest := w.service(t, id, spec, rapid.IntRange(0, 12).Draw(t, "tasks"), port)
		s := &w.services[i]
		for j := range s.Tasks {
			s.Tasks[j].Node = rapid.SampledFrom([]string{"", "", "", "n0", "nowhere"}).Draw(t, "bound")
		}
		if rapid.IntRange(0, 9).Draw(t, "spec unknown") == 0 {
			delete(w.specs, digest)
		}
		for range rapid.IntRange(0, 6).Draw(t, "faults") {
			w.faults.Note(plan.SpecKey{Service: id, Digest: digest}, "n1", w.now, rapid.Bool().Draw(t, "blamed"))
		}
	}
	return w
}

// everything compares unexported fields, too.
func everything() cmp.Option { return cmp.Exporter(func(reflect.Type) bool { return true }) }

// usages returns what the nodes' tasks hold.
func (w *world) usages() []*placement.Usage {
	var us []*placement.Usage
	for _, n := range w.nodes {
		us = append(us, n.Usage)
	}
	return us
}

// snapshot says what usages count, to be compared later.
func snapshot(us []*placement.Usage) string {
	text := ""
	for _, u := range us {
		text += fmt.Sprintf("%+v tasks %d s0 %d;", u.Resources, u.Tasks, u.Service("s0"))
	}
	return text
}

// TestDecideKeepsItsPromises holds on random worlds that no node is filled beyond what it
// has, that each waiting task gets one node or is explained, that the same input gives
// the same plan, and that the input is left as it was.
func TestDecideKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		before := snapshot(w.usages())
		p := plan.Decide(w.input())
		if after := snapshot(w.usages()); after != before {
			t.Fatalf("usages before and after:\n%s\n%s", before, after)
		}
		for i := range w.services { // the order of tasks does not matter
			slices.Reverse(w.services[i].Tasks)
		}
		if diff := cmp.Diff(placed(p), placed(plan.Decide(w.input()))); diff != "" {
			t.Fatalf("the same input gives another plan:\n%s", diff)
		}
		if diff := cmp.Diff(p.Explanations, plan.Decide(w.input()).Explanations, everything()); diff != "" {
			t.Fatalf("the same input gives other explanations:\n%s", diff)
		}
		checkEveryTask(t, w, p)
		checkCapacity(t, w, p)
	})
}

// checkEveryTask checks that each task has one node, or is explained.
func checkEveryTask(t *rapid.T, w *world, p plan.Plan) {
	chosen := map[string]int{}
	size := 0
	for id, choices := range p.Choices {
		for _, c := range choices {
			chosen[c.ID]++
			size++
			if c.Node != "" && c.Node != id {
				t.Fatalf("task %s is bound to %s, and is placed on %s", c.ID, c.Node, id)
			}
		}
	}
	if size != p.Size {
		t.Fatalf("size %d, want %d", p.Size, size)
	}
	waiting := map[string]int{}
	for _, e := range p.Explanations {
		for _, x := range e.Waiting {
			if x.Reason == "" || x.Tasks == 0 {
				t.Fatalf("%d tasks of %s wait for %q", x.Tasks, e.Service, x.Reason)
			}
			waiting[e.Service] += x.Tasks
		}
	}
	for _, s := range w.services {
		left := 0
		for _, task := range s.Tasks {
			if chosen[task.ID] > 1 {
				t.Fatalf("task %s has %d nodes", task.ID, chosen[task.ID])
			}
			left += 1 - chosen[task.ID]
		}
		if slices.Contains(p.Retry, s.ID) {
			continue
		}
		if waiting[s.ID] != left {
			t.Fatalf("%d tasks of %s have no node, %d are explained", left, s.ID, waiting[s.ID])
		}
	}
}

// checkCapacity carries a plan out and checks that every node, and every machine, takes
// each of the tasks that it gets.
func checkCapacity(t *rapid.T, w *world, p plan.Plan) {
	for id, choices := range p.Choices {
		n := w.nodes.Node(id)
		free := n.Capacity().Sub(n.Resources)
		ports := map[uint32]bool{}
		for _, c := range choices {
			if n.State != musterv1.NodeStatus_READY {
				t.Fatalf("task %s is on node %s, which is %v", c.ID, id, n.State)
			}
			if !c.Request.Fits(free) {
				t.Fatalf("task %s takes %+v, node %s has %+v", c.ID, c.Request.Resources, id, free)
			}
			free = free.Sub(c.Request.Resources)
			for _, port := range c.Request.Ports {
				if ports[port.PublishedPort] {
					t.Fatalf("host port %d of node %s is given twice", port.PublishedPort, id)
				}
				ports[port.PublishedPort] = true
			}
		}
	}
	// All plans of one machine together.
	for id := range p.Choices {
		n := w.nodes.Node(id)
		if admitted := plan.Admit(n.Node, n.Usage, p.Choices[id], func(string) bool { return true }); len(admitted) != len(p.Choices[id]) {
			t.Fatalf("node %s admits %d of %d tasks", id, len(admitted), len(p.Choices[id]))
		}
	}
}

// TestExplanationsComeToWhatWasSaid holds that writing what is due brings the stored
// records to the newest explanation, not more often than asked for, and that a record
// keeps the time since which tasks wait.
func TestExplanationsComeToWhatWasSaid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		const every = 10 * time.Millisecond
		e := plan.NewExplanations(every)
		stored := map[string]*recordv1.Placement{}
		since := map[string]int64{}
		last := map[string]time.Time{}
		said := map[string]plan.Explanation{}
		write := func() {
			due, _ := e.Due(w.now, at(stored))
			for _, service := range due {
				if ago := w.now.Sub(last[service]); ago < every && wasWritten(stored, service) {
					t.Fatalf("%s is written again after %v", service, ago)
				}
				for key, p := range e.Changes(service, w.now, at(stored)) {
					if p == nil {
						delete(stored, key)
						delete(since, key)
						continue
					}
					if old := since[key]; old != 0 && p.Since != old {
						t.Fatalf("%s waits since %d, before since %d", key, p.Since, old)
					}
					stored[key], since[key] = proto.CloneOf(p), p.Since
				}
				e.Written(service, w.now)
				last[service] = w.now
			}
		}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			service := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service")
			x := plan.Explanation{Service: service, Waiting: map[string]plan.Waiting{}}
			for _, digest := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"1", "2"}), func(s string) string { return s }).Draw(t, "specs") {
				x.Waiting[digest] = plan.Waiting{Tasks: rapid.IntRange(1, 3).Draw(t, "tasks"), Reason: "why"}
			}
			e.Set(x)
			said[service] = x
			write()
			w.now = w.now.Add(time.Millisecond)
		}
		for range 3 {
			w.now = w.now.Add(every)
			write()
		}
		records := 0
		for _, x := range said {
			for digest, want := range x.Waiting {
				records++
				if p := stored[x.Service+"/"+fmt.Sprintf("%x", digest)]; p.GetPending() != uint64(want.Tasks) {
					t.Fatalf("%v is stored, said was %+v", stored, x)
				}
			}
		}
		if len(stored) != records {
			t.Fatalf("%d records are stored, want %d", len(stored), records)
		}
		if due, next := e.Due(w.now, at(stored)); len(due) != 0 || next != 0 {
			t.Fatalf("due %v, next %v although all is written", due, next)
		}
	})
}
