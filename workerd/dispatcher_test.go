package workerd_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// network connects workers and dispatchers in memory, by address.
type network struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	dials     []string
}

func newNetwork() *network { return &network{listeners: map[string]*bufconn.Listener{}} }

// dial is a worker's way to dispatchers.
func (n *network) dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			n.mu.Lock()
			n.dials = append(n.dials, address)
			l := n.listeners[address]
			n.mu.Unlock()
			if l == nil {
				return nil, errors.New("connection refused")
			}
			return l.DialContext(ctx)
		}))
}

// dialled returns the addresses that were dialled, and forgets them.
func (n *network) dialled() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	dials := n.dials
	n.dials = nil
	return dials
}

// dispatcher is a dispatcher that does what a test says. It speaks the real
// protocol over real gRPC.
type dispatcher struct {
	dispatcherv1.UnimplementedDispatcherServiceServer
	sessions chan *session
}

// serve starts a dispatcher at an address. The returned function takes it away.
func (n *network) serve(t testing.TB, address string) (d *dispatcher, stop func()) {
	t.Helper()
	d = &dispatcher{sessions: make(chan *session, 16)}
	return d, n.serveAt(t, address, d)
}

// serveAt serves a dispatcher at an address.
func (n *network) serveAt(t testing.TB, address string, d dispatcherv1.DispatcherServiceServer) (stop func()) {
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	dispatcherv1.RegisterDispatcherServiceServer(server, d)
	n.mu.Lock()
	n.listeners[address] = listener
	n.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			n.mu.Lock()
			delete(n.listeners, address)
			n.mu.Unlock()
			server.Stop()
			if err := <-done; err != nil {
				t.Errorf("dispatcher: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// session is the dispatcher's side of a session.
type session struct {
	t      testing.TB
	hello  *dispatcherv1.Hello
	stream grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]
	// end takes the error that the stream is to end with.
	end chan error

	// sending is held while something is sent: a stream takes one at a time.
	sending sync.Mutex

	mu         sync.Mutex
	statuses   map[string]*dispatcherv1.ReportedStatus
	reports    []*dispatcherv1.StatusReport
	heartbeats []time.Time
	described  []*musterv1.NodeDescription
	logs       []*dispatcherv1.LogData
	goodbye    *dispatcherv1.Goodbye
	// mute keeps reports from being acknowledged.
	mute bool
	// answers has heartbeats answered.
	answers bool
	// slow is how long it takes to take in a message of logs.
	slow time.Duration
	sent map[string]bool
	// gone is closed when the worker has ended its side.
	gone chan struct{}
}

// Session is the service's method.
func (d *dispatcher) Session(stream grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return status.Error(codes.InvalidArgument, "no hello")
	}
	s := &session{
		hello: first.GetHello(), stream: stream, end: make(chan error, 1),
		statuses: map[string]*dispatcherv1.ReportedStatus{}, sent: map[string]bool{}, gone: make(chan struct{}),
	}
	d.sessions <- s
	go s.read()
	select {
	case err := <-s.end:
		return err
	case <-s.gone:
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// read takes in what the worker says, and acknowledges reports.
func (s *session) read() {
	defer close(s.gone)
	for {
		req, err := s.stream.Recv()
		if err != nil {
			return
		}
		if req.GetLogData() != nil {
			time.Sleep(s.slow)
		}
		s.mu.Lock()
		ack, answer := uint64(0), false
		switch m := req.GetMessage().(type) {
		case *dispatcherv1.SessionRequest_Heartbeat:
			s.heartbeats = append(s.heartbeats, time.Now())
			answer = s.answers
		case *dispatcherv1.SessionRequest_StatusReport:
			s.reports = append(s.reports, m.StatusReport)
			for _, reported := range m.StatusReport.GetStatuses() {
				s.statuses[reported.GetTaskId()] = reported
			}
			if !s.mute {
				ack = m.StatusReport.GetSequence()
			}
		case *dispatcherv1.SessionRequest_Description:
			s.described = append(s.described, m.Description)
		case *dispatcherv1.SessionRequest_LogData:
			s.logs = append(s.logs, m.LogData)
		case *dispatcherv1.SessionRequest_Goodbye:
			s.goodbye = m.Goodbye
		}
		s.mu.Unlock()
		if answer {
			s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_HeartbeatAck{HeartbeatAck: &dispatcherv1.HeartbeatAck{}}})
		}
		if ack != 0 {
			s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_StatusAck{StatusAck: &dispatcherv1.StatusAck{Sequence: ack}}})
		}
	}
}

func (s *session) send(msg *dispatcherv1.SessionResponse) {
	s.sending.Lock()
	defer s.sending.Unlock()
	// A worker that has gone away meanwhile is what some tests are about.
	_ = s.stream.Send(msg)
}

// await returns the next session. It is for tests in a bubble: time passes as
// it needs to.
func (d *dispatcher) await(t testing.TB) *session {
	t.Helper()
	select {
	case s := <-d.sessions:
		s.t = t
		return s
	case <-time.After(time.Hour * 24):
		t.Fatal("no session")
		return nil
	}
}

