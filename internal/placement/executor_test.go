package placement_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

func process(t testing.TB, command ...any) *musterv1.TaskSpec {
	t.Helper()
	p, err := structpb.NewStruct(map[string]any{"command": command})
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process", Payload: p}}}
}

func with(executors ...*musterv1.ExecutorDescription) func(*recordv1.NodeState, *recordv1.Node) {
	return func(r *recordv1.NodeState, _ *recordv1.Node) { r.Description.Executors = executors }
}

func TestCheckAsksTheExecutorOfTheKind(t *testing.T) {
	t.Parallel()
	const (
		healthy = musterv1.ExecutorDescription_HEALTHY
		sick    = musterv1.ExecutorDescription_UNHEALTHY
		texts   = `{"properties":{"command":{"items":{"type":"string"}}}}`
		numbers = `{"properties":{"command":{"items":{"type":"number"}}}}`
	)
	offer := func(health musterv1.ExecutorDescription_Health, schema string) *musterv1.ExecutorDescription {
		return &musterv1.ExecutorDescription{Health: health, Kinds: []string{"process"}, PayloadSchema: schema}
	}
	docker := func(capabilities ...string) *musterv1.ExecutorDescription {
		return &musterv1.ExecutorDescription{Health: healthy, Kinds: []string{"container"}, Capabilities: capabilities}
	}
	faulty := offer(healthy, "")
	faulty.PayloadSchemaError = "has 70000 bytes"
	container := func(c *musterv1.ContainerSpec) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: c}}
	}
	tests := map[string]struct {
		spec      *musterv1.TaskSpec
		executors []*musterv1.ExecutorDescription
		want      placement.Filter
	}{
		"accepted":                         {process(t, "a"), []*musterv1.ExecutorDescription{offer(healthy, texts)}, placement.FilterNone},
		"no schema":                        {process(t, "a"), []*musterv1.ExecutorDescription{offer(healthy, "")}, placement.FilterNone},
		"refused":                          {process(t, "a"), []*musterv1.ExecutorDescription{offer(healthy, numbers)}, placement.FilterPayload},
		"not a schema":                     {process(t, "a"), []*musterv1.ExecutorDescription{offer(healthy, `{"type":7}`)}, placement.FilterPayload},
		"a schema that was dropped":        {process(t, "a"), []*musterv1.ExecutorDescription{faulty}, placement.FilterPayload},
		"the first healthy one decides":    {process(t, "a"), []*musterv1.ExecutorDescription{offer(sick, numbers), offer(healthy, texts), offer(healthy, numbers)}, placement.FilterNone},
		"a later one does not":             {process(t, "a"), []*musterv1.ExecutorDescription{offer(healthy, numbers), offer(healthy, texts)}, placement.FilterPayload},
		"none is healthy":                  {process(t, "a"), []*musterv1.ExecutorDescription{offer(sick, texts)}, placement.FilterExecutor},
		"fields of a container":            {container(&musterv1.ContainerSpec{Image: "a", Hostname: "b"}), []*musterv1.ExecutorDescription{docker("logs", "container.image", "container.hostname")}, placement.FilterNone},
		"a field that is not acted on":     {container(&musterv1.ContainerSpec{Image: "a", Hostname: "b"}), []*musterv1.ExecutorDescription{docker("container.image")}, placement.FilterCapability},
		"a field by its name in JSON":      {container(&musterv1.ContainerSpec{StopSignal: "TERM"}), []*musterv1.ExecutorDescription{docker("container.stopSignal")}, placement.FilterNone},
		"fields that are set by default":   {container(&musterv1.ContainerSpec{Image: "a", PullOptions: &musterv1.PullOptions{}}), []*musterv1.ExecutorDescription{docker("container.image")}, placement.FilterNone},
		"an executor that names no fields": {container(&musterv1.ContainerSpec{Hostname: "b"}), []*musterv1.ExecutorDescription{docker("logs")}, placement.FilterNone},
		"a schema of an executor for containers": {container(&musterv1.ContainerSpec{Image: "a"}), []*musterv1.ExecutorDescription{{
			Health: healthy, Kinds: []string{"container"}, PayloadSchema: `{"not":{}}`, PayloadSchemaError: "refuses every payload",
		}}, placement.FilterNone},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, v := range []*placement.Verdicts{nil, placement.NewVerdicts()} {
				r, err := placement.NewRequest("web", tt.spec, nil)
				if err != nil {
					t.Fatal(err)
				}
				if v != nil {
					r.Remember(v, "digest")
				}
				for range 2 {
					if got := r.Check(machine("n1", with(tt.executors...)), placement.NewUsage()); got != tt.want {
						t.Errorf("Check = %q, want %q", got, tt.want)
					}
				}
			}
		})
	}
}

