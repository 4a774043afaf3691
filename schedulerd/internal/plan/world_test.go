package plan_test

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

// nodes are the nodes of a test, in order of their ids.
type nodes []placement.Candidate

func (ns nodes) Node(id string) placement.Candidate {
	for _, n := range ns {
		if n.ID == id {
			return n
		}
	}
	return placement.Candidate{Node: placement.NewNode(id, nil, nil), Usage: placement.NewUsage()}
}

func (ns nodes) InOrder(string) []placement.Candidate { return slices.Clone(ns) }

// node returns a node that runs tasks of kind null and has some cores.
func node(id string, cores int64, changes ...func(*recordv1.NodeState)) placement.Candidate {
	s := &recordv1.NodeState{
		State: musterv1.NodeStatus_READY,
		Description: &musterv1.NodeDescription{
			Resources: &musterv1.Resources{NanoCpus: cores * 1e9},
			Executors: []*musterv1.ExecutorDescription{{Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}}},
		},
	}
	for _, change := range changes {
		change(s)
	}
	return placement.Candidate{Node: placement.NewNode(id, s, nil), Usage: placement.NewUsage()}
}

// down is a node's state.
func down(s *recordv1.NodeState) { s.State = musterv1.NodeStatus_DOWN }

// failer is what tests and properties have in common.
type failer interface {
	Helper()
	Fatal(args ...any)
}

// world builds an input.
type world struct {
	now      time.Time
	nodes    nodes
	services []plan.Service
	faults   *plan.Faults
	specs    map[string]*musterv1.TaskSpec
}

func newWorld(ns ...placement.Candidate) *world {
	return &world{now: time.UnixMilli(1_000_000), nodes: ns, faults: plan.NewFaults(), specs: map[string]*musterv1.TaskSpec{}}
}

// null returns a task spec that reserves some cores.
func null(cores int64, constraints ...string) *musterv1.TaskSpec {
	return &musterv1.TaskSpec{
		Runtime:   &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}},
		Resources: &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: cores * 1e9}},
		Placement: &musterv1.Placement{Constraints: constraints},
	}
}

// service adds a service with waiting tasks of one spec, and a host port if it is not 0.
// It returns the digest of the spec.
func (w *world) service(t failer, id string, spec *musterv1.TaskSpec, tasks int, port uint32) string {
	t.Helper()
	digest, err := state.Digest(spec)
	if err != nil {
		t.Fatal(err)
	}
	w.specs[string(digest)] = spec
	s := plan.Service{ID: id, Record: &recordv1.Service{TaskDigest: digest, Spec: &musterv1.ServiceSpec{Name: id}}}
	if port != 0 {
		s.Record.Spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{
			PublishMode: musterv1.PortConfig_HOST, PublishedPort: port, TargetPort: port,
		}}}
	}
	endpoint, err := state.EndpointDigest(s.Record.Spec.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	for slot := range tasks {
		s.Tasks = append(s.Tasks, plan.Task{
			ID: fmt.Sprintf("%s-%d", id, slot+1), Slot: uint64(slot + 1), Origin: state.Origin{Spec: string(digest), Endpoint: string(endpoint)},
		})
	}
	w.services = append(w.services, s)
	return string(digest)
}

func (w *world) input() *plan.Input {
	return &plan.Input{
		Now: w.now, Nodes: w.nodes, Services: w.services, Faults: w.faults,
		Spec: func(digest string) *musterv1.TaskSpec { return w.specs[digest] },
	}
}

// placed returns the ids of the tasks that each node gets, in order.
func placed(p plan.Plan) map[string][]string {
	got := map[string][]string{}
	for id, choices := range p.Choices {
		for _, c := range choices {
			got[id] = append(got[id], c.ID)
		}
	}
	return got
}

// reasons returns why tasks wait, by service, and how many.
func reasons(p plan.Plan) map[string]string {
	got := map[string]string{}
	for _, e := range p.Explanations {
		for _, digest := range slices.Sorted(maps.Keys(e.Waiting)) {
			w := e.Waiting[digest]
			got[e.Service] += fmt.Sprintf("%d: %s", w.Tasks, w.Reason)
		}
	}
	return got
}

// at reads records as they are stored.
func at(stored map[string]*recordv1.Placement) plan.Stored {
	return func(service string) iter.Seq2[string, *recordv1.Placement] {
		return func(yield func(string, *recordv1.Placement) bool) {
			for key, p := range stored {
				if strings.HasPrefix(key, service+"/") && !yield(key, p) {
					return
				}
			}
		}
	}
}

// wasWritten reports whether there are records of a service.
func wasWritten(stored map[string]*recordv1.Placement, service string) bool {
	for range at(stored)(service) {
		return true
	}
	return false
}
