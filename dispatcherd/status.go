package dispatcherd

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/internal/state"
)

// Bounds on what one worker may make every other daemon keep in memory.
const (
	maxStatusText  = 4 << 10 // bytes of a message or an error
	maxStatusPorts = 256
	maxRuntimeID   = 256
	maxPortName    = 64
)

// observed turns a worker's report into a record, false if no worker can have
// observed such a thing.
func observed(r *dispatcherv1.ReportedStatus, now time.Time) (*recordv1.Status, bool) {
	s := r.GetStatus()
	if s == nil || !observable(s.State) {
		return nil, false
	}
	record := &recordv1.Status{
		State: s.State, At: now.UnixMilli(),
		Message: bounds.Clip(s.Message, maxStatusText), Error: bounds.Clip(s.Error, maxStatusText),
		Runtime: runtimeOf(s.Runtime), Ports: portsOf(s.Ports),
		NodeToBlame: r.NodeToBlame,
	}
	if s.Timestamp != nil {
		record.At = s.Timestamp.AsTime().UnixMilli()
	}
	times := make([]state.StateTime, 0, 8)
	for _, t := range r.Times {
		if observable(t.GetState()) && t.At != nil {
			times = append(times, state.StateTime{State: t.State, At: t.At.AsTime().UnixMilli()})
		}
	}
	state.SetTimes(record, inOrder(append(times, state.StateTime{State: record.State, At: record.At})))
	return record, true
}

// runtimeOf takes over what is known of a runtime, and nothing that a worker may
// have put beside it.
func runtimeOf(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	if r == nil {
		return nil
	}
	return &musterv1.RuntimeStatus{Id: bounds.Clip(r.Id, maxRuntimeID), Pid: r.Pid, ExitCode: r.ExitCode, OomKilled: r.OomKilled}
}

// portsOf does it for ports.
func portsOf(ports []*musterv1.PortConfig) []*musterv1.PortConfig {
	var taken []*musterv1.PortConfig
	for _, p := range ports[:min(len(ports), maxStatusPorts)] {
		taken = append(taken, &musterv1.PortConfig{
			Name: bounds.Clip(p.GetName(), maxPortName), Protocol: p.GetProtocol(), TargetPort: p.GetTargetPort(),
			PublishedPort: p.GetPublishedPort(), PublishMode: p.GetPublishMode(),
		})
	}
	return taken
}

// observable reports whether a state is one that a worker brings a task to.
func observable(s musterv1.TaskState) bool {
	_, named := musterv1.TaskState_name[int32(s)]
	return named && s >= musterv1.TaskState_ASSIGNED && s <= musterv1.TaskState_REJECTED
}

// orphan is the status of a task that is given up with its node.
func orphan(now time.Time, why string) *recordv1.Status {
	at := now.UnixMilli()
	return &recordv1.Status{
		State: musterv1.TaskState_ORPHANED, At: at, Message: "orphaned", Error: why, NodeToBlame: true,
		Reached: []musterv1.TaskState{musterv1.TaskState_ORPHANED}, ReachedBefore: []int64{0},
	}
}

// merge returns what is known after a status was reported: old itself if that
// said nothing new. A state is never lowered, and of one state the report of
// the later time counts, so that reports may come twice, late, and in any
// order.
func merge(old, reported *recordv1.Status) *recordv1.Status {
	if old == nil {
		return reported
	}
	if reported.State < old.State || reported.State == old.State && reported.At < old.At {
		return old
	}
	next := &recordv1.Status{
		State: reported.State, At: reported.At, Message: reported.Message, Error: reported.Error,
		Runtime: reported.Runtime, Ports: reported.Ports, NodeToBlame: reported.NodeToBlame,
		AppliedAt: old.AppliedAt, SentAt: old.SentAt,
	}
	// The time of a state that is known already stays.
	state.SetTimes(next, inOrder(slices.AppendSeq(slices.AppendSeq(make([]state.StateTime, 0, 8), state.Times(old)), state.Times(reported))))
	if proto.Equal(old, next) {
		return old
	}
	next.AppliedAt = reported.AppliedAt
	return next
}

// inOrder brings times into the order of their states, and keeps the first of each.
func inOrder(times []state.StateTime) []state.StateTime {
	slices.SortStableFunc(times, func(a, b state.StateTime) int { return int(a.State) - int(b.State) })
	return slices.CompactFunc(times, func(a, b state.StateTime) bool { return a.State == b.State })
}
