package tasks

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// logsRetry is how often a task's output is asked for again when there is none
// yet, or its executor is away.
const logsRetry = 500 * time.Millisecond

// Logs calls send with a task's lines, in order, until there are no more, ctx
// ends, or send fails. If there can be no lines it sends a warning that says
// why.
func (m *Manager) Logs(ctx context.Context, id string, options *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	m.mu.Lock()
	t := m.tasks[id]
	m.mu.Unlock()
	if t == nil || t.orphan {
		return send(&musterv1.LogMessage{
			TaskId: id, NodeId: m.cfg.NodeID, Warning: fmt.Sprintf("task %s is not on node %s", id, m.cfg.NodeID),
		})
	}
	reader := &logReader{t: t, options: options, send: send}
	for {
		again, err := reader.read(ctx)
		if err != nil || !again {
			return err
		}
		select {
		case <-time.After(logsRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// logReader reads the lines of one task, also when its executor is started
// again meanwhile.
type logReader struct {
	t       *task
	options *musterv1.LogOptions
	send    func(*musterv1.LogMessage) error
	// position is how far the lines have been sent.
	position tasklog.Position
}

// read reads until the stream ends, and says whether to read again.
func (r *logReader) read(ctx context.Context) (again bool, err error) {
	t := r.t
	t.mu.Lock()
	state, withdrawn, handle := t.status.State, t.withdrawn, t.handle
	told := t.assigned
	t.mu.Unlock()
	// Nothing new comes from a task that has ended, so one look is enough.
	following := r.options.GetFollow() && !lifecycle.Ended(state) && !withdrawn
	if !lifecycle.Touched(state) {
		return following, nil
	}
	source := told.GetServiceName()
	if source == "" {
		source = told.GetServiceId()
	}
	if told.GetSlot() != 0 {
		source += "." + strconv.FormatUint(told.GetSlot(), 10)
	} else {
		source += "." + t.m.cfg.NodeID
	}
	message := func() *musterv1.LogMessage {
		return &musterv1.LogMessage{ServiceId: told.GetServiceId(), TaskId: t.id, NodeId: t.m.cfg.NodeID, Source: source}
	}
	e, err := t.executor(ctx)
	if err == nil && !e.Can("logs") {
		warning := message()
		warning.Warning = fmt.Sprintf("executor %s keeps no logs", e.Name)
		return false, r.send(warning)
	}
	var sendErr error
	if err == nil {
		known := r.position.Resume()
		err = e.Executor.Logs(ctx, &executorv1.LogsRequest{TaskId: t.id, Handle: handle, Options: r.rest()},
			func(line *executorv1.LogsResponse) error {
				m := message()
				m.Timestamp, m.Stream, m.Data = line.GetTimestamp(), line.GetStream(), line.GetData()
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
		return false, sendErr
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err == nil:
		return false, nil
	}
	var said *wire.Error
	if errors.As(wire.FromStatus(err), &said) && following && (said.Temporary || said.Code == codes.NotFound) {
		return true, nil
	}
	warning := message()
	warning.Warning = fmt.Sprintf("logs of task %s on node %s: %s", t.id, t.m.cfg.NodeID, err)
	return false, r.send(warning)
}

// rest are the options for what has not been read yet. The executor repeats the
// lines of the same time as the last.
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
