package statuses

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/state"
)

// Observed returns the record of what a worker reported. It returns false if the
// state is not one that a worker can observe.
func Observed(r *dispatcherv1.ReportedStatus, now time.Time) (*recordv1.Status, bool) {
	s := r.GetStatus()
	if s == nil || !observable(s.State) {
		return nil, false
	}
	record := &recordv1.Status{
		State: s.State, At: now.UnixMilli(),
		Message: bounds.Clip(s.Message, nodereport.MaxStatusText), Error: bounds.Clip(s.Error, nodereport.MaxStatusText),
		Runtime: runtimeOf(s.Runtime), Ports: portsOf(s.Ports),
		Networks: networksOf(s.Networks), NodeToBlame: r.NodeToBlame,
		Containers: containersOf(s.Containers),
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

// runtimeOf copies the known fields of a runtime. The worker may have sent others.
func runtimeOf(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	if r == nil {
		return nil
	}
	return &musterv1.RuntimeStatus{
		Id: bounds.Clip(r.Id, nodereport.MaxName), Pid: r.Pid, ExitCode: r.ExitCode, OomKilled: r.OomKilled, Health: healthOf(r.Health),
	}
}

// containersOf copies the known fields of the containers of a task.
func containersOf(all []*musterv1.ContainerStatus) []*musterv1.ContainerStatus {
	var known []*musterv1.ContainerStatus
	for _, c := range all[:min(len(all), nodereport.MaxContainers)] {
		s := &musterv1.ContainerStatus{
			Name: bounds.Clip(c.GetName(), nodereport.MaxPortName), Role: c.GetRole(), State: c.GetState(),
			Error: bounds.Clip(c.GetError(), nodereport.MaxContainerText), Runtime: runtimeOf(c.GetRuntime()), Restarts: c.GetRestarts(),
		}
		if p := c.GetPrevious(); p != nil {
			s.Previous = &musterv1.RuntimeStatus{ExitCode: p.ExitCode, OomKilled: p.OomKilled}
		}
		if h := s.Runtime.GetHealth(); h != nil {
			h.Output = bounds.Clip(h.Output, nodereport.MaxContainerText)
		}
		if at := c.GetTimestamp(); at.IsValid() {
			s.Timestamp = &timestamppb.Timestamp{Seconds: at.Seconds, Nanos: at.Nanos}
		}
		known = append(known, s)
	}
	return known
}

// healthOf copies the known fields of a health check's result.
func healthOf(h *musterv1.Health) *musterv1.Health {
	if h == nil {
		return nil
	}
	return &musterv1.Health{
		State: h.State, FailedChecks: h.FailedChecks, Retries: h.Retries, ExitCode: h.ExitCode, Output: bounds.Clip(h.Output, nodereport.MaxHealthOutput),
	}
}

// portsOf copies the known fields of ports.
func portsOf(ports []*musterv1.PortConfig) []*musterv1.PortConfig {
	var known []*musterv1.PortConfig
	for _, p := range ports[:min(len(ports), nodereport.MaxPorts)] {
		known = append(known, &musterv1.PortConfig{
			Name: bounds.Clip(p.GetName(), nodereport.MaxPortName), Protocol: p.GetProtocol(), TargetPort: p.GetTargetPort(),
			PublishedPort: p.GetPublishedPort(), PublishMode: p.GetPublishMode(),
		})
	}
	return known
}

// networksOf copies the known fields of a task's place on its networks.
func networksOf(networks []*musterv1.NetworkAttachment) []*musterv1.NetworkAttachment {
	clip := func(texts []string, most int) []string {
		var clipped []string
		for _, text := range texts[:min(len(texts), most)] {
			clipped = append(clipped, bounds.Clip(text, nodereport.MaxNetworkName))
		}
		return clipped
	}
	var known []*musterv1.NetworkAttachment
	for _, n := range networks[:min(len(networks), nodereport.MaxNetworks)] {
		known = append(known, &musterv1.NetworkAttachment{
			NetworkId: bounds.Clip(n.GetNetworkId(), nodereport.MaxNetworkName),
			Addresses: clip(n.GetAddresses(), nodereport.MaxAddresses), Aliases: clip(n.GetAliases(), nodereport.MaxAliases),
		})
	}
	return known
}

// observable reports whether a worker can bring a task into a state.
func observable(s musterv1.TaskState) bool {
	_, named := musterv1.TaskState_name[int32(s)]
	return named && s >= musterv1.TaskState_ASSIGNED && s <= musterv1.TaskState_REJECTED
}

// orphaned returns the status of a task that is given up together with its node.
func orphaned(now time.Time, reason string) *recordv1.Status {
	at := now.UnixMilli()
	return &recordv1.Status{
		State: musterv1.TaskState_ORPHANED, At: at, Message: "orphaned", Error: reason, NodeToBlame: true,
		Reached: []musterv1.TaskState{musterv1.TaskState_ORPHANED}, ReachedBefore: []int64{0},
	}
}

// Merge returns the record after a report. It returns old itself if the report
// contains nothing new. A state never goes back, and of two reports of one state
// the later one counts. Reports may therefore arrive twice, late, and in any order.
func Merge(old, reported *recordv1.Status) *recordv1.Status {
	if old == nil {
		return reported
	}
	if reported.State < old.State || reported.State == old.State && reported.At < old.At {
		return old
	}
	next := &recordv1.Status{
		State: reported.State, At: reported.At, Message: reported.Message, Error: reported.Error,
		Runtime: reported.Runtime, Ports: reported.Ports, Networks: reported.Networks, NodeToBlame: reported.NodeToBlame,
		Containers: reported.Containers, AppliedAt: old.AppliedAt, SentAt: old.SentAt,
	}
	// The known time of a state does not change.
	state.SetTimes(next, inOrder(slices.AppendSeq(slices.AppendSeq(make([]state.StateTime, 0, 8), state.Times(old)), state.Times(reported))))
	if proto.Equal(old, next) {
		return old
	}
	next.AppliedAt = reported.AppliedAt
	return next
}

// inOrder sorts times by their states, and keeps the first of each state.
func inOrder(times []state.StateTime) []state.StateTime {
	slices.SortStableFunc(times, func(a, b state.StateTime) int { return int(a.State) - int(b.State) })
	return slices.CompactFunc(times, func(a, b state.StateTime) bool { return a.State == b.State })
}
