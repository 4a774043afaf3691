package liveness

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/store"
)

// nodesOfOneShard returns so many ids of nodes of one shard.
func nodesOfOneShard(n int) []string {
	var ids []string
	for i := 0; len(ids) < n; i++ {
		if id := fmt.Sprintf("n%d", i); store.ShardOf(id) == store.ShardOf("n0") {
			ids = append(ids, id)
		}
	}
	return ids
}

// Nodes become silent together. If they are most of a dispatcher's nodes, the
// dispatcher may be the reason, and it waits longer. Otherwise they are down as
// soon as any other node.
func TestTimeoutsAreExtendedIfMostNodesAreSilent(t *testing.T) {
	t.Parallel()
	const nodes = 2 * fewNodes
	silent := func(*session, *Tracker) {}
	for name, tt := range map[string]struct {
		// silent is the number of nodes that are not heard after end.
		silent int
		end    func(*session, *Tracker)
		// alive is when they are not down yet, and dead when they are.
		alive, dead time.Duration
		reason      string
	}{
		"all are silent":         {nodes, silent, 29 * time.Second, 31 * time.Second, "silent for 30s (15 heartbeats)"},
		"half are silent":        {nodes/2 + 1, silent, 29 * time.Second, 31 * time.Second, "silent for 30s (15 heartbeats)"},
		"some are silent":        {nodes / 3, silent, 5 * time.Second, 6500 * time.Millisecond, "silent for 6s (3 heartbeats)"},
		"all have disconnected":  {nodes, (*session).close, 17 * time.Second, 19 * time.Second, "connection closed, and not back within 18s"},
		"some have disconnected": {nodes / 3, (*session).close, 2 * time.Second, 3500 * time.Millisecond, "connection closed, and not back within 3s"},
		"all of few are silent":  {-1, silent, 5 * time.Second, 6500 * time.Millisecond, "silent for 6s (3 heartbeats)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				all, gone := nodes, tt.silent
				if gone < 0 {
					all, gone = fewNodes-1, fewNodes-1
				}
				s := newSite(t)
				ids := nodesOfOneShard(all)
				tracker := s.tracker(ids[0])
				var sessions []*session
				for _, id := range ids {
					sessions = append(sessions, s.mustConnect(tracker, id))
				}
				live := func(of []*session, until time.Time) {
					for time.Now().Before(until) {
						for _, sess := range of {
							sess.heartbeat(tracker)
						}
						time.Sleep(min(time.Second, time.Until(until)))
					}
				}
				live(sessions, time.Now().Add(10*time.Second))
				for _, sess := range sessions[:gone] {
					sess.heartbeat(tracker)
					tt.end(sess, tracker)
				}
				began := time.Now()
				live(sessions[gone:], began.Add(tt.alive))
				for _, id := range ids[:gone] {
					if got := s.record(id).GetState(); got == isDown {
						t.Fatalf("node %s is down after %s", id, time.Since(began))
					}
				}
				live(sessions[gone:], began.Add(tt.dead))
				for _, id := range ids[:gone] {
					s.want(id, isDown)
					if got := s.record(id).GetMessage(); got != tt.reason {
						t.Errorf("node %s is down because %q, want %q", id, got, tt.reason)
					}
				}
				live(sessions[gone:], began.Add(tt.dead+10*time.Second))
				for _, id := range ids[gone:] {
					s.want(id, ready)
				}
			})
		})
	}
}

// All workers are heard a quarter as often as they should be. None is down, except
// for one that is silent.
func TestLateHeartbeatsOfAllNodesAreTolerated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const nodes = 2 * fewNodes
		s := newSite(t)
		ids := nodesOfOneShard(nodes)
		tracker := s.tracker(ids[0])
		var sessions []*session
		for _, id := range ids {
			sessions = append(sessions, s.mustConnect(tracker, id))
			time.Sleep(100 * time.Millisecond)
		}
		for range 10 {
			for _, sess := range sessions[1:] {
				time.Sleep(8 * time.Second / nodes)
				sess.heartbeat(tracker)
			}
		}
		s.want(ids[0], isDown)
		for _, id := range ids[1:] {
			s.want(id, ready)
		}
	})
}
