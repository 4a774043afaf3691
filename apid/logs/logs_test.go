package logs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/logs"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// subscribe answers a subscription, the one of this number at its node.
type subscribe func(n int, req *dispatcherv1.SubscribeLogsRequest, send func(...*musterv1.LogMessage) error) error

// site is a broker, the tasks that it sees, and one dispatcher, which owns all nodes.
type site struct {
	dispatcherv1.UnimplementedLogBrokerServiceServer
	t      *testing.T
	tables *state.Tables
	store  *store.Store
	view   *objects.View
	broker *logs.Broker
	// nodes answer for the nodes.
	nodes map[string]subscribe

	mu    sync.Mutex
	asked map[string][]*dispatcherv1.SubscribeLogsRequest
	dials int
}

// in runs a test on virtual time.
func in(t *testing.T, nodes map[string]subscribe, test func(*testing.T, *site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		space, err := embedded.Open(embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		s := &site{t: t, tables: state.NewTables(), nodes: nodes, asked: map[string][]*dispatcherv1.SubscribeLogsRequest{}}
		if s.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: zaptest.NewLogger(t)}, objects.Tables(s.tables)...); err != nil {
			t.Fatal(err)
		}
		s.view = objects.New(s.store, s.tables, seal.NewKeyring(), 1000)
		listener := bufconn.Listen(1 << 20)
		s.broker = logs.New(s.view, func(node string) (string, bool) { return "dispatcher", node != "unowned" }, func(string) (*grpc.ClientConn, error) {
			s.mu.Lock()
			s.dials++
			s.mu.Unlock()
			return grpc.NewClient("passthrough:///dispatcher", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		})
		server := grpc.NewServer()
		dispatcherv1.RegisterLogBrokerServiceServer(server, s)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		for name, run := range map[string]func() error{
			"store": func() error { return s.store.Run(ctx) }, "view": func() error { return s.view.Run(ctx) },
			"broker": func() error { return s.broker.Run(ctx) }, "server": func() error { return server.Serve(listener) },
		} {
			running.Go(func() {
				if err := run(); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		defer func() {
			cancel()
			server.Stop()
			running.Wait()
			if err := space.Close(); err != nil {
				t.Error(err)
			}
		}()
		if err := s.store.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		s.update(func(tx *store.Tx) {
			s.tables.Services.Put(tx, "web", &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "web"}})
		})
		test(t, s)
	})
}

