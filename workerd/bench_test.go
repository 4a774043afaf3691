package workerd_test

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// counter is a dispatcher that counts tasks that run, and nothing else.
type counter struct {
	dispatcherv1.UnimplementedDispatcherServiceServer
	sessions chan *counted
}

type counted struct {
	stream  dispatcherv1.DispatcherService_SessionServer
	running chan int
	// sending is held while something is sent: a stream takes one at a time.
	sending sync.Mutex
}

func (c *counted) send(msg *dispatcherv1.SessionResponse) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.stream.Send(msg)
}

func (c *counter) Session(stream dispatcherv1.DispatcherService_SessionServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	s := &counted{stream: stream, running: make(chan int, 1000)}
	c.sessions <- s
	if err := s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{}}}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		report := req.GetStatusReport()
		if report == nil {
			continue
		}
		n := 0
		for _, s := range report.GetStatuses() {
			if s.GetStatus().GetState() == musterv1.TaskState_RUNNING {
				n++
			}
		}
		if err := s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_StatusAck{
			StatusAck: &dispatcherv1.StatusAck{Sequence: report.GetSequence()},
		}}); err != nil {
			return err
		}
		s.running <- n
	}
}

// cpu returns the CPU time that this process has used.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkAssigned measures from assignment to the last report of RUNNING,
// over real gRPC in memory. The figures hold both sides of the connection.
func BenchmarkAssigned(b *testing.B) {
	for _, test := range []struct {
		workers, tasks int
		disk           bool
	}{
		{1, 1, false},
		{1, 10_000, false},
		{100, 10_000, false},
		{1000, 20_000, false},
		{1, 10_000, true},
		{100, 10_000, true},
	} {
		b.Run(fmt.Sprintf("workers=%d/tasks=%d/disk=%t", test.workers, test.tasks, test.disk), func(b *testing.B) {
			benchmarkAssigned(b, test.workers, test.tasks, test.disk)
		})
	}
}

func benchmarkAssigned(b *testing.B, workers, tasks int, disk bool) {
	n := newNetwork()
	c := &counter{sessions: make(chan *counted, workers)}
	stop := n.serveAt(b, "d1:1", c)
	defer stop()
	var nodes []*node
	var executors []*null.Executor
	var sessions []*counted
	for i := range workers {
		e, err := null.New(null.Config{})
		if err != nil {
			b.Fatal(err)
		}
		set, err := executor.NewFixed(b.Context(), contractv1.FromServer(sdk.NewServer(e)))
		if err != nil {
			b.Fatal(err)
		}
		executors = append(executors, e)
		nodes = append(nodes, start(b, n, set, func(cfg *workerd.Config) {
			cfg.NodeID = fmt.Sprint("node", i)
			if disk {
				cfg.DataDir = b.TempDir()
			}
		}))
		sessions = append(sessions, <-c.sessions)
	}
	spec := nullTask("", running, nil)
	round := 0
	var used, wall time.Duration
	var memory runtime.MemStats
	for b.Loop() {
		round++
		var messages [][]*dispatcherv1.Assignments
		for w := range workers {
			messages = append(messages, assignmentsOf(spec, fmt.Sprint(round, ".", w, "."), tasks/workers))
		}
		runtime.GC()
		before, began := cpu(), time.Now()
		for w, s := range sessions {
			for _, msg := range messages[w] {
				if err := s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: msg}}); err != nil {
					b.Fatal(err)
				}
			}
		}
		for _, s := range sessions {
			for seen := 0; seen < tasks/workers; {
				seen += <-s.running
			}
		}
		used += cpu() - before
		wall += time.Since(began)
		runtime.GC()
		runtime.ReadMemStats(&memory)
		for w, s := range sessions {
			nothing := &dispatcherv1.Assignments{Complete: true, Last: true}
			if err := s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: nothing}}); err != nil {
				b.Fatal(err)
			}
			for listed := []sdk.Listed{{}}; len(listed) > 0; runtime.Gosched() {
				var err error
				if listed, err = executors[w].List(b.Context(), ""); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.ReportMetric(float64(used.Microseconds())/float64(b.N*tasks), "µs-cpu/task")
	b.ReportMetric(float64(wall.Microseconds())/float64(b.N), "µs-wall/round")
	b.ReportMetric(float64(memory.HeapAlloc)/float64(workers)/1024, "heap-KiB/worker")
	b.ReportMetric(float64(memory.StackInuse)/float64(workers)/1024, "stack-KiB/worker")
	for _, node := range nodes {
		node.stop()
	}
}

// assignmentsOf makes a complete set of tasks, in messages of some hundreds.
func assignmentsOf(like assignment, prefix string, tasks int) []*dispatcherv1.Assignments {
	const most = 500
	var all []*dispatcherv1.Assignments
	for first := 0; first < tasks; first += most {
		msg := &dispatcherv1.Assignments{Complete: true, Last: first+most >= tasks}
		if first == 0 {
			msg.Objects = append(msg.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Spec{
				Spec: &dispatcherv1.AssignedSpec{Digest: like.SpecDigest, Spec: like.spec},
			}})
		}
		for i := first; i < min(first+most, tasks); i++ {
			msg.Objects = append(msg.Objects, &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Task{Task: &dispatcherv1.AssignedTask{
				Id: prefix + fmt.Sprint(i), ServiceId: "svc", ServiceName: "web", Slot: uint64(i + 1),
				SpecDigest: like.SpecDigest, DesiredState: running,
			}}})
		}
		all = append(all, msg)
	}
	return all
}
