package session

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// fakeNetwork connects clients with dispatchers in memory, by address.
type fakeNetwork struct {
	t *testing.T

	mu          sync.Mutex
	dispatchers map[string]*fakeDispatcher
	dials       []dial
}

// dial is an attempt to connect.
type dial struct {
	address string
	at      time.Time
}

func newNetwork(t *testing.T) *fakeNetwork {
	return &fakeNetwork{t: t, dispatchers: map[string]*fakeDispatcher{}}
}

// connect dials an address.
func (n *fakeNetwork) connect(address string) (*grpc.ClientConn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, dial{address, time.Now()})
	n.mu.Unlock()
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			n.mu.Lock()
			d := n.dispatchers[address]
			n.mu.Unlock()
			if d == nil {
				return nil, errors.New("connection refused")
			}
			return d.listener.DialContext(ctx)
		}))
}

// dialled returns the addresses that were dialled since the last call.
func (n *fakeNetwork) dialled() (addresses []string) {
	for _, d := range n.attempts() {
		addresses = append(addresses, d.address)
	}
	return addresses
}

// attempts returns the dials since the last call.
func (n *fakeNetwork) attempts() []dial {
	n.mu.Lock()
	defer n.mu.Unlock()
	dials := n.dials
	n.dials = nil
	return dials
}

// fakeDispatcher is the other side of sessions. Tests say what it sends.
type fakeDispatcher struct {
	dispatcherv1.UnimplementedDispatcherServiceServer
	t        *testing.T
	listener *bufconn.Listener
	sessions chan *peer
	// answers says that it answers heartbeats.
	answers atomic.Bool
}

// serve starts a dispatcher at an address.
func (n *fakeNetwork) serve(address string) *fakeDispatcher {
	d := &fakeDispatcher{t: n.t, listener: bufconn.Listen(1 << 16), sessions: make(chan *peer, 256)}
	server := grpc.NewServer()
	dispatcherv1.RegisterDispatcherServiceServer(server, d)
	n.mu.Lock()
	n.dispatchers[address] = d
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(d.listener)
	}()
	n.t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return d
}

// client runs a client of a node that knows the dispatcher a, until stop is called
// or the test ends.
func (n *fakeNetwork) client(node string, tasks *fakeTasks, describer Describer) (c *Client, stop func()) {
	c = New(Config{
		NodeID: node, Instance: "instance1", Dispatchers: []string{"a"}, Dial: n.connect,
		Tasks: tasks, Describer: describer, Reports: NewReports(),
		WelcomeTimeout: 5 * time.Second, AckTimeout: time.Minute, Logger: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			n.t.Errorf("run: %v", err)
		}
	})
	n.t.Cleanup(stop)
	go func() { done <- c.Run(ctx) }()
	return c, stop
}

// peer is the dispatcher's side of one session.
type peer struct {
	t      *testing.T
	stream grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]
	hello  *dispatcherv1.Hello
	// end takes the error that the session must end with.
	end chan error
	// sending is held while something is sent: a stream takes one message at a time.
	sending sync.Mutex

	mu       sync.Mutex
	received []*dispatcherv1.SessionRequest
	beats    []time.Time
}

func (d *fakeDispatcher) Session(stream grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	p := &peer{t: d.t, stream: stream, hello: first.GetHello(), end: make(chan error, 1)}
	d.sessions <- p
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			p.mu.Lock()
			beat := msg.GetHeartbeat() != nil
			if beat {
				p.beats = append(p.beats, time.Now())
			} else {
				p.received = append(p.received, msg)
			}
			p.mu.Unlock()
			if beat && d.answers.Load() {
				p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_HeartbeatAck{HeartbeatAck: &dispatcherv1.HeartbeatAck{}}})
			}
		}
	}()
	select {
	case err := <-p.end:
		return err
	case <-closed:
		return nil
	}
}

// await returns the next session of a dispatcher.
func (d *fakeDispatcher) await() *peer {
	d.t.Helper()
	select {
	case p := <-d.sessions:
		return p
	case <-time.After(time.Hour):
		d.t.Fatal("no session within an hour")
		return nil
	}
}

func (p *peer) send(msg *dispatcherv1.SessionResponse) {
	p.t.Helper()
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.stream.Send(msg); err != nil {
		p.t.Errorf("send: %v", err)
	}
}

