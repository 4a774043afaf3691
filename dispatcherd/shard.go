package dispatcherd

import (
	"container/heap"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/retry"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/store"
)

// shard works on the nodes of one shard for as long as this replica owns it.
type shard struct {
	number   int
	d        *Daemon
	log      *zap.Logger
	statuses *statuses.Writer

	mu    sync.Mutex
	nodes map[string]*node
	due   deadlines
	// dirty holds the nodes whose records are to be looked at.
	dirty map[string]struct{}
	// forgiven is the resumption of this process that the nodes were last
	// forgiven for, and ours the one since which it is known that the shard is
	// still this replica's.
	forgiven, ours time.Time
	closed         bool
	// wake has room for one: it says that there is something to look at.
	wake chan struct{}
}

func newShard(d *Daemon, number int) *shard {
	s := &shard{
		number: number, d: d, log: d.log, nodes: map[string]*node{}, dirty: map[string]struct{}{},
		wake: make(chan struct{}, 1),
	}
	s.forgiven = d.pulse.since(time.Now())
	s.ours = s.forgiven
	s.statuses = statuses.NewWriter(statuses.Config{
		Store: d.store, Tables: d.tables, Confirmed: s.sure, Metrics: d.statusMetrics, Logger: d.log,
	})
	return s
}

// gain looks at all that the records say of the shard's nodes.
func (s *shard) gain(snap *store.Snapshot) {
	for e := range s.d.tables.NodeStates.Scan(snap, "") {
		if store.ShardOf(e.Key) == s.number {
			s.observe(e.Key, e.Value)
		}
	}
	for e := range s.d.tables.Nodes.Scan(snap, "") {
		if e.Value.Removed && store.ShardOf(e.Key) == s.number {
			s.look(e.Key)
		}
	}
}

// observe takes note of a node's record, nil if it is gone.
func (s *shard) observe(id string, record *recordv1.NodeState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, known := s.nodes[id]
	now := time.Now()
	switch {
	case record == nil:
		if known && n.session == nil {
			s.forget(n)
		}
		return
	case !known:
		n = newNode(id)
		n.life = expect(now, s.d.cfg)
		n.rememberRecord(record, now, s.d.cfg)
		s.nodes[id] = n
		fallthrough
	case n.life.phase == expected:
		// Another dispatcher may have judged it a moment before it gave it away.
		if record.State == musterv1.NodeStatus_DOWN {
			since := time.UnixMilli(record.Since)
			if since.After(now) {
				// This clock has been set back, or another's is ahead.
				since = now
			}
			n.life = lieDown(since, s.d.cfg)
			n.life.reason = record.Message
		}
	}
	s.touch(n)
}

// look has a node's records compared with what they should be.
func (s *shard) look(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark(id)
}

// attach makes a session its node's one, unless another worker is that node. The
// worker's own session before it ends.
func (s *shard) attach(sess *session, hello *dispatcherv1.Hello) error {
	description := hello.GetDescription()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errNotOwned
	}
	snap := s.d.store.Snapshot()
	if s.removed(snap, sess.node) {
		return removedError(sess.node)
	}
	if hello.GetTasks() > 0 && s.lost(snap, sess.node) {
		return lostError(sess.node, hello.GetTasks())
	}
	n, known := s.nodes[sess.node]
	if !known {
		n = newNode(sess.node)
	} else if err := n.contest(sess, description.GetHostname(), time.Now(), s.d.cfg); err != nil {
		s.touch(n)
		return err
	}
	if !n.pacer.sessions.Allow() {
		return tooOften(n.id)
	}
	if !sess.bind(s, snap.Epoch()) {
		return calls.ErrStopping
	}
	s.nodes[n.id] = n
	// Under the lock, so that a change of the settings is either in it or finds the
	// session.
	period := s.d.period()
	s.d.connected.Add(1)
	if old := n.session; old != nil {
		s.part(n)
		old.finish(status.Errorf(codes.Aborted, "replaced by another session of node %s (instance %s)", n.id, sess.instance), nil)
		if old.instance != sess.instance {
			s.log.Warn("worker has replaced another one of the same node, which was not heard any more",
				zap.String("node", n.id), zap.String("instance", sess.instance), zap.String("replaced", old.instance))
		}
	}
	n.session, n.description, n.address, n.instance = sess, description, sess.address, sess.instance
	s.pace(n, period)
	return nil
}

