package apid_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// cluster is a store in memory, with everything but apid played by the test.
type cluster struct {
	t  testing.TB
	kv kv.KV
	// away is the store as apid reaches it, through faults.
	away   *away
	faults *kvfault.KV
	tables *state.Tables
	store  *store.Store

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	started   int
	// views are what the replicas of apid that run know of the store.
	views map[*api]*store.Store
}

// away is a store whose transactions fail while it is away, and that tells of no
// change while it is deaf.
type away struct {
	kv.KV
	now  atomic.Bool
	deaf atomic.Bool
	// held, if set, takes every transaction that writes, which waits until its
	// channel is closed.
	held atomic.Pointer[chan chan struct{}]
}

func (a *away) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	pairs, index, err := a.KV.List(ctx, prefix, opt)
	if opt.After > 0 && a.deaf.Load() {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return pairs, index, err
}

func (a *away) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if a.now.Load() {
		return nil, fmt.Errorf("dial: %w", kv.ErrUnavailable)
	}
	writes := slices.ContainsFunc(ops, func(op kv.Op) bool { return op.Verb != kv.Get })
	if held := a.held.Load(); held != nil && writes {
		goOn := make(chan struct{})
		*held <- goOn
		<-goOn
	}
	return a.KV.Txn(ctx, ops)
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	faults := kvfault.New(space)
	c := &cluster{t: t, kv: space, faults: faults, away: &away{KV: faults}, tables: state.NewTables(), listeners: map[string]*bufconn.Listener{}, views: map[*api]*store.Store{}}
	ts := c.tables
	c.store, err = store.New(store.Options{KV: space, Prefix: "muster"},
		ts.Services, ts.Specs, ts.Names, ts.Nodes, ts.Clusters, ts.Tasks, ts.Rollouts, ts.Endpoints,
		ts.Assignments, ts.Placements, ts.NodeStates, ts.Statuses, ts.Configs, ts.Blobs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	c.background("store", c.store.Run)
	if err := c.store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// background runs something until the test ends, and returns what ends it
// sooner.
func (c *cluster) background(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.t.Errorf("%s: %v", name, err)
			}
		case <-time.After(2 * time.Minute):
			c.t.Errorf("%s does not end", name)
		}
	})
	c.t.Cleanup(stop)
	return stop
}

func (c *cluster) listen(address string) *bufconn.Listener {
	l := bufconn.Listen(1 << 20)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners[address] = l
	return l
}

func (c *cluster) dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c.mu.Lock()
			l := c.listeners[address]
			c.mu.Unlock()
			if l == nil {
				return nil, fmt.Errorf("no listener on %s", address)
			}
			return l.DialContext(ctx)
		}))
}

func (c *cluster) session(ctx context.Context) (kv.Session, error) {
	return c.kv.NewSession(ctx, kv.SessionConfig{Name: "test"})
}

// member is a replica of a daemon.
func (c *cluster) member(name string) shards.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started++
	id := fmt.Sprintf("%s-%d", name, c.started)
	return shards.Member{Instance: id, Daemon: name, Address: id, Version: "test"}
}

// api is one replica of apid, with clients for it.
type api struct {
	musterv1.ControlServiceClient
	t    testing.TB
	url  string
	stop func()
}

func (c *cluster) apid(change ...func(*apid.Config)) *api {
	c.t.Helper()
	return c.apidWith(nil, change...)
}

// direct takes the service that is registered, to call it without a wire.
type direct struct {
	musterv1.ControlServiceServer
	next grpc.ServiceRegistrar
}

func (d *direct) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if s, is := impl.(musterv1.ControlServiceServer); is {
		d.ControlServiceServer = s
	}
	d.next.RegisterService(desc, impl)
}

func (c *cluster) apidWith(hook *direct, change ...func(*apid.Config)) *api {
	c.t.Helper()
	cfg := apid.DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	m := c.member("apid")
	server := grpc.NewServer()
	var registrar grpc.ServiceRegistrar = server
	if hook != nil {
		hook.next = server
		registrar = hook
	}
	d, err := apid.New(daemon.Env{
		KV: c.away, Prefix: "muster", Member: m, Session: c.session, Logger: zap.NewNop(),
		Metrics: prometheus.NewRegistry(), Server: registrar, Dial: c.dial,
	}, cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	l := c.listen(m.Address)
	stopDaemon := c.background("apid", d.Run)
	stopServer := c.background("grpc", func(ctx context.Context) error {
		return daemon.ServeGRPC(ctx, server, l, time.Second)
	})
	rest := httptest.NewServer(d.Handler())
	c.t.Cleanup(rest.Close)
	conn, err := c.dial(m.Address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			c.t.Error(err)
		}
	})
	a := &api{ControlServiceClient: musterv1.NewControlServiceClient(conn), t: c.t, url: rest.URL}
	c.mu.Lock()
	c.views[a] = d.View()
	c.mu.Unlock()
	a.stop = func() {
		c.mu.Lock()
		delete(c.views, a)
		c.mu.Unlock()
		stopDaemon()
		stopServer()
	}
	return a
}

