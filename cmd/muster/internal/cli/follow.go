package cli

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// follow watches the service and its tasks until it has converged, will not
// converge, or the watch ends.
func (f *waiting) follow(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, now, err := f.begin(ctx, cancel)
	if err != nil {
		return false, err
	}
	batches, failed := make(chan *musterv1.WatchResponse), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() { failed <- receive(ctx, stream, batches) })
	defer func() { cancel(); reading.Wait() }()
	var held <-chan time.Time
	for {
		done, err := f.progress.service(now, f.forecast.version)
		if err != nil {
			return false, err
		}
		var next <-chan time.Time
		switch {
		case !done:
			held = nil
			if next, err = f.judge(ctx, now); err != nil {
				return false, err
			}
		case held == nil:
			held = time.After(f.progress.hold(now.Spec))
			f.forecast.forget()
		}
		select {
		case <-held:
			return true, nil
		case <-next:
		case err := <-failed:
			// The time for waiting is over, and the service runs.
			return held != nil && errors.Is(ctx.Err(), context.DeadlineExceeded), err
		case batch := <-batches:
			f.answered = time.Now()
			var failure bool
			if now, failure, err = f.apply(now, batch); err != nil {
				return false, err
			}
			if failure {
				held = nil
			}
		}
	}
}

// begin opens a watch and reads the present state.
func (f *waiting) begin(ctx context.Context, cancel context.CancelFunc) (grpc.ServerStreamingClient[musterv1.WatchResponse], *musterv1.Service, error) {
	late := time.AfterFunc(beginTimeout, cancel)
	stream, err := f.client.Watch(ctx, &musterv1.WatchRequest{
		Services: []string{f.service.Id}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE, musterv1.ObjectKind_TASK},
	})
	if err == nil {
		// Only changes from now on are streamed. The present state is read once the watch
		// is established.
		_, err = stream.Recv()
	}
	var now *musterv1.Service
	if err == nil {
		now, err = f.present(ctx)
	}
	if !late.Stop() && err != nil {
		err = status.Errorf(codes.DeadlineExceeded, "no watch began within %v", beginTimeout)
	}
	if err != nil {
		return nil, nil, err
	}
	f.answered = time.Now()
	f.progress.heard()
	return stream, now, nil
}

// apply takes in what a watch has sent. It returns the service as it is now, and whether
// a task does not run.
func (f *waiting) apply(now *musterv1.Service, batch *musterv1.WatchResponse) (*musterv1.Service, bool, error) {
	if len(batch.Events) == 0 {
		return now, false, nil // a bookmark: nothing of this service has changed
	}
	f.forecast.change(time.Now())
	f.progress.missing = ""
	failure := false
	for _, e := range batch.Events {
		removed := e.Action == musterv1.WatchAction_DELETE
		if s := e.GetService(); s != nil {
			if removed {
				return nil, false, status.Error(codes.NotFound, "removed")
			}
			now = s
		}
		switch t := e.GetTask(); {
		case t == nil:
		case removed:
			delete(f.forecast.erring, t.Id)
		default:
			failure = f.noteTask(t) || failure
		}
	}
	return now, failure, nil
}

// noteTask notes why a task does not run, and reports whether that is so.
func (f *waiting) noteTask(t *musterv1.Task) bool {
	if f.progress.concerns(t) {
		f.forecast.task(t, time.Now())
	}
	return f.progress.task(t)
}

// present reads the service, and notes why tasks of it have failed: that may have
// been before the watch.
func (f *waiting) present(ctx context.Context) (*musterv1.Service, error) {
	resp, err := f.client.GetService(ctx, &musterv1.GetServiceRequest{Service: f.service.Id})
	if status.Code(err) == codes.NotFound {
		// Another replica of apid may not have seen the service yet.
		f.answered = time.Now()
		if f.absent.IsZero() {
			f.absent = time.Now()
		}
		if time.Since(f.absent) < absentFor {
			return nil, status.Error(codes.Unavailable, "this server does not know the service yet")
		}
	}
	if err != nil {
		return nil, err
	}
	f.absent = time.Time{}
	if st := resp.Service.Status; st.GetRunningTasks() >= st.GetDesiredTasks() {
		return resp.Service, nil
	}
	failures, err := f.tasks(ctx, musterv1.TaskState_FAILED, musterv1.TaskState_REJECTED)
	if err != nil {
		return nil, err
	}
	preparing, err := f.tasks(ctx, musterv1.TaskState_PREPARING)
	if err != nil {
		return nil, err
	}
	for _, t := range slices.Concat(failures, preparing) {
		f.progress.task(t)
	}
	f.forecast.tasks(slices.DeleteFunc(preparing, func(t *musterv1.Task) bool { return !f.progress.concerns(t) }), time.Now())
	return resp.Service, nil
}

// tasks returns tasks in these states, at most a page of them.
func (f *waiting) tasks(ctx context.Context, states ...musterv1.TaskState) ([]*musterv1.Task, error) {
	resp, err := f.client.ListTasks(ctx, &musterv1.ListTasksRequest{Services: []string{f.service.Id}, States: states, PageSize: pageSize})
	return resp.GetTasks(), err
}

// receive passes on what a watch sends until it ends.
func receive(ctx context.Context, stream grpc.ServerStreamingClient[musterv1.WatchResponse], batches chan<- *musterv1.WatchResponse) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hold is how long tasks must keep running before a service counts as
// converged: one whose program ends at once runs, too, for a moment.
// An update has been watched for that time already.
func (p *progress) hold(spec *musterv1.ServiceSpec) time.Duration {
	if p.updated {
		return 0
	}
	if m := spec.GetUpdate().GetMonitor(); m != nil {
		return m.AsDuration()
	}
	return time.Second
}
