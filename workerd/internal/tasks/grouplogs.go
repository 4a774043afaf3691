package tasks

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// groupLogsPatience is how long lines of other containers wait for one that is slow.
const groupLogsPatience = 500 * time.Millisecond

// noContainer returns the warning for a container that the task does not have.
func (t *task) noContainer(name string) *musterv1.LogMessage {
	return &musterv1.LogMessage{TaskId: t.id, NodeId: t.m.cfg.NodeID, Warning: fmt.Sprintf("task %s has no container %q", t.id, name)}
}

// groupLogs sends the lines of the containers that the options ask for: by time, unless
// new lines are awaited.
func (t *task) groupLogs(ctx context.Context, options *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	names := []string{groups.Main}
	for _, c := range t.spec.GetGroup() {
		names = append(names, c.GetName())
	}
	if only := options.GetContainer(); only != "" {
		if !slices.Contains(names, only) {
			return send(t.noContainer(only))
		}
		names = []string{only}
	}
	sources := make([]tasklog.Source, len(names))
	for i, name := range names {
		sources[i] = func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
			return newLogReader(t, name, options, emit).run(ctx)
		}
	}
	if !options.GetFollow() {
		return tasklog.Merge(ctx, sources, len(sources), groupLogsPatience, send)
	}
	var sending sync.Mutex
	all, ctx := errgroup.WithContext(ctx)
	for _, read := range sources {
		all.Go(func() error {
			return read(ctx, func(m *musterv1.LogMessage) error {
				sending.Lock()
				defer sending.Unlock()
				return send(m)
			})
		})
	}
	return all.Wait()
}

// ref names what the lines are read of.
func (r *logReader) ref(handle []byte) executor.Ref {
	if r.container == "" {
		return executor.Ref{TaskID: r.t.id, Handle: handle}
	}
	return groups.RefOf(r.t.id, r.container, handle)
}

// mayRunAgain reports whether a container of a group whose output has ended may still be
// started: it has not run yet, or it is a sidecar.
func (r *logReader) mayRunAgain(status *lifecycle.Status) bool {
	i := slices.IndexFunc(status.Containers, func(c *musterv1.ContainerStatus) bool { return c.GetName() == r.container })
	switch {
	case r.container == "":
		return false
	case i < 0:
		return true
	}
	c := status.Containers[i]
	return c.GetState() < musterv1.TaskState_RUNNING || c.GetRole() == musterv1.GroupContainer_SIDECAR
}
