package networksdk_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// recorder is a plugin that keeps the requests it gets, and answers as its fields say.
type recorder struct {
	mu       sync.Mutex
	applied  []*networksdk.ApplyRequest
	attached []*networksdk.AttachRequest
	failed   map[string]error
	err      error
	// block is waited for in Apply, Attach and Detach, whatever becomes of the caller.
	block   chan struct{}
	running int
	most    int
}

func (r *recorder) begin() {
	r.mu.Lock()
	r.running++
	r.most = max(r.most, r.running)
	r.mu.Unlock()
	if r.block != nil {
		<-r.block
	}
}

func (r *recorder) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	return r.err
}

func (r *recorder) Describe(context.Context) (*networksdk.Description, error) {
	return &networksdk.Description{
		Name: "recorder", Version: "1.2.3", Message: "no kernel", Drivers: []string{"tape"},
		Capabilities: []string{"zeal"}, Missing: []string{"sctp: no kernel module"},
	}, r.err
}

func (r *recorder) Apply(_ context.Context, request *networksdk.ApplyRequest) (map[string]error, error) {
	r.begin()
	r.mu.Lock()
	r.applied = append(r.applied, proto.CloneOf(request))
	r.mu.Unlock()
	return r.failed, r.end()
}

func (r *recorder) Attach(_ context.Context, request *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	r.begin()
	r.mu.Lock()
	r.attached = append(r.attached, proto.CloneOf(request))
	r.mu.Unlock()
	return &networksdk.AttachResponse{}, r.end()
}

func (r *recorder) Detach(context.Context, string) error {
	r.begin()
	return r.end()
}

func (r *recorder) List(context.Context, string) ([]string, error) { return []string{"t1"}, r.err }

type counter struct{ recorder }

func (*counter) Stats(context.Context) (*networksdk.Stats, error) {
	return &networksdk.Stats{Networks: 3}, nil
}

// byHand makes the test program a plugin.
const byHand = "NETWORKSDK_TEST_BY_HAND"

func TestMain(m *testing.M) {
	if os.Getenv(byHand) != "" {
		networksdk.Serve(&counter{})
		return
	}
	os.Exit(m.Run())
}

// request returns a complete request in which everything is valid.
func request() *networkv1.ApplyRequest {
	return &networkv1.ApplyRequest{
		Complete: true,
		Node:     &networkv1.Node{Id: "node1", DataPathAddress: "192.0.2.1", DataPathPort: 4789},
		Networks: []*networkv1.Network{{
			Id: "net1", Name: "front", Driver: "tape", Vni: 4096, Mtu: 1450,
			Subnets: []string{"10.64.0.0/16", "fd00::/64"}, Blocks: []string{"10.64.16.0/26", "fd00::1000/122"},
			NodeAddresses: []string{"10.64.16.0", "fd00::1000"},
		}},
		Peers: []*networkv1.Peer{{
			NetworkId: "net1", NodeId: "node2", DataPathAddress: "192.0.2.2", DataPathPort: 4789, Blocks: []string{"10.64.16.64/26"},
		}},
		Services: []*networkv1.Service{{
			NetworkId: "net1", Id: "svc1", Name: "web", Mode: networksdk.ModeVIP, VirtualIps: []string{"10.64.0.2"}, Aliases: []string{"www"},
			Ports: []*musterv1.PortConfig{{
				Name: "http", Protocol: musterv1.PortConfig_TCP, TargetPort: 80, PublishedPort: 8080,
				PublishMode: musterv1.PortConfig_INGRESS, ExternalTraffic: musterv1.PortConfig_CLUSTER,
			}},
		}},
		Backends: []*networkv1.Backends{{
			NetworkId: "net1", ServiceId: "svc1", Complete: true,
			Backends: []*networkv1.Backend{{TaskId: "t1", Addresses: []string{"10.64.16.1"}, NodeId: "node1", Slot: 1}},
		}},
	}
}

