package dispatcherd

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/store"
)

// writeTimeout bounds a write of nodes' records. One that takes longer is decided
// anew: what it would say may have been overtaken meanwhile.
const writeTimeout = 5 * time.Second

// verdict is what is to be done about one node.
type verdict struct {
	node string
	// write says that the node's record is to say how the node is now, remove that
	// it is to go. Neither: it stays.
	write, remove bool
	// settle says that statuses of assignments that are gone may go, for there
	// is no worker to be told first. giveUp says whether the node's other tasks
	// are orphaned.
	settle bool
	giveUp statuses.GiveUp
}

// decide compares a node's records with what they should be. It returns false
// if all is well.
func (s *shard) decide(id string, now time.Time, snap *store.Snapshot) (verdict, bool) {
	v := verdict{node: id}
	n := s.nodes[id]
	var have *recordv1.NodeState
	if e, ok := s.d.tables.NodeStates.Get(snap, id); ok {
		have = e.Value
	}
	if s.removed(snap, id) {
		if n != nil {
			if n.session != nil {
				n.session.finish(removedError(id), nil)
				s.part(n)
			}
			s.forget(n)
		}
		v.remove, v.settle, v.giveUp = have != nil, true, statuses.NodeRemoved
		return v, true
	}
	if n == nil {
		return v, false
	}
	v.write = s.changed(n, have, now)
	switch n.life.phase {
	case down:
		v.settle = true
	case orphaned:
		v.settle, v.giveUp = true, statuses.NodeDown
	}
	return v, v.write || v.settle
}

// changed reports whether a node's record must be written now. News that the
// worker sends too often waits.
func (s *shard) changed(n *node, have *recordv1.NodeState, now time.Time) bool {
	waits := n.standing().sameLife(have)
	if waits && now.Before(n.pacer.until) {
		// The description is not even looked at: that costs, too.
		return false
	}
	n.judge(s.d.schemas)
	if n.standing().record(have, now) == have {
		return false
	}
	if waits && n.pacer.postpones(now) {
		s.place(n)
		return false
	}
	return true
}

// execute carries verdicts out. It returns false if records could not be
// written; their nodes are then looked at again.
func (s *shard) execute(ctx context.Context, verdicts []verdict) bool {
	var writes []func(*store.Tx) error
	var writers []*nodeWrite
	for _, v := range verdicts {
		if v.settle {
			s.statuses.SettleNode(v.node, v.giveUp)
		}
		if v.write || v.remove {
			w := &nodeWrite{shard: s, verdict: v}
			writers = append(writers, w)
			writes = append(writes, w.apply)
		}
	}
	if len(writes) == 0 {
		return true
	}
	unwritten, last := 0, error(nil)
	well := true
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for i, err := range s.d.store.UpdateAll(bounded, writes) {
		w := writers[i]
		if err == nil && !w.held {
			w.log()
			continue
		}
		well = false
		if err != nil {
			unwritten, last = unwritten+1, fmt.Errorf("node %s: %w", w.node, err)
		}
		s.look(w.node)
	}
	if unwritten > 0 && ctx.Err() == nil {
		s.log.Warn("states of nodes are not written yet", zap.Int("nodes", unwritten), zap.Error(last))
	}
	return well
}

// nodeWrite is the change of one node's record. It may run several times, each
// on newer state.
type nodeWrite struct {
	verdict
	// held says that nothing is written before it is known whose the shard is.
	held        bool
	shard       *shard
	before, now *recordv1.NodeState
	standing    standing
}

func (w *nodeWrite) apply(tx *store.Tx) error {
	w.before, w.now = nil, nil
	if w.held = !w.shard.sure(); w.held {
		return nil
	}
	if e, ok := w.shard.d.tables.NodeStates.Get(tx, w.node); ok {
		w.before = e.Value
	}
	if w.remove {
		if w.before != nil {
			w.shard.d.tables.NodeStates.Delete(tx, w.node)
		}
		return nil
	}
	// Since the verdict the worker may have come back.
	w.standing = w.shard.standing(w.node)
	if w.now = w.standing.record(w.before, time.Now()); w.now != w.before {
		w.shard.d.tables.NodeStates.Put(tx, w.node, w.now)
	}
	return nil
}

// log tells of a change of state, which is what people ask about.
func (w *nodeWrite) log() {
	before, now := w.before.GetState(), w.now.GetState()
	if before == now {
		return
	}
	reason := w.standing.reason()
	if w.remove {
		reason = "removed by an operator"
	}
	w.shard.d.metrics.transitions.WithLabelValues(stateName(now)).Inc()
	w.shard.log.Info("node has changed its state",
		zap.String("node", w.node), zap.String("from", stateName(before)), zap.String("to", stateName(now)),
		zap.String("reason", reason))
}

// reason says for people why a node is in its state.
func (s standing) reason() string {
	switch {
	case s.message != "":
		return s.message
	default:
		return "its worker is connected"
	}
}

// stateName is a node state in logs and metrics; that of a node without a
// record is "none".
func stateName(s musterv1.NodeStatus_State) string {
	if s == musterv1.NodeStatus_STATE_UNSPECIFIED {
		return "none"
	}
	return s.String()
}
