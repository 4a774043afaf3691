package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// wait says whether and how long to wait for a service to run as it should.
type wait struct {
	detach  bool
	quiet   bool
	timeout time.Duration
	// rollout says that tasks are to come to another spec: an update that pauses, or
	// is rolled back, has failed.
	rollout bool
	// rollback says that this is the rollback, which ends well when it is completed.
	rollback bool
}

func (w *wait) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVarP(&w.detach, "detach", "d", false, "do not wait until the tasks run")
	fs.BoolVarP(&w.quiet, "quiet", "q", false, "show no progress")
	fs.DurationVar(&w.timeout, "timeout", 0, "give up waiting after this time, with exit code 6 (default: wait on)")
}

// converge waits until a service's tasks run as its spec says, and shows how
// far they are. What is asked for is stored already: giving up stops nothing.
func (c *CLI) converge(ctx context.Context, client musterv1.ControlServiceClient, w *wait, service *musterv1.Service) error {
	if w.detach {
		return nil
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, w.timeout,
			fmt.Errorf("%w after %v; the service stays: `muster service ps %s` shows its tasks", errNotConverged, w.timeout, service.Spec.GetName()))
		defer cancel()
	}
	p := &progress{c: c, quiet: w.quiet, rollout: w.rollout, rollback: w.rollback}
	defer p.end()
	for {
		done, err := c.follow(ctx, client, service, p)
		switch {
		case done:
			p.show(p.last + ": converged")
			return nil
		case errors.Is(err, errNotConverged):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case status.Code(err) == codes.NotFound:
			return fmt.Errorf("%w: the service was removed meanwhile", errNotConverged)
		case err != nil && !passing(status.Code(err)):
			return err
		}
		// Look again soon.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// passing tells whether an error of a watch is no reason to give up: the server
// is away, let the watch go, or found the time for waiting over a moment before
// this process did.
func passing(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.OutOfRange || code == codes.DeadlineExceeded
}

// follow watches the service and its tasks until it has converged or the watch
// ends.
func (c *CLI) follow(ctx context.Context, client musterv1.ControlServiceClient, service *musterv1.Service, p *progress) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &musterv1.WatchRequest{
		Services: []string{service.Id}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE, musterv1.ObjectKind_TASK},
	})
	if err != nil {
		return false, err
	}
	// Only changes from now on are streamed: what is, is asked for once the watch
	// is established.
	if _, err := stream.Recv(); err != nil {
		return false, err
	}
	resp, err := client.GetService(ctx, &musterv1.GetServiceRequest{Service: service.Id})
	if err != nil {
		return false, err
	}
	batches, failed := make(chan *musterv1.WatchResponse), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() { failed <- receive(ctx, stream, batches) })
	defer func() { cancel(); reading.Wait() }()
	var held <-chan time.Time
	for now := resp.Service; ; {
		done, err := p.service(now, service.Meta.GetVersion())
		switch {
		case err != nil:
			return false, err
		case !done:
			held = nil
		case held == nil:
			held = time.After(p.hold(now.Spec))
		}
		var batch *musterv1.WatchResponse
		select {
		case <-held:
			return true, nil
		case err := <-failed:
			// The time for waiting is over, and the service runs.
			return held != nil && errors.Is(ctx.Err(), context.DeadlineExceeded), err
		case batch = <-batches:
		}
		for _, e := range batch.Events {
			if s := e.GetService(); s != nil && e.Action != musterv1.WatchAction_DELETE {
				now = s
			} else if s != nil {
				return false, status.Error(codes.NotFound, "removed")
			}
			if t := e.GetTask(); t != nil && e.Action != musterv1.WatchAction_DELETE {
				if p.task(t) {
					held = nil
				}
			}
		}
	}
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

// hold is how long tasks must go on running before a service is said to have
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

// progress shows one line: redrawn on a terminal, and again when it has changed
// elsewhere.
type progress struct {
	c                 *CLI
	quiet             bool
	rollout, rollback bool
	// updated says that an update was seen to be under way.
	updated bool
	drawn   bool
	last    string
	// told are the lines that were printed since the numbers of tasks changed last,
	// for which told holds.
	told    map[string]bool
	toldFor string
	trouble string
	// why is the trouble without the task whose it is: of tasks that fail one after
	// the other for the same reason the first is named.
	why string
}

