package session

import (
	"context"
	"maps"
	"slices"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// outbox is what a session has to send. The session's mu guards it.
type outbox struct {
	// welcomeSent says that Welcome was queued.
	welcomeSent bool
	// control holds messages that are sent before assignments.
	control []*dispatcherv1.SessionResponse
	// acknowledged is the sequence of reports to acknowledge, 0 for none.
	acknowledged uint64
	// heartbeat says that a heartbeat must be answered.
	heartbeat bool
	// dispatchers says that the addresses of dispatchers must be sent.
	dispatchers bool
	// complete says that the complete set must be sent. If parked, it waits for
	// missing objects until a change, or until settleBy at the latest.
	complete, parked bool
	settleBy         time.Time
	settleTimer      *time.Timer
	// changed holds the keys of assignments to compare. Changes counts the calls that
	// may have added keys, and seen is that count when the sender looked last.
	changed       map[string]struct{}
	changes, seen uint64
	// networks holds the ids of networks to compare.
	networks map[string]struct{}
	// sending is closed when the sender has sent everything. It is nil while there
	// is no sender.
	sending chan struct{}
}

// outboundMessage is what a sender sends next.
type outboundMessage struct {
	control      []*dispatcherv1.SessionResponse
	acknowledged uint64
	heartbeat    bool
	dispatchers  bool
	complete     bool
	changed      []string
	networks     []string
}

func (m *outboundMessage) empty() bool {
	return m.control == nil && m.acknowledged == 0 && !m.heartbeat && !m.dispatchers && !m.complete && len(m.changed)+len(m.networks) == 0
}

// queue changes the outbox and starts the sender. It returns false if the session
// has ended.
func (s *session) queue(change func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	change()
	s.startSending()
	return true
}

// Acknowledge implements [statuses.Reporter].
func (s *session) Acknowledge(sequence uint64) {
	s.queue(func() { s.acknowledged = max(s.acknowledged, sequence) })
}

// answerHeartbeat shows the worker that this dispatcher is alive.
func (s *session) answerHeartbeat() { s.queue(func() { s.heartbeat = true }) }

// Send implements [logs.Sender]. The message overtakes assignments that wait.
func (s *session) Send(m *dispatcherv1.SessionResponse) {
	s.queue(func() { s.control = append(s.control, m) })
}

// sendWelcome sends the first message, and then the complete set.
func (s *session) sendWelcome() {
	s.queue(func() {
		s.control = append(s.control, s.welcome())
		s.welcomeSent = true
		s.complete = true
		s.settleBy = time.Now().Add(s.server.cfg.SettleTimeout)
	})
}

func (s *session) welcome() *dispatcherv1.SessionResponse {
	return s.server.welcome(s.worker.Node, time.Duration(s.period.Load()))
}

// SetPeriod implements [liveness.Session].
func (s *session) SetPeriod(period time.Duration) {
	s.period.Store(int64(period))
	s.SettingsChanged()
}

// SettingsChanged implements [liveness.Session]. It sends Welcome again.
func (s *session) SettingsChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A first Welcome that is still to come will contain the change.
	if !s.ended && s.welcomeSent {
		s.control = append(s.control, s.welcome())
		s.startSending()
	}
}

// DispatchersChanged implements [liveness.Session].
func (s *session) DispatchersChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A first Welcome that is still to come will contain the change.
	if !s.ended && s.welcomeSent {
		s.dispatchers = true
		s.startSending()
	}
}

// AssignmentsChanged implements [liveness.Session].
func (s *session) AssignmentsChanged(keys []string) bool {
	return s.queue(func() {
		for _, key := range keys {
			s.changed[key] = struct{}{}
		}
		s.changes++
		s.parked = false
	})
}

// NetworksChanged implements [liveness.Session].
func (s *session) NetworksChanged(ids []string) {
	s.queue(func() {
		for _, id := range ids {
			s.networks[id] = struct{}{}
		}
		s.changes++
		s.parked = false
	})
}

