package dispatcherd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const (
	running  = musterv1.TaskState_RUNNING
	shutdown = musterv1.TaskState_SHUTDOWN
)

// reported is a status that a worker reports, of so many milliseconds.
func reported(task string, s musterv1.TaskState, ms int64, message string) *dispatcherv1.ReportedStatus {
	at := timestamppb.New(time.UnixMilli(ms))
	return &dispatcherv1.ReportedStatus{TaskId: task, Status: &musterv1.TaskStatus{State: s, Timestamp: at, Message: message}}
}

// TestLifeOfTask follows one task from its assignment to its end.
func TestLifeOfTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) {
			c.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: &musterv1.ClusterSpec{
				Dispatcher: &musterv1.DispatcherConfig{HeartbeatPeriod: durationpb.New(1500 * time.Millisecond)},
			}})
			c.tables.Nodes.Put(tx, "n1", &recordv1.Node{Spec: &musterv1.NodeSpec{Labels: map[string]string{"zone": "a"}}})
			c.assign(tx, "n1", "s1", "t1", 1)
			c.assign(tx, "n2", "s1", "t2", 2)
		})
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", musterv1.NodeStatus_READY)
		if got := c.nodeState("n1"); got.Description.Hostname != "n1.example" || got.InstanceId != "1" || got.Address != "bufconn" {
			t.Errorf("node's record is %v", got)
		}
		hello := welcomed(w)
		if got := hello.HeartbeatPeriod.AsDuration(); got != 1500*time.Millisecond {
			t.Errorf("heartbeat period is %s, want the cluster's", got)
		}
		if hello.Node.Labels["zone"] != "a" || len(hello.Dispatchers) != 1 || hello.Dispatchers[0] != d.address {
			t.Errorf("welcome is %v", hello)
		}
		if diff := cmp.Diff(map[string]musterv1.TaskState{"t1": running}, w.tasks()); diff != "" {
			t.Fatalf("complete set (-want +got):\n%s", diff)
		}
		task := get(w, func(w *worker) *dispatcherv1.AssignedTask { return w.model.Tasks["t1"] })
		if task.ServiceName != "name-of-s1" || task.ServiceLabels["a"] != "b" || task.Slot != 1 || task.Ports[0].PublishedPort != 8080 {
			t.Errorf("task is %v", task)
		}

		w.report(1, reported("t1", musterv1.TaskState_PREPARING, 10, "pulling"))
		if acked(w) != 1 {
			t.Fatal("report is not acknowledged")
		}
		w.report(2, reported("t1", running, 20, "started"))
		if acked(w) != 2 {
			t.Fatal("report is not acknowledged")
		}
		got := c.status("n1", "s1", "t1")
		if got.GetState() != running || len(got.Reached) != 2 || got.AppliedAt == 0 {
			t.Fatalf("status is %v", got)
		}

		// More of the same service: its spec is not sent again (the model checks).
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "t3", 3)
			c.assign(tx, "n1", "s1", "t4", 4)
		})
		if got := w.tasks(); len(got) != 3 {
			t.Fatalf("tasks are %v, want three", got)
		}
		c.desire("n1", "s1", "t1", 1, shutdown)
		if got := w.tasks(); got["t1"] != shutdown {
			t.Fatalf("tasks are %v, want t1 to shut down", got)
		}
		w.report(3, reported("t1", shutdown, 30, "shutdown"))
		if acked(w) != 3 {
			t.Fatal("report is not acknowledged")
		}

		// The orchestrator removes its record: the worker is told. The scheduler
		// follows: the status goes.
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey("s1", 1, "", "t1")) })
		if _, still := w.tasks()["t1"]; still {
			t.Fatal("task whose record is gone is not withdrawn")
		}
		if c.status("n1", "s1", "t1").GetState() != shutdown {
			t.Fatal("status is gone before its assignment")
		}
		c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, "n1/s1/t1") })
		synctest.Wait()
		if got := c.status("n1", "s1", "t1"); got != nil {
			t.Fatalf("status of an assignment that is gone is %v", got)
		}
		// A late word about it brings nothing back, and is acknowledged.
		w.report(4, reported("t1", shutdown, 30, "shutdown"))
		if acked(w) != 4 || c.status("n1", "s1", "t1") != nil {
			t.Fatalf("acknowledged %d, status is %v", acked(w), c.status("n1", "s1", "t1"))
		}
		w.goodbye(false)
		c.wantNode("n1", musterv1.NodeStatus_DOWN)
	})
}

