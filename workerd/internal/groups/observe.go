package groups

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/executor"
)

// observeRetry and longestObserveRetry bound the pauses between attempts to observe.
const (
	observeRetry        = time.Second
	longestObserveRetry = 30 * time.Second
)

// Logs returns the output of the main container. That of the others is read from their
// executor.
func (g *Group) Logs(ctx context.Context, _ executor.Ref, options *musterv1.LogOptions, emit func(*executor.LogLine) error) error {
	return g.exec.Logs(ctx, g.ref(g.main), options, emit)
}

// Observe reports each change of the containers until ctx ends.
func (g *Group) Observe(ctx context.Context, _ executor.Ref, emit func(*executor.Observation) error) error {
	for {
		g.mu.Lock()
		now := &executor.Observation{
			Runtime: g.merged(g.main.status.GetRuntime()), Message: g.message, Error: g.problem, Containers: g.statuses(),
		}
		changed := g.changed
		g.mu.Unlock()
		if err := emit(now); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// runtime returns the runtime status of the task.
func (g *Group) runtime(main *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.merged(main)
}

// merged returns the runtime status of the main container with the worst health of it and
// its sidecars. Nothing sends requests to a task one of whose sidecars does not run. The
// caller holds mu.
func (g *Group) merged(main *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	if main == nil {
		return nil
	}
	health := main.GetHealth()
	for _, c := range g.others {
		if c.role != sidecarRole {
			continue
		}
		h := proto.CloneOf(c.status.GetRuntime().GetHealth())
		if c.status.GetState() != musterv1.TaskState_RUNNING {
			h = &musterv1.Health{State: musterv1.Health_STARTING, Output: "it does not run"}
		}
		if h.GetOutput() != "" {
			h.Output = fmt.Sprintf("sidecar %q: %s", c.name, h.Output)
		}
		health = worse(health, h)
	}
	if health == main.GetHealth() {
		return main
	}
	whole := proto.CloneOf(main)
	whole.Health = health
	return whole
}

// watch notes what the executor observes of a container until the returned function is
// called. The told function, if any, gets each observation.
func (g *Group) watch(ctx context.Context, c *container, told func(*executor.Observation)) (stop func()) {
	if !g.cfg.Executor.Can("observe") {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { g.observe(ctx, c, told) })
	return func() {
		cancel()
		watching.Wait()
	}
}

func (g *Group) observe(ctx context.Context, c *container, told func(*executor.Observation)) {
	retry := backoff.New(observeRetry, longestObserveRetry)
	for {
		err := g.exec.Observe(ctx, g.ref(c), func(o *executor.Observation) error {
			retry.Reset()
			if o.Runtime != nil {
				g.update(c, func(s *musterv1.ContainerStatus) { s.Runtime = o.Runtime })
			}
			if told != nil {
				told(o)
			}
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		// What was observed is no longer known to be true.
		if failure := executor.ErrorOf(err); failure == nil || !failure.Temporary || backoff.Sleep(ctx, max(failure.Delay(), retry.Next())) != nil {
			return
		}
	}
}
