package tasks

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/tasklog"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

const (
	// logsPoll is the pause between looks at a task that has not begun.
	logsPoll = 500 * time.Millisecond
	// logsRetry and longestLogsRetry bound the pauses between attempts to read a task's
	// output while its executor is away.
	logsRetry        = 500 * time.Millisecond
	longestLogsRetry = 5 * time.Second
)

// Logs calls send with each of a task's lines, in order, until there are none
// left, ctx ends, or send fails. If there can be no lines it sends a warning that says why.
func (m *Manager) Logs(ctx context.Context, id string, options *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	m.mu.Lock()
	t := m.tasks[id]
	known := t != nil && t.want.newest != nil
	m.mu.Unlock()
	if !known {
		return send(&musterv1.LogMessage{
			TaskId: id, NodeId: m.cfg.NodeID, Warning: fmt.Sprintf("task %s is not on node %s", id, m.cfg.NodeID),
		})
	}
	if len(t.spec.GetGroup()) > 0 {
		return t.groupLogs(ctx, options, send)
	}
	if name := options.GetContainer(); name != "" && name != groups.Main {
		return send(t.noContainer(name))
	}
	return newLogReader(t, "", options, send).run(ctx)
}

func newLogReader(t *task, container string, options *musterv1.LogOptions, send func(*musterv1.LogMessage) error) *logReader {
	return &logReader{t: t, container: container, options: options, send: send, retry: backoff.New(logsRetry, longestLogsRetry)}
}

// run reads until there are no lines left, ctx ends, or send fails.
func (r *logReader) run(ctx context.Context) error {
	for {
		pause, again, err := r.read(ctx)
		if err != nil || !again {
			return err
		}
		if err := backoff.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// logReader reads the lines of one task, or of one container of its group, also while its executor is started
// again.
type logReader struct {
	t *task
	// container is the name of the container in the task's group; empty for a task
	// without one.
	container string
	options   *musterv1.LogOptions
	send      func(*musterv1.LogMessage) error
	// position is the last line that was sent.
	position tasklog.Position
	// retry is the pause after failures in a row.
	retry *backoff.Backoff
}

// read reads until the stream ends, and reports whether to read again after a pause.
func (r *logReader) read(ctx context.Context) (pause time.Duration, again bool, err error) {
	t := r.t
	now := t.published.Load()
	state, handle := now.status.State, now.handle
	t.m.mu.Lock()
	assigned, withdrawn := t.want.newest, t.want.withdrawn
	t.m.mu.Unlock()
	// Nothing new comes from a task that has ended.
	following := r.options.GetFollow() && !lifecycle.Ended(state) && !withdrawn
	if !lifecycle.Touched(state) {
		return logsPoll, following, nil
	}
	source := assigned.GetServiceName()
	if source == "" {
		source = assigned.GetServiceId()
	}
	if assigned.GetSlot() != 0 {
		source += "." + strconv.FormatUint(assigned.GetSlot(), 10)
	} else {
		source += "." + t.m.cfg.NodeID
	}
	message := func() *musterv1.LogMessage {
		return &musterv1.LogMessage{
			ServiceId: assigned.GetServiceId(), TaskId: t.id, NodeId: t.m.cfg.NodeID, Source: source, Container: r.container,
		}
	}
	e, err := t.executor(ctx, now.executor)
	if err == nil && !e.Can("logs") {
		warning := message()
		warning.Warning = fmt.Sprintf("executor %s keeps no logs", e.Name)
		return 0, false, r.send(warning)
	}
	var sendErr error
	if err == nil {
		known := r.position.Resume()
		err = e.Executor.Logs(ctx, r.ref(handle), r.rest(), func(line *executor.LogLine) error {
			m := message()
			m.Stream, m.Data = line.Stream, line.Data[:min(len(line.Data), bounds.MaxLogLine)]
			if !line.Time.IsZero() {
				m.Timestamp = timestamppb.New(line.Time)
			}
			r.retry.Reset()
			if known(m) {
				return nil
			}
			if sendErr = r.send(m); sendErr == nil {
				r.position.Note(m)
			}
			return sendErr
		})
	}
	switch {
	case sendErr != nil:
		return 0, false, sendErr
	case ctx.Err() != nil:
		return 0, false, ctx.Err()
	case err == nil:
		return logsPoll, following && r.mayRunAgain(&now.status), nil
	}
	if failure := executor.ErrorOf(err); following && (failure.Temporary || failure.Code == codes.NotFound) {
		return r.retry.Next(), true, nil
	}
	warning := message()
	warning.Warning = bounds.Text(fmt.Sprintf("logs of task %s on node %s: %s", t.id, t.m.cfg.NodeID, err), nodereport.MaxStatusText)
	return 0, false, r.send(warning)
}

// rest returns the options for what has not been read yet. The executor repeats
// the lines that have the same time as the last one.
func (r *logReader) rest() *musterv1.LogOptions {
	since, ok := r.position.Since()
	if !ok {
		return r.options
	}
	options := &musterv1.LogOptions{}
	if r.options != nil {
		options = proto.CloneOf(r.options)
	}
	options.Tail = 0
	options.Since = timestamppb.New(since)
	return options
}