func attach() *networkv1.AttachRequest {
	return &networkv1.AttachRequest{
		TaskId: "t1", TaskName: "web.1.t1", ServiceId: "svc1", ServiceName: "web", Namespace: "/run/netns/t1",
		Attachments: []*networkv1.Attachment{{NetworkId: "net1", Addresses: []string{"10.64.16.1"}, Aliases: []string{"one"}}},
		Ports: []*musterv1.PortConfig{{
			Protocol: musterv1.PortConfig_UDP, TargetPort: 53, PublishedPort: 5353,
			PublishMode: musterv1.PortConfig_HOST, ExternalTraffic: musterv1.PortConfig_CLUSTER,
		}},
	}
}

// wireError reads an error as a worker does.
func wireError(t *testing.T, err error) *wire.Error {
	t.Helper()
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		t.Fatalf("error = %v, want one", err)
	}
	return e
}

func TestValidRequestsPassUnchanged(t *testing.T) {
	t.Parallel()
	plugin := &recorder{}
	server := networksdk.NewServer(plugin)
	response, err := server.Apply(t.Context(), request())
	if err != nil || len(response.GetErrors()) > 0 {
		t.Fatalf("Apply = %v, %v", response, err)
	}
	if _, err := server.Attach(t.Context(), attach()); err != nil {
		t.Fatalf("Attach: %v", err)
	}
	if diff := cmp.Diff([]*networkv1.ApplyRequest{request()}, plugin.applied, protocmp.Transform()); diff != "" {
		t.Errorf("Apply (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]*networkv1.AttachRequest{attach()}, plugin.attached, protocmp.Transform()); diff != "" {
		t.Errorf("Attach (-want +got):\n%s", diff)
	}
}

// maker is a recorder that makes namespaces.
type maker struct{ recorder }

func (*maker) MakesNamespaces() {}

func TestPluginMayMakeTheNamespaceOfATask(t *testing.T) {
	t.Parallel()
	plugin := &maker{}
	want := attach()
	want.Namespace = ""
	server := networksdk.NewServer(plugin)
	if _, err := server.Apply(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Attach(t.Context(), want); err != nil || len(plugin.attached) != 1 {
		t.Fatalf("Attach: %v, passed on %d times", err, len(plugin.attached))
	}
}

func TestApplyFillsInDefaults(t *testing.T) {
	t.Parallel()
	plugin := &recorder{}
	bare := request()
	bare.Services[0].Mode = 0
	bare.Services[0].Ports[0].Protocol, bare.Services[0].Ports[0].PublishMode, bare.Services[0].Ports[0].ExternalTraffic = 0, 0, 0
	if _, err := networksdk.NewServer(plugin).Apply(t.Context(), bare); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(request(), plugin.applied[0], protocmp.Transform()); diff != "" {
		t.Errorf("request with defaults (-want +got):\n%s", diff)
	}
}

func TestApplyLeavesOutInvalidParts(t *testing.T) {
	t.Parallel()
	empty := request()
	empty.Networks, empty.Peers, empty.Services, empty.Backends = nil, nil, nil, nil
	without := func(remove func(*networkv1.ApplyRequest)) *networkv1.ApplyRequest {
		r := request()
		remove(r)
		return r
	}
	noPeer := without(func(r *networkv1.ApplyRequest) { r.Peers = nil })
	noService := without(func(r *networkv1.ApplyRequest) { r.Services, r.Backends = nil, nil })
	noBackend := without(func(r *networkv1.ApplyRequest) { r.Backends[0].Backends = nil })
	noBackends := without(func(r *networkv1.ApplyRequest) { r.Backends = nil })
	for name, test := range map[string]struct {
		spoil func(*networkv1.ApplyRequest)
		want  *networkv1.ApplyRequest
		// fault is the message for the network, or the begin of it.
		fault string
	}{
		"network id":           {func(r *networkv1.ApplyRequest) { r.Networks[0].Id = "../x" }, empty, `id "../x": want`},
		"network name":         {func(r *networkv1.ApplyRequest) { r.Networks[0].Name = "" }, empty, "name is empty"},
		"driver":               {func(r *networkv1.ApplyRequest) { r.Networks[0].Driver = "" }, empty, "driver is empty"},
		"vni":                  {func(r *networkv1.ApplyRequest) { r.Networks[0].Vni = 1 << 24 }, empty, "vni is 16777216"},
		"mtu":                  {func(r *networkv1.ApplyRequest) { r.Networks[0].Mtu = 67 }, empty, "mtu is 67"},
		"subnet":               {func(r *networkv1.ApplyRequest) { r.Networks[0].Subnets[0] = "10.64.0.1/16" }, empty, `subnets[0] "10.64.0.1/16"`},
		"two subnets of IPv4":  {func(r *networkv1.ApplyRequest) { r.Networks[0].Subnets[1] = "10.65.0.0/16" }, empty, "subnets: want at most one"},
		"block":                {func(r *networkv1.ApplyRequest) { r.Networks[0].Blocks[0] = "10.64.16.0" }, empty, `blocks[0] "10.64.16.0"`},
		"block elsewhere":      {func(r *networkv1.ApplyRequest) { r.Networks[0].Blocks[0] = "10.65.16.0/26" }, empty, "blocks[0] 10.65.16.0/26 is outside"},
		"node address":         {func(r *networkv1.ApplyRequest) { r.Networks[0].NodeAddresses[0] = "10.64.16.0/26" }, empty, "node_addresses[0]"},
		"two of IPv4":          {func(r *networkv1.ApplyRequest) { r.Networks[0].NodeAddresses[1] = "10.64.16.1" }, empty, `node_addresses[1] "10.64.16.1": want at most one`},
		"node address outside": {func(r *networkv1.ApplyRequest) { r.Networks[0].NodeAddresses[0] = "10.64.0.1" }, empty, "node_addresses[0]"},
		"network twice": {func(r *networkv1.ApplyRequest) {
			r.Networks = append(r.Networks, proto.CloneOf(r.Networks[0]))
		}, request(), "the network is named twice"},
		"peer":            {func(r *networkv1.ApplyRequest) { r.Peers[0].NodeId = "" }, noPeer, `peer "": node_id is empty`},
		"peer address":    {func(r *networkv1.ApplyRequest) { r.Peers[0].DataPathAddress = "host" }, noPeer, `peer "node2": data_path_address "host"`},
		"peer zone":       {func(r *networkv1.ApplyRequest) { r.Peers[0].DataPathAddress = "fe80::1%eth0" }, noPeer, `peer "node2": data_path_address`},
		"peer in IPv6":    {func(r *networkv1.ApplyRequest) { r.Peers[0].DataPathAddress = "::ffff:1.2.3.4" }, noPeer, `peer "node2": data_path_address`},
		"peer port":       {func(r *networkv1.ApplyRequest) { r.Peers[0].DataPathPort = 65536 }, noPeer, `peer "node2": data_path_port is 65536`},
		"encrypted port":  {func(r *networkv1.ApplyRequest) { r.Peers[0].EncryptedPort = 65536 }, noPeer, `peer "node2": encrypted_port is 65536`},
		"peer block":      {func(r *networkv1.ApplyRequest) { r.Peers[0].Blocks[0] = "x" }, noPeer, `peer "node2": blocks[0] "x"`},
		"service id":      {func(r *networkv1.ApplyRequest) { r.Services[0].Id = "" }, noService, `service "web": id is empty`},
		"service name":    {func(r *networkv1.ApplyRequest) { r.Services[0].Name = "a b" }, noService, `service "a b": name "a b" holds white space`},
		"alias":           {func(r *networkv1.ApplyRequest) { r.Services[0].Aliases[0] = "a\nb" }, noService, `service "web": aliases[0] "a\nb" holds`},
		"long alias":      {func(r *networkv1.ApplyRequest) { r.Services[0].Aliases[0] = strings.Repeat("a", 254) }, noService, `service "web": aliases[0] has 254 bytes`},
		"mode":            {func(r *networkv1.ApplyRequest) { r.Services[0].Mode = 99 }, noService, `service "web": mode is 99`},
		"virtual IP":      {func(r *networkv1.ApplyRequest) { r.Services[0].VirtualIps[0] = "x" }, noService, `service "web": virtual_ips[0] "x"`},
		"virtual outside": {func(r *networkv1.ApplyRequest) { r.Services[0].VirtualIps[0] = "8.8.8.8" }, noService, `service "web": virtual_ips[0] "8.8.8.8" is outside`},
		"protocol":        {func(r *networkv1.ApplyRequest) { r.Services[0].Ports[0].Protocol = 9 }, noService, `service "web": ports[0].protocol is 9`},
		"publish mode":    {func(r *networkv1.ApplyRequest) { r.Services[0].Ports[0].PublishMode = 9 }, noService, `service "web": ports[0].publish_mode is 9`},
		"external":        {func(r *networkv1.ApplyRequest) { r.Services[0].Ports[0].ExternalTraffic = 9 }, noService, `service "web": ports[0].external_traffic is 9`},
		"target port":     {func(r *networkv1.ApplyRequest) { r.Services[0].Ports[0].TargetPort = 0 }, noService, `service "web": ports[0].target_port is 0`},
		"published port":  {func(r *networkv1.ApplyRequest) { r.Services[0].Ports[0].PublishedPort = 65536 }, noService, `service "web": ports[0].published_port is 65536`},
		"backends of unknown service": {
			func(r *networkv1.ApplyRequest) { r.Backends[0].ServiceId = "x" }, noBackends, `backends of service "x": the service has not been applied`,
		},
		"backend id":      {func(r *networkv1.ApplyRequest) { r.Backends[0].Backends[0].TaskId = "a/b" }, noBackend, `backend "a/b": task_id`},
		"backend node":    {func(r *networkv1.ApplyRequest) { r.Backends[0].Backends[0].NodeId = "" }, noBackend, `backend "t1": node_id is empty`},
		"no address":      {func(r *networkv1.ApplyRequest) { r.Backends[0].Backends[0].Addresses = nil }, noBackend, `backend "t1": addresses is empty`},
		"backend address": {func(r *networkv1.ApplyRequest) { r.Backends[0].Backends[0].Addresses[0] = "" }, noBackend, `backend "t1": addresses[0] ""`},
		"backend outside": {func(r *networkv1.ApplyRequest) { r.Backends[0].Backends[0].Addresses[0] = "8.8.8.8" }, noBackend, `backend "t1": addresses[0] "8.8.8.8" is outside`},
		"removed ids": {func(r *networkv1.ApplyRequest) {
			r.RemovedNetworks = []string{"", "/"}
			r.RemovedPeers = []*networkv1.PeerRef{{NetworkId: "net1"}, nil}
			r.RemovedServices = []*networkv1.ServiceRef{{ServiceId: "svc1"}, nil}
			r.Backends[0].Removed = []string{"", "a b"}
		}, request(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plugin := &recorder{}
			spoiled := request()
			test.spoil(spoiled)
			id := spoiled.Networks[0].Id
			response, err := networksdk.NewServer(plugin).Apply(t.Context(), spoiled)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, plugin.applied[0], protocmp.Transform()); diff != "" {
				t.Errorf("what the plugin got (-want +got):\n%s", diff)
			}
			var fault string
			// What is wrong with a part of a network keeps no task from it.
			wrong := response.GetErrors()
			if len(test.want.Networks) > 0 && !strings.HasPrefix(test.fault, "the network") {
				wrong = response.GetWarnings()
				if errs := response.GetErrors(); len(errs) > 0 {
					t.Errorf("errors = %v, want none", errs)
				}
			}
			for _, e := range wrong {
				if e.GetNetworkId() == id {
					fault = e.GetMessage()
				}
			}
			if (test.fault == "") != (fault == "") || !strings.HasPrefix(fault, test.fault) {
				t.Errorf("fault = %q, want %q", fault, test.fault)
			}
		})
	}
}

func TestApplyWithoutNodeIsRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*networkv1.ApplyRequest){
		"no node": func(r *networkv1.ApplyRequest) { r.Node = nil },
		"id":      func(r *networkv1.ApplyRequest) { r.Node.Id = "" },
		"address": func(r *networkv1.ApplyRequest) { r.Node.DataPathAddress = "x" },
		"port":    func(r *networkv1.ApplyRequest) { r.Node.DataPathPort = 0 },
	} {
		plugin := &recorder{}
		r := request()
		spoil(r)
		_, err := networksdk.NewServer(plugin).Apply(t.Context(), r)
		if e := wireError(t, err); e.Code != codes.InvalidArgument || e.Temporary || len(plugin.applied) > 0 {
			t.Errorf("%s: %+v after %d calls of the plugin, want INVALID_ARGUMENT", name, e, len(plugin.applied))
		}
	}
}

