package convert

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestServiceSpecSurvivesRoundTrip converts random specs of Docker's to Muster's and back.
func TestServiceSpecSurvivesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want swarm.ServiceSpec
		fill(t, reflect.ValueOf(&want).Elem(), "")
		normalise(&want)
		m, err := ServiceSpec(want)
		if err != nil {
			t.Fatal(err)
		}
		got := DockerServiceSpec(m)
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Fatalf("-sent +read:\n%s", d)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Fatal(err)
		}
	})
}

// normalise brings a spec into the form in which Docker's clients get it.
func normalise(s *swarm.ServiceSpec) {
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	t := &s.TaskTemplate
	t.PluginSpec, t.NetworkAttachmentSpec, t.Runtime = nil, nil, swarm.RuntimeContainer
	if t.ContainerSpec == nil {
		t.ContainerSpec = &swarm.ContainerSpec{}
	}
	modes := []any{s.Mode.Global, s.Mode.ReplicatedJob, s.Mode.GlobalJob}
	switch {
	case !reflect.ValueOf(modes[0]).IsNil():
		s.Mode = swarm.ServiceMode{Global: s.Mode.Global}
	case !reflect.ValueOf(modes[1]).IsNil():
		s.Mode = swarm.ServiceMode{ReplicatedJob: s.Mode.ReplicatedJob}
	case !reflect.ValueOf(modes[2]).IsNil():
		s.Mode = swarm.ServiceMode{GlobalJob: s.Mode.GlobalJob}
	default:
		if s.Mode.Replicated == nil {
			s.Mode.Replicated = &swarm.ReplicatedService{}
		}
		if s.Mode.Replicated.Replicas == nil {
			one := uint64(1)
			s.Mode.Replicated.Replicas = &one
		}
	}
	if p := t.RestartPolicy; p != nil && p.MaxAttempts == nil {
		p.MaxAttempts = new(uint64)
	}
	if p := t.Placement; p != nil {
		for i := range p.Preferences {
			if p.Preferences[i].Spread == nil {
				p.Preferences[i].Spread = &swarm.SpreadOver{}
			}
		}
	}
	if r := t.Resources; r != nil && r.Reservations != nil {
		for i := range r.Reservations.GenericResources {
			g := &r.Reservations.GenericResources[i]
			if g.NamedResourceSpec != nil {
				g.DiscreteResourceSpec = nil
			} else if g.DiscreteResourceSpec == nil {
				g.DiscreteResourceSpec = &swarm.DiscreteGenericResource{}
			}
		}
	}
	normaliseContainer(t.ContainerSpec)
}

func normaliseContainer(c *swarm.ContainerSpec) {
	if p := c.Privileges; p != nil && p.CredentialSpec != nil {
		p.CredentialSpec = &swarm.CredentialSpec{Config: "c"}
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		m.ImageOptions = nil
		if m.ClusterOptions = nil; m.Type == mount.TypeCluster {
			m.ClusterOptions = &mount.ClusterOptions{}
		}
		if m.TmpfsOptions != nil {
			m.TmpfsOptions.Options = [][]string{{"uid", "7"}, {"noexec"}}
		}
	}
	for _, s := range c.Secrets {
		if s.File == nil {
			s.File = &swarm.SecretReferenceFileTarget{Name: s.SecretName, UID: "0", GID: "0", Mode: 0o444}
		}
	}
	for _, s := range c.Configs {
		if s.File != nil {
			s.Runtime = nil
		} else if s.Runtime == nil {
			s.File = &swarm.ConfigReferenceFileTarget{Name: s.ConfigName, UID: "0", GID: "0", Mode: 0o444}
		}
	}
}

// choices are the words of fields that have only some.
var choices = map[string][]string{
	"FailureAction": {"pause", "continue", "rollback"}, "Order": {"stop-first", "start-first"}, "Condition": {"none", "on-failure", "any"},
	"Protocol": {"tcp", "udp", "sctp"}, "PublishMode": {"ingress", "host"}, ".EndpointSpec.Mode": {"vip", "dnsrr"},
	".Seccomp.Mode": {"default", "unconfined", "custom"}, ".AppArmor.Mode": {"default", "disabled"}, ".Mounts.Type": {"bind", "volume", "tmpfs", "npipe", "cluster"},
	".TaskTemplate.Runtime": {"container"},
}

