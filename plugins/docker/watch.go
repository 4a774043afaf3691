package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/musterhq/muster/plugins/sdk"
)

// Logs implements [sdk.LogStreamer].
func (e *Executor) Logs(ctx context.Context, ref sdk.Ref, options sdk.LogOptions, emit func(sdk.LogLine) error) error {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return err
	}
	query := container.LogsOptions{
		ShowStdout: options.Wants(sdk.Stdout), ShowStderr: options.Wants(sdk.Stderr), Timestamps: true,
	}
	if !query.ShowStdout && !query.ShowStderr {
		return nil
	}
	if !options.Since.IsZero() {
		query.Since = fmt.Sprintf("%d.%09d", options.Since.Unix(), options.Since.Nanosecond())
	}
	skip := 0
	if options.Tail > 0 {
		if query.ShowStdout && query.ShowStderr {
			query.Tail = strconv.Itoa(options.Tail)
		} else {
			// The Engine counts the lines of both streams, and then leaves those
			// of one out. So they are counted here.
			count := 0
			if err := e.readLogs(ctx, found, query, func(sdk.LogLine) error { count++; return nil }); err != nil {
				return err
			}
			skip = max(count-options.Tail, 0)
		}
	}
	query.Follow = options.Follow && alive(found)
	return e.readLogs(ctx, found, query, func(line sdk.LogLine) error {
		if skip > 0 {
			skip--
			return nil
		}
		return emit(line)
	})
}

func (e *Executor) readLogs(ctx context.Context, found *container.InspectResponse, query container.LogsOptions, emit func(sdk.LogLine) error) error {
	stream, err := e.engine.ContainerLogs(ctx, found.ID, query)
	if err != nil {
		if isUnable(err) || isInvalid(err) {
			return sdk.Failed(fmt.Errorf("read the container's log: %w", err))
		}
		return engineError(fmt.Errorf("read the container's log: %w", err))
	}
	stdout := &lineWriter{stream: sdk.Stdout, emit: emit}
	stderr := &lineWriter{stream: sdk.Stderr, emit: emit}
	if found.Config.Tty {
		// A terminal's output is one stream, and is sent as it is.
		_, err = io.Copy(stdout, stream)
	} else {
		_, err = stdcopy.StdCopy(stdout, stderr, stream)
	}
	if err == nil {
		err = errors.Join(stdout.flush(), stderr.flush())
	}
	err = errors.Join(err, stream.Close())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// lineWriter makes lines of what the Engine sends of one stream: each a time, a
// space, and the line.
type lineWriter struct {
	stream sdk.Stream
	emit   func(sdk.LogLine) error
	// line is the begin of a line whose end is not there yet; of what is longer
	// than a line may be, and its time, the rest is dropped.
	line []byte
}

// maxStamp is more than the longest time is.
const maxStamp = 64

func (w *lineWriter) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		w.line = append(w.line, part[:min(len(part), maxStamp+sdk.MaxLogLine-len(w.line))]...)
		if ended {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		rest = after
	}
	return len(data), nil
}

// flush emits the line that is there.
func (w *lineWriter) flush() error {
	if len(w.line) == 0 {
		return nil
	}
	at, text := parseLine(w.line)
	err := w.emit(sdk.LogLine{Time: at, Stream: w.stream, Data: text[:min(len(text), sdk.MaxLogLine)]})
	w.line = w.line[:0]
	return err
}

// parseLine takes the time off a line. A line without one is all text.
func parseLine(line []byte) (time.Time, []byte) {
	if i := bytes.IndexByte(line[:min(len(line), maxStamp)], ' '); i >= 0 {
		if at, err := time.Parse(time.RFC3339Nano, string(line[:i])); err == nil {
			return at, line[i+1:]
		}
	}
	return time.Time{}, line
}

// Stats implements [sdk.Statser].
func (e *Executor) Stats(ctx context.Context, ref sdk.Ref) (*sdk.Stats, error) {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return nil, err
	}
	if !started(found) {
		return nil, sdk.NotStarted(ref.TaskID)
	}
	answer, err := e.engine.ContainerStatsOneShot(ctx, found.ID)
	if err != nil {
		return nil, gone(ref.TaskID, engineError(fmt.Errorf("read the container's use: %w", err)))
	}
	var use container.StatsResponse
	err = json.NewDecoder(answer.Body).Decode(&use)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return nil, engineError(fmt.Errorf("read the container's use: %w", err))
	}
	stats := &sdk.Stats{
		At:          use.Read,
		CPU:         time.Duration(use.CPUStats.CPUUsage.TotalUsage),
		MemoryBytes: int64(use.MemoryStats.Usage),
		PIDs:        int64(use.PidsStats.Current),
	}
	// The cache of files that the kernel would give back at once is not counted,
	// as docker stats has it.
	for _, cache := range []string{"total_inactive_file", "inactive_file"} {
		if bytes, ok := use.MemoryStats.Stats[cache]; ok {
			stats.MemoryBytes = max(stats.MemoryBytes-int64(bytes), 0)
			break
		}
	}
	if stats.At.IsZero() {
		stats.At = time.Now()
	}
	return stats, nil
}