func TestInvalidNetworkStaysAsItWas(t *testing.T) {
	t.Parallel()
	for _, complete := range []bool{true, false} {
		plugin := &recorder{}
		server := networksdk.NewServer(plugin)
		if _, err := server.Apply(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		worse := request()
		worse.Complete = complete
		worse.Networks[0].Subnets = []string{"x"}
		response, err := server.Apply(t.Context(), worse)
		if err != nil || len(response.GetErrors()) != 1 {
			t.Fatalf("Apply = %v, %v, want one error", response, err)
		}
		want := request()
		want.Complete = complete
		if diff := cmp.Diff(want, plugin.applied[1], protocmp.Transform()); diff != "" {
			t.Errorf("complete = %t: what the plugin got (-want +got):\n%s", complete, diff)
		}
	}
}

func TestChangesKnowWhatWasAppliedBefore(t *testing.T) {
	t.Parallel()
	plugin := &recorder{}
	server := networksdk.NewServer(plugin)
	if _, err := server.Apply(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	change := &networkv1.ApplyRequest{Node: request().Node, Peers: request().Peers, Backends: request().Backends}
	change.Backends[0].Complete = false
	for step, test := range []struct {
		change   func(*networkv1.ApplyRequest)
		peers    int
		of       int
		warnings int
	}{
		{func(*networkv1.ApplyRequest) {}, 1, 1, 0},
		// The network in a new form keeps its services.
		{func(r *networkv1.ApplyRequest) { r.Networks = request().Networks }, 1, 1, 0},
		{func(r *networkv1.ApplyRequest) {
			r.RemovedServices = []*networkv1.ServiceRef{{NetworkId: "net1", ServiceId: "svc1"}}
		}, 1, 0, 1},
		{func(*networkv1.ApplyRequest) {}, 1, 0, 1},
		{func(r *networkv1.ApplyRequest) { r.Services = request().Services }, 1, 1, 0},
		{func(r *networkv1.ApplyRequest) { r.RemovedNetworks = []string{"net1"} }, 0, 0, 1},
		{func(*networkv1.ApplyRequest) {}, 0, 0, 1},
	} {
		r := proto.CloneOf(change)
		test.change(r)
		response, err := server.Apply(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		got := plugin.applied[len(plugin.applied)-1]
		if len(got.GetPeers()) != test.peers || len(got.GetBackends()) != test.of || len(response.GetWarnings()) != test.warnings || len(response.GetErrors()) > 0 {
			t.Errorf("step %d: the plugin got %v, response %v", step, got, response)
		}
	}
	if _, err := server.Attach(t.Context(), attach()); wireError(t, err).Code != codes.FailedPrecondition {
		t.Errorf("Attach to a removed network = %v, want FAILED_PRECONDITION", err)
	}
}

func TestCallsBeforeCompleteApplyAreRefusedForNow(t *testing.T) {
	t.Parallel()
	plugin := &recorder{err: errors.New("no kernel")}
	server := networksdk.NewServer(plugin)
	change := request()
	change.Complete = false
	for _, when := range []string{"before any Apply", "after one that failed"} {
		_, err := server.Apply(t.Context(), proto.CloneOf(change))
		if e := wireError(t, err); e.Code != codes.FailedPrecondition || !e.Temporary {
			t.Errorf("changes %s = %+v, want a temporary FAILED_PRECONDITION", when, e)
		}
		_, err = server.Attach(t.Context(), attach())
		if e := wireError(t, err); e.Code != codes.FailedPrecondition || !e.Temporary {
			t.Errorf("Attach %s = %+v, want a temporary FAILED_PRECONDITION", when, e)
		}
		if _, err := server.Apply(t.Context(), request()); wireError(t, err).Error() != "no kernel" {
			t.Errorf("Apply = %v, want the plugin's error", err)
		}
	}
	if len(plugin.attached) > 0 || len(plugin.applied) != 2 {
		t.Errorf("the plugin got %d calls of Apply and %d of Attach, want 2 and 0", len(plugin.applied), len(plugin.attached))
	}
}

func TestInvalidAttachIsRefused(t *testing.T) {
	t.Parallel()
	plugin := &recorder{}
	server := networksdk.NewServer(plugin)
	if _, err := server.Apply(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*networkv1.AttachRequest){
		"task_id is empty":                               func(r *networkv1.AttachRequest) { r.TaskId = "" },
		"task_name is empty":                             func(r *networkv1.AttachRequest) { r.TaskName = "" },
		"service_id":                                     func(r *networkv1.AttachRequest) { r.ServiceId = "." },
		"service_name":                                   func(r *networkv1.AttachRequest) { r.ServiceName = "\x00" },
		"namespace is empty":                             func(r *networkv1.AttachRequest) { r.Namespace = "" },
		`namespace "netns/x"`:                            func(r *networkv1.AttachRequest) { r.Namespace = "netns/x" },
		`namespace "/run/../etc"`:                        func(r *networkv1.AttachRequest) { r.Namespace = "/run/../etc" },
		"attachments is empty":                           func(r *networkv1.AttachRequest) { r.Attachments = nil },
		"attachments[0].network_id is empty":             func(r *networkv1.AttachRequest) { r.Attachments[0].NetworkId = "" },
		`attachments[1].network_id "net1" is named twi`:  func(r *networkv1.AttachRequest) { r.Attachments = append(r.Attachments, r.Attachments[0]) },
		`attachments[0].addresses[0] "x"`:                func(r *networkv1.AttachRequest) { r.Attachments[0].Addresses[0] = "x" },
		`attachments[0].addresses[0] "8.8.8.8" is outsi`: func(r *networkv1.AttachRequest) { r.Attachments[0].Addresses[0] = "8.8.8.8" },
		"attachments[0].aliases[0] is empty":             func(r *networkv1.AttachRequest) { r.Attachments[0].Aliases[0] = "" },
		"ports[0].target_port":                           func(r *networkv1.AttachRequest) { r.Ports[0].TargetPort = 0 },
		"ports[0]: want publish_mode HOST":               func(r *networkv1.AttachRequest) { r.Ports[0].PublishedPort = 0 },
	} {
		r := attach()
		spoil(r)
		_, err := server.Attach(t.Context(), r)
		if e := wireError(t, err); e.Code != codes.InvalidArgument || e.Temporary || !strings.HasPrefix(e.Error(), want) {
			t.Errorf("Attach = %s, %v, want INVALID_ARGUMENT, %s", e.Code, e, want)
		}
	}
	if _, err := server.Detach(t.Context(), &networkv1.DetachRequest{}); wireError(t, err).Code != codes.InvalidArgument {
		t.Errorf("Detach of no task = %v", err)
	}
	if _, err := server.List(t.Context(), &networkv1.ListRequest{}); wireError(t, err).Code != codes.InvalidArgument {
		t.Errorf("List of no node = %v", err)
	}
	if len(plugin.attached) > 0 {
		t.Errorf("the plugin got %v", plugin.attached)
	}
}

func TestErrorsOfPluginKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	plugin := &recorder{failed: map[string]error{"net1": errors.New("no \xff room"), "net2": errors.New("none")}}
	server := networksdk.NewServer(plugin)
	r := request()
	r.Peers[0].NodeId = ""
	response, err := server.Apply(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := &networkv1.ApplyResponse{
		Errors:   []*networkv1.NetworkError{{NetworkId: "net1", Message: "no \uFFFD room"}, {NetworkId: "net2", Message: "none"}},
		Warnings: []*networkv1.NetworkError{{NetworkId: "net1", Message: `peer "": node_id is empty`}},
	}
	if diff := cmp.Diff(want, response, protocmp.Transform()); diff != "" {
		t.Errorf("response of Apply (-want +got):\n%s", diff)
	}
	calls := func() map[string]error {
		results := map[string]error{}
		_, results["Describe"] = server.Describe(t.Context(), nil)
		_, results["Apply"] = server.Apply(t.Context(), request())
		_, results["Attach"] = server.Attach(t.Context(), attach())
		_, results["Detach"] = server.Detach(t.Context(), &networkv1.DetachRequest{TaskId: "t1"})
		_, results["List"] = server.List(t.Context(), &networkv1.ListRequest{NodeId: "node1"})
		return results
	}
	plugin.err = errors.New("plain")
	for call, err := range calls() {
		if e := wireError(t, err); e.Temporary == (call == "Attach") || e.Error() != "plain" {
			t.Errorf("%s = %+v, want temporary = %t", call, e, call != "Attach")
		}
	}
	plugin.err = sdk.NodeFault(errors.New("no vxlan"))
	for call, err := range calls() {
		if e := wireError(t, err); e.Blame != wire.BlameNode {
			t.Errorf("%s = %+v, want the node to be blamed", call, e)
		}
	}
	plugin.err = sdk.NotFound("t1")
	if err := calls()["Detach"]; err != nil {
		t.Errorf("Detach of an unknown task = %v, want success", err)
	}
}

// A caller that has given up does not let the next call for the same task in
// before the plugin has returned.
func TestCallsOfOneTaskComeOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		plugin := &recorder{}
		server := networksdk.NewServer(plugin)
		if _, err := server.Apply(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		plugin.block = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		errs := make([]error, 4)
		wg.Go(func() { _, errs[0] = server.Attach(t.Context(), attach()) })
		synctest.Wait()
		wg.Go(func() { _, errs[1] = server.Detach(ctx, &networkv1.DetachRequest{TaskId: "t1"}) })
		wg.Go(func() { _, errs[2] = server.Detach(t.Context(), &networkv1.DetachRequest{TaskId: "t1"}) })
		other := attach()
		other.TaskId = "t2"
		wg.Go(func() { _, errs[3] = server.Attach(t.Context(), other) })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if plugin.most != 2 {
			t.Errorf("%d calls ran at once, want one for each of two tasks", plugin.most)
		}
		close(plugin.block)
		wg.Wait()
		if code := wireError(t, errs[1]).Code; code != codes.DeadlineExceeded {
			t.Errorf("call that was given up = %v", errs[1])
		}
		for _, i := range []int{0, 2, 3} {
			if errs[i] != nil {
				t.Errorf("call %d: %v", i, errs[i])
			}
		}
	})
}

func TestCallsOfApplyComeOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		plugin := &recorder{block: make(chan struct{})}
		server := networksdk.NewServer(plugin)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := server.Apply(t.Context(), request()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if plugin.most != 1 {
			t.Errorf("%d calls of Apply ran at once, want 1", plugin.most)
		}
		close(plugin.block)
		wg.Wait()
		if plugin.most != 1 || len(plugin.applied) != 3 {
			t.Errorf("%d calls of Apply, %d at once, want 3 and 1", len(plugin.applied), plugin.most)
		}
	})
}

