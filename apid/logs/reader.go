package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/view"
)

const (
	// firstPause and lastPause are the least and the greatest time before a
	// follower tries a node again.
	firstPause = 250 * time.Millisecond
	lastPause  = 5 * time.Second
	// attempts is how often a node is tried for a request that does not follow:
	// its dispatcher may just have changed.
	attempts = 3
	// overlap is how far back a follower reads again from tasks that had written
	// nothing: it covers the difference of clocks.
	overlap = time.Minute
)

// source is one task whose output is read.
type source struct {
	service, name string
	// last is when the newest line that was sent was written.
	last time.Time
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
	tasks      map[string]*source
}

// run reads until the worker says that this is all. While the node cannot be
// reached a follower tries again and again, and goes on after the last line.
func (n *nodeReader) run(ctx context.Context, out chan<- *musterv1.LogMessage) {
	began := time.Now()
	opts := n.opts
	pause, warned := firstPause, false
	for try := 1; ; try++ {
		got, err := n.read(ctx, opts, out)
		if err == nil || ctx.Err() != nil {
			return
		}
		if got {
			pause, warned, try = firstPause, false, 1
			opts = n.resumed(began)
		}
		last := !worthwhile(err) || !n.broker.alive(n) || !n.opts.GetFollow() && (got || try >= attempts)
		if last || (n.opts.GetFollow() && !warned) {
			warned = true
			n.emit(ctx, out, &musterv1.LogMessage{NodeId: n.node, NodeName: n.host, Warning: n.warning(err, !last)})
		}
		if last {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// read subscribes once. Got is whether any line came.
func (n *nodeReader) read(ctx context.Context, opts *musterv1.LogOptions, out chan<- *musterv1.LogMessage) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	address, ok := n.broker.owner(n.node)
	if !ok {
		return false, status.Error(codes.Unavailable, "no dispatcher serves it at the moment")
	}
	conn, release, err := n.broker.conns.get(address)
	if err != nil {
		return false, err
	}
	defer release()
	stream, err := dispatcherv1.NewLogBrokerServiceClient(conn).SubscribeLogs(ctx, &dispatcherv1.SubscribeLogsRequest{
		NodeId: n.node, TaskIds: slices.Sorted(maps.Keys(n.tasks)), Options: opts, Client: n.client,
	})
	if err != nil {
		return false, err
	}
	// Lines up to here have been sent in an earlier attempt.
	sent := map[string]time.Time{}
	for id, s := range n.tasks {
		sent[id] = s.last
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		for _, m := range resp.Messages {
			s := n.tasks[m.TaskId]
			if s != nil {
				at := m.Timestamp.AsTime()
				if m.Warning == "" && !sent[m.TaskId].IsZero() && !at.After(sent[m.TaskId]) {
					continue
				}
				if at.After(s.last) {
					s.last = at
				}
				m.ServiceId, m.Source = s.service, s.name
			}
			m.NodeId, m.NodeName = n.node, n.host
			got = true
			if !n.emit(ctx, out, m) {
				return got, context.Cause(ctx)
			}
		}
	}
}

// resumed returns the options to go on with after the last lines.
func (n *nodeReader) resumed(began time.Time) *musterv1.LogOptions {
	opts := &musterv1.LogOptions{}
	if n.opts != nil {
		opts = proto.CloneOf(n.opts)
	}
	opts.Tail = 0
	since := time.Now()
	for _, s := range n.tasks {
		from := s.last
		if from.IsZero() {
			from = began.Add(-overlap)
		}
		if from.Before(since) {
			since = from
		}
	}
	if opts.Since == nil || opts.Since.AsTime().Before(since) {
		opts.Since = timestamppb.New(since)
	}
	return opts
}

func (n *nodeReader) emit(ctx context.Context, out chan<- *musterv1.LogMessage, m *musterv1.LogMessage) bool {
	select {
	case out <- m:
		return true
	case <-ctx.Done():
		return false
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
	b.view.Read(func(r *view.Reader) {
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
