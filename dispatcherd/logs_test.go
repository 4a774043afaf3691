package dispatcherd

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (w *worker) log(subscription string, end bool, lines ...*musterv1.LogMessage) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_LogData{
		LogData: &dispatcherv1.LogData{SubscriptionId: subscription, Messages: lines, End: end},
	}})
}

func line(task, text string) *musterv1.LogMessage {
	return &musterv1.LogMessage{TaskId: task, NodeId: "forged", Data: []byte(text)}
}

// subscribe reads logs as apid does.
func subscribe(t *testing.T, conn *grpc.ClientConn, node string, tasks ...string) (grpc.ServerStreamingClient[dispatcherv1.SubscribeLogsResponse], func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := dispatcherv1.NewLogBrokerServiceClient(conn).SubscribeLogs(ctx, &dispatcherv1.SubscribeLogsRequest{
		NodeId: node, TaskIds: tasks, Options: &musterv1.LogOptions{Follow: true, Tail: 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return s, cancel
}

func TestLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1", func(cfg *Config) { cfg.LogQueueBytes = 256 << 10 })
		synctest.Wait()
		w := c.worker("n1", d.address)
		if welcomed(w) == nil {
			t.Fatal("worker is not welcome")
		}
		conn := c.dial(d.address)
		var read []string
		receive := func(s grpc.ServerStreamingClient[dispatcherv1.SubscribeLogsResponse]) error {
			m, err := s.Recv()
			if err != nil {
				return err
			}
			for _, l := range m.Messages {
				if l.NodeId != "n1" {
					t.Errorf("line says that it is of node %s", l.NodeId)
				}
				read = append(read, string(l.Data))
			}
			return nil
		}

		// Read to the end.
		s, _ := subscribe(t, conn, "n1", "t1", "t2")
		requests := logRequests(w)
		if len(requests) != 1 || len(requests[0].TaskIds) != 2 || requests[0].Options.Tail != 5 {
			t.Fatalf("worker was asked for %v", requests)
		}
		id := requests[0].SubscriptionId
		w.log(id, false, line("t1", "one"), line("another's", "forged"))
		w.log("unknown", false, line("t1", "astray"))
		w.log(id, true, line("t2", "two"))
		synctest.Wait()
		var err error
		for err == nil {
			err = receive(s)
		}
		if !errors.Is(err, io.EOF) || len(read) != 2 || read[0] != "one" || read[1] != "two" {
			t.Fatalf("read %q, then %v", read, err)
		}
		if got := logCancels(w); len(got) != 0 {
			t.Errorf("a subscription that has ended is cancelled: %v", got)
		}

		// The reader goes away.
		_, cancel := subscribe(t, conn, "n1", "t1")
		id = logRequests(w)[1].SubscriptionId
		cancel()
		if got := logCancels(w); len(got) != 1 || got[0] != id {
			t.Fatalf("cancelled are %v, want %s", got, id)
		}

		// A worker sends more than it has credit for: its other traffic continues, and
		// the reader is told why it gets no other lines.
		s, _ = subscribe(t, conn, "n1", "t1")
		id = logRequests(w)[2].SubscriptionId
		block := string(make([]byte, 16<<10))
		for range 64 {
			w.log(id, false, line("t1", block))
		}
		w.report(1)
		if acked(w) != 1 {
			t.Fatal("a reader of logs holds the session up")
		}
		for err = nil; err == nil; {
			err = receive(s)
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("reader of a worker that does not wait got %v, want RESOURCE_EXHAUSTED", err)
		}
		if got := logCancels(w); len(got) != 2 || got[1] != id {
			t.Fatalf("cancelled are %v, want %s too", got, id)
		}

		// The worker goes away.
		s, _ = subscribe(t, conn, "n1", "t1")
		w.hangUp()
		if err := receive(s); status.Code(err) != codes.Unavailable {
			t.Fatalf("reader of a node that went away got %v, want UNAVAILABLE", err)
		}
		s, _ = subscribe(t, conn, "n1", "t1")
		if err := receive(s); status.Code(err) != codes.Unavailable {
			t.Fatalf("reader of a node that is away got %v, want UNAVAILABLE", err)
		}
		s, _ = subscribe(t, conn, "n1")
		if err := receive(s); status.Code(err) != codes.InvalidArgument {
			t.Fatalf("reader of nothing got %v, want INVALID_ARGUMENT", err)
		}
		_ = conn.Close()
	})
}