// ObjectsChanged implements [liveness.Session].
func (s *session) ObjectsChanged(refs []assignments.Ref) {
	s.sentMu.Lock()
	waiting := append(s.sent.Waiting(), s.sent.Users(s.worker.Node, refs)...)
	s.sentMu.Unlock()
	select {
	case <-s.completeSent:
		if len(waiting) == 0 {
			return
		}
	default:
	}
	s.AssignmentsChanged(waiting)
}

// startSending starts a sender if there is none. The caller holds mu.
func (s *session) startSending() {
	if s.sending == nil {
		s.sending = make(chan struct{})
		s.server.cfg.Calls.Go(s.send)
	}
}

// next empties the outbox. It returns false if it was empty. The sender must then
// end.
func (s *session) next() (outboundMessage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := outboundMessage{control: s.control, acknowledged: s.acknowledged, heartbeat: s.heartbeat, dispatchers: s.dispatchers}
	s.control, s.acknowledged, s.heartbeat, s.dispatchers = nil, 0, false, false
	if !s.ended && !s.parked {
		m.complete, s.complete = s.complete, false
		m.changed = slices.Collect(maps.Keys(s.changed))
		clear(s.changed)
		m.networks = slices.Collect(maps.Keys(s.networks))
		clear(s.networks)
		s.seen = s.changes
	}
	if m.empty() {
		close(s.sending)
		s.sending = nil
		return m, false
	}
	return m, true
}

// send sends until the outbox is empty.
func (s *session) send() {
	for {
		m, ok := s.next()
		if !ok {
			return
		}
		if err := s.sendMessage(m); err != nil {
			s.End(endOf(err), nil)
			s.mu.Lock()
			defer s.mu.Unlock()
			close(s.sending)
			s.sending = nil
			return
		}
	}
}

func (s *session) sendMessage(m outboundMessage) error {
	for _, c := range m.control {
		if err := s.stream.Send(c); err != nil {
			return err
		}
	}
	if m.heartbeat {
		if err := s.stream.Send(&dispatcherv1.SessionResponse{
			Message: &dispatcherv1.SessionResponse_HeartbeatAck{HeartbeatAck: &dispatcherv1.HeartbeatAck{}},
		}); err != nil {
			return err
		}
	}
	if m.dispatchers {
		all := &dispatcherv1.Dispatchers{Addresses: s.server.Addresses()}
		if err := s.stream.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Dispatchers{Dispatchers: all}}); err != nil {
			return err
		}
	}
	if m.acknowledged > 0 {
		ack := &dispatcherv1.StatusAck{Sequence: m.acknowledged}
		if err := s.stream.Send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_StatusAck{StatusAck: ack}}); err != nil {
			return err
		}
	}
	switch {
	case m.complete:
		return s.sendComplete()
	case len(m.changed)+len(m.networks) > 0:
		return s.sendChanges(m.changed, m.networks)
	default:
		return nil
	}
}

// sendComplete sends the complete set, unless it waits for a missing object.
func (s *session) sendComplete() error {
	began := time.Now()
	messages, traced, err := s.completeSet()
	if messages == nil || err != nil {
		return err
	}
	close(s.completeSent)
	if err := s.sendAssignments(messages); err != nil {
		return err
	}
	s.traceSent(traced, began)
	s.attachedTo().SettleNode(s.worker.Node, statuses.Keep)
	return nil
}

// completeSet returns the complete set, or nil if it must wait, and its traced
// tasks. It takes the snapshot under sentMu: ObjectsChanged then either finds what
// waits, or its objects are part of this snapshot.
func (s *session) completeSet() (messages []*dispatcherv1.Assignments, traced []*dispatcherv1.AssignedTask, err error) {
	s.sentMu.Lock()
	defer s.sentMu.Unlock()
	snap, err := s.snapshot()
	if err != nil {
		return nil, nil, err
	}
	offers := s.server.assignments.Offers(snap, s.worker.Node)
	if slices.ContainsFunc(offers, func(o assignments.Offer) bool { return o.Lags }) && s.park() {
		return nil, nil, nil
	}
	messages = s.sent.Complete(offers, s.server.cfg.Networks.Held(s.worker.Node), s.server.cfg.Limits)
	return messages, s.sent.TakeTraced(), nil
}

