package plan

import (
	"cmp"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/placement"
)

const (
	// manyNodes and fewTasks say which decisions would scatter their tasks: they
	// would give few to each of many nodes, or one to many of them.
	manyNodes, fewTasks = 100, 8
)

// worthFilling reports whether tasks of a service, of which the rest of the total is
// still being created, are better placed node by node than one on each node. What a node
// gets at once costs one commit, one message to its worker and one report of it, in
// pages of the store that lie together, however many tasks it is; and of a large
// service's tasks, which come a few thousand at a time, each node would get its share
// one by one. A few nodes get theirs in large parts anyhow, and begin sooner if each
// is given some at once.
func worthFilling(nodes, tasks, total int) bool {
	return nodes >= manyNodes && tasks >= manyNodes && tasks < total && tasks <= fewTasks*nodes
}

// certainReplicas returns how many tasks a service is certain to have, running or
// waiting, once all are created; 0 if that is not known. Tasks that may finish for good
// hold their slots, and nothing of their nodes.
func certainReplicas(service *musterv1.ServiceSpec, task *musterv1.TaskSpec) int {
	switch p := task.GetRestart(); {
	case p.GetMaxAttempts() > 0:
		return 0
	case defaults.RestartCondition(p) != musterv1.RestartPolicy_ANY:
		return 0
	}
	return int(defaults.Replicas(service))
}

// fill chooses nodes for tasks of a service, in the order in which the tasks are
// dealt out to them: neighbouring slots go to different nodes, for an update takes
// slots in order, a few at a time, and had better not stop and start them all on one.
func fill(r *placement.Request, nodes []placement.Candidate, tasks, total int) []placement.Candidate {
	type card struct {
		node  placement.Candidate
		round int
	}
	var cards []card
	r.Fill(nodes, tasks, total, func(c placement.Candidate) {
		next := card{node: c}
		if n := len(cards); n > 0 && cards[n-1].node.ID == c.ID {
			next.round = cards[n-1].round + 1
		}
		cards = append(cards, next)
	})
	slices.SortStableFunc(cards, func(a, b card) int { return cmp.Compare(a.round, b.round) })
	dealt := make([]placement.Candidate, len(cards))
	for i, c := range cards {
		dealt[i] = c.node
	}
	return dealt
}

// assigned is how many tasks a service has on nodes.
func assigned(service string, nodes []placement.Candidate) (n int) {
	for _, c := range nodes {
		n += c.Service(service)
	}
	return n
}
