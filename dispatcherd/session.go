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
	"github.com/musterhq/muster/internal/state"
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
	period                  time.Duration
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
	// shard is set once, when the session is attached.
	shard *shard
	// control holds what is to be said before any assignment.
	control []*dispatcherv1.SessionResponse
	// acknowledged is the sequence of reports that an acknowledgement is due
	// for, 0 if none is.
	acknowledged uint64
	// all says that the complete set is due, and parked that it waits for records
	// that are yet to be seen: until there is news, or until settled at the latest.
	all, parked bool
	settled     time.Time
	settle      *time.Timer
	// news counts what has been marked; told is the count when the sender last
	// looked.
	news, seen uint64
	// dirty holds the keys of assignments to look at.
	dirty map[string]struct{}
	// sending is closed when the sender at work, if any, has said all.
	sending chan struct{}

	// book guards ledger, which sender and receiver both use.
	book   sync.Mutex
	ledger *ledger

	subscriptions subscriptions
}

func (d *Daemon) newSession(st stream) *session {
	return &session{
		d: d, stream: st, log: d.log, begun: time.Now(), done: make(chan struct{}), greeted: make(chan struct{}),
		dirty: map[string]struct{}{}, ledger: newLedger(),
	}
}

// Session serves one worker.
func (d *Daemon) Session(st stream) error {
	if !d.crew.join() {
		return errStopping
	}
	defer d.crew.leave()
	s := d.newSession(st)
	// A call returns whenever the session is to end, even while its worker
	// takes in nothing: that, in turn, ends whoever sends or receives.
	d.crew.spawn(func() { s.finish(s.listen(), nil) })
	silent := time.AfterFunc(d.cfg.HelloTimeout, s.hangUpUngreeted)
	defer silent.Stop()
	select {
	case <-s.done:
	case <-d.stopping:
		s.finish(errStopping, nil)
	}
	return s.conclude()
}

// hangUpUngreeted ends a session whose worker has not said hello.
func (s *session) hangUpUngreeted() {
	if s.heard.Load() == 0 {
		s.finish(status.Errorf(codes.DeadlineExceeded, "no hello within %s", s.d.cfg.HelloTimeout), nil)
	}
}

// finish has the session end with err, and with last as its last message if
// given. Only the first call counts.
func (s *session) finish(err error, last *dispatcherv1.SessionResponse) {
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
		shard.detach(s, func(l liveness) liveness { return l.closeStream(time.Now(), s.d.cfg) })
		s.abandon()
	}
	s.subscriptions.end(s.node)
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
	s.shard.assignmentsChanged(s.node, keys)
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
		s.finish(nil, redirect)
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
			s.subscriptions.deliver(s, m.LogData)
		case *dispatcherv1.SessionRequest_Description:
			if err := checkDescription(m.Description); err != nil {
				return err
			}
			s.shard.describe(s, m.Description)
		case *dispatcherv1.SessionRequest_Goodbye:
			restarts := m.Goodbye.Restarting
			s.shard.detach(s, func(l liveness) liveness { return l.goodbye(time.Now(), restarts, s.d.cfg) })
			return nil
		case *dispatcherv1.SessionRequest_Hello:
			return status.Error(codes.InvalidArgument, "hello is a session's first message, and only that")
		default:
			// A heartbeat, or what a newer worker says besides.
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

func (s *session) lastHeard() time.Time { return s.begun.Add(time.Duration(s.heard.Load())) }

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
	statuses := make(map[string]*recordv1.Status, len(r.Statuses))
	foreign, first := 0, ""
	s.book.Lock()
	for _, reported := range r.Statuses {
		told, known := s.ledger.tasks[reported.TaskId]
		record, sane := observed(reported, now)
		if !known || !sane {
			if foreign++; first == "" {
				first = clip(reported.TaskId, maxID)
			}
			continue
		}
		key := state.NodeTaskKey(s.node, told.service, reported.TaskId)
		statuses[key] = merge(statuses[key], record)
	}
	s.book.Unlock()
	if foreign > 0 {
		s.d.metrics.ignored.WithLabelValues(ignoredForeign).Add(float64(foreign))
		s.log.Warn("reported statuses are ignored: the tasks are not assigned to the node, or the states are not a worker's",
			zap.String("node", s.node), zap.Int("count", foreign), zap.String("first_task", first))
	}
	s.shard.intake.take(s, r.Sequence, statuses, now)
}

// acknowledge says that reports up to a sequence are kept.
func (s *session) acknowledge(sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.acknowledged = max(s.acknowledged, sequence)
		s.startSending()
	}
}

// say has a message sent before any assignment that is not on its way.
func (s *session) say(m *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.control = append(s.control, m)
		s.startSending()
	}
}

// welcome begins what the worker is told.
func (s *session) welcome(m *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.control = append(s.control, m)
		s.all = true
		s.settled = time.Now().Add(s.d.cfg.SettleTimeout)
		s.startSending()
	}
}

// bind makes the session one of a shard's. It returns false if it has ended.
func (s *session) bind(to *shard) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.shard = to
	return true
}

// mark has assignments looked at. It returns false if the session has ended.
func (s *session) mark(keys []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	for _, key := range keys {
		s.dirty[key] = struct{}{}
	}
	s.news++
	s.parked = false
	s.startSending()
	return true
}

