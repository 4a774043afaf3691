package schedulerd

import "time"

const (
	// manyNodes and fewTasks say which looks scatter their tasks: they give few to
	// each of many nodes.
	manyNodes, fewTasks = 200, 8
	// mostGathering is how long the next look waits for more tasks at most.
	mostGathering = time.Second
)

// worthGathering returns how long to wait, after a look that took so long, for the
// tasks that are being made meanwhile. What a node gets at once costs one commit, one
// message to its worker and one report of it, however many tasks it is; so of a large
// service's tasks, which come a few thousand at a time, each node had better get its
// share in a few parts than one by one. Others wait for it no longer than that look
// took them, twice over.
func (p *plan) worthGathering(took time.Duration) time.Duration {
	if len(p.nodes) < manyNodes || p.size > fewTasks*len(p.nodes) {
		return 0
	}
	return min(2*took, mostGathering)
}
