package dispatcherd

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Two worker processes may claim to be the same node: one was started again and
// the connection of the first is not known to be dead yet, or somebody has
// copied a machine or its data directory. Who has the session keeps it as long
// as it is heard; of a worker that is gone, its successor takes over at once.

const (
	// claimPeriods is how many heartbeat periods the holder of a session may take
	// to be heard after another claims its node. One would do, but for delays.
	claimPeriods = 2
	// claimPoll is how often a claim that is open is looked at.
	claimPoll = 50 * time.Millisecond
	// rivalShown is how long a node's record tells of a worker that was refused.
	// It must be longer than a refused worker's longest pause.
	rivalShown = 5 * time.Minute
)

// claim is the attempt of a worker process to become a node that another one
// still is, or was a moment ago.
type claim struct {
	instance string
	since    time.Time
}

// former is the last worker process of a node whose session has ended without a
// word. Until the moment no stranger takes its place.
type former struct {
	instance, address string
	until             time.Time
}

// rival is a worker that was refused.
type rival struct {
	what string
	// until is when the record is to tell of it no more.
	until time.Time
}

// contestedError says that it is not decided yet whose the node is.
type contestedError struct{ node string }

func (e *contestedError) Error() string {
	return fmt.Sprintf("another worker has been node %s until a moment ago and may still be; it is given time to be heard", e.node)
}

// GRPCStatus has a worker try again.
func (e *contestedError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.Error()) }

// contest decides whether a session may become the node's one. The error is nil
// if it may, a *contestedError if that is not decided yet, and else what the
// worker is to be told. The shard's lock is held.
func (n *node) contest(s *session, hostname string, now time.Time, cfg Config) error {
	holder := n.session
	switch {
	case holder == nil:
		// One that was started again on its machine is no stranger.
		if f := n.former; now.Before(f.until) && f.instance != s.instance && f.address != s.address {
			return &contestedError{n.id}
		}
	case holder.instance != s.instance:
		period := time.Duration(holder.period.Load())
		wait := period * claimPeriods
		if n.claim.instance != s.instance || now.Sub(n.claim.since) > wait+period*time.Duration(cfg.HeartbeatMisses) {
			n.claim = claim{s.instance, now}
			// Whose the node is shows before the node could seem to be down.
			n.life = n.life.hear(now)
			return &contestedError{n.id}
		}
		if holder.lastHeard().After(n.claim.since) {
			// The next attempt needs a fresh sign of life.
			n.claim = claim{}
			n.rival = rival{fmt.Sprintf("a second worker claims this node's id and is refused: host %q at %s", hostname, s.address), now.Add(rivalShown)}
			return n.refusal(holder)
		}
		if now.Sub(n.claim.since) < wait {
			return &contestedError{n.id}
		}
	}
	n.claim, n.former = claim{}, former{}
	return nil
}

// refusal is what a worker is told whose node another one is.
func (n *node) refusal(holder *session) error {
	return refused(codes.AlreadyExists, dispatcherv1.Refusal_NODE_TAKEN, fmt.Sprintf(
		"node %s is another worker, connected since %s from host %q at %s (instance %s): no two workers can have one node id; stop one of them, or start this one with an empty data directory, which gives it a new id",
		n.id, holder.begun.UTC().Format(time.RFC3339), n.description.GetHostname(), holder.address, holder.instance))
}

// remember notes who the node's worker was when its session ended without a
// word.
func (n *node) remember(instance, address string, now time.Time, cfg Config) {
	// A stranger still comes before the node would be down.
	n.former = former{instance, address, now.Add(cfg.ReconnectGrace * 2 / 3)}
}

// rememberRecord does so for a session that another dispatcher had.
func (n *node) rememberRecord(record *recordv1.NodeState, now time.Time, cfg Config) {
	alive := record.State == musterv1.NodeStatus_READY || record.State == musterv1.NodeStatus_DISCONNECTED
	if alive && record.InstanceId != "" {
		n.remember(record.InstanceId, record.Address, now, cfg)
	}
}
