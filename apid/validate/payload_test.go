package validate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/placement"
)

const processSchema = `{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"https://example.com/process","type":"object",
	"required":["command"],"additionalProperties":false,"properties":{
	"command":{"type":"array","items":{"type":"string"},"minItems":1},
	"env":{"type":"object","additionalProperties":{"type":"string","pattern":"^[a-z]*$"}},
	"limits":{"$ref":"#/$defs/limits"}},"$defs":{"limits":{"type":"object","properties":{"cpu":{"type":"number","minimum":0}},"required":["cpu"]}}}`

func generic(t *testing.T, kind, payload string) *musterv1.ServiceSpec {
	t.Helper()
	p := &structpb.Struct{}
	if payload != "" {
		if err := p.UnmarshalJSON([]byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	return &musterv1.ServiceSpec{Name: "job", Task: &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: kind, Payload: p}},
	}}
}

func executor(kind, schema string) *musterv1.ExecutorDescription {
	return &musterv1.ExecutorDescription{Name: kind, Kinds: []string{kind}, PayloadSchema: schema, Health: musterv1.ExecutorDescription_HEALTHY}
}

func TestPayload(t *testing.T) {
	t.Parallel()
	const at = "spec.task.generic.payload"
	tests := map[string]struct {
		payload string
		schemas []string
		want    []string
	}{
		"good":        {`{"command":["a"],"env":{"A":"b"},"limits":{"cpu":1}}`, []string{processSchema}, nil},
		"no schema":   {`{"x":1}`, []string{""}, nil},
		"empty":       {``, []string{processSchema}, []string{at + ".command"}},
		"types":       {`{"command":["a",7,null]}`, []string{processSchema}, []string{at + ".command[1]", at + ".command[2]"}},
		"unknown":     {`{"command":["a"],"comand":1,"odd name":2}`, []string{processSchema}, []string{at + ".comand", at + `["odd name"]`}},
		"nested":      {`{"command":["a"],"limits":{},"env":{"A":"7"}}`, []string{processSchema}, []string{at + ".env.A", at + ".limits.cpu"}},
		"newer takes": {`{"x":1}`, []string{processSchema, `{"properties":{"x":{"type":"integer"}}}`}, nil},
		"bad and good": {`{"command":[]}`, []string{`{"type":7}`, processSchema},
			[]string{at + ".command"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var executors []*musterv1.ExecutorDescription
			for _, s := range test.schemas {
				executors = append(executors, executor("process", s))
			}
			_, got := fields(t, newValidator().Service(generic(t, "process", test.payload), catalog(executors...)))
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("fields (-want +got):\n%s", d)
			}
		})
	}
}

// TestAlternatives names what a payload must have one of.
func TestAlternatives(t *testing.T) {
	t.Parallel()
	const schema = `{"properties":{"command":{},"shell":{}},"oneOf":[{"required":["command"]},{"required":["shell"]}]}`
	for payload, want := range map[string]string{
		`{}`:                          "needs one of command, shell",
		`{"command":[],"shell":"ls"}`: "matches none, or more than one, of the forms that the executor takes",
	} {
		err := newValidator().Service(generic(t, "process", payload), catalog(executor("process", schema)))
		if !strings.Contains(fmt.Sprint(status.Convert(err).Details()), want) {
			t.Errorf("%s: %v lacks %q", payload, status.Convert(err).Details(), want)
		}
	}
}

func TestUnknownExecutor(t *testing.T) {
	t.Parallel()
	v := newValidator()
	none := validate.NewCatalog(slices.Values([]*placement.Node(nil)))
	if code, _ := fields(t, v.Service(generic(t, "process", ""), none)); code != codes.FailedPrecondition {
		t.Errorf("no node: code %v, want %v", code, codes.FailedPrecondition)
	}
	err := v.Service(generic(t, "proces", ""), catalog(executor("process", ""), executor("null", "")))
	if code, got := fields(t, err); code != codes.InvalidArgument || fmt.Sprint(got) != "[spec.task.generic.kind]" {
		t.Errorf("%v %v", code, got)
	}
	if want := `there is no kind "proces"; kinds that nodes run: null, process`; !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %s in it", err, want)
	}
}

// A worker has no say beyond its own node, whatever it reports.
func TestPayloadPassesIfOneReadyNodeAcceptsIt(t *testing.T) {
	t.Parallel()
	const active, drain = musterv1.NodeSpec_ACTIVE, musterv1.NodeSpec_DRAIN
	schema := func(text string) *musterv1.ExecutorDescription { return executor("process", text) }
	refusing := func(n int) []*placement.Node {
		var nodes []*placement.Node
		for i := range n {
			nodes = append(nodes, node(ready, active, schema(fmt.Sprintf(`{"not":{"required":["command"]},"title":"%d"}`, i))))
		}
		return nodes
	}
	var nine []*musterv1.ExecutorDescription
	for i := range 9 {
		nine = append(nine, schema(fmt.Sprintf(`{"not":{},"title":"%d"}`, i)))
	}
	faulty := schema("")
	faulty.PayloadSchemaError = "refuses every payload"
	sick := schema(`{"not":{"required":["command"]}}`)
	sick.Health = musterv1.ExecutorDescription_UNHEALTHY
	honest := node(ready, active, schema(processSchema))
	for name, test := range map[string]struct {
		nodes []*placement.Node
		want  codes.Code
	}{
		"nine refusing executors on one node":             {[]*placement.Node{node(ready, active, nine...), honest}, codes.OK},
		"as many refusing nodes as are tried, and more":   {append(refusing(20), honest), codes.OK},
		"a refusing node that is drained":                 {[]*placement.Node{node(ready, drain, nine...), honest}, codes.OK},
		"a refusing node that is disconnected":            {[]*placement.Node{node(musterv1.NodeStatus_DISCONNECTED, active, nine...), honest}, codes.OK},
		"the accepting node is away":                      {append(refusing(1), node(musterv1.NodeStatus_DOWN, active, schema(processSchema))), codes.InvalidArgument},
		"all nodes are away, and one accepts":             {[]*placement.Node{node(ready, drain, nine...), node(musterv1.NodeStatus_DOWN, active, schema(processSchema))}, codes.OK},
		"the only executor has a schema that is at fault": {[]*placement.Node{node(ready, active, faulty)}, codes.FailedPrecondition},
		"a sick executor refuses":                         {[]*placement.Node{node(ready, active, sick, schema(processSchema))}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, named := fields(t, newValidator().Service(generic(t, "process", `{"command":["a"]}`), validate.NewCatalog(slices.Values(test.nodes))))
			if code != test.want {
				t.Errorf("code is %v for %v, want %v", code, named, test.want)
			}
		})
	}
}