// service shows how far a service is, and reports whether it has converged at
// the version that was asked for, or a later one. Its error says that it will not,
// because the update has paused or was rolled back.
func (p *progress) service(s *musterv1.Service, version uint64) (bool, error) {
	st, state := s.Status, s.UpdateStatus.GetState()
	line := fmt.Sprintf("%s: %d/%d running", s.Spec.GetName(), st.GetRunningTasks(), st.GetDesiredTasks())
	p.last = line
	underWay := state == musterv1.UpdateStatus_UPDATING || state == musterv1.UpdateStatus_ROLLBACK_STARTED
	switch {
	case st.GetPendingReason() != "" && st.GetRunningTasks() < st.GetDesiredTasks():
		line += ": " + st.GetPendingReason()
	case p.trouble != "":
		line += ": " + p.trouble
	case underWay && p.rollout:
		line += ": " + s.UpdateStatus.GetMessage()
	}
	if p.c.Terminal && st.GetDesiredTasks() > 0 {
		const width = 20
		full := int(min(uint64(width), width*st.GetRunningTasks()/st.GetDesiredTasks()))
		line = "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "] " + line
	}
	p.show(line)
	if s.Meta.GetVersion() < version {
		return false, nil
	}
	p.updated = p.updated || p.rollout && underWay
	stuck := state == musterv1.UpdateStatus_PAUSED || state == musterv1.UpdateStatus_ROLLBACK_PAUSED ||
		state == musterv1.UpdateStatus_ROLLBACK_COMPLETED && !st.GetConverged() && !p.rollback
	switch {
	case stuck && p.rollout:
		return false, p.stuck(s)
	case stuck:
		// Tasks are of several specs, or of a former one, and stay so.
		return st.GetRunningTasks() == st.GetDesiredTasks(), nil
	default:
		return st.GetConverged() && (!underWay || !p.rollout), nil
	}
}

// stuck says what has become of an update, and what to do.
func (p *progress) stuck(s *musterv1.Service) error {
	name, message := s.Spec.GetName(), s.UpdateStatus.GetMessage()
	if s.UpdateStatus.GetState() == musterv1.UpdateStatus_ROLLBACK_COMPLETED {
		return fmt.Errorf("%w: %s. The tasks run what they ran before the update; `muster service ps %s` shows what failed, and `muster service update %s` tries again",
			errNotConverged, message, name, name)
	}
	return fmt.Errorf("%w: %s. `muster service ps %s` shows the tasks; `muster service rollback %s` goes back, and `muster service update %s` tries again",
		errNotConverged, message, name, name, name)
}

// task notes why a task does not run, and reports whether that is so.
func (p *progress) task(t *musterv1.Task) bool {
	if t.Status.GetError() != "" {
		why := strings.ToLower(t.Status.State.String()) + ": " + t.Status.Error
		if p.trouble == "" || p.why != why {
			p.trouble, p.why = "task "+short(t.Id, false)+" "+why, why
		}
		return true
	}
	if t.Status.GetState() == musterv1.TaskState_RUNNING {
		p.trouble = ""
	}
	return false
}

func (p *progress) show(line string) {
	line = printable(line)
	if p.quiet {
		return
	}
	if p.c.Terminal {
		// Carriage return, and erase to the end of the line (ECMA-48).
		_, _ = fmt.Fprintf(p.c.Err, "\r\x1b[K%s", cut(line, 110, false))
		p.drawn = true
		return
	}
	if p.toldFor != p.last || p.told == nil {
		p.toldFor, p.told = p.last, map[string]bool{}
	} else if line == p.last {
		// A reason has gone, and the numbers are those that were printed with it.
		return
	}
	if !p.told[line] {
		_, _ = fmt.Fprintln(p.c.Err, line)
	}
	p.told[line] = true
}

func (p *progress) end() {
	if p.drawn {
		_, _ = fmt.Fprintln(p.c.Err)
	}
}
