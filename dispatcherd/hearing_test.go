package dispatcherd

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestMostSilentAtOnce lets nodes fall silent together. If they are most of a
// dispatcher's, it may be its own doing, and they are waited for; if they are not, they
// are down as soon as any other.
func TestMostSilentAtOnce(t *testing.T) {
	t.Parallel()
	const nodes = 2 * fewNodes
	silent := func(*worker) {}
	for name, tt := range map[string]struct {
		// silent is how many of the nodes there are no more signs of, after end.
		silent int
		end    func(*worker)
		// kept is when they have not fallen yet, and fallen when they have.
		kept, fallen time.Duration
		why          string
	}{
		"all are silent":        {nodes, silent, 29 * time.Second, 31 * time.Second, "silent for 30s (15 heartbeats)"},
		"half are silent":       {nodes/2 + 1, silent, 29 * time.Second, 31 * time.Second, "silent for 30s (15 heartbeats)"},
		"some are silent":       {nodes / 3, silent, 5 * time.Second, 6500 * time.Millisecond, "silent for 6s (3 heartbeats)"},
		"all have hung up":      {nodes, (*worker).hangUp, 17 * time.Second, 19 * time.Second, "connection closed, and not back within 18s"},
		"some have hung up":     {nodes / 3, (*worker).hangUp, 2 * time.Second, 3500 * time.Millisecond, "connection closed, and not back within 3s"},
		"all of few are silent": {-1, silent, 5 * time.Second, 6500 * time.Millisecond, "silent for 6s (3 heartbeats)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				all, gone := nodes, tt.silent
				if gone < 0 {
					all, gone = fewNodes-1, fewNodes-1
				}
				c := newCluster(t, true)
				d := c.dispatcher("d1")
				synctest.Wait()
				var workers []*worker
				for i := range all {
					workers = append(workers, c.worker(fmt.Sprintf("n%02d", i), d.address))
				}
				live := func(of []*worker, d time.Duration) {
					var wg sync.WaitGroup
					for _, w := range of {
						wg.Go(func() { w.live(d) })
					}
					wg.Wait()
				}
				live(workers, 10*time.Second)
				for _, w := range workers[:gone] {
					w.heartbeat()
					tt.end(w)
				}
				began := time.Now()
				others := make(chan struct{})
				go func() {
					defer close(others)
					live(workers[gone:], tt.fallen+10*time.Second)
				}()
				time.Sleep(tt.kept)
				for i := range gone {
					if got := c.nodeState(fmt.Sprintf("n%02d", i)).GetState(); got == fallen {
						t.Fatalf("node %d is down after %s", i, time.Since(began))
					}
				}
				time.Sleep(time.Until(began.Add(tt.fallen)))
				for i := range gone {
					id := fmt.Sprintf("n%02d", i)
					c.wantNode(id, fallen)
					if got := c.nodeState(id).GetMessage(); got != tt.why {
						t.Errorf("node %s is down because %q, want %q", id, got, tt.why)
					}
				}
				<-others
				for i := gone; i < all; i++ {
					c.wantNode(fmt.Sprintf("n%02d", i), ready)
				}
			})
		})
	}
}

// TestHeardLate has all workers heard a quarter as often as they should be: none is down,
// and one that is silent then still falls.
func TestHeardLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const nodes = 2 * fewNodes
		c := newCluster(t, true)
		d := c.dispatcher("d1")
		synctest.Wait()
		var workers []*worker
		for i := range nodes {
			workers = append(workers, c.worker(fmt.Sprintf("n%02d", i), d.address))
			time.Sleep(100 * time.Millisecond)
		}
		for range 10 {
			for _, w := range workers[1:] {
				time.Sleep(8 * time.Second / nodes)
				w.heartbeat()
			}
		}
		synctest.Wait()
		c.wantNode("n00", fallen)
		for i := 1; i < nodes; i++ {
			c.wantNode(fmt.Sprintf("n%02d", i), ready)
		}
	})
}
