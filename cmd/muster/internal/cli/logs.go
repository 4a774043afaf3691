package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
)

// logOptions are the flags of commands that show logs. They are Docker's.
type logOptions struct {
	follow, timestamps, raw bool
	tail, since, container  string
}

func (o *logOptions) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVarP(&o.follow, "follow", "f", false, "keep showing new lines")
	fs.BoolVarP(&o.timestamps, "timestamps", "t", false, "show when each line was written")
	fs.BoolVar(&o.raw, "raw", false, "show lines unchanged: no names of task and node, and control characters kept")
	fs.StringVarP(&o.tail, "tail", "n", "all", "number of lines to show from the end of each task's output")
	fs.StringVar(&o.container, "container", "", "show only lines of this container of tasks with a group (main is the main one)")
	fs.StringVar(&o.since, "since", "", "show lines since a time (2026-01-02T15:04:05Z) or duration (10m)")
}

func (o *logOptions) request() (*musterv1.LogOptions, error) {
	r := &musterv1.LogOptions{Follow: o.follow, Container: o.container}
	if o.tail != "all" {
		n, err := strconv.ParseUint(o.tail, 10, 32)
		if err != nil {
			return nil, usage("--tail: %q is neither a number from 0 on nor all", o.tail)
		}
		r.Tail = uint32(n)
	}
	if o.tail == "0" {
		// To the API 0 is no limit: what is wanted is what comes from now on.
		r.Since = timestamppb.Now()
	} else if o.since != "" {
		if d, err := time.ParseDuration(o.since); err == nil {
			r.Since = timestamppb.New(time.Now().Add(-d))
		} else if at, err := time.Parse(time.RFC3339Nano, o.since); err == nil {
			r.Since = timestamppb.New(at)
		} else {
			return nil, usage("--since: %q is neither a time like 2026-01-02T15:04:05Z nor a duration like 10m", o.since)
		}
	}
	return r, nil
}

// printLogs prints messages until the stream ends.
func (c *CLI) printLogs(o *logOptions, next logSource) error {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = c.printLog(o, m)
		}
		if err != nil {
			return err
		}
	}
}

// printLog prints a message. Lines of the tasks' standard error go to this process's.
func (c *CLI) printLog(o *logOptions, m *musterv1.LogMessage) error {
	if m.GetWarning() != "" {
		_, _ = fmt.Fprintln(c.Err, tasklog.Warning(m))
		return nil
	}
	var b strings.Builder
	if o.timestamps {
		b.WriteString(m.GetTimestamp().AsTime().Format(time.RFC3339Nano) + " ")
	}
	if o.raw {
		b.Write(m.GetData())
	} else {
		b.WriteString(tasklog.Text(m))
	}
	out := c.Out
	if m.GetStream() == musterv1.LogStream_STDERR {
		out = c.Err
	}
	if _, err := fmt.Fprintln(out, b.String()); err != nil {
		return fmt.Errorf("print logs: %w", err)
	}
	return nil
}

func (c *CLI) serviceLogs() *cobra.Command {
	return c.logsCommand(&cobra.Command{
		Use: "logs SERVICE", Short: "Show the output of a service's tasks",
		Example: `  muster service logs -f --tail 20 web
  muster service logs --since 10m web
  muster service logs --container proxy web`,
	}, openServiceLogs)
}

func openServiceLogs(ctx context.Context, client api, name string, options *musterv1.LogOptions) (grpc.ClientStream, logSource, error) {
	stream, err := client.ServiceLogs(ctx, &musterv1.ServiceLogsRequest{Service: name, Options: options})
	return stream, func() (*musterv1.LogMessage, error) {
		resp, err := stream.Recv()
		return resp.GetMessage(), err
	}, err
}

func (c *CLI) taskLogs() *cobra.Command {
	return c.logsCommand(&cobra.Command{
		Use: "logs TASK", Short: "Show the output of a task",
		Example: "  muster task logs -f 0k2f\n  muster task logs web.1",
	}, func(ctx context.Context, client api, ref string, options *musterv1.LogOptions) (grpc.ClientStream, logSource, error) {
		task, err := taskKind().get(client, ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		return openTaskLogs(ctx, client, task.Id, options)
	})
}

func openTaskLogs(ctx context.Context, client api, id string, options *musterv1.LogOptions) (grpc.ClientStream, logSource, error) {
	stream, err := client.TaskLogs(ctx, &musterv1.TaskLogsRequest{Task: id, Options: options})
	return stream, func() (*musterv1.LogMessage, error) {
		resp, err := stream.Recv()
		return resp.GetMessage(), err
	}, err
}

// logSource returns the next line.
type logSource func() (*musterv1.LogMessage, error)

// logsCommand makes a command that shows the lines of a stream.
func (c *CLI) logsCommand(cmd *cobra.Command, open func(context.Context, musterv1.ControlServiceClient, string, *musterv1.LogOptions) (grpc.ClientStream, logSource, error)) *cobra.Command {
	var o logOptions
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		options, err := o.request()
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		stream, next, err := open(cmd.Context(), client, args[0], options)
		if err != nil {
			return err
		}
		warnStaleStream(cmd, stream)
		return c.printLogs(&o, next)
	}
	o.addFlags(cmd)
	return cmd
}
