package liveness

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Several worker processes may claim to be the same node: a worker was restarted and
// the old connection is not known to be dead yet, or a machine or its data
// directory was copied. The worker that has the session keeps it while it is
// heard. A worker that is gone is replaced at once.

const (
	// claimPeriods is the number of heartbeat periods in which the holder of a
	// session must be heard after another worker claims its node. One would be
	// enough without delays.
	claimPeriods = 2
	// conflictShown is how long a node's record mentions a refused worker. It must
	// be longer than the longest pause of a refused worker.
	conflictShown = 5 * time.Minute
)

// predecessor is the last worker process of a node whose stream closed without a
// goodbye. Until then, no other machine takes its place.
type predecessor struct {
	instance, address string
	until             time.Time
}

// nodeConflict is a refused worker.
type nodeConflict struct {
	message string
	// until is how long the record mentions it.
	until time.Time
}

// ContestedError says that it is not decided yet which worker is the node.
type ContestedError struct{ node string }

// Error implements error.
func (e *ContestedError) Error() string {
	return fmt.Sprintf("another worker was node %s until a moment ago and may still be; waiting for its heartbeat", e.node)
}

// GRPCStatus makes a worker try again.
func (e *ContestedError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.Error()) }

// contest decides whether a session may become the node's session. The error is
// nil if it may, a *ContestedError if that is not decided yet, and otherwise the
// refusal. A worker is refused once the holder is heard after the worker came.
// The caller holds the tracker's lock.
func (n *node) contest(w Worker, hostname string, now, runningSince time.Time, t Timeouts) error {
	switch {
	case n.session == nil:
		// A worker that was restarted on its machine may come in.
		if p := n.predecessor; now.Before(p.until) && p.instance != w.Instance && p.address != w.Address {
			return &ContestedError{n.id}
		}
	case n.session.Worker().Instance != w.Instance:
		heard := n.session.LastHeard()
		if heard.After(w.Begun) {
			n.conflict = nodeConflict{
				fmt.Sprintf("a second worker claims this node's id and is refused: host %q at %s", hostname, w.Address), now.Add(conflictShown),
			}
			return n.takenError()
		}
		// All workers that claim the node wait for the same heartbeat. A claim for each
		// of them would never end while they replace each other's. A paused process hears
		// no heartbeat.
		if later(heard, runningSince).After(n.claimed) {
			n.claimed = now
			// The claim must be decided before the node could be down.
			n.life = n.life.hear(now)
		}
		if now.Sub(n.claimed) < n.period*claimPeriods {
			return &ContestedError{n.id}
		}
	}
	return nil
}

// takenError refuses a worker whose node is another worker.
func (n *node) takenError() error {
	holder := n.session.Worker()
	return refusal(codes.AlreadyExists, dispatcherv1.Refusal_NODE_TAKEN, fmt.Sprintf(
		"node %s is another worker, connected since %s from host %q at %s (instance %s): no two workers can have one node id; stop one of them, or start this one with an empty data directory, which gives it a new id",
		n.id, holder.Begun.UTC().Format(time.RFC3339), n.description.GetHostname(), holder.Address, holder.Instance))
}

// removedError refuses the worker of a removed node.
func removedError(node string) error {
	return refusal(codes.PermissionDenied, dispatcherv1.Refusal_NODE_REMOVED, fmt.Sprintf(
		"node %s was removed from the cluster; to let the machine join again, start its worker with an empty data directory, which gives it a new id", node))
}

// lostError refuses a worker whose tasks an empty store would stop.
func lostError(node string, tasks uint32) error {
	return status.Errorf(codes.FailedPrecondition, "the store knows neither node %s nor any service, and the node has %d tasks, which run on: "+
		"if the data in Consul was lost, restore a snapshot; to start again with an empty store, restart the worker, which then gives the tasks up", node, tasks)
}

// refusal returns an error with a text for people and a reason for the worker.
func refusal(code codes.Code, reason dispatcherv1.Refusal_Reason, text string) error {
	plain := status.New(code, text)
	detailed, err := plain.WithDetails(&dispatcherv1.Refusal{Reason: reason})
	if err != nil {
		// Only if the message cannot be encoded.
		return plain.Err()
	}
	return detailed.Err()
}

// remember notes the node's worker when its stream closed without a goodbye.
func (n *node) remember(instance, address string, now time.Time, t Timeouts) {
	// A worker on another machine can still come in before the node is down.
	n.predecessor = predecessor{instance, address, now.Add(t.Reconnect * 2 / 3)}
}

// rememberRecord notes the node's worker at another dispatcher.
func (n *node) rememberRecord(record *recordv1.NodeState, now time.Time, t Timeouts) {
	alive := record.State == musterv1.NodeStatus_READY || record.State == musterv1.NodeStatus_DISCONNECTED
	if alive && record.InstanceId != "" {
		n.remember(record.InstanceId, record.Address, now, t)
	}
}
