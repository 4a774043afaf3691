package conformance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// tryLogs returns all lines.
func (c *calls) tryLogs(options *musterv1.LogOptions) ([]*executorv1.LogsResponse, error) {
	ctx, cancel := c.context()
	defer cancel()
	return collect(c.Plugin.Service().Logs(ctx, &executorv1.LogsRequest{TaskId: c.task.GetId(), Handle: c.handle, Options: options}))
}

// line waits for a line of the task's.
func (c *calls) line(text string) {
	c.Helper()
	ctx, cancel := c.context()
	defer cancel()
	stream, err := c.Plugin.Service().Logs(ctx, &executorv1.LogsRequest{
		TaskId: c.task.GetId(), Handle: c.handle, Options: &musterv1.LogOptions{Follow: true},
	})
	if err != nil {
		c.Fatalf("Logs: %v", err)
	}
	for {
		line, err := stream.Recv()
		if err != nil {
			c.Fatalf("the task does not write %q: %v", text, err)
		}
		if string(line.GetData()) == text {
			return
		}
	}
}

// texts returns the lines of one stream, or of both.
func (c *calls) texts(options *musterv1.LogOptions, streams ...musterv1.LogStream) []string {
	c.Helper()
	lines, err := c.tryLogs(options)
	if err != nil {
		c.Fatalf("Logs: %v", err)
	}
	var texts []string
	for _, line := range lines {
		if len(streams) == 0 || slices.Contains(streams, line.GetStream()) {
			texts = append(texts, string(line.GetData()))
		}
	}
	return texts
}