// welcome accepts the worker.
func (p *peer) welcome(change func(w *dispatcherv1.Welcome)) {
	p.t.Helper()
	w := &dispatcherv1.Welcome{HeartbeatPeriod: durationpb.New(2 * time.Second)}
	if change != nil {
		change(w)
	}
	p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: w}})
	synctest.Wait()
}

func (p *peer) redirect(address string, dispatchers ...string) {
	p.t.Helper()
	p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Redirect{
		Redirect: &dispatcherv1.Redirect{Address: address, Dispatchers: dispatchers},
	}})
}

func (p *peer) ack(sequence uint64) {
	p.t.Helper()
	p.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_StatusAck{
		StatusAck: &dispatcherv1.StatusAck{Sequence: sequence},
	}})
}

// refuse ends the session because the worker is not the node.
func (p *peer) refuse(reason dispatcherv1.Refusal_Reason) {
	p.t.Helper()
	s, err := status.New(codes.AlreadyExists, "not the node").WithDetails(&dispatcherv1.Refusal{Reason: reason})
	if err != nil {
		p.t.Fatal(err)
	}
	p.end <- s.Err()
}

// reports returns the status reports of the session.
func (p *peer) reports() (all []*dispatcherv1.StatusReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, msg := range p.received {
		if r := msg.GetStatusReport(); r != nil {
			all = append(all, r)
		}
	}
	return all
}

// reported returns the tasks of a report, sorted.
func reported(r *dispatcherv1.StatusReport) (ids []string) {
	for _, s := range r.GetStatuses() {
		ids = append(ids, s.GetTaskId())
	}
	slices.Sort(ids)
	return ids
}

// fakeTasks is the worker's tasks.
type fakeTasks struct {
	mu       sync.Mutex
	statuses map[string]musterv1.TaskState
	// errors are those in the statuses.
	errors    map[string]string
	begun     int
	assigned  []*dispatcherv1.Assignments
	assignErr error
	abandoned []string
}

func newTasks() *fakeTasks {
	return &fakeTasks{statuses: map[string]musterv1.TaskState{}, errors: map[string]string{}}
}

func (f *fakeTasks) Begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun++
}

func (f *fakeTasks) Assign(_ context.Context, msg *dispatcherv1.Assignments) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.assigned = append(f.assigned, msg)
	err := f.assignErr
	f.assignErr = nil
	return err
}

func (f *fakeTasks) Abandon(_ context.Context, why string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.abandoned = append(f.abandoned, why)
	return nil
}

func (f *fakeTasks) Status(id string) *dispatcherv1.ReportedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.statuses[id] == 0 {
		return nil
	}
	return &dispatcherv1.ReportedStatus{TaskId: id, Status: &musterv1.TaskStatus{State: f.statuses[id], Error: f.errors[id]}}
}

func (f *fakeTasks) IDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.statuses))
}

func (f *fakeTasks) Logs(context.Context, string, *musterv1.LogOptions, func(*musterv1.LogMessage) error) error {
	return nil
}

func (f *fakeTasks) set(id string, state musterv1.TaskState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[id] = state
}

// fakeNode is what describes the node.
type fakeNode struct {
	mu      sync.Mutex
	current *musterv1.NodeDescription
	changed chan struct{}
}

func newNode() *fakeNode {
	return &fakeNode{current: &musterv1.NodeDescription{Hostname: "host1"}, changed: make(chan struct{})}
}

func (f *fakeNode) Description() (*musterv1.NodeDescription, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, f.changed
}

func (f *fakeNode) rename(hostname string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = &musterv1.NodeDescription{Hostname: hostname}
	close(f.changed)
	f.changed = make(chan struct{})
}

// fixture is a client in a bubble.
type fixture struct {
	t       *testing.T
	network *fakeNetwork
	tasks   *fakeTasks
	node    *fakeNode
	client  *Client
	stop    func()
}

// inBubble runs a test with a client that knows the dispatcher a.
func inBubble(t *testing.T, test func(f *fixture)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{
			t: t, network: newNetwork(t), tasks: newTasks(), node: newNode(),
		}
		f.network.serve("a")
		f.client, f.stop = f.network.client("node1", f.tasks, f.node)
		test(f)
		f.stop()
	})
}

// at returns the dispatcher at an address.
func (f *fixture) at(address string) *fakeDispatcher {
	f.network.mu.Lock()
	defer f.network.mu.Unlock()
	return f.network.dispatchers[address]
}

// pass lets time pass in the bubble.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
