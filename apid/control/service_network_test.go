package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// on returns a spec with networks.
func on(name string, networks ...string) *musterv1.ServiceSpec {
	spec := webSpec(name)
	for _, n := range networks {
		spec.Task.Networks = append(spec.Task.Networks, &musterv1.NetworkAttachmentConfig{Target: n})
	}
	return spec
}

// publishing returns a spec with ports, such as "80/tcp" of the mesh or "80/udp@host".
func publishing(name string, ports ...string) *musterv1.ServiceSpec {
	spec := webSpec(name)
	spec.Endpoint = &musterv1.EndpointSpec{}
	for _, text := range ports {
		p := &musterv1.PortConfig{TargetPort: 8080}
		text, host := strings.CutSuffix(text, "@host")
		if host {
			p.PublishMode = musterv1.PortConfig_HOST
		}
		number, protocol, _ := strings.Cut(text, "/")
		_, _ = fmt.Sscan(number, &p.PublishedPort)
		p.Protocol = musterv1.PortConfig_Protocol(musterv1.PortConfig_Protocol_value[strings.ToUpper(protocol)])
		spec.Endpoint.Ports = append(spec.Endpoint.Ports, p)
	}
	return spec
}

func (f *fixture) tryUpdate(ref string, change func(*musterv1.ServiceSpec)) (*musterv1.Service, error) {
	f.t.Helper()
	s := f.get(ref)
	spec := proto.CloneOf(s.Spec)
	change(spec)
	resp, err := f.UpdateService(f.t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: spec})
	return resp.GetService(), err
}

func (f *fixture) updated(ref string, change func(*musterv1.ServiceSpec)) *musterv1.Service {
	f.t.Helper()
	s, err := f.tryUpdate(ref, change)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) record(id string) *recordv1.Service {
	f.t.Helper()
	e, ok := f.Tables.Services.Get(f.Snapshot(), id)
	if !ok {
		f.t.Fatalf("there is no service %s", id)
	}
	return e.Value
}

func (f *fixture) removeNetwork(ref string) error {
	_, err := f.RemoveNetwork(f.t.Context(), &musterv1.RemoveNetworkRequest{Network: ref})
	return err
}

// completed writes that the update of a service is through.
func (f *fixture) completed(id string) {
	r := f.record(id)
	f.update(func(tx *store.Tx) {
		f.Tables.Rollouts.Put(tx, id, &recordv1.Rollout{State: musterv1.UpdateStatus_COMPLETED, SpecVersion: r.SpecVersion, Attempt: r.Attempt})
	})
}

func TestNetworksOfServicesAreStoredByID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		front, back := a.createNetwork(&musterv1.NetworkSpec{Name: "front"}), a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
		spec := on("web", "FRONT", back.Id)
		spec.Task.Networks[0].Aliases = []string{"www", "my_web"}
		web := a.create(spec)
		if n := web.Spec.Task.Networks; n[0].Target != front.Id || n[1].Target != back.Id || !slices.Equal(n[0].Aliases, []string{"www", "my_web"}) {
			t.Errorf("networks: %v", n)
		}
		if spec.Task.Networks[0].Target != "FRONT" {
			t.Error("the request was changed")
		}
		// A name that means the same network is no change.
		again := a.updated("web", func(s *musterv1.ServiceSpec) { s.Task.Networks[1].Target = "back" })
		if again.SpecVersion != web.SpecVersion || again.Meta.Version != web.Meta.Version {
			t.Errorf("version %d, spec version %d after an update without a change", again.Meta.Version, again.SpecVersion)
		}
		if got := a.getNetwork("back").Status.ServiceIds; !slices.Equal(got, []string{web.Id}) {
			t.Errorf("services of the network: %v", got)
		}
	})
}