// TestReports sends reports twice, late, in the wrong order and of the wrong
// tasks.
func TestReports(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "mine", 1)
			c.assign(tx, "n2", "s1", "other", 2)
		})
		synctest.Wait()
		w := c.worker("n1", d.address)
		for i, s := range []struct {
			report  *dispatcherv1.ReportedStatus
			state   musterv1.TaskState
			message string
		}{
			{reported("mine", running, 20, "up"), running, "up"},
			{reported("mine", musterv1.TaskState_STARTING, 30, "late"), running, "up"},
			{reported("mine", running, 20, "up"), running, "up"},
			{reported("mine", running, 10, "older"), running, "up"},
			{reported("mine", running, 40, "newer"), running, "newer"},
			{reported("mine", musterv1.TaskState_ORPHANED, 50, "forged"), running, "newer"},
			{reported("other", running, 20, "not mine"), running, "newer"},
			{reported("unknown", running, 20, "not there"), running, "newer"},
			{reported("mine", musterv1.TaskState_FAILED, 60, "over"), musterv1.TaskState_FAILED, "over"},
			{reported("mine", running, 70, "zombie"), musterv1.TaskState_FAILED, "over"},
		} {
			w.report(uint64(i+1), s.report)
			if got := acked(w); got != uint64(i+1) {
				t.Fatalf("report %d (%v): acknowledged %d", i+1, s.report, got)
			}
			if got := c.status("n1", "s1", "mine"); got.GetState() != s.state || got.GetMessage() != s.message {
				t.Fatalf("report %d (%v): status is %v, want %s %q", i+1, s.report, got, s.state, s.message)
			}
		}
		if got := c.status("n2", "s1", "other"); got != nil {
			t.Errorf("another node's task has status %v", got)
		}

		// All is reported again in the next session, and nothing is written for it.
		before := c.tables.Statuses.Sequences(c.store.Snapshot())
		w.hangUp()
		w = c.worker("n1", d.address)
		w.report(1, reported("mine", musterv1.TaskState_FAILED, 60, "over"))
		if acked(w) != 1 {
			t.Fatal("report of what is known is not acknowledged")
		}
		if diff := cmp.Diff(before, c.tables.Statuses.Sequences(c.store.Snapshot())); diff != "" {
			t.Errorf("a report of what is known was written:\n%s", diff)
		}
		if known := get(w, func(w *worker) musterv1.TaskState { return w.model.Tasks["mine"].KnownState }); known != musterv1.TaskState_FAILED {
			t.Errorf("known state is %s, want FAILED", known)
		}
	})
}

// TestReportsWaitForStore checks that nothing is acknowledged that is not
// kept, and that the newest of each task is written once the store is back.
func TestReportsWaitForStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) { c.assign(tx, "n1", "s1", "t1", 1) })
		synctest.Wait()
		w := c.worker("n1", d.address)
		w.report(1, reported("t1", musterv1.TaskState_ACCEPTED, 10, ""))
		if acked(w) != 1 {
			t.Fatal("first report is not acknowledged")
		}
		d.away(true)
		w.report(2, reported("t1", musterv1.TaskState_PREPARING, 20, ""))
		w.report(3, reported("t1", musterv1.TaskState_STARTING, 30, ""))
		w.report(4, reported("t1", running, 40, ""))
		w.live(3 * time.Second)
		if got := acked(w); got != 1 {
			t.Fatalf("report %d is acknowledged, and the store is away", got)
		}
		d.away(false)
		w.live(3 * time.Second)
		got := c.status("n1", "s1", "t1")
		if acked(w) != 4 || got.GetState() != running || len(got.Reached) != 4 {
			t.Fatalf("acknowledged %d, status is %v, want RUNNING with four times", acked(w), got)
		}
	})
}

