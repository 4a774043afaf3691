package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// wait holds the flags of commands that wait until a service has converged.
type wait struct {
	detach  bool
	quiet   bool
	keep    bool
	timeout time.Duration
	// rollout is set for an update: one that pauses, or is rolled back, has failed.
	rollout bool
	// rollback is set for the rollback itself, which succeeds when it is completed.
	rollback bool
}

func (w *wait) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVarP(&w.detach, "detach", "d", false, "do not wait until the tasks run")
	fs.BoolVarP(&w.quiet, "quiet", "q", false, "show no progress")
	fs.BoolVar(&w.keep, "keep-waiting", false, "do not stop waiting while tasks keep failing, no node fits or a daemon is missing")
	fs.DurationVar(&w.timeout, "timeout", 0, "stop waiting after this time, with exit code 6 (default: no limit)")
}

// waitHelp is the part of the help of commands that wait.
const waitHelp = `It stops waiting, with exit code 6 and the reason, when the tasks cannot run unless something changes: those that do not
run have failed three times in a row, each within ten seconds, or have ended for good by their restart policy; no node
has fitted for 15 seconds; or a daemon that is needed has been missing for 10 seconds. What was asked for stays stored,
and Muster keeps trying. --keep-waiting waits on.`

// waiting is one wait for one service. It lasts over several watches.
type waiting struct {
	client   musterv1.ControlServiceClient
	service  *musterv1.Service
	progress *progress
	outlook  *outlook
	// absent is since when servers have not known the service, zero if they do.
	absent time.Time
}

// converge waits until a service's tasks run as its spec says, and shows how
// far they are. The spec is stored already: giving up stops nothing.
func (c *CLI) converge(ctx context.Context, client musterv1.ControlServiceClient, w *wait, service *musterv1.Service) error {
	if w.detach {
		return nil
	}
	parent := ctx
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.timeout)
		defer cancel()
	}
	p := &progress{c: c, quiet: w.quiet, rollout: w.rollout, rollback: w.rollback}
	if service.EffectiveSpec == nil {
		p.specVersion = service.SpecVersion
	}
	defer p.end()
	f := &waiting{
		client: client, service: service, progress: p,
		outlook: &outlook{keepWaiting: w.keep, rollout: w.rollout, version: service.Meta.GetVersion(), moved: time.Now()},
	}
	for {
		done, err := f.follow(ctx)
		switch {
		case done:
			p.show(p.last + ": converged")
			return nil
		case errors.Is(err, errNotConverged):
			return err
		case parent.Err() != nil:
			return parent.Err()
		case ctx.Err() != nil:
			return fmt.Errorf("%w after %v%s\nThe service stays: `muster service ps %s` shows its tasks", errNotConverged, w.timeout, p.reason(), service.Spec.GetName())
		case status.Code(err) == codes.NotFound:
			return fmt.Errorf("%w: the service was removed meanwhile", errNotConverged)
		case err != nil && !passing(status.Code(err)):
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchPause):
		}
	}
}

// absentFor is how long servers must not know a service before it counts as removed.
const absentFor = 5 * time.Second

// watchPause is the time between two watches.
const watchPause = time.Second

// passing reports whether a watch that ended with this code may be opened again: the
// server is away, ended the watch, or saw the deadline pass a moment before this
// process did.
func passing(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.OutOfRange || code == codes.DeadlineExceeded
}

// follow watches the service and its tasks until it has converged, will not
// converge, or the watch ends.
func (f *waiting) follow(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.client.Watch(ctx, &musterv1.WatchRequest{
		Services: []string{f.service.Id}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE, musterv1.ObjectKind_TASK},
	})
	if err != nil {
		return false, err
	}
	// Only changes from now on are streamed. The present state is read once the watch
	// is established.
	if _, err := stream.Recv(); err != nil {
		return false, err
	}
	now, err := f.present(ctx)
	if err != nil {
		return false, err
	}
	batches, failed := make(chan *musterv1.WatchResponse), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() { failed <- receive(ctx, stream, batches) })
	defer func() { cancel(); reading.Wait() }()
	var held <-chan time.Time
	for {
		done, err := f.progress.service(now, f.outlook.version)
		switch {
		case err != nil:
			return false, err
		case !done:
			held = nil
		case held == nil:
			held = time.After(f.progress.hold(now.Spec))
		}
		var next <-chan time.Time
		if done {
			f.outlook.forget()
		} else {
			if next, err = f.judge(ctx, now); err != nil {
				return false, err
			}
		}
		var batch *musterv1.WatchResponse
		select {
		case <-held:
			return true, nil
		case <-next:
			continue
		case err := <-failed:
			// The time for waiting is over, and the service runs.
			return held != nil && errors.Is(ctx.Err(), context.DeadlineExceeded), err
		case batch = <-batches:
		}
		if len(batch.Events) == 0 {
			continue // a bookmark: nothing of this service has changed
		}
		f.outlook.change(time.Now())
		f.progress.missing = ""
		for _, e := range batch.Events {
			if s := e.GetService(); s != nil && e.Action != musterv1.WatchAction_DELETE {
				now = s
			} else if s != nil {
				return false, status.Error(codes.NotFound, "removed")
			}
			if t := e.GetTask(); t != nil && e.Action != musterv1.WatchAction_DELETE {
				if f.progress.task(t) {
					held = nil
				}
			}
		}
	}
}