func TestNetworksOfServicesAreChecked(t *testing.T) {
	t.Parallel()
	const invalid, waiting = codes.InvalidArgument, codes.FailedPrecondition
	networks := func(list string) string { return `{"task":{"networks":[` + list + `]}}` }
	target := func(i int) []string { return []string{fmt.Sprintf("spec.task.networks[%d].target", i)} }
	for name, c := range map[string]struct {
		spec   string
		code   codes.Code
		fields []string
	}{
		"two":                    {networks(`{"target":"a","aliases":["x","y-1"]},{"target":"b"}`), codes.OK, nil},
		"host":                   {networks(`{"target":"host"}`), codes.OK, nil},
		"none":                   {networks(`{"target":"none"}`), codes.OK, nil},
		"bridge":                 {networks(`{"target":"local"}`), codes.OK, nil},
		"unknown":                {networks(`{"target":"a"},{"target":"nope"}`), waiting, target(1)},
		"no target":              {networks(`{}`), invalid, target(0)},
		"twice":                  {networks(`{"target":"a"},{"target":"a"}`), invalid, target(1)},
		"twice by another name":  {networks(`{"target":"a"},{"target":"A"}`), invalid, target(1)},
		"ingress":                {networks(`{"target":"mesh"}`), invalid, target(0)},
		"host and another":       {networks(`{"target":"a"},{"target":"host"}`), invalid, target(1)},
		"host with aliases":      {networks(`{"target":"host","aliases":["x"]}`), invalid, []string{"spec.task.networks[0].aliases"}},
		"driver options":         {networks(`{"target":"a","driverOptions":{"k":"v"}}`), codes.Unimplemented, []string{`spec.task.networks[0].driverOptions["k"]`}},
		"addresses":              {networks(`{"target":"a","addresses":["10.1.0.5"]}`), invalid, []string{"spec.task.networks[0].addresses"}},
		"alias with a dot":       {networks(`{"target":"a","aliases":["ok","x.y"]}`), invalid, []string{"spec.task.networks[0].aliases[1]"}},
		"alias too long":         {networks(`{"target":"a","aliases":["` + strings.Repeat("x", 64) + `"]}`), invalid, []string{"spec.task.networks[0].aliases[0]"}},
		"too many":               {networks(strings.TrimSuffix(strings.Repeat(`{"target":"a"},`, 33), ",")), invalid, []string{"spec.task.networks"}},
		"given subnets overlap":  {networks(`{"target":"a"},{"target":"like-a"}`), invalid, target(1)},
		"allocated one overlaps": {networks(`{"target":"auto"},{"target":"b"},{"target":"like-auto"}`), invalid, target(2)},
		"mesh port overlaps":     {`{"endpoint":{"ports":[{"targetPort":80}]},"task":{"networks":[{"target":"like-mesh"}]}}`, invalid, []string{"spec.endpoint.ports"}},
		"host and a port":        {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST"}]},"task":{"networks":[{"target":"host"}]}}`, invalid, []string{"spec.endpoint.ports[0].publishedPort"}},
		"host and a mesh port":   {`{"endpoint":{"ports":[{"targetPort":80,"publishedPort":80}]},"task":{"networks":[{"target":"host"}]}}`, invalid, []string{"spec.endpoint.ports[0].publishMode"}},
		"host and its port":      {`{"endpoint":{"ports":[{"targetPort":80,"publishedPort":80,"publishMode":"HOST"}]},"task":{"networks":[{"target":"host"}]}}`, codes.OK, nil},
		"none and a port":        {`{"endpoint":{"ports":[{"targetPort":80},{"targetPort":81,"publishedPort":81,"publishMode":"HOST"}]},"task":{"networks":[{"target":"none"}]}}`, invalid, []string{"spec.endpoint.ports[0]", "spec.endpoint.ports[1]"}},
		"port of the node":       {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST"}]},"task":{"networks":[{"target":"a"}]}}`, codes.OK, nil},
		"proxy protocol":         {`{"endpoint":{"ports":[{"targetPort":80,"proxyProtocol":true},{"targetPort":81,"proxyProtocol":true,"externalTraffic":"LOCAL"}]}}`, codes.OK, nil},
		"proxy protocol, UDP":    {`{"endpoint":{"ports":[{"targetPort":80,"protocol":"UDP","proxyProtocol":true}]}}`, invalid, []string{"spec.endpoint.ports[0].proxyProtocol"}},
		"proxy protocol, host":   {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST","proxyProtocol":true}]}}`, invalid, []string{"spec.endpoint.ports[0].proxyProtocol"}},
		"local on a node":        {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST","externalTraffic":"LOCAL"}]}}`, invalid, []string{"spec.endpoint.ports[0].externalTraffic"}},
		"dnsrr and a mesh port":  {`{"endpoint":{"mode":"DNSRR","ports":[{"targetPort":80},{"targetPort":81,"publishMode":"HOST"}]}}`, invalid, []string{"spec.endpoint.ports[0].publishMode"}},
		"dnsrr":                  {`{"endpoint":{"mode":"DNSRR","drainDelay":"600s"},"task":{"networks":[{"target":"a"}]}}`, codes.OK, nil},
		"drain delay":            {`{"endpoint":{"drainDelay":"600.001s"}}`, invalid, []string{"spec.endpoint.drainDelay"}},
		"negative drain delay":   {`{"endpoint":{"drainDelay":"-1s"}}`, invalid, []string{"spec.endpoint.drainDelay"}},
		"generic without":        {`{"task":{"generic":{"kind":"plain"},"networks":[{"target":"a"}]}}`, waiting, []string{"spec.task.networks[0]"}},
		"generic without mesh":   {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST"},{"targetPort":81}]},"task":{"generic":{"kind":"plain"}}}`, waiting, []string{"spec.endpoint.ports[1].publishMode"}},
		"generic on its host":    {`{"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST"}]},"task":{"generic":{"kind":"plain"}}}`, codes.OK, nil},
		"generic on the node's":  {`{"task":{"generic":{"kind":"process"},"networks":[{"target":"host"}]}}`, codes.OK, nil},
		"generic with none":      {`{"task":{"generic":{"kind":"process"},"networks":[{"target":"none"}]}}`, waiting, target(0)},
		"none by its executor":   {`{"task":{"generic":{"kind":"jail"},"networks":[{"target":"none"}]}}`, codes.OK, nil},
		"generic with":           {`{"task":{"generic":{"kind":"process"},"networks":[{"target":"a"}]}}`, codes.OK, nil},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			given := map[string]string{"a": "10.1.0.0/16", "like-a": "10.1.128.0/17", "b": "10.2.0.0/16", "like-auto": "10.64.0.0/24", "like-mesh": "10.3.0.0/16"}
			for _, name := range []string{"a", "like-a", "b", "like-auto", "like-mesh"} {
				a.createNetwork(&musterv1.NetworkSpec{Name: name, Ipam: &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{Subnet: given[name]}}}})
			}
			auto, mesh := a.createNetwork(&musterv1.NetworkSpec{Name: "auto"}), a.createNetwork(&musterv1.NetworkSpec{Name: "mesh", Ingress: true})
			a.createNetwork(&musterv1.NetworkSpec{Name: "local", Driver: &musterv1.Driver{Name: "bridge"}})
			a.update(func(tx *store.Tx) {
				a.Tables.NetworkStates.Put(tx, auto.Id, &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}})
				a.Tables.NetworkStates.Put(tx, mesh.Id, &recordv1.NetworkState{Subnets: []string{"10.3.0.0/16"}})
				executor := func(kind string, capabilities ...string) *musterv1.ExecutorDescription {
					return &musterv1.ExecutorDescription{Name: kind, Kinds: []string{kind}, Health: musterv1.ExecutorDescription_HEALTHY, Capabilities: capabilities}
				}
				a.Tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
					Executors: []*musterv1.ExecutorDescription{executor("container", "network.provides"), executor("process", "network.accepts"), executor("jail", "network.provides"), executor("plain")},
				}})
			})
			spec := &musterv1.ServiceSpec{}
			if err := protojson.Unmarshal([]byte(c.spec), spec); err != nil {
				t.Fatal(err)
			}
			if spec.Task == nil {
				spec.Task = &musterv1.TaskSpec{}
			}
			if spec.Task.Runtime == nil {
				spec.Task.Runtime = webSpec("").Task.Runtime
			}
			_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
			wantCode(t, err, c.code, c.fields...)
			if c.code == codes.InvalidArgument || c.code == codes.OK {
				// An update is checked alike.
				a.create(webSpec("other"))
				_, err := a.tryUpdate("other", func(s *musterv1.ServiceSpec) {
					if s.Endpoint = spec.Endpoint; s.Task.GetContainer() != nil {
						s.Task.Networks = spec.Task.Networks
					}
				})
				wantCode(t, err, c.code, c.fields...)
			}
		})
	}
}