// pace sets how often a connected node is to be heard, and tells its worker if that has
// been bidden welcome already. The node has its whole patience from now on, for the
// worker has yet to learn of it.
func (s *shard) pace(n *node, period time.Duration) {
	n.session.period.Store(int64(period))
	n.life = connect(time.Now(), period, s.d.cfg)
	n.session.welcomeAnew()
	s.touch(n)
}

// settingsChanged tells the workers of a new heartbeat period.
func (s *shard) settingsChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	period := s.d.period()
	for _, n := range s.nodes {
		if n.session != nil && n.session.period.Load() != int64(period) {
			s.pace(n, period)
		}
	}
}

// repace tells one worker of a new heartbeat period.
func (s *shard) repace(sess *session, period time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[sess.node]; n != nil && n.session == sess {
		s.pace(n, period)
	}
}

// detach notes that a session has ended. One that was replaced says nothing
// of its node.
func (s *shard) detach(sess *session, end func(liveness) liveness) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[sess.node]
	if n == nil || n.session != sess {
		return
	}
	s.part(n)
	if s.closed {
		return // its next dispatcher judges it
	}
	n.life = end(n.life)
	if n.life.phase == closed {
		n.remember(sess.instance, sess.address, time.Now(), s.d.cfg)
	}
	s.touch(n)
}

// part parts a node from its session, which has ended or is about to.
func (s *shard) part(n *node) {
	n.session = nil
	s.d.connected.Add(-1)
}

// describe notes what a worker says anew of its node.
func (s *shard) describe(sess *session, description *musterv1.NodeDescription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[sess.node]; n != nil && n.session == sess {
		n.description = description
		s.touch(n)
	}
}

// session returns a node's session, nil if it has none.
func (s *shard) session(node string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[node]; n != nil {
		return n.session
	}
	return nil
}

// sessions returns all sessions.
func (s *shard) sessions() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*session
	for _, n := range s.nodes {
		if n.session != nil {
			all = append(all, n.session)
		}
	}
	return all
}

// assignmentsChanged passes on which of a node's assignments to look at.
func (s *shard) assignmentsChanged(node string, keys []string) {
	s.mu.Lock()
	n := s.nodes[node]
	var sess *session
	alone, giveUp := true, statuses.Keep
	switch {
	case n != nil:
		sess = n.session
		alone = n.life.phase == down || n.life.phase == orphaned
		if n.life.phase == orphaned {
			giveUp = statuses.NodeDown
		}
	case s.removed(s.d.store.Snapshot(), node):
		giveUp = statuses.NodeRemoved
	}
	s.mu.Unlock()
	// A worker that is away for a moment is told when it is back; what it missed
	// is settled then, or when it is down.
	if (sess == nil || !sess.mark(keys)) && alone {
		s.statuses.Settle(keys, giveUp)
	}
}

// close ends all sessions: their workers are to go to the new owner.
func (s *shard) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, sess := range s.sessions() {
		sess.finish(errShardLost, s.d.redirect(s.number))
	}
}

// run judges the shard's nodes and keeps their records until ctx ends.
func (s *shard) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	attempts := retry.NewBackoff()
	for ctx.Err() == nil {
		// A judgement that cannot be written would be written later, when it may not
		// hold any more. Its error is that ctx has ended.
		if s.d.store.Contact(ctx) != nil {
			return nil
		}
		if !s.confirm(ctx) {
			select {
			case <-ctx.Done():
			case <-time.After(confirmPause):
			}
			continue
		}
		verdicts, next := s.judge(time.Now(), s.d.store.Snapshot())
		if len(verdicts) > 0 {
			if s.execute(ctx, verdicts) {
				attempts.Reset()
			} else {
				attempts.Wait(ctx)
			}
			continue
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
	}
	return nil
}

// confirmPause is between two questions whose the shard is. If it is another's, this
// replica hears of that in a moment, and asks no more.
const confirmPause = 100 * time.Millisecond

// confirm makes sure that the shard is still this replica's after a time in which
// its process did not run: its workers have been with another dispatcher since
// then, and that their connections have ended here says nothing of them.
func (s *shard) confirm(ctx context.Context) bool {
	now := time.Now()
	resumed := s.d.pulse.since(now)
	switch {
	case s.confirmed(resumed):
		return true
	case s.d.pulse.broken(now):
		// It is yet to be noted since when this process runs again.
		return false
	}
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	held, err := s.d.manager.Holds(bounded, s.number)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("nodes are not judged before it is known whose they are", zap.Int("shard", s.number), zap.Error(err))
	}
	if err != nil || !held {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ours = resumed
	for id := range s.nodes {
		s.mark(id)
	}
	return true
}

