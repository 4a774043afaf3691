package dispatcherd

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
)

// How often a worker may have its node's record written. Each write is a commit
// of the store, which all daemons read. A description that comes too early waits,
// and a later one takes its place; a session that begins too early is refused, as
// SwarmKit refuses registrations. The pauses are shorter than Config.ReconnectGrace,
// so a worker that was refused comes back before its node is down.
const (
	describeEvery = 2 * time.Second
	describeBurst = 4
	sessionEvery  = 2 * time.Second
	sessionBurst  = 8
)

// pacer bounds how often the worker of one node has records written.
type pacer struct {
	writes   *rate.Limiter
	sessions *rate.Limiter
	// until is when what is postponed may be written, zero if nothing is.
	until time.Time
}

func newPacer() pacer {
	return pacer{
		writes:   rate.NewLimiter(rate.Every(describeEvery), describeBurst),
		sessions: rate.NewLimiter(rate.Every(sessionEvery), sessionBurst),
	}
}

// postpones reports whether the node's record must not be written yet although
// the worker said something new, and notes until when. It counts a write that it
// allows.
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

// due reports whether what was postponed may be written now.
func (p *pacer) due(now time.Time) bool {
	if p.until.IsZero() || now.Before(p.until) {
		return false
	}
	p.until = time.Time{}
	return true
}

// tooOften is what a worker is told whose sessions begin too often.
func tooOften(node string) error {
	return status.Error(codes.Unavailable, fmt.Sprintf(
		"sessions of node %s begin too often: at most %d at once, and then one every %s; try again", node, sessionBurst, sessionEvery))
}

// sameLife reports whether a node's record need not change but for what its
// worker says: that may wait, and whether the node is alive may not.
func (s standing) sameLife(have *recordv1.NodeState) bool {
	return have != nil && have.State == s.state && (s.description == nil || have.InstanceId == s.instance)
}
