package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// scripted is a cluster with one service, whose state follows a script.
type scripted struct {
	musterv1.UnimplementedControlServiceServer

	mu      sync.Mutex
	service *musterv1.Service
	tasks   []*musterv1.Task
	absent  []string
	unknown bool
	// changed is closed, and made again, with each step. Broken does the same to end
	// all watches.
	changed, broken chan struct{}
}

// step is a change of the cluster, so long after the command began.
type step struct {
	after  time.Duration
	change func(c *scripted)
}

// counts sets the numbers of tasks.
func counts(running, desired, failing, finished uint64) func(*scripted) {
	return func(c *scripted) {
		c.service.Status = &musterv1.ServiceStatus{
			DesiredTasks: desired, RunningTasks: running, FailingTasks: failing, FinishedTasks: finished, Converged: running == desired,
		}
	}
}

func runsAll(c *scripted) { counts(1, 1, 0, 0)(c) }

func pending(why string) func(*scripted) {
	return func(c *scripted) { c.service.Status.PendingReason = why }
}

func absent(daemons ...string) func(*scripted) { return func(c *scripted) { c.absent = daemons } }

func update(state musterv1.UpdateStatus_State) func(*scripted) {
	return func(c *scripted) {
		c.service.UpdateStatus = &musterv1.UpdateStatus{State: state, Message: "update message"}
	}
}

// task adds a task of the service's spec version, or changes it.
func task(id string, state musterv1.TaskState, err string) func(*scripted) {
	return func(c *scripted) {
		c.tasks = slices.DeleteFunc(c.tasks, func(t *musterv1.Task) bool { return t.Id == id })
		c.tasks = append(c.tasks, &musterv1.Task{Id: id, SpecVersion: c.service.SpecVersion, Status: &musterv1.TaskStatus{State: state, Error: err}})
	}
}

func breaks(c *scripted) { close(c.broken); c.broken = make(chan struct{}) }

func steps(changes ...func(*scripted)) func(*scripted) {
	return func(c *scripted) {
		for _, change := range changes {
			change(c)
		}
	}
}

func (c *scripted) play(ctx context.Context, script []step) {
	began := time.Now()
	for _, s := range script {
		select {
		case <-time.After(time.Until(began.Add(s.after))):
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		s.change(c)
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
}

func (c *scripted) present() *musterv1.Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	return proto.CloneOf(c.service)
}

func (c *scripted) CreateService(context.Context, *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	return &musterv1.CreateServiceResponse{Service: c.present()}, nil
}

func (c *scripted) GetService(context.Context, *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	c.mu.Lock()
	gone := c.unknown
	c.mu.Unlock()
	if gone {
		return nil, status.Error(codes.NotFound, "there is no service")
	}
	return &musterv1.GetServiceResponse{Service: c.present()}, nil
}

func (c *scripted) UpdateService(context.Context, *musterv1.UpdateServiceRequest) (*musterv1.UpdateServiceResponse, error) {
	return &musterv1.UpdateServiceResponse{Service: c.present()}, nil
}

func (c *scripted) ScaleService(context.Context, *musterv1.ScaleServiceRequest) (*musterv1.ScaleServiceResponse, error) {
	return &musterv1.ScaleServiceResponse{Service: c.present()}, nil
}

func (c *scripted) RollbackService(context.Context, *musterv1.RollbackServiceRequest) (*musterv1.RollbackServiceResponse, error) {
	return &musterv1.RollbackServiceResponse{Service: c.present()}, nil
}

func (c *scripted) ListTasks(_ context.Context, req *musterv1.ListTasksRequest) (*musterv1.ListTasksResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resp := &musterv1.ListTasksResponse{}
	for _, t := range c.tasks {
		if slices.Contains(req.States, t.Status.State) {
			resp.Tasks = append(resp.Tasks, proto.CloneOf(t))
		}
	}
	return resp, nil
}

func (c *scripted) GetClusterStatus(context.Context, *musterv1.GetClusterStatusRequest) (*musterv1.GetClusterStatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resp := &musterv1.GetClusterStatusResponse{Store: &musterv1.StoreStatus{Reachable: true}}
	for _, daemon := range []string{"orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		s := &musterv1.SubsystemStatus{Daemon: daemon}
		if !slices.Contains(c.absent, daemon) {
			s.Instances = 1
		}
		resp.Subsystems = append(resp.Subsystems, s)
	}
	return resp, nil
}

// unknown has the server not know the service, as a replica of apid that lags.
func unknown(c *scripted) { c.unknown = true }

func known(c *scripted) { c.unknown = false }

// Watch sends everything with each change, and bookmarks in between, which other
// services' changes cause.
func (c *scripted) Watch(_ *musterv1.WatchRequest, s grpc.ServerStreamingServer[musterv1.WatchResponse]) error {
	c.mu.Lock()
	changed, broken := c.changed, c.broken
	c.mu.Unlock()
	batch := &musterv1.WatchResponse{}
	for {
		if err := s.Send(batch); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-time.After(4 * time.Second):
			batch = &musterv1.WatchResponse{}
			continue
		case <-broken:
			return status.Error(codes.Unavailable, "the server stops")
		case <-s.Context().Done():
			return s.Context().Err()
		}
		c.mu.Lock()
		changed = c.changed
		batch = &musterv1.WatchResponse{Events: []*musterv1.WatchEvent{{Action: musterv1.WatchAction_UPDATE, Object: &musterv1.WatchEvent_Service{Service: proto.CloneOf(c.service)}}}}
		for _, t := range c.tasks {
			batch.Events = append(batch.Events, &musterv1.WatchEvent{Action: musterv1.WatchAction_UPDATE, Object: &musterv1.WatchEvent_Task{Task: proto.CloneOf(t)}})
		}
		c.mu.Unlock()
	}
}

