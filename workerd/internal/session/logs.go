package session

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
)

const (
	// largestLogBatch is how many lines, and largestLogBytes how many bytes,
	// are sent in one message at most, but for the last line. A subscription
	// holds about two such batches in memory.
	largestLogBatch = 256
	largestLogBytes = 64 << 10
	// logLinger is how long a line waits for others.
	logLinger = 10 * time.Millisecond
	// logPatience is how long lines wait for earlier ones of a task whose executor says
	// nothing.
	logPatience = 500 * time.Millisecond
)

// subscribe begins to send the output of tasks. A subscription that cannot get
// its lines off only holds up its own readers: its credit bounds what it hands to
// the writer, which takes a batch when it has nothing else to say.
func (s *stream) subscribe(inner context.Context, req *dispatcherv1.LogRequest) {
	ctx, cancel := context.WithCancel(inner)
	sub := &subscription{cancel, newCredit(req.GetCredit())}
	s.unsubscribe(req.GetSubscriptionId())
	s.mu.Lock()
	s.subscriptions[req.GetSubscriptionId()] = sub
	s.mu.Unlock()
	s.readers.Go(func() {
		defer cancel()
		s.serveLogs(ctx, req, sub.credit)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.subscriptions[req.GetSubscriptionId()] == sub {
			delete(s.subscriptions, req.GetSubscriptionId())
		}
	})
}

// subscription is an open request for output.
type subscription struct {
	cancel context.CancelFunc
	credit *credit
}

// give adds to what may be sent of a subscription, if it is still open.
func (s *stream) give(c *dispatcherv1.LogCredit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.subscriptions[c.GetSubscriptionId()]; sub != nil {
		sub.credit.add(c.GetCredit())
	}
}

// unsubscribe ends a subscription, if there is one.
func (s *stream) unsubscribe(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.subscriptions[id]; sub != nil {
		sub.cancel()
		delete(s.subscriptions, id)
	}
}

// serveLogs sends the output of tasks until none is left, or ctx ends: by time,
// unless new lines are awaited. Without credit it waits, and so does the reading of
// the output.
func (s *stream) serveLogs(ctx context.Context, req *dispatcherv1.LogRequest, allowed *credit) {
	lines := make(chan *musterv1.LogMessage, largestLogBatch)
	push := func(line *musterv1.LogMessage) error {
		select {
		case lines <- line:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var sources []tasklog.Source
	for _, id := range req.GetTaskIds() {
		sources = append(sources, func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
			err := s.c.cfg.Tasks.Logs(ctx, id, req.GetOptions(), emit)
			if err != nil && ctx.Err() == nil {
				s.c.log.Warn("task output ended early", zap.String("task", id), zap.Error(err))
			}
			// The output of other tasks continues.
			return nil
		})
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		defer close(lines)
		if !req.GetOptions().GetFollow() {
			// It only fails when the context ends.
			_ = tasklog.Merge(ctx, sources, len(sources), logPatience, push)
			return
		}
		var readers sync.WaitGroup
		for _, read := range sources {
			readers.Go(func() { _ = read(ctx, push) })
		}
		readers.Wait()
	}()
	defer func() { <-all }()
	for {
		batch, more := gather(ctx, lines)
		data := &dispatcherv1.LogData{SubscriptionId: req.GetSubscriptionId(), Messages: batch, End: !more}
		if err := allowed.await(ctx); err != nil {
			return
		}
		allowed.spend(batch)
		select {
		case s.logs <- data:
		case <-ctx.Done():
			return
		}
		if !more {
			return
		}
	}
}

// gather collects lines that come together. It says whether more may follow.
func gather(ctx context.Context, lines <-chan *musterv1.LogMessage) (batch []*musterv1.LogMessage, more bool) {
	select {
	case line, ok := <-lines:
		if !ok {
			return nil, false
		}
		batch = append(batch, line)
	case <-ctx.Done():
		return nil, false
	}
	size := proto.Size(batch[0])
	timer := time.NewTimer(logLinger)
	defer timer.Stop()
	for len(batch) < largestLogBatch && size < largestLogBytes {
		select {
		case line, ok := <-lines:
			if !ok {
				return batch, false
			}
			batch = append(batch, line)
			size += proto.Size(line)
		case <-timer.C:
			return batch, true
		case <-ctx.Done():
			return batch, false
		}
	}
	return batch, true
}
