package placement

import "sort"

// Fill chooses nodes for count tasks of one request of a
// service that needs total tasks in all, the others later. It gives a node its whole share of the total
// before it gives the next one any, in the order of the candidates, and places no
// task where [Request.Spread] would have none of the total: after the last tasks were
// placed by Spread all are where Spread would have them, had they come at once. A
// node to be avoided gets none. Take is called for each choice after the usage was
// counted up. It returns how many were placed: fewer than count when what is left
// cannot be shared out evenly, or has no room.
func (r *Request) Fill(candidates []Candidate, count, total int, take func(Candidate)) int {
	fit := make([]Candidate, 0, len(candidates))
	for _, c := range candidates {
		if !c.Avoid && r.Check(c.Node, c.Usage) == FilterNone {
			fit = append(fit, c)
		}
	}
	share := r.share(fit, total)
	hold := r.Hold()
	placed := 0
	for _, c := range fit {
		for ; placed < count && c.Service(r.Service) < share && r.CheckUsage(c.Node, c.Usage) == FilterNone; placed++ {
			c.Add(hold)
			take(c)
		}
	}
	return placed
}

// share is how many tasks of the service each node has at least once so many more are
// spread over the nodes, if there is room.
func (r *Request) share(nodes []Candidate, total int) int {
	if len(nodes) == 0 {
		return 0
	}
	most := total
	for _, c := range nodes {
		most = max(most, c.Service(r.Service)+total)
	}
	return sort.Search(most, func(level int) bool {
		left := total
		for _, c := range nodes {
			left -= max(0, level+1-c.Service(r.Service))
		}
		return left < 0
	})
}