// TestLateRecords checks that a task waits for its spec and its service, and
// that a complete set waits a moment for what may only be late.
func TestLateRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s0")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s0", "t0", 1)
			c.assign(tx, "n1", "s1", "t1", 1) // its service and spec come later
		})
		synctest.Wait()
		w := c.worker("n1", d.address)
		if got := w.tasks(); len(got) != 0 || len(w.messages) != 0 {
			t.Fatalf("complete set came at once: %v", got)
		}
		time.Sleep(d.cfg.SettleTimeout / 2)
		c.service("s1")
		if got := w.tasks(); len(got) != 2 {
			t.Fatalf("complete set is %v, want both tasks as soon as all is there", got)
		}
		// Once it is told, only what is late waits.
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s2", "t2", 1)
			c.assign(tx, "n1", "s0", "t3", 2)
		})
		if got := w.tasks(); len(got) != 3 {
			t.Fatalf("tasks are %v, want t3 and not t2", got)
		}
		w.live(time.Minute)
		c.service("s2")
		if got := w.tasks(); len(got) != 4 {
			t.Fatalf("tasks are %v, want t2 too", got)
		}
		// A complete set does not wait forever. An assignment without its task is
		// left out.
		w.hangUp()
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey("s2", 1, "", "t2")) })
		synctest.Wait()
		w = c.worker("n1", d.address)
		if got := w.tasks(); len(got) != 0 {
			t.Fatalf("complete set came at once: %v", got)
		}
		time.Sleep(d.cfg.SettleTimeout)
		if got := w.tasks(); len(got) != 3 {
			t.Fatalf("complete set is %v, want three tasks", got)
		}
	})
}

// TestRecordsInAnyOrder writes tasks and what they refer to side by side, in
// any order: no task is left waiting.
func TestRecordsInAnyOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		var wg sync.WaitGroup
		for i := range n {
			service := fmt.Sprintf("s%d", i)
			wg.Go(func() { c.service(service) })
			wg.Go(func() {
				c.update(func(tx *store.Tx) { c.assign(tx, "n1", service, "t"+service, 1) })
			})
		}
		wg.Wait()
		if got := w.tasks(); len(got) != n {
			t.Fatalf("worker has %d tasks, want %d", len(got), n)
		}
	})
}

// TestCrowd checks that very many workers are heard less often, those that came
// before the others as well, and more often again when these have gone.
func TestCrowd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1", func(cfg *Config) { cfg.CrowdedNodes = 2 })
		synctest.Wait()
		var workers []*worker
		for i, want := range []time.Duration{2 * time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second} {
			w := c.worker(fmt.Sprintf("n%d", i), d.address)
			if got := welcomed(w).GetHeartbeatPeriod().AsDuration(); got != want {
				t.Errorf("with %d workers before it, one is heard every %s, want %s", i, got, want)
			}
			workers = append(workers, w)
		}
		first := workers[0]
		wantPeriod := func(why string, want time.Duration) {
			t.Helper()
			synctest.Wait() // those that have gone are gone
			first.heartbeat()
			synctest.Wait()
			if got := welcomed(first).GetHeartbeatPeriod().AsDuration(); got != want {
				t.Errorf("%s, the first is heard every %s, want %s", why, got, want)
			}
		}
		wantPeriod("with all there", 5*time.Second)
		for _, w := range workers {
			w.heartbeat()
		}
		time.Sleep(14 * time.Second)
		c.wantNode("n0", ready)
		workers[4].hangUp()
		wantPeriod("without one of five, which is not worth a word", 5*time.Second)
		workers[3].hangUp()
		wantPeriod("without two of five", 3*time.Second)
	})
}

