package dispatcherd

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
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/tracing"
)

// lastWords is how long a session that ends may take to say so.
const lastWords = time.Second

// stream is the gRPC stream of a session.
type stream = grpc.BidiStreamingServer[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]

// session is one stream of one worker. One goroutine receives for as long as
// it lives; another sends, but only while there is something to say: so what
// comes up meanwhile is said together, and an idle worker costs one goroutine
// less.
type session struct {
	d      *Daemon
	stream stream
	log    *zap.Logger
	// These are set before the session is attached.
	node, instance, address string
	// sent is guarded by book.
	sent *assignments.Sent
	// period is how often the worker is to be heard, in nanoseconds.
	period atomic.Int64
	// begun is when the session was made, and heard when the worker was last
	// heard, since then.
	begun time.Time
	heard atomic.Int64
	// done is closed when the session is to end.
	done chan struct{}
	// greeted is closed when the worker knows its complete set.
	greeted chan struct{}

	mu    sync.Mutex
	ended bool
	err   error
	// shard is set before the session is attached.
	shard *shard
	// epoch is the store's when the session was attached. What a restored store lacks
	// is not to be taken for removed.
	epoch uint64
	// welcomed says that the worker has been bidden welcome, or is about to be.
	welcomed bool
	// control holds what is to be said before any assignment.
	control []*dispatcherv1.SessionResponse
	// acknowledged is the sequence of reports that an acknowledgement is due
	// for, 0 if none is.
	acknowledged uint64
	// beat says that a heartbeat is to be answered.
	beat bool
	// all says that the complete set is due, and parked that it waits for records
	// that are yet to be seen: until there is news, or until settled at the latest.
	all, parked bool
	settled     time.Time
	settle      *time.Timer
	// news counts what has been marked, and seen is the count when the sender last
	// looked.
	news, seen uint64
	// dirty holds the keys of assignments to look at.
	dirty map[string]struct{}
	// sending is closed when the sender at work, if any, has said all.
	sending chan struct{}

	// book guards sent, which sender and receiver both use.
	book sync.Mutex

	logs *logs.Worker
}

func (d *Daemon) newSession(st stream) *session {
	s := &session{
		d: d, stream: st, log: d.log, begun: time.Now(), done: make(chan struct{}), greeted: make(chan struct{}),
		dirty: map[string]struct{}{},
	}
	s.logs = d.logs.NewWorker(s)
	return s
}

// Session serves one worker.
func (d *Daemon) Session(st stream) error {
	if !d.calls.Join() {
		return calls.ErrStopping
	}
	defer d.calls.Leave()
	s := d.newSession(st)
	// A call returns whenever the session is to end, even while its worker
	// takes in nothing: that, in turn, ends whoever sends or receives.
	d.calls.Go(func() { s.End(s.listen(), nil) })
	silent := time.AfterFunc(d.cfg.HelloTimeout, s.hangUpUngreeted)
	defer silent.Stop()
	select {
	case <-s.done:
	case <-d.calls.Stopping():
		s.End(calls.ErrStopping, nil)
	}
	return s.conclude()
}

// hangUpUngreeted ends a session whose worker has not said hello.
func (s *session) hangUpUngreeted() {
	if s.heard.Load() == 0 {
		s.End(status.Errorf(codes.DeadlineExceeded, "no hello within %s", s.d.cfg.HelloTimeout), nil)
	}
}

// finish has the session end with err, and with last as its last message if
// given. Only the first call counts.
func (s *session) End(err error, last *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	if s.settle != nil {
		s.settle.Stop()
	}
	if last != nil {
		s.control = append(s.control, last)
		s.startSending()
	}
	close(s.done)
}

// conclude waits for the last words, and returns how the call ends.
func (s *session) conclude() error {
	s.mu.Lock()
	sending, err, shard := s.sending, s.err, s.shard
	s.mu.Unlock()
	if shard != nil {
		shard.Detach(s, liveness.Closed)
		s.abandon()
	}
	s.logs.Close()
	if sending != nil {
		t := time.NewTimer(lastWords)
		defer t.Stop()
		select {
		case <-sending:
		case <-t.C:
		case <-s.stream.Context().Done():
		}
	}
	return err
}

