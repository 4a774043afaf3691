package logs

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

const (
	// lineOverhead is what a line costs in memory beyond its encoding. Workers
	// count it too: it is part of the contract (see LogRequest).
	lineOverhead = 256
	// creditShare is the part of a reader's queue that must be free before the
	// worker gets more credit. One message for each line would be too many.
	creditShare = 4
	// maxMessageBytes limits one message to apid.
	maxMessageBytes = 256 << 10
)

// subscription is one reader of the output of one node's tasks. The session
// appends lines and never waits; the reader's call removes them. The worker has
// credit for the free space, and waits when it has used it up.
type subscription struct {
	id           string
	node, client string
	tasks        map[string]struct{}
	limit        int
	// aborted is closed when the subscription ends before its lines are read: the
	// worker sent more than it has credit for, or other clients need the space.
	aborted chan struct{}
	// wake has a buffer of one. It is filled when the reader has something to do.
	wake chan struct{}

	mu    sync.Mutex
	lines []*musterv1.LogMessage
	size  int
	// owed is the credit that the worker has not been given yet.
	owed  int
	ended bool
	cause error
}

func newSubscription(node, client string, tasks []string, limit int) *subscription {
	s := &subscription{
		id: state.NewID(), node: node, client: client, tasks: make(map[string]struct{}, len(tasks)), limit: limit,
		aborted: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	for _, id := range tasks {
		s.tasks[id] = struct{}{}
	}
	return s
}

// put appends the lines of tasks that were asked for. It ends the subscription if
// the worker had no credit for them.
func (s *subscription) put(lines []*musterv1.LogMessage, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	// The worker had credit when it sent this if the queue is below its limit. The
	// last message may exceed the credit.
	if s.size >= s.limit {
		s.abortLocked(status.Errorf(codes.ResourceExhausted,
			"the worker of node %s sends more output than it was allowed, over %d bytes: its version may be too old; ask for fewer lines (tail, since)",
			s.node, s.limit))
		return
	}
	for _, l := range lines {
		if _, asked := s.tasks[l.GetTaskId()]; !asked {
			s.owed += cost(l)
			continue
		}
		// A worker cannot send output in the name of another node.
		l.NodeId = s.node
		s.lines = append(s.lines, l)
		s.size += cost(l)
	}
	s.ended = end
	s.notify()
}

// abort ends the subscription at once. Its lines are not read.
func (s *subscription) abort(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abortLocked(cause)
}

func (s *subscription) abortLocked(cause error) {
	select {
	case <-s.aborted:
		return
	default:
	}
	s.cause, s.ended, s.lines = cause, true, nil
	close(s.aborted)
}

// end ends the subscription after its lines have been read.
func (s *subscription) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.cause = true, cause
		s.notify()
	}
}

func (s *subscription) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// cost returns the memory that a line takes, including fields that readers do not
// use.
func cost(l *musterv1.LogMessage) int { return proto.Size(l) + lineOverhead }

// take removes lines. It returns true if none will follow.
func (s *subscription) take() ([]*musterv1.LogMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.lines) && (n == 0 || size < maxMessageBytes) {
		size += cost(s.lines[n])
		n++
	}
	lines := s.lines[:n:n]
	s.lines = s.lines[n:]
	s.size -= size
	s.owed += size
	return lines, s.ended && len(s.lines) == 0
}

// due returns the credit that the worker must be given now.
func (s *subscription) due() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.owed < s.limit/creditShare {
		return 0
	}
	credit := uint64(s.owed)
	s.owed = 0
	return credit
}

// pump sends lines to the reader until none are left, and gives the worker
// credit for the lines that were sent.
func (s *subscription) pump(
	ctx context.Context, out grpc.ServerStreamingServer[dispatcherv1.SubscribeLogsResponse], give func(credit uint64),
) error {
	for {
		if credit := s.due(); credit > 0 {
			give(credit)
		}
		lines, last := s.take()
		if len(lines) > 0 {
			if err := out.Send(&dispatcherv1.SubscribeLogsResponse{Messages: lines}); err != nil {
				return err
			}
		}
		if last {
			return s.err()
		}
		if len(lines) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.wake:
		}
	}
}
