package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
)

// scripted is a cluster with one service, whose state follows a script.
type scripted struct {
	musterv1.UnimplementedControlServiceServer

	mu      sync.Mutex
	service *musterv1.Service
	tasks   []*musterv1.Task
	absent  []string
	unknown bool
	// sent takes the spec that a command sends.
	sent *musterv1.ServiceSpec
	// ready is the number of nodes that are ready.
	ready uint64
	// refusal is what GetService answers if it is set, and slow how long a list of
	// tasks takes. Watches do not begin while hung is set.
	refusal error
	// refused is what calls that change the service answer if it is set.
	refused error
	slow    time.Duration
	hung    bool
	// dialed are the connections of the command, and gone refuses new ones.
	// Interrupt ends the command as Ctrl-C does.
	dialed    []net.Conn
	gone      bool
	interrupt context.CancelFunc
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

// pulls adds a task whose image may be large.
func pulls(id, image, err string) func(*scripted) {
	return func(c *scripted) {
		c.tasks = []*musterv1.Task{{
			Id: id, SpecVersion: c.service.SpecVersion, Status: &musterv1.TaskStatus{State: stPreparing, Error: err},
			Spec: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: image}}},
		}}
	}
}

// disappears has apid end and no longer accept connections, until it returns.
func disappears(c *scripted) {
	c.gone = true
	for _, conn := range c.dialed {
		_ = conn.Close()
	}
	c.dialed = nil
}

func returns(c *scripted) { c.gone = false }

// hangs has apid accept watches and not begin them.
func hangs(c *scripted) { c.hung = true; breaks(c) }

func interrupted(c *scripted) { c.interrupt() }

func slowly(d time.Duration) func(*scripted) { return func(c *scripted) { c.slow = d } }

func denied(c *scripted) {
	c.refusal = status.Error(codes.PermissionDenied, "your role may not read services")
}

func ready(nodes uint64) func(*scripted) { return func(c *scripted) { c.ready = nodes } }

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

// send keeps the spec that a command has sent, if the script asks for it.
func (c *scripted) send(spec *musterv1.ServiceSpec) {
	if c.sent != nil {
		proto.Merge(c.sent, spec)
	}
}

func (c *scripted) present() *musterv1.Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	return proto.CloneOf(c.service)
}

func (c *scripted) CreateService(_ context.Context, req *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	if c.refused != nil {
		return nil, c.refused
	}
	c.send(req.Spec)
	return &musterv1.CreateServiceResponse{Service: c.present()}, nil
}

func (c *scripted) GetService(_ context.Context, req *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	if req.Service == other().Id {
		return &musterv1.GetServiceResponse{Service: other()}, nil
	}
	c.mu.Lock()
	unknown, refusal := c.unknown, c.refusal
	c.mu.Unlock()
	if unknown {
		return nil, status.Error(codes.NotFound, "there is no service")
	}
	if refusal != nil {
		return nil, refusal
	}
	return &musterv1.GetServiceResponse{Service: c.present()}, nil
}

func (c *scripted) UpdateService(_ context.Context, req *musterv1.UpdateServiceRequest) (*musterv1.UpdateServiceResponse, error) {
	c.send(req.Spec)
	return &musterv1.UpdateServiceResponse{Service: c.present()}, nil
}

// other is a further service, whose tasks run.
func other() *musterv1.Service {
	return &musterv1.Service{
		Id: "s2", Meta: &musterv1.Meta{Version: 7}, Spec: &musterv1.ServiceSpec{Name: "other"},
		Status: &musterv1.ServiceStatus{DesiredTasks: 2, RunningTasks: 2, Converged: true},
	}
}

func (c *scripted) ScaleService(_ context.Context, req *musterv1.ScaleServiceRequest) (*musterv1.ScaleServiceResponse, error) {
	switch req.Service {
	case "other":
		return &musterv1.ScaleServiceResponse{Service: other()}, nil
	case "nosuch":
		return nil, status.Error(codes.NotFound, "there is no service \"nosuch\"")
	}
	return &musterv1.ScaleServiceResponse{Service: c.present()}, nil
}

func (c *scripted) RollbackService(context.Context, *musterv1.RollbackServiceRequest) (*musterv1.RollbackServiceResponse, error) {
	return &musterv1.RollbackServiceResponse{Service: c.present()}, nil
}

func (c *scripted) ListTasks(ctx context.Context, req *musterv1.ListTasksRequest) (*musterv1.ListTasksResponse, error) {
	c.mu.Lock()
	slow := c.slow
	c.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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
	resp := &musterv1.GetClusterStatusResponse{
		Healthy: true, Store: &musterv1.StoreStatus{Reachable: true}, Nodes: &musterv1.NodeSummary{Total: c.ready, Ready: c.ready},
	}
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
	changed, broken, hung := c.changed, c.broken, c.hung
	c.mu.Unlock()
	if hung {
		<-s.Context().Done()
		return s.Context().Err()
	}
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

// dial connects to the cluster unless it is gone.
func (c *scripted) dial(lis *bufconn.Listener) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.gone {
			return nil, errors.New("connection refused")
		}
		conn, err := lis.DialContext(ctx)
		if err == nil {
			c.dialed = append(c.dialed, conn)
		}
		return conn, err
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
	server, _ := daemon.NewServer(insecure.NewCredentials())
	musterv1.RegisterControlServiceServer(server, cluster)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(lis) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	cluster.interrupt = cancel
	var out, errs bytes.Buffer
	c := &CLI{Out: &out, Err: &errs}
	const address = "apid.example:7700"
	conn, err := daemon.Dialer(insecure.NewCredentials(), grpc.WithStatsHandler(&c.answered), grpc.WithContextDialer(cluster.dial(lis)))(address)
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() { cluster.play(ctx, script) })

	root := &cobra.Command{Use: "muster", SilenceErrors: true, SilenceUsage: true}
	root.SetErr(&errs)
	c.AddCommands(root)
	c.conn, c.address = conn, address
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

// GetNetwork knows a network of any name.
func (c *scripted) GetNetwork(_ context.Context, req *musterv1.GetNetworkRequest) (*musterv1.GetNetworkResponse, error) {
	return &musterv1.GetNetworkResponse{Network: &musterv1.Network{Id: "id-" + req.Network}}, nil
}