// TestStuckWorker checks that a worker that takes in nothing holds nothing up:
// not its own heartbeats, not its next session, and not the dispatcher's end.
func TestStuckWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		synctest.Wait()
		deaf := func() *worker {
			ctx, cancel := context.WithCancel(context.Background())
			t.Cleanup(cancel)
			st, err := dispatcherv1.NewDispatcherServiceClient(c.dial(d.address)).Session(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w := &worker{t: t, node: "n1", stream: st, cancel: cancel}
			w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: description("n1")})
			return w
		}
		w := deaf()
		c.wantNode("n1", musterv1.NodeStatus_READY)
		for i := range 10 {
			c.update(func(tx *store.Tx) {
				for j := range 200 {
					slot := uint64(i*200 + j + 1)
					c.assign(tx, "n1", "s1", fmt.Sprintf("%d-%s", slot, strings.Repeat("t", 40)), slot)
				}
			})
		}
		w.live(10 * time.Second)
		c.wantNode("n1", musterv1.NodeStatus_READY)
		next := c.worker("n1", d.address)
		if got := len(next.tasks()); got != 2000 {
			t.Fatalf("the next session has %d tasks, want 2000", got)
		}
		deaf()
		synctest.Wait()
		before := time.Now()
		d.stop()
		if took := time.Since(before); took > 2*time.Second {
			t.Errorf("the end took %s", took)
		}
	})
}

// TestHello refuses what no worker says.
func TestHello(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		good := description("n1")
		for name, tt := range map[string]struct {
			hello *dispatcherv1.Hello
			want  string
		}{
			"no node":           {&dispatcherv1.Hello{InstanceId: "1", Description: good}, "node_id is empty"},
			"no instance":       {&dispatcherv1.Hello{NodeId: "n1", Description: good}, "instance_id is empty"},
			"slash":             {&dispatcherv1.Hello{NodeId: "n/1", InstanceId: "1", Description: good}, "slash"},
			"odd characters":    {&dispatcherv1.Hello{NodeId: "bad!!", InstanceId: "1", Description: good}, "want 1 to 64 letters"},
			"newline":           {&dispatcherv1.Hello{NodeId: "n\n1", InstanceId: "1", Description: good}, "unprintable"},
			"long":              {&dispatcherv1.Hello{NodeId: strings.Repeat("n", 65), InstanceId: "1", Description: good}, "at most 64"},
			"no description":    {&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1"}, "description is missing"},
			"large description": {&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: &musterv1.NodeDescription{Hostname: strings.Repeat("h", nodereport.MaxDescription)}}, "description has"},
			"nothing":           {nil, "must be hello"},
		} {
			w := c.newWorker("n1", c.dial(d.address))
			if tt.hello == nil {
				w.heartbeat()
			} else {
				w.hello(tt.hello)
			}
			if err := w.ended(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: session ended with %v, want INVALID_ARGUMENT with %q", name, err, tt.want)
			}
		}
		silent := c.newWorker("n1", c.dial(d.address))
		time.Sleep(d.cfg.HelloTimeout)
		if err := silent.ended(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("session without hello ended with %v, want DEADLINE_EXCEEDED", err)
		}
		twice := c.worker("n1", d.address)
		twice.hello(&dispatcherv1.Hello{NodeId: "n2", InstanceId: "1", Description: good})
		if err := twice.ended(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("session with two hellos ended with %v, want INVALID_ARGUMENT", err)
		}
	})
}