// An error that lists kinds stays short, and lists those of most nodes.
func TestListOfKindsIsBounded(t *testing.T) {
	t.Parallel()
	executors := []*musterv1.ExecutorDescription{executor("zz-process", ""), executor("zz-process", "")}
	for i := range 500 {
		executors = append(executors, executor(fmt.Sprintf("kind-%d", i), ""))
	}
	err := newValidator().Service(generic(t, "proces", ""), catalog(executors...))
	if !strings.Contains(err.Error(), "zz-process and 485 more") || len(err.Error()) > 500 {
		t.Errorf("error is %v", err)
	}
}

// An executor that has not said what it runs may be the one that is needed: that
// is no fault of the spec.
func TestAnExecutorThatHasNotSpokenYet(t *testing.T) {
	t.Parallel()
	starting := &musterv1.ExecutorDescription{Name: "process", Message: "it is being started"}
	err := newValidator().Service(generic(t, "process", ""), catalog(executor("null", ""), starting))
	if code, got := fields(t, err); code != codes.FailedPrecondition || fmt.Sprint(got) != "[spec.task.generic.kind]" {
		t.Errorf("%v %v", code, got)
	}
	if !strings.Contains(err.Error(), "process (it is being started)") {
		t.Errorf("error does not name the executor: %v", err)
	}
}

// Schemas come from workers. None may keep the API busy or make it reach out.
func TestHostileSchemas(t *testing.T) {
	t.Parallel()
	doubling := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"$ref":"#/$defs/d0","$defs":{`)
		for i := range n {
			fmt.Fprintf(&b, `"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]},`, i, i+1, i+1)
		}
		fmt.Fprintf(&b, `"d%d":{"type":"string"}}}`, n)
		return b.String()
	}
	for name, schema := range map[string]string{
		"not json":     `{`,
		"no schema":    `{"type":"spam"}`,
		"remote":       `{"$ref":"http://169.254.169.254/latest"}`,
		"file":         `{"$ref":"file:///etc/passwd"}`,
		"metaschema":   `{"$schema":"https://example.com/meta"}`,
		"recursive":    `{"properties":{"a":{"$ref":"#"}}}`,
		"mutual":       `{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}`,
		"doubling":     doubling(40),
		"large":        `{"description":"` + strings.Repeat("x", 70_000) + `"}`,
		"deep":         strings.Repeat(`{"not":`, 200) + "{}" + strings.Repeat("}", 200),
		"dynamic":      `{"$dynamicRef":"#a"}`,
		"pattern":      `{"properties":{"a":{"pattern":"(a{1,100}){1,10}(b{1,100}){1,10}(c{1,100}){1,10}"}}}`,
		"bad pattern":  `{"properties":{"a":{"pattern":"("}}}`,
		"missing":      `{"$ref":"#/$defs/x"}`,
		"boolean":      `7`,
		"many schemas": `{"anyOf":[` + strings.Repeat(`{},`, 10_000) + `{}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			code, _ := fields(t, newValidator().Service(generic(t, "x", `{"a":"aaaa"}`), catalog(executor("x", schema))))
			if code != codes.FailedPrecondition {
				t.Errorf("code %v, want %v", code, codes.FailedPrecondition)
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	t.Run("deep payload", func(t *testing.T) {
		t.Parallel()
		deep := strings.Repeat(`{"a":`, 90) + "1" + strings.Repeat("}", 90)
		code, _ := fields(t, newValidator().Service(generic(t, "x", deep), catalog(executor("x", `{"type":"object"}`))))
		if code != codes.InvalidArgument {
			t.Errorf("code %v, want %v", code, codes.InvalidArgument)
		}
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(processSchema, `{"command":["a"]}`)
	f.Add(`{"$ref":"#/$defs/a~1b","$defs":{"a/b":{"enum":[1,"x",null]}}}`, `{"a":[1,2,{"b":null}]}`)
	f.Add(`{"oneOf":[{"type":"string"},{"required":["a"]}],"unevaluatedProperties":false}`, `{"b":1}`)
	f.Fuzz(func(t *testing.T, schema, payload string) {
		p := &structpb.Struct{}
		if p.UnmarshalJSON([]byte(payload)) != nil {
			return
		}
		spec := generic(t, "x", "")
		spec.Task.GetGeneric().Payload = p
		fields(t, newValidator().Service(spec, catalog(executor("x", schema))))
	})
}
