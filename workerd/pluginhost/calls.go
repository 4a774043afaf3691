package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// calls is an executor whose process may come and go.
type calls struct {
	plugin *plugin
}

var _ executor.Executor = (*calls)(nil)

// call makes one call, to whatever process runs now.
func call[Res any](ctx context.Context, c *calls, method func(executor.Executor) (Res, error)) (Res, error) {
	i, err := c.plugin.service(ctx)
	if err != nil {
		var none Res
		e := executor.ErrorOf(err)
		e.NotCalled = true
		return none, e
	}
	res, err := method(i.executor)
	return res, c.plugin.blame(i, err)
}

// do makes one call that returns nothing.
func do(ctx context.Context, c *calls, method func(executor.Executor) error) error {
	_, err := call(ctx, c, func(e executor.Executor) (struct{}, error) { return struct{}{}, method(e) })
	return err
}

// blame says of an error of a call whose it is. Where the process has ended
// it says that: a broken connection explains nothing.
func (p *plugin) blame(i *instance, err error) error {
	if err == nil {
		return nil
	}
	e := executor.ErrorOf(err)
	if e.Code == codes.Unavailable || e.Code == codes.Canceled {
		if ended := i.process.justEnded(); ended != nil {
			e = &executor.Error{Code: codes.Unavailable, Temporary: true, RetryAfter: firstPause, Err: fmt.Errorf("plugin's %w", ended)}
		}
	}
	return p.wrap(e)
}

func (c *calls) Describe(ctx context.Context) (*executor.About, error) {
	return call(ctx, c, func(e executor.Executor) (*executor.About, error) { return e.Describe(ctx) })
}

func (c *calls) Prepare(ctx context.Context, task *executor.Task, handle []byte) (*executor.Prepared, error) {
	return call(ctx, c, func(e executor.Executor) (*executor.Prepared, error) { return e.Prepare(ctx, task, handle) })
}

func (c *calls) Start(ctx context.Context, task *executor.Task, handle []byte, network *executor.TaskNetwork) (*executor.Started, error) {
	return call(ctx, c, func(e executor.Executor) (*executor.Started, error) { return e.Start(ctx, task, handle, network) })
}

func (c *calls) Wait(ctx context.Context, ref executor.Ref) (*executor.Ended, error) {
	return call(ctx, c, func(e executor.Executor) (*executor.Ended, error) { return e.Wait(ctx, ref) })
}

func (c *calls) Update(ctx context.Context, task *executor.Task, handle []byte) ([]byte, error) {
	return call(ctx, c, func(e executor.Executor) ([]byte, error) { return e.Update(ctx, task, handle) })
}

func (c *calls) Shutdown(ctx context.Context, ref executor.Ref, grace *time.Duration) (*musterv1.RuntimeStatus, error) {
	return call(ctx, c, func(e executor.Executor) (*musterv1.RuntimeStatus, error) { return e.Shutdown(ctx, ref, grace) })
}

func (c *calls) Terminate(ctx context.Context, ref executor.Ref) (*musterv1.RuntimeStatus, error) {
	return call(ctx, c, func(e executor.Executor) (*musterv1.RuntimeStatus, error) { return e.Terminate(ctx, ref) })
}

func (c *calls) Remove(ctx context.Context, ref executor.Ref) error {
	return do(ctx, c, func(e executor.Executor) error { return e.Remove(ctx, ref) })
}

func (c *calls) Signal(ctx context.Context, ref executor.Ref, signal string) error {
	return do(ctx, c, func(e executor.Executor) error { return e.Signal(ctx, ref, signal) })
}

var _ executor.VolumeKeeper = (*calls)(nil)

// errNoVolumes is the error of an executor that keeps no volumes.
func errNoVolumes() error {
	return &executor.Error{Code: codes.Unimplemented, Err: errors.New("the executor keeps no volumes")}
}

func (c *calls) Volumes(ctx context.Context, node string) ([]*musterv1.NodeVolume, error) {
	return call(ctx, c, func(e executor.Executor) ([]*musterv1.NodeVolume, error) {
		if keeper, ok := e.(executor.VolumeKeeper); ok {
			return keeper.Volumes(ctx, node)
		}
		return nil, errNoVolumes()
	})
}

func (c *calls) RemoveVolume(ctx context.Context, name string) error {
	return do(ctx, c, func(e executor.Executor) error {
		if keeper, ok := e.(executor.VolumeKeeper); ok {
			return keeper.RemoveVolume(ctx, name)
		}
		return errNoVolumes()
	})
}

func (c *calls) List(ctx context.Context, node string) ([]executor.Listed, error) {
	return call(ctx, c, func(e executor.Executor) ([]executor.Listed, error) { return e.List(ctx, node) })
}

func (c *calls) Logs(ctx context.Context, ref executor.Ref, options *musterv1.LogOptions, emit func(*executor.LogLine) error) error {
	return do(ctx, c, func(e executor.Executor) error { return e.Logs(ctx, ref, options, emit) })
}

func (c *calls) Observe(ctx context.Context, ref executor.Ref, emit func(*executor.Observation) error) error {
	return do(ctx, c, func(e executor.Executor) error { return e.Observe(ctx, ref, emit) })
}
