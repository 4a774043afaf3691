package dispatcherd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
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

// quiet keeps benchmarks from measuring the log.
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
		ts.Services, ts.Specs, ts.Nodes, ts.Clusters, ts.Tasks, ts.Assignments, ts.NodeStates, ts.Statuses)
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
	c       *cluster
	address string
	kv      *mortal
	server  *grpc.Server
	stop    func()
	served  chan struct{}
}

func (c *cluster) dispatcher(name string, change ...func(*Config)) *replica {
	c.t.Helper()
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	r := &replica{c: c, address: name + ":4245", kv: &mortal{KV: c.kv}, server: grpc.NewServer(), served: make(chan struct{})}
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
	listener := bufconn.Listen(256 << 10)
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
	// The server serves as long as Run runs.
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
func (r *replica) away(yes bool) { r.kv.dead.Store(yes) }

// owner returns the replica among rs that owns a node's shard.
func owner(node string, rs ...*replica) (is *replica, others []*replica) {
	for _, r := range rs {
		if s, _ := r.shardOf(node); s != nil {
			is = r
		} else {
			others = append(others, r)
		}
	}
	return is, others
}

// mortal is one process's way to the store, which can be cut.
type mortal struct {
	kv.KV
	dead     atomic.Bool
	mu       sync.Mutex
	sessions []kv.Session
}

var errDead = fmt.Errorf("cut off: %w", kv.ErrUnavailable)

func (m *mortal) kill() { m.dead.Store(true) }

// bury ends the sessions of the dead.
func (m *mortal) bury() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		_ = s.Close(context.Background())
	}
}

func (m *mortal) Get(ctx context.Context, key string) (kv.Pair, error) {
	if m.dead.Load() {
		return kv.Pair{}, errDead
	}
	return m.KV.Get(ctx, key)
}

func (m *mortal) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if m.dead.Load() {
		return nil, 0, errDead
	}
	return m.KV.List(ctx, prefix, opt)
}

func (m *mortal) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	return m.KV.Txn(ctx, ops)
}

func (m *mortal) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	if m.dead.Load() {
		return nil, errDead
	}
	s, err := m.KV.NewSession(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = append(m.sessions, s)
	return mortalSession{s, m}, nil
}

// mortalSession is a session whose end by its own process is not seen once the
// process is dead.
type mortalSession struct {
	kv.Session
	m *mortal
}

func (s mortalSession) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if s.m.dead.Load() {
		return false, errDead
	}
	return s.Session.Acquire(ctx, key, value)
}

func (s mortalSession) Release(ctx context.Context, key string) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Release(ctx, key)
}

func (s mortalSession) Close(ctx context.Context) error {
	if s.m.dead.Load() {
		return errDead
	}
	return s.Session.Close(ctx)
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
				return nil, fmt.Errorf("nobody listens at %s", address)
			}
			return l.DialContext(ctx)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// worker is the other end of a session.
type worker struct {
	t      testing.TB
	node   string
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	welcome  *dispatcherv1.Welcome
	redirect *dispatcherv1.Redirect
	model    *model
	messages []*dispatcherv1.Assignments
	acked    uint64
	logs     []*dispatcherv1.LogRequest
	cancels  []string
	err      error
}

func description(node string) *musterv1.NodeDescription {
	return &musterv1.NodeDescription{Hostname: node + ".example", Platform: &musterv1.Platform{Os: "linux"}}
}

// worker starts a session of a node, and says hello.
func (c *cluster) worker(node, address string) *worker { return c.workerAs(node, "1", address) }

func (c *cluster) workerAs(node, instance, address string) *worker {
	c.t.Helper()
	w := c.newWorker(node, c.dial(address))
	w.hello(&dispatcherv1.Hello{NodeId: node, InstanceId: instance, Description: description(node)})
	return w
}

func (c *cluster) newWorker(node string, conn *grpc.ClientConn) *worker {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := dispatcherv1.NewDispatcherServiceClient(conn).Session(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	w := &worker{t: c.t, node: node, conn: conn, stream: stream, cancel: cancel, done: make(chan struct{}), model: newModel()}
	go w.listen()
	c.t.Cleanup(w.hangUp)
	return w
}

func (w *worker) listen() {
	defer close(w.done)
	for {
		m, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
			w.mu.Unlock()
			return
		}
		switch m := m.Message.(type) {
		case *dispatcherv1.SessionResponse_Welcome:
			w.welcome = m.Welcome
		case *dispatcherv1.SessionResponse_Redirect:
			w.redirect = m.Redirect
		case *dispatcherv1.SessionResponse_Assignments:
			w.messages = append(w.messages, m.Assignments)
			if err := w.model.apply(m.Assignments); err != nil {
				w.t.Errorf("node %s: %v", w.node, err)
			}
		case *dispatcherv1.SessionResponse_StatusAck:
			w.acked = m.StatusAck.Sequence
		case *dispatcherv1.SessionResponse_LogRequest:
			w.logs = append(w.logs, m.LogRequest)
		case *dispatcherv1.SessionResponse_LogCancel:
			w.cancels = append(w.cancels, m.LogCancel.SubscriptionId)
		}
		w.mu.Unlock()
	}
}

// hangUp ends the session without a word.
func (w *worker) hangUp() {
	w.cancel()
	<-w.done
	_ = w.conn.Close()
}

// say sends a message. That the session has ended shows where it is received.
func (w *worker) say(m *dispatcherv1.SessionRequest) { _ = w.stream.Send(m) }

func (w *worker) hello(h *dispatcherv1.Hello) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Hello{Hello: h}})
}

func (w *worker) heartbeat() {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{Heartbeat: &dispatcherv1.Heartbeat{}}})
}

// live sends heartbeats for so long.
func (w *worker) live(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		w.heartbeat()
		time.Sleep(min(time.Second, time.Until(end)))
	}
}

func (w *worker) goodbye(restarting bool) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Goodbye{Goodbye: &dispatcherv1.Goodbye{Restarting: restarting}}})
	_ = w.stream.CloseSend()
}

func (w *worker) report(sequence uint64, statuses ...*dispatcherv1.ReportedStatus) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_StatusReport{
		StatusReport: &dispatcherv1.StatusReport{Sequence: sequence, Statuses: statuses},
	}})
}

// ended returns how the session ended, nil if it goes on.
func (w *worker) ended() error {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// tasks returns what the worker was told to run, by now.
func (w *worker) tasks() map[string]musterv1.TaskState {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]musterv1.TaskState{}
	for id, t := range w.model.tasks {
		all[id] = t.DesiredState
	}
	return all
}

// get reads a field that the listener writes.
func get[T any](w *worker, f func(*worker) T) T {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return f(w)
}

func acked(w *worker) uint64 { return get(w, func(w *worker) uint64 { return w.acked }) }
func redirected(w *worker) *dispatcherv1.Redirect {
	return get(w, func(w *worker) *dispatcherv1.Redirect { return w.redirect })
}
func welcomed(w *worker) *dispatcherv1.Welcome {
	return get(w, func(w *worker) *dispatcherv1.Welcome { return w.welcome })
}
func logRequests(w *worker) []*dispatcherv1.LogRequest {
	return get(w, func(w *worker) []*dispatcherv1.LogRequest { return slices.Clone(w.logs) })
}
func logCancels(w *worker) []string {
	return get(w, func(w *worker) []string { return slices.Clone(w.cancels) })
}
