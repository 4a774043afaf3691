package dispatcherd

import (
	"maps"
	"slices"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
)

// Acknowledge tells the worker that reports up to a sequence are written.
func (s *session) Acknowledge(sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.acknowledged = max(s.acknowledged, sequence)
		s.startSending()
	}
}

// answerHeartbeat has the worker hear that this dispatcher lives.
func (s *session) answerHeartbeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.beat = true
		s.startSending()
	}
}

// Send has a message sent before any assignment that is not being sent yet.
func (s *session) Send(m *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.control = append(s.control, m)
		s.startSending()
	}
}

// welcome begins what the worker is told.
func (s *session) welcome() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.control = append(s.control, s.d.welcome(s))
		s.welcomed = true
		s.all = true
		s.settled = time.Now().Add(s.d.cfg.SettleTimeout)
		s.startSending()
	}
}

// SetPeriod sets how often the worker must send heartbeats, and tells it.
func (s *session) SetPeriod(period time.Duration) {
	s.period.Store(int64(period))
	s.SettingsChanged()
}

// SettingsChanged sends Welcome again, with the changed settings.
func (s *session) SettingsChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	// One that is yet to come is made of what is then.
	if !s.ended && s.welcomed {
		s.control = append(s.control, s.d.welcome(s))
		s.startSending()
	}
}

// tryShard sets the shard that the session is about to be attached to.
func (s *session) tryShard(to *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shard = to
}

// Bind attaches the session in an epoch of the store. It returns false if the
// session has ended.
func (s *session) Bind(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.epoch = epoch
	return true
}

// AssignmentsChanged makes the sender compare assignments with what the worker was
// sent. It returns false if the session has ended.
func (s *session) AssignmentsChanged(keys []string) bool {
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

// ObjectsAppeared makes the sender look at assignments again that miss an object.
func (s *session) ObjectsAppeared() {
	s.book.Lock()
	waiting := s.sent.Waiting()
	s.book.Unlock()
	select {
	case <-s.greeted:
		if len(waiting) == 0 {
			return
		}
	default:
	}
	s.AssignmentsChanged(waiting)
}

// goOn is called when the complete set has waited for long enough.
func (s *session) goOn() { s.AssignmentsChanged(nil) }

// startSending sees to it that a sender is at work. The caller holds mu.
func (s *session) startSending() {
	if s.sending == nil {
		s.sending = make(chan struct{})
		s.d.calls.Go(s.send)
	}
}

// utterance is what a sender says next.
type utterance struct {
	control      []*dispatcherv1.SessionResponse
	acknowledged uint64
	beat         bool
	all          bool
	dirty        []string
}

// next takes all there is to say. It returns false, and the sender is at work
// no more, if there is nothing.
func (s *session) next() (utterance, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := utterance{control: s.control, acknowledged: s.acknowledged, beat: s.beat}
	s.control, s.acknowledged, s.beat = nil, 0, false
	if !s.ended && !s.parked {
		u.all, s.all = s.all, false
		u.dirty = slices.Collect(maps.Keys(s.dirty))
		clear(s.dirty)
		s.seen = s.news
	}
	if u.control == nil && u.acknowledged == 0 && !u.beat && !u.all && len(u.dirty) == 0 {
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
			s.End(ending(err), nil)
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
	if u.beat {
		if err := s.stream.Send(&dispatcherv1.SessionResponse{
			Message: &dispatcherv1.SessionResponse_HeartbeatAck{HeartbeatAck: &dispatcherv1.HeartbeatAck{}},
		}); err != nil {
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
	began := time.Now()
	messages, traced, err := s.complete()
	if messages == nil || err != nil {
		return err
	}
	close(s.greeted)
	if err := s.tell(messages); err != nil {
		return err
	}
	s.traceSent(traced, began)
	s.shard.SettleNode(s.node, statuses.Keep)
	return nil
}

// complete returns the complete set, nil if it is to wait, and which of its tasks
// are traced. The snapshot is taken with the book in hand: whoever then asks what
// waits (ObjectsAppeared) either is told so, or had it in this snapshot.
func (s *session) complete() (messages []*dispatcherv1.Assignments, traced []*dispatcherv1.AssignedTask, err error) {
	s.book.Lock()
	defer s.book.Unlock()
	snap := s.d.store.Snapshot()
	if snap.Epoch() != s.epoch {
		return nil, nil, errRestored
	}
	offers := s.d.assignments.Offers(snap, s.node)
	if slices.ContainsFunc(offers, func(o assignments.Offer) bool { return o.Lags }) && s.park() {
		return nil, nil, nil
	}
	messages = s.sent.Complete(offers, s.d.messageLimits())
	return messages, s.sent.TakeTraced(), nil
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
	began := time.Now()
	c, err := s.changes(keys)
	if err != nil {
		return err
	}
	if err := s.tell(c.messages); err != nil {
		return err
	}
	s.traceSent(c.traced, began)
	now := time.Now()
	for _, at := range c.news {
		s.d.metrics.sent.Observe(max(0, now.Sub(time.UnixMilli(at)).Seconds()))
	}
	// The worker knows, so what is left of assignments that are gone may go.
	s.shard.Settle(c.gone, statuses.Keep)
	return nil
}

// changes are what a worker is to be told.
type changes struct {
	messages []*dispatcherv1.Assignments
	// gone are the keys of assignments that are no more.
	gone []string
	// news holds when the tasks were assigned that it has not been told of yet.
	news []int64
	// traced are those of the tasks that are new and traced.
	traced []*dispatcherv1.AssignedTask
}

// changes returns what is to be said about assignments. Of the snapshot the same
// holds as in complete.
func (s *session) changes(keys []string) (c changes, err error) {
	slices.Sort(keys)
	s.book.Lock()
	defer s.book.Unlock()
	snap := s.d.store.Snapshot()
	if snap.Epoch() != s.epoch {
		return changes{}, errRestored
	}
	offers := make([]assignments.Offer, len(keys))
	for i, key := range keys {
		offers[i] = s.d.assignments.Offer(snap, key)
		if offers[i].Version == 0 {
			c.gone = append(c.gone, key)
		}
	}
	c.messages = s.sent.Changes(offers, s.d.messageLimits(), time.Now())
	c.news = s.sent.TakeNew()
	c.traced = s.sent.TakeTraced()
	return c, nil
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

// messageLimits returns the bounds of a message of assignments.
func (d *Daemon) messageLimits() assignments.Limits {
	return assignments.Limits{Objects: d.cfg.MessageTasks, Bytes: d.cfg.MessageBytes}
}
