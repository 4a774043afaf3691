package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/tasklog"
)

const (
	// firstPause and lastPause are the least and the greatest time before a
	// follower tries a node again.
	firstPause = 250 * time.Millisecond
	lastPause  = 5 * time.Second
	// attempts is how often a node is tried for a request that does not follow:
	// its dispatcher may just have changed.
	attempts = 3
)

// source is one task whose output is read.
type source struct {
	service, name string
	// read is how far its lines have been handed on.
	read tasklog.Position
}

// nodeReader reads the output of tasks of one node.
type nodeReader struct {
	broker *Broker
	// client is who reads: dispatchers share their log readers out among clients.
	client string
	node   string
	// host is the node's host name, and name what a warning calls the node.
	host, name string
	opts       *musterv1.LogOptions
	// tasks are those whose output is not complete.
	tasks map[string]*source
}

// emitter hands a line on. It fails when the request has ended.
type emitter = func(*musterv1.LogMessage) error

// run reads until the worker says that this is all, and resumes after the last lines
// when the node could not be reached. A follower tries again while that may
// help. It fails only if emit does.
func (n *nodeReader) run(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
	pause, warned := backoff.New(firstPause, lastPause), false
	for try := 1; ; try++ {
		got, err := n.read(ctx, emit)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			return nil
		}
		if got {
			pause.Reset()
			warned, try = false, 1
		}
		last := !worthwhile(err) || !n.broker.alive(n) || !n.opts.GetFollow() && try >= attempts
		if last || (n.opts.GetFollow() && !warned) {
			warned = true
			if err := emit(&musterv1.LogMessage{NodeId: n.node, NodeName: n.host, Warning: n.warning(err, !last)}); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
		if err := pause.Wait(ctx); err != nil {
			return err
		}
	}
}

// read reads once what is missing of all tasks. Got is whether any line came.
func (n *nodeReader) read(ctx context.Context, emit emitter) (got bool, err error) {
	// Tasks that have been read in part have to be asked for with other options than
	// those of which nothing came: the last lines (tail) of the former may begin after
	// those that are missing, and lines of the latter may be older.
	fresh, begun := &part{n: n, tasks: map[string]*source{}, opts: n.opts}, &part{n: n, tasks: map[string]*source{}}
	for id, s := range n.tasks {
		if _, ok := s.read.Since(); ok {
			begun.tasks[id] = s
		} else {
			fresh.tasks[id] = s
		}
	}
	begun.opts = n.resumed(begun.tasks)
	var parts []*part
	var sources []tasklog.Source
	for _, p := range []*part{fresh, begun} {
		if len(p.tasks) > 0 {
			parts = append(parts, p)
			sources = append(sources, p.read)
		}
	}
	if !n.opts.GetFollow() {
		// Lines that a part has read when another one fails are not handed on, nor noted.
		err = tasklog.Merge(ctx, sources, len(sources), patience, n.noting(emit, &got))
		return got, err
	}
	all, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		all.Go(func() error { return p.read(ctx, n.noting(emit, &p.got)) })
	}
	err = all.Wait()
	for _, p := range parts {
		got = got || p.got
		for id := range p.tasks {
			if p.complete {
				delete(n.tasks, id)
			}
		}
	}
	return got, err
}

// noting notes the lines that are handed on. Got is set with the first.
func (n *nodeReader) noting(emit emitter, got *bool) emitter {
	return func(m *musterv1.LogMessage) error {
		if err := emit(m); err != nil {
			return err
		}
		*got = true
		if s := n.tasks[m.TaskId]; s != nil && m.Warning == "" {
			s.read.Note(m)
		}
		return nil
	}
}

// resumed returns the options to continue with after the last lines of tasks.
func (n *nodeReader) resumed(tasks map[string]*source) *musterv1.LogOptions {
	opts := &musterv1.LogOptions{}
	if n.opts != nil {
		opts = proto.CloneOf(n.opts)
	}
	opts.Tail = 0
	var since time.Time
	for _, s := range tasks {
		if at, _ := s.read.Since(); since.IsZero() || at.Before(since) {
			since = at
		}
	}
	if opts.Since == nil || opts.Since.AsTime().Before(since) {
		opts.Since = timestamppb.New(since)
	}
	return opts
}

// part are tasks of a node that are asked for together.
type part struct {
	n     *nodeReader
	tasks map[string]*source
	opts  *musterv1.LogOptions
	// got says that a line was handed on, and complete that none is missing.
	got, complete bool
}

func (p *part) read(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
	n := p.n
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	address, ok := n.broker.owner(n.node)
	if !ok {
		return status.Error(codes.Unavailable, "no dispatcher serves it at the moment")
	}
	conn, release, err := n.broker.conns.get(address)
	if err != nil {
		return err
	}
	defer release()
	stream, err := dispatcherv1.NewLogBrokerServiceClient(conn).SubscribeLogs(ctx, &dispatcherv1.SubscribeLogsRequest{
		NodeId: n.node, TaskIds: slices.Sorted(maps.Keys(p.tasks)), Options: p.opts, Client: n.client,
	})
	if err != nil {
		return err
	}
	known := map[string]func(*musterv1.LogMessage) bool{}
	for id, s := range p.tasks {
		known[id] = s.read.Resume()
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			p.complete = true
			return nil
		}
		if err != nil {
			return err
		}
		for _, m := range resp.Messages {
			s := p.tasks[m.TaskId]
			if s != nil {
				if m.Warning == "" && known[m.TaskId](m) {
					continue
				}
				m.ServiceId, m.Source = s.service, s.name
			}
			m.NodeId, m.NodeName = n.node, n.host
			if err := emit(m); err != nil {
				return err
			}
		}
	}
}

func (n *nodeReader) warning(err error, again bool) string {
	text := fmt.Sprintf("logs of %d task(s) on node %s are missing: %s", len(n.tasks), n.name, status.Convert(err).Message())
	if again {
		text += "; trying again"
	}
	return text
}

// alive reports whether any of a reader's tasks is still there and has not
// ended for good: else there is no use in waiting for its node.
func (b *Broker) alive(n *nodeReader) bool {
	alive := false
	b.view.Read(func(r *objects.Reader) {
		for id := range n.tasks {
			t, ok := r.Task(id)
			alive = alive || ok && (!t.Terminal() || !n.opts.GetFollow())
		}
	})
	return alive
}

// worthwhile reports whether another attempt may help.
func worthwhile(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled:
		return true
	default:
		return false
	}
}
