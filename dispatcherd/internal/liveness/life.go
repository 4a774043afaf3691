package liveness

import (
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Timeouts say how long a dispatcher waits for its nodes.
type Timeouts struct {
	// HeartbeatMisses is the number of missed heartbeats after which a node is down.
	HeartbeatMisses int
	// Reconnect is how long a worker whose stream closed may take to come back.
	Reconnect time.Duration
	// Restart is the same for a worker that announced its restart.
	Restart time.Duration
	// Takeover is the same for workers of another dispatcher that died or gave the
	// shard away.
	Takeover time.Duration
	// Unknown is when such a node is shown as UNKNOWN.
	Unknown time.Duration
	// Orphan is how long a node is down before its tasks are given up.
	Orphan time.Duration
}

// phase is what a dispatcher knows about a node's liveness.
type phase uint8

const (
	// expected: the node belonged to another dispatcher, and this one has not heard
	// from it yet. The record does not change.
	expected phase = iota + 1
	// missing: expected, and overdue.
	missing
	// connected: there is a session.
	connected
	// closed: the stream closed without a goodbye.
	closed
	// restarting: the worker announced that it will be back.
	restarting
	// down: its tasks are replaced.
	down
	// orphaned: down for so long that its tasks are given up.
	orphaned
)

// life is the liveness of one node. It is a value: each method returns the next
// value, and takes the time as an argument.
type life struct {
	phase phase
	// until is when the phase ends by itself, or zero if it does not. The end of
	// connected follows from heard and patience.
	until time.Time
	// overdue is when an expected node is down.
	overdue time.Time
	// heard is when a connected node was last heard, and patience how long it may
	// be silent.
	heard    time.Time
	patience time.Duration
	// reason says why the node is down, for users.
	reason string
}

// expect returns the liveness of a node that another dispatcher left behind.
func expect(now time.Time, t Timeouts) life {
	return life{phase: expected, until: now.Add(t.Unknown), overdue: now.Add(t.Takeover)}
}

// downSince returns the liveness of a node whose record says DOWN since then.
func downSince(since time.Time, t Timeouts) life {
	return life{phase: down, until: since.Add(t.Orphan)}
}

// connect returns the liveness of a node at the start of a session.
func connect(now time.Time, period time.Duration, t Timeouts) life {
	return life{phase: connected, heard: now, patience: period * time.Duration(t.HeartbeatMisses)}
}

// closeStream ends a session without a goodbye.
func (l life) closeStream(now time.Time, t Timeouts) life {
	if l.phase != connected {
		return l
	}
	return life{phase: closed, until: now.Add(t.Reconnect)}
}

// goodbye ends a session in order. The node of a worker that does not come back is
// down at once.
func (l life) goodbye(now time.Time, restarts bool, t Timeouts) life {
	switch {
	case l.phase != connected:
		return l
	case restarts:
		return life{phase: restarting, until: now.Add(t.Restart)}
	default:
		return l.goDown(now, "the worker has stopped", t)
	}
}

// hear notes when a connected node was heard.
func (l life) hear(at time.Time) life {
	if l.phase == connected && at.After(l.heard) {
		l.heard = at
	}
	return l
}

// afterPause restarts the timeouts after a time in which this process did not run
// and could not have heard a node.
func (l life) afterPause(now time.Time, t Timeouts) life {
	if l.phase == connected {
		return l.hear(now)
	}
	if l.phase == closed || l.phase == restarting {
		l.until = later(l.until, now.Add(t.Reconnect))
	}
	if l.phase == expected || l.phase == missing {
		l.overdue = later(l.overdue, now.Add(t.Reconnect))
		l.until = later(l.until, now.Add(t.Reconnect))
	}
	return l
}

// deadline returns when the phase ends by itself, or zero if it does not.
func (l life) deadline() time.Time {
	if l.phase == connected {
		return l.heard.Add(l.patience)
	}
	return l.until
}

// extended returns the deadline if all timeouts are extended by a factor. The
// timeout becomes at most that of a takeover, or twice the usual one.
func (l life) extended(factor float64, t Timeouts) time.Time {
	var usual time.Duration
	switch l.phase {
	case connected:
		usual = l.patience
	case closed:
		usual = t.Reconnect
	default:
		return l.deadline()
	}
	longer := min(time.Duration(float64(usual)*factor), max(2*usual, t.Takeover))
	return l.deadline().Add(longer - usual)
}

// at returns the liveness at a later time.
func (l life) at(now time.Time, t Timeouts) life {
	if d := l.deadline(); d.IsZero() || now.Before(d) {
		return l
	}
	switch l.phase {
	case expected:
		return life{phase: missing, until: l.overdue, overdue: l.overdue}.at(now, t)
	case missing:
		return l.goDown(now, fmt.Sprintf("not heard from within %s after a change of dispatcher", t.Takeover), t)
	case connected:
		silent := max(l.patience, now.Sub(l.heard).Truncate(time.Second))
		beats := silent * time.Duration(t.HeartbeatMisses) / l.patience
		return l.goDown(now, fmt.Sprintf("silent for %s (%d heartbeats)", silent, beats), t)
	case closed:
		away := t.Reconnect + now.Sub(l.until).Truncate(time.Second)
		return l.goDown(now, fmt.Sprintf("connection closed, and not back within %s", away), t)
	case restarting:
		return l.goDown(now, fmt.Sprintf("restarted, and not back within %s", t.Restart), t)
	case down:
		return life{phase: orphaned, reason: l.reason}
	default:
		return l
	}
}

func (l life) goDown(now time.Time, reason string, t Timeouts) life {
	next := downSince(now, t)
	next.reason = reason
	return next
}

// state returns the state that the node's record should show, and why. It returns
// STATE_UNSPECIFIED if the record must not change.
func (l life) state() (musterv1.NodeStatus_State, string) {
	switch l.phase {
	case missing:
		return musterv1.NodeStatus_UNKNOWN, "not heard from since its dispatcher changed"
	case connected:
		return musterv1.NodeStatus_READY, ""
	case closed:
		return musterv1.NodeStatus_DISCONNECTED, "connection closed"
	case restarting:
		return musterv1.NodeStatus_UNKNOWN, "the worker is restarting"
	case down, orphaned:
		return musterv1.NodeStatus_DOWN, l.reason
	default:
		return musterv1.NodeStatus_STATE_UNSPECIFIED, ""
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