func (s *site) update(change func(*store.Tx)) {
	s.t.Helper()
	if err := s.store.Update(s.t.Context(), func(tx *store.Tx) error { change(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

// task has a task run on a node.
func (s *site) task(id, node string, slot uint64) {
	s.t.Helper()
	s.update(func(tx *store.Tx) {
		s.tables.NodeStates.Put(tx, node, &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{Hostname: "host-of-" + node}})
		s.tables.Tasks.Put(tx, state.TaskKey("web", slot, "", id), &recordv1.Task{Slot: slot, DesiredState: musterv1.TaskState_RUNNING})
		key := state.NodeTaskKey(node, "web", id)
		s.tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: slot})
		s.tables.Statuses.Put(tx, key, &recordv1.Status{State: musterv1.TaskState_RUNNING})
	})
}

// SubscribeLogs implements dispatcherv1.LogBrokerServiceServer.
func (s *site) SubscribeLogs(req *dispatcherv1.SubscribeLogsRequest, stream grpc.ServerStreamingServer[dispatcherv1.SubscribeLogsResponse]) error {
	s.mu.Lock()
	s.asked[req.NodeId] = append(s.asked[req.NodeId], req)
	n := len(s.asked[req.NodeId])
	s.mu.Unlock()
	return s.nodes[req.NodeId](n, req, func(lines ...*musterv1.LogMessage) error {
		var after []*musterv1.LogMessage
		for _, line := range lines {
			if since := req.Options.GetSince(); slices.Contains(req.TaskIds, line.TaskId) && (since == nil || !line.Timestamp.AsTime().Before(since.AsTime())) {
				after = append(after, line)
			}
		}
		return stream.Send(&dispatcherv1.SubscribeLogsResponse{Messages: after})
	})
}

// all selects the service's tasks.
func all(r *objects.Reader) (tasks []*objects.Task, more bool) {
	r.ServiceTasks("web", "", func(t *objects.Task) bool { tasks = append(tasks, t); return true })
	_, more = r.Service("web")
	return tasks, more
}

// read reads the service's logs to the end.
func (s *site) read(ctx context.Context, opts *musterv1.LogOptions) (lines, warnings []string) {
	s.t.Helper()
	err := s.broker.Stream(ctx, all, opts, func(m *musterv1.LogMessage) error {
		if m.Warning != "" {
			warnings = append(warnings, m.Warning)
		} else {
			lines = append(lines, string(m.Data))
		}
		if m.NodeName != "host-of-"+m.NodeId || m.Warning == "" && !strings.HasPrefix(m.Source, "web.") {
			s.t.Errorf("line says that it is of %q on node %q (%q)", m.Source, m.NodeId, m.NodeName)
		}
		return nil
	})
	if err != nil {
		s.t.Errorf("the stream ended with %v", err)
	}
	return lines, warnings
}

// line is a task's line of a second.
func line(task string, second int64, text string) *musterv1.LogMessage {
	return &musterv1.LogMessage{TaskId: task, Timestamp: timestamppb.New(time.Unix(second, 0)), Data: []byte(text)}
}

// writes answers with lines, and then ends.
func writes(lines ...*musterv1.LogMessage) subscribe {
	return func(_ int, _ *dispatcherv1.SubscribeLogsRequest, send func(...*musterv1.LogMessage) error) error {
		return send(lines...)
	}
}

func TestLinesOfNodesComeByTime(t *testing.T) {
	t.Parallel()
	var busy, quiet []*musterv1.LogMessage
	var want []string
	for i := range int64(5000) {
		busy = append(busy, line("t1", i, fmt.Sprint("busy ", i)))
		want = append(want, fmt.Sprint("busy ", i))
		if i%100 == 0 {
			quiet = append(quiet, line("t2", i, fmt.Sprint("quiet ", i)))
			want = append(want, fmt.Sprint("quiet ", i))
		}
	}
	in(t, map[string]subscribe{"n1": writes(busy...), "n2": writes(quiet...)}, func(t *testing.T, s *site) {
		s.task("t1", "n1", 1)
		s.task("t2", "n2", 2)
		if got, warnings := s.read(t.Context(), nil); len(warnings) > 0 || !slices.Equal(got, want) {
			t.Errorf("%d lines came in another order than that of time, or not all of %d; warnings %q", len(got), len(want), warnings)
		}
	})
}

// TestBrokenConnectionLosesNoLine breaks off between lines of the same time, and
// before one of the tasks has sent its first line, which is an old one.
func TestBrokenConnectionLosesNoLine(t *testing.T) {
	t.Parallel()
	written := []*musterv1.LogMessage{
		line("t1", 10, "a"), line("t1", 11, "b"), line("t1", 11, "c"), line("t1", 11, "d"), line("t2", 5, "old"), line("t1", 12, "e"),
	}
	for _, follow := range []bool{false, true} {
		for broken := range len(written) {
			t.Run(fmt.Sprintf("follow %v, after %d lines", follow, broken), func(t *testing.T) {
				in(t, map[string]subscribe{"n1": func(n int, _ *dispatcherv1.SubscribeLogsRequest, send func(...*musterv1.LogMessage) error) error {
					if n == 1 {
						if err := send(written[:broken]...); err != nil {
							return err
						}
						return status.Error(codes.Unavailable, "the dispatcher is gone")
					}
					return send(written...)
				}}, func(t *testing.T, s *site) {
					s.task("t1", "n1", 1)
					s.task("t2", "n1", 2)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var got []string
					done := make(chan error, 1)
					go func() {
						done <- s.broker.Stream(ctx, all, &musterv1.LogOptions{Follow: follow, Tail: 10}, func(m *musterv1.LogMessage) error {
							if m.Warning == "" {
								got = append(got, string(m.Data))
							}
							return nil
						})
					}()
					time.Sleep(time.Minute)
					cancel()
					if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					slices.Sort(got)
					if want := []string{"a", "b", "c", "d", "e", "old"}; !slices.Equal(got, want) {
						t.Errorf("lines %q, want %q", got, want)
					}
				})
			})
		}
	}
}

// TestUnreachableNodesAreNamed has the logs of one node, and says why those of others
// are missing.
func TestUnreachableNodesAreNamed(t *testing.T) {
	t.Parallel()
	refuse := func(code codes.Code, why string) subscribe {
		return func(int, *dispatcherv1.SubscribeLogsRequest, func(...*musterv1.LogMessage) error) error {
			return status.Error(code, why)
		}
	}
	in(t, map[string]subscribe{
		"n1": writes(line("t1", 1, "one")), "n2": refuse(codes.Unavailable, "not connected"),
		"n3": refuse(codes.ResourceExhausted, "node n3 serves 256 log readers"), "n4": refuse(codes.Internal, "broken"),
	}, func(t *testing.T, s *site) {
		for i, node := range []string{"n1", "n2", "n3", "n4", "unowned"} {
			s.task(fmt.Sprint("t", i+1), node, uint64(i+1))
		}
		lines, warnings := s.read(t.Context(), nil)
		slices.Sort(warnings)
		want := []string{
			"logs of 1 task(s) on node host-of-n2 (n2) are missing: not connected",
			"logs of 1 task(s) on node host-of-n3 (n3) are missing: node n3 serves 256 log readers",
			"logs of 1 task(s) on node host-of-n4 (n4) are missing: broken",
			"logs of 1 task(s) on node host-of-unowned (unowned) are missing: no dispatcher serves it at the moment",
		}
		if !slices.Equal(lines, []string{"one"}) || !slices.Equal(warnings, want) {
			t.Errorf("lines %q, warnings %q", lines, warnings)
		}
		// What may get better is tried again.
		for node, attempts := range map[string]int{"n1": 1, "n2": 3, "n3": 3, "n4": 1} {
			if got := len(s.asked[node]); got != attempts {
				t.Errorf("node %s was asked %d times, want %d", node, got, attempts)
			}
		}
	})
}

// TestFollowerReadsNewTasksUntilTheServiceIsGone: a task is read once, and the stream
// ends when no other can come.
func TestFollowerReadsNewTasksUntilTheServiceIsGone(t *testing.T) {
	t.Parallel()
	in(t, map[string]subscribe{"n1": writes(line("t1", 1, "one"), line("t2", 2, "two"))}, func(t *testing.T, s *site) {
		s.task("t1", "n1", 1)
		done := make(chan []string, 1)
		go func() {
			lines, _ := s.read(t.Context(), &musterv1.LogOptions{Follow: true})
			done <- lines
		}()
		time.Sleep(time.Second)
		s.task("t2", "n1", 2)
		time.Sleep(time.Second)
		s.update(func(tx *store.Tx) { s.tables.Services.Delete(tx, "web") })
		if got, want := <-done, []string{"one", "two"}; !slices.Equal(got, want) {
			t.Errorf("lines %q, want %q", got, want)
		}
		if len(s.asked["n1"]) != 2 || !slices.Equal(s.asked["n1"][1].TaskIds, []string{"t2"}) {
			t.Errorf("subscriptions: %v", s.asked["n1"])
		}
	})
}

// TestDispatchersAreToldTheClient: they share their log readers out among clients.
func TestDispatchersAreToldTheClient(t *testing.T) {
	t.Parallel()
	in(t, map[string]subscribe{"n1": writes()}, func(t *testing.T, s *site) {
		s.task("t1", "n1", 1)
		for _, follow := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}}), time.Second)
			_ = s.broker.Stream(ctx, all, &musterv1.LogOptions{Follow: follow}, func(*musterv1.LogMessage) error { return nil })
			cancel()
		}
		for _, req := range s.asked["n1"] {
			if req.Client != "10.0.0.1" {
				t.Errorf("a dispatcher was told that %q reads", req.Client)
			}
		}
		if len(s.asked["n1"]) != 2 {
			t.Errorf("%d subscriptions, want 2", len(s.asked["n1"]))
		}
	})
}