// confirmed reports whether the shard is known to be this replica's although its
// process did not run until then.
func (s *shard) confirmed(resumed time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !resumed.After(s.ours)
}

// sure reports whether the shard is known to be this replica's now. If it is not, that
// is found out, and all nodes are looked at then.
func (s *shard) sure() bool {
	if s.confirmed(s.d.pulse.since(time.Now())) {
		return true
	}
	s.poke()
	return false
}

// idle is how long a shard without deadlines sleeps.
const idle = time.Hour

// judge lets time pass for the nodes that are due, and decides which records
// are to change. It returns when to look again.
func (s *shard) judge(now time.Time, snap *store.Snapshot) ([]verdict, time.Time) {
	times := 1.0
	if s.overdue(now) {
		times = s.d.hearing.lateness(now)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := s.d.pulse.since(now); since.After(s.forgiven) {
		s.forgiven = since
		for _, n := range s.nodes {
			n.life = n.life.forgive(now, s.d.cfg)
			s.place(n)
		}
	}
	for len(s.due) > 0 && !s.due[0].due.After(now) {
		n := s.due[0]
		if n.pacer.due(now) {
			s.touch(n)
			continue
		}
		before := n.life.phase
		n.life = n.heard()
		if !n.life.deadline().After(now) && n.life.extended(times, s.d.cfg).After(now) {
			s.placeAt(n, now.Add(hearingPeriod))
			continue
		}
		n.life = n.life.at(now, s.d.cfg)
		s.place(n)
		if n.rival.what != "" && now.After(n.rival.until) {
			n.rival = rival{}
			s.mark(n.id)
		}
		if n.life.phase == before {
			continue
		}
		s.mark(n.id)
		if n.session != nil {
			n.session.finish(status.Errorf(codes.DeadlineExceeded, "node %s was %s", n.id, n.life.reason), nil)
			s.part(n)
		}
	}
	var verdicts []verdict
	for _, id := range slices.Sorted(maps.Keys(s.dirty)) {
		if v, ok := s.decide(id, now, snap); ok {
			verdicts = append(verdicts, v)
		}
	}
	clear(s.dirty)
	if len(s.due) == 0 {
		return verdicts, now.Add(idle)
	}
	return verdicts, s.due[0].due
}

// overdue reports whether there is a node that has not been heard in time.
func (s *shard) overdue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.due) > 0 && !s.due[0].due.After(now) && slices.ContainsFunc(s.due, func(n *node) bool {
		deadline := n.heard().deadline()
		return !deadline.IsZero() && !deadline.After(now)
	})
}

// touch has a node looked at, by its records and by its deadline.
func (s *shard) touch(n *node) {
	s.place(n)
	s.mark(n.id)
}

func (s *shard) mark(id string) {
	s.dirty[id] = struct{}{}
	s.poke()
}

func (s *shard) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// place puts a node where its deadline belongs.
func (s *shard) place(n *node) { s.placeAt(n, n.deadline()) }

func (s *shard) placeAt(n *node, due time.Time) {
	n.due = due
	switch {
	case n.due.IsZero() && n.place >= 0:
		heap.Remove(&s.due, n.place)
	case n.due.IsZero():
	case n.place >= 0:
		heap.Fix(&s.due, n.place)
	default:
		heap.Push(&s.due, n)
	}
}

func (s *shard) forget(n *node) {
	if n.place >= 0 {
		heap.Remove(&s.due, n.place)
	}
	delete(s.nodes, n.id)
}

// removed reports whether an operator has removed the node.
func (s *shard) removed(r store.Reader, id string) bool {
	e, ok := s.d.tables.Nodes.Get(r, id)
	return ok && e.Value.Removed
}

// lost reports whether the store shows no trace of what a node's worker remembers:
// neither the node nor any service.
func (s *shard) lost(snap *store.Snapshot, id string) bool {
	if _, ok := s.d.tables.NodeStates.Get(snap, id); ok {
		return false
	}
	for range s.d.tables.Services.Scan(snap, "") {
		return false
	}
	return true
}

// standing returns what a node's record should say now; that it is to stay as it
// is if nothing is known of the node.
func (s *shard) standing(id string) standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[id]; n != nil {
		n.judge(s.d.schemas)
		return n.standing()
	}
	return standing{}
}

// census counts the nodes by the state that their records show or are about
// to.
func (s *shard) census(count map[musterv1.NodeStatus_State]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		state, _ := n.life.verdict()
		if state == musterv1.NodeStatus_STATE_UNSPECIFIED {
			state = musterv1.NodeStatus_UNKNOWN
		}
		count[state]++
	}
}
