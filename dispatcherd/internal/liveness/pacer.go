package liveness

import (
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// These limits say how often a worker may have its node's record written. Each
// write is a commit, which all daemons read. A description that comes too early
// waits, and a later one replaces it. A session that begins too early is refused,
// as SwarmKit refuses registrations. The pauses are shorter than
// Timeouts.Reconnect, so that a refused worker comes back before its node is down.
const (
	describeEvery = 2 * time.Second
	describeBurst = 4
	sessionEvery  = 2 * time.Second
	sessionBurst  = 8
)

// pacer limits the writes that the worker of one node causes.
type pacer struct {
	writes   *rate.Limiter
	sessions *rate.Limiter
	// until is when a postponed write is due, zero if none is postponed.
	until time.Time
}

func newPacer() pacer {
	return pacer{
		writes:   rate.NewLimiter(rate.Every(describeEvery), describeBurst),
		sessions: rate.NewLimiter(rate.Every(sessionEvery), sessionBurst),
	}
}

// postpones reports whether a write must wait, and notes until when. It counts a
// write that it allows.
func (p *pacer) postpones(now time.Time) bool {
	if now.Before(p.until) {
		return true
	}
	r := p.writes.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		p.until = time.Time{}
		return false
	}
	r.CancelAt(now)
	p.until = now.Add(wait)
	return true
}

// due reports whether a postponed write is due.
func (p *pacer) due(now time.Time) bool {
	if p.until.IsZero() || now.Before(p.until) {
		return false
	}
	p.until = time.Time{}
	return true
}

// tooManySessionsError refuses a session that begins too early.
func tooManySessionsError(node string) error {
	return status.Errorf(codes.Unavailable,
		"too many sessions of node %s: at most %d at once, and then one every %s; try again later", node, sessionBurst, sessionEvery)
}
