package plan

import "time"

const (
	// FaultWindow is how long a node is held to what went wrong on it, and
	// mostFaults how often tasks of one spec may fail there within that time before
	// others are preferred: SwarmKit's rule.
	FaultWindow = 5 * time.Minute
	mostFaults  = 5
)

// Faults are where tasks went wrong lately, by spec and node. They only make other
// nodes preferred, so they need not outlive the scheduler. A new one finds the
// newest among the statuses that are kept.
type Faults struct {
	bySpec map[SpecKey]map[string]*fault
	swept  time.Time
}

// SpecKey names one spec of one service.
type SpecKey struct{ Service, Digest string }

// fault is what went wrong with tasks of one spec on one node.
type fault struct {
	// failed holds the times of the newest failures, as a ring.
	failed [mostFaults]time.Time
	next   int
	// blamed is when an executor said that the node is to blame.
	blamed time.Time
}

// NewFaults returns none.
func NewFaults() *Faults { return &Faults{bySpec: map[SpecKey]map[string]*fault{}} }

// Note notes that a task failed. An executor may have blamed the node.
func (f *Faults) Note(spec SpecKey, node string, at time.Time, blamed bool) {
	if f.bySpec[spec] == nil {
		f.bySpec[spec] = map[string]*fault{}
	}
	one := f.bySpec[spec][node]
	if one == nil {
		one = &fault{}
		f.bySpec[spec][node] = one
	}
	one.failed[one.next] = at
	one.next = (one.next + 1) % mostFaults
	if blamed {
		one.blamed = at
	}
}

// Avoided returns the nodes that tasks of a spec should avoid now.
func (f *Faults) Avoided(spec SpecKey, now time.Time) map[string]bool {
	avoided := map[string]bool{}
	for node, one := range f.bySpec[spec] {
		if one.recent(now) >= mostFaults || now.Sub(one.blamed) < FaultWindow {
			avoided[node] = true
		}
	}
	return avoided
}

func (f *fault) recent(now time.Time) (n int) {
	for _, at := range f.failed {
		if now.Sub(at) < FaultWindow {
			n++
		}
	}
	return n
}

// Forget forgets now and then what is too old.
func (f *Faults) Forget(now time.Time) {
	if now.Sub(f.swept) < FaultWindow {
		return
	}
	f.swept = now
	for spec, nodes := range f.bySpec {
		for node, one := range nodes {
			if one.recent(now) == 0 {
				delete(nodes, node)
			}
		}
		if len(nodes) == 0 {
			delete(f.bySpec, spec)
		}
	}
}
