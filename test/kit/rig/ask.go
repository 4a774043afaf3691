package rig

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
)

// connectParams lets a client find a restarted replica at once.
func connectParams() grpc.ConnectParams {
	p := grpc.ConnectParams{MinConnectTimeout: 5 * time.Second}
	p.Backoff.BaseDelay, p.Backoff.Multiplier, p.Backoff.MaxDelay = 20*time.Millisecond, 1.5, 250*time.Millisecond
	return p
}

// The first attempt of a call ends after some seconds, so that a replica that hangs delays
// nothing. Later ones take longer, because the machine may be slow.
const (
	firstAttempt = 3 * time.Second
	lastAttempt  = 20 * time.Second
)

// Do makes a call at one replica of apid after the other until one answers with anything
// but UNAVAILABLE, as a client that knows all of them does. An attempt whose answer was
// lost may have changed something before the next one.
func (r *Rig) Do(ctx context.Context, call func(context.Context, musterv1.ControlServiceClient) error) error {
	names := r.Replicas("apid")
	for patience := firstAttempt; ; patience = min(2*patience, lastAttempt) {
		var err error
		for range names {
			r.mu.Lock()
			name := names[r.next%len(names)]
			r.mu.Unlock()
			attempt, cancel := context.WithTimeout(ctx, patience)
			err = call(attempt, r.Client(name))
			cancel()
			if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
				return err
			}
			r.mu.Lock()
			r.next++
			r.mu.Unlock()
		}
		_ = backoff.Sleep(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Tasks returns the tasks of a service, or of all if none is named.
func (r *Rig) Tasks(ctx context.Context, service string) (tasks []*musterv1.Task, err error) {
	req := &musterv1.ListTasksRequest{PageSize: 1000}
	if service != "" {
		req.Services = []string{service}
	}
	err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.ListTasks(ctx, req)
		tasks = resp.GetTasks()
		return err
	})
	return tasks, err
}

// Service returns a service.
func (r *Rig) Service(ctx context.Context, ref string) (s *musterv1.Service, err error) {
	err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.GetService(ctx, &musterv1.GetServiceRequest{Service: ref})
		s = resp.GetService()
		return err
	})
	return s, err
}

// Create creates a service and returns its id. Nothing else may use its name, by which it
// finds a service that an attempt without an answer created.
func (r *Rig) Create(ctx context.Context, spec *musterv1.ServiceSpec) (id string, err error) {
	err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: spec})
		id = resp.GetService().GetId()
		return err
	})
	if status.Code(err) == codes.AlreadyExists {
		var s *musterv1.Service
		s, err = r.Service(ctx, spec.Name)
		id = s.GetId()
	}
	return id, err
}

// Scale scales a service.
func (r *Rig) Scale(ctx context.Context, ref string, replicas uint64) error {
	return r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: ref, Replicas: replicas})
		return err
	})
}

// Update changes the spec of a service, again if another client has changed it in between.
func (r *Rig) Update(ctx context.Context, ref string, change func(*musterv1.ServiceSpec)) error {
	for {
		s, err := r.Service(ctx, ref)
		if err != nil {
			return err
		}
		change(s.Spec)
		err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
			_, err := c.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.GetVersion(), Spec: s.Spec})
			return err
		})
		if status.Code(err) != codes.Aborted || ctx.Err() != nil {
			return err
		}
	}
}

// Remove removes a service that exists.
func (r *Rig) Remove(ctx context.Context, ref string) error {
	return r.remove(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: ref})
		return err
	})
}

// RemoveNode removes a node that exists.
func (r *Rig) RemoveNode(ctx context.Context, id string) error {
	return r.remove(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.RemoveNode(ctx, &musterv1.RemoveNodeRequest{Node: id})
		return err
	})
}

// remove makes a call that removes something. After an attempt without an answer, NOT_FOUND
// is a success.
func (r *Rig) remove(ctx context.Context, call func(context.Context, musterv1.ControlServiceClient) error) error {
	attempts := 0
	err := r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		attempts++
		return call(ctx, c)
	})
	if attempts > 1 && status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// Services returns all services.
func (r *Rig) Services(ctx context.Context) (all []*musterv1.Service, err error) {
	err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.ListServices(ctx, &musterv1.ListServicesRequest{PageSize: 1000})
		all = resp.GetServices()
		return err
	})
	return all, err
}

// RemoveAll removes all services.
func (r *Rig) RemoveAll(ctx context.Context) error {
	all, err := r.Services(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		if err := r.Remove(ctx, s.Id); err != nil && status.Code(err) != codes.NotFound {
			return err
		}
	}
	return nil
}

// Empty returns an error while there is a task, or a process of one on the machine.
func (r *Rig) Empty(ctx context.Context) error {
	tasks, err := r.Tasks(ctx, "")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		return fmt.Errorf("there are %d tasks, one is %s, %s", len(tasks), t.Name, t.Status.GetState())
	}
	all, err := r.Machine()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Task != "" || strings.HasPrefix(p.Command[0], "muster-task") {
			return fmt.Errorf("there is %s", p)
		}
	}
	return nil
}

// Daemons returns the status of all daemons, as one replica of apid sees it.
func (r *Rig) Daemons(ctx context.Context) (all []*musterv1.DaemonStatus, err error) {
	err = r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.GetCluster(ctx, &musterv1.GetClusterRequest{})
		all = resp.GetCluster().GetStatus().GetDaemons()
		return err
	})
	return all, err
}

// Ready returns an error unless all nodes are ready.
func (r *Rig) Ready(ctx context.Context) error {
	var nodes []*musterv1.Node
	err := r.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err := c.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: 1000})
		nodes = resp.GetNodes()
		return err
	})
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range nodes {
		if n.Status.GetState() == musterv1.NodeStatus_READY {
			ready++
		}
	}
	if ready != len(r.Nodes) {
		return fmt.Errorf("%d nodes are ready, want %d", ready, len(r.Nodes))
	}
	return nil
}

// Running returns the tasks of a service by id, once it has converged with n of them and
// desires no others. Otherwise it returns an error that says why not.
func (r *Rig) Running(ctx context.Context, service string, n int) (map[string]*musterv1.Task, error) {
	s, err := r.Service(ctx, service)
	if err != nil {
		return nil, err
	}
	all, err := r.Tasks(ctx, service)
	if err != nil {
		return nil, err
	}
	run := map[string]*musterv1.Task{}
	var others []string
	for _, t := range all {
		switch {
		case t.DesiredState > musterv1.TaskState_RUNNING:
		case t.DesiredState == musterv1.TaskState_RUNNING && t.Status.GetState() == musterv1.TaskState_RUNNING:
			run[t.Id] = t
		default:
			others = append(others, fmt.Sprintf("%s on %s %s %s", t.Name, t.NodeId, t.Status.GetState(), t.Status.GetError()))
		}
	}
	slices.Sort(others)
	if len(run) != n || len(others) > 0 || !s.Status.GetConverged() || s.Status.GetDesiredTasks() != uint64(n) {
		return nil, fmt.Errorf("%d tasks run, want %d; converged %v, desired %d %s; others: %s", len(run), n,
			s.Status.GetConverged(), s.Status.GetDesiredTasks(), s.Status.GetPendingReason(), strings.Join(others, "; "))
	}
	return run, nil
}
