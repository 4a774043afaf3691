package renewals

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// watch follows all that happens in one stream, which lasts as long as the load.
func (l *Load) watch(ctx context.Context, apid string) {
	const what = "message of a watch"
	stream, err := l.r.Client(apid).Watch(ctx, &musterv1.WatchRequest{})
	for err == nil {
		if _, err = stream.Recv(); err == nil {
			l.succeed(what)
		}
	}
	l.ended(ctx, what, err)
}

// read follows the output of tasks in one stream, which lasts as long as the load.
// Their lines are numbered, and none may be missing.
func (l *Load) read(ctx context.Context, apid string) {
	const what = "line of a log"
	stream, err := l.r.Client(apid).ServiceLogs(ctx, &musterv1.ServiceLogsRequest{Service: "talks", Options: &musterv1.LogOptions{Follow: true}})
	last := map[string]int{}
	for err == nil {
		var resp *musterv1.ServiceLogsResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		m := resp.Message
		if m.Warning != "" {
			l.fail(what, errors.New(m.Warning))
			continue
		}
		n, nerr := strconv.Atoi(strings.TrimPrefix(string(m.Data), "line "))
		if nerr != nil || n != last[m.TaskId]+1 {
			l.fail(what, fmt.Errorf("task %s says %q after line %d", m.TaskId, m.Data, last[m.TaskId]))
		}
		last[m.TaskId] = n
		l.succeed(what)
	}
	l.ended(ctx, what, err)
}

// ended notes the end of a stream, which only that of the load may bring.
func (l *Load) ended(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		l.fail(what, fmt.Errorf("the stream ended: %w", err))
	}
}

// What the log of a daemon, or a worker, says of certificates.
const (
	saysRenewed    = "certificate is renewed"
	saysNotRenewed = "the certificate is not renewed"
)

// judge reads from a log how often a certificate was renewed, and what else was
// said that should not be.
func (l *Load) judge(name, log string, atLeast int) (renewed int) {
	renewed = strings.Count(log, saysRenewed)
	if renewed < atLeast {
		l.wrong(name, fmt.Errorf("its certificate was renewed %d times, want at least %d", renewed, atLeast))
	}
	l.mu.Lock()
	stalled := len(l.stalls) > 0
	l.mu.Unlock()
	for line := range strings.Lines(log) {
		switch {
		case strings.Contains(line, "call is refused"), strings.Contains(line, "connection is refused"),
			// An attempt that comes at a stall is made again.
			strings.Contains(line, saysNotRenewed) && !stalled:
			l.wrong(name, errors.New(strings.TrimSpace(line)))
		}
	}
	return renewed
}
