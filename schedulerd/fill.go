package schedulerd

import "github.com/musterhq/muster/internal/placement"

const (
	// manyNodes and fewTasks say which looks would scatter their tasks: they would
	// give few to each of many nodes.
	manyNodes, fewTasks = 100, 8
)

// worthFilling reports whether tasks of a service, of which the rest of the total is
// still being made, are better placed node by node than one on each node. What a node
// gets at once costs one commit, one message to its worker and one report of it, in
// pages of the store that lie together, however many tasks it is; and of a large
// service's tasks, which come a few thousand at a time, each node would get its share
// one by one. A few nodes get theirs in large parts anyhow, and begin sooner if each
// is given some at once.
func worthFilling(nodes, tasks, total int) bool {
	return nodes >= manyNodes && tasks < total && tasks <= fewTasks*nodes
}

// assigned is how many tasks a service has on nodes.
func assigned(service string, nodes []placement.Candidate) (n int) {
	for _, c := range nodes {
		n += c.Service(service)
	}
	return n
}
