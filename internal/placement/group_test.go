package placement_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

func groupReserves(cpus int64) *musterv1.ResourceRequirements {
	return &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: cpus * 1e9, MemoryBytes: 1 << 30}}
}

// grouped returns a task spec that reserves 1 core for its main container.
func grouped(containers ...*musterv1.GroupContainer) *musterv1.TaskSpec {
	return &musterv1.TaskSpec{Resources: groupReserves(1), Group: containers, Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "a"}}}
}

func beside(role musterv1.GroupContainer_Role, cpus int64) *musterv1.GroupContainer {
	return &musterv1.GroupContainer{
		Name: "c", Role: role, Resources: groupReserves(cpus),
		Runtime: &musterv1.GroupContainer_Container{Container: &musterv1.ContainerSpec{Image: "a", Hostname: "h"}},
	}
}

func TestGroupReservesWhatRunsAtOneTime(t *testing.T) {
	t.Parallel()
	const initRole, sidecar, postStop = musterv1.GroupContainer_INIT, musterv1.GroupContainer_SIDECAR, musterv1.GroupContainer_POST_STOP
	for _, tt := range []struct {
		name   string
		task   *musterv1.TaskSpec
		cpus   int64
		memory int64
	}{
		{"main alone", grouped(), 1, 1 << 30},
		{"sidecars add up", grouped(beside(sidecar, 1), beside(sidecar, 2)), 4, 3 << 30},
		{"the greatest init container", grouped(beside(initRole, 3), beside(initRole, 2), beside(sidecar, 1)), 3, 2 << 30},
		{"a small init container", grouped(beside(initRole, 1), beside(sidecar, 1)), 2, 2 << 30},
		{"a post-stop container", grouped(beside(postStop, 5)), 5, 1 << 30},
	} {
		r, err := placement.NewRequest("s", tt.task, nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := (placement.Resources{NanoCPUs: tt.cpus * 1e9, MemoryBytes: tt.memory}); r.Hold().Resources != want {
			t.Errorf("%s: holds %+v, want %+v", tt.name, r.Hold().Resources, want)
		}
	}
}

func TestNodesNeedAnExecutorThatRunsGroups(t *testing.T) {
	t.Parallel()
	node := func(capabilities ...string) *placement.Node {
		return machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) { r.Description.Executors[0].Capabilities = capabilities })
	}
	r, err := placement.NewRequest("s", grouped(beside(musterv1.GroupContainer_SIDECAR, 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		node *placement.Node
		want placement.Filter
		why  string
	}{
		{node("logs"), placement.FilterGroups, `executor for "container" cannot run task groups on 1 node`},
		{node("groups"), placement.FilterNone, ""},
		{node("groups", "container.image"), placement.FilterCapability, `executor for "container" does not act on field hostname of container "c" on 1 node`},
		{node("groups", "container.image", "container.hostname"), placement.FilterNone, ""},
	} {
		if got := r.Check(tt.node, placement.NewUsage()); got != tt.want {
			t.Errorf("Check = %q, want %q", got, tt.want)
		}
		if got := r.Refusals([]placement.Candidate{{Node: tt.node, Usage: placement.NewUsage()}}).String(); !strings.Contains(got, tt.why) {
			t.Errorf("refusals = %q, want %q in it", got, tt.why)
		}
	}
	alone, err := placement.NewRequest("s", grouped(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := alone.Check(node("logs"), placement.NewUsage()); got != placement.FilterNone {
		t.Errorf("a task without a group: Check = %q", got)
	}
}

func TestNodesNeedAnExecutorThatGivesFiles(t *testing.T) {
	t.Parallel()
	reference := func(signal bool) *musterv1.ConfigReference {
		r := &musterv1.ConfigReference{ConfigId: "c", ConfigName: "c"}
		if signal {
			r.OnChange = &musterv1.OnChange{Action: musterv1.OnChange_SIGNAL}
		}
		return r
	}
	spec := func(signal bool) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
			Image: "a", Configs: []*musterv1.ConfigReference{reference(signal)},
		}}}
	}
	for _, tt := range []struct {
		capabilities []string
		signal       bool
		want         placement.Filter
		why          string
	}{
		{[]string{"logs"}, false, placement.FilterFiles, `executor for "container", or its worker, cannot give tasks secrets and configs on 1 node`},
		{[]string{"files", "container.image"}, false, placement.FilterNone, ""},
		{[]string{"files"}, true, placement.FilterFiles, `executor for "container", or its worker, cannot signal tasks when a secret or config changes on 1 node`},
		{[]string{"files", "signals"}, true, placement.FilterNone, ""},
	} {
		node := machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) {
			r.Description.Executors[0].Capabilities = tt.capabilities
		})
		r, err := placement.NewRequest("s", spec(tt.signal), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Check(node, placement.NewUsage()); got != tt.want {
			t.Errorf("%v: Check = %q, want %q", tt.capabilities, got, tt.want)
		}
		if got := r.Refusals([]placement.Candidate{{Node: node, Usage: placement.NewUsage()}}).String(); !strings.Contains(got, tt.why) {
			t.Errorf("refusals = %q, want %q in it", got, tt.why)
		}
	}
}

// TestPayloadsOfAGroupAreCheckedApart has the main container and a container of its group
// differ in what the schema of the executor accepts.
func TestPayloadsOfAGroupAreCheckedApart(t *testing.T) {
	t.Parallel()
	node := machine("n", func(r *recordv1.NodeState, _ *recordv1.Node) {
		e := r.Description.Executors[0]
		e.Kinds, e.Capabilities, e.PayloadSchema = []string{"custom"}, []string{"groups"}, `{"type":"object","maxProperties":0}`
	})
	payload := func(keys ...string) *musterv1.GenericRuntime {
		fields := map[string]*structpb.Value{}
		for _, key := range keys {
			fields[key] = structpb.NewBoolValue(true)
		}
		return &musterv1.GenericRuntime{Kind: "custom", Payload: &structpb.Struct{Fields: fields}}
	}
	task := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: payload()}}
	check := func(of *musterv1.GenericRuntime) placement.Filter {
		task.Group = []*musterv1.GroupContainer{{Name: "c", Role: musterv1.GroupContainer_INIT, Runtime: &musterv1.GroupContainer_Generic{Generic: of}}}
		r, err := placement.NewRequest("s", task, nil)
		if err != nil {
			t.Fatal(err)
		}
		verdicts := placement.NewVerdicts()
		verdicts.Replace(nil, node)
		r.Remember(verdicts, "digest")
		return r.Check(node, placement.NewUsage())
	}
	if got := check(payload()); got != placement.FilterNone {
		t.Errorf("an accepted payload: Check = %q", got)
	}
	if got := check(payload("extra")); got != placement.FilterPayload {
		t.Errorf("a refused payload: Check = %q", got)
	}
}