func TestStatsAreCapability(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		plugin networksdk.Plugin
		want   []string
		code   codes.Code
	}{
		"with":    {&counter{}, []string{"stats", "zeal"}, codes.OK},
		"without": {&recorder{}, []string{"zeal"}, codes.Unimplemented},
	} {
		server := networksdk.NewServer(test.plugin)
		said, err := server.Describe(t.Context(), nil)
		if diff := cmp.Diff(test.want, said.GetCapabilities()); diff != "" || err != nil {
			t.Errorf("%s: capabilities, %v (-want +got):\n%s", name, err, diff)
		}
		stats, err := server.Stats(t.Context(), nil)
		if test.code == codes.OK {
			if err != nil || stats.GetNetworks() != 3 {
				t.Errorf("%s: Stats = %v, %v", name, stats, err)
			}
		} else if wireError(t, err).Code != test.code {
			t.Errorf("%s: Stats = %v, want %s", name, err, test.code)
		}
	}
}

func TestStartedByHand(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), byHand+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the plugin started by hand ended with %v, want exit code 1", err)
	}
	for _, want := range []string{"network plugin of Muster", "recorder", "1.2.3", "tape", "does not work here: no kernel", "stats, zeal", "sctp: no kernel module"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the plugin started by hand does not say %q:\n%s", want, out)
		}
	}
}