// A service can go where no executor has spoken yet: nodes may come.
func TestNetworksAreAcceptedBeforeThereAreNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
		a.create(on("web", "back"))
		a.create(publishing("db", "5432"))
	})
}

func TestNetworkInUseIsNotRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		back := a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
		web := a.create(on("web", "back"))
		a.create(on("api", "back"))
		err := a.removeNetwork("back")
		wantCode(t, err, codes.FailedPrecondition)
		if want := `network "back" is used by services (api, web)`; !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %s in it", err, want)
		}
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "api"}); err != nil {
			t.Fatal(err)
		}
		// Tasks are on the network until the update that leaves it is through.
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Task.Networks = nil })
		wantCode(t, a.removeNetwork("back"), codes.FailedPrecondition)
		a.completed(web.Id)
		if err := a.removeNetwork("back"); err != nil {
			t.Fatal(err)
		}
		// What the service was before names a network that is gone.
		_, err = a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
		wantCode(t, err, codes.FailedPrecondition, "spec.task.networks[0].target")
		if !strings.Contains(err.Error(), back.Id) {
			t.Errorf("error %v does not name the network", err)
		}
		// Its name is free.
		a.createNetwork(&musterv1.NetworkSpec{Name: "back"})
	})
}

func TestIngressNetworkIsCreatedWithTheFirstMeshPort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		host := a.create(publishing("host", "80@host"))
		if list, err := a.ListNetworks(t.Context(), &musterv1.ListNetworksRequest{}); err != nil || len(list.Networks) != 0 || a.record(host.Id).IngressNetworkId != "" {
			t.Fatalf("networks for a port of the node: %v, %v", list, err)
		}
		web := a.create(publishing("web", "8080"))
		mesh := a.getNetwork("ingress")
		if !mesh.Spec.Ingress || a.record(web.Id).IngressNetworkId != mesh.Id || !slices.Equal(mesh.Status.ServiceIds, []string{web.Id}) {
			t.Fatalf("ingress network: %v of %v", mesh, a.record(web.Id))
		}
		// An update joins it too, and leaves it when the next one is through.
		db := a.create(webSpec("db"))
		a.updated("db", func(s *musterv1.ServiceSpec) { s.Endpoint = publishing("", "5432").Endpoint })
		if got := a.record(db.Id).IngressNetworkId; got != mesh.Id {
			t.Errorf("ingress network of the updated service: %q, want %q", got, mesh.Id)
		}
		for _, name := range []string{"web", "db"} {
			a.updated(name, func(s *musterv1.ServiceSpec) { s.Endpoint = nil })
		}
		if got := a.record(db.Id).IngressNetworkId; got != mesh.Id {
			t.Errorf("a service whose tasks are still on the ingress network has %q", got)
		}
		wantCode(t, a.removeNetwork("ingress"), codes.FailedPrecondition)
		a.completed(web.Id)
		a.completed(db.Id)
		if err := a.removeNetwork("ingress"); err != nil {
			t.Fatal(err)
		}
		// A rollback needs another one.
		if _, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		if again := a.getNetwork("ingress"); again.Id == mesh.Id || a.record(web.Id).IngressNetworkId != again.Id {
			t.Errorf("after the rollback: %v", a.record(web.Id))
		}
		a.updated("db", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "db:2" })
		if got := a.record(db.Id).IngressNetworkId; got != "" {
			t.Errorf("a service that publishes nothing has ingress network %q", got)
		}
	})
}

func TestIngressNetworkOfAnotherNameIsUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		mesh := a.createNetwork(&musterv1.NetworkSpec{Name: "mesh", Ingress: true})
		if got := a.record(a.create(publishing("web", "80")).Id).IngressNetworkId; got != mesh.Id {
			t.Errorf("ingress network %q, want %q", got, mesh.Id)
		}
	})
}

func TestPublishedPortConflictsNameTheService(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		has, wants string
		refused    bool
	}{
		"the same port":             {"80/tcp", "80/tcp", true},
		"the default protocol":      {"80", "80/tcp", true},
		"another protocol":          {"80/tcp", "80/udp", false},
		"another port":              {"80", "81", false},
		"mesh against node":         {"80@host", "80", true},
		"node against mesh":         {"80", "80@host", true},
		"node against node":         {"80@host", "80@host", false},
		"a port that was chosen":    {"0", "30007", true},
		"another than was chosen":   {"0", "30008", false},
		"node against one chosen":   {"0", "30007@host", true},
		"ports without a number":    {"0", "0", false},
		"a port that may be back":   {"80 90", "80", true},
		"the port that follows":     {"80 90", "90", true},
		"a port that has been left": {"80 90 done", "80", false},
		"a port that is free":       {"80 90 done", "91", false},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			steps := strings.Fields(c.has)
			web := a.create(publishing("web", steps[0]))
			if len(steps) > 1 {
				a.updated("web", func(s *musterv1.ServiceSpec) { s.Endpoint = publishing("", steps[1]).Endpoint })
			}
			if len(steps) > 2 {
				a.completed(web.Id)
			}
			if steps[0] == "0" {
				a.update(func(tx *store.Tx) {
					a.Tables.Endpoints.Put(tx, web.Id, &recordv1.Endpoint{Endpoint: &musterv1.Endpoint{Ports: []*musterv1.PortConfig{{TargetPort: 8080, PublishedPort: 30007}}}})
				})
			}
			a.create(webSpec("other"))
			check := func(err error) {
				t.Helper()
				if !c.refused {
					wantCode(t, err, codes.OK)
					return
				}
				wantCode(t, err, codes.FailedPrecondition, "spec.endpoint.ports[0].publishedPort")
				if !strings.Contains(err.Error(), `is published by service "web"`) {
					t.Errorf("error %v does not name the service", err)
				}
			}
			_, err := a.tryUpdate("other", func(s *musterv1.ServiceSpec) { s.Endpoint = publishing("", c.wants).Endpoint })
			check(err)
			if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "other"}); err != nil {
				t.Fatal(err)
			}
			_, err = a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: publishing("db", c.wants)})
			check(err)
			// The service itself keeps its ports.
			if _, err := a.tryUpdate("web", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:2" }); err != nil {
				t.Errorf("update of the service that has the port: %v", err)
			}
		})
	}
}

