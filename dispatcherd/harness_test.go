package dispatcherd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// cluster is what a dispatcher needs around it: a store, and a network in
// memory.
type cluster struct {
	t      testing.TB
	kv     *embedded.KV
	tables *state.Tables
	store  *store.Store
	log    *zap.Logger

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
}

// newCluster starts a cluster; a quiet one does not log, for benchmarks.
func newCluster(t testing.TB, quiet bool) *cluster {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, kv: space, tables: state.NewTables(), listeners: map[string]*bufconn.Listener{}, log: zap.NewNop()}
	if !quiet {
		c.log = zaptest.NewLogger(t)
	}
	ts := c.tables
	c.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: c.log},
		ts.Services, ts.Specs, ts.Nodes, ts.Clusters, ts.Tasks, ts.Assignments, ts.NodeStates, ts.Statuses,
		ts.Networks, ts.NetworkStates, ts.Blocks, ts.Endpoints, ts.Rollouts, ts.Secrets, ts.SealedBlobs)
	if err != nil {
		t.Fatal(err)
	}
	c.run("store of the test", c.store.Run)
	if err := c.store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs something until the test ends, and waits for its end.
func (c *cluster) run(name string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			c.t.Errorf("%s: %v", name, err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	c.t.Cleanup(stop)
	return stop
}

// update changes records as other daemons would.
func (c *cluster) update(f func(tx *store.Tx)) {
	c.t.Helper()
	if err := c.store.Update(c.t.Context(), func(tx *store.Tx) error { f(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
}

var webSpec = &musterv1.TaskSpec{}

// service makes a service with one spec.
func (c *cluster) service(id string) {
	c.update(func(tx *store.Tx) {
		c.tables.Services.Put(tx, id, &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "name-of-" + id, Labels: map[string]string{"a": "b"}}})
		c.tables.Specs.Put(tx, state.SpecKey([]byte("digest-of-"+id)), &recordv1.Spec{Task: webSpec})
	})
}

// assign makes a task and assigns it.
func (c *cluster) assign(tx *store.Tx, node, service, task string, slot uint64) {
	c.tables.Tasks.Put(tx, state.TaskKey(service, slot, node, task), &recordv1.Task{
		Slot: slot, SpecDigest: []byte("digest-of-" + service), DesiredState: musterv1.TaskState_RUNNING,
	})
	c.tables.Assignments.Put(tx, state.NodeTaskKey(node, service, task), &recordv1.Assignment{
		Slot: slot, Ports: []*musterv1.PortConfig{{PublishedPort: 8080}},
	})
}

func (c *cluster) desire(node, service, task string, slot uint64, desired musterv1.TaskState) {
	c.update(func(tx *store.Tx) {
		c.tables.Tasks.Put(tx, state.TaskKey(service, slot, node, task), &recordv1.Task{
			Slot: slot, SpecDigest: []byte("digest-of-" + service), DesiredState: desired,
		})
	})
}

func (c *cluster) nodeState(node string) *recordv1.NodeState {
	e, _ := c.tables.NodeStates.Get(c.store.Snapshot(), node)
	return e.Value
}

func (c *cluster) wantNode(node string, want musterv1.NodeStatus_State) {
	c.t.Helper()
	synctest.Wait()
	if got := c.nodeState(node).GetState(); got != want {
		c.t.Fatalf("node %s is %s (%s), want %s", node, got, c.nodeState(node).GetMessage(), want)
	}
}

func (c *cluster) status(node, service, task string) *recordv1.Status {
	e, _ := c.tables.Statuses.Get(c.store.Snapshot(), state.NodeTaskKey(node, service, task))
	return e.Value
}

// replica is one dispatcher that runs.
type replica struct {
	*Daemon
	cfg     Config
	address string
	kv      *killable
	server  *grpc.Server
	stop    func()
	served  chan struct{}
}

func (c *cluster) dispatcher(name string, change ...func(*Config)) *replica {
	c.t.Helper()
	return c.dispatcherOver(c.kv, name, change...)
}

// dispatcherOver starts a dispatcher that sees the key space as space shows it.
func (c *cluster) dispatcherOver(space kv.KV, name string, change ...func(*Config)) *replica {
	c.t.Helper()
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	r := &replica{cfg: cfg, address: name + ":4245", kv: newKillable(space), server: grpc.NewServer(), served: make(chan struct{})}
	env := daemon.Env{
		KV: r.kv, Prefix: "muster", Server: r.server, Logger: c.log.Named(name), Metrics: prometheus.NewRegistry(),
		Member: shards.Member{Instance: name, Daemon: "dispatcherd", Address: r.address, Started: time.Now()},
		Session: func(ctx context.Context) (kv.Session, error) {
			return r.kv.NewSession(ctx, kv.SessionConfig{Name: name})
		},
	}
	var err error
	if r.Daemon, err = New(env, cfg); err != nil {
		c.t.Fatal(err)
	}
	listener := bufconn.Listen(16 << 10)
	c.mu.Lock()
	c.listeners[r.address] = listener
	c.mu.Unlock()
	go func() {
		defer close(r.served)
		if err := r.server.Serve(listener); err != nil {
			c.t.Errorf("serve %s: %v", name, err)
		}
	}()
	stop := c.run(name, r.Run)
	// The server serves while Run runs.
	r.stop = sync.OnceFunc(func() {
		stop()
		r.server.Stop()
		<-r.served
	})
	c.t.Cleanup(r.stop)
	return r
}

// kill ends a dispatcher as SIGKILL would: nothing it does from now on reaches
// anybody, and its locks are free after a moment.
func (r *replica) kill() {
	r.kv.kill()
	r.server.Stop()
	r.stop()
	time.Sleep(400 * time.Millisecond)
	r.kv.bury()
}

// away makes the store unreachable for a dispatcher, or reachable again.
func (r *replica) away(yes bool) { r.kv.cut(yes) }

// owner returns the replica among rs that owns a node's shard.
func owner(node string, rs ...*replica) (is *replica, others []*replica) {
	for _, r := range rs {
		if s, _ := r.owned.of(node); s != nil {
			is = r
		} else {
			others = append(others, r)
		}
	}
	return is, others
}

// dial connects to a dispatcher.
func (c *cluster) dial(address string) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c.mu.Lock()
			l := c.listeners[address]
			c.mu.Unlock()
			if l == nil {
				return nil, fmt.Errorf("no listener at %s", address)
			}
			return l.DialContext(ctx)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}
