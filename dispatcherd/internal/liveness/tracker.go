// Package liveness decides whether nodes are alive, and writes their records.
//
// A [Tracker] tracks the nodes of one shard. Pure functions decide what becomes of
// a node (life.go), which worker it is (conflict.go) and what its record says
// (record.go). One goroutine checks the nodes that are due or changed (check.go)
// and writes the records that must change (transition.go). The trackers of a
// dispatcher share a [PauseDetector], a [HeartbeatLag] and [Periods].
//
// A tracker knows sessions and the writer of statuses only as interfaces.
//
// Lock order: HeartbeatLag, then Tracker, then whatever a [Session] locks. A
// session must not hold its locks while it calls a tracker. Ownership and the
// StatusWriter call nothing back.
package liveness

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/payload"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// ErrNotOwned says that a shard was given away a moment ago.
var ErrNotOwned = errors.New("shard is not owned")

// Worker identifies the worker process of a session.
type Worker struct {
	Node, Instance string
	// Address is the host that the worker connected from.
	Address string
	// Begun is when the session began.
	Begun time.Time
}

// Session is the session of a node's worker. Its methods do not block.
type Session interface {
	Worker() Worker
	// LastHeard returns when the worker was last heard.
	LastHeard() time.Time
	// Bind attaches the session in an epoch of the store. It returns false if the
	// session has ended.
	Bind(epoch uint64) bool
	// SetPeriod sets how often the worker must send heartbeats.
	SetPeriod(time.Duration)
	// SettingsChanged tells the worker about changed settings of its node.
	SettingsChanged()
	// AssignmentsChanged makes the session compare assignments with what the worker
	// was sent. It returns false if the session has ended.
	AssignmentsChanged(keys []string) bool
	// NetworksChanged makes the session compare networks with what the worker was sent.
	NetworksChanged(ids []string)
	// ObjectsChanged makes it look again at assignments that miss an object, or refer to
	// one of those that have changed.
	ObjectsChanged(refs []assignments.Ref)
	// DispatchersChanged tells the worker which dispatchers there are.
	DispatchersChanged()
	// End ends the session with an error, after a last message if it is not nil.
	End(err error, last *dispatcherv1.SessionResponse)
}

// StatusWriter removes the statuses of tasks, or gives tasks up.
type StatusWriter interface {
	Settle(keys []string, giveUp statuses.GiveUp)
	SettleNode(node string, giveUp statuses.GiveUp)
}

// Store is the part of the store that trackers use.
type Store interface {
	Snapshot() *store.Snapshot
	// WaitAvailable blocks while the store is unavailable.
	WaitAvailable(ctx context.Context) error
	UpdateAll(ctx context.Context, updates []func(*store.Tx) error) []error
}

// Config is what the trackers of a dispatcher have in common.
type Config struct {
	Timeouts Timeouts
	Store    Store
	Tables   *state.Tables
	Schemas  *payload.Schemas
	Pauses   *PauseDetector
	Lag      *HeartbeatLag
	Periods  *Periods
	Metrics  *Metrics
	Logger   *zap.Logger
}

// Tracker tracks the nodes of one shard.
type Tracker struct {
	cfg       Config
	shard     int
	ownership *Ownership
	statuses  StatusWriter
	log       *zap.Logger
	pacer     pacer
	// wake has a buffer of one. It is filled when there is a node to check.
	wake chan struct{}

	mu    sync.Mutex
	nodes map[string]*node
	due   deadlines
	// changed holds the nodes whose records must be compared.
	changed map[string]struct{}
	// resumed is when this process last resumed after a pause that restarted the
	// timeouts.
	resumed time.Time
	closed  bool
}

// NewTracker returns a tracker without nodes. It must be closed.
func NewTracker(cfg Config, shard int, ownership *Ownership, w StatusWriter) *Tracker {
	t := &Tracker{
		cfg: cfg, shard: shard, ownership: ownership, statuses: w, log: cfg.Logger, pacer: newPacer(),
		nodes: map[string]*node{}, changed: map[string]struct{}{}, wake: make(chan struct{}, 1),
		resumed: cfg.Pauses.runningSince(time.Now()),
	}
	cfg.Lag.add(t)
	return t
}

// Load reads the records of the shard's nodes.
func (t *Tracker) Load(snap *store.Snapshot) {
	for e := range t.cfg.Tables.NodeStates.Scan(snap, "") {
		if store.ShardOf(e.Key) == t.shard {
			t.NodeStateChanged(e.Key, e.Value)
		}
	}
	for e := range t.cfg.Tables.Nodes.Scan(snap, "") {
		if e.Value.Removed && store.ShardOf(e.Key) == t.shard {
			t.recheck(e.Key)
		}
	}
}

