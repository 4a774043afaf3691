package shards_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/shards"
)

// ownership reads the ownership from the store, and compares it with a directory and
// with the work that is running.
func (c *cluster) ownership(d *shards.Directory, replicas ...*replica) shards.Ownership {
	c.t.Helper()
	c.settled(replicas...)
	all, err := shards.ReadOwnership(c.t.Context(), c.store, prefix, zaptest.NewLogger(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	if diff := cmp.Diff(all[subsystem], d.Ownership()); diff != "" {
		c.t.Errorf("ownership in the store and in the directory differ:\n%s", diff)
	}
	held := map[string]int{}
	for _, h := range all[subsystem].Leases {
		held[h.Instance]++
	}
	if diff := cmp.Diff(c.held(), held); diff != "" {
		c.t.Errorf("number of shards (-worked on +held):\n%s", diff)
	}
	if got := len(all[subsystem].Members); got != len(replicas) {
		c.t.Errorf("%d members, want %d", got, len(replicas))
	}
	return all[subsystem]
}

// TestOwnershipShowsOwnersAndTimes lets replicas join, leave and die. The time of a lease
// changes only with its owner.
func TestOwnershipShowsOwnersAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 16)
		d := runDirectory(t, c.store)
		a := c.join()
		before := c.ownership(d, a)
		time.Sleep(time.Minute)
		late := time.Now()
		b, third := c.join(), c.join()
		now := c.ownership(d, a, b, third)
		for shard, h := range now.Leases {
			kept := h.Instance == before.Leases[shard].Instance
			if kept && !h.Since.Equal(before.Leases[shard].Since) {
				t.Errorf("shard %d stayed with %s: since = %v, want %v", shard, h.Instance, h.Since, before.Leases[shard].Since)
			}
			if !kept && h.Since.Before(late) {
				t.Errorf("shard %d belongs to %s since %v, before that replica joined", shard, h.Instance, h.Since)
			}
		}
		b.leave()
		c.ownership(d, a, third)
		c.crash(third)
		c.ownership(d, a)
	})
}

func TestOwnershipWithoutMembersIsEmpty(t *testing.T) {
	c := newCluster(t, 1)
	all, err := shards.ReadOwnership(t.Context(), c.store, prefix, zaptest.NewLogger(t))
	if err != nil || len(all) != 0 {
		t.Errorf("ReadOwnership = %v, %v, want no subsystem and no error", all, err)
	}
}
