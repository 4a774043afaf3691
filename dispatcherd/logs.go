package dispatcherd

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
	// maxSubscriptionTasks bounds how many tasks one reader asks for.
	maxSubscriptionTasks = 10_000
	// logOverhead is what a line costs in memory beside what it says. Workers
	// count it, too: it is a part of the contract.
	logOverhead = 256
	// creditShare is the part of a reader's queue that has to be free before the
	// worker is told: a message for each line would be too many.
	creditShare = 4
)

// SubscribeLogs streams the output of tasks of one node to apid.
func (d *Daemon) SubscribeLogs(
	req *dispatcherv1.SubscribeLogsRequest, out grpc.ServerStreamingServer[dispatcherv1.SubscribeLogsResponse],
) error {
	if !d.crew.join() {
		return errStopping
	}
	defer d.crew.leave()
	if err := checkID("node_id", req.NodeId); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if n := len(req.TaskIds); n == 0 || n > maxSubscriptionTasks {
		return status.Errorf(codes.InvalidArgument, "task_ids holds %d ids, want 1 to %d", n, maxSubscriptionTasks)
	}
	shard, _ := d.shardOf(req.NodeId)
	if shard == nil {
		return unconnected(req.NodeId)
	}
	sess := shard.session(req.NodeId)
	if sess == nil {
		return unconnected(req.NodeId)
	}
	sub := newSubscription(req.NodeId, req.Client, req.TaskIds, d.cfg.LogQueueBytes)
	if err := d.readers.admit(sub); err != nil {
		return err
	}
	defer d.readers.release(sub)
	if err := sess.subscriptions.add(sub, sess.node); err != nil {
		return err
	}
	d.metrics.subscriptions.Inc()
	defer d.metrics.subscriptions.Dec()
	sess.say(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogRequest{LogRequest: &dispatcherv1.LogRequest{
		SubscriptionId: sub.id, TaskIds: req.TaskIds, Options: req.Options, Credit: uint64(sub.limit),
	}}})
	defer func() {
		if sess.subscriptions.remove(sub) {
			sess.say(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCancel{
				LogCancel: &dispatcherv1.LogCancel{SubscriptionId: sub.id},
			}})
		}
	}()
	// The call returns whenever it is to end, even while apid takes in nothing:
	// that, in turn, ends who sends.
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	sent := make(chan error, 1)
	d.crew.spawn(func() {
		sent <- sub.pump(ctx, out, func(credit uint64) {
			sess.say(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCredit{
				LogCredit: &dispatcherv1.LogCredit{SubscriptionId: sub.id, Credit: credit},
			}})
		})
	})
	select {
	case err := <-sent:
		return err
	case <-sub.aborted:
		return sub.err()
	case <-d.stopping:
		return errStopping
	}
}

func unconnected(node string) error {
	return status.Errorf(codes.Unavailable, "node %s is not connected to this dispatcher", node)
}

// subscription is one reader of the output of one node's tasks. The session
// puts lines in and never waits; the reader takes them out. The worker has credit
// for what there is room for, and waits when it has used it up: a reader who is
// slow, or stands still, holds up nobody else.
type subscription struct {
	id           string
	node, client string
	tasks        map[string]struct{}
	limit        int
	// aborted is closed when the subscription ends before what it holds is read:
	// the worker sent more than it has credit for, or other clients need the room.
	aborted chan struct{}
	// wake has room for one: there is something to take out.
	wake chan struct{}

	mu    sync.Mutex
	lines []*musterv1.LogMessage
	size  int
	// owed is the credit that is due to the worker.
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

// put puts lines in, those of tasks that were asked for. If the worker had no
// credit for them, it ends the subscription.
func (s *subscription) put(node string, lines []*musterv1.LogMessage, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	// While less than the limit waits, the worker had credit left when it sent
	// this: the last message may go beyond it.
	if s.size >= s.limit {
		s.abortLocked(status.Errorf(codes.ResourceExhausted,
			"the worker of node %s sends more output than it was allowed, over %d bytes: its version may be too old; ask for fewer lines (tail, since)",
			node, s.limit))
		return
	}
	for _, l := range lines {
		if _, asked := s.tasks[l.GetTaskId()]; !asked {
			s.owed += logCost(l)
			continue
		}
		// A worker speaks for its own node only.
		l.NodeId = node
		s.lines = append(s.lines, l)
		s.size += logCost(l)
	}
	s.ended = end
	s.nudge()
}

// abort ends the subscription at once. What it holds is not read.
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

// end ends the subscription once what it holds has been read.
func (s *subscription) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.cause = true, cause
		s.nudge()
	}
}

func (s *subscription) nudge() {
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

// logCost is what a message costs in memory, whichever of its fields a worker
// has filled.
func logCost(l *musterv1.LogMessage) int { return proto.Size(l) + logOverhead }

// logMessageBytes bounds one message to apid.
const logMessageBytes = 256 << 10

// take takes lines out, and says whether none will follow.
func (s *subscription) take() ([]*musterv1.LogMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.lines) && (n == 0 || size < logMessageBytes) {
		size += logCost(s.lines[n])
		n++
	}
	lines := s.lines[:n:n]
	s.lines = s.lines[n:]
	s.size -= size
	s.owed += size
	return lines, s.ended && len(s.lines) == 0
}

// due returns the credit that the worker is to be given now.
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

// pump hands lines to the reader until there are no more, and gives credit to the
// worker as they go.
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

// subscriptions are those of one session.
type subscriptions struct {
	mu    sync.Mutex
	byID  map[string]*subscription
	ended bool
}

func (s *subscriptions) add(sub *subscription, node string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return unconnected(node)
	}
	if s.byID == nil {
		s.byID = map[string]*subscription{}
	}
	s.byID[sub.id] = sub
	return nil
}

// remove reports whether the worker has yet to be told that nobody reads on.
func (s *subscriptions) remove(sub *subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, open := s.byID[sub.id]
	delete(s.byID, sub.id)
	return open && !s.ended
}

// deliver passes a worker's lines on. What nobody reads any more is dropped:
// the worker was told, or is about to be.
func (s *subscriptions) deliver(from *session, data *dispatcherv1.LogData) {
	s.mu.Lock()
	sub := s.byID[data.SubscriptionId]
	if sub != nil && data.End {
		delete(s.byID, sub.id)
	}
	s.mu.Unlock()
	if sub != nil {
		sub.put(from.node, data.Messages, data.End)
	}
}

// end ends all of them with their session.
func (s *subscriptions) end(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, sub := range s.byID {
		sub.end(unconnected(node))
	}
}
