package networks

import "time"

const (
	// readerCost and changeCost estimate what it costs dispatcher and worker together that
	// one worker gets a message, and each change in it.
	readerCost = 100 * time.Microsecond
	changeCost = 500 * time.Nanosecond
	// longestPause bounds the time for which changes are gathered.
	longestPause = 50 * time.Millisecond
)

// pace decides when the changes of a network's members are published. The first change
// goes out at once. Those that follow wait until the time has passed that the last
// publication costs, and go out together: many tasks that start at the same time
// otherwise cost each node a message for each of them.
type pace struct {
	// next is when changes may be published again.
	next time.Time
	// waiting says that a timer will publish.
	waiting bool
}

// pause returns how long to gather changes after a publication.
func pause(readers int, changes uint64) time.Duration {
	// More are no different, and would overflow.
	changes = min(changes, uint64(longestPause/changeCost))
	return min(longestPause, time.Duration(readers)*(readerCost+time.Duration(changes)*changeCost))
}

// publish publishes the changes of a network's members, or has that done later. It
// returns false if it is done later. The caller holds mu.
func (x *Index) publish(n *network) bool {
	if n.pace.waiting {
		return false
	}
	now := time.Now()
	if wait := n.pace.next.Sub(now); wait > 0 && x.deliver != nil {
		n.pace.waiting = true
		time.AfterFunc(wait, func() { x.publishLater(n) })
		return false
	}
	n.pace.next = now.Add(pause(len(n.readers), n.feed.publish()))
	return true
}

// publishLater publishes what has waited, and tells the nodes.
func (x *Index) publishLater(n *network) {
	nodes := map[string][]string{}
	x.mu.Lock()
	n.pace.waiting = false
	if x.networks[n.id] == n && x.publish(n) {
		for r := range n.readers {
			nodes[r.node] = []string{n.id}
		}
	}
	x.mu.Unlock()
	x.deliver(nodes)
}