// retry looks again at what waits for other records, which may have come.
func (s *session) retry() {
	s.book.Lock()
	waiting := slices.Collect(maps.Keys(s.ledger.waiting))
	s.book.Unlock()
	select {
	case <-s.greeted:
		if len(waiting) == 0 {
			return
		}
	default:
	}
	s.mark(waiting)
}

// goOn is called when the complete set has waited for long enough.
func (s *session) goOn() { s.mark(nil) }

// startSending sees to it that a sender is at work. The caller holds mu.
func (s *session) startSending() {
	if s.sending == nil {
		s.sending = make(chan struct{})
		s.d.crew.spawn(s.send)
	}
}

// utterance is what a sender says next.
type utterance struct {
	control      []*dispatcherv1.SessionResponse
	acknowledged uint64
	all          bool
	dirty        []string
}

// next takes all there is to say. It returns false, and the sender is at work
// no more, if there is nothing.
func (s *session) next() (utterance, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := utterance{control: s.control, acknowledged: s.acknowledged}
	s.control, s.acknowledged = nil, 0
	if !s.ended && !s.parked {
		u.all, s.all = s.all, false
		u.dirty = slices.Collect(maps.Keys(s.dirty))
		clear(s.dirty)
		s.seen = s.news
	}
	if u.control == nil && u.acknowledged == 0 && !u.all && len(u.dirty) == 0 {
		close(s.sending)
		s.sending = nil
		return u, false
	}
	return u, true
}

// send says what there is to say, until there is nothing more.
func (s *session) send() {
	for {
		u, ok := s.next()
		if !ok {
			return
		}
		if err := s.utter(u); err != nil {
			s.finish(ending(err), nil)
			// What is left has nobody to be said to.
			s.mu.Lock()
			defer s.mu.Unlock()
			close(s.sending)
			s.sending = nil
			return
		}
	}
}

func (s *session) utter(u utterance) error {
	for _, m := range u.control {
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
	if u.acknowledged > 0 {
		ack := &dispatcherv1.SessionResponse_StatusAck{StatusAck: &dispatcherv1.StatusAck{Sequence: u.acknowledged}}
		if err := s.stream.Send(&dispatcherv1.SessionResponse{Message: ack}); err != nil {
			return err
		}
	}
	switch {
	case u.all:
		return s.tellAll()
	case len(u.dirty) > 0:
		return s.tellChanges(u.dirty)
	default:
		return nil
	}
}

// tellAll sends the complete set, unless something that it needs may come in
// a moment.
func (s *session) tellAll() error {
	messages := s.complete()
	if messages == nil {
		return nil
	}
	close(s.greeted)
	if err := s.tell(messages); err != nil {
		return err
	}
	s.shard.intake.settleNode(s.node, "")
	return nil
}

// complete returns the complete set, nil if it is to wait. The snapshot is
// taken with the book in hand: whoever then asks what waits (retry) either is
// told so, or had it in this snapshot.
func (s *session) complete() []*dispatcherv1.Assignments {
	s.book.Lock()
	defer s.book.Unlock()
	offers := s.d.desk.offers(s.d.store.Snapshot(), s.node)
	if slices.ContainsFunc(offers, func(o offer) bool { return o.lags }) && s.park() {
		return nil
	}
	return s.ledger.complete(offers, s.d.packing())
}

// park has the complete set wait for records that are not seen yet. It
// returns false if it has waited for long enough.
func (s *session) park() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := time.Until(s.settled)
	if left <= 0 || s.ended {
		return false
	}
	s.all = true
	s.parked = s.news == s.seen
	if s.settle == nil {
		s.settle = time.AfterFunc(left, s.goOn)
	}
	return true
}

// tellChanges sends what has changed of the given assignments.
func (s *session) tellChanges(keys []string) error {
	messages, gone := s.changes(keys)
	if err := s.tell(messages); err != nil {
		return err
	}
	// The worker knows, so what is left of assignments that are gone may go.
	s.shard.intake.settle(gone, "")
	return nil
}

// changes returns what is to be said about assignments, and which of them are
// gone. Of the snapshot the same holds as in complete.
func (s *session) changes(keys []string) (messages []*dispatcherv1.Assignments, gone []string) {
	slices.Sort(keys)
	s.book.Lock()
	defer s.book.Unlock()
	snap := s.d.store.Snapshot()
	offers := make([]offer, len(keys))
	for i, key := range keys {
		offers[i] = s.d.desk.offer(snap, key)
		if offers[i].version == 0 {
			gone = append(gone, key)
		}
	}
	return s.ledger.changes(offers, s.d.packing()), gone
}

func (s *session) tell(messages []*dispatcherv1.Assignments) error {
	for _, m := range messages {
		if err := s.stream.Send(&dispatcherv1.SessionResponse{
			Message: &dispatcherv1.SessionResponse_Assignments{Assignments: m},
		}); err != nil {
			return err
		}
		s.d.metrics.told(m)
	}
	return nil
}

func (d *Daemon) packing() packing {
	return packing{tasks: d.cfg.MessageTasks, bytes: d.cfg.MessageBytes}
}
