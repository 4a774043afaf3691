package session

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/tracing"
)

// lastMessageTimeout limits how long a session that ends may take to send its last
// message.
const lastMessageTimeout = time.Second

var (
	// ErrRestored ends sessions after the store was restored from a snapshot.
	ErrRestored = status.Error(codes.Unavailable, "the store was restored from a snapshot: report everything again")
	// ErrShardLost ends sessions whose shard moves to another dispatcher.
	ErrShardLost = status.Error(codes.Unavailable, "the node's shard moves to another dispatcher")
)

// stream is the gRPC stream of a session.
type stream = grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]

// session is one stream of one worker. It implements [liveness.Session],
// [statuses.Reporter], [logs.Sender] and [probes.Sender].
type session struct {
	server *Server
	stream stream
	log    *zap.Logger
	logs   *logs.Worker
	probes *probes.Worker
	// worker is set before the session is attached.
	worker liveness.Worker
	// period is the heartbeat period in nanoseconds.
	period atomic.Int64
	// begun is when the stream began, and heard when the worker was last heard, since
	// then. It is 0 before hello.
	begun time.Time
	heard atomic.Int64
	// done is closed when the session must end.
	done chan struct{}
	// completeSent is closed when the complete set is about to be sent.
	completeSent chan struct{}

	// sentMu guards sent, which sender and receiver use, and concluded: nothing more is
	// sent.
	sentMu    sync.Mutex
	sent      *assignments.Sent
	concluded bool

	mu    sync.Mutex
	ended bool
	err   error
	// shard is set before the session is attached.
	shard Shard
	// epoch is the store's epoch when the session was attached. What is missing in a
	// restored store was not removed.
	epoch uint64
	outbox
}

func (v *Server) newSession(st stream) *session {
	s := &session{
		server: v, stream: st, log: v.log, begun: time.Now(), done: make(chan struct{}), completeSent: make(chan struct{}),
		outbox: outbox{changed: map[string]struct{}{}, networks: map[string]struct{}{}},
	}
	s.logs, s.probes = v.cfg.Logs.NewWorker(s), v.cfg.Probes.NewWorker(s)
	return s
}

// Worker implements [liveness.Session].
func (s *session) Worker() liveness.Worker { return s.worker }

// LastHeard implements [liveness.Session].
func (s *session) LastHeard() time.Time { return s.begun.Add(time.Duration(s.heard.Load())) }

func (s *session) hear() { s.heard.Store(max(1, int64(time.Since(s.begun)))) }

// setShard sets the shard that the session is about to be attached to.
func (s *session) setShard(shard Shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shard = shard
}

// Bind implements [liveness.Session].
func (s *session) Bind(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.epoch = epoch
	return true
}

// End implements [liveness.Session]. Only the first call counts.
func (s *session) End(err error, last *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	if s.settleTimer != nil {
		s.settleTimer.Stop()
	}
	if last != nil {
		s.control = append(s.control, last)
		s.startSending()
	}
	close(s.done)
}

// endWithoutHello ends a session whose worker has not sent hello.
func (s *session) endWithoutHello() {
	if s.heard.Load() == 0 {
		s.End(status.Errorf(codes.DeadlineExceeded, "no hello within %s", s.server.cfg.HelloTimeout), nil)
	}
}

// conclude waits until the last message is sent, and returns the result of the
// call.
func (s *session) conclude() error {
	s.mu.Lock()
	sending, err, shard := s.sending, s.err, s.shard
	s.mu.Unlock()
	if shard != nil {
		s.closeSent()
		shard.Detach(s, liveness.Closed)
		// The shard settles what the worker was not told, if the node is down.
		if keys := s.takeChanged(); len(keys) > 0 {
			shard.AssignmentsChanged(s.worker.Node, keys)
		}
	}
	s.logs.Close()
	s.probes.Close()
	if sending != nil {
		t := time.NewTimer(lastMessageTimeout)
		defer t.Stop()
		select {
		case <-sending:
		case <-t.C:
		case <-s.stream.Context().Done():
		}
	}
	return err
}

// closeSent ends the reading of what the session would have sent.
func (s *session) closeSent() {
	s.sentMu.Lock()
	defer s.sentMu.Unlock()
	s.concluded = true
	s.sent.Close()
}

func (s *session) takeChanged() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := slices.Collect(maps.Keys(s.changed))
	clear(s.changed)
	return keys
}

