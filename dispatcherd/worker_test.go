package dispatcherd

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
)

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
	// dispatchers is what the worker was told of them last.
	dispatchers []string
	model       *assignmentstest.Worker
	messages    []*dispatcherv1.Assignments
	acked       uint64
	beats       int
	logs        []*dispatcherv1.LogRequest
	cancels     []string
	credit      map[string]int
	err         error
}

func description(node string) *musterv1.NodeDescription {
	return &musterv1.NodeDescription{Hostname: node + ".example", Platform: &musterv1.Platform{Os: "linux"}}
}

// worker starts a session of a node, and says hello.
func (c *cluster) worker(node, address string) *worker { return c.workerAs(node, "1", address) }

func (c *cluster) workerAs(node, instance, address string) *worker {
	c.t.Helper()
	w := c.newWorker(node, c.dial(address))
	w.hello(&dispatcherv1.Hello{NodeId: node, InstanceId: instance, Description: description(node), AssignmentProtocol: assignments.Protocol})
	return w
}

func (c *cluster) newWorker(node string, conn *grpc.ClientConn) *worker {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := dispatcherv1.NewDispatcherServiceClient(conn).Session(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	w := &worker{t: c.t, node: node, conn: conn, stream: stream, cancel: cancel, done: make(chan struct{}), model: assignmentstest.New(), credit: map[string]int{}}
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
			w.welcome, w.dispatchers = m.Welcome, m.Welcome.Dispatchers
		case *dispatcherv1.SessionResponse_Dispatchers:
			w.dispatchers = m.Dispatchers.Addresses
		case *dispatcherv1.SessionResponse_Redirect:
			w.redirect = m.Redirect
		case *dispatcherv1.SessionResponse_Assignments:
			w.messages = append(w.messages, m.Assignments)
			if err := w.model.Apply(m.Assignments); err != nil {
				w.t.Errorf("node %s: %v", w.node, err)
			}
		case *dispatcherv1.SessionResponse_StatusAck:
			w.acked = m.StatusAck.Sequence
		case *dispatcherv1.SessionResponse_HeartbeatAck:
			w.beats++
		case *dispatcherv1.SessionResponse_LogRequest:
			w.logs = append(w.logs, m.LogRequest)
			w.credit[m.LogRequest.SubscriptionId] += int(m.LogRequest.Credit)
		case *dispatcherv1.SessionResponse_LogCredit:
			w.credit[m.LogCredit.SubscriptionId] += int(m.LogCredit.Credit)
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

// ended returns how the session ended, nil if it continues.
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
	for id, t := range w.model.Tasks {
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
func beats(w *worker) int    { return get(w, func(w *worker) int { return w.beats }) }
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