// TestConnectionsAreSharedAndClosedWhenIdle counts connections to a dispatcher.
func TestConnectionsAreSharedAndClosedWhenIdle(t *testing.T) {
	t.Parallel()
	in(t, map[string]subscribe{"n1": writes(line("t1", 1, "one"))}, func(t *testing.T, s *site) {
		s.task("t1", "n1", 1)
		for _, step := range []struct {
			pause time.Duration
			dials int
		}{{0, 1}, {30 * time.Second, 1}, {5 * time.Minute, 2}} {
			time.Sleep(step.pause)
			for range 3 {
				s.read(t.Context(), nil)
			}
			if s.dials != step.dials {
				t.Errorf("after a pause of %v there were %d connections, want %d", step.pause, s.dials, step.dials)
			}
		}
	})
}

// TestStreamEndsWithItsReader has a reader who fails, and one who goes away while
// nothing comes.
func TestStreamEndsWithItsReader(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	in(t, map[string]subscribe{"n1": writes(line("t1", 1, "one"))}, func(t *testing.T, s *site) {
		s.task("t1", "n1", 1)
		for _, follow := range []bool{false, true} {
			err := s.broker.Stream(t.Context(), all, &musterv1.LogOptions{Follow: follow}, func(*musterv1.LogMessage) error { return gone })
			if !errors.Is(err, gone) {
				t.Errorf("follow %v: the stream ended with %v, want %v", follow, err, gone)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(gone) })
		err := s.broker.Stream(ctx, all, &musterv1.LogOptions{Follow: true}, func(*musterv1.LogMessage) error { return nil })
		if !errors.Is(err, gone) {
			t.Errorf("the stream of a reader who went away ended with %v, want %v", err, gone)
		}
	})
}
