package placement

import "container/heap"

// Candidate is a node with what its tasks hold. The usage is the caller's to
// change while it places.
type Candidate struct {
	*Node
	*Usage
	// Avoid means that such tasks failed on the node lately. The node is chosen only if
	// there is no other.
	Avoid bool
}

// Spread chooses nodes for up to count tasks of one request. Each task goes to a node that
// is not to be avoided, with the fewest tasks of its service, then with the fewest tasks in
// all (SwarmKit's order), then to the first of the candidates. Spread calls take for each
// choice, after it has added the task to the usage. It returns how many tasks it placed. If
// that is fewer than count, all candidates refuse the request: [Request.Refusals] says why.
func (r *Request) Spread(candidates []Candidate, count int, take func(Candidate)) int {
	s := &spread{}
	for i, c := range candidates {
		if r.Check(c.Node, c.Usage) == FilterNone {
			s.nodes = append(s.nodes, ranked{c, c.Service(r.Service), i})
		}
	}
	heap.Init(s)
	hold := r.Hold()
	placed := 0
	for placed < count && s.Len() > 0 {
		best := &s.nodes[0]
		// Others on its machine may have taken what it had, and other nodes the last
		// block of a network.
		if (best.machine != nil || len(r.networks) > 0) && r.CheckUsage(best.Node, best.Usage) != FilterNone {
			heap.Pop(s)
			continue
		}
		best.Add(hold)
		best.service++
		placed++
		take(best.Candidate)
		if r.CheckUsage(best.Node, best.Usage) != FilterNone {
			heap.Pop(s)
		} else {
			heap.Fix(s, 0)
		}
	}
	return placed
}

// ranked is a candidate with the number of tasks of the service at hand, which
// the heap compares most, and its place among the candidates.
type ranked struct {
	Candidate
	service, place int
}

type spread struct {
	nodes []ranked
}

func (s *spread) Len() int      { return len(s.nodes) }
func (s *spread) Swap(i, j int) { s.nodes[i], s.nodes[j] = s.nodes[j], s.nodes[i] }
func (s *spread) Push(x any)    { s.nodes = append(s.nodes, x.(ranked)) }

func (s *spread) Pop() any {
	last := s.nodes[len(s.nodes)-1]
	s.nodes = s.nodes[:len(s.nodes)-1]
	return last
}

func (s *spread) Less(i, j int) bool {
	a, b := &s.nodes[i], &s.nodes[j]
	if a.Avoid != b.Avoid {
		return b.Avoid
	}
	if a.service != b.service {
		return a.service < b.service
	}
	if a.Tasks != b.Tasks {
		return a.Tasks < b.Tasks
	}
	return a.place < b.place
}
