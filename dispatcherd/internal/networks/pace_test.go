package networks_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/internal/store"
)

// TestFastChangesGoOutTogether checks that the first of many changes goes out at once, and
// those that follow in at most 50 ms, in one message for each node.
func TestFastChangesGoOutTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const nodes, tasks = 100, 50
		s := newSite(t)
		delivered := map[string][]string{}
		var deliveredAt time.Time
		s.index = networks.New(s.tables, func(nodes map[string][]string) {
			deliveredAt = time.Now()
			maps.Copy(delivered, nodes)
		})
		s.update(func(tx *store.Tx) {
			s.network(tx, "net1")
			s.service(tx, "s1", "net1")
			for i := range nodes {
				s.node(tx, fmt.Sprintf("n%d", i), fmt.Sprintf("192.0.2.%d", i))
				s.block(tx, "net1", uint32(i), fmt.Sprintf("n%d", i), fmt.Sprintf("10.65.%d.0/24", i))
			}
		})
		s.advance()
		var sessions []*session
		for i := range nodes {
			sessions = append(sessions, s.connect(t, fmt.Sprintf("n%d", i)))
		}
		run := func(i int) map[string][]string {
			s.update(func(tx *store.Tx) {
				s.task(tx, fmt.Sprintf("n%d", i), "s1", fmt.Sprintf("t%d", i), "net1", fmt.Sprintf("10.65.%d.2", i))
			})
			return s.advance()
		}
		known := func(n *session) int { return len(n.worker.Backends[assignmentstest.ServiceKey("net1", "s1")]) }
		time.Sleep(time.Second)
		if got := run(0); len(got) != nodes {
			t.Fatalf("the first change concerns %d nodes at once, want %d", len(got), nodes)
		}
		for _, n := range sessions {
			if n.changed([]string{"net1"}); known(n) != 1 {
				t.Fatalf("node %s knows %d backends after the first change, want 1", n.node, known(n))
			}
		}
		for i := 1; i < tasks; i++ {
			if got := run(i); len(got) > 0 {
				t.Fatalf("change %d goes to nodes %v at once", i, slices.Sorted(maps.Keys(got)))
			}
		}
		// A session that looks for another reason does not read what the others will get.
		if messages := sessions[0].changed([]string{"net1"}); messages > 0 {
			t.Fatalf("%d messages before the changes go out", messages)
		}
		began := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(delivered) != nodes || deliveredAt.Sub(began) > 50*time.Millisecond {
			t.Fatalf("the changes went to %d nodes after %s, want %d after at most 50 ms", len(delivered), deliveredAt.Sub(began), nodes)
		}
		for _, n := range sessions {
			if messages := n.changed(delivered[n.node]); messages != 1 || known(n) != tasks {
				t.Fatalf("node %s knows %d backends after %d messages, want %d after 1", n.node, known(n), messages, tasks)
			}
		}
	})
}

// TestOlderWorkersGetBackendsUnpacked checks that a worker of protocol 2 knows as much as
// one of protocol 3.
func TestOlderWorkersGetBackendsUnpacked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.update(func(tx *store.Tx) {
		s.network(tx, "net1")
		s.service(tx, "s1", "net1")
		for _, node := range []string{"n1", "n2"} {
			s.node(tx, node, "192.0.2.1")
		}
		s.block(tx, "net1", 1, "n1", "10.64.16.0/20")
		s.block(tx, "net1", 2, "n2", "10.64.32.0/20")
	})
	some := func(from, to int) {
		s.update(func(tx *store.Tx) {
			for i := from; i < to; i++ {
				s.task(tx, "n1", "s1", fmt.Sprintf("t%d", i), "net1", fmt.Sprintf("10.64.%d.%d", 16+i/250, i%250))
			}
		})
	}
	some(0, 1200)
	s.advance()
	old, now := s.connectAs(t, "n2", 2), s.connect(t, "n2")
	compare := func(when string, want int) {
		t.Helper()
		key := assignmentstest.ServiceKey("net1", "s1")
		if got := len(old.worker.Backends[key]); got != want || !maps.EqualFunc(old.worker.Backends[key], now.worker.Backends[key], sameBackend) {
			t.Errorf("%s the older worker knows %d backends and the other one %d, want %d", when, got, len(now.worker.Backends[key]), want)
		}
		if old.packed > 0 || now.packed == 0 {
			t.Errorf("%s the older worker has got packed backends in %d objects and the other one in %d", when, old.packed, now.packed)
		}
	}
	compare("at first", 1200)
	some(1000, 2500)
	networks := s.advance()["n2"]
	old.changed(networks)
	now.changed(networks)
	compare("after a change", 2500)
	s.update(func(tx *store.Tx) { s.tables.NodeStates.Delete(tx, "n1") })
	networks = s.advance()["n2"]
	old.changed(networks)
	now.changed(networks)
	compare("without the node of the tasks", 0)
}

func sameBackend(a, b *networkv1.Backend) bool { return proto.Equal(a, b) }
