package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
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
	// completes is set where services may be of tasks that end: one whose tasks have
	// all ended with success, or run, has converged.
	completes bool
}

func (w *wait) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVarP(&w.detach, "detach", "d", false, "do not wait until the tasks run")
	fs.BoolVarP(&w.quiet, "quiet", "q", false, "show no progress")
	fs.BoolVar(&w.keep, "keep-waiting", false, "keep waiting although tasks fail, no node fits, a daemon is missing or apid does not answer")
	fs.DurationVar(&w.timeout, "timeout", 0, "stop waiting after this time, with exit code 6 (default: no limit)")
}

// waitHelp is the part of the help of commands that wait.
const waitHelp = `Waiting ends with exit code 6 and the reason if the tasks cannot run unless something changes: the tasks that do not run
have failed three times in a row, each within ten seconds, or have ended for good by their restart policy; no node has
fitted for 15 seconds; a task that is being prepared has shown an error for a minute; or a required daemon has been missing for 10 seconds. It ends with exit code 5 if apid has not
answered for a minute. The request stays stored and Muster keeps trying. Use --keep-waiting to wait regardless.`

const (
	// silentPatience is how long a wait continues without an answer of apid.
	silentPatience = time.Minute
	// beginTimeout is how long a watch may take to begin.
	beginTimeout = 10 * time.Second
	// firstWatchPause and longestWatchPause bound the time between two watches.
	firstWatchPause, longestWatchPause = time.Second, 5 * time.Second
	// absentFor is how long servers must not know a service before it counts as removed.
	absentFor = 5 * time.Second
	// lateLook bounds the one look at a service whose turn did not come before the
	// time for waiting was over.
	lateLook = 2 * time.Second
)

// errNoAnswer says that what was asked for was stored, and that apid does not answer
// any more.
var errNoAnswer = errors.New("stopped waiting")

// errCompleted says that tasks have ended with success, and are not started again.
var errCompleted = errors.New("completed")

// waiting is one wait for one service. It lasts over several watches.
type waiting struct {
	c        *CLI
	client   musterv1.ControlServiceClient
	service  *musterv1.Service
	progress *progress
	forecast *forecast
	// answered is when a server answered last.
	answered time.Time
	// absent is since when servers have not known the service, zero if they do.
	absent time.Time
	// completes is that of the wait.
	completes bool
}

// converge waits until the tasks of services run as their specs say, one service after
// the other, and shows how far they are. One timeout bounds the wait for all of them.
// The specs are stored already: giving up stops nothing.
func (c *CLI) converge(ctx context.Context, w *wait, services ...*musterv1.Service) error {
	if w.detach {
		return nil
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	limited := ctx
	if w.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, w.timeout)
		defer cancel()
	}
	var errs []error
	for _, s := range services {
		err := c.newWaiting(client, w, s).await(ctx, limited, w)
		if err != nil && ctx.Err() != nil {
			// The user no longer waits, whatever the last look at the service said.
			return errors.Join(append(errs, ctx.Err())...)
		}
		errs = append(errs, err)
		if err != nil && !errors.Is(err, errNotConverged) {
			break
		}
	}
	return errors.Join(errs...)
}

// await waits for the service, until limited ends.
func (f *waiting) await(ctx, limited context.Context, w *wait) error {
	err := f.run(limited)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = f.timeUp(ctx, w.timeout)
	}
	f.progress.end()
	return err
}

func (c *CLI) newWaiting(client api, w *wait, service *musterv1.Service) *waiting {
	now := time.Now()
	p := &progress{c: c, quiet: w.quiet, rollout: w.rollout, rollback: w.rollback, last: service.Spec.GetName()}
	if service.EffectiveSpec == nil {
		p.specVersion = service.SpecVersion
	}
	return &waiting{
		c: c, client: client, service: service, progress: p, answered: now, completes: w.completes,
		forecast: &forecast{keepWaiting: w.keep, rollout: w.rollout, version: service.Meta.GetVersion(), moved: now, erring: map[string]time.Time{}},
	}
}

// run watches the service again and again until it has converged, will not converge, or
// ctx ends. It then returns the error of ctx.
func (f *waiting) run(ctx context.Context) error {
	pause := backoff.New(firstWatchPause, longestWatchPause)
	for {
		began := time.Now()
		f.c.answered.yes.Store(false)
		done, err := f.follow(ctx)
		switch {
		case done:
			f.progress.show(f.progress.last + ": converged")
			return nil
		case errors.Is(err, errCompleted):
			f.progress.show(f.service.Spec.GetName() + ": completed")
			return nil
		case errors.Is(err, errNotConverged):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case status.Code(err) == codes.NotFound:
			return fmt.Errorf("%w: the service was removed meanwhile", errNotConverged)
		case err != nil && !passing(status.Code(err)):
			return err
		}
		if f.answered.Before(began) {
			if err := f.silent(err); err != nil {
				return err
			}
		} else {
			pause.Reset()
		}
		_ = pause.Wait(ctx) // follow notices the end of ctx
	}
}

// passing reports whether a watch that ended with this code may be opened again: the
// server is away, ended the watch, or saw the deadline pass a moment before this
// process did.
func passing(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.OutOfRange || code == codes.DeadlineExceeded
}

// silent shows that apid has not answered, or could not. It returns an error once that
// has lasted too long.
func (f *waiting) silent(why error) error {
	p := f.progress
	p.silent = "apid at " + f.c.address + " does not answer"
	if f.c.answered.yes.Load() {
		p.silent = "apid at " + f.c.address + " cannot answer now: " + status.Convert(why).Message()
	}
	p.show(p.last + ": " + p.silent + "; retrying…")
	if f.forecast.keepWaiting || time.Since(f.answered) < silentPatience {
		return nil
	}
	return fmt.Errorf("%w after %v: %s\nThe request is stored. Once apid answers, `muster service ps %s` shows the tasks",
		errNoAnswer, time.Since(f.answered).Round(time.Second), p.silent, f.service.Spec.GetName())
}

// timeUp is how a wait ends when its time is over. A service whose turn has not come is
// looked at once, because it may have converged.
func (f *waiting) timeUp(ctx context.Context, timeout time.Duration) error {
	if !f.progress.seen {
		ctx, cancel := context.WithTimeout(ctx, lateLook)
		defer cancel()
		if s, err := f.present(ctx); err == nil {
			done, err := f.progress.service(s, f.forecast.version)
			if done {
				f.progress.show(f.progress.last + ": converged")
			}
			if done || err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w after %v%s\nThe service stays: `muster service ps %s` shows its tasks", errNotConverged, timeout, f.progress.reason(), f.service.Spec.GetName())
}