// present reads the service, and notes why tasks of it have failed: that may have
// been before the watch.
func (f *waiting) present(ctx context.Context) (*musterv1.Service, error) {
	resp, err := f.client.GetService(ctx, &musterv1.GetServiceRequest{Service: f.service.Id})
	if status.Code(err) == codes.NotFound {
		// Another replica of apid may not have seen the service yet.
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
	for _, t := range failures {
		f.progress.task(t)
	}
	return resp.Service, nil
}

// tasks returns tasks in these states, at most a page of them.
func (f *waiting) tasks(ctx context.Context, states ...musterv1.TaskState) ([]*musterv1.Task, error) {
	resp, err := f.client.ListTasks(ctx, &musterv1.ListTasksRequest{Services: []string{f.service.Id}, States: states, PageSize: pageSize})
	return resp.GetTasks(), err
}

// judge returns an error if the service will not converge without a change from
// outside, and otherwise a channel that says when to judge again.
func (f *waiting) judge(ctx context.Context, s *musterv1.Service) (<-chan time.Time, error) {
	now := time.Now()
	if f.outlook.asks(s, now) {
		f.outlook.asked = now
		f.outlook.missing = f.missingDaemon(ctx)
		f.progress.missing = f.outlook.missingText()
	}
	what, after := f.outlook.see(s, now)
	if what == mayConverge {
		return time.After(after), nil
	}
	return nil, f.hopeless(ctx, s, what)
}

// missingDaemon asks the cluster which daemon that must act next is missing. That
// only explains what is seen anyway, so that no answer is no error.
func (f *waiting) missingDaemon(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := f.client.GetClusterStatus(ctx, &musterv1.GetClusterStatusRequest{})
	if err != nil {
		return ""
	}
	absent := absentDaemons(resp)
	if len(absent) == 0 {
		return ""
	}
	tasks, err := f.tasks(ctx, onTheWay()...)
	if err != nil {
		return ""
	}
	return nextActor(tasks, absent)
}

// onTheWay returns the states of tasks that do not run yet.
func onTheWay() []musterv1.TaskState {
	var states []musterv1.TaskState
	for s := range musterv1.TaskState_name {
		if s := musterv1.TaskState(s); s != musterv1.TaskState_TASK_STATE_UNSPECIFIED && s < musterv1.TaskState_RUNNING {
			states = append(states, s)
		}
	}
	return states
}

// hopeless is the error of a wait for a service that does not converge by itself. It
// says why, what Muster does now, and how to continue.
func (f *waiting) hopeless(ctx context.Context, s *musterv1.Service, what prospect) error {
	st, name := s.Status, s.Spec.GetName()
	why, now := "", ""
	switch what {
	case tasksFail:
		why = fmt.Sprintf("%d of %d tasks keep failing", st.GetFailingTasks(), st.GetDesiredTasks()) + f.causes(ctx)
		now = "Muster still retries them, with a growing delay."
	case tasksEnded:
		why = fmt.Sprintf("%d of %d tasks have ended, and the restart policy does not allow to start them again", st.GetFinishedTasks(), st.GetDesiredTasks()) + f.causes(ctx)
		now = fmt.Sprintf("`muster service update --force %s` starts them again.", name)
	case noNodeFits:
		why = "no node takes the tasks that wait: " + st.GetPendingReason()
		now = "Muster starts them as soon as a node fits."
	case daemonMissing:
		return fmt.Errorf("%w: %s\nMuster continues as soon as it runs; `muster cluster status` shows all daemons", errNotConverged, f.outlook.missingText())
	}
	return fmt.Errorf("%w: %s\n%s `muster service ps %s` shows the tasks; with --keep-waiting this command waits on", errNotConverged, why, now, name)
}

// mostCauses is how many different causes an error lists.
const mostCauses = 3

// causes lists why tasks of the service's present spec have failed, the most frequent
// cause first.
func (f *waiting) causes(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	failed, err := f.tasks(ctx, musterv1.TaskState_FAILED, musterv1.TaskState_REJECTED)
	if err != nil {
		return ""
	}
	counts := map[string]int{}
	for _, t := range failed {
		if f.progress.concerns(t) {
			counts[cause(t)]++
		}
	}
	causes := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var b strings.Builder
	for _, c := range causes[:min(len(causes), mostCauses)] {
		b.WriteString("\n  " + printable(c))
	}
	if n := len(causes) - mostCauses; n > 0 {
		fmt.Fprintf(&b, "\n  and %d more", n)
	}
	return b.String()
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
