package liveness

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/store"
)

// writeTimeout limits a write of nodes' records. After it the decision is made
// again, because it may be outdated.
const writeTimeout = 5 * time.Second

// nodeTransition is what must be done about one node.
type nodeTransition struct {
	node string
	// write says that the record must show the node's status, and remove that it
	// must go.
	write, remove bool
	// settle says that statuses without an assignment can be removed, because no
	// worker has to be told first. giveUp says whether the other tasks are orphaned.
	settle bool
	giveUp statuses.GiveUp
}

// decide compares a node's record with the node's status. It returns false if
// nothing has to be done. The caller holds the lock.
func (t *Tracker) decide(id string, now time.Time, snap *store.Snapshot) (nodeTransition, bool) {
	transition := nodeTransition{node: id}
	n := t.nodes[id]
	var have *recordv1.NodeState
	if e, ok := t.cfg.Tables.NodeStates.Get(snap, id); ok {
		have = e.Value
	}
	if t.removed(snap, id) {
		if n != nil {
			if n.session != nil {
				n.session.End(removedError(id), nil)
				t.detach(n)
			}
			t.forget(n)
		}
		transition.remove, transition.settle, transition.giveUp = have != nil, true, statuses.NodeRemoved
		return transition, true
	}
	if n == nil {
		return transition, false
	}
	transition.write = t.mustWrite(n, have, now, snap)
	switch n.life.phase {
	case down:
		transition.settle = true
	case orphaned:
		transition.settle, transition.giveUp = true, statuses.NodeDown
	}
	return transition, transition.write || transition.settle
}

// mustWrite reports whether a node's record must be written now. What the worker
// reports too often is postponed.
func (t *Tracker) mustWrite(n *node, have *recordv1.NodeState, now time.Time, snap *store.Snapshot) bool {
	canWait := n.status().sameLife(have)
	if canWait && now.Before(n.postponed) {
		// To compare the description costs time too.
		return false
	}
	t.checkDescription(n, snap)
	if n.status().record(have, now) == have {
		return false
	}
	if canWait && t.pacer.postpones(n, now) {
		t.place(n)
		return false
	}
	return true
}

// execute carries transitions out. It returns false if records were not written.
// Their nodes are checked again then.
func (t *Tracker) execute(ctx context.Context, transitions []nodeTransition) bool {
	var writes []*nodeWrite
	var updates []func(*store.Tx) error
	for _, transition := range transitions {
		if transition.settle {
			t.statuses.SettleNode(transition.node, transition.giveUp)
		}
		if transition.write || transition.remove {
			w := &nodeWrite{nodeTransition: transition, tracker: t}
			writes = append(writes, w)
			updates = append(updates, w.apply)
		}
	}
	if len(updates) == 0 {
		return true
	}
	failed, last := 0, error(nil)
	all := true
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for i, err := range t.cfg.Store.UpdateAll(bounded, updates) {
		w := writes[i]
		if err == nil && !w.held {
			w.report()
			continue
		}
		all = false
		if err != nil {
			failed, last = failed+1, fmt.Errorf("node %s: %w", w.node, err)
		}
		t.recheck(w.node)
	}
	if failed > 0 && ctx.Err() == nil {
		t.log.Warn("failed to write node states; retrying", zap.Int("nodes", failed), zap.Error(last))
	}
	return all
}

// nodeWrite changes one node's record. It may run several times, each time on newer
// state.
type nodeWrite struct {
	nodeTransition
	tracker *Tracker
	// held says that nothing was written because the shard's owner is not certain.
	held          bool
	before, after *recordv1.NodeState
	status        nodeStatus
}

func (w *nodeWrite) apply(tx *store.Tx) error {
	w.before, w.after = nil, nil
	if w.held = !w.tracker.ownership.Confirmed(); w.held {
		return nil
	}
	states := w.tracker.cfg.Tables.NodeStates
	if e, ok := states.Get(tx, w.node); ok {
		w.before = e.Value
	}
	if w.remove {
		if w.before != nil {
			states.Delete(tx, w.node)
		}
		return nil
	}
	// The worker may have come back since the decision.
	w.status = w.tracker.status(w.node)
	if w.after = w.status.record(w.before, time.Now()); w.after != w.before {
		states.Put(tx, w.node, w.after)
	}
	return nil
}

// report logs and counts a change of state.
func (w *nodeWrite) report() {
	before, after := w.before.GetState(), w.after.GetState()
	if before == after {
		return
	}
	reason := w.status.reason()
	if w.remove {
		reason = "removed by an operator"
	}
	w.tracker.cfg.Metrics.transitions.WithLabelValues(StateName(after)).Inc()
	w.tracker.log.Info("node state changed",
		zap.String("node", w.node), zap.String("from", StateName(before)), zap.String("to", StateName(after)),
		zap.String("reason", reason))
}

// status returns what a node's record must say now. The record of an unknown node
// must not change.
func (t *Tracker) status(id string) nodeStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil {
		t.checkDescription(n, t.cfg.Store.Snapshot())
		return n.status()
	}
	return nodeStatus{}
}
