package apid_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/shards"
)

// broker is a dispatcher as far as logs go: each task has written some lines,
// and a follower is sent more.
type broker struct {
	dispatcherv1.UnimplementedLogBrokerServiceServer
	lines int

	mu     sync.Mutex
	away   map[string]bool
	subs   []*dispatcherv1.SubscribeLogsRequest
	ended  int
	writes map[string]chan string
}

func (b *broker) SubscribeLogs(req *dispatcherv1.SubscribeLogsRequest, stream dispatcherv1.LogBrokerService_SubscribeLogsServer) error {
	b.mu.Lock()
	b.subs = append(b.subs, req)
	away := b.away[req.NodeId]
	writes := b.writes[req.NodeId]
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.ended++
	}()
	if away {
		return status.Error(codes.Unavailable, "not connected")
	}
	send := func(task, line string, at int) error {
		t := time.Unix(int64(at), 0)
		if since := req.Options.GetSince(); since != nil && t.Before(since.AsTime()) {
			return nil
		}
		return stream.Send(&dispatcherv1.SubscribeLogsResponse{Messages: []*musterv1.LogMessage{{
			TaskId: task, Timestamp: timestamppb.New(t), Stream: musterv1.LogStream_STDOUT, Data: []byte(line),
		}}})
	}
	for i := range b.lines {
		for _, task := range req.TaskIds {
			if err := send(task, fmt.Sprintf("line %d", i), i+1); err != nil {
				return err
			}
		}
	}
	if !req.Options.GetFollow() {
		return nil
	}
	for at := b.lines + 1; ; at++ {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case line := <-writes:
			if line == "cut" {
				return status.Error(codes.Unavailable, "connection lost")
			}
			for _, task := range req.TaskIds {
				if err := send(task, line, at); err != nil {
					return err
				}
			}
		}
	}
}

// dispatcher lets a broker own all nodes.
func (c *cluster) dispatcher(b *broker) {
	m := c.member("dispatcherd")
	server := grpc.NewServer()
	dispatcherv1.RegisterLogBrokerServiceServer(server, b)
	l := c.listen(m.Address)
	c.background("dispatcher grpc", func(ctx context.Context) error { return daemon.ServeGRPC(ctx, server, l, time.Second) })
	manager, err := shards.New(shards.Config{
		KV: c.kv, Prefix: "muster", Subsystem: "dispatcher", Member: m, Session: c.session, Logger: zap.NewNop(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.background("dispatcher shards", func(ctx context.Context) error {
		return manager.Run(ctx, func(ctx context.Context, _ int) error { <-ctx.Done(); return nil })
	})
	settled(c.t, "all shards are owned", func() bool { return len(manager.Owned()) == 16 })
}

// serviceLogs reads lines until the stream ends or enough have come.
func (a *api) serviceLogs(req *musterv1.ServiceLogsRequest, enough int) (lines []*musterv1.LogMessage, err error) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	defer cancel()
	stream, err := a.ServiceLogs(ctx, req)
	if err != nil {
		a.t.Fatal(err)
	}
	for enough == 0 || len(lines) < enough {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
		lines = append(lines, m.Message)
	}
	return lines, nil
}

func TestServiceLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		b := &broker{lines: 10, away: map[string]bool{"n9": true}}
		c.dispatcher(b)
		c.node("n1", "alpha")
		c.node("n9", "gone")
		s := a.create(webSpec("web"))
		var ids []string
		for i, node := range []string{"n1", "n1", "n2", "n9"} {
			id := c.task(s, uint64(i+1), nil)
			c.assign(s, uint64(i+1), id, node, runningStatus())
			ids = append(ids, id)
		}
		c.task(s, 5, nil) // has no node, and so no logs
		settled(t, "tasks run", func() bool { return a.get("web").Status.RunningTasks == 4 })
		// The directory may still be filling: until then there are warnings only.
		var lines []*musterv1.LogMessage
		settled(t, "logs come", func() bool {
			var err error
			if lines, err = a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "web"}, 0); err != nil {
				t.Fatal(err)
			}
			return len(lines) == 31
		})
		_, err := a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "web", Options: &musterv1.LogOptions{Container: "nosuch"}}, 0)
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `no container "nosuch" in these tasks; they have main`) {
			t.Errorf("logs of a container that there is not: %v", err)
		}
		if again, err := a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "web", Options: &musterv1.LogOptions{Container: "main"}}, 0); err != nil || len(again) == 0 {
			t.Errorf("logs of the main container: %d lines, %v", len(again), err)
		}
		grouped := webSpec("grouped")
		grouped.Task.Group = []*musterv1.GroupContainer{{
			Name: "helper", Role: musterv1.GroupContainer_INIT, Runtime: &musterv1.GroupContainer_Container{Container: &musterv1.ContainerSpec{Image: "helper"}},
		}}
		a.create(grouped)
		for name, want := range map[string]codes.Code{"helper": codes.OK, "main": codes.OK, "help": codes.NotFound} {
			_, err := a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "grouped", Options: &musterv1.LogOptions{Container: name}}, 0)
			if status.Code(err) != want || want != codes.OK && !strings.Contains(err.Error(), "they have helper, main") {
				t.Errorf("logs of container %s: %v, want code %v", name, err, want)
			}
		}
		byTask := map[string][]string{}
		var warnings []string
		for _, l := range lines {
			if l.Warning != "" {
				warnings = append(warnings, l.Warning)
				continue
			}
			byTask[l.TaskId] = append(byTask[l.TaskId], string(l.Data))
			if l.ServiceId != s.Id || l.NodeId == "" || !strings.HasPrefix(l.Source, "web.") {
				t.Errorf("line: %v", l)
			}
		}
		for _, id := range ids[:3] {
			if got := byTask[id]; len(got) != 10 || !slices.IsSorted(got) {
				t.Errorf("task %s: %v", id, got)
			}
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], "gone (n9)") || !strings.Contains(warnings[0], "not connected") {
			t.Errorf("warnings: %q", warnings)
		}
		// Tasks of one node are asked for together.
		b.mu.Lock()
		n := 0
		for _, sub := range b.subs {
			if sub.NodeId == "n1" && len(sub.TaskIds) != 2 {
				t.Errorf("subscription: %v", sub)
			}
			n++
		}
		b.mu.Unlock()
		if n == 0 {
			t.Error("no subscriptions")
		}

		one, err := a.TaskLogs(t.Context(), &musterv1.TaskLogsRequest{Task: ids[2]})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if m, err := one.Recv(); err != nil || m.Message.TaskId != ids[2] || string(m.Message.Data) != fmt.Sprintf("line %d", i) {
				t.Fatalf("line %d of the task: %v, %v", i, m, err)
			}
		}
		if _, err := one.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("end: %v", err)
		}
		_, err = a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "nope"}, 0)
		wantCode(t, err, codes.NotFound)
		_, err = a.serviceLogs(&musterv1.ServiceLogsRequest{Service: "web", Options: &musterv1.LogOptions{Streams: []musterv1.LogStream{9}}}, 0)
		wantCode(t, err, codes.InvalidArgument, "options.streams[0]")
	})
}

func TestFollowLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		b := &broker{lines: 2, writes: map[string]chan string{"n1": make(chan string), "n2": make(chan string)}}
		c.dispatcher(b)
		s := a.create(webSpec("web"))
		t1 := c.task(s, 1, nil)
		c.assign(s, 1, t1, "n1", runningStatus())
		settled(t, "the task runs", func() bool { return a.get("web").Status.RunningTasks == 1 })

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := a.ServiceLogs(ctx, &musterv1.ServiceLogsRequest{Service: "web", Options: &musterv1.LogOptions{Follow: true}})
		if err != nil {
			t.Fatal(err)
		}
		line := func(task string) string {
			for {
				m, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if m.Message.Warning != "" {
					t.Logf("warning: %s", m.Message.Warning)
					continue
				}
				if m.Message.TaskId != task {
					t.Errorf("line of task %s, want %s", m.Message.TaskId, task)
				}
				return string(m.Message.Data)
			}
		}
		want := func(task string, lines ...string) {
			t.Helper()
			for _, w := range lines {
				if got := line(task); got != w {
					t.Errorf("line %q, want %q", got, w)
				}
			}
		}
		want(t1, "line 0", "line 1")
		b.writes["n1"] <- "three"
		want(t1, "three")

		// A new task joins in.
		t2 := c.task(s, 2, nil)
		c.assign(s, 2, t2, "n2", runningStatus())
		want(t2, "line 0", "line 1")

		// A connection that breaks is taken up where it broke: no line comes twice.
		b.writes["n1"] <- "cut"
		b.writes["n1"] <- "ignored: as old as the last"
		b.writes["n1"] <- "four"
		want(t1, "four")

		cancel()
		settled(t, "all subscriptions end", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.ended == len(b.subs)
		})
	})
}

func TestFollowEndsWithTheService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		a.create(webSpec("web"))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		stream, err := a.ServiceLogs(ctx, &musterv1.ServiceLogsRequest{Service: "web", Options: &musterv1.LogOptions{Follow: true}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("end: %v", err)
		}
	})
}