// receive handles the worker's messages. It returns how the session ends.
func (s *session) receive() error {
	first, err := s.stream.Recv()
	if err != nil {
		return endOf(err)
	}
	s.hear()
	if redirect, err := s.server.admit(s, first.GetHello()); err != nil {
		return err
	} else if redirect != nil {
		s.End(nil, redirect)
		return nil
	}
	shard := s.attachedTo()
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return endOf(err)
		}
		s.hear()
		switch m := m.Message.(type) {
		case *dispatcherv1.SessionRequest_StatusReport:
			s.report(shard, m.StatusReport)
		case *dispatcherv1.SessionRequest_LogData:
			s.logs.Deliver(m.LogData)
		case *dispatcherv1.SessionRequest_ProbeResult:
			s.probes.Deliver(m.ProbeResult)
		case *dispatcherv1.SessionRequest_Description:
			if err := bounds.CheckDescription(m.Description); err != nil {
				return err
			}
			shard.Describe(s, m.Description)
		case *dispatcherv1.SessionRequest_Goodbye:
			how := liveness.Left
			if m.Goodbye.Restarting {
				how = liveness.Restarting
			}
			shard.Detach(s, how)
			return nil
		case *dispatcherv1.SessionRequest_Hello:
			return status.Error(codes.InvalidArgument, "hello can only be the first message of a session")
		case *dispatcherv1.SessionRequest_Heartbeat:
			s.answerHeartbeat()
			shard.AdjustPeriod(s, time.Duration(s.period.Load()))
		default:
			// A message of a newer worker.
		}
	}
}

func (s *session) attachedTo() Shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shard
}

// endOf returns how a session ends whose stream has ended.
func endOf(err error) error {
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return status.Error(codes.Canceled, "the worker closed its stream")
	}
	if status.Code(err) != codes.Unknown {
		return err
	}
	return nil // the worker has sent everything
}

// report writes a status report.
func (s *session) report(shard Shard, r *dispatcherv1.StatusReport) {
	// The worker may report tasks that are no longer its own. Only tasks that it was
	// sent count, so the complete set comes first.
	select {
	case <-s.completeSent:
	case <-s.done:
		return
	}
	now := time.Now()
	reports := make(map[string]*recordv1.Status, len(r.Statuses))
	foreign, first := 0, ""
	refused := 0
	var spans []tracing.Span
	s.sentMu.Lock()
	for _, reported := range r.Statuses {
		service, sentAt, known := s.sent.Service(reported.TaskId)
		record, valid := statuses.Observed(reported, now)
		if !known || !valid {
			if foreign++; first == "" {
				first = bounds.Clip(reported.TaskId, bounds.MaxID)
			}
			continue
		}
		record.SentAt = sentAt
		refused += s.refuseNetworks(reported.TaskId, record)
		if record.State == musterv1.TaskState_RUNNING {
			if took, ok := s.sent.TakeRunning(reported.TaskId, now); ok {
				s.server.metrics.running.Observe(took.Seconds())
			}
		}
		if span, ok := s.traceReport(reported.TaskId, record.State, now); ok {
			spans = append(spans, span)
		}
		key := state.NodeTaskKey(s.worker.Node, service, reported.TaskId)
		reports[key] = statuses.Merge(reports[key], record)
	}
	s.sentMu.Unlock()
	if foreign > 0 {
		s.server.metrics.Statuses.IgnoreForeign(foreign)
		s.log.Warn("ignored reported statuses: tasks are not assigned to the node, or states are not a worker's",
			zap.String("node", s.worker.Node), zap.Int("count", foreign), zap.String("first_task", first))
	}
	if refused > 0 {
		s.log.Warn("ignored reported addresses: the node has no block with them, or the tasks are not on the networks",
			zap.String("node", s.worker.Node), zap.Int("count", refused))
	}
	shard.Write(s, statuses.Report{Sequence: r.Sequence, Statuses: reports, Spans: spans, At: now})
}

// refuseNetworks removes what a worker may not claim from a task's status: a network
// that the task is not on, and addresses that the node does not have. It returns how
// many networks it removed. The caller holds sentMu.
func (s *session) refuseNetworks(task string, record *recordv1.Status) int {
	if len(record.Networks) == 0 {
		return 0
	}
	reported, own := len(record.Networks), s.sent.Networks(task)
	record.Networks = slices.DeleteFunc(record.Networks, func(n *musterv1.NetworkAttachment) bool {
		return !slices.Contains(own, n.NetworkId) || !s.server.cfg.Networks.MayOwn(s.worker.Node, n)
	})
	return reported - len(record.Networks)
}

// traceReport begins the span of the report that a traced task runs or has ended.
// It ends when the report is written. The caller holds sentMu.
func (s *session) traceReport(id string, state musterv1.TaskState, now time.Time) (tracing.Span, bool) {
	if state < musterv1.TaskState_RUNNING {
		return tracing.Span{}, false
	}
	trace := s.sent.TakeTrace(id)
	if trace == nil {
		return tracing.Span{}, false
	}
	return s.server.cfg.Tracer.Begin(trace, "record status", now, tracing.Task(id), tracing.Node(s.worker.Node), tracing.State(state.String())), true
}
