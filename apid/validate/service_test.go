package validate_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/placement"
)

func newValidator() *validate.Validator {
	return validate.New(func(cs []string) error {
		for _, c := range cs {
			if !strings.Contains(c, "=") {
				return errors.New("must have an operator")
			}
		}
		return nil
	})
}

// catalog is that of a cluster with one ready node for each executor.
func catalog(executors ...*musterv1.ExecutorDescription) *validate.Catalog {
	nodes := []*placement.Node{node(ready, musterv1.NodeSpec_ACTIVE)}
	for _, e := range executors {
		nodes = append(nodes, node(ready, musterv1.NodeSpec_ACTIVE, e))
	}
	return validate.NewCatalog(slices.Values(nodes))
}

const ready = musterv1.NodeStatus_READY

func node(state musterv1.NodeStatus_State, availability musterv1.NodeSpec_Availability, executors ...*musterv1.ExecutorDescription) *placement.Node {
	return placement.NewNode("n", &recordv1.NodeState{State: state, Description: &musterv1.NodeDescription{Executors: executors}},
		&recordv1.Node{Spec: &musterv1.NodeSpec{Availability: availability}})
}

func container(change func(*musterv1.ServiceSpec, *musterv1.ContainerSpec)) *musterv1.ServiceSpec {
	c := &musterv1.ContainerSpec{Image: "nginx:1.29"}
	s := &musterv1.ServiceSpec{
		Name: "web", Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: c}},
	}
	change(s, c)
	return s
}

func parse(t *testing.T, text string) *musterv1.ServiceSpec {
	t.Helper()
	s := &musterv1.ServiceSpec{}
	if err := protojson.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// fields returns the code of an error and the fields that its details name.
func fields(t *testing.T, err error) (codes.Code, []string) {
	t.Helper()
	named := map[string]bool{}
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.FieldViolations {
				named[v.Field] = true
				if v.Description == "" {
					t.Errorf("field %s: no description", v.Field)
				}
			}
		}
	}
	return status.Code(err), slices.Sorted(maps.Keys(named))
}

