package apid_test

import (
	"slices"
	"testing"
	"testing/synctest"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestClusterStatus asks one of two replicas, in a cluster that has nothing else.
func TestClusterStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.apid(), c.apid()
		c.node("n1", "host1")
		var m *musterv1.GetClusterStatusResponse
		settled(t, "both replicas take part", func() bool {
			var err error
			if m, err = a.GetClusterStatus(t.Context(), &musterv1.GetClusterStatusRequest{}); err != nil {
				t.Fatal(err)
			}
			return len(m.Daemons) == 2 && len(m.Subsystems[0].Unowned) == 0 && m.Nodes.GetTotal() == 1
		})
		if m.Healthy || !slices.Contains(m.Problems, "no schedulerd takes part") || len(m.Problems) != 4 {
			t.Errorf("problems = %q, want that the four other daemons are missing", m.Problems)
		}
		if !m.Store.Reachable || m.Store.Kind != "embedded" || m.Nodes.Ready != 1 {
			t.Errorf("status = %v", m)
		}
		held := 0
		for _, d := range m.Daemons {
			held += len(d.Shards)
			// The harness's servers do not report; a version before this one is like it.
			if d.Health != musterv1.DaemonInstance_HEALTHY || d.Reason == "" {
				t.Errorf("instance %v", d)
			}
		}
		if held != 1 {
			t.Errorf("the one shard is held %d times", held)
		}
		if got := b.rest("GET", "/v1/cluster/status", ""); got.code != 200 || got.json["answeredBy"] == m.AnsweredBy {
			t.Errorf("over REST, of the other: %d %s", got.code, got.body)
		}
		if got := b.rest("GET", "/v1/cluster", ""); got.code != 200 {
			t.Errorf("the cluster itself: %d %s", got.code, got.body)
		}
	})
}