// withSchema is a node whose only executor reports a payload schema.
func withSchema(text string) *placement.Node {
	return machine("n1", with(&musterv1.ExecutorDescription{
		Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"process"}, PayloadSchema: text,
	}))
}

// TestVerdictsAreKeptBySchemaAndSpec: a verdict belongs to one spec and one schema.
func TestVerdictsAreKeptBySchemaAndSpec(t *testing.T) {
	t.Parallel()
	v := placement.NewVerdicts()
	for range 2 {
		for i := range 3 {
			for j := range 3 {
				r, err := placement.NewRequest("web", process(t, fmt.Sprint(i)), nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Remember(v, fmt.Sprint(i))
				n := withSchema(fmt.Sprintf(`{"properties":{"command":{"const":["%d"]}}}`, j))
				v.Replace(nil, n)
				if got := r.Check(n, placement.NewUsage()) == placement.FilterNone; got != (i == j) {
					t.Errorf("spec %d passes schema %d: %v", i, j, got)
				}
			}
		}
	}
}

// TestVerdictsOfChangingSchemasTakeLittleMemory has a worker report a new schema of 60 KB
// a thousand times.
func TestVerdictsOfChangingSchemasTakeLittleMemory(t *testing.T) {
	v, spec := placement.NewVerdicts(), process(t, "a")
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var node *placement.Node
	for i := range 1000 {
		next := withSchema(fmt.Sprintf(`{"type":"object","%d":"%s"}`, i, strings.Repeat("x", 60_000)))
		v.Replace(node, next)
		node = next
		r, err := placement.NewRequest("web", spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Remember(v, "digest")
		if got := r.Check(node, placement.NewUsage()); got != placement.FilterNone {
			t.Fatalf("schema %d: %q", i, got)
		}
	}
	// What is compiled is kept for at most 256 schemas.
	const most = 32 << 20
	if grown := int64(heap()) - int64(before); grown > most {
		t.Errorf("the verdicts take %d MB, want at most %d MB", grown>>20, most>>20)
	}
	runtime.KeepAlive(v)
}

// BenchmarkSpreadOverManyNodes places tasks of one service on 5,000 nodes that have been looked at before,
// as the scheduler does for each service that changes.
func BenchmarkSpreadOverManyNodes(b *testing.B) {
	candidates := make([]placement.Candidate, 5000)
	for i := range candidates {
		n := machine(fmt.Sprint(i), func(r *recordv1.NodeState, _ *recordv1.Node) {
			r.Description.Executors[0].Kinds = []string{"process"}
			r.Description.Executors[0].PayloadSchema = `{"type":"object","properties":{"command":{"type":"array"}}}` + fmt.Sprintf("%3000d", 0)[:2999]
		})
		candidates[i] = placement.Candidate{Node: n, Usage: placement.NewUsage()}
	}
	spec, verdicts := process(b, "a", "b"), placement.NewVerdicts()
	for _, c := range candidates {
		verdicts.Replace(nil, c.Node)
	}
	for b.Loop() {
		r, err := placement.NewRequest("web", spec, nil)
		if err != nil {
			b.Fatal(err)
		}
		r.Remember(verdicts, "digest")
		if placed := r.Spread(candidates, 20, func(placement.Candidate) {}); placed != 20 {
			b.Fatal(placed, r.Refusals(candidates))
		}
	}
}