// checker is a plugin that fails a test if it gets what the SDK promises to keep away.
type checker struct {
	recorder
	t testing.TB
	// networks are those that were applied.
	networks map[string]bool
}

func (c *checker) Apply(ctx context.Context, r *networksdk.ApplyRequest) (map[string]error, error) {
	if r.GetComplete() {
		c.networks = map[string]bool{}
	}
	for _, n := range r.GetNetworks() {
		c.networks[n.GetId()] = true
		for _, text := range slices.Concat(n.GetSubnets(), n.GetBlocks()) {
			if p := netip.MustParsePrefix(text); p != p.Masked() {
				c.t.Errorf("prefix %s", p)
			}
		}
		c.addresses(n.GetNodeAddresses())
	}
	for _, id := range r.GetRemovedNetworks() {
		delete(c.networks, id)
	}
	for _, p := range r.GetPeers() {
		c.known(p.GetNetworkId())
		c.ids(p.GetNodeId())
		c.addresses([]string{p.GetDataPathAddress()})
		for _, text := range p.GetBlocks() {
			netip.MustParsePrefix(text)
		}
	}
	for _, s := range r.GetServices() {
		c.known(s.GetNetworkId())
		c.ids(s.GetId())
		c.addresses(s.GetVirtualIps())
		if s.GetMode() != networksdk.ModeVIP && s.GetMode() != networksdk.ModeDNSRR {
			c.t.Errorf("mode %d", s.GetMode())
		}
	}
	for _, b := range r.GetBackends() {
		c.known(b.GetNetworkId())
		for _, one := range b.GetBackends() {
			c.ids(one.GetTaskId(), one.GetNodeId())
			c.addresses(one.GetAddresses())
		}
		c.ids(b.GetRemoved()...)
	}
	return c.recorder.Apply(ctx, r)
}