// update writes what another daemon would write. It first sees all that is there, and
// then waits until the replicas of apid have seen the change, unless they have no
// contact with the store.
func (c *cluster) update(fn func(tx *store.Tx)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	seen(ctx, c.store)
	if err := c.store.Update(context.Background(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
	if c.away.now.Load() || c.away.deaf.Load() {
		return
	}
	c.mu.Lock()
	views := slices.Collect(maps.Values(c.views))
	c.mu.Unlock()
	for _, view := range views {
		seen(ctx, view)
	}
}

// seen waits until a replica has seen all that the store holds now. One without
// contact does not see it before ctx ends, which tests of faults want.
func seen(ctx context.Context, view *store.Store) {
	if view.Ready(ctx) != nil {
		return
	}
	newest, err := view.LeaderSequences(ctx)
	if err != nil {
		return
	}
	for {
		at, applied := view.Snapshot(), view.AppliedSequences()
		behind := false
		for table, sequences := range newest {
			for shard, sequence := range sequences {
				behind = behind || applied[table][shard] < sequence
			}
		}
		if !behind {
			return
		}
		if _, err := view.Wait(ctx, at); err != nil {
			return
		}
	}
}

// node makes a node that is READY.
func (c *cluster) node(id, host string, executors ...*musterv1.ExecutorDescription) {
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: musterv1.NodeStatus_READY, CreatedAt: 1000, Since: 1000,
			Description: &musterv1.NodeDescription{Hostname: host, Executors: executors},
		})
	})
}

// task makes a task of a service's current spec.
func (c *cluster) task(s *musterv1.Service, slot uint64, change func(*recordv1.Task)) string {
	id := state.NewID()
	c.update(func(tx *store.Tx) {
		rec, _ := c.tables.Services.Get(tx, s.Id)
		t := &recordv1.Task{
			Slot: slot, SpecDigest: rec.Value.GetTaskDigest(), SpecVersion: rec.Value.GetSpecVersion(),
			DesiredState: musterv1.TaskState_RUNNING, CreatedAt: time.Now().UnixMilli(),
		}
		if change != nil {
			change(t)
		}
		c.tables.Tasks.Put(tx, state.TaskKey(s.Id, t.Slot, t.NodeId, id), t)
	})
	return id
}

// assign gives a task a node, and its worker's status if there is one.
func (c *cluster) assign(s *musterv1.Service, slot uint64, id, node string, status *recordv1.Status) {
	c.update(func(tx *store.Tx) {
		k := state.NodeTaskKey(node, s.Id, id)
		c.tables.Assignments.Put(tx, k, &recordv1.Assignment{AssignedAt: 5000, NanoCpus: 10, MemoryBytes: 20, Slot: slot})
		if status != nil {
			c.tables.Statuses.Put(tx, k, status)
		}
	})
}

func runningStatus() *recordv1.Status {
	return &recordv1.Status{State: musterv1.TaskState_RUNNING, At: 9000,
		Reached: []musterv1.TaskState{musterv1.TaskState_ACCEPTED, musterv1.TaskState_RUNNING}, ReachedBefore: []int64{3000, 0}}
}

// webSpec is a spec that is accepted.
func webSpec(name string) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{Name: name, Task: &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "nginx"}},
	}}
}

func (a *api) create(spec *musterv1.ServiceSpec) *musterv1.Service {
	a.t.Helper()
	resp, err := a.CreateService(a.t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Service
}

func (a *api) get(ref string) *musterv1.Service {
	a.t.Helper()
	resp, err := a.GetService(a.t.Context(), &musterv1.GetServiceRequest{Service: ref})
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Service
}

// wantCode checks an error's code, and which fields it names.
func wantCode(t testing.TB, err error, code codes.Code, fields ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("error is %v, want %v", err, code)
	}
	var named []string
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.FieldViolations {
				named = append(named, v.Field)
			}
		}
	}
	for _, f := range fields {
		if !slices.Contains(named, f) {
			t.Errorf("error names %q, want %q among them", named, f)
		}
	}
}

// answer is what a REST call returned.
type answer struct {
	code int
	body string
	json map[string]any
}

func (a *api) rest(method, path, body string) answer {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	got := answer{code: resp.StatusCode, body: string(b)}
	decoder := json.NewDecoder(bytes.NewReader(b))
	if err := decoder.Decode(&got.json); err != nil && !errors.Is(err, io.EOF) {
		a.t.Fatalf("%s %s: %v in %q", method, path, err, b)
	}
	return got
}

// fields are those that an error's details name.
func (r answer) fields() []string {
	var named []string
	details, _ := r.json["details"].([]any)
	for _, d := range details {
		m, _ := d.(map[string]any)
		violations, _ := m["fieldViolations"].([]any)
		for _, v := range violations {
			f, _ := v.(map[string]any)
			named = append(named, fmt.Sprint(f["field"]))
		}
	}
	slices.Sort(named)
	return named
}
