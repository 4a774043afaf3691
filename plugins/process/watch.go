//go:build linux

package process

import (
	"context"
	"errors"
	"time"

	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/logfile"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// Logs implements [sdk.LogStreamer].
func (e *Executor) Logs(ctx context.Context, ref sdk.Ref, options sdk.LogOptions, emit func(sdk.LogLine) error) error {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	query := logfile.Query{
		Wants: func(stream logfile.Stream) bool { return options.Wants(streamOf(stream)) },
		Since: options.Since,
		Tail:  options.Tail,
	}
	if options.Follow {
		query.Ended = func() (bool, error) { return logEnded(dir) }
	}
	return logfile.Read(ctx, string(dir), query, func(line logfile.Line) error {
		return emit(sdk.LogLine{Time: line.Time, Stream: streamOf(line.Stream), Data: line.Data})
	})
}

// logEnded reports whether a task no longer writes: it has ended or is gone. A task that
// has not been started will write.
func logEnded(dir taskdir.Dir) (bool, error) {
	held, err := dir.Locked()
	if errors.Is(err, taskdir.ErrNotFound) {
		return true, nil
	}
	if err != nil || held {
		return false, err
	}
	return dir.Begun()
}

func streamOf(stream logfile.Stream) sdk.Stream {
	if stream == logfile.Stderr {
		return sdk.Stderr
	}
	return sdk.Stdout
}

// Stats implements [sdk.Statser].
func (e *Executor) Stats(_ context.Context, ref sdk.Ref) (*sdk.Stats, error) {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	alive, err := dir.Locked()
	if err != nil {
		return nil, notFound(ref.TaskID, err)
	}
	run, err := runOf(dir)
	if err != nil {
		return nil, err
	}
	if run == nil {
		return nil, sdk.NotStarted(ref.TaskID)
	}
	stats := &sdk.Stats{At: time.Now()}
	if !alive {
		return stats, nil
	}
	supervisor, err := dir.Supervisor()
	if err != nil || supervisor == nil {
		return stats, err
	}
	processes, err := proc.Descendants(supervisor.PID)
	if err != nil {
		return nil, err
	}
	for _, process := range processes {
		stats.CPU += process.CPU()
		stats.MemoryBytes += int64(process.ResidentMemory())
		stats.PIDs++
	}
	// The kernel's count includes processes that have ended, and counts shared memory once.
	group := cgroup.Reopen(run.Cgroups)
	if cpu, ok := group.CPU(); ok {
		stats.CPU = cpu
	}
	if memory, ok := group.Memory(); ok {
		stats.MemoryBytes = memory
	}
	return stats, nil
}