// welcome begins a session.
func (s *session) welcome(dispatchers ...string) {
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
		HeartbeatPeriod: durationpb.New(2 * time.Second), Dispatchers: dispatchers,
	}}})
}

func (s *session) redirect(address string, dispatchers ...string) {
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Redirect{Redirect: &dispatcherv1.Redirect{
		Address: address, Dispatchers: dispatchers,
	}}})
	s.end <- nil
}

// assign sends tasks, with the specs that they need, as a dispatcher does that
// speaks the worker's protocol.
func (s *session) assign(complete bool, tasks []assignment, removed ...string) {
	msg := &dispatcherv1.Assignments{Complete: complete, Last: complete}
	for _, task := range tasks {
		if spec := s.newSpec(task); spec != nil {
			msg.Objects = append(msg.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Spec{Spec: spec}})
		}
		msg.Objects = append(msg.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Task{Task: task.AssignedTask}})
	}
	for _, id := range removed {
		msg.Withdrawn = append(msg.Withdrawn, &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Task{Task: id}})
	}
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: msg}})
}

// assignOld sends tasks as a dispatcher does that speaks protocol 0.
func (s *session) assignOld(complete bool, tasks []assignment, removed ...string) {
	msg := &dispatcherv1.Assignments{Complete: complete, Last: complete, Removed: removed}
	for _, task := range tasks {
		if spec := s.newSpec(task); spec != nil {
			msg.Specs = append(msg.Specs, spec)
		}
		msg.Tasks = append(msg.Tasks, task.AssignedTask)
	}
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: msg}})
}

// newSpec returns the spec of a task if the session has not sent it yet.
func (s *session) newSpec(task assignment) *dispatcherv1.AssignedSpec {
	digest := string(task.AssignedTask.GetSpecDigest())
	if s.sent[digest] {
		return nil
	}
	s.sent[digest] = true
	return &dispatcherv1.AssignedSpec{Digest: []byte(digest), Spec: task.spec}
}

// withdrawSpec withdraws the spec of a task.
func (s *session) withdrawSpec(task assignment) {
	delete(s.sent, string(task.SpecDigest))
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: &dispatcherv1.Assignments{
		Withdrawn: []*dispatcherv1.ObjectRef{{Ref: &dispatcherv1.ObjectRef_Spec{Spec: task.SpecDigest}}},
	}}})
}

// settle lets the worker do what there is to do within a time.
func settle(within time.Duration) {
	time.Sleep(within)
	synctest.Wait()
}

// state returns what the worker said of a task in this session.
func (s *session) state(id string) *musterv1.TaskStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statuses[id].GetStatus()
}

// wantStates fails the test unless the worker said exactly this.
func (s *session) wantStates(want map[string]musterv1.TaskState) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[string]musterv1.TaskState{}
	for id, reported := range s.statuses {
		got[id] = reported.GetStatus().GetState()
	}
	if !maps.Equal(got, want) {
		s.t.Errorf("reported states: %v, want %v", got, want)
	}
}

// wantLast fails the test unless these tasks were last reported to be in these states.
func (s *session) wantLast(want map[string]musterv1.TaskState) {
	s.t.Helper()
	for id, state := range want {
		if got := s.state(id); got.GetState() != state {
			s.t.Errorf("task %s: %v, want it %s", id, got, state)
		}
	}
}

// all returns everything that was reported of a task, in order.
func (s *session) all(id string) []*dispatcherv1.ReportedStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*dispatcherv1.ReportedStatus
	for _, report := range s.reports {
		for _, reported := range report.GetStatuses() {
			if reported.GetTaskId() == id {
				all = append(all, reported)
			}
		}
	}
	return all
}

// assignment is a task with its spec.
type assignment struct {
	*dispatcherv1.AssignedTask
	spec *musterv1.TaskSpec
}

// nullTask returns a task for the null executor, which does what a script says.
func nullTask(id string, desired musterv1.TaskState, script map[string]any) assignment {
	payload, err := structpb.NewStruct(script)
	if err != nil {
		panic(err)
	}
	digest := "null"
	for _, key := range slices.Sorted(maps.Keys(script)) {
		value, _ := structpb.NewValue(script[key])
		digest += "," + key + "=" + value.String()
	}
	return assignment{
		AssignedTask: &dispatcherv1.AssignedTask{
			Id: id, ServiceId: "svc", ServiceName: "web", Slot: 1, SpecDigest: []byte(digest), DesiredState: desired,
		},
		spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null", Payload: payload}}},
	}
}

// desire returns the assignment with another desired state.
func (a assignment) desire(state musterv1.TaskState) assignment {
	a.AssignedTask = &dispatcherv1.AssignedTask{
		Id: a.Id, ServiceId: a.ServiceId, ServiceName: a.ServiceName, Slot: a.Slot, SpecDigest: a.SpecDigest, DesiredState: state,
	}
	return a
}

// known returns the assignment with what the managers know of it.
func (a assignment) known(state musterv1.TaskState) assignment {
	a = a.desire(a.DesiredState)
	a.KnownState = state
	return a
}
