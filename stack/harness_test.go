package stack_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/authority"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/control"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/apid/tokens"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/stack"
)

// cluster is an API server on a store in memory, whose other daemons the test plays.
type cluster struct {
	*control.Server
	t    *testing.T
	dial func(options ...grpc.DialOption) musterv1.ControlServiceClient
}

// run runs a test against a cluster, in virtual time.
func run(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, start(t)) })
}

// alone finds no other daemons.
type alone struct{}

func (alone) Look(context.Context) clusterstatus.Findings { return clusterstatus.Findings{} }

func start(t *testing.T) *cluster {
	t.Helper()
	keys, err := seal.MakeKeys(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	b := backendtest.StartSealed(t, keys)
	sealer := sealing.New(b, keys, nil)
	c := &cluster{t: t, Server: control.New(b, control.Options{
		Tokens: tokens.New(b), Authority: authority.New(b, authority.Options{Sealer: sealer, Looker: alone{}}), Sealer: sealer, Watchers: prometheus.NewGauge(prometheus.GaugeOpts{}),
	})}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	musterv1.RegisterControlServiceServer(server, c.Server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	c.dial = func(options ...grpc.DialOption) musterv1.ControlServiceClient {
		conn, err := grpc.NewClient("passthrough:apid", append(options, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return musterv1.NewControlServiceClient(conn)
	}
	return c
}

// client returns a client whose calls pass through before, which may refuse them.
func (c *cluster) client(before func(method string) error) musterv1.ControlServiceClient {
	return c.dial(grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if before != nil {
			if err := before(method[strings.LastIndexByte(method, '/')+1:]); err != nil {
				return err
			}
		}
		return invoke(ctx, method, req, reply, conn, options...)
	}))
}

// writes reports whether a method changes something.
func writes(method string) bool {
	return !strings.HasPrefix(method, "Get") && !strings.HasPrefix(method, "List")
}

// converge has all updates of services complete, as an orchestrator reports them.
func (c *cluster) converge() {
	c.t.Helper()
	err := c.Update(c.t.Context(), func(tx *store.Tx) error {
		for e := range c.Tables.Services.Scan(tx, "") {
			c.Tables.Rollouts.Put(tx, e.Key, &recordv1.Rollout{SpecVersion: e.Value.SpecVersion, State: musterv1.UpdateStatus_COMPLETED})
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// join adds a node with an executor.
func (c *cluster) join(executor string) {
	c.t.Helper()
	err := c.Update(c.t.Context(), func(tx *store.Tx) error {
		c.Tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
			Executors: []*musterv1.ExecutorDescription{{
				Name: executor, Version: "1", Kinds: []string{executor}, Capabilities: []string{"files"}, Health: musterv1.ExecutorDescription_HEALTHY,
			}},
		}})
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// startTask gives a service a task, which must be gone before what it uses is removed.
func (c *cluster) startTask(service string) (end func()) {
	c.t.Helper()
	s, err := c.GetService(c.t.Context(), &musterv1.GetServiceRequest{Service: service})
	if err != nil {
		c.t.Fatal(err)
	}
	key := state.TaskKey(s.Service.Id, 1, "", state.NewID())
	put := func(fn func(tx *store.Tx)) {
		if err := c.Update(context.WithoutCancel(c.t.Context()), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
			c.t.Error(err)
		}
	}
	put(func(tx *store.Tx) {
		e, _ := c.Tables.Services.Get(tx, s.Service.Id)
		c.Tables.Tasks.Put(tx, key, &recordv1.Task{Slot: 1, SpecDigest: e.Value.TaskDigest, DesiredState: musterv1.TaskState_RUNNING})
	})
	return func() { put(func(tx *store.Tx) { c.Tables.Tasks.Delete(tx, key) }) }
}

func service(name string, change func(s *musterv1.ServiceSpec, c *musterv1.ContainerSpec)) *musterv1.ServiceSpec {
	container := &musterv1.ContainerSpec{Image: "nginx"}
	s := &musterv1.ServiceSpec{Name: name, Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: container}}}
	if change != nil {
		change(s, container)
	}
	return s
}

// shop returns a stack whose service uses everything that a stack can have.
func shop() *musterv1.StackSpec {
	return &musterv1.StackSpec{
		Name: "shop", Source: "services: {}",
		Services: []*musterv1.ServiceSpec{
			service("shop_web", func(s *musterv1.ServiceSpec, c *musterv1.ContainerSpec) {
				c.Configs = []*musterv1.ConfigReference{{ConfigName: "shop_conf", Target: &musterv1.ConfigReference_File{File: &musterv1.FileTarget{Name: "conf"}}}}
				c.Secrets = []*musterv1.SecretReference{{SecretName: "shop_password", File: &musterv1.FileTarget{Name: "password"}}}
				c.Env = []string{"A=1"}
				s.Task.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "shop_default", Aliases: []string{"web"}}}
				s.DependsOn = []*musterv1.ServiceDependency{{Service: "shop_db", Condition: musterv1.ServiceDependency_STARTED}}
			}),
			service("shop_db", func(s *musterv1.ServiceSpec, _ *musterv1.ContainerSpec) {
				s.Task.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "shop_default", Aliases: []string{"db"}}}
			}),
		},
		Networks: []*musterv1.NetworkSpec{{Name: "shop_default", Driver: &musterv1.Driver{Name: "overlay"}}},
		Configs:  []*musterv1.ConfigSpec{{Name: "shop_conf", Data: []byte("listen 80")}},
		Secrets:  []*musterv1.SecretSpec{{Name: "shop_password", Data: []byte("hunter2")}},
	}
}