// TestRemovedNode checks that a node that an operator removed goes and stays
// away.
func TestRemovedNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.service("s1")
		c.update(func(tx *store.Tx) { c.assign(tx, "n1", "s1", "t1", 1) })
		synctest.Wait()
		w := c.worker("n1", d.address)
		w.report(1, reported("t1", running, 20, ""))
		c.wantNode("n1", musterv1.NodeStatus_READY)

		c.update(func(tx *store.Tx) { c.tables.Nodes.Put(tx, "n1", &recordv1.Node{Removed: true}) })
		if err := w.ended(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "empty data directory") {
			t.Fatalf("session ended with %v, want PERMISSION_DENIED that says what to do", err)
		}
		if got := c.nodeState("n1"); got != nil {
			t.Errorf("record of a removed node is %v", got)
		}
		if got := c.status("n1", "s1", "t1").GetState(); got != musterv1.TaskState_ORPHANED {
			t.Errorf("task of a removed node is %s, want ORPHANED", got)
		}
		c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, "n1/s1/t1") })
		synctest.Wait()
		if got := c.status("n1", "s1", "t1"); got != nil {
			t.Errorf("status on a removed node is %v", got)
		}
		w = c.worker("n1", d.address)
		if err := w.ended(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("return of a removed node ended with %v, want PERMISSION_DENIED", err)
		}
		time.Sleep(time.Minute)
		if got := c.nodeState("n1"); got != nil {
			t.Errorf("record of a removed node is %v", got)
		}
	})
}

// TestSettingsReachWorkers checks that a worker is told at once what an operator
// changes, and is heard by it.
func TestSettingsReachWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		bystander := c.worker("n2", d.address)
		welcome := func(w *worker) *dispatcherv1.Welcome {
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.welcome
		}
		before := welcome(bystander)
		c.update(func(tx *store.Tx) {
			c.tables.Nodes.Put(tx, "n1", &recordv1.Node{Spec: &musterv1.NodeSpec{Labels: map[string]string{"disk": "ssd"}}})
		})
		if got := welcome(w).Node.GetLabels()["disk"]; got != "ssd" {
			t.Errorf("label is %q", got)
		}
		if welcome(bystander) != before {
			t.Error("another node was told, too")
		}
		pace := func(p time.Duration) {
			c.update(func(tx *store.Tx) {
				c.tables.Clusters.Put(tx, state.ClusterID, &recordv1.Cluster{Spec: &musterv1.ClusterSpec{
					Dispatcher: &musterv1.DispatcherConfig{HeartbeatPeriod: durationpb.New(p)},
				}})
			})
			for _, w := range []*worker{w, bystander} {
				if got := welcome(w).HeartbeatPeriod.AsDuration(); got != p {
					t.Errorf("period is %v, want %v", got, p)
				}
			}
		}
		pace(time.Minute)
		time.Sleep(170 * time.Second)
		c.wantNode("n1", ready)
		// Silent for long by the new period, but not since it was set.
		pace(time.Second)
		time.Sleep(2 * time.Second)
		c.wantNode("n1", ready)
		time.Sleep(2 * time.Second)
		c.wantNode("n1", fallen)
	})
}

// A worker learns from the answers that its dispatcher lives.
func TestHeartbeatsAreAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		if !welcomed(w).GetAnswersHeartbeats() {
			t.Error("the welcome does not say that heartbeats are answered")
		}
		for i := range 3 {
			w.heartbeat()
			if got := beats(w); got != i+1 {
				t.Errorf("%d heartbeats were answered after %d", got, i+1)
			}
			time.Sleep(2 * time.Second)
		}
	})
}

func TestDescription(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", musterv1.NodeStatus_READY)
		since := c.nodeState("n1").Since
		time.Sleep(time.Second)
		w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Description{Description: description("other")}})
		c.wantNode("n1", musterv1.NodeStatus_READY)
		if got := c.nodeState("n1"); got.Description.Hostname != "other.example" || got.Since != since {
			t.Errorf("record is %v, want the new description, ready since %d", got, since)
		}
	})
}
