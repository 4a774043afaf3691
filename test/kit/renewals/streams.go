package renewals

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// watch follows all that happens in one stream, which lasts until the load ends.
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

// read follows the output of tasks in one stream, which lasts until the load ends.
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