func (c *checker) Attach(ctx context.Context, r *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	c.ids(r.GetTaskId())
	for _, a := range r.GetAttachments() {
		c.known(a.GetNetworkId())
		c.addresses(a.GetAddresses())
	}
	return c.recorder.Attach(ctx, r)
}

func (c *checker) known(id string) {
	if !c.networks[id] {
		c.t.Errorf("network %q was not applied", id)
	}
}

func (c *checker) ids(ids ...string) {
	for _, id := range ids {
		if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
			c.t.Errorf("id %q", id)
		}
	}
}

func (c *checker) addresses(texts []string) {
	if len(texts) > 2 {
		c.t.Errorf("addresses %q", texts)
	}
	for _, text := range texts {
		if a := netip.MustParseAddr(text); a.Zone() != "" {
			c.t.Errorf("address %s", a)
		}
	}
}

func FuzzRequests(f *testing.F) {
	marshal := func(m proto.Message) []byte {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	change := request()
	change.Complete = false
	change.RemovedNetworks = []string{"net2"}
	change.RemovedServices = []*networkv1.ServiceRef{{NetworkId: "net1", ServiceId: "svc1"}}
	f.Add(marshal(request()), marshal(change), marshal(attach()))
	f.Add(marshal(request()), []byte{}, []byte("\x0a\x02t1"))
	f.Fuzz(func(t *testing.T, complete, changes, attachment []byte) {
		server := networksdk.NewServer(&checker{t: t})
		for i, raw := range [][]byte{complete, changes, complete} {
			r := &networkv1.ApplyRequest{}
			if proto.Unmarshal(raw, r) != nil {
				continue
			}
			r.Complete = i != 1
			response, err := server.Apply(t.Context(), r)
			if err == nil {
				if _, err := proto.Marshal(response); err != nil {
					t.Errorf("response of Apply: %v", err)
				}
			}
			a := &networkv1.AttachRequest{}
			if proto.Unmarshal(attachment, a) == nil {
				_, _ = server.Attach(t.Context(), a)
			}
		}
	})
}