// Close ends all sessions.
func (t *Tracker) Close(err error, last *dispatcherv1.SessionResponse) {
	t.cfg.Lag.remove(t)
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.EndSessions(err, last)
}

// EndSessions ends all sessions that there are.
func (t *Tracker) EndSessions(err error, last *dispatcherv1.SessionResponse) {
	for _, s := range t.sessions() {
		s.End(err, last)
	}
}

// NodeStateChanged notes that a node's record changed. It is nil if it is gone.
func (t *Tracker) NodeStateChanged(id string, record *recordv1.NodeState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, known := t.nodes[id]
	now := time.Now()
	switch {
	case record == nil:
		if known && n.session == nil {
			t.forget(n)
		}
		return
	case !known:
		n = newNode(id)
		n.life = expect(now, t.cfg.Timeouts)
		n.rememberRecord(record, now, t.cfg.Timeouts)
		t.nodes[id] = n
		fallthrough
	case n.life.phase == expected:
		// Another dispatcher may have written this just before it gave the shard away.
		if record.State == musterv1.NodeStatus_DOWN {
			since := time.UnixMilli(record.Since)
			if since.After(now) {
				// This clock was set back, or the other one is ahead.
				since = now
			}
			n.life = downSince(since, t.cfg.Timeouts)
			n.life.reason = record.Message
		}
	}
	t.touch(n)
}

// NodeChanged notes that an operator changed a node.
func (t *Tracker) NodeChanged(id string) {
	t.recheck(id)
	if s := t.session(id); s != nil {
		s.SettingsChanged()
	}
}

// ClusterChanged notes that the cluster's settings changed.
func (t *Tracker) ClusterChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	period := t.cfg.Periods.current()
	for _, n := range t.nodes {
		if n.session != nil && n.period != period {
			t.setPeriod(n, period)
		}
	}
}

// ObjectsChanged notes that objects have changed, or that there are new ones that tasks may
// refer to.
func (t *Tracker) ObjectsChanged(refs []assignments.Ref) {
	for _, s := range t.sessions() {
		s.ObjectsChanged(refs)
	}
}

// DispatchersChanged notes that a dispatcher has joined or left.
func (t *Tracker) DispatchersChanged() {
	for _, s := range t.sessions() {
		s.DispatchersChanged()
	}
}

// AssignmentsChanged notes that assignments of a node changed.
func (t *Tracker) AssignmentsChanged(id string, keys []string) {
	t.mu.Lock()
	n := t.nodes[id]
	var s Session
	gone, giveUp := true, statuses.Keep
	switch {
	case n != nil:
		s = n.session
		gone = n.life.phase == down || n.life.phase == orphaned
		if n.life.phase == orphaned {
			giveUp = statuses.NodeDown
		}
	case t.removed(t.cfg.Store.Snapshot(), id):
		giveUp = statuses.NodeRemoved
	}
	t.mu.Unlock()
	// A worker that is away for a moment gets the changes when it returns. The statuses
	// of tasks whose changes it missed are settled then, or when the node is down.
	if (s == nil || !s.AssignmentsChanged(keys)) && gone {
		t.statuses.Settle(keys, giveUp)
	}
}

// NetworksChanged notes that networks of a node changed.
func (t *Tracker) NetworksChanged(id string, networks []string) {
	if s := t.session(id); s != nil {
		s.NetworksChanged(networks)
	}
}

// Count counts the nodes by the state that their records show, or will show.
func (t *Tracker) Count(count map[musterv1.NodeStatus_State]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		state, _ := n.life.state()
		if state == musterv1.NodeStatus_STATE_UNSPECIFIED {
			state = musterv1.NodeStatus_UNKNOWN
		}
		count[state]++
	}
}

// session returns a node's session, nil if it has none.
func (t *Tracker) session(id string) Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil {
		return n.session
	}
	return nil
}

func (t *Tracker) sessions() []Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Session
	for _, n := range t.nodes {
		if n.session != nil {
			all = append(all, n.session)
		}
	}
	return all
}

// silences appends the silence of each node that has a session, or had one a moment ago, in
// heartbeat periods. Pauses of this process do not count.
func (t *Tracker) silences(to []float64, now time.Time) []float64 {
	runningSince := t.cfg.Pauses.runningSince(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		switch {
		case n.session != nil:
			heard := n.heard().hear(runningSince).heard
			to = append(to, now.Sub(heard).Seconds()/n.period.Seconds())
		case n.life.phase == closed:
			to = append(to, float64(t.cfg.Timeouts.HeartbeatMisses))
		}
	}
	return to
}

// removed reports whether an operator has removed the node.
func (t *Tracker) removed(r store.Reader, id string) bool {
	e, ok := t.cfg.Tables.Nodes.Get(r, id)
	return ok && e.Value.Removed
}