// result is how a command ended.
type result struct {
	code int
	errs string
	took time.Duration
}

// runScripted runs a command line while the script is played.
func runScripted(t *testing.T, script []step, args ...string) result {
	t.Helper()
	cluster := &scripted{changed: make(chan struct{}), broken: make(chan struct{}), service: &musterv1.Service{
		Id: "s1", SpecVersion: 7, Meta: &musterv1.Meta{Version: 7}, Status: &musterv1.ServiceStatus{DesiredTasks: 1},
		Spec: &musterv1.ServiceSpec{
			Name: "web", Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{}},
			Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}},
		},
	}}
	// What holds when the command begins is no event.
	for len(script) > 0 && script[0].after == 0 {
		script[0].change(cluster)
		script = script[1:]
	}
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	musterv1.RegisterControlServiceServer(server, cluster)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:///scripted", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	running.Go(func() { cluster.play(ctx, script) })

	var out, errs bytes.Buffer
	c := &CLI{Out: &out, Err: &errs, conn: conn}
	root := &cobra.Command{Use: "muster", SilenceErrors: true, SilenceUsage: true}
	c.AddCommands(root)
	root.SetArgs(args)
	began, r := time.Now(), result{}
	if err := root.ExecuteContext(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the command waited for an hour")
		}
		var text string
		text, r.code = c.Explain(err)
		errs.WriteString(text)
	}
	r.took, r.errs = time.Since(began), errs.String()
	cancel()
	_ = conn.Close()
	server.Stop()
	running.Wait()
	return r
}

const (
	stPending   = musterv1.TaskState_PENDING
	stAssigned  = musterv1.TaskState_ASSIGNED
	stPreparing = musterv1.TaskState_PREPARING
	stRejected  = musterv1.TaskState_REJECTED
	stFailed    = musterv1.TaskState_FAILED
	stComplete  = musterv1.TaskState_COMPLETE
)

