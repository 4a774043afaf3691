package liveness

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/internal/quota"
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

// pacer limits the writes that the workers of a shard's nodes cause, by node.
type pacer struct{ writes, sessions *quota.Rate }

func newPacer() pacer {
	return pacer{
		writes:   quota.NewRate(1/describeEvery.Seconds(), describeBurst),
		sessions: quota.NewRate(1/sessionEvery.Seconds(), sessionBurst),
	}
}

// postpones reports whether a write must wait, and notes until when. It counts a
// write that it allows.
func (p *pacer) postpones(n *node, now time.Time) bool {
	if !now.Before(n.postponed) {
		n.postponed = time.Time{}
		if wait := p.writes.Take(n.id); wait > 0 {
			n.postponed = now.Add(wait)
		}
	}
	return !n.postponed.IsZero()
}

// tooManySessionsError refuses a session that begins too early.
func tooManySessionsError(node string) error {
	return status.Errorf(codes.Unavailable,
		"too many sessions of node %s: at most %d at once, and then one every %s; try again later", node, sessionBurst, sessionEvery)
}
