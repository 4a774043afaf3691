package networks_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/internal/store"
)

const (
	benchNodes    = 100
	benchServices = 10
	benchTasks    = 10_000
)

// benchTask writes the n-th task, with one of two addresses.
func (s *site) benchTask(tx *store.Tx, n, address int) {
	node := n % benchNodes
	s.task(tx, fmt.Sprintf("n%d", node), fmt.Sprintf("s%d", n/benchNodes%benchServices), fmt.Sprintf("t%d", n), "net1", fmt.Sprintf("10.65.%d.%d", node, n/benchNodes%100+100*address))
}

// benchSite has a network with 10,000 tasks of ten services on 100 nodes.
func benchSite(b *testing.B) *site {
	s := newSite(b)
	s.update(func(tx *store.Tx) {
		s.network(tx, "net1")
		for i := range benchNodes {
			node := fmt.Sprintf("n%d", i)
			s.node(tx, node, fmt.Sprintf("192.0.2.%d", i))
			s.block(tx, "net1", uint32(i), node, fmt.Sprintf("10.65.%d.0/24", i))
		}
		for i := range benchServices {
			s.service(tx, fmt.Sprintf("s%d", i), "net1")
		}
	})
	for node := range benchNodes {
		s.update(func(tx *store.Tx) {
			for n := node; n < benchTasks; n += benchNodes {
				s.benchTask(tx, n, 0)
			}
		})
	}
	return s
}

// BenchmarkCompleteSets reads a network with 10,000 backends and makes the complete
// sets of its 100 nodes.
func BenchmarkCompleteSets(b *testing.B) {
	s := benchSite(b)
	b.ReportAllocs()
	for b.Loop() {
		s.index = networks.New(s.tables, nil)
		s.advance()
		for i := range benchNodes {
			sent := assignments.NewSent(assignments.Protocol)
			if got := sent.Complete(nil, s.index.Held(fmt.Sprintf("n%d", i)), limits); len(got) < 1 {
				b.Fatal(len(got))
			}
			sent.Close()
		}
	}
}

// BenchmarkOneBackend changes one of 10,000 backends and makes the messages for the 100
// nodes of the network. The commit is not measured.
func BenchmarkOneBackend(b *testing.B) {
	s := benchSite(b)
	s.advance()
	sessions := map[string]*assignments.Sent{}
	for i := range benchNodes {
		node := fmt.Sprintf("n%d", i)
		sessions[node] = assignments.NewSent(assignments.Protocol)
		sessions[node].Complete(nil, s.index.Held(node), limits)
	}
	b.ReportAllocs()
	for i := 1; b.Loop(); i++ {
		b.StopTimer()
		s.update(func(tx *store.Tx) { s.benchTask(tx, 7, i%2) })
		b.StartTimer()
		nodes := s.advance()
		if len(nodes) != benchNodes {
			b.Fatalf("%d nodes have changes, want %d", len(nodes), benchNodes)
		}
		for node := range nodes {
			held := []assignments.Object{s.index.Network(node, "net1")}
			if got := sessions[node].Changes(nil, held, limits, time.Now()); len(got) != 1 {
				b.Fatalf("%d messages, want 1", len(got))
			}
		}
	}
}
