package dispatcherd

import (
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// phase is what a dispatcher knows of a node's life.
type phase uint8

const (
	// expected: the record says that the node lived under another dispatcher,
	// and this one has yet to hear it. The record is left as it is.
	expected phase = iota + 1
	// missing: expected, and overdue.
	missing
	// connected: there is a session.
	connected
	// closed: the session ended without a word.
	closed
	// restarting: the worker said that it will be back.
	restarting
	// down: its tasks are replaced.
	down
	// orphaned: down for so long that its tasks are given up.
	orphaned
)

// liveness is the life of one node as a value: each method returns what
// becomes of it, with the time as an argument.
type liveness struct {
	phase phase
	// until is when the phase ends by itself; zero if it does not. Of connected
	// nodes it follows from heard and patience.
	until time.Time
	// overdue is when an expected node's tasks are replaced.
	overdue time.Time
	// heard is when a connected node last gave a sign of life, and patience how
	// long it may be silent.
	heard    time.Time
	patience time.Duration
	// reason says why it is down, for people.
	reason string
}

// expect begins the life of a node that another dispatcher left behind.
func expect(now time.Time, cfg Config) liveness {
	return liveness{phase: expected, until: now.Add(cfg.UnknownAfter), overdue: now.Add(cfg.TakeoverGrace)}
}

// lieDown begins the life of a node whose record has said DOWN since then.
func lieDown(since time.Time, cfg Config) liveness {
	return liveness{phase: down, until: since.Add(cfg.OrphanAfter)}
}

// connect begins a session whose heartbeats come every period.
func connect(now time.Time, period time.Duration, cfg Config) liveness {
	return liveness{phase: connected, heard: now, patience: period * time.Duration(cfg.HeartbeatMisses)}
}

// closeStream ends a session that closed without a word.
func (l liveness) closeStream(now time.Time, cfg Config) liveness {
	if l.phase != connected {
		return l
	}
	return liveness{phase: closed, until: now.Add(cfg.ReconnectGrace)}
}

// goodbye ends a session in order. A worker that does not come back leaves its
// tasks to others at once.
func (l liveness) goodbye(now time.Time, restarts bool, cfg Config) liveness {
	switch {
	case l.phase != connected:
		return l
	case restarts:
		return liveness{phase: restarting, until: now.Add(cfg.RestartGrace)}
	default:
		return l.fall(now, "the worker has stopped", cfg)
	}
}

// hear notes a sign of life of a connected node.
func (l liveness) hear(at time.Time) liveness {
	if l.phase == connected && at.After(l.heard) {
		l.heard = at
	}
	return l
}

// forgive takes back what was held against a node while this process itself
// did not run: it could not have heard anything.
func (l liveness) forgive(now time.Time, cfg Config) liveness {
	if l.phase == connected {
		return l.hear(now)
	}
	if l.phase == closed || l.phase == restarting {
		l.until = later(l.until, now.Add(cfg.ReconnectGrace))
	}
	if l.phase == expected || l.phase == missing {
		l.overdue = later(l.overdue, now.Add(cfg.ReconnectGrace))
		l.until = later(l.until, now.Add(cfg.ReconnectGrace))
	}
	return l
}

// deadline is when the phase ends by itself; zero if it never does.
func (l liveness) deadline() time.Time {
	if l.phase == connected {
		return l.heard.Add(l.patience)
	}
	return l.until
}

// extended is the deadline where all nodes are heard late, by how many times. None is
// waited for longer than after a change of dispatcher, or than twice as long as usual.
func (l liveness) extended(times float64, cfg Config) time.Time {
	var usual time.Duration
	switch l.phase {
	case connected:
		usual = l.patience
	case closed:
		usual = cfg.ReconnectGrace
	default:
		return l.deadline()
	}
	longer := min(time.Duration(float64(usual)*times), max(2*usual, cfg.TakeoverGrace))
	return l.deadline().Add(longer - usual)
}

// at lets time pass.
func (l liveness) at(now time.Time, cfg Config) liveness {
	if d := l.deadline(); d.IsZero() || now.Before(d) {
		return l
	}
	switch l.phase {
	case expected:
		return liveness{phase: missing, until: l.overdue, overdue: l.overdue}.at(now, cfg)
	case missing:
		return l.fall(now, fmt.Sprintf("not heard of within %s of a change of dispatcher", cfg.TakeoverGrace), cfg)
	case connected:
		silent := max(l.patience, now.Sub(l.heard).Truncate(time.Second))
		beats := silent * time.Duration(cfg.HeartbeatMisses) / l.patience
		return l.fall(now, fmt.Sprintf("silent for %s (%d heartbeats)", silent, beats), cfg)
	case closed:
		away := cfg.ReconnectGrace + now.Sub(l.until).Truncate(time.Second)
		return l.fall(now, fmt.Sprintf("connection closed, and not back within %s", away), cfg)
	case restarting:
		return l.fall(now, fmt.Sprintf("restarted, and not back within %s", cfg.RestartGrace), cfg)
	case down:
		return liveness{phase: orphaned, reason: l.reason}
	default:
		return l
	}
}

func (l liveness) fall(now time.Time, reason string, cfg Config) liveness {
	fallen := lieDown(now, cfg)
	fallen.reason = reason
	return fallen
}

// verdict is the state that the node's record should show, and why. It is
// STATE_UNSPECIFIED where the record is to be left as it is.
func (l liveness) verdict() (musterv1.NodeStatus_State, string) {
	switch l.phase {
	case missing:
		return musterv1.NodeStatus_UNKNOWN, "not heard of since its dispatcher changed"
	case connected:
		return musterv1.NodeStatus_READY, ""
	case closed:
		return musterv1.NodeStatus_DISCONNECTED, "connection closed"
	case restarting:
		return musterv1.NodeStatus_UNKNOWN, "the worker restarts"
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