func TestServiceIsAccepted(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]string{
		"least":   `{"name":"web","task":{"container":{"image":"nginx"}}}`,
		"default": `{"name":"Web-1_a","task":{"container":{"image":"localhost:5000/a/b@sha256:` + strings.Repeat("a", 64) + `"}},"global":{}}`,
		"full": `{"name":"web","labels":{"a":"b"},"replicated":{"replicas":"3"},"update":{"order":"START_FIRST"},
			"endpoint":{"ports":[{"targetPort":80,"publishedPort":8080,"publishMode":"HOST"},{"targetPort":80,"publishedPort":8080,"publishMode":"HOST","protocol":"UDP"}]},
			"task":{"container":{"image":"nginx","command":["a"],"env":["A=b","B="],"hostname":"web.example","user":"1:1","stopSignal":"SIGRTMIN+3","stopGracePeriod":"2s",
			"mounts":[{"type":"BIND","source":"/a","target":"/b"},{"type":"TMPFS","target":"/c","tmpfsOptions":{"sizeBytes":"1024","mode":448}},{"type":"VOLUME","source":"data","target":"/d"}],
			"healthcheck":{"test":["CMD","true"],"interval":"1s"},"ulimits":[{"name":"nofile","soft":"1","hard":"2"}],"capabilityAdd":["NET_ADMIN"],"hosts":["10.0.0.1 a b"],
			"dnsConfig":{"nameservers":["::1"]},"pullOptions":{"policy":"MISSING","registryAuth":"e30="}},
			"resources":{"limits":{"nanoCpus":"1000000000","memoryBytes":"8388608","pids":"10"},"reservations":{"nanoCpus":"1000000","memoryBytes":"4194304"}},
			"restart":{"condition":"ON_FAILURE","delay":"0s","maxAttempts":"3","window":"60s"},"logDriver":{"name":"json-file"},
			"placement":{"constraints":["node.labels.a==b"],"platforms":[{"os":"linux"}],"maxReplicas":"2"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := newValidator().Service(parse(t, spec), catalog()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServiceNamesEveryInvalidField(t *testing.T) {
	t.Parallel()
	task := func(s string) string { return `{"name":"web","task":{"container":{"image":"nginx"},` + s + `}}` }
	ctr := func(s string) string { return `{"name":"web","task":{"container":{"image":"nginx",` + s + `}}}` }
	tests := map[string]struct {
		spec string
		want []string
	}{
		"empty":        {`{}`, []string{"spec.task"}},
		"no runtime":   {`{"name":"web","task":{}}`, []string{"spec.task"}},
		"long name":    {`{"name":"` + strings.Repeat("a", 10_000) + `","task":{"container":{"image":"nginx"}}}`, []string{"spec.name"}},
		"odd name":     {`{"name":"-a","task":{"container":{"image":"nginx"}}}`, []string{"spec.name"}},
		"labels":       {`{"name":"web","labels":{"":"x"},"task":{"container":{"image":"nginx"}}}`, []string{"spec.labels"}},
		"large labels": {`{"name":"web","labels":{"a":"` + strings.Repeat("x", 70_000) + `"},"task":{"container":{"image":"nginx"}}}`, []string{"spec.labels"}},
		"replicas":     {`{"name":"web","replicated":{"replicas":"1000001"},"task":{"container":{"image":"nginx"}}}`, []string{"spec.replicated.replicas"}},
		"as negative":  {`{"name":"web","replicated":{"replicas":"18446744073709551615"},"task":{"container":{"image":"nginx"}}}`, []string{"spec.replicated.replicas"}},
		"no image":     {`{"name":"web","task":{"container":{}}}`, []string{"spec.task.container.image"}},
		"image":        {`{"name":"web","task":{"container":{"image":"Nginx::x"}}}`, []string{"spec.task.container.image"}},
		"upper image":  {`{"name":"web","task":{"container":{"image":"Nginx"}}}`, []string{"spec.task.container.image"}},
		"ratio":        {`{"name":"web","update":{"maxFailureRatio":1.5},"task":{"container":{"image":"nginx"}}}`, []string{"spec.update.maxFailureRatio"}},
		"not a number": {`{"name":"web","rollback":{"maxFailureRatio":"NaN"},"task":{"container":{"image":"nginx"}}}`, []string{"spec.rollback.maxFailureRatio"}},
		"durations": {`{"name":"web","update":{"delay":"-1s","monitor":"-1s"},"task":{"container":{"image":"nginx","stopGracePeriod":"-1s"},"restart":{"delay":"-1s","window":"-2s"}}}`,
			[]string{"spec.task.container.stopGracePeriod", "spec.task.restart.delay", "spec.task.restart.window", "spec.update.delay", "spec.update.monitor"}},
		"enum": {task(`"restart":{"condition":77}`), []string{"spec.task.restart.condition"}},
		"resources": {task(`"resources":{"limits":{"nanoCpus":"5","memoryBytes":"5","pids":"-1"},"reservations":{"nanoCpus":"-1","memoryBytes":"-1"},"swapBytes":"-2","memorySwappiness":"101"}`),
			[]string{"spec.task.resources.limits.memoryBytes", "spec.task.resources.limits.nanoCpus", "spec.task.resources.limits.pids", "spec.task.resources.memorySwappiness",
				"spec.task.resources.reservations.memoryBytes", "spec.task.resources.reservations.nanoCpus", "spec.task.resources.swapBytes"}},
		"over limit": {task(`"resources":{"limits":{"nanoCpus":"1000000","memoryBytes":"4194304"},"reservations":{"nanoCpus":"2000000","memoryBytes":"5194304"}}`),
			[]string{"spec.task.resources.limits.memoryBytes", "spec.task.resources.limits.nanoCpus"}},
		"constraints": {task(`"placement":{"constraints":["node.id==a","x"],"preferences":[{"spread":{"spreadDescriptor":"x"}}]}`),
			[]string{"spec.task.placement.constraints[1]", "spec.task.placement.preferences[0]", "spec.task.placement.preferences[0].spread.spreadDescriptor"}},
		"log driver": {task(`"logDriver":{"options":{"a":"b"}}`), []string{"spec.task.logDriver.name"}},
		"ports": {`{"name":"web","task":{"container":{"image":"nginx"}},"endpoint":{"ports":[{"publishMode":"HOST"},{"targetPort":70000,"publishedPort":70000,"publishMode":"HOST"},
			{"targetPort":1,"publishedPort":5,"publishMode":"HOST"},{"targetPort":2,"publishedPort":5,"protocol":"TCP","publishMode":"HOST"}]}}`,
			[]string{"spec.endpoint.ports[0].targetPort", "spec.endpoint.ports[1].publishedPort", "spec.endpoint.ports[1].targetPort", "spec.endpoint.ports[3].publishedPort"}},
		"mounts": {ctr(`"mounts":[{"target":"/a"},{"type":"BIND","target":"a"},{"type":"VOLUME","target":"/x"},{"type":"TMPFS","source":"s","target":"/x/","bindOptions":{"propagation":"q"}},{"type":"TMPFS","tmpfsOptions":{"mode":99999,"sizeBytes":"-1"}},{"type":"BIND","source":"/s","target":"/p","bindOptions":{"propagation":"q"}}]`),
			[]string{"spec.task.container.mounts[0].type", "spec.task.container.mounts[1].source", "spec.task.container.mounts[1].target",
				"spec.task.container.mounts[3].bindOptions", "spec.task.container.mounts[3].source", "spec.task.container.mounts[3].target",
				"spec.task.container.mounts[4].target", "spec.task.container.mounts[4].tmpfsOptions.mode", "spec.task.container.mounts[4].tmpfsOptions.sizeBytes",
				"spec.task.container.mounts[5].bindOptions.propagation"}},
		"healthcheck": {ctr(`"healthcheck":{"test":["FOO"],"interval":"0.0005s","timeout":"-1s"}`),
			[]string{"spec.task.container.healthcheck.interval", "spec.task.container.healthcheck.test", "spec.task.container.healthcheck.timeout"}},
		"container": {ctr(`"env":["=x","A\u0000=b"],"hosts":["a"],"dnsConfig":{"nameservers":["x"]},"ulimits":[{"soft":"3","hard":"1"}],"capabilityAdd":["no cap"],"stopSignal":"?","isolation":"vm","oomScoreAdj":"2000","hostname":"a b","privileges":{"seccomp":{"mode":"CUSTOM"}}`),
			[]string{"spec.task.container.capabilityAdd[0]", "spec.task.container.dnsConfig.nameservers[0]", "spec.task.container.env[0]", "spec.task.container.env[1]",
				"spec.task.container.hostname", "spec.task.container.hosts[0]", "spec.task.container.isolation", "spec.task.container.oomScoreAdj", "spec.task.container.privileges.seccomp.profile",
				"spec.task.container.stopSignal", "spec.task.container.ulimits[0].name", "spec.task.container.ulimits[0].soft"}},
		"oversized": {ctr(`"args":["` + strings.Repeat("x", 600<<10) + `"]`), []string{"spec.task"}},
		"kind":      {`{"name":"web","task":{"generic":{"kind":"a b"}}}`, []string{"spec.task.generic.kind"}},
		"no kind":   {`{"name":"web","task":{"generic":{}}}`, []string{"spec.task.generic.kind"}},
		"as kind":   {`{"name":"web","task":{"generic":{"kind":"container"}}}`, []string{"spec.task.generic.kind"}},
		"dnsrr": {`{"name":"web","task":{"container":{"image":"nginx"}},"endpoint":{"mode":"DNSRR","ports":[{"targetPort":80}]}}`,
			[]string{"spec.endpoint.ports[0].publishMode"}},
		"job with update": {`{"name":"web","replicatedJob":{},"update":{},"task":{"container":{"image":"nginx"}}}`, []string{"spec.replicatedJob", "spec.update"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, got := fields(t, newValidator().Service(parse(t, test.spec), catalog()))
			if code != codes.InvalidArgument {
				t.Errorf("code %v, want %v", code, codes.InvalidArgument)
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("fields (-want +got):\n%s", d)
			}
		})
	}
	if code, _ := fields(t, newValidator().Service(nil, catalog())); code != codes.InvalidArgument {
		t.Errorf("no spec: code %v", code)
	}
}

func TestServiceRefusesWhatNobodyActsOn(t *testing.T) {
	t.Parallel()
	task := func(s string) string { return `{"name":"web","task":{"container":{"image":"nginx"},` + s + `}}` }
	ctr := func(s string) string { return `{"name":"web","task":{"container":{"image":"nginx",` + s + `}}}` }
	top := func(s string) string { return `{"name":"web","task":{"container":{"image":"nginx"}},` + s + `}` }
	tests := map[string]struct {
		spec string
		want []string
	}{
		"job":         {top(`"replicatedJob":{}`), []string{"spec.replicatedJob"}},
		"global job":  {top(`"globalJob":{}`), []string{"spec.globalJob"}},
		"references":  {task(`"resourceReferences":[{"id":"a","type":"VOLUME"}]`), []string{"spec.task.resourceReferences[0].type"}},
		"generic":     {task(`"resources":{"reservations":{"generic":[{"kind":"gpu","discrete":"1"}]}}`), []string{"spec.task.resources.reservations.generic[0]"}},
		"preferences": {task(`"placement":{"preferences":[{"spread":{"spreadDescriptor":"node.labels.a"}}]}`), []string{"spec.task.placement.preferences[0]"}},
		"container": {ctr(`"secrets":[{"secretId":"a"}],"configs":[{"configId":"a","runtime":{}}],"privileges":{"credentialSpec":{"file":"a"}},"mounts":[{"type":"CLUSTER","source":"v","target":"/v"}]`),
			[]string{"spec.task.container.configs[0].runtime", "spec.task.container.mounts[0].type", "spec.task.container.privileges.credentialSpec"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, got := fields(t, newValidator().Service(parse(t, test.spec), catalog()))
			if code != codes.Unimplemented {
				t.Errorf("code %v, want %v", code, codes.Unimplemented)
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("fields (-want +got):\n%s", d)
			}
		})
	}
}

func TestContainerFieldsMustBeHonoured(t *testing.T) {
	t.Parallel()
	spec := container(func(_ *musterv1.ServiceSpec, c *musterv1.ContainerSpec) {
		c.Sysctls = map[string]string{"a": "b"}
		c.StopSignal = "SIGINT"
	})
	docker := func(capabilities ...string) *musterv1.ExecutorDescription {
		return &musterv1.ExecutorDescription{Name: "docker", Kinds: []string{"container"}, Capabilities: capabilities}
	}
	tests := map[string]struct {
		executors []*musterv1.ExecutorDescription
		want      []string
	}{
		"no node":     {nil, nil},
		"silent":      {[]*musterv1.ExecutorDescription{docker("logs"), docker("container.image")}, nil},
		"all":         {[]*musterv1.ExecutorDescription{docker("container.image", "container.sysctls", "container.stop_signal")}, nil},
		"one":         {[]*musterv1.ExecutorDescription{docker("container.image", "container.stopSignal"), docker("container.image")}, []string{"spec.task.container.sysctls"}},
		"one of both": {[]*musterv1.ExecutorDescription{docker("container.image", "container.sysctls", "container.stopSignal"), docker("container.image")}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, got := fields(t, newValidator().Service(spec, catalog(test.executors...)))
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("fields (-want +got):\n%s", d)
			}
		})
	}
}

func TestErrorsAreBounded(t *testing.T) {
	t.Parallel()
	spec := container(func(s *musterv1.ServiceSpec, _ *musterv1.ContainerSpec) {
		s.Endpoint = &musterv1.EndpointSpec{}
		for range 3000 {
			s.Endpoint.Ports = append(s.Endpoint.Ports, &musterv1.PortConfig{})
		}
	})
	err := newValidator().Service(spec, catalog())
	if _, got := fields(t, err); len(got) != 100 {
		t.Errorf("%d fields are named, want 100", len(got))
	}
	if n := len(err.Error()); n > 2000 {
		t.Errorf("message has %d bytes", n)
	}
}

func TestNodeAndCluster(t *testing.T) {
	t.Parallel()
	v := newValidator()
	node := &musterv1.NodeSpec{Labels: map[string]string{"": "x"}, Availability: 99, Role: musterv1.NodeSpec_MANAGER}
	if code, got := fields(t, v.Node(node)); code != codes.InvalidArgument || len(got) != 3 {
		t.Errorf("node: %v %v", code, got)
	}
	if err := v.Node(&musterv1.NodeSpec{Availability: musterv1.NodeSpec_DRAIN}); err != nil {
		t.Error(err)
	}
	cluster := &musterv1.ClusterSpec{Dispatcher: &musterv1.DispatcherConfig{HeartbeatPeriod: durationpb.New(time.Millisecond)}}
	if code, got := fields(t, v.Cluster(cluster)); code != codes.InvalidArgument || len(got) != 1 {
		t.Errorf("cluster: %v %v", code, got)
	}
	network := &musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{AddressPools: []*musterv1.AddressPool{
		{Base: "172.16.0.0/12", Size: 24}, {Base: "fd00::/40", Size: 64}, {Base: "10.0.0.0/24", Size: 24},
		{Base: "10.1.0.1/16", Size: 24}, {Base: "x", Size: 24}, {Base: "172.20.0.0/14", Size: 24}, {Base: "10.2.0.0/16", Size: 15}, {Base: "10.3.0.0/16", Size: 30},
		{Base: "fd01::/64", Size: 1<<31 + 64}, {Base: "169.254.0.0/16", Size: 24},
	}}}
	at := func(i int, field string) string { return fmt.Sprintf("spec.network.addressPools[%d].%s", i, field) }
	want := []string{at(3, "base"), at(4, "base"), at(5, "base"), at(6, "size"), at(7, "size"), at(8, "size"), at(9, "base")}
	if code, got := fields(t, v.Cluster(network)); code != codes.InvalidArgument || !slices.Equal(got, want) {
		t.Errorf("%v %v, want %v", code, got, want)
	}
	gap := &musterv1.ClusterSpec{TaskDefaults: &musterv1.TaskDefaults{LogDriver: &musterv1.LogDriver{Name: "x"}}}
	if code, got := fields(t, v.Cluster(gap)); code != codes.Unimplemented || fmt.Sprint(got) != "[spec.taskDefaults.logDriver]" {
		t.Errorf("cluster: %v %v", code, got)
	}
	reserve := func(ports ...string) *musterv1.ClusterSpec {
		return &musterv1.ClusterSpec{Network: &musterv1.NetworkConfig{ReservedPorts: &musterv1.ReservedPorts{Ports: ports}}}
	}
	if err := v.Cluster(reserve("22/tcp", "8300-8302/UDP", "53", "29990-29999", "132/sctp")); err != nil {
		t.Error(err)
	}
	bad := []string{"", "0", "x/tcp", "22/", "22/icmp", "22/protocol_unspecified", "70000", "9-8", "8-", "30000/tcp", "32767-40000", "29999-30000"}
	want = nil
	for i := range bad {
		want = append(want, fmt.Sprintf("spec.network.reservedPorts.ports[%d]", i))
	}
	slices.Sort(want)
	if code, got := fields(t, v.Cluster(reserve(bad...))); code != codes.InvalidArgument || !slices.Equal(got, want) {
		t.Errorf("reserved ports: %v %v, want %v", code, got, want)
	}
	if code, got := fields(t, v.Cluster(reserve(make([]string, 257)...))); code != codes.InvalidArgument || fmt.Sprint(got) != "[spec.network.reservedPorts.ports]" {
		t.Errorf("too many reserved ports: %v %v", code, got)
	}
}
