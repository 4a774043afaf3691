package liveness

import (
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/internal/store"
)

// Ending is how a session ends.
type Ending uint8

const (
	// Closed sessions ended without a goodbye.
	Closed Ending = iota
	// Restarting workers will be back.
	Restarting
	// Left workers will not.
	Left
)

// Attach makes a session its node's session, and ends an earlier session of the
// same worker process. The error is a *ContestedError while it is not decided which
// worker is the node, ErrNotOwned if the tracker is closed, and otherwise the
// refusal of the worker.
func (t *Tracker) Attach(s Session, hello *dispatcherv1.Hello) error {
	description, w := hello.GetDescription(), s.Worker()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrNotOwned
	}
	now, snap := time.Now(), t.cfg.Store.Snapshot()
	if t.removed(snap, w.Node) {
		return removedError(w.Node)
	}
	if hello.GetTasks() > 0 && t.lost(snap, w.Node) {
		return lostError(w.Node, hello.GetTasks())
	}
	n, known := t.nodes[w.Node]
	if !known {
		n = newNode(w.Node)
	} else if err := n.contest(w, description.GetHostname(), now, t.cfg.Pauses.runningSince(now), t.cfg.Timeouts); err != nil {
		t.touch(n)
		return err
	}
	if t.pacer.sessions.Take(n.id) > 0 {
		return tooManySessionsError(n.id)
	}
	if !s.Bind(snap.Epoch()) {
		return calls.ErrStopping
	}
	t.nodes[n.id] = n
	// The lock is held, so a change of the settings is either part of this period or
	// finds the session.
	period := t.cfg.Periods.current()
	t.cfg.Periods.connected.Add(1)
	if old := n.session; old != nil {
		t.detach(n)
		old.End(status.Errorf(codes.Aborted, "replaced by another session of node %s (instance %s)", n.id, w.Instance), nil)
		if replaced := old.Worker().Instance; replaced != w.Instance {
			t.log.Warn("worker replaced another worker of the same node that was no longer heard",
				zap.String("node", n.id), zap.String("instance", w.Instance), zap.String("replaced", replaced))
		}
	}
	n.claimed, n.predecessor = time.Time{}, predecessor{}
	n.session, n.description, n.address, n.instance = s, description, w.Address, w.Instance
	t.setPeriod(n, period)
	return nil
}

// Detach notes that a session has ended. It does nothing if the session was
// replaced.
func (t *Tracker) Detach(s Session, how Ending) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.attached(s)
	if n == nil {
		return
	}
	t.detach(n)
	if t.closed {
		return // the next dispatcher decides
	}
	now := time.Now()
	if how == Closed {
		n.life = n.life.closeStream(now, t.cfg.Timeouts)
	} else {
		n.life = n.life.goodbye(now, how == Restarting, t.cfg.Timeouts)
	}
	if n.life.phase == closed {
		w := s.Worker()
		n.remember(w.Instance, w.Address, now, t.cfg.Timeouts)
	}
	t.touch(n)
}

// Describe notes a new description of a worker's node.
func (t *Tracker) Describe(s Session, description *musterv1.NodeDescription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.attached(s); n != nil {
		n.description = description
		t.touch(n)
	}
}

// AdjustPeriod sets a worker's heartbeat period again if it is no longer right.
func (t *Tracker) AdjustPeriod(s Session, period time.Duration) {
	current := t.cfg.Periods.current()
	if !differs(period, current) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.attached(s); n != nil {
		t.setPeriod(n, current)
	}
}

// setPeriod sets a worker's heartbeat period. The deadline restarts now, because
// the worker does not know the new period yet.
func (t *Tracker) setPeriod(n *node, period time.Duration) {
	n.period = period
	n.life = connect(time.Now(), period, t.cfg.Timeouts)
	n.session.SetPeriod(period)
	t.touch(n)
}

// attached returns the node whose session s is, nil if there is none.
func (t *Tracker) attached(s Session) *node {
	if n := t.nodes[s.Worker().Node]; n != nil && n.session == s {
		return n
	}
	return nil
}

// detach removes the session of a node. It has ended, or will.
func (t *Tracker) detach(n *node) {
	n.session = nil
	t.cfg.Periods.connected.Add(-1)
}

// lost reports whether the store has lost everything that a node's worker
// remembers: it contains neither the node nor any service.
func (t *Tracker) lost(snap *store.Snapshot, id string) bool {
	if _, ok := t.cfg.Tables.NodeStates.Get(snap, id); ok {
		return false
	}
	for range t.cfg.Tables.Services.Scan(snap, "") {
		return false
	}
	return true
}
