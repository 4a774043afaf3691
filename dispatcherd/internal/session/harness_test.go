package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const running = musterv1.TaskState_RUNNING

// site is a server with a store in memory. It is its own shard, and directory.
type site struct {
	t      *testing.T
	server *Server
	store  *store.Store
	tables *state.Tables
	calls  *calls.Group
	// networks is empty until it is advanced.
	networks *networks.Index

	mu      sync.Mutex
	owned   bool
	changed chan struct{}
	members []shards.Member
	// owner, if not empty, is the instance that owns all shards.
	owner string
	// attach is what Attach returns.
	attach   error
	sessions []*session
	// events records calls, in order.
	events []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		t: t, tables: state.NewTables(), calls: calls.NewGroup(), owned: true, changed: make(chan struct{}),
		members: []shards.Member{{Instance: "d1", Address: "d1:4245"}, {Instance: "d2", Address: "d2:4245"}},
	}
	log := zaptest.NewLogger(t)
	ts := s.tables
	s.networks = networks.New(ts, nil)
	s.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: log},
		ts.Services, ts.Specs, ts.Nodes, ts.Tasks, ts.Assignments, ts.Statuses,
		ts.Networks, ts.NetworkStates, ts.Blocks, ts.NodeStates, ts.Endpoints, ts.Rollouts)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := logs.NewBroker(logs.Config{QueueBytes: 1 << 20, Readers: 10, Calls: s.calls})
	if err != nil {
		t.Fatal(err)
	}
	counts, err := statuses.NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := NewMetrics(nil, counts)
	if err != nil {
		t.Fatal(err)
	}
	s.server = NewServer(Config{
		HelloTimeout: 10 * time.Second, OwnerWait: 2 * time.Second, SettleTimeout: time.Second,
		Limits: assignments.Limits{Objects: 1000, Bytes: 1 << 20}, Instance: "d1",
		Shards: s, Directory: s, Store: s.store, Tables: ts, Networks: s.networks, Logs: broker, Probes: probes.NewBroker(s.calls), Calls: s.calls, Metrics: metrics, Logger: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.store.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	if err := s.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// set changes what the site says of shards and dispatchers.
func (s *site) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Shard implements [Shards].
func (s *site) Shard(string) (Shard, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owned {
		return nil, s.changed
	}
	return s, s.changed
}

// Owner implements [Directory].
func (s *site) Owner(int) (shards.Member, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.members, func(m shards.Member) bool { return m.Instance == s.owner })
	if i < 0 {
		return shards.Member{}, false
	}
	return s.members[i], true
}

// Members implements [Directory].
func (s *site) Members() []shards.Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members
}

// Changed implements [Directory].
func (s *site) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Attach implements [Shard].
func (s *site) Attach(l liveness.Session, _ *dispatcherv1.Hello) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attach != nil {
		return s.attach
	}
	l.Bind(s.store.Snapshot().Epoch())
	l.SetPeriod(2 * time.Second)
	s.sessions = append(s.sessions, l.(*session))
	return nil
}

func (s *site) record(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// Detach implements [Shard].
func (s *site) Detach(l liveness.Session, how liveness.Ending) {
	s.record("detach %s %d", l.Worker().Node, how)
}

// Describe implements [Shard].
func (s *site) Describe(_ liveness.Session, d *musterv1.NodeDescription) {
	s.record("describe %s", d.Hostname)
}

// AdjustPeriod implements [Shard].
func (s *site) AdjustPeriod(_ liveness.Session, period time.Duration) { s.record("adjust %s", period) }

// AssignmentsChanged implements [Shard].
func (s *site) AssignmentsChanged(node string, keys []string) { s.record("changed %s %v", node, keys) }

// Write implements [Shard].
func (s *site) Write(from statuses.Reporter, r statuses.Report) {
	for key, status := range r.Statuses {
		s.record("write %s %s", key, status.State)
	}
	from.Acknowledge(r.Sequence)
}

// Settle implements [Shard].
func (s *site) Settle(keys []string, _ statuses.GiveUp) {
	if len(keys) > 0 {
		s.record("settle %v", keys)
	}
}

// SettleNode implements [Shard].
func (s *site) SettleNode(node string, _ statuses.GiveUp) { s.record("settle node %s", node) }

// happened returns the events since the last call.
func (s *site) happened() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	events := s.events
	s.events = nil
	return events
}