// TestWaitEndsWhenNothingChangesByItself plays what a cluster shows to commands that
// wait.
func TestWaitEndsWhenNothingChangesByItself(t *testing.T) {
	create := []string{"service", "create", "--name", "web", "--kind", "null"}
	update3 := []string{"service", "update", "--force", "web"}
	scale := []string{"service", "scale", "web=3"}
	const sec = time.Second
	for name, c := range map[string]struct {
		args  []string
		steps []step
		code  int
		// least and most bound when the command ends.
		least, most time.Duration
		want, lacks []string
	}{
		"image cannot be pulled": {create, []step{
			{1 * sec, task("t1", stRejected, "no such image")}, {6 * sec, task("t2", stRejected, "no such image")},
			{11 * sec, steps(task("t3", stRejected, "no such image"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 11 * sec, 13 * sec,
			[]string{"1 of 1 tasks keep failing\n  rejected: no such image\n", "still retries them", "`muster service ps web`", "--keep-waiting"}, nil},
		"recovers after two failures": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {6 * sec, task("t2", stFailed, "exit code 1")}, {11 * sec, runsAll},
		}, 0, 11 * sec, 13 * sec, nil, nil},
		"watch ends again and again during two failures": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {3 * sec, breaks}, {6 * sec, breaks},
			{7 * sec, task("t2", stFailed, "exit code 1")}, {9 * sec, breaks}, {12 * sec, breaks}, {15 * sec, breaks}, {18 * sec, runsAll},
		}, 0, 18 * sec, 20 * sec, nil, nil},
		"watch ends while the third failure happens": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {3 * sec, steps(breaks, task("t3", stFailed, "exit code 1"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 3 * sec, 7 * sec, []string{"1 of 1 tasks keep failing\n  failed: exit code 1"}, nil},
		"failed before the watch": {create, []step{
			{0, steps(task("t1", stFailed, "exit code 9"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, sec, 2 * sec, []string{"web: 0/1 running: task t1 failed: exit code 9\n", "keep failing"}, nil},
		"attempts are exhausted": {create, []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 3"), counts(0, 1, 0, 1))},
		}, ExitNotConverged, 2 * sec, 3 * sec,
			[]string{"1 of 1 tasks have ended, and the restart policy does not allow to start them again\n  failed: exit code 3", "`muster service update --force web`"},
			[]string{"retries"}},
		"task completed for good": {create, []step{
			{1 * sec, steps(task("t1", stComplete, ""), counts(0, 1, 0, 1))},
		}, ExitNotConverged, 2 * sec, 3 * sec, []string{"1 of 1 tasks have ended"}, nil},
		"other replicas are still to come": {create, []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 1"), counts(1, 3, 1, 0))}, {60 * sec, counts(2, 3, 1, 0)},
		}, ExitNotConverged, 61 * sec, 62 * sec, []string{"1 of 3 tasks keep failing"}, nil},
		"failing for a moment": {create, []step{
			{1 * sec, counts(0, 1, 1, 0)}, {1500 * time.Millisecond, counts(0, 1, 0, 0)}, {30 * sec, runsAll},
		}, 0, 30 * sec, 32 * sec, nil, nil},
		"no node fits": {create, []step{
			{1 * sec, pending("no node is ready")},
		}, ExitNotConverged, 16 * sec, 17 * sec, []string{"no node takes the tasks that wait: no node is ready\nMuster starts them as soon as a node fits"}, nil},
		"a node comes in time": {create, []step{
			{1 * sec, pending("no node is ready")}, {15 * sec, pending("")}, {20 * sec, runsAll},
		}, 0, 20 * sec, 22 * sec, nil, nil},
		"nodes become free one after another": {create, []step{
			{1 * sec, steps(counts(0, 3, 0, 0), pending("full"))}, {12 * sec, steps(counts(1, 3, 0, 0), pending("full"))},
			{24 * sec, steps(counts(2, 3, 0, 0), pending("full"))}, {36 * sec, counts(3, 3, 0, 0)},
		}, 0, 36 * sec, 38 * sec, nil, nil},
		"no scheduler": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPending, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec,
			[]string{"web: 0/1 running: no scheduler is running: start schedulerd\n", "not converged: no scheduler is running: start schedulerd\n", "`muster cluster status`"}, nil},
		"a server that lags does not know the service": {create, []step{
			{0, unknown}, {3 * sec, known}, {4 * sec, runsAll},
		}, 0, 4 * sec, 6 * sec, nil, nil},
		"the service is removed": {create, []step{
			{0, unknown},
		}, ExitNotConverged, 5 * sec, 8 * sec, []string{"the service was removed meanwhile"}, nil},
		"scheduler restarts": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPending, ""))}, {12 * sec, absent()}, {40 * sec, runsAll},
		}, 0, 40 * sec, 42 * sec, nil, nil},
		"no orchestrator": {create, []step{
			{0, absent("orchestratord", "schedulerd")},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no orchestrator is running: start orchestratord"}, nil},
		"no allocator": {create, []step{
			{0, steps(absent("allocatord"), task("t1", stPending, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no allocator is running: start allocatord"}, nil},
		"no dispatcher": {create, []step{
			{0, steps(absent("dispatcherd"), task("t1", stAssigned, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no dispatcher is running: start dispatcherd"}, nil},
		"a long pull without a scheduler": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPreparing, ""))}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, []string{"schedulerd"}},
		"keeps waiting": {append(slices.Clone(create), "--keep-waiting"), []step{
			{1 * sec, counts(0, 1, 1, 0)}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, nil},
		"keeps waiting while no node fits": {append(slices.Clone(create), "--keep-waiting"), []step{
			{1 * sec, pending("no node is ready")}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, nil},
		"keeps waiting until the timeout": {append(slices.Clone(create), "--keep-waiting", "--timeout", "1m"), []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 1"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 60 * sec, 61 * sec, []string{"not converged after 1m0s: task t1 failed: exit code 1\nThe service stays"}, nil},
		"update under way decides itself": {update3, []step{
			{0, counts(1, 1, 0, 0)}, {0, update(musterv1.UpdateStatus_UPDATING)}, {1 * sec, counts(0, 1, 1, 0)},
			{60 * sec, update(musterv1.UpdateStatus_PAUSED)},
		}, ExitNotConverged, 60 * sec, 61 * sec, []string{"update message"}, nil},
		"update waits for a node": {update3, []step{
			{0, update(musterv1.UpdateStatus_UPDATING)}, {1 * sec, steps(counts(0, 1, 0, 0), pending("insufficient memory"))},
		}, ExitNotConverged, 16 * sec, 17 * sec, []string{"insufficient memory"}, nil},
		"update completed with failures": {update3, []step{
			{0, update(musterv1.UpdateStatus_UPDATING)}, {20 * sec, steps(counts(0, 1, 1, 0), update(musterv1.UpdateStatus_COMPLETED))},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"keep failing"}, nil},
		"rollback fails": {[]string{"service", "rollback", "web"}, []step{
			{0, update(musterv1.UpdateStatus_ROLLBACK_STARTED)}, {20 * sec, steps(counts(0, 1, 1, 0), update(musterv1.UpdateStatus_ROLLBACK_COMPLETED))},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"keep failing"}, nil},
		"scale while an update is paused": {scale, []step{
			{0, steps(counts(2, 3, 0, 0), update(musterv1.UpdateStatus_PAUSED))}, {20 * sec, counts(2, 3, 1, 0)},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"1 of 3 tasks keep failing"}, nil},
		"scaled down to what runs": {scale, []step{
			{0, counts(3, 3, 1, 0)}, {0, func(c *scripted) { c.service.Status.Converged = false }}, {20 * sec, counts(3, 3, 0, 0)},
		}, 0, 20 * sec, 22 * sec, nil, nil},
		"version is not there yet": {create, []step{
			{0, steps(counts(0, 1, 1, 0))}, {0, func(c *scripted) { c.service.Meta.Version = 7 }},
			{500 * time.Millisecond, func(c *scripted) { c.service.Meta.Version = 6 }}, {20 * sec, func(c *scripted) { c.service.Meta.Version = 7; runsAll(c) }},
		}, 0, 20 * sec, 22 * sec, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := runScripted(t, c.steps, c.args...)
				if r.code != c.code {
					t.Errorf("exit code %d, want %d", r.code, c.code)
				}
				if r.took < c.least || r.took > c.most {
					t.Errorf("ended after %v, want %v to %v", r.took, c.least, c.most)
				}
				for _, want := range c.want {
					if !strings.Contains(r.errs, want) {
						t.Errorf("output lacks %q", want)
					}
				}
				for _, unwanted := range c.lacks {
					if strings.Contains(r.errs, unwanted) {
						t.Errorf("output has %q", unwanted)
					}
				}
				if t.Failed() {
					t.Logf("output:\n%s", r.errs)
				}
			})
		})
	}
}