// snapshot returns the newest snapshot, or an error if the session must end or has
// ended. The caller holds sentMu.
func (s *session) snapshot() (*store.Snapshot, error) {
	if s.concluded {
		return nil, context.Canceled
	}
	snap := s.server.cfg.Store.Snapshot()
	if snap.Epoch() != s.epoch {
		return nil, ErrRestored
	}
	return snap, nil
}

// park makes the complete set wait for missing objects. It returns false if it has
// waited long enough.
func (s *session) park() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := time.Until(s.settleBy)
	if left <= 0 || s.ended {
		return false
	}
	s.complete = true
	s.parked = s.changes == s.seen
	if s.settleTimer == nil {
		s.settleTimer = time.AfterFunc(left, func() { s.AssignmentsChanged(nil) })
	}
	return true
}

// sendChanges sends what has changed in the given assignments and networks.
func (s *session) sendChanges(keys, networks []string) error {
	began := time.Now()
	d, err := s.difference(keys, networks)
	if err != nil {
		return err
	}
	if err := s.sendAssignments(d.messages); err != nil {
		return err
	}
	s.traceSent(d.traced, began)
	now := time.Now()
	for _, at := range d.assignedAt {
		s.server.metrics.sent.Observe(max(0, now.Sub(time.UnixMilli(at)).Seconds()))
	}
	if d.reportedAt > 0 {
		s.server.metrics.backends.Observe(max(0, now.Sub(time.UnixMilli(d.reportedAt)).Seconds()))
	}
	// The worker has been told, so the statuses of removed assignments can go.
	s.attachedTo().Settle(d.removed, statuses.Keep)
	return nil
}

// difference is what a worker must be sent.
type difference struct {
	messages []*dispatcherv1.Assignments
	// removed are the keys of assignments that are gone.
	removed []string
	// assignedAt holds when the tasks were assigned that the worker did not have.
	assignedAt []int64
	// traced are the new tasks that are traced.
	traced []*dispatcherv1.AssignedTask
	// reportedAt is when the earliest new backend was reported, 0 if there is none.
	reportedAt int64
}

// difference compares assignments and networks with what the worker was sent. It takes
// the snapshot under sentMu for the same reason as completeSet.
func (s *session) difference(keys, networks []string) (d difference, err error) {
	s.sentMu.Lock()
	defer s.sentMu.Unlock()
	snap, err := s.snapshot()
	if err != nil {
		return difference{}, err
	}
	if len(networks) > 0 {
		// Tasks may have waited for them, also if another task has brought them since.
		keys = append(keys, s.sent.Waiting()...)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	slices.Sort(networks)
	held := make([]assignments.Object, len(networks))
	for i, id := range networks {
		held[i] = s.server.cfg.Networks.Network(s.worker.Node, id)
	}
	offers := make([]assignments.Offer, len(keys))
	for i, key := range keys {
		offers[i] = s.server.assignments.Offer(snap, key)
		if offers[i].Version == 0 {
			d.removed = append(d.removed, key)
		}
	}
	d.messages = s.sent.Changes(offers, held, s.server.cfg.Limits, time.Now())
	d.reportedAt = s.sent.TakeMemberChange()
	d.assignedAt = s.sent.TakeNew()
	d.traced = s.sent.TakeTraced()
	return d, nil
}

func (s *session) sendAssignments(messages []*dispatcherv1.Assignments) error {
	for _, m := range messages {
		if err := s.stream.Send(&dispatcherv1.SessionResponse{
			Message: &dispatcherv1.SessionResponse_Assignments{Assignments: m},
		}); err != nil {
			return err
		}
		s.server.metrics.countSent(m)
	}
	return nil
}

// traceSent records the spans of traced tasks that were sent.
func (s *session) traceSent(traced []*dispatcherv1.AssignedTask, began time.Time) {
	for _, t := range traced {
		s.server.cfg.Tracer.Begin(t.Trace, "send task", began, tracing.Task(t.Id), tracing.Node(s.worker.Node)).End(nil)
	}
}