// session returns the session that was attached last.
func (s *site) session() *session {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) == 0 {
		s.t.Fatal("no session is attached")
	}
	return s.sessions[len(s.sessions)-1]
}

func (s *site) update(f func(tx *store.Tx)) {
	s.t.Helper()
	if err := s.store.Update(s.t.Context(), func(tx *store.Tx) error { f(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

// assign assigns a task to n1, and returns the assignment's key.
func (s *site) assign(task string) string {
	key := state.NodeTaskKey("n1", "s", task)
	s.update(func(tx *store.Tx) {
		s.tables.Tasks.Put(tx, state.TaskKey("s", 1, "", task), &recordv1.Task{Slot: 1, SpecDigest: []byte("digest"), DesiredState: running})
		s.tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: 1})
	})
	return key
}

// service writes what the tasks refer to.
func (s *site) service() {
	s.update(func(tx *store.Tx) {
		s.tables.Services.Put(tx, "s", &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "web"}})
		s.tables.Specs.Put(tx, state.SpecKey([]byte("digest")), &recordv1.Spec{Task: &musterv1.TaskSpec{}})
	})
}

// worker is the other end of a stream.
type worker struct {
	grpc.ServerStream // not used
	t                 *testing.T
	ctx               context.Context
	cancel            context.CancelFunc
	requests          chan *dispatcherv1.SessionRequest
	// result is how the call ended.
	result chan error

	mu sync.Mutex
	// deaf makes Send block until the stream ends.
	deaf      bool
	responses []*dispatcherv1.SessionResponse
	model     *assignmentstest.Worker
}

// worker opens a stream.
func (s *site) worker() *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{
		t: s.t, ctx: ctx, cancel: cancel, requests: make(chan *dispatcherv1.SessionRequest, 100),
		result: make(chan error, 1), model: assignmentstest.New(),
	}
	go func() {
		w.result <- s.server.Session(w)
		cancel() // as gRPC does
	}()
	s.t.Cleanup(cancel)
	return w
}

// connect opens a stream of node n1 and sends hello.
func (s *site) connect() *worker {
	w := s.worker()
	w.hello("n1")
	return w
}

func (w *worker) Context() context.Context { return w.ctx }

func (w *worker) Recv() (*dispatcherv1.SessionRequest, error) {
	select {
	case m, ok := <-w.requests:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

func (w *worker) Send(m *dispatcherv1.SessionResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		w.mu.Unlock()
		<-w.ctx.Done()
		w.mu.Lock()
		return w.ctx.Err()
	}
	if a := m.GetAssignments(); a != nil {
		if err := w.model.Apply(a); err != nil {
			w.t.Error(err)
		}
	}
	w.responses = append(w.responses, m)
	return nil
}

func (w *worker) say(m *dispatcherv1.SessionRequest) { w.requests <- m }

func (w *worker) hello(node string) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Hello{Hello: &dispatcherv1.Hello{
		NodeId: node, InstanceId: "1", Description: &musterv1.NodeDescription{Hostname: node}, AssignmentProtocol: assignments.Protocol,
	}}})
}

func (w *worker) report(sequence uint64, task string, state musterv1.TaskState) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_StatusReport{StatusReport: &dispatcherv1.StatusReport{
		Sequence: sequence, Statuses: []*dispatcherv1.ReportedStatus{{TaskId: task, Status: &musterv1.TaskStatus{State: state}}},
	}}})
}

// received returns the messages since the last call.
func (w *worker) received() []*dispatcherv1.SessionResponse {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.responses
	w.responses = nil
	return all
}

// tasks returns the number of tasks that the worker was sent.
func (w *worker) tasks() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.model.Tasks)
}

// end returns how the call ended, and false if it has not.
func (w *worker) end() (error, bool) {
	synctest.Wait()
	select {
	case err := <-w.result:
		return err, true
	default:
		return nil, false
	}
}

// kinds returns the types of messages.
func kinds(messages []*dispatcherv1.SessionResponse) []string {
	var all []string
	for _, m := range messages {
		all = append(all, fmt.Sprintf("%T", m.Message)[len("*dispatcherv1.SessionResponse_"):])
	}
	return all
}
