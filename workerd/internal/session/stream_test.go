package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// dispatcher is the other end of sessions.
type dispatcher struct {
	dispatcherv1.UnimplementedDispatcherServiceServer
	period time.Duration
	// messages are sent to the worker that is connected.
	messages chan *dispatcherv1.SessionResponse
	// end ends the session.
	end chan struct{}

	mu    sync.Mutex
	beats map[string][]time.Time
}

// Session implements the service.
func (d *dispatcher) Session(st grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]) error {
	hello, err := st.Recv()
	if err != nil {
		return err
	}
	var sending sync.Mutex
	send := func(m *dispatcherv1.SessionResponse) {
		sending.Lock()
		defer sending.Unlock()
		_ = st.Send(m)
	}
	send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
		HeartbeatPeriod: durationpb.New(d.period), AnswersHeartbeats: true, Dispatchers: []string{"d1"},
	}}})
	d.heard(hello.GetHello().NodeId)
	go func() {
		for {
			m, err := st.Recv()
			if err != nil {
				return
			}
			if m.GetHeartbeat() != nil {
				d.heard(hello.GetHello().NodeId)
				send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_HeartbeatAck{HeartbeatAck: &dispatcherv1.HeartbeatAck{}}})
			}
		}
	}()
	for {
		select {
		case m := <-d.messages:
			send(m)
		case <-d.end:
			return errors.New("the dispatcher ends")
		case <-st.Context().Done():
			return nil
		}
	}
}

func (d *dispatcher) heard(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.beats[node] = append(d.beats[node], time.Now())
}

// network connects workers to dispatchers in memory.
type network struct {
	t *testing.T

	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	dialled   []string
}

func newNetwork(t *testing.T) *network {
	return &network{t: t, listeners: map[string]*bufconn.Listener{}}
}

func (n *network) dispatcher(address string, period time.Duration) *dispatcher {
	d := &dispatcher{period: period, messages: make(chan *dispatcherv1.SessionResponse), end: make(chan struct{}), beats: map[string][]time.Time{}}
	server := grpc.NewServer()
	dispatcherv1.RegisterDispatcherServiceServer(server, d)
	l := bufconn.Listen(16 << 10)
	n.mu.Lock()
	n.listeners[address] = l
	n.mu.Unlock()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	n.t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return d
}

// worker runs the client of a node until the test ends.
func (n *network) worker(node string, dispatchers ...string) *Client {
	c := New(Config{
		NodeID: node, Instance: "1", Dispatchers: dispatchers, Dial: n.dial, Tasks: noTasks{}, Describer: &description{},
		WelcomeTimeout: 10 * time.Second, AckTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	n.t.Cleanup(func() { cancel(); <-done })
	return c
}

func (n *network) dial(address string) (*grpc.ClientConn, error) {
	n.mu.Lock()
	n.dialled = append(n.dialled, address)
	n.mu.Unlock()
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			n.mu.Lock()
			l := n.listeners[address]
			n.mu.Unlock()
			if l == nil {
				return nil, fmt.Errorf("no dispatcher at %s", address)
			}
			return l.DialContext(ctx)
		}))
}

// noTasks is a worker without tasks.
type noTasks struct{}

func (noTasks) Begin()                                                  {}
func (noTasks) Assign(context.Context, *dispatcherv1.Assignments) error { return nil }
func (noTasks) Abandon(context.Context, string) error                   { return nil }
func (noTasks) Status(string) *dispatcherv1.ReportedStatus              { return nil }
func (noTasks) IDs() []string                                           { return nil }
func (noTasks) Logs(context.Context, string, *musterv1.LogOptions, func(*musterv1.LogMessage) error) error {
	return nil
}

// description is a description that does not change.
type description struct{ musterv1.NodeDescription }

func (d *description) Description() (*musterv1.NodeDescription, <-chan struct{}) {
	return &d.NodeDescription, nil
}

// Many workers connect at the same moment. Their heartbeats are spread over the
// period, and none is late.
func TestHeartbeatsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workers, period = 200, 2 * time.Second
		n := newNetwork(t)
		d := n.dispatcher("d1", period)
		for i := range workers {
			n.worker(fmt.Sprintf("n%d", i), "d1")
		}
		synctest.Wait()
		began := time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.beats) != workers {
			t.Fatalf("%d of %d workers were heard", len(d.beats), workers)
		}
		// share counts the heartbeats by the tenth of the period that they fall in,
		// for the first period and for the last.
		var share [2][10]int
		gaps := map[time.Duration]bool{}
		for node, beats := range d.beats {
			for i, at := range beats[1:] {
				gap := at.Sub(beats[i])
				if gap > period || i > 0 && gap < period*9/10 {
					t.Fatalf("heartbeat %d of node %s came after %s, want at most %s and at least nine tenths of it", i, node, gap, period)
				}
				gaps[gap] = true
			}
			if late := began.Add(time.Minute).Sub(beats[len(beats)-1]); late > period {
				t.Errorf("node %s was last heard %s ago", node, late)
			}
			share[0][beats[1].Sub(began)*10/(period+1)]++
			share[1][beats[len(beats)-1].Sub(began.Add(time.Minute-period))*10/(period+1)]++
		}
		for i, tenths := range share {
			if most := slices.Max(tenths[:]); most > workers/4 {
				t.Errorf("period %d: %d of %d heartbeats fall in one tenth: %v", i, most, workers, tenths)
			}
		}
		if len(gaps) < workers {
			t.Errorf("there are only %d different times between heartbeats", len(gaps))
		}
	})
}

// A worker uses the dispatchers that it was told of last.
func TestWorkerFollowsChangedDispatchers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		first, second := n.dispatcher("d1", 2*time.Second), n.dispatcher("d2", 2*time.Second)
		c := n.worker("n1", "d1")
		synctest.Wait()
		if !c.Standing().Connected {
			t.Fatal("worker is not connected")
		}
		// A message that this version does not know.
		first.messages <- &dispatcherv1.SessionResponse{}
		first.messages <- &dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Dispatchers{
			Dispatchers: &dispatcherv1.Dispatchers{Addresses: []string{"d1", "d2"}},
		}}
		synctest.Wait()
		close(first.end)
		time.Sleep(time.Second)
		second.mu.Lock()
		defer second.mu.Unlock()
		if len(second.beats) != 1 {
			n.mu.Lock()
			defer n.mu.Unlock()
			t.Errorf("the worker tried %v, want d2 after d1 has ended", n.dialled)
		}
	})
}