// A rollback does not take a port back that another service has got meanwhile.
func TestRollbackToTakenPortIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		web := a.create(publishing("web", "80"))
		a.updated("web", func(s *musterv1.ServiceSpec) { s.Endpoint = publishing("", "81").Endpoint })
		a.completed(web.Id)
		a.create(publishing("db", "80"))
		_, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
		wantCode(t, err, codes.FailedPrecondition, "spec.endpoint.ports[0].publishedPort")
	})
}

func TestTaskShowsItsAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		web := a.create(webSpec("web"))
		place := []*musterv1.NetworkAttachment{{NetworkId: "n", Addresses: []string{"10.64.16.2"}, Aliases: []string{"www"}}}
		a.update(func(tx *store.Tx) {
			key := state.NodeTaskKey("node", web.Id, "t1")
			a.Tables.Tasks.Put(tx, state.TaskKey(web.Id, 1, "", "t1"), &recordv1.Task{Slot: 1, SpecDigest: a.record(web.Id).TaskDigest, DesiredState: musterv1.TaskState_RUNNING})
			a.Tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: 1})
			a.Tables.Statuses.Put(tx, key, &recordv1.Status{State: musterv1.TaskState_RUNNING, Networks: place})
			a.Tables.Endpoints.Put(tx, web.Id, &recordv1.Endpoint{Error: "all addresses of network n are taken"})
		})
		got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: "t1"})
		if err != nil || len(got.Task.Networks) != 1 || !proto.Equal(got.Task.Networks[0], place[0]) {
			t.Errorf("task: %v, %v", got, err)
		}
		if s := a.get("web"); s.Status.PendingReason != "all addresses of network n are taken" {
			t.Errorf("status: %v", s.Status)
		}
	})
}
