package placement

import "sort"

// Fill chooses nodes for the first count tasks of a service that needs total tasks. It
// fills each node with its whole share of the total before the next, in the order of the
// candidates. Candidates to be avoided get none.
//
// A node's share is what every node gets at least if [Request.Spread] places the total.
// So once Spread has placed the remaining tasks, the result is as if Spread had placed all.
//
// Fill calls take for each choice, after it has added the task to the usage. It returns
// how many tasks it placed: fewer than count if the rest cannot be shared evenly, or has
// no room.
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

// share returns how many tasks of the service each node has at least after total more
// tasks were spread over the nodes, if there is room.
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
