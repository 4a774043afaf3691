package schedulerd

import (
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

const (
	// faultWindow is how long a node is held to what went wrong on it, and
	// mostFaults how often tasks of one spec may fail there within that time before
	// others are preferred: SwarmKit's rule.
	faultWindow = 5 * time.Minute
	mostFaults  = 5
)

// faults are where tasks went wrong lately, by spec and node. They only make other
// nodes preferred, so they need not outlive the scheduler; a new one finds the
// newest among the statuses that are kept.
type faults struct {
	bySpec map[specKey]map[string]*fault
	swept  time.Time
}

// specKey names one spec of one service.
type specKey struct{ service, digest string }

// fault is what went wrong with tasks of one spec on one node.
type fault struct {
	// failed holds when the newest failures came, as a ring.
	failed [mostFaults]time.Time
	next   int
	// blamed is when an executor said that the node is to blame.
	blamed time.Time
}

func newFaults() *faults { return &faults{bySpec: map[specKey]map[string]*fault{}} }

// note notes that a task failed.
func (f *faults) note(spec specKey, node string, at time.Time, blamed bool) {
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

// avoided returns the nodes that are better not given tasks of a spec now.
func (f *faults) avoided(spec specKey, now time.Time) map[string]bool {
	f.sweep(now)
	avoided := map[string]bool{}
	for node, one := range f.bySpec[spec] {
		if one.recent(now) >= mostFaults || now.Sub(one.blamed) < faultWindow {
			avoided[node] = true
		}
	}
	return avoided
}

func (f *fault) recent(now time.Time) (n int) {
	for _, at := range f.failed {
		if now.Sub(at) < faultWindow {
			n++
		}
	}
	return n
}

// sweep forgets now and then what is too old.
func (f *faults) sweep(now time.Time) {
	if now.Sub(f.swept) < faultWindow {
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

// failed notes the end of a task, if it is a failure: that of one which was told to
// stop is none. A status's time is that of the worker's clock, which may be wrong,
// so it counts only for what happened before this scheduler looked.
func (m *model) failed(key string, s *recordv1.Status, news bool) {
	if s.State != musterv1.TaskState_FAILED && s.State != musterv1.TaskState_REJECTED {
		return
	}
	at := time.Now()
	if before := time.UnixMilli(s.At); !news && before.Before(at) {
		at = before
	}
	nodeID, service, id := state.SplitKey(key)
	a, ok := m.tables.Assignments.Get(m.now, key)
	if !ok || time.Since(at) >= faultWindow {
		return
	}
	t, ok := m.tables.Tasks.Get(m.now, state.AssignedTaskKey(nodeID, service, id, a.Value))
	// One that failed is told to stop as well, but later: when it is replaced.
	if !ok || leaving(t.Value) && t.Value.DesiredAt <= s.At && !s.NodeToBlame {
		return
	}
	m.faults.note(specKey{service, string(t.Value.SpecDigest)}, nodeID, at, s.NodeToBlame)
}