// abandon hands what the worker was not told any more back to its shard, which
// settles it if the node is down.
func (s *session) abandon() {
	s.mu.Lock()
	keys := slices.Collect(maps.Keys(s.dirty))
	clear(s.dirty)
	s.mu.Unlock()
	s.shard.AssignmentsChanged(s.node, keys)
}

// listen hears the worker out and returns how the session ends.
func (s *session) listen() error {
	first, err := s.stream.Recv()
	if err != nil {
		return ending(err)
	}
	s.hear()
	if redirect, err := s.d.admit(s, first.GetHello()); err != nil {
		return err
	} else if redirect != nil {
		s.End(nil, redirect)
		return nil
	}
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return ending(err)
		}
		s.hear()
		switch m := m.Message.(type) {
		case *dispatcherv1.SessionRequest_StatusReport:
			s.report(m.StatusReport)
		case *dispatcherv1.SessionRequest_LogData:
			s.logs.Deliver(m.LogData)
		case *dispatcherv1.SessionRequest_Description:
			if err := bounds.CheckDescription(m.Description); err != nil {
				return err
			}
			s.shard.Describe(s, m.Description)
		case *dispatcherv1.SessionRequest_Goodbye:
			how := liveness.Left
			if m.Goodbye.Restarting {
				how = liveness.Restarting
			}
			s.shard.Detach(s, how)
			return nil
		case *dispatcherv1.SessionRequest_Hello:
			return status.Error(codes.InvalidArgument, "hello is a session's first message, and only that")
		case *dispatcherv1.SessionRequest_Heartbeat:
			s.answerHeartbeat()
			s.shard.AdjustPeriod(s, time.Duration(s.period.Load()))
		default:
			// What a newer worker says besides.
		}
	}
}

// ending says how a session ends whose stream does.
func ending(err error) error {
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return status.Error(codes.Canceled, "the worker closed its stream")
	}
	if status.Code(err) != codes.Unknown {
		return err
	}
	return nil // the worker has said all that it had to say
}

func (s *session) hear() { s.heard.Store(max(1, int64(time.Since(s.begun)))) }

// LastHeard implements [liveness.Session].
func (s *session) LastHeard() time.Time { return s.begun.Add(time.Duration(s.heard.Load())) }

// report takes a status report.
func (s *session) report(r *dispatcherv1.StatusReport) {
	// The worker may speak of tasks that it will learn to be its own no more. What
	// it was told decides, so it has to be told first.
	select {
	case <-s.greeted:
	case <-s.done:
		return
	}
	now := time.Now()
	reports := make(map[string]*recordv1.Status, len(r.Statuses))
	foreign, first := 0, ""
	var spans []tracing.Span
	s.book.Lock()
	for _, reported := range r.Statuses {
		service, sentAt, known := s.sent.Service(reported.TaskId)
		record, sane := statuses.Observed(reported, now)
		if !known || !sane {
			if foreign++; first == "" {
				first = bounds.Clip(reported.TaskId, bounds.MaxID)
			}
			continue
		}
		record.SentAt = sentAt
		if record.State == musterv1.TaskState_RUNNING {
			if took, ok := s.sent.TakeRunning(reported.TaskId, now); ok {
				s.d.metrics.running.Observe(took.Seconds())
			}
		}
		if span, ok := s.traceReport(reported.TaskId, record.State, now); ok {
			spans = append(spans, span)
		}
		key := state.NodeTaskKey(s.node, service, reported.TaskId)
		reports[key] = statuses.Merge(reports[key], record)
	}
	s.book.Unlock()
	if foreign > 0 {
		s.d.statusMetrics.IgnoreForeign(foreign)
		s.log.Warn("reported statuses are ignored: the tasks are not assigned to the node, or the states are not a worker's",
			zap.String("node", s.node), zap.Int("count", foreign), zap.String("first_task", first))
	}
	s.shard.Write(s, statuses.Report{Sequence: r.Sequence, Statuses: reports, Spans: spans, At: now})
}

// Worker implements [liveness.Session].
func (s *session) Worker() liveness.Worker {
	return liveness.Worker{Node: s.node, Instance: s.instance, Address: s.address, Begun: s.begun}
}