// fill gives each field of a value something random, or nothing.
func fill(t *rapid.T, v reflect.Value, path string) {
	switch typ := v.Type(); {
	case typ == reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 1, 2, rapid.Byte().Draw(t, path)})))
	case typ == reflect.TypeFor[os.FileMode]():
		v.SetUint(rapid.Uint64Max(0o7777).Draw(t, path))
	case typ == reflect.TypeFor[time.Duration]():
		v.SetInt(rapid.Int64Range(0, 1<<50).Draw(t, path))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			at := path + "." + typ.Field(i).Name
			if typ.Field(i).Anonymous {
				at = path
			}
			fill(t, v.Field(i), at)
		}
	case v.Kind() == reflect.Pointer:
		// Elements of lists are never nil.
		if strings.HasSuffix(path, "[]") || rapid.Bool().Draw(t, path+"?") {
			v.Set(reflect.New(typ.Elem()))
			fill(t, v.Elem(), strings.TrimSuffix(path, "[]"))
		}
	case v.Kind() == reflect.Slice:
		n := rapid.IntRange(0, 2).Draw(t, path+"#")
		v.Set(reflect.MakeSlice(typ, n, n))
		for i := range n {
			fill(t, v.Index(i), path+map[bool]string{true: "[]"}[typ.Elem().Kind() == reflect.Pointer])
		}
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(typ))
		for _, k := range rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,4}`), 0, 2).Draw(t, path) {
			v.SetMapIndex(reflect.ValueOf(k), reflect.ValueOf(rapid.StringMatching(`[a-z=,]{0,5}`).Draw(t, path+".v")))
		}
	case v.Kind() == reflect.String:
		for suffix, words := range choices {
			if strings.HasSuffix(path, suffix) {
				v.SetString(rapid.SampledFrom(words).Draw(t, path))
				return
			}
		}
		v.SetString(rapid.StringMatching(`[a-z0-9/.:=]{0,6}`).Draw(t, path))
	case v.Kind() == reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, path))
	case v.Kind() == reflect.Float32:
		v.SetFloat(float64(rapid.Float32Range(0, 1).Draw(t, path)))
	case v.CanInt():
		v.SetInt(rapid.Int64Range(0, 1<<31-1).Draw(t, path))
	case v.CanUint():
		v.SetUint(rapid.Uint64Range(0, 255).Draw(t, path))
	default:
		t.Fatalf("no value for %s at %s", typ, path)
	}
}

// TestKeepPreservesWhatDockerCannotSay reads a spec as Docker, writes it back, and expects
// no change.
func TestKeepPreservesWhatDockerCannotSay(t *testing.T) {
	restart := &musterv1.OnChange{Action: musterv1.OnChange_RESTART}
	current := &musterv1.ServiceSpec{
		Name: "web", DependsOn: []*musterv1.ServiceDependency{{Service: "db"}},
		Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: new(uint64)}},
		Task: &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
				Image: "a", PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER},
				Secrets: []*musterv1.SecretReference{{SecretId: "s1", SecretName: "s", OnChange: restart}},
				Configs: []*musterv1.ConfigReference{{ConfigId: "c1", ConfigName: "c", OnChange: restart}},
			}},
			Group:    []*musterv1.GroupContainer{{Name: "log", Role: musterv1.GroupContainer_SIDECAR}},
			Networks: []*musterv1.NetworkAttachmentConfig{{Target: "n1", Addresses: []string{"10.64.0.9"}}},
		},
		Endpoint: &musterv1.EndpointSpec{
			DrainDelay: durationpb.New(0),
			Ports:      []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, ExternalTraffic: musterv1.PortConfig_LOCAL, ProxyProtocol: true}},
		},
	}
	next, err := ServiceSpec(DockerServiceSpec(current))
	if err != nil {
		t.Fatal(err)
	}
	if err := Keep(next, current); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(next, current) {
		t.Errorf("got  %v\nwant %v", next, current)
	}
}

func TestKeepRefusesToChangeOtherRuntimes(t *testing.T) {
	current := &musterv1.ServiceSpec{Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process"}}}}
	shown := DockerServiceSpec(current)
	next, err := ServiceSpec(shown)
	if err != nil {
		t.Fatal(err)
	}
	if err := Keep(next, current); err != nil || next.GetTask().GetGeneric().GetKind() != "process" {
		t.Errorf("a spec that is written back: %v, %v", next, err)
	}
	shown.TaskTemplate.ContainerSpec.Env = []string{"A=b"}
	if next, err = ServiceSpec(shown); err != nil {
		t.Fatal(err)
	}
	if err := Keep(next, current); err == nil {
		t.Error("an environment for a process that is shown as a container was accepted")
	}
}

func TestScaledServiceDoesNotShowTheUpdateBefore(t *testing.T) {
	at := func(seconds int64) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: seconds} }
	for _, c := range []struct {
		changed int64
		state   musterv1.UpdateStatus_State
		shown   bool
	}{
		{1, musterv1.UpdateStatus_COMPLETED, true},
		{4, musterv1.UpdateStatus_COMPLETED, false},
		{4, musterv1.UpdateStatus_ROLLBACK_COMPLETED, false},
		{4, musterv1.UpdateStatus_UPDATING, true},
		{4, musterv1.UpdateStatus_PAUSED, true},
	} {
		s := &musterv1.Service{
			Meta:         &musterv1.Meta{UpdatedAt: at(c.changed)},
			UpdateStatus: &musterv1.UpdateStatus{State: c.state, StartedAt: at(2), CompletedAt: at(3)},
		}
		if got := DockerService(s).UpdateStatus; (got != nil) != c.shown {
			t.Errorf("changed at %d, %s at 3: status %v", c.changed, c.state, got)
		}
	}
}