func (s *suite) logs() {
	if !s.has("logs") {
		c := s.on(s.task(Behavior{}))
		if _, err := c.tryLogs(nil); code(err) != codes.Unimplemented {
			s.Errorf("Logs without the capability = %v, want UNIMPLEMENTED", err)
		}
		return
	}
	said, complained := []string{"one", "", "three €"}, []string{"trouble"}
	c := s.on(s.task(Behavior{RunFor: 300 * time.Millisecond, Says: said, Complains: complained}))
	c.prepare()
	begun := time.Now()
	c.start()
	// Following ends with the task, and has seen all of it.
	if got := c.texts(&musterv1.LogOptions{Follow: true}, musterv1.LogStream_STDOUT); !slices.Equal(got, said) {
		s.Errorf("standard output followed = %q, want %q", got, said)
	}
	c.wait()
	s.Plugin.Restart()
	lines, err := c.tryLogs(nil)
	if err != nil || len(lines) != len(said)+len(complained) {
		s.Fatalf("Logs = %v, %v; want %d lines", lines, err, len(said)+len(complained))
	}
	for i, line := range lines {
		at := line.GetTimestamp().AsTime()
		if at.Before(begun.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			s.Errorf("line %d was written at %s, and it is %s now", i, at, time.Now())
		}
	}
	for name, test := range map[string]struct {
		options *musterv1.LogOptions
		want    []string
	}{
		"standard error":   {&musterv1.LogOptions{Streams: []musterv1.LogStream{musterv1.LogStream_STDERR}}, complained},
		"standard output":  {&musterv1.LogOptions{Streams: []musterv1.LogStream{musterv1.LogStream_STDOUT}}, said},
		"tail of a stream": {&musterv1.LogOptions{Tail: 2, Streams: []musterv1.LogStream{musterv1.LogStream_STDOUT}}, said[1:]},
		"long tail":        {&musterv1.LogOptions{Tail: 100, Streams: []musterv1.LogStream{musterv1.LogStream_STDOUT}}, said},
		"since later":      {&musterv1.LogOptions{Since: timestamppb.New(time.Now().Add(time.Hour))}, nil},
		"since earlier":    {&musterv1.LogOptions{Since: timestamppb.New(begun.Add(-time.Hour)), Streams: []musterv1.LogStream{musterv1.LogStream_STDERR}}, complained},
		"followed later":   {&musterv1.LogOptions{Follow: true, Streams: []musterv1.LogStream{musterv1.LogStream_STDOUT}}, said},
	} {
		if got := c.texts(test.options); !slices.Equal(got, test.want) {
			s.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	c.removed()
	s.longLine()
	s.followCancelled()
}

// longLine checks that at most as much of a line arrives as the contract allows, and
// that the next line is a line of its own.
func (s *suite) longLine() {
	const limit = 16 << 10
	long := bytes.Repeat([]byte("x"), limit+5000)
	c := s.on(s.task(Behavior{Says: []string{string(long), "next"}}))
	c.prepare()
	c.start()
	c.wait()
	got := c.texts(nil)
	if len(got) < 2 || got[len(got)-1] != "next" {
		s.Fatalf("the line after a long one is not a line of its own: %d lines", len(got))
	}
	for _, line := range got {
		if len(line) > limit {
			s.Errorf("a line of %d bytes arrived", len(line))
		}
	}
	if got[0] != string(long[:len(got[0])]) || len(got[0]) < 1000 {
		s.Errorf("the begin of a long line is lost")
	}
	c.removed()
}

// followCancelled checks that a follower can leave a task that is silent.
func (s *suite) followCancelled() {
	c := s.on(s.task(Behavior{Forever: true, Says: []string{"here"}}))
	c.prepare()
	c.start()
	ctx, cancel := context.WithTimeout(s.Context(), s.patience())
	defer cancel()
	stream, err := s.Plugin.Service().Logs(ctx, &executorv1.LogsRequest{
		TaskId: c.task.GetId(), Handle: c.handle, Options: &musterv1.LogOptions{Follow: true},
	})
	if err != nil {
		s.Fatal(err)
	}
	if line, err := stream.Recv(); err != nil || string(line.GetData()) != "here" {
		s.Fatalf("the line of a running task = %v, %v", line, err)
	}
	cancel()
	if _, err := stream.Recv(); code(wire.FromStatus(err)) != codes.Canceled {
		s.Errorf("following, cancelled, = %v", err)
	}
	c.running()
	c.removed()
}

func (s *suite) stats() {
	c := s.on(s.task(Behavior{Forever: true}))
	c.prepare()
	c.start()
	ctx, cancel := c.context()
	defer cancel()
	stats, err := s.Plugin.Service().Stats(ctx, &executorv1.StatsRequest{TaskId: c.task.GetId(), Handle: c.handle})
	if !s.has("stats") {
		if code(wire.FromStatus(err)) != codes.Unimplemented {
			s.Errorf("Stats without the capability = %v, want UNIMPLEMENTED", err)
		}
	} else if !eventually(ctx, s.patience(), func() bool {
		// A task that has only just started may use next to nothing.
		stats, err = s.Plugin.Service().Stats(ctx, &executorv1.StatsRequest{TaskId: c.task.GetId(), Handle: c.handle})
		return err != nil || (stats.GetMemoryBytes() > 0 && stats.GetPids() > 0 && stats.GetAt() != nil)
	}) || err != nil {
		s.Errorf("Stats = %v, %v; want memory, processes and a time", stats, err)
	}
	c.removed()
}

func (s *suite) exec() {
	c := s.on(s.task(Behavior{Forever: true}))
	c.prepare()
	c.start()
	ctx, cancel := c.context()
	defer cancel()
	stream, err := s.Plugin.Service().Exec(ctx)
	if err != nil {
		s.Fatal(err)
	}
	send := func(request *executorv1.ExecRequest) {
		s.Helper()
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
			s.Errorf("send to Exec: %v", err)
		}
	}
	send(&executorv1.ExecRequest{Request: &executorv1.ExecRequest_Start{Start: &executorv1.ExecStart{
		TaskId: c.task.GetId(), Handle: c.handle,
		Command: []string{"/bin/sh", "-c", `read line; echo "$WORD $line"; echo trouble >&2; exit 5`},
		Env:     []string{"WORD=hello"},
	}}})
	send(&executorv1.ExecRequest{Request: &executorv1.ExecRequest_Stdin{Stdin: []byte("world\n")}})
	send(&executorv1.ExecRequest{Request: &executorv1.ExecRequest_Stdin{}})
	var stdout, stderr []byte
	exit := int32(-1)
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if !s.has("exec") {
			if code(wire.FromStatus(err)) != codes.Unimplemented {
				s.Errorf("Exec without the capability = %v, want UNIMPLEMENTED", err)
			}
			return
		}
		if err != nil {
			s.Fatalf("Exec: %v", err)
		}
		stdout = append(stdout, response.GetStdout()...)
		stderr = append(stderr, response.GetStderr()...)
		if end, ok := response.GetResponse().(*executorv1.ExecResponse_ExitCode); ok {
			exit = end.ExitCode
		}
	}
	if string(stdout) != "hello world\n" || string(stderr) != "trouble\n" || exit != 5 {
		s.Errorf("Exec gave %q, %q and exit code %d", stdout, stderr, exit)
	}
	c.removed()
}
