package apid_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/apid/apidtest"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// cluster is a store in memory, with everything but apid played by the test. Its
// network is in memory too, so that a test can run in virtual time.
type cluster struct {
	t  testing.TB
	kv kv.KV
	// faults and muted are layers of the store as apid reaches it.
	faults *kvfault.KV
	muted  *muted
	tables *state.Tables
	store  *store.Store
	// keys are those of the cluster, which every replica has.
	keys *seal.Keyring

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	started   int
}

// muted is a key space that reports no change while it is on. It answers all calls
// that do not wait for a change.
type muted struct {
	kv.KV
	on atomic.Bool
}

func (m *muted) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	pairs, index, err := m.KV.List(ctx, prefix, opt)
	if opt.After > 0 && m.on.Load() {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return pairs, index, err
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	faults := kvfault.New(space)
	c := &cluster{t: t, kv: space, faults: faults, muted: &muted{KV: faults}, tables: state.NewTables(), listeners: map[string]*bufconn.Listener{}}
	ts := c.tables
	c.store, err = store.New(store.Options{KV: space, Prefix: "muster"},
		ts.Services, ts.Specs, ts.Names, ts.Nodes, ts.Clusters, ts.Tasks, ts.Rollouts, ts.Endpoints,
		ts.Assignments, ts.Placements, ts.NodeStates, ts.Statuses, ts.Configs, ts.Blobs, ts.Secrets, ts.Sealing, ts.SealedBlobs,
		ts.Networks, ts.NetworkStates, ts.Blocks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	c.keys = seal.NewKeyring(key)
	c.background("store", c.store.Run)
	if err := c.store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// background runs something until the test ends, or until stop is called.
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
	t testing.TB
	// http sends requests to REST.
	http *http.Client
	web  *pipes
	stop func()
}

// restURL is where a client of api finds REST.
const restURL = "http://apid.test"

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
	cfg.Keys = c.keys
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
		KV: c.muted, Prefix: "muster", Member: m, Session: c.session, Logger: zap.NewNop(),
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
	web := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
	c.background("http", func(ctx context.Context) error {
		return daemon.ServeHTTP(ctx, d.Handler(), web, time.Second)
	})
	transport := &http.Transport{DialContext: web.dial}
	c.t.Cleanup(transport.CloseIdleConnections)
	conn, err := c.dial(m.Address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			c.t.Error(err)
		}
	})
	a := &api{ControlServiceClient: musterv1.NewControlServiceClient(conn), t: c.t, http: &http.Client{Transport: transport}, web: web}
	a.stop = func() {
		stopDaemon()
		stopServer()
	}
	return a
}

// update writes what another daemon would write, once all is at rest, and waits until
// all that can see the change have seen it.
func (c *cluster) update(fn func(tx *store.Tx)) {
	c.t.Helper()
	synctest.Wait()
	if err := c.store.Update(c.t.Context(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// subtest runs a subtest in virtual time, with a cluster of its own if it needs one.
func subtest(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// spreadTransactions makes transactions of replicas take different amounts of virtual
// time, so that those of several replicas and of the sweep interleave.
func (c *cluster) spreadTransactions() {
	for _, delay := range []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond} {
		c.faults.Inject(kvfault.Fault{Op: kvfault.Txn, Delay: delay, When: func(kvfault.Call) bool { return rand.IntN(3) == 0 }})
	}
}

// settled waits until all is at rest, and fails the test unless something holds then.
func settled(t testing.TB, what string, holds func() bool) {
	t.Helper()
	if synctest.Wait(); !holds() {
		t.Fatalf("not so when all is at rest: %s", what)
	}
}

// eventually advances virtual time until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); time.Since(began) < 5*time.Minute; time.Sleep(time.Second) {
		synctest.Wait()
		if holds() {
			return
		}
	}
	t.Fatalf("not within five minutes of virtual time: %s", what)
}

// pipes is a listener in memory for HTTP, whose client is at 127.0.0.1.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

var localhost = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return localhost }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.accepted <- pipeConn{server}:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accepted:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return localhost }

// node makes a node that is READY.
func (c *cluster) node(id, host string, executors ...*musterv1.ExecutorDescription) {
	c.update(func(tx *store.Tx) {
		c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
			State: musterv1.NodeStatus_READY, CreatedAt: 1000, Since: 1000,
			Description: &musterv1.NodeDescription{Hostname: host, Executors: executors},
		})
	})
}

// networkPlugin has a node report one.
func (c *cluster) networkPlugin(node, name string) {
	c.update(func(tx *store.Tx) {
		e, _ := c.tables.NodeStates.Get(tx, node)
		n := proto.CloneOf(e.Value)
		n.Description.NetworkDrivers = append(n.Description.NetworkDrivers, &musterv1.NetworkDriverDescription{Name: name, Drivers: []string{name}})
		c.tables.NodeStates.Put(tx, node, n)
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

func webSpec(name string) *musterv1.ServiceSpec { return apidtest.WebSpec(name) }

func (a *api) create(spec *musterv1.ServiceSpec) *musterv1.Service {
	a.t.Helper()
	return apidtest.Must(a.CreateService(a.t.Context(), &musterv1.CreateServiceRequest{Spec: spec}))(a.t).Service
}

func (a *api) get(ref string) *musterv1.Service {
	a.t.Helper()
	return apidtest.Must(a.GetService(a.t.Context(), &musterv1.GetServiceRequest{Service: ref}))(a.t).Service
}

func wantCode(t testing.TB, err error, code codes.Code, fields ...string) {
	t.Helper()
	apidtest.WantCode(t, err, code, fields...)
}

// answer is what a REST call returned.
type answer struct {
	code int
	body string
	json map[string]any
}

func (a *api) rest(method, path, body string) answer {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, restURL+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.http.Do(req)
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