func (c *cluster) deploy(spec *musterv1.StackSpec, opt stack.Options) *stack.Result {
	c.t.Helper()
	result, err := stack.Deploy(c.t.Context(), c.client(nil), spec, opt)
	if err != nil {
		c.t.Fatal(err)
	}
	return result
}

// changes returns a plan's changes as text, without objects that stay.
func changes(plan []stack.Change) []string {
	var list []string
	for _, ch := range plan {
		if ch.Action != stack.ActionKeep {
			list = append(list, string(ch.Action)+" "+ch.Kind+" "+ch.Name)
		}
	}
	return list
}

func (c *cluster) plan(spec *musterv1.StackSpec, opt stack.Options) []string {
	c.t.Helper()
	plan, err := stack.Plan(c.t.Context(), c.client(nil), spec, opt)
	if err != nil {
		c.t.Fatal(err)
	}
	return changes(plan)
}

// names returns the names of all objects, in order.
func (c *cluster) names() []string {
	c.t.Helper()
	ctx := c.t.Context()
	services, err := c.ListServices(ctx, &musterv1.ListServicesRequest{})
	networks, err1 := c.ListNetworks(ctx, &musterv1.ListNetworksRequest{})
	configs, err2 := c.ListConfigs(ctx, &musterv1.ListConfigsRequest{})
	secrets, err3 := c.ListSecrets(ctx, &musterv1.ListSecretsRequest{})
	stacks, err4 := c.ListStacks(ctx, &musterv1.ListStacksRequest{})
	if err := errors.Join(err, err1, err2, err3, err4); err != nil {
		c.t.Fatal(err)
	}
	var names []string
	add := func(kind, name string) { names = append(names, kind+" "+name) }
	for _, o := range services.Services {
		add("service", o.Spec.Name)
	}
	for _, o := range networks.Networks {
		add("network", o.Spec.Name)
	}
	for _, o := range configs.Configs {
		add("config", o.Spec.Name)
	}
	for _, o := range secrets.Secrets {
		add("secret", o.Spec.Name)
	}
	for _, o := range stacks.Stacks {
		add("stack", o.Spec.Name)
	}
	slices.Sort(names)
	return names
}

func wantList(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q\nwant %q", what, got, want)
	}
}
