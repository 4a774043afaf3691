package shards_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/shards"
)

// census takes the test's subsystem's census and holds it against what runs.
func (c *cluster) census(d *shards.Directory, replicas ...*replica) shards.Ownership {
	c.t.Helper()
	c.settled(replicas...)
	all, err := shards.ReadOwnership(c.t.Context(), c.store, prefix, zaptest.NewLogger(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	if diff := cmp.Diff(all[subsystem], d.Ownership()); diff != "" {
		c.t.Errorf("what the store has and what the directory says differ:\n%s", diff)
	}
	held := map[string]int{}
	for _, h := range all[subsystem].Leases {
		held[h.Instance]++
	}
	if diff := cmp.Diff(c.held(), held); diff != "" {
		c.t.Errorf("shards that replicas work on, and hold in the census:\n%s", diff)
	}
	if got := len(all[subsystem].Members); got != len(replicas) {
		c.t.Errorf("%d members, want %d", got, len(replicas))
	}
	return all[subsystem]
}

// TestCensus lets replicas join, leave and die, and looks who holds what since
// when.
func TestCensus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		d := runDirectory(t, c.store)
		a := c.join()
		before := c.census(d, a)
		time.Sleep(time.Minute)
		late := time.Now()
		b, third := c.join(), c.join()
		now := c.census(d, a, b, third)
		for shard, h := range now.Leases {
			kept := h.Instance == before.Leases[shard].Instance
			if kept && !h.Since.Equal(before.Leases[shard].Since) {
				t.Errorf("shard %d stayed with %s, since %v and not since %v", shard, h.Instance, before.Leases[shard].Since, h.Since)
			}
			if !kept && h.Since.Before(late) {
				t.Errorf("shard %d is with %s since %v, before it came", shard, h.Instance, h.Since)
			}
		}
		b.leave()
		c.census(d, a, third)
		c.crash(third)
		c.census(d, a)
	})
}

// TestCensusWithoutMembers: without members there is nothing, and no error.
func TestCensusWithoutMembers(t *testing.T) {
	c := newCluster(t, 1)
	all, err := shards.ReadOwnership(t.Context(), c.store, prefix, zaptest.NewLogger(t))
	if err != nil || len(all) != 0 {
		t.Errorf("census = %v, %v", all, err)
	}
}
