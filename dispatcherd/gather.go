package dispatcherd

import (
	"context"
	"time"
)

const (
	// manyNodes and fewAssignments say which changes are scattered: few assignments
	// of each of many nodes.
	manyNodes, fewAssignments = 200, 8
	// tellingNode is about what it costs to tell a node of something and to take its
	// answer, and mostGathering bounds what that comes to.
	tellingNode   = 100 * time.Microsecond
	mostGathering = 500 * time.Millisecond
)

// gather waits, when scattered changes were passed on, for about as long as telling
// them takes: what a large service's tasks are to do comes a few thousand at a time,
// and what a worker is told at once is one message, and one report from it, however
// many tasks it is about.
func gather(ctx context.Context, nodes, assignments int) {
	if nodes < manyNodes || assignments > fewAssignments*nodes {
		return
	}
	t := time.NewTimer(min(time.Duration(nodes)*tellingNode, mostGathering))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
