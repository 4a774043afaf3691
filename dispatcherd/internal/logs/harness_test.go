package logs

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
)

// site is a broker that is served over a network in memory.
type site struct {
	t        *testing.T
	broker   *Broker
	calls    *calls.Group
	listener *bufconn.Listener
}

func newSite(t *testing.T, queueBytes, readers int) *site {
	t.Helper()
	s := &site{t: t, calls: calls.NewGroup(), listener: bufconn.Listen(16 << 10)}
	var err error
	if s.broker, err = NewBroker(Config{QueueBytes: queueBytes, Readers: readers, Calls: s.calls}); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	dispatcherv1.RegisterLogBrokerServiceServer(server, s.broker)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(s.listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return s
}

// dial connects as one apid.
func (s *site) dial() *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///broker",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// worker records what the broker sends to a worker.
type worker struct {
	*Worker
	node string

	mu       sync.Mutex
	requests []*dispatcherv1.LogRequest
	cancels  []string
	credit   map[string]int
}

// worker connects a worker.
func (s *site) worker(node string) *worker {
	w := &worker{node: node, credit: map[string]int{}}
	w.Worker = s.broker.NewWorker(w)
	w.Connect(node)
	return w
}

// Send implements [Sender].
func (w *worker) Send(m *dispatcherv1.SessionResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := m.Message.(type) {
	case *dispatcherv1.SessionResponse_LogRequest:
		w.requests = append(w.requests, m.LogRequest)
		w.credit[m.LogRequest.SubscriptionId] += int(m.LogRequest.Credit)
	case *dispatcherv1.SessionResponse_LogCredit:
		w.credit[m.LogCredit.SubscriptionId] += int(m.LogCredit.Credit)
	case *dispatcherv1.SessionResponse_LogCancel:
		w.cancels = append(w.cancels, m.LogCancel.SubscriptionId)
	}
}

// asked returns the requests that the worker has received.
func (w *worker) asked() []*dispatcherv1.LogRequest {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.requests)
}

func (w *worker) cancelled() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.cancels)
}

// left returns how much the worker may still send of a subscription.
func (w *worker) left(subscription string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.credit[subscription]
}

// log sends lines, and uses up their credit.
func (w *worker) log(subscription string, end bool, lines ...*musterv1.LogMessage) {
	w.mu.Lock()
	for _, l := range lines {
		w.credit[subscription] -= cost(l)
	}
	w.mu.Unlock()
	w.Deliver(&dispatcherv1.LogData{SubscriptionId: subscription, Messages: lines, End: end})
}

func line(task, text string) *musterv1.LogMessage {
	return &musterv1.LogMessage{TaskId: task, NodeId: "forged", Data: []byte(text)}
}

type reader = grpc.ServerStreamingClient[dispatcherv1.SubscribeLogsResponse]

// subscribe reads logs for one client, as apid does.
func subscribe(t *testing.T, client string, conn *grpc.ClientConn, node string, tasks ...string) (reader, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := dispatcherv1.NewLogBrokerServiceClient(conn).SubscribeLogs(ctx, &dispatcherv1.SubscribeLogsRequest{
		NodeId: node, TaskIds: tasks, Options: &musterv1.LogOptions{Follow: true, Tail: 5}, Client: client,
	})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return s, cancel
}
